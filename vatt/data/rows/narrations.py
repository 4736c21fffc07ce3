"""What is said in a long video: a clip around each narration, and its nearest as candidates for its caption.

A manifest may list narrations as they are, `path,start,end,narration`: rows of a file stand together, in order of time,
and what a clip of them is, is computed when it is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby, pairwise
from typing import NamedTuple

from ..clip import Clip, ManifestError

NEAREST = 5  # captions a clip with narration
CLIP_SECONDS = 3.2  # what the model sees at once: 32 frames at 10 a second


class Narration(NamedTuple):
    """What is said from `start` to `end` seconds."""

    start: float
    end: float
    text: str


def nearest(narrations: Sequence[Narration], index: int, count: int = NEAREST) -> range:
    """Which `count` narrations, in a row, are candidates for number `index` (MIL-NCE, Miech et al. 2020).

    Starting from it, the neighbour that makes the covered time the shortest is added; the later one of equals.
    """
    first = last = index
    behind = len(narrations) - 1
    start, end, _ = narrations[index]
    for _ in range(min(count - 1, behind)):
        later = first == 0 or (last < behind and not end - narrations[first - 1][0] < narrations[last + 1][1] - start)
        if later:
            last += 1
            end = narrations[last][1]
        else:
            first -= 1
            start = narrations[first][0]
    return range(first, last + 1)


def around(narrations: Sequence[Narration], index: int) -> tuple[float, float, tuple[str, ...]]:
    """Start, end and captions of the clip of one narration: its own text first, then its nearest in order of time.

    `narrations` are those of the video, or at least the `NEAREST` - 1 before and behind it. A shorter narration gets
    `CLIP_SECONDS` around its middle, so that a whole window fits.
    """
    own = narrations[index]
    texts = own[2], *[narrations[i][2] for i in nearest(narrations, index) if i != index]
    start, end, _ = own
    if end - start < CLIP_SECONDS:
        start = max(0.0, start - (CLIP_SECONDS - (end - start)) / 2)
        end = start + CLIP_SECONDS
    # Times come in hundredths; rounding keeps sums of floats out of the manifest.
    return round(start, 3), round(end, 3), texts


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
        for i, clip in enumerate(of_file):
            start, end, captions = around(said, i)
            yield clip, replace(clip, start=start, end=end, captions=captions)
