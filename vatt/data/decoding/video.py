"""Decodes the video and the sound of one time span of one file.

Frame i of a span is shown at `start + i / fps`: the latest source frame that is not later. So any source rate, also a
variable one, gives the frames a viewer would see. AVI stores decoding times: frames leave the decoder in the order they
are shown, so the sorted timestamps are handed out in that order, less the decoder's delay. That is what it is at the
beginning of the file: at another key frame, pictures that are shown before it may be missing as well. Pixels are taken
as stored: display rotations and mirrors are applied, a sample aspect ratio is not, as in the usual frame dumps.

An image shows its one frame at any time. Where there is sound only, or only sound is read, the span is the sound's.
A stream that breaks, or ends more than `END_TOLERANCE` before its declared end, before the asked-for span is complete
makes the clip bad; later than that it counts as the end of the file. Errors before the first frame (recordings cut
inside a group of pictures) are skipped.
"""

from __future__ import annotations

import contextlib
import heapq
import math
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from av.error import FFmpegError
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from ...runtime.compatibility import codec_name, converted, frame_duration
from .audio import END_TOLERANCE
from .clock import Version, clock_of, remember
from .container import UNKNOWN_RATE, BadClip, Late, Reader, decoders_own, plain
from .grid import Span, grid_frames
from .h264 import PictureOrder, Unusual
from .orientation import orientation

SEEK_STEP = 2.0  # seconds
AVI_REORDER = 8  # frames looked ahead to sort decoding times
MAX_ERRORS = 300  # packets that may fail before the first frame


class _Broken(Exception):
    """A stream of which nothing more decodes; says why."""


class _Surprise(Exception):
    """Other frames than expected, in a stream of which some were left out."""


def frames_until(
    reader: Reader, start: float, fps: float, frames: int, shown: float, ends: float, broken: str | None
) -> int:
    """How many frames of a span a video has that ends, or is `broken`, at `ends` seconds. Raises `BadClip`.

    `shown`: time of its last frame. One that is the only one stays while the sound goes on.
    """
    if shown <= 0 and broken is None:
        ends = max(ends, reader.sound_end or 0.0)
    missing = math.inf if broken is not None else 0.0
    if reader.declared is not None:
        missing = reader.declared - ends
    if missing > END_TOLERANCE and ends < start + frames / fps:
        state = "ends" if broken is None else "damaged"
        of = "" if reader.declared is None else f" of {reader.declared:.2f} s"
        raise BadClip(reader.path, f"{state} at {ends:.2f} s{of}", whole=False)
    if ends <= start:
        raise BadClip(reader.path, f"no frames at {start:.2f} s: the video ends at {ends:.2f} s", whole=False)
    return min(frames, grid_frames(ends - start, fps))


def read_video(reader: Reader, start: float, fps: float, frames: int, short_side: int | None) -> NDArray[np.uint8]:
    """Return up to `frames` frames at `start + i / fps`, uint8 [T, h, w, 3]; see the module. Raises `BadClip`."""
    return next(read_spans(reader, [Span(start, fps, frames)], short_side))


def read_spans(reader: Reader, spans: Sequence[Span], short_side: int | None) -> Iterator[NDArray[np.uint8]]:
    """Yield what `read_video` returns of each of the `spans`, in order of their starts, in one pass over the frames.

    Raises `BadClip` at the first one that has no frames where the stream ends or breaks.
    """
    # A seek may land late (index of decoding times, sparse index): go back further, at last to the beginning. MPEG
    # program streams stamp few frames, and those up to the next stamp are a frame off: always go back further.
    near = spans[0].start - (SEEK_STEP if reader.container.format.name == "mpeg" else 0.0)
    assert reader.video is not None
    waiting = deque(spans)
    for position in (near, near - SEEK_STEP, None):
        if reader.reordered and position is not None and position > 0:
            _decoder_delay(reader)
        if not reader.move(reader.video, position):
            continue
        try:
            yield from _spans_from(reader, waiting, short_side)
            return
        except Late:
            continue
        except _Surprise:
            break
    else:
        raise AssertionError("reading from the beginning cannot be late")
    remember(_surprising, reader.version, None)
    for span in waiting:
        span.clear()
    reader.renew()
    yield from read_spans(reader, waiting, short_side)


_surprising: dict[Version, None] = {}  # files of which no frame is left out


