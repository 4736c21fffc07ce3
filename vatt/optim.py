"""Adam and the learning-rate schedule as the release runs them (Keras conventions)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from .config import OptimConfig


def learning_rate(step: int, config: OptimConfig, steps: int) -> float:
    """Rate of the update number `step` (from 0): linear warm-up from 0, then half a cosine down to `final_rate`."""
    if step < config.warmup:
        return config.rate * step / config.warmup
    progress = min((step - config.warmup) / max(steps - config.warmup, 1), 1.0)
    return config.final_rate + (config.rate - config.final_rate) * 0.5 * (1 + math.cos(math.pi * progress))


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
