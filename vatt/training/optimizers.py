"""Optimisers and learning-rate schedules as the release runs them (Keras conventions)."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn

from .config import OptimConfig


def multilevel_rate(step: int, levels: Sequence[tuple[int, float]], steps: int, *, first: float = 0.0) -> float:
    """Rate of the update number `step` (from 0): linear from `first` to the first level, then half a cosine a level.

    `levels`: (step from which on, rate) in ascending order. Each falls to the next one, the last to 0 at `steps`, from
    where on the rate stays. A last level that begins at `steps` has no length: the rate stays at it (the release
    divides 0 by 0 there).
    """
    start, rate = levels[0]
    if step < start:
        return first + (rate - first) * step / start
    index = bisect_right([begin for begin, _ in levels], step) - 1
    start, rate = levels[index]
    end, target = levels[index + 1] if index + 1 < len(levels) else (steps, 0.0)
    if end <= start:
        return rate
    progress = min((step - start) / (end - start), 1.0)
    return target + (rate - target) * 0.5 * (1 + math.cos(math.pi * progress))


def learning_rate(step: int, config: OptimConfig, steps: int) -> float:
    """Rate of the update number `step` (from 0): linear warm-up from 0, then half a cosine down to `final_rate`."""
    steps = max(steps, config.warmup)
    return multilevel_rate(min(step, steps), [(config.warmup, config.rate), (steps, config.final_rate)], steps)


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
