"""Writes small real media files: every frame holds its own number as black and white bars, the sound a tone burst."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.audio.stream import AudioStream
from av.video.stream import VideoStream

BITS = 8


def numbered_frame(number: int, size: int = 64) -> np.ndarray:
    """uint8 [size, size, 3]: `BITS` vertical bars, the most significant bit on the left."""
    bits = [(number >> (BITS - 1 - i)) & 1 for i in range(BITS)]
    row = np.repeat(np.array(bits, np.uint8) * 255, size // BITS)
    return np.broadcast_to(row[None, :, None], (size, size, 3)).copy()


def numbers(frames: np.ndarray) -> list[int]:
    """The numbers that uint8 [T, h, w, 3] frames show."""
    width = frames.shape[2] // BITS
    middle = frames[:, frames.shape[1] // 2, width // 2 :: width, 0][:, :BITS] > 127
    return [int(sum(int(bit) << (BITS - 1 - i) for i, bit in enumerate(row))) for row in middle]


def tone_burst(seconds: float, at: float, rate: int, length: float = 0.1) -> np.ndarray:
    """int16 [S]: silence but for 1 kHz from `at` on."""
    time = np.arange(round(seconds * rate)) / rate
    inside = (time >= at) & (time < at + length)
    return (np.where(inside, np.sin(2 * np.pi * 1000 * (time - at)), 0.0) * 16000).astype(np.int16)


def onset(samples: np.ndarray, rate: int) -> float:
    """Seconds at which the sound first passes a quarter of a burst's amplitude."""
    return float(np.flatnonzero(np.abs(samples.astype(np.int32)) > 4000)[0]) / rate


def write_clip(
    path: Path,
    times: Sequence[float],
    sound: np.ndarray | None = None,
    rate: int = 48_000,
    video_codec: str = "libx264",
    audio_codec: str = "aac",
    gop: int = 12,
    size: int = 64,
    ticks: int = 90_000,
) -> Path:
    """Frame i, showing the number i, at `times[i]` seconds; `sound` int16 mono from second 0.

    Times are rounded to 1 / `ticks` seconds; MPEG codecs take no fine ones.
    """
    with own_priority(), av.open(str(path), "w") as container:
        video = container.add_stream(video_codec, rate=round((len(times) - 1) / (times[-1] - times[0])))
        assert isinstance(video, VideoStream)
        video.width = video.height = size
        video.pix_fmt = "yuvj420p" if video_codec == "mjpeg" else "yuv420p"
        video.time_base = video.codec_context.time_base = Fraction(1, ticks)
        video.options = {"g": str(gop), "crf": "18"} if video_codec == "libx264" else {"g": str(gop)}
        audio = container.add_stream(audio_codec, rate=rate) if sound is not None else None
        if audio_codec == "wmav2" and isinstance(audio, AudioStream):
            audio.bit_rate = 128_000  # its encoder has no default
        for number, at in enumerate(times):
            frame = av.VideoFrame.from_ndarray(numbered_frame(number % (1 << BITS), size))
            frame.pts, frame.time_base = round(at * ticks), Fraction(1, ticks)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if isinstance(audio, AudioStream) and sound is not None:
            for first in range(0, len(sound), 1024):
                piece = av.AudioFrame.from_ndarray(sound[None, first : first + 1024], "s16", "mono")
                piece.sample_rate, piece.time_base = rate, Fraction(1, rate)
                piece.pts = first
                container.mux(audio.encode(piece))
            container.mux(audio.encode(None))
    return path


@contextmanager
def own_priority() -> Iterator[None]:
    """SVT-AV1 makes the thread that encodes a real-time one if root runs it, and whatever it starts later starves."""
    if not hasattr(os, "sched_getscheduler"):  # not on every system
        yield
        return
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, *before)


def steady(seconds: float, fps: float) -> list[float]:
    return [i / fps for i in range(round(seconds * fps))]
