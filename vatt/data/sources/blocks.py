"""Clips that an annotation lists, thousands at a time: the columns of `Record`s, worked on as columns.

Lists hold millions of rows. What is done for each row by itself in Python costs more than all else of an import.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import compress, count, repeat
from pathlib import Path
from typing import Any, NamedTuple, cast

from ..tables import Cell
from .records import BLOCK, Name, Record, caption, captions, listed, seconds, split_of, transposed

_unlike = map("no time, number {}".format, count())
_RARE = ("&", "|", "  ", "\t", "\r", "\v", "\f", "\x1c", "\x1d", "\x1e", "\x1f")


class Cut(NamedTuple):
    """How files are named that hold just a clip. `times`: names of its video and its times, or None; `mark`: what is
    put before the name of the video."""

    times: Callable[[str, float, float | None], tuple[Name, ...]] | None = None
    mark: str = ""

    def names(self, video: str, start: float, end: float | None) -> tuple[Name, ...]:
        marked: tuple[Name, ...] = ((self.mark + video,),) if self.mark else ()
        return (*self.times(video, start, end), *marked) if self.times else marked


class Block(NamedTuple):
    """Columns of some `Record`s, as long as each other. `cut`: the names of each, or how they are made; so is `file`
    None where no clip has one."""

    video: Sequence[str]
    start: Sequence[float]
    end: Sequence[float | None]
    labels: Sequence[tuple[str, ...]]
    captions: Sequence[tuple[str, ...]]
    split: Sequence[str | None]
    cut: Sequence[tuple[Name, ...]] | Cut = Cut()
    file: Sequence[Path | None] | None = None
    narration: bool = False

    def records(self) -> Iterator[Record]:
        *columns, cut, file, narration = self
        if isinstance(cut, Cut):
            cut = [cut.names(*one) for one in zip(self.video, self.start, self.end, strict=True)]
        return map(Record, *columns, cut, file or repeat(None), repeat(narration))

    def rows(self) -> Iterator[tuple[Any, ...]]:
        """What makes records equal, of each."""
        columns: list[Any] = list(self[:6])
        for place in (1, 2):  # no NaN is equal to another, but the hashes of two may be
            columns[place] = [next(_unlike) if time != time else time for time in columns[place]]
        columns += [column for column in (self.cut, self.file) if not isinstance(column, Cut | None)]
        return zip(*columns, strict=True)

    def of(self, chosen: Sequence[bool]) -> Block:
        """Those records that are chosen."""
        return Block._make(
            column if isinstance(column, Cut | bool | None) else list(compress(column, chosen)) for column in self
        )


def in_blocks(listing: Iterable[Record | Block]) -> Iterator[Block]:
    """Columns of what a format lists, in order. What stands before an error is given before it is raised."""
    pending: list[Record] = []

    def packed() -> Iterator[Block]:
        if pending:
            *columns, narrations = zip(*pending, strict=True)
            yield Block._make([*columns, narrations[0]])
            pending.clear()

    try:
        for one in listing:
            if isinstance(one, Block):
                yield from packed()
                if one.video:
                    yield one
            else:
                pending.append(one)
                if len(pending) == BLOCK:
                    yield from packed()
    except ValueError:
        yield from packed()
        raise
    yield from packed()


def records(listing: Iterable[Record | Block]) -> Iterator[Record]:
    """Each clip that a format lists."""
    return (record for block in in_blocks(listing) for record in block.records())


def seconds_of(column: Sequence[str]) -> list[float]:
    """`seconds` of each."""
    try:
        return list(map(float, column))
    except ValueError:
        return list(map(seconds, column))


def texts_of(column: Sequence[str]) -> list[str]:
    """`caption` of each."""
    whole = "\n".join(column)
    if whole.isascii() and whole.count("\n") == len(column) - 1 and not any(mark in whole for mark in _RARE):
        return list(map(str.strip, column))
    return list(map(caption, column))


def captions_of(column: Sequence[Cell]) -> list[tuple[str, ...]]:
    """`captions` of each, of all its texts where it is a list or one that was written as text."""
    if all(isinstance(cell, str) and cell[:1] != "[" for cell in column):
        return ones(texts_of(cast(Sequence[str], column)))
    return [captions(*listed(cell)) for cell in column]


def ones(column: Sequence[str]) -> list[tuple[str, ...]]:
    """Each text as the only one, or none where it is empty."""
    return [(text,) if text else () for text in column] if "" in column else list(zip(column, strict=True))


def splits_of(column: Sequence[str], path: Path) -> list[str]:
    """`split_of` of each."""
    known = {name: split_of(name, path) for name in dict.fromkeys(column)}
    return [known[name] for name in column]


def columns_of(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """The columns of rows without spaces around their cells; cells that a row lacks are empty."""
    return [list(map(str.strip, column)) for column in transposed(rows)]
