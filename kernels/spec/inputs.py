"""Random inputs of the cases of `spec`: in any dtype, on any device, also strided and expanded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Inputs:
    """Arguments of one call by name: `leaves` are differentiable, `rest` is not."""

    leaves: dict[str, Tensor]
    rest: dict[str, Any]

    def to(self, dtype: torch.dtype) -> Inputs:
        """The same values, contiguous, in another dtype."""
        return Inputs({name: x.to(dtype).contiguous() for name, x in self.leaves.items()}, self.rest)

    def differentiable(self) -> Inputs:
        """The same memory and strides, as leaves of a new graph."""
        return Inputs({name: x.detach().requires_grad_() for name, x in self.leaves.items()}, self.rest)


class Draw:
    """Random tensors on one device: functions of the seed and of the order of calls."""

    def __init__(self, dtype: torch.dtype, device: torch.device | str, seed: int) -> None:
        self.dtype, self.device = dtype, torch.device(device)
        self.generator = torch.Generator(self.device).manual_seed(seed)

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        x = torch.randn(shape, generator=self.generator, device=self.device)
        return (x * scale).to(self.dtype)

    def integers(self, low: int, high: int, *shape: int, dtype: torch.dtype) -> Tensor:
        return torch.randint(low, high, shape, generator=self.generator, device=self.device, dtype=dtype)

    def mask(self, *shape: int, share: float = 0.6) -> Tensor:
        """bool, True with probability `share`; the first of every row (the AGG token) always."""
        mask = torch.rand(shape, generator=self.generator, device=self.device) < share
        mask[..., :1] = True
        return mask


def laid_out(x: Tensor, layout: str) -> Tensor:
    """x "contiguous", "strided" (every second element of a row, strangers between) or "expanded" (its first, repeated).

    Strangers are NaN or the largest integer, so that reading one shows.
    """
    if layout == "strided":
        stranger = math.nan if x.is_floating_point() else torch.iinfo(x.dtype).max
        return torch.stack([x, torch.full_like(x, stranger)], dim=-1)[..., 0]
    if layout == "expanded":
        return x[:1].expand_as(x)
    return x