def _spans_from(reader: Reader, waiting: deque[Span], short_side: int | None) -> Iterator[NDArray[np.uint8]]:
    """Yield the frames of the spans that are `waiting`, taking each away as it is complete."""
    stream = reader.video
    assert stream is not None
    convert = _Converter(reader.path, short_side)
    slack = min(1e-3, float(stream.time_base or 0) / 2)  # containers round timestamps to their time base
    first, fps = waiting[0].start, waiting[0].fps
    if reader.declared is not None:
        for span in waiting:
            span.expect(reader.declared)
    sparing = _Sparing(reader, waiting, slack)
    current: VideoFrame | None = None
    shown = ends = 0.0
    broken: str | None = None
    try:
        for shown, length, frame in _timed_frames(reader, sparing):
            if current is None and not reader.from_start and shown > max(first, slack):
                raise Late
            if current is not None:
                for span in waiting:
                    if span.start > shown:
                        break
                    span.show(current, span.before(shown - slack), convert)
                while waiting and waiting[0].complete:
                    yield waiting.popleft().video
                if not waiting:
                    return
            current = frame
            ends = shown + (length or 1.0 / float(stream.average_rate or fps))
    except (FFmpegError, _Broken) as error:
        broken = plain(error)
    if broken is not None and reader.strict:
        raise _Surprise
    # The file has ended, or broken, before the spans are complete.
    if current is None:
        if not reader.from_start:
            raise Late
        raise BadClip(reader.path, "no frames" if broken is None else f"no frame decodes ({broken})")
    while waiting:
        span = waiting[0]
        count = frames_until(reader, span.start, span.fps, span.frames, shown, ends, broken)
        span.show(current, count, convert)
        yield waiting.popleft().video


class _Sparing:
    """Leaves out of decoding what no span shows, where the packets tell enough of it (H.264 with its frames' times).

    What comes out is looked at: frames in the order of the packets' times, and no other ones.
    """

    def __init__(self, reader: Reader, waiting: deque[Span], slack: float) -> None:
        self.reader, self.waiting = reader, waiting
        self.order: PictureOrder | None = None
        self.spared = 0  # frames left out
        self.due: list[int] = []  # times, in ticks, of those that are to come
        self.began = False
        stream = reader.video
        assert stream is not None
        self.seconds, self.second_0 = clock_of(stream), (reader.origin or 0.0, slack)
        context = stream.codec_context
        known = reader.origin is not None and reader.joined is None and reader.container.format.name != "avi"
        all_shown = stream.average_rate and float(stream.average_rate) <= max(span.fps for span in waiting)
        known = known and not all_shown
        # Without frames that are shown in another order, hardly a stream has any that nothing builds on.
        if known and context.has_b_frames and codec_name(context.codec) == "h264" and reader.version not in _surprising:
            with contextlib.suppress(Unusual):
                self.order = PictureOrder(context.extradata)

    def packets(self, stream: VideoStream) -> Iterator[Packet]:
        """Yield the packets of `stream`, one after the other to be decoded as the decoder is then set."""
        context, packets = stream.codec_context, self.reader.packets(stream)
        before = next(packets, None)
        disposable = before is not None and self.order is not None and self.order.follow(before)
        if before is None or self.order is None or not self._strict(context):
            if self.reader.strict:
                raise _Surprise
            self.order = None
            if before is not None:
                yield before
            yield from packets
            return
        try:
            for packet in packets:
                follows = self.order.follow(packet)  # one packet ahead: two such frames often follow each other
                if self.spared and not self.order.usual:
                    raise _Surprise
                context.skip_frame = "NONREF" if self._spares(before, disposable) else "DEFAULT"
                yield before
                before, disposable = packet, follows
            context.skip_frame = "DEFAULT"
            yield before
        finally:
            context.skip_frame = "DEFAULT"

    def _strict(self, context: VideoCodecContext) -> bool:
        """Whether the decoder begins anew here, and refuses what is damaged.

        What it makes up for damage and for pictures before its first one depends on all that it has decoded.
        """
        assert self.order is not None
        if self.order.sequence and not context.is_open:
            context.options = context.options | {"err_detect": "explode"}
            self.reader.strict = True
        return bool(self.order.sequence) and self.reader.strict

    def _spares(self, packet: Packet, disposable: bool) -> bool:
        assert self.order is not None
        if packet.pts is None:
            return False
        until = self.order.until(packet.pts) if disposable and self.began and self.order.usual else None
        if until is None or self._shown(packet.pts, until):
            heapq.heappush(self.due, packet.pts)
            return False
        self.spared += 1
        return True

    def _shown(self, since: int, until: int) -> bool:
        origin, slack = self.second_0
        begins, ends = ((self.seconds(stamp) or 0.0) - origin - slack for stamp in (since, until))
        for span in self.waiting:
            if span.start > ends:
                break
            if span.before(ends) > max(0, span.before(begins)):
                return True
        return False

    def came(self, frame: VideoFrame) -> None:
        """Take notice of a frame that was decoded. Raises `_Surprise`."""
        if self.order is None:
            return
        while not self.began and self.due and frame.pts is not None and self.due[0] < frame.pts:
            heapq.heappop(self.due)  # the first frames behind a key frame may build on what is not here
        self.began = True
        if not self.due or heapq.heappop(self.due) != frame.pts:
            if self.spared:
                raise _Surprise
            self.order.usual = False


