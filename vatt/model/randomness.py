"""Seeds of draws, and which rows of the global batch a process draws for."""

from __future__ import annotations

from typing import NamedTuple


def mix_seed(seed: int, tag: int) -> int:
    """Return a 31-bit seed of its own for use number `tag` of a step's seed."""
    return (seed * 0x9E3779B1 + (tag + 1) * 0x85EBCA77) % 0x7FFFFFFF


class BatchRows(NamedTuple):
    """Where the rows of a tensor lie in a batch that several processes, or several passes, share."""

    first: int
    total: int
