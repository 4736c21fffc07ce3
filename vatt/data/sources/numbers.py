"""Numbers of many rows, in a file without a name: 8 bytes each, of which few are in memory at a time."""

from __future__ import annotations

import tempfile
from array import array
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK = 2**16
SHARE = 2**19  # numbers that are compared at a time, which takes some 80 bytes each


class Numbers:
    """`kind`: "q" for whole numbers, "d" for others. Few of them are in memory, as long as few are added at a time."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 -- it goes with this object
        self._new: Any = array(kind)
        self._written = 0

    def extend(self, numbers: Iterable[Any]) -> None:
        self._new.extend(numbers)
        if len(self._new) >= BLOCK:
            self._new.tofile(self._file)
            self._written += len(self._new)
            del self._new[:]

    def __len__(self) -> int:
        return self._written + len(self._new)

    def __getitem__(self, place: int) -> Any:
        if place >= self._written:
            return self._new[place - self._written]
        self._file.seek(8 * place)
        number = array(self.kind, self._file.read(8))[0]
        self._file.seek(0, 2)
        return number

    def blocks(self) -> Iterator[NDArray[Any]]:
        """All numbers in order, as arrays."""
        self._file.seek(0)
        while block := self._file.read(8 * BLOCK):
            yield np.frombuffer(block, self.kind)
        yield np.array(self._new, self.kind)


def later_of_equals(numbers: Numbers) -> frozenset[int]:
    """The places of numbers that stand at an earlier place, too."""
    shares = 1 + len(numbers) // SHARE
    later: set[int] = set()
    for share in range(shares):
        places, values, first = [], [], 0
        for block in numbers.blocks():
            inside = np.flatnonzero(block % shares == share)
            places.append(inside + first)
            values.append(block[inside])
            first += len(block)
        found, place = np.concatenate(values), np.concatenate(places)
        order = np.argsort(found, kind="stable")
        later.update(place[order[1:][found[order[1:]] == found[order[:-1]]]].tolist())
    return frozenset(later)
