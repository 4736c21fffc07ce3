"""Opens one media file with PyAV: its streams, its clock, seeking, and what can be wrong with it.

Second 0 is the video stream's first timestamp (MPEG-TS and FLV do not start at zero); sound lies on the same clock.
"""

from __future__ import annotations

import contextlib
import math
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.stream import Disposition
from av.video.stream import VideoStream

# What libav prints about damaged files says nothing that the exceptions do not, once per frame.
av.logging.set_level(av.logging.PANIC)


class BadClip(Exception):
    """A clip that cannot be used. `reason` is short and plain; `whole`: every span of the file fails the same way."""

    def __init__(self, path: Path, reason: str, whole: bool = True) -> None:
        super().__init__(path, reason, whole)
        self.path, self.reason, self.whole = path, reason, whole

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True)
class ClipInfo:
    """`duration`: seconds of video; `fps`: average; `width`, `height`: as stored, before rotation."""

    duration: float
    fps: float
    width: int
    height: int
    has_audio: bool


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
    """An open file with its best video stream and the sound that belongs to it. Use `opened`."""

    def __init__(self, path: Path, deadline: Deadline) -> None:
        self.path, self.deadline = path, deadline
        try:
            status = os.stat(path)
        except OSError as error:
            reason = "missing" if isinstance(error, FileNotFoundError) else f"not readable ({error.strerror})"
            raise BadClip(path, reason) from error
        except ValueError as error:
            raise BadClip(path, f"no path of a file ({error})") from error
        if not stat.S_ISREG(status.st_mode):
            raise BadClip(path, "not a file")  # opening a pipe would wait for a writer for ever
        if status.st_size == 0:
            raise BadClip(path, "empty file")
        self._open()

    def close(self) -> None:
        self.container.close()

    def _open(self) -> None:
        try:
            # Old AVI files hold metadata in any encoding: it is of no use here and must not fail the clip.
            self.container: InputContainer = av.open(
                str(self.path), "r", metadata_errors="ignore", timeout=self.deadline.seconds
            )
        except (FFmpegError, OSError, ValueError) as error:
            raise BadClip(self.path, f"not a video ({plain(error)})") from error
        try:
            video = self.container.streams.best("video")
            if not isinstance(video, VideoStream) or video.disposition & Disposition.attached_pic:
                raise BadClip(self.path, "no video stream")
            audio = self.container.streams.best("audio", video)
            self.video: VideoStream = video
            self.audio: AudioStream | None = audio if isinstance(audio, AudioStream) else None
            for stream in (self.video, self.audio):
                if stream is not None and stream.codec_context is not None:
                    stream.codec_context.thread_count = 1  # workers are the parallelism
            if self.video.codec_context is None or not self.video.time_base:
                raise BadClip(self.path, "video of an unknown codec")
        except BaseException:
            self.container.close()
            raise
        self.fresh = self.from_start = True

    @property
    def origin(self) -> float | None:
        """Timestamp of second 0, in seconds, if the header holds it."""
        return seconds_of(self.video.start_time, self.video)

    @property
    def declared(self) -> float | None:
        """Duration of the video stream, if a header holds one (Matroska has it in a tag, as hours:minutes:seconds)."""
        if self.video.duration and self.video.duration > 0:
            return seconds_of(self.video.duration, self.video)
        parts = self.video.metadata.get("DURATION", "").split(":")
        try:
            hours, minutes, seconds = (float(part) for part in parts)
        except ValueError:
            return None
        # The tag counts from the start of the file.
        return 3600 * hours + 60 * minutes + seconds - (self.origin or 0.0)

    @property
    def duration(self) -> float | None:
        if self.declared:
            return self.declared
        if self.container.duration and self.container.duration > 0:
            first = (self.container.start_time or 0) / av.time_base
            rest = first + self.container.duration / av.time_base - (self.origin or 0.0)
            return rest if rest > 0 else None
        return None

    def scan_duration(self) -> float:
        first, last = self.origin, 0.0
        for packet in self.packets(self.video):
            at = seconds_of(packet.pts if packet.pts is not None else packet.dts, self.video)
            if at is not None:
                first = at if first is None else first
                last = max(last, at + (seconds_of(packet.duration, self.video) or 0.0))
        return max(0.0, last - (first or 0.0))

    def move(self, stream: VideoStream | AudioStream, seconds: float | None) -> bool:
        """Goes to `seconds` on the clip's clock, None: the beginning. False: this container cannot seek there.

        `from_start` then says whether everything in the file will be read, so that nothing can have been skipped.
        """
        if seconds is None or (seconds <= 0 and self.fresh):
            if not self.fresh:
                self.container.close()
                self._open()
            self.fresh, self.from_start = False, True
            return True
        if self.origin is None or not stream.time_base:
            return False
        self.fresh = self.from_start = False
        try:
            self.container.seek(math.floor((self.origin + seconds) / stream.time_base), stream=stream)
        except (FFmpegError, OSError):
            return False
        return True

    def packets(self, stream: VideoStream | AudioStream) -> Iterator[Packet]:
        """Packets of one stream; the demuxer's own errors end it like the end of the file."""
        iterator = self.container.demux(stream)
        while True:
            self.deadline.check()
            try:
                packet = next(iterator)
            except StopIteration:
                return
            except (FFmpegError, OSError):
                self.deadline.check()  # a read that timed out ends here as well
                return
            yield packet


@contextlib.contextmanager
def opened(path: Path, time_limit: float) -> Iterator[Reader]:
    """An open file. Whatever the decoders make of a broken one, here or inside the block, comes out as `BadClip`."""
    try:
        with contextlib.closing(Reader(path, Deadline(path, time_limit))) as reader:
            yield reader
    except (FFmpegError, ValueError, ArithmeticError, MemoryError) as error:
        raise BadClip(path, f"cannot be decoded ({type(error).__name__}: {plain(error)})") from error


def probe(path: Path, *, time_limit: float = 30.0) -> ClipInfo:
    """Duration, rate and size from the headers; counts packets only when no header holds a duration.

    Raises:
        BadClip: nothing there, not a video, or no video stream.
    """
    with opened(path, time_limit) as reader:
        duration = reader.duration
        return ClipInfo(
            duration=reader.scan_duration() if duration is None else duration,
            fps=float(reader.video.average_rate or 0.0),
            width=reader.video.codec_context.width,
            height=reader.video.codec_context.height,
            has_audio=reader.audio is not None,
        )


def plain(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or error)


def seconds_of(value: int | None, stream: VideoStream | AudioStream) -> float | None:
    return None if value is None or stream.time_base is None else float(value * stream.time_base)
