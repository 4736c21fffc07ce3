"""Seeds of draws, and which rows of the global batch a process draws for."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

Seed = TypeVar("Seed", int, Tensor, int | Tensor)


def mix_seed(seed: Seed, tag: int) -> Seed:
    """A 31-bit seed of its own for use number `tag` of a step's seed, which is a number or an int64 tensor below 2^31.

    As a tensor it is a value on the device, which a captured graph reads anew at each replay.
    """
    return (seed * 0x9E3779B1 + (tag + 1) * 0x85EBCA77) % 0x7FFFFFFF


def layer_seeds(seed: int | Tensor, layers: int, device: torch.device) -> Tensor:
    """`mix_seed` for each of `layers`, int64 [layers] on `device`."""
    if not isinstance(seed, Tensor):
        seed = torch.full((), seed, dtype=torch.int64, device=device)
    tags: Any = torch.arange(layers, device=device)
    return mix_seed(seed, tags)


class BatchRows(NamedTuple):
    """Where the rows of a tensor lie in a batch that several processes, or several passes, share."""

    first: int
    total: int
