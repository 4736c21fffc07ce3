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
    On a GPU whole float32 parameters are updated by one kernel that reads and writes everything once (torch's `fused`);
    its results differ from those of the other form in the last bits. Its state says which form it is, so that a run
    which began with the other one goes on with that.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], config: OptimConfig):
        self.keras_eps = config.eps
        betas = (config.beta1, config.beta2)
        trained = [p for p in parameters if p.requires_grad]
        fused = True if all(map(on_one_gpu, trained)) else None
        super().__init__(trained, lr=config.rate, betas=betas, eps=config.eps, fused=fused)
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


def on_one_gpu(parameter: nn.Parameter) -> bool:
    """Tell whether it is a whole float32 tensor on CUDA, not one that is sharded over processes."""
    return parameter.is_cuda and parameter.dtype == torch.float32 and type(parameter.data) is torch.Tensor


def clip_gradients(parameters: Iterable[nn.Parameter], largest: float) -> torch.Tensor:
    """Scale all gradients together so that their norm is at most `largest`; 0 leaves them alone.

    Returns:
        The norm before.
    """
    parameters = list(parameters)
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if largest:
        nn.utils.clip_grads_with_norm_(parameters, largest, norm)
    return norm


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
