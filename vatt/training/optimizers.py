"""Optimisers and learning-rate schedules as the release runs them (Keras conventions)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from ..config.pretraining import OptimConfig


class Adam(torch.optim.Adam):
    """Adam with eps added to sqrt(v) before bias correction, as Keras does.

    torch adds it after: sqrt(v) / c + eps with c = sqrt(1 - beta2^t). Passing eps / c makes that (sqrt(v) + eps) / c.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], config: OptimConfig):
        self.keras_eps = config.eps
        betas = (config.beta1, config.beta2)
        super().__init__([p for p in parameters if p.requires_grad], lr=config.rate, betas=betas, eps=config.eps)
        self.updates = 0

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        self.updates += 1
        for group in self.param_groups:
            group["eps"] = self.keras_eps / math.sqrt(1 - group["betas"][1] ** self.updates)
        return super().step(closure)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.updates = max((int(s["step"]) for s in self.state.values()), default=0)


class SGD(torch.optim.Optimizer):
    """SGD with Keras momentum, for fine-tuning: velocity = momentum * velocity - rate * gradient, added to the weight.

    The rate is inside the velocity, so that after a change of rate the steps differ from `torch.optim.SGD`'s. The
    state `momentum` of a parameter is that velocity, as official checkpoints hold it.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], rate: float, momentum: float = 0.9):
        super().__init__([p for p in parameters if p.requires_grad], {"lr": rate, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                velocity = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                velocity.mul_(group["momentum"]).add_(parameter.grad, alpha=-group["lr"])
                parameter.add_(velocity)
        return loss
