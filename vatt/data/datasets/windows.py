"""Windows of clips: what a model sees at once, cut from a row of the manifest, with a bounded cache of decoded rows.

A window starts on the grid of the frame rate, `row.start + offset / fps` with a whole `offset`. With the cache on, rows
of up to `WHOLE_SECONDS` are decoded once and windows are cut out; otherwise each window is decoded alone. Which of the
two happens depends on the settings and the row only, and what the cache has dropped is decoded again: neither its size
nor the number of workers changes a window. The two ways agree on the frames of an intact file; sound differs by
the resampler's phase (below one sample). In a damaged file, decoding the whole row meets damage that a window may miss.

A row shorter than a window repeats, video and sound with the same period, so that they stay in step; so does the one
frame of an image.
"""

from __future__ import annotations

import contextlib
import math
from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ...config.model import AudioConfig, VideoConfig
from ..clip import Clip
from ..decoding.clock import Version
from ..decoding.container import BOTH, BadClip, Reader, info_of, opened
from ..decoding.grid import grid_frames
from ..decoding.memory_limit import private_memory
from ..decoding.span import DecodedSpan, decode_spans, span_of
from ..decoding.watchdog import Watch

WHOLE_SECONDS = 20.0
T = TypeVar("T", bound=np.generic)
KNOWN_DURATIONS = 100_000  # remembered, so that a corpus of millions does not fill the memory with them


@dataclass(frozen=True)
class Window:
    """`video` uint8 [T, h, w, 3]; `audio` int16 [S]; None where there is none, or it is not read."""

    video: NDArray[np.uint8] | None
    audio: NDArray[np.int16] | None


class _Kept(NamedTuple):
    """A file that was left open; `before`: the process's private memory when it was not."""

    reader: Reader
    version: Version
    before: int


