"""What the rows of a manifest are, counted in one pass over them: splits, captions, labels, repeats, what is odd.

Two numbers a row are kept until the end, so that repeats can be counted; a file is known by 64 bits of a hash of its
path, and so is the span of a row.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..clip import Clip
from ..tokenizer import is_unspaced

NO_CAPTIONS = frozenset(("none", "nan", "null", "n/a"))


@dataclass(frozen=True)
class Survey:
    """Counts of a manifest.

    `files`: how many, `split_files`: and by split; `splits`: clips by split, "none" being no split; `told`: clips with
    captions; `shared`: files in several splits; `first_shared`: row of the first, and `shared_by` its splits;
    `repeated`: rows of a span that an earlier row of their split has; `same_span`: and of any split; `empty`: captions
    that say nothing; `unspaced`: captions in a script without spaces; `untrained`: labels of no clip of "train", where
    some have one.
    """

    clips: int
    files: int
    splits: dict[str, int]
    split_files: dict[str, int]
    told: int
    captions: int
    labelled: int
    shared: int
    first_shared: int
    shared_by: list[str]
    repeated: int
    same_span: int
    empty: int
    unspaced: int
    untrained: list[str]


def file_number(path: str) -> int:
    """64 bits of a hash of `path`, as a signed number."""
    digest = hashlib.blake2b(path.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


class Surveyor:
    """Counts clips as they come by. `files`, `splits`: of each, its file's number and that of its split."""

    def __init__(self) -> None:
        self.files, self.splits, self._spans, self._ends = array("q"), array("i"), array("q"), array("q")
        self.names: dict[str | None, int] = {}
        self.labels: set[str] = set()
        self._trained: set[str] = set()
        self._path, self._number = Path(), 0
        self._counts: Counter[str] = Counter()

    def add(self, clip: Clip) -> None:
        if clip.path is not self._path:
            self._path, self._number = clip.path, file_number(str(clip.path))
        split = self.names.setdefault(clip.split, len(self.names))
        self.files.append(self._number)
        self.splits.append(split)
        end = -1.0 if clip.end is None else clip.end
        self._ends.append(hash((self._number, clip.start, end)))
        self._spans.append(hash((self._number, clip.start, end, split)))
        counts = self._counts
        if clip.captions:
            counts["told"] += 1
            counts["captions"] += len(clip.captions)
            for caption in clip.captions:
                counts["empty"] += len(caption) < 5 and caption.lower() in NO_CAPTIONS
                counts["unspaced"] += not caption.isascii() and is_unspaced(caption)
        if clip.label is not None and (labels := clip.labels):
            counts["labelled"] += 1
            self.labels.update(labels)
            if clip.split == "train":
                self._trained.update(labels)

    def finish(self) -> Survey:
        """What was counted. Raises ValueError when there were no clips."""
        files, splits = np.frombuffer(self.files, np.int64), np.frombuffer(self.splits, np.int32)
        of_split = {name: np.unique(files[splits == code]) for name, code in self.names.items()}
        named = [numbers for name, numbers in of_split.items() if name is not None]
        numbers, times = np.unique(np.concatenate(named), return_counts=True) if named else (files[:0], files[:0])
        shared = numbers[times > 1]
        first = -1
        if len(shared):
            among = np.isin(files, shared)
            if None in self.names:
                among &= splits != self.names[None]
            first = int(np.argmax(among))
        rows = np.bincount(splits, minlength=len(self.names))
        return Survey(
            clips=len(files),
            files=len(np.unique(np.concatenate(list(of_split.values())))),
            splits={name or "none": int(rows[code]) for name, code in self.names.items()},
            split_files={name: len(of_split[name]) for name in self.names if name is not None},
            told=self._counts["told"],
            captions=self._counts["captions"],
            labelled=self._counts["labelled"],
            shared=len(shared),
            first_shared=first,
            shared_by=sorted(name for name, of in of_split.items() if name and first >= 0 and _holds(of, files[first])),
            repeated=_repeats(self._spans),
            same_span=_repeats(self._ends),
            empty=self._counts["empty"],
            unspaced=self._counts["unspaced"],
            untrained=sorted(self.labels - self._trained) if self._trained else [],
        )


def survey(clips: Iterable[Clip]) -> Survey:
    """Count `clips` in one pass over them."""
    surveyor = Surveyor()
    for clip in clips:
        surveyor.add(clip)
    return surveyor.finish()


def _repeats(numbers: array[int]) -> int:
    return len(numbers) - len(np.unique(np.frombuffer(numbers, np.int64)))


def _holds(sorted_numbers: NDArray[np.int64], number: np.int64) -> bool:
    place = int(np.searchsorted(sorted_numbers, number))
    return place < len(sorted_numbers) and bool(sorted_numbers[place] == number)
