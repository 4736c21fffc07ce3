"""What is said in a long video: a clip around each narration, and its nearest as candidates for its caption.

A manifest may list narrations as they are, `path,start,end,narration`: rows of a file stand together, in order of time,
and what a clip of them is, is computed when it is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby, pairwise
from operator import itemgetter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..clip import Clip, ManifestError

NEAREST = 5  # captions a clip with narration
CLIP_SECONDS = 3.2  # what the model sees at once: 32 frames at 10 a second


Bounds = Sequence[int] | NDArray[np.int64]


class Narration(NamedTuple):
    """What is said from `start` to `end` seconds."""

    start: float
    end: float
    text: str


class Told(NamedTuple):
    """The narrations of a video: columns of `Narration`."""

    video: str
    start: list[float]
    end: list[float]
    text: list[str]

    @classmethod
    def ordered(cls, video: str, start: list[float], end: list[float], text: list[str]) -> Told:
        """Those with a text, in order of their start."""
        if "" in text or start != sorted(start):
            told = sorted((one for one in zip(start, end, text, strict=True) if one[2]), key=itemgetter(0))
            start, end, text = map(list, zip(*told, strict=True)) if told else ([], [], [])
        return cls(video, start, end, text)


def nearest(
    start: NDArray[np.float64],
    end: NDArray[np.float64],
    bounds: Bounds,
    count: int = NEAREST,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and last of the `count` narrations, in a row, that are candidates for each (MIL-NCE, Miech et al. 2020).

    Starting from it, the neighbour that makes the covered time the shortest is added; the later one of equals.

    Args:
        start, end: of the narrations of several videos, each in order of time.
        bounds: where in them each video begins, and their number.
    """
    place = np.arange(len(start))
    videos = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))
    low, high = np.asarray(bounds)[videos], np.asarray(bounds)[videos + 1] - 1
    first, last, begins, ends = place, place, start, end
    for _ in range(count - 1):
        earlier, later = np.maximum(first - 1, low), np.minimum(last + 1, high)
        forward = (last < high) & ((first == low) | ~(ends - start[earlier] < end[later] - begins))
        back = ~forward & (first > low)
        last, ends = np.where(forward, later, last), np.where(forward, end[later], ends)
        first, begins = np.where(back, earlier, first), np.where(back, start[earlier], begins)
    return first, last


def around(
    start: NDArray[np.float64],
    end: NDArray[np.float64],
    texts: Sequence[str],
    bounds: Bounds,
) -> tuple[list[float], list[float], list[tuple[str, ...]]]:
    """Start, end and captions of the clips of narrations: its own text first, then its nearest in order of time.

    A shorter narration gets `CLIP_SECONDS` around its middle, so that a whole window fits. Arguments as `nearest` has.
    """
    first, last = nearest(start, end, bounds)
    captions = [
        (texts[i], *texts[low:i], *texts[i + 1 : high])
        for i, (low, high) in enumerate(zip(first.tolist(), (last + 1).tolist(), strict=True))
    ]
    with np.errstate(invalid="ignore"):
        short = end - start < CLIP_SECONDS
        moved = start - (CLIP_SECONDS - (end - start)) / 2
        start = np.where(short, np.where(moved > 0.0, moved, 0.0), start)
        end = np.where(short, start + CLIP_SECONDS, end)
    # Times come in hundredths; rounding keeps sums of floats out of the manifest.
    return _rounded(start), _rounded(end), captions


def _rounded(seconds: NDArray[np.float64]) -> list[float]:
    """`round(_, 3)` of each."""
    with np.errstate(invalid="ignore", over="ignore"):
        scaled = seconds * 1000
        near = np.rint(scaled)
        # Near a half, the product may be on the other side of it than the number is.
        doubtful = ~((np.abs(scaled - near) < 0.499) & (np.abs(scaled) < 2**40))
    found: list[float] = (near / 1000).tolist()
    for place in np.flatnonzero(doubtful).tolist():
        found[place] = round(float(seconds[place]), 3)
    return found


def told(clip: Clip) -> Narration:
    """The narration that a row without its candidates holds. Raises `ManifestError` for one without text or end."""
    if clip.end is None or not clip.captions:
        raise ManifestError(f"{clip.name}: a narration has a text, a start and an end; row {clip.index} has not")
    return Narration(clip.start, clip.end, clip.captions[0])


def with_candidates(rows: Iterable[Clip]) -> Iterator[tuple[Clip, Clip]]:
    """Each row, and the clip that it is. Raises `ManifestError` where rows of a file are apart or not in order."""
    seen: set[int] = set()
    for path, group in groupby(rows, lambda clip: clip.path):
        of_file = list(group)
        said = [told(clip) for clip in of_file]
        number = hash(str(path))
        if number in seen or any(later.start < earlier.start for earlier, later in pairwise(said)):
            raise ManifestError(
                f"{path}: narrations of a file stand together, in order of their start; sort the rows "
                f"(row {of_file[0].index} begins a group)"
            )
        seen.add(number)
        starts, ends, texts = around(*columns(said), bounds=(0, len(said)))
        for clip, start, end, captions in zip(of_file, starts, ends, texts, strict=True):
            yield clip, replace(clip, start=start, end=end, captions=captions)


def columns(said: Sequence[Narration]) -> tuple[NDArray[np.float64], NDArray[np.float64], tuple[str, ...]]:
    """Their starts, ends and texts."""
    start, end, texts = zip(*said, strict=True)
    return np.array(start, float), np.array(end, float), texts