class WindowReader:
    """Reads windows of `video.frames` frames and `audio.samples` samples. One per process; raises `BadClip`.

    `read`: modalities to decode, where there are any; `needs`: those without which a clip is bad.
    `cache_bytes`: decoded rows kept, least recently used dropped first; 0 turns the cache off. `watch` is told of all
    that is opened.
    """

    def __init__(
        self,
        video: VideoConfig,
        audio: AudioConfig,
        short_side: int,
        time_limit: float,
        cache_bytes: int = 0,
        *,
        read: Collection[str] = BOTH,
        needs: Collection[str] = ("video",),
        watch: Watch | None = None,
    ) -> None:
        self.video, self.audio = video, audio
        self.short_side, self.time_limit, self.cache_bytes = short_side, time_limit, cache_bytes
        self.modalities, self.needs = read, needs
        self.watch = watch or Watch(math.inf)
        # Steps of the grid in a window: the sound may cover more time than the frames.
        audio_steps = math.ceil(audio.samples * video.fps / audio.rate - 0.01) if "audio" in read else 1
        self.steps = max(video.frames if "video" in read else 1, audio_steps)
        self._cache: OrderedDict[int, DecodedSpan] = OrderedDict()
        self._cached_bytes = 0
        self._durations: dict[Path, float] = {}
        self._kept: _Kept | None = None
        self._bad: dict[int, str] = {}
        self._remarks: list[tuple[int, str]] = []

    def seconds(self, clip: Clip) -> float:
        """Length of the row: to its end, or to that of the file if that comes first."""
        self._known(clip)
        duration = self._durations.get(clip.path)
        if duration is None:
            try:
                with self._opened(clip) as reader:
                    info = info_of(reader, self.needs)
                    reader.keep = reader.fresh
            except BadClip as bad:
                self._remember(clip, bad)
                raise  # not `from bad`: an error that is its own cause keeps what was open until the collector comes
            if len(self._durations) == KNOWN_DURATIONS:
                self._durations.clear()
            self._durations[clip.path] = duration = info.duration
        end = duration if clip.end is None else min(clip.end, duration)
        # A row that starts after the declared end: let the decoder say what is there.
        return max(0.0, end - clip.start)

    def last_offset(self, clip: Clip) -> int:
        """The largest offset of a window in the row; 0 for rows shorter than a window."""
        return max(0, math.floor(self.seconds(clip) * self.video.fps + 0.01) - self.steps)

    def read(self, clip: Clip, offset: int) -> Window:
        """The window at `offset` steps of 1 / fps after the start of the row."""
        if self.cache_bytes > 0 and self.seconds(clip) <= WHOLE_SECONDS:
            return self._cut(clip, self._whole(clip), offset)
        return self._cut(clip, self._decode(clip, clip.start + offset / self.video.fps, self.steps), 0)

    def read_spaced(self, clip: Clip, windows: int) -> list[Window]:
        """`windows` windows at evenly spaced offsets, the first at the start and the last at the end of the row."""
        offsets = np.linspace(0, self.last_offset(clip), windows).astype(int).tolist()
        if self._is_short(clip, windows):
            span = self._whole(clip)
            return [self._cut(clip, span, offset) for offset in offsets]
        return [self.read(clip, offset) for offset in offsets]

    def read_middle(self, clip: Clip) -> Window:
        """Return the window in the middle of the row, the second of three evenly spaced ones, and decode no other."""
        offset = self.last_offset(clip) // 2
        if "audio" in self.modalities and self._is_short(clip, 3):  # as `read_spaced`, for the resampler's phase
            return self._cut(clip, self._whole(clip), offset)
        return self.read(clip, offset)

    def _is_short(self, clip: Clip, windows: int) -> bool:
        """Whether the row is decoded as a whole when several windows of it are read."""
        return self.seconds(clip) <= max(WHOLE_SECONDS, windows * self.steps / self.video.fps)

    def read_moments(self, clip: Clip, spans: Sequence[tuple[float, float]]) -> Iterator[Window | BadClip]:
        """Read one window of each of several spans of the clip's file, decoding each frame once.

        Args:
            clip: names the file; its own start and end do not count.
            spans: (start, end) in seconds of the file, in order of their starts; they may overlap.

        Yields:
            Of each span, in order, what `read` gives, at offset 0, of a row of that span without a cache: a window, or
            the `BadClip` that it raises. Nothing is raised.
        """
        moments = decode_spans(
            clip.path,
            spans,
            fps=self.video.fps,
            frames=self.steps,
            rate=self.audio.rate,
            short_side=self.short_side,
            time_limit=self.time_limit,
            read=self.modalities,
            needs=self.needs,
        )
        remarks: set[str] = set()
        for start, end in spans:
            moment: Window | BadClip
            try:
                self._known(clip)
                with self.watch.decoding(clip):  # not around what is done with a window
                    span = next(moments)
                if isinstance(span, BadClip):
                    self._remember(clip, span)
                    moment = span
                else:
                    self._remark(clip, span.remarks - remarks)
                    remarks |= span.remarks
                    moment = self._cut(replace(clip, start=start, end=end), span, 0)
            except BadClip as bad:
                moment = bad
            yield moment

    def _whole(self, clip: Clip) -> DecodedSpan:
        span = self._cache.get(clip.index)
        if span is not None:
            self._cache.move_to_end(clip.index)
            return span
        self._known(clip)
        frames = max(self.steps, grid_frames(self.seconds(clip), self.video.fps))
        try:
            span = self._decode(clip, clip.start, frames)
        except BadClip as bad:
            self._bad[clip.index] = bad.reason  # what is wrong with a part is wrong with the row
            raise BadClip(bad.path, bad.reason) from bad
        if span.nbytes <= self.cache_bytes:
            self._cache[clip.index] = span
            self._cached_bytes += span.nbytes
            while self._cached_bytes > self.cache_bytes:
                _, dropped = self._cache.popitem(last=False)
                self._cached_bytes -= dropped.nbytes
        return span

    def _decode(self, clip: Clip, start: float, frames: int) -> DecodedSpan:
        self._known(clip)
        if clip.end is not None:
            frames = min(frames, grid_frames(clip.end - start, self.video.fps))
        try:
            with self._opened(clip) as reader:
                span = span_of(reader, start, self.video.fps, frames, self.audio.rate, self.short_side, self.needs)
        except BadClip as bad:
            self._remember(clip, bad)
            raise
        self._remark(clip, span.remarks)
        return span

    @contextlib.contextmanager
    def _opened(self, clip: Clip) -> Iterator[Reader]:
        """The file of `clip`, open; the same as before if it was left open and has not changed. Raises `BadClip`."""
        kept, self._kept = self._kept, None
        if kept is not None and (kept.reader.path, kept.version) != (clip.path, kept.reader.version):
            kept.reader.close()
            kept = None
        before = private_memory() if kept is None else kept.before
        again = None if kept is None else kept.reader
        with self.watch.decoding(clip, before), opened(clip.path, self.time_limit, self.modalities, again) as reader:
            version = reader.version
            yield reader
        if reader.keep:
            self._kept = _Kept(reader, version, before)

    def _remark(self, clip: Clip, remarks: Collection[str]) -> None:
        self._remarks += [(clip.index, remark) for remark in sorted(remarks)]

    def take_remarks(self) -> list[tuple[int, str]]:
        """Return (manifest index, remark) of what was decoded since the last call: what a user should know of it."""
        taken, self._remarks = self._remarks, []
        return taken

    def _cut(self, clip: Clip, span: DecodedSpan, offset: int) -> Window:
        per_step = self.audio.rate / self.video.fps
        if span.video is not None:
            steps = len(span.video)
        else:
            assert span.audio is not None
            steps = grid_frames(len(span.audio) / self.audio.rate, self.video.fps)
        period = min(self.steps, steps - offset)
        if period <= 0:
            at, stream = clip.start + offset / self.video.fps, "sound" if span.video is None else "video"
            raise BadClip(clip.path, f"nothing at {at:.2f} s: the {stream} ends before", whole=False)
        video = None if span.video is None else _repeated(span.video[offset : offset + period], self.video.frames)
        if span.audio is None:
            return Window(video, None)
        first = round(offset * per_step)
        return Window(video, _repeated(span.audio[first : first + round(period * per_step)], self.audio.samples))

    def _remember(self, clip: Clip, bad: BadClip) -> None:
        # Only what every window of the row would meet: remembering must not change what a fresh process does.
        if bad.whole:
            self._bad[clip.index] = bad.reason

    def _known(self, clip: Clip) -> None:
        self.watch.alive()  # also where all that follows is in the cache
        if clip.index in self._bad:
            raise BadClip(clip.path, self._bad[clip.index])


def _repeated(values: NDArray[T], count: int) -> NDArray[T]:
    """The first `count` of `values`, again from the start where there are fewer; not copied unless they repeat."""
    return values[:count] if len(values) >= count else values[np.arange(count) % len(values)]
