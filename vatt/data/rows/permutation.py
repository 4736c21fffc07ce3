"""The order of an epoch without a table: a keyed bijection of 0 ... n - 1, of which any part can be asked for alone.

It is the swap-or-not shuffle (Hoang, Morris and Rogaway, "An enciphering scheme based on a card shuffle", 2012). In
each round i and k - i (mod n), with a k of the round, are partners, and one bit of a hash of the larger one says
whether the two change places. A round only swaps pairs, so it is a bijection whatever the hash is, for every n. That
all orders are as likely as each other is tested, of small n one by one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ROUNDS = 6  # times the bits of n
ORDER = 0  # what the numbers are drawn for, apart from the draws of clips
_MULTIPLIERS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


class Permutation:
    """The bijection of (seed, epoch); `permutation[places]` of int64 places, or of one."""

    def __init__(self, seed: int, epoch: int, n: int) -> None:
        self.n = n
        rounds = ROUNDS * max(n - 1, 1).bit_length()
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, ORDER, epoch, n])))
        self._partners = rng.integers(n, size=rounds)
        self._keys = rng.integers(2**64, size=rounds, dtype=np.uint64)

    def __getitem__(self, places: int | NDArray[np.int64]) -> NDArray[np.int64]:
        found = np.asarray(places, np.int64)
        for partner, key in zip(self._partners, self._keys, strict=True):
            other = partner - found
            other += self.n * (other < 0)
            found = np.where(_bits(np.maximum(found, other).astype(np.uint64), key), other, found)
        return found


def _bits(values: NDArray[np.uint64], key: np.uint64) -> NDArray[np.bool_]:
    """One bit of each value and the key: the finalizer of splitmix64 over both."""
    with np.errstate(over="ignore"):  # numbers of 64 bits are meant to run over
        mixed = values * np.uint64(0x9E3779B97F4A7C15) + key
        for shift, multiplier in zip((30, 27), _MULTIPLIERS, strict=True):
            mixed = (mixed ^ (mixed >> np.uint64(shift))) * multiplier
        return (mixed >> np.uint64(63)).astype(np.bool_)