_delays: dict[Version, float] = {}


def _decoder_delay(reader: Reader) -> float | None:
    """Return the seconds by which the decoder of an AVI is behind, as seen at the beginning of the file; None: never.

    A process decodes the first frames for it once, as long as the file does not change.
    """
    version = reader.version
    if version not in _delays:
        reader.move(reader.video or reader.clock, None)
        try:
            next(_timed_frames(reader), None)
        except (FFmpegError, _Broken):
            return None
    return _delays.get(version)


def _timed_frames(reader: Reader, sparing: _Sparing | None = None) -> Iterator[tuple[float, float, VideoFrame]]:
    """Frames in display order with their times on the clip's clock and how long they are shown, 0 where nobody knows.

    Raises `_Broken` where the stream breaks.
    """
    stream = reader.video
    assert stream is not None
    origin = reader.origin
    step = 1.0 / float(stream.average_rate or UNKNOWN_RATE)
    avi = reader.container.format.name == "avi"
    first: float | None = None  # decoding time of the first packet
    delay = 0.0
    at = -step
    last = -math.inf
    times: list[float] = []
    held: deque[VideoFrame] = deque()
    seconds = clock_of(stream)
    durations: dict[int | None, int] = {}  # of the packets, by their timestamps
    errors = 0
    broken: str | None = None  # not the error itself, which would keep these frames, and they it

    def emit() -> tuple[float, float, VideoFrame]:
        nonlocal last, delay
        if avi and last == -math.inf and first is not None and origin is not None:
            delay = times[0] + origin - first  # a reordering decoder is behind; the first packet is on time
            if reader.from_start:
                remember(_delays, reader.version, delay)
            elif reader.reordered:
                delay = _delays.get(reader.version, delay)
                if len(held) > 1 and codec_name(stream.codec_context.codec) in ("h264", "hevc"):
                    # What is shown before this key frame builds on what is not here, and is left out by the decoder.
                    heapq.heapreplace(times, max(times[0], heapq.nsmallest(2, times)[1] - step))
        last = max(last, heapq.heappop(times) - delay)
        frame = held.popleft()
        length = frame_duration(frame, durations.pop(frame.pts, 0))
        return last, seconds(length) or 0.0, frame

    for packet in reader.packets(stream) if sparing is None else sparing.packets(stream):
        if first is None:
            first = seconds(packet.dts)
        durations[packet.pts] = packet.duration or 0
        try:
            with decoders_own(reader.path):
                decoded = stream.decode(packet)
        except FFmpegError as error:
            if reader.strict:
                raise _Surprise from error
            errors += 1
            broken = plain(error)
            if last > -math.inf or held or errors > MAX_ERRORS:
                break
            continue
        for frame in decoded:
            reader.deadline.check()
            if sparing is not None:
                sparing.came(frame)
            broken = None  # errors before the first frame
            stamp = seconds(frame.pts)
            if origin is None:
                origin = stamp or 0.0
            at = at + step if stamp is None else stamp - origin
            heapq.heappush(times, at)
            held.append(frame)
            if len(held) > (AVI_REORDER if avi else 0):
                yield emit()
    while held:
        yield emit()
    if broken is not None:
        raise _Broken(broken)


class _Converter:
    """Frames to upright RGB, each once for each size that is asked for while it is shown."""

    def __init__(self, path: Path, short_side: int | None) -> None:
        self.path, self.short_side = path, short_side
        self.reformatter = VideoReformatter()
        self.last: VideoFrame | None = None
        self.images: dict[tuple[int, int], NDArray[np.uint8]] = {}  # of the last one, by their size

    def __call__(self, frame: VideoFrame, size: tuple[int, int]) -> NDArray[np.uint8]:
        if self.last is not frame:
            self.last, self.images = frame, {}
        if size not in self.images:
            with decoders_own(self.path):
                image = converted(self.reformatter, frame, *size, "rgb24").to_ndarray().astype(np.uint8, copy=False)
                upright = orientation(frame)
            self.images[size] = upright.upright(image)
        return self.images[size]
