"""Windows of clips as packets: what DALI is given to decode, found and cut out with PyAV.

A window is read from its key frame on; the times of the packets say which frames are shown at the model's rate, for any
source rate, also a variable one: the frames that `vatt.data.decoding.video` gives. The first is decoded, for its size,
rotation and pixel format. The packets then go into a small Matroska file in memory with plain timestamps, so that DALI
sees one kind of file, whose frames are all there, whatever the clip was.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.error import FFmpegError
from av.packet import Packet
from av.video.stream import VideoStream
from numpy.typing import NDArray

from ...runtime.compatibility import codec_name
from ..clip import Clip
from ..datasets.windows import WindowReader
from ..decoding.audio import read_audio
from ..decoding.clock import seconds_of
from ..decoding.container import BadClip, Late, Reader, plain
from ..decoding.grid import grid_frames
from ..decoding.orientation import Orientation, orientation
from ..decoding.span import DecodedSpan
from ..decoding.video import SEEK_STEP, frames_until
from .colours import LUMA, RESTORED

# Codecs that DALI decodes, and the shorter side that NVDEC needs at least.
DECODED = {
    "gpu": {"h264": 48, "hevc": 144, "av1": 128, "vp9": 128, "vp8": 48, "mpeg4": 48, "mjpeg": 64},
    "cpu": {"vp9": 1, "vp8": 1, "mjpeg": 1},
}
LARGEST = 4096  # pixels a side, of the codec that takes the fewest
FORMATS = ("yuv420p", "yuvj420p")
REORDER = 16  # frames that may be decoded before one that is shown before them all
TICKS = 40  # milliseconds between frames in the files for DALI: any even grid will do


class Unsuitable(Exception):
    """A clip that PyAV has to decode; says why."""


@dataclass
class Cut:
    """The packets of a window: `data`, a Matroska file; `frames` int32 [T], positions of those shown, repeats included.

    `colourspace`: as libav numbers them; `width`, `height`: as stored; `orientation`: what makes the frames upright.
    """

    data: bytes
    frames: NDArray[np.int32]
    width: int
    height: int
    orientation: Orientation
    colourspace: int
    audio: NDArray[np.int16] | None


class PacketReader(WindowReader):
    """Windows as packets. Nothing is kept from one to the next: packets cost little to read again."""

    def cut(self, clip: Clip, offset: int, kind: str) -> Cut:
        """The window that `read` decodes. Raises `BadClip`, or `Unsuitable` for DALI on `kind`."""
        self._known(clip)
        start, frames = clip.start + offset / self.video.fps, self.steps
        if clip.end is not None:
            frames = min(frames, grid_frames(clip.end - start, self.video.fps))
        audio = None
        try:
            with self._opened(clip) as reader:
                reader.require(self.needs)
                cut = cut_packets(reader, start, self.video.fps, frames, kind)
                if reader.audio is not None:
                    audio = read_audio(
                        reader, start, self.audio.rate, round(len(cut.frames) * self.audio.rate / self.video.fps)
                    )
                self._remark(clip, reader.remarks | ({RESTORED} if cut.colourspace in LUMA else set()))
            if audio is None and "audio" in self.needs:
                raise BadClip(clip.path, "no sound in it decodes")
        except BadClip as bad:
            self._remember(clip, bad)
            raise
        # A short span repeats, its frames' places as frames would.
        places: Any = cut.frames
        window: Any = self._cut(clip, DecodedSpan(places, audio), 0)
        return replace(cut, frames=window.video, audio=window.audio)


def cut_packets(reader: Reader, start: float, fps: float, frames: int, kind: str) -> Cut:
    """The packets that up to `frames` frames at `start + i / fps` need, without sound. Same frames as `decode_span`.

    Raises:
        BadClip: nothing at `start`, or the file ends long before its declared end.
        Unsuitable: DALI on `kind` ("gpu" or "cpu") does not decode it, or its packets do not say what is shown when.
    """
    if reader.video is None or reader.still:
        raise Unsuitable("no video to decode" if reader.video is None else "an image")
    if reader.joined is not None:
        raise Unsuitable("a file whose clock begins anew; python -m vatt.data.transcode changes it")
    codec = codec_name(reader.video.codec_context.codec)
    if codec not in DECODED[kind]:
        raise Unsuitable(f"DALI does not decode {codec} on a {kind.upper()}; python -m vatt.data.transcode changes it")
    if reader.video.codec_context.has_b_frames and reader.container.format.name == "avi":
        raise Unsuitable("AVI with B-frames does not say what is shown when; python -m vatt.data.transcode changes it")
    packets, ranks, shown = _packets_at(reader, start, fps, frames)
    try:
        # A flushed decoder gives what it has: the frame of the one packet.
        first = [*reader.video.decode(packets[0]), *reader.video.decode(None)][:1]
    except FFmpegError as error:
        raise Unsuitable(f"its first frame does not decode ({plain(error)})") from error
    if not first:
        raise Unsuitable("its first frame is not shown")
    width, height, pixels = first[0].width, first[0].height, first[0].format.name
    if pixels not in FORMATS or first[0].interlaced_frame:
        raise Unsuitable(f"{'interlaced' if pixels in FORMATS else pixels} frames; DALI gets {FORMATS[0]} only")
    if not DECODED[kind][codec] <= min(width, height) <= max(width, height) <= LARGEST:
        raise Unsuitable(f"NVDEC does not decode {codec} of {width} x {height} pixels")
    return Cut(
        _file(packets, ranks, reader.video), shown, width, height, orientation(first[0]), int(first[0].colorspace), None
    )


def _packets_at(
    reader: Reader, start: float, fps: float, frames: int
) -> tuple[list[Packet], NDArray[np.int32], NDArray[np.int32]]:
    """Packets in decoding order, the place of each in order of display, and the places shown at `start + i / fps`."""
    assert reader.video is not None
    for position in (start, start - SEEK_STEP, None):  # a seek may land late
        if not reader.move(reader.video, position):
            continue
        try:
            return _packets_from(reader, start, fps, frames)
        except Late:
            continue
    raise AssertionError("reading from the beginning cannot be late")


def _packets_from(
    reader: Reader, start: float, fps: float, frames: int
) -> tuple[list[Packet], NDArray[np.int32], NDArray[np.int32]]:
    stream, origin = reader.video, reader.origin
    assert stream is not None
    if origin is None or not stream.time_base:
        raise Unsuitable("no start time")
    slack = min(1e-3, float(stream.time_base) / 2)  # as in `vatt.data.decoding.video`
    stamped: list[tuple[int, Packet]] = []  # time shown, in ticks of the stream
    last = (origin + start + (frames - 1) / fps + slack) / float(stream.time_base)  # in ticks, too
    later = 0
    for packet in reader.packets(stream):
        if not packet.size or not (stamped or packet.is_keyframe):
            continue
        if packet.pts is None:
            raise Unsuitable("packets without the time at which they are shown")
        if packet.is_corrupt:
            raise Unsuitable("damaged packets")
        stamped.append((packet.pts, packet))
        later += packet.pts > last
        # Decoding times tell soonest that the rest is shown later, where the file has them and they are right.
        if later > REORDER or (packet.dts is not None and last < packet.dts <= packet.pts):
            break
    # Frames shown before the key frame build on what is not here.
    stamps = np.array([pts for pts, _ in stamped if pts >= stamped[0][0]], np.int64)
    packets = [packet for pts, packet in stamped if pts >= stamped[0][0]]
    order = np.argsort(stamps, kind="stable")
    ranks = np.empty(len(packets), np.int32)
    ranks[order] = np.arange(len(packets))
    places = np.array([index for index, i in enumerate(order) if not packets[i].is_discard], np.int32)
    if not len(places):
        if not reader.from_start:
            raise Late
        raise Unsuitable("no key frame")
    times = stamps[order][places] * float(stream.time_base) - origin
    if not (np.diff(times) > 0).all():
        raise Unsuitable("two frames at one time")
    if not reader.from_start and times[0] > max(start, slack):
        raise Late
    before = np.ceil((times - slack - start) * fps - 1e-9)  # grid times before each frame
    if not later and before[-1] < frames:
        lasts = seconds_of(packets[order[places[-1]]].duration, stream)
        ends = times[-1] + (lasts or 1.0 / float(stream.average_rate or fps))
        frames = frames_until(reader, start, fps, frames, float(times[-1]), float(ends), None)
    shown = np.searchsorted(before, np.arange(frames), side="right") - 1
    return packets, ranks, places[np.maximum(shown, 0)]


def _file(packets: list[Packet], ranks: NDArray[np.int32], stream: VideoStream) -> bytes:
    """The packets as a Matroska file in memory, frame k shown at k ticks (and the decoder's delay)."""
    delay = int(np.max(np.arange(len(packets)) - ranks))
    file = io.BytesIO()
    try:
        with av.open(file, "w", format="matroska", options={"fflags": "bitexact"}) as container:
            copy = container.add_stream_from_template(stream, opaque=True)
            for index, packet in enumerate(packets):
                packet.stream, packet.time_base = copy, Fraction(1, 1000)
                packet.pts, packet.dts = (int(ranks[index]) + delay) * TICKS, index * TICKS
                packet.duration = TICKS
                container.mux_one(packet)
    except (FFmpegError, ValueError) as error:
        raise Unsuitable(f"its packets cannot be copied ({plain(error)})") from error
    return file.getvalue()
