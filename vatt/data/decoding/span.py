"""The frames and the sound of spans of a file."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .audio import read_audio, read_audio_alone
from .container import BOTH, BadClip, Deadline, Reader, opened
from .grid import Span, grid_frames, share
from .video import read_spans, read_video

SOON = 4.0  # seconds between two spans up to which reading on is no slower than going to the next key frame


@dataclass(frozen=True)
class DecodedSpan:
    """`video` uint8 [T, h, w, 3], 1 frame of an image; `audio` int16 [round(T * rate / fps)]; None: there is none.

    T is smaller than asked for when the row or the file ends earlier; `audio` without `video` may end within a frame.
    `remarks`: what a user should know of them.
    """

    video: NDArray[np.uint8] | None
    audio: NDArray[np.int16] | None
    remarks: frozenset[str] = frozenset()

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in (self.video, self.audio) if part is not None)


def decode_span(
    path: Path,
    *,
    start: float,
    fps: float,
    frames: int,
    rate: int,
    end: float | None = None,
    short_side: int | None = None,
    time_limit: float = 30.0,
    read: Collection[str] = BOTH,
    needs: Collection[str] = ("video",),
) -> DecodedSpan:
    """Decodes up to `frames` frames at `start + i / fps` and the sound of the same span, mono at `rate` Hz.

    Sample k of the sound is at `start + k / rate`, to one sample and the codec's own delay; where the sound track
    starts late or ends early there is silence. `end`: end of the row, if any. `short_side`: frames with a larger
    shorter side are scaled down to it, which saves memory. `read`: modalities to decode, where there are any; `needs`:
    those without which the clip is of no use.

    Raises:
        BadClip: nothing at `start`, a damaged stream, not what is needed, or more than `time_limit` seconds of wall
            clock.
    """
    if end is not None:
        frames = min(frames, grid_frames(end - start, fps))
    with opened(path, time_limit, read) as reader:
        return span_of(reader, start, fps, frames, rate, short_side, needs)


def span_of(
    reader: Reader, start: float, fps: float, frames: int, rate: int, short_side: int | None, needs: Collection[str]
) -> DecodedSpan:
    """Decode a span of an open file: see `decode_span`."""
    reader.require(needs)
    video = None
    if reader.still:
        start, frames = 0.0, 1
    if reader.video is not None:
        video = read_video(reader, start, fps, frames, short_side)
        frames = len(video)
    return _with_sound(reader, video, start, round(frames * rate / fps), rate, needs)


def _with_sound(
    reader: Reader, video: NDArray[np.uint8] | None, start: float, samples: int, rate: int, needs: Collection[str]
) -> DecodedSpan:
    audio = None
    if reader.audio is not None:
        audio = (read_audio_alone if video is None else read_audio)(reader, start, rate, samples)
    if audio is None and (video is None or "audio" in needs):
        raise BadClip(reader.path, "no sound" if reader.audio is None else "no sound in it decodes")
    return DecodedSpan(video, audio, frozenset(reader.remarks))


def decode_spans(
    path: Path,
    spans: Sequence[tuple[float, float]],
    *,
    fps: float,
    frames: int,
    rate: int,
    short_side: int | None = None,
    time_limit: float = 30.0,
    read: Collection[str] = BOTH,
    needs: Collection[str] = ("video",),
) -> Iterator[DecodedSpan | BadClip]:
    """Decode several spans of a file, each frame once however many of them hold it.

    Args:
        spans: (start, end) in seconds, in order of their starts.
        time_limit: seconds of wall clock for each span.
        (the others): as of `decode_span`.

    Yields:
        Of each span, in order, what `decode_span` returns of it alone, or the `BadClip` that it raises. Between two of
        them the file stays open. Held in memory are the spans that have begun and not ended; what overlaps is held
        once, so frames are not to be written to.
    """

    def alone(start: float, end: float) -> DecodedSpan:
        return decode_span(
            path,
            start=start,
            end=end,
            fps=fps,
            frames=frames,
            rate=rate,
            short_side=short_side,
            time_limit=time_limit,
            read=read,
            needs=needs,
        )

    bad: BadClip | None = None
    for run in _runs(spans):
        done = 0
        if len(run) > 1:
            grids = [Span(start, fps, min(frames, grid_frames(end - start, fps))) for start, end in run]
            share(grids)
            with contextlib.suppress(BadClip), opened(path, time_limit, read) as reader:
                for grid, video in zip(
                    grids, read_spans(reader, grids, short_side) if _runs_on(reader) else (), strict=False
                ):
                    span = DecodedSpan(video, None, frozenset(reader.remarks))
                    if reader.audio is not None:
                        # A decoder that has decoded before is in another state than a new one.
                        with opened(path, time_limit, read, reader.for_sound()) as other:
                            span = _with_sound(other, video, grid.start, round(len(video) * rate / fps), rate, needs)
                    elif "audio" in needs:
                        break
                    done += 1
                    yield span
                    reader.deadline = Deadline(path, time_limit)
        for start, end in run[done:]:
            if bad is None or not bad.whole:
                try:
                    yield alone(start, end)
                    continue
                except BadClip as error:
                    bad = BadClip(error.path, error.reason, error.whole)
            yield bad


def _runs(spans: Sequence[tuple[float, float]]) -> Iterator[list[tuple[float, float]]]:
    """Yield the spans in groups: in each, the next one begins before the end of another one, or soon after."""
    run: list[tuple[float, float]] = []
    last = -math.inf
    for start, end in spans:
        if run and start > last + SOON:
            yield run
            run = []
        run.append((start, end))
        last = max(last, end)
    if run:
        yield run


def _runs_on(reader: Reader) -> bool:
    """Whether the frames of a file are the same from wherever it is read."""
    if reader.video is None or reader.still or reader.joined is not None:
        return False
    return reader.origin is not None and reader.container.format.name not in ("avi", "mpeg", "mpegts", "flv")
