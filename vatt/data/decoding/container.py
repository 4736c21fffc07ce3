"""Opens one media file with PyAV: its streams, its clock, seeking, and what can be wrong with it.

Second 0 is the video stream's first timestamp (MPEG-TS and FLV do not start at zero); sound lies on the same clock, and
on its own where video is not there or not read. An image is a video of one frame; a cover picture is none.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import os
import stat
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.stream import Disposition
from av.video.stream import VideoStream

from ...errors import VattError
from ...runtime.compatibility import ANIMATED_WEBP, OPEN_OPTIONS, options_of_streams
from ..clip import ManifestError
from ..media_types import AUDIO, IMAGE
from ..shards.index import open_clip, tar_of
from .clock import RESTARTING, Joined, Version, joined_clock, seconds_of

# What libav prints about damaged files says nothing that the exceptions do not, once per frame.
av.logging.set_level(av.logging.PANIC)

MAX_PIXELS = 2**27  # of a frame, four times 8K: damaged headers ask for more memory than there is
MAX_IMAGE = 2**28  # bytes, which are read into memory
BOTH = ("video", "audio")
# Of libav's 370 formats: not playlists and lists of files (HLS, DASH, concat, SDP, numbered images), which open what is
# written in them, wherever it lies; not devices; and not hundreds that no clip comes in, each a parser to be attacked.
FORMATS = (
    *(
        "mov",
        "matroska",
        "avi",
        "asf",
        "flv",
        "mpeg",
        "mpegts",
        "mpegvideo",
        "m4v",
        "h264",
        "hevc",
        "vvc",
        "vc1",
        "av1",
    ),
    *("obu", "ivf", "ogg", "rm", "mxf", "gxf", "dv", "nut", "wtv", "mjpeg", "yuv4mpegpipe", "gif", "apng", "swf"),
    *("wav", "w64", "aiff", "au", "caf", "flac", "mp3", "aac", "loas", "ac3", "eac3", "dts", "truehd", "amr", "amrnb"),
    *("amrwb", "ape", "wv", "tta", "tak", "mpc", "mpc8", "voc", "dsf"),
    *("png_pipe", "jpeg_pipe", "webp_pipe", "bmp_pipe", "tiff_pipe", "gif_pipe", "jpegxl_pipe", "jpegxl_anim"),
    *("j2k_pipe", "ppm_pipe", "pgm_pipe", "pbm_pipe", "pam_pipe", "qoi_pipe", ANIMATED_WEBP),
)
OPTIONS = {"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "file"}
UNKNOWN_RATE = 25  # frames a second of a stream that tells neither times nor a rate
CHROMA_444 = "High 4:4:4 Predictive"  # profile of H.264
ONE_PICTURE = 1.0  # seconds at most of a video that is looked at for being one picture beside a longer sound
ESTIMATED = ("mp3", "aac")  # formats that guess their duration from the bit rate of the beginning
# A format whose duration is that up to the last timestamp in the file, which stands for several frames, plus one: its
# end is looked up in the packets that lie this many seconds before it, or later.
STAMPED_SELDOM, TAIL = "mpeg", 5.0


class BadClip(VattError):
    """A clip that cannot be used. `reason` is short and plain; `whole`: every span of the file fails the same way."""

    def __init__(self, path: Path, reason: str, whole: bool = True) -> None:
        super().__init__(path, reason, whole)
        self.path, self.reason, self.whole = path, reason, whole

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True)
class ClipInfo:
    """`duration`: seconds of video, or of sound where there is no video; 0 for an image. `fps`: average; `width`,
    `height`: as stored, before rotation; all three 0 without video."""

    duration: float
    fps: float
    width: int
    height: int
    has_video: bool
    has_audio: bool


class decoders_own:  # a context manager; one of contextlib takes as long as a small frame
    """Around calls of PyAV alone: what they raise beside libav's own errors is a clip's fault as well: `BadClip`."""

    __slots__ = ("fault", "path")

    def __init__(self, path: Path, fault: str = "cannot be decoded") -> None:
        self.path, self.fault = path, fault

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, (ValueError, ArithmeticError)) and not isinstance(error, FFmpegError):
            raise BadClip(self.path, f"{self.fault} ({type(error).__name__}: {plain(error)})") from error


class Deadline:
    """A wall-clock limit for one clip, looked at between packets and frames."""

    def __init__(self, path: Path, seconds: float) -> None:
        self.path, self.seconds, self.end = path, seconds, time.monotonic() + seconds

    def check(self) -> None:
        if time.monotonic() > self.end:
            raise BadClip(self.path, f"took longer than {self.seconds:g} s")


class Late(Exception):
    """A seek that landed after the wanted time."""


class Reader:
    """An open file with its best video stream and the sound that belongs to it, as far as `read` asks for them and
    they are there; one of them at least. Use `opened`."""

    def __init__(
        self,
        path: Path,
        deadline: Deadline,
        read: Collection[str] = BOTH,
        stream_options: Any = None,
    ) -> None:
        self.path, self.deadline, self.read = path, deadline, read
        self.stream_options = stream_options  # of the decoders that look at the streams while the file is opened
        self.source = _source(path)
        self.remarks: set[str] = set()  # what a user should know of what was read
        self.keep = False  # whether `opened` leaves it open
        self._open()

    def close(self) -> None:
        self.container.close()

    def renew(self) -> None:
        """Open the file again, as if nothing had been read of it."""
        self.container.close()
        self._open()

    @property
    def still(self) -> bool:
        """Whether this is an image, which shows the same at any time. An animated one is a video."""
        return self.path.suffix.lower() in IMAGE and self.container.format.name != ANIMATED_WEBP

    def _open(self) -> None:
        suffix = self.path.suffix.lower()
        try:
            if isinstance(self.source, io.BytesIO):
                self.source.seek(0)
            self.container: InputContainer = av.open(
                self.source,
                "r",
                timeout=self.deadline.seconds,
                container_options=OPTIONS,
                **(OPEN_OPTIONS | options_of_streams(self.stream_options)),
            )
        except MemoryError:
            raise
        except (FFmpegError, OSError, ValueError) as error:
            kind = "an image" if suffix in IMAGE else "a sound" if suffix in AUDIO else "a video"
            raise BadClip(self.path, f"not {kind} ({plain(error)})") from error
        try:
            with decoders_own(self.path):
                video, beside, sound = self._streams()
            self.beside = beside  # the sound of the pictures, read or not
            self.video: VideoStream | None = video if "video" in self.read else None
            self.audio: AudioStream | None = sound if "audio" in self.read else None
            for stream in (self.video, self.audio):
                if stream is not None and stream.codec_context is not None:
                    stream.codec_context.thread_count = 1  # workers are the parallelism
            if self.video is None and self.audio is None:
                kinds = {"video": "video stream", "audio": "sound"}
                raise BadClip(self.path, " and ".join(f"no {kinds[name]}" for name in BOTH if name in self.read))
            if self.video is not None:
                if self.video.codec_context is None or not self.video.time_base:
                    raise BadClip(self.path, "video of an unknown codec")
                options = {"max_pixels": str(MAX_PIXELS)}
                if self.still:
                    options["err_detect"] = "explode"  # or half a JPEG would be a picture, grey below
                self.video.codec_context.options = options
        except BaseException:
            self.container.close()
            raise
        self.fresh = self.from_start = True
        self.strict = False  # whether the decoder of the video refuses what is damaged, instead of making up for it
        # AVI stores decoding times: where frames are decoded in another order than shown, these do not say when.
        avi = self.container.format.name == "avi"
        self.reordered = avi and self.video is not None and bool(self.video.codec_context.has_b_frames)
        self.part = 0
        self.joined: Joined | None = None
        if self.container.format.name in RESTARTING:
            try:
                self.joined = joined_clock(self.version, self.clock.index, self._demuxer, self.deadline.check)
            except BaseException:
                self.container.close()
                raise

    def for_sound(self) -> Reader:
        """Open the file once more, for its sound: most of the time of opening goes into pictures that are looked at."""
        if self.stream_options is None and isinstance(self.source, str):
            options = [{"skip_frame": "all"} if stream.type == "video" else {} for stream in self.container.streams]
            other = Reader(self.path, self.deadline, self.read, options)
            if other._sound_facts() == self._sound_facts():
                return other
            other.close()
        return Reader(self.path, self.deadline, self.read)

    def _sound_facts(self) -> tuple[object, ...]:
        """All that reading the sound goes by."""
        sound = self.audio
        if sound is None or sound.codec_context is None:
            return ()
        context = sound.codec_context
        layout = (context.sample_rate, context.layout.name, context.format and context.format.name)
        return self.origin, self.clock.index, sound.index, sound.start_time, sound.duration, sound.time_base, layout

    def _streams(self) -> tuple[VideoStream | None, AudioStream | None, AudioStream | None]:
        """Return the best video, the sound that belongs to it, and the best sound: that one, if there is one."""
        best = self.container.streams.best
        video = best("video")
        if not isinstance(video, VideoStream) or video.disposition & Disposition.attached_pic:
            video = None
        beside = None if video is None else best("audio", video)
        sound = beside or best("audio")
        return (
            video,
            beside if isinstance(beside, AudioStream) else None,
            sound if isinstance(sound, AudioStream) else None,
        )

    @property
    def version(self) -> Version:
        """What tells this file from another one, and from itself after a change."""
        path = tar_of(self.path) or self.path
        try:
            status = os.stat(path)
        except (OSError, ValueError):
            return self.path, 0, 0
        size = len(self.source.getbuffer()) if isinstance(self.source, io.BytesIO) else status.st_size
        return self.path, size, status.st_mtime_ns

    def _demuxer(self) -> InputContainer:
        """Open the file once more, beside the container that is read from."""
        source = io.BytesIO(self.source.getbuffer()) if isinstance(self.source, io.BytesIO) else self.source
        with decoders_own(self.path):
            return av.open(source, "r", timeout=self.deadline.seconds, container_options=OPTIONS, **OPEN_OPTIONS)

    @property
    def clock(self) -> VideoStream | AudioStream:
        """The stream whose first timestamp is second 0."""
        stream = self.audio if self.video is None else self.video
        assert stream is not None
        return stream

    def require(self, needs: Collection[str]) -> None:
        """Raises `BadClip` unless there is a stream of every modality in `needs`."""
        if "video" in needs and self.video is None:
            raise BadClip(self.path, "no video stream")
        if "audio" in needs and self.audio is None:
            raise BadClip(self.path, "no sound")

    @property
    def origin(self) -> float | None:
        """Timestamp of second 0, in seconds, if the header holds it."""
        return seconds_of(self.clock.start_time, self.clock)

    @property
    def declared(self) -> float | None:
        """Duration of the clock's stream, if a header holds one (Matroska has it in a tag, hours:minutes:seconds)."""
        if self.joined is not None:
            return self.joined.end - (self.origin or 0.0)
        if self.container.format.name in ESTIMATED:
            return None
        if self.clock.duration and self.clock.duration > 0:
            return seconds_of(self.clock.duration, self.clock)
        parts = self.clock.metadata.get("DURATION", "").split(":")
        try:
            hours, minutes, seconds = (float(part) for part in parts)
        except ValueError:
            return None
        # The tag counts from the start of the file.
        declared = 3600 * hours + 60 * minutes + seconds - (self.origin or 0.0)
        return declared if math.isfinite(declared) else None

    @property
    def sound_end(self) -> float | None:
        """Where the sound beside pictures ends, if a header says so: of the stream, or of the whole file."""
        beside = self.beside
        if beside is None or self.video is None:
            return None
        if beside.duration and beside.duration > 0:
            ends = seconds_of((beside.start_time or 0) + beside.duration, beside) or 0.0
            return ends - (self.origin or 0.0)
        if self.container.duration and self.container.duration > 0:
            return ((self.container.start_time or 0) + self.container.duration) / av.time_base - (self.origin or 0.0)
        return None

    @property
    def duration(self) -> float | None:
        if self.declared:
            ends = self.sound_end
            if self.declared <= ONE_PICTURE and ends is not None and ends > self.declared and self._one_picture():
                return ends  # it stays while its sound goes on
            return self.declared
        if self.container.format.name in ESTIMATED:
            return None
        if self.container.duration and self.container.duration > 0:
            first = (self.container.start_time or 0) / av.time_base
            rest = first + self.container.duration / av.time_base - (self.origin or 0.0)
            return rest if rest > 0 else None
        return None

    def _one_picture(self) -> bool:
        """Whether the video is a single frame, counted in a container of its own unless the header says it."""
        assert self.video is not None
        if self.video.frames:
            return self.video.frames == 1
        try:
            with self._demuxer() as container:
                packets = (packet for packet in container.demux(self.video.index) if packet.size)
                return len(list(itertools.islice(packets, 2))) == 1
        except (FFmpegError, OSError, IndexError):
            return False

    def measured_duration(self) -> float:
        """The duration of the clock's stream by its packets: the last ones where the header tells where they are."""
        declared = self.declared
        if declared is not None and self.move(self.clock, max(0.0, declared - TAIL)):
            return max(declared, self.scan_duration())
        self.move(self.clock, None)
        return self.scan_duration()

    def scan_duration(self) -> float:
        """The duration of the clock's stream by its packets from here to the end of the file.

        In a stream without timestamps frames are counted.
        """
        first, last, count = self.origin, 0.0, 0
        for packet in self.packets(self.clock):
            count += packet.size > 0
            at = seconds_of(packet.pts if packet.pts is not None else packet.dts, self.clock)
            if at is not None:
                first = at if first is None else first
                last = max(last, at + (seconds_of(packet.duration, self.clock) or 0.0))
        if first is None and self.video is not None and not self.still:
            return count / float(self.video.average_rate or UNKNOWN_RATE)
        return max(0.0, last - (first or 0.0))

    def move(self, stream: VideoStream | AudioStream, seconds: float | None) -> bool:
        """Goes to `seconds` on the clip's clock, None: the beginning. False: this container cannot seek there.

        `from_start` then says whether everything in the file will be read, so that nothing can have been skipped.
        """
        if seconds is None or (seconds <= 0 and self.fresh):
            if not self.fresh:
                self.renew()
            self.fresh, self.from_start = False, True
            return True
        if self.origin is None or not stream.time_base:
            return False
        position: int | None = None
        if self.joined is not None:
            position = self.joined.mark(self.origin + seconds)
            if position is None:
                return self.move(stream, None)
        if self.fresh and self.video is stream and stream.codec_context.profile == CHROMA_444:
            # x264 up to 2017 codes these colours in a way of its own, and the first packet alone says that it did.
            with contextlib.suppress(FFmpegError), decoders_own(self.path):
                for packet in itertools.islice(self.packets(stream), 1):
                    stream.decode(packet)
        self.fresh = self.from_start = False
        try:
            with decoders_own(self.path):
                if position is not None:
                    self.container.seek(position, unsupported_byte_offset=True)
                else:
                    self.container.seek(math.floor((self.origin + seconds) / stream.time_base), stream=stream)
        except (FFmpegError, OSError):
            return False
        return True

    def packets(self, stream: VideoStream | AudioStream) -> Iterator[Packet]:
        """Packets of one stream; the demuxer's own errors end it like the end of the file.

        Their times are those of one clock where that of the file begins anew; `part` says in which of its parts the
        last one was.
        """
        self.fresh = False
        iterator = self.container.demux(stream)
        while True:
            self.deadline.check()
            try:
                with decoders_own(self.path):
                    packet = next(iterator)
            except StopIteration:
                return
            except (FFmpegError, OSError, IndexError):  # the last: a stream that no header has told of
                self.deadline.check()  # a read that timed out ends here as well
                return
            if self.joined is not None:
                self.part = self.joined.part(packet, self.part)
                self.joined.move(packet, self.part)
            yield packet


