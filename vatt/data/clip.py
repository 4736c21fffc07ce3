"""A row of a manifest, and the manifest."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError

CAPTION_SEPARATOR = " | "
DEFAULT_SPLIT = "train"
MAX_TEXT = 2**20  # bytes of captions beside a clip


class ManifestError(UsageError, ValueError):
    """A manifest that cannot be read. The message names the file, the line and the way out."""


@dataclass(frozen=True)
class Clip:
    """One row. `index`: position in the whole manifest, also after `split`. `path`: absolute; `name`: as written.

    `start` and `end` are seconds from the first frame of the file; `end` None is the end of the file.
    """

    index: int
    path: Path
    name: str
    start: float = 0.0
    end: float | None = None
    captions: tuple[str, ...] = ()
    label: str | None = None
    split: str | None = DEFAULT_SPLIT

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes that `label` names: none, one, or several separated as captions are."""
        return split_captions(self.label or "")


class Rows(Sequence[Clip]):
    """Clips that are made when they are asked for, from a table that is not in the memory of the process."""

    @property
    @abstractmethod
    def splits(self) -> tuple[str, ...]: ...
    @abstractmethod
    def split(self, name: str) -> Rows: ...
    @abstractmethod
    def at(self, index: int) -> Clip: ...
    @abstractmethod
    def file_numbers(self, places: NDArray[np.int64]) -> NDArray[np.int64]: ...
    @property
    @abstractmethod
    def file_count(self) -> int: ...
    @abstractmethod
    def of_files(self, paths: Iterable[Path]) -> Iterator[Clip]: ...
    @property
    @abstractmethod
    def one_a_span(self) -> bool:
        """Whether no two rows of the table are of one span of a file."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """What `vatt.checkpoints.fingerprints.fingerprint` of the clips is, as it was counted once."""

    @property
    @abstractmethod
    def survey(self) -> dict[str, Any]:
        """What `vatt.data.rows.survey.Survey` of the whole table is, as it was counted once."""

    @abstractmethod
    def words(self) -> Iterator[str]:
        """The words of all captions, most frequent first, ties in alphabetical order."""


@dataclass(frozen=True)
class Manifest(Sequence[Clip]):
    """Clips in file order. `labels` are sorted; their positions are the class ids, the same in every split.

    `clips` are in memory, or `Rows` of a large table. `notes`: what was read otherwise than its author may think, or
    not at all, a sentence each.
    """

    clips: Sequence[Clip]
    root: Path
    labels: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @overload
    def __getitem__(self, index: int) -> Clip: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Clip, ...]: ...
    def __getitem__(self, index: int | slice) -> Clip | tuple[Clip, ...]:
        found = self.clips[index]
        return found if isinstance(found, Clip) else tuple(found)

    def __len__(self) -> int:
        return len(self.clips)

    def __iter__(self) -> Iterator[Clip]:
        return iter(self.clips)

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in ("clips", "root", "labels", "notes")}

    @property
    def rows(self) -> Rows | None:
        """The clips, where they are not in memory."""
        return self.clips if isinstance(self.clips, Rows) else None

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that have clips, sorted."""
        if self.rows is not None:
            return self.rows.splits
        return tuple(sorted({clip.split for clip in self.clips if clip.split is not None}))

    @property
    def label_ids(self) -> dict[str, int]:
        return {label: i for i, label in enumerate(self.labels)}

    def split(self, name: str) -> Manifest:
        """Return clips of one split (none when it has no clips), with their indices and class ids unchanged."""
        if self.rows is not None:
            return replace(self, clips=self.rows.split(name))
        return Manifest(tuple(clip for clip in self.clips if clip.split == name), self.root, self.labels, self.notes)

    def at(self, index: int) -> Clip:
        """The clip with this `index`. Raises KeyError."""
        return self._by_index[index] if self.rows is None else self.rows.at(index)

    @cached_property
    def _by_index(self) -> dict[int, Clip]:
        return {clip.index: clip for clip in self.clips}

    def file_numbers(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Numbers that are equal for clips of one file, of the clips at these positions; int64, as `places` is."""
        return self._numbers[places] if self.rows is None else self.rows.file_numbers(places)

    @cached_property
    def file_count(self) -> int:
        """How many files the clips are of."""
        return len({clip.path for clip in self.clips}) if self.rows is None else self.rows.file_count

    @cached_property
    def _numbers(self) -> NDArray[np.int64]:
        numbers: dict[Path, int] = {}
        return np.array([numbers.setdefault(clip.path, len(numbers)) for clip in self.clips], np.int64)

    def of_files(self, paths: Iterable[Path]) -> Iterator[Clip]:
        """The clips of these files, in order."""
        if self.rows is not None:
            return self.rows.of_files(paths)
        wanted = frozenset(paths)
        return (clip for clip in self.clips if clip.path in wanted)

    def one_clip_a_span(self) -> Manifest:
        """Rows of the same span of the same file as one clip, at the place of the first, with the captions of all."""
        if self.rows is not None and self.rows.one_a_span:
            return self
        rows: dict[tuple[Path, float, float | None], list[Clip]] = {}
        for clip in self.clips:
            rows.setdefault((clip.path, clip.start, clip.end), []).append(clip)
        merged = (
            same[0] if len(same) == 1 else replace(same[0], captions=tuple(c for clip in same for c in clip.captions))
            for same in rows.values()
        )
        return Manifest(tuple(merged), self.root, self.labels, self.notes)


def split_captions(cell: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in cell.split(CAPTION_SEPARATOR) if part.strip())
