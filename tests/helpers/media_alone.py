"""Writes small real files of one modality: an image, or a sound without pictures."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.audio.stream import AudioStream
from av.video.codeccontext import VideoCodecContext

IMAGES = {".png": ("png", "rgb24"), ".jpg": ("mjpeg", "yuvj444p"), ".bmp": ("bmp", "bgr24")}
SOUNDS = {".wav": "pcm_s16le", ".flac": "flac", ".mp3": "libmp3lame", ".m4a": "aac", ".aac": "aac", ".ogg": "libopus"}


def write_image(path: Path, pixels: np.ndarray) -> Path:
    """`pixels` uint8 [h, w, 3]."""
    codec, pixel_format = IMAGES[path.suffix]
    context = av.CodecContext.create(codec, "w")
    assert isinstance(context, VideoCodecContext)
    context.height, context.width = pixels.shape[:2]
    context.pix_fmt, context.time_base = pixel_format, Fraction(1, 25)
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24").reformat(format=pixel_format)
    path.write_bytes(b"".join(bytes(packet) for packet in [*context.encode(frame), *context.encode(None)]))
    return path


def write_sound(path: Path, samples: np.ndarray, rate: int) -> Path:
    """`samples` int16 mono."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(SOUNDS[path.suffix], rate=rate, layout="mono")
        assert isinstance(stream, AudioStream)
        for first in range(0, len(samples), 1024):
            piece = av.AudioFrame.from_ndarray(samples[None, first : first + 1024], "s16", "mono")
            piece.sample_rate, piece.time_base, piece.pts = rate, Fraction(1, rate), first
            container.mux(stream.encode(piece))
        container.mux(stream.encode(None))
    return path