def _source(path: Path) -> str | io.BytesIO:
    """What libav opens: the name of a file, or the bytes of an image or of a clip in a tar. Raises `BadClip`."""
    try:
        file = open_clip(path)
        if isinstance(file, io.BytesIO):
            size = len(file.getbuffer())
        else:
            path = file
            status = os.stat(path)
            if not stat.S_ISREG(status.st_mode):
                raise BadClip(path, "not a file")  # opening a pipe would wait for a writer for ever
            size = status.st_size
        if size == 0:
            raise BadClip(path, "empty file")
        # An image's name must not be looked at: libav takes one with a % in it for a numbered sequence.
        if isinstance(file, io.BytesIO):
            return io.BytesIO(file.getvalue()) if path.suffix.lower() in IMAGE else file
        if path.suffix.lower() not in IMAGE:
            return str(path)
        if size > MAX_IMAGE:
            raise BadClip(path, f"{size:,} bytes are too many for an image")
        return io.BytesIO(path.read_bytes())
    except OSError as error:
        reason = "missing" if isinstance(error, FileNotFoundError) else f"not readable ({error.strerror or error})"
        raise BadClip(path, reason) from error
    except ManifestError as error:
        raise BadClip(path, f"not readable ({error})") from error
    except ValueError as error:
        raise BadClip(path, f"no path of a file ({error})") from error


