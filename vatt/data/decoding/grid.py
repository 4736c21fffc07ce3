"""The times at which a span shows frames, and the memory that these are kept in.

Spans that overlap, with times of one grid, share it: a frame is written once however many of them hold it, and what
they give out are parts of one array.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

MAX_FRAMES = 2.0**53  # rows may end at any finite time, also one whose frames no number counts
AT_ONCE = 2**28  # bytes of frames that room is made for before they are there
AHEAD = 4  # spans' lengths that spans have room for together: what two such parts have in common is copied
IDLE = 0.25  # of the room of a span that may lie idle behind its frames, instead of copying them
SAME = 10**8  # parts of a frame's time: spans whose times lie in the same one have one grid


class Convert(Protocol):
    """What makes a frame an image of some size; see `shrunk` for `short_side`."""

    short_side: int | None

    def __call__(self, frame: VideoFrame, size: tuple[int, int]) -> NDArray[np.uint8]: ...


def grid_frames(seconds: float, fps: float) -> int:
    """Frames at `fps` that `seconds` hold: the last one may be cut short, a hundredth of a frame is no frame."""
    return max(1, math.ceil(min(seconds * fps, MAX_FRAMES) - 0.01))


def shrunk(width: int, height: int, short_side: int | None) -> tuple[int, int]:
    """(width, height) that frames are kept in: with a shorter side of at most `short_side`."""
    shorter = min(width, height)
    if short_side is None or shorter <= short_side:
        return width, height
    return max(1, round(width * short_side / shorter)), max(1, round(height * short_side / shorter))


class Span:
    """The frames of one span, gathered as those of the stream pass by: number i is what `start + i / fps` shows.

    `kept`: where its frames are, from number `first` on; other spans may have theirs there.
    """

    def __init__(self, start: float, fps: float, frames: int) -> None:
        self.start, self.fps, self.frames = start, fps, frames
        self.kept, self.first = _Kept(), 0
        self.clear()

    def clear(self) -> None:
        """Forget all frames."""
        self.count = 0
        self.expected = self.frames
        self.whole: NDArray[np.uint8] | None = None
        self.kept.clear()

    @property
    def complete(self) -> bool:
        return self.count == self.frames

    @property
    def video(self) -> NDArray[np.uint8]:
        """The frames that there are, uint8 [T, h, w, 3]; not to be written to, as other spans may hold them."""
        return self.kept.part(self.first, self.count) if self.whole is None else self.whole

    def expect(self, ends: float) -> None:
        """Make room for the frames of a video that ends at `ends` seconds first, and for all only if it does not."""
        self.expected = min(self.frames, grid_frames(max(0.0, ends - self.start), self.fps))

    def before(self, seconds: float) -> int:
        """Return how many times of the grid lie before `seconds`."""
        return min(self.frames, math.ceil((seconds - self.start) * self.fps - 1e-9))

    def show(self, frame: VideoFrame, count: int, convert: Convert) -> None:
        """Let `frame` be what is shown up to the grid's time number `count`."""
        if count <= self.count:
            return
        if self.count == 0:
            # A stream may change its size midway: all frames of a span take that of its first.
            size = shrunk(frame.width, frame.height, convert.short_side)
            if self.kept.size not in (None, size):
                self.kept, self.first = _Kept(), 0
            self.kept.size = size
        assert self.kept.size is not None
        self.kept.show(self, convert(frame, self.kept.size), count)
        self.count = count
        if self.complete:  # later spans may go on elsewhere
            self.whole = self.video


class _Kept:
    """Frames of one grid, those numbered from `begins` to `ends`.

    `last`: number behind the last frame of any span that shares them.
    """

    def __init__(self) -> None:
        self.last: int | None = None
        self.clear()

    def clear(self) -> None:
        self.begins = self.ends = 0
        self.store = np.zeros((0, 0, 0, 3), np.uint8)
        self.size: tuple[int, int] | None = None

    def show(self, span: Span, image: NDArray[np.uint8], count: int) -> None:
        """Let `image` be a span's frames from its last one up to number `count`, where another one has not done it."""
        ends = span.first + count
        if ends <= self.ends:
            return
        since = max(self.ends, span.first + span.count)
        if ends - self.begins > len(self.store):
            self._make_room(span, image, count)
        self.store[since - self.begins : ends - self.begins] = image
        self.ends = ends

    def part(self, first: int, count: int) -> NDArray[np.uint8]:
        part = self.store[first - self.begins : first - self.begins + count]
        shared = self.last is not None
        return part if shared or len(self.store) - count <= IDLE * len(self.store) else part.copy()

    def _make_room(self, span: Span, image: NDArray[np.uint8], count: int) -> None:
        """Go on in another array, with what there is of the span; those that began before it are complete."""
        had = self.store[span.first - self.begins : max(span.first, self.ends) - self.begins]
        at_once = AT_ONCE // image.nbytes
        if self.last is not None:
            room = min(self.last - span.first, max(span.frames, min(AHEAD * span.frames, at_once)))
        else:
            # A header may promise frames for more memory than there is, and the file have one.
            room = span.expected if count <= span.expected and len(self.store) < span.expected else span.frames
        self.store = np.empty((room if span.count else min(room, max(count, at_once)), *image.shape), np.uint8)
        if len(had):
            self.store[: len(had)] = had
        self.begins = span.first


def share(spans: Sequence[Span]) -> None:
    """Let spans, in order of their starts, keep their frames together wherever they have one grid."""
    grids: dict[int, list[Span]] = defaultdict(list)
    for span in spans:
        grids[round(span.start * span.fps % 1 * SAME) % SAME].append(span)
    for members in grids.values():
        if len(members) > 1:
            kept, origin = members[0].kept, members[0].start
            for span in members:
                span.kept, span.first = kept, round((span.start - origin) * span.fps)
            kept.last = max(span.first + span.frames for span in members)