@contextlib.contextmanager
def opened(path: Path, time_limit: float, read: Collection[str] = BOTH, kept: Reader | None = None) -> Iterator[Reader]:
    """An open file: `kept` with a new time limit, if there is one. It is closed at the end unless `keep` is set then.

    What libav makes of a broken one, here or inside the block, comes out as `BadClip`; see also `decoders_own`.
    """
    deadline = Deadline(path, time_limit)
    reader = kept
    try:
        reader = kept or Reader(path, deadline, read)
        reader.deadline, reader.keep = deadline, False
        yield reader
    except MemoryError as error:
        raise BadClip(path, "decoding it takes more memory than there is, or than a clip may have") from error
    except FFmpegError as error:
        raise BadClip(path, f"cannot be decoded ({type(error).__name__}: {plain(error)})") from error
    finally:
        if reader is not None and not reader.keep:
            reader.close()


def probe(
    path: Path, *, time_limit: float = 30.0, read: Collection[str] = BOTH, needs: Collection[str] = ("video",)
) -> ClipInfo:
    """Duration, rate and size from the headers; counts packets only when no header holds a duration.

    Raises:
        BadClip: nothing there, nothing of what is to be `read`, or not what `needs` asks for.
    """
    with opened(path, time_limit, read) as reader:
        return info_of(reader, needs)


def info_of(reader: Reader, needs: Collection[str]) -> ClipInfo:
    """Tell of an open file what `probe` does. The reader stays `fresh` where its headers told everything."""
    reader.require(needs)
    duration = 0.0 if reader.still else reader.duration
    if reader.container.format.name == STAMPED_SELDOM:
        duration = reader.measured_duration()
    video = reader.video
    return ClipInfo(
        duration=reader.scan_duration() if duration is None else duration,
        fps=0.0 if video is None else float(video.average_rate or 0.0),
        width=0 if video is None else video.codec_context.width,
        height=0 if video is None else video.codec_context.height,
        has_video=video is not None,
        has_audio=reader.audio is not None,
    )


def plain(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or error)
