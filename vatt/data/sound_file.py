"""The sound of one file, with or without pictures, cut into windows: what an audio query is made of."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.error import FFmpegError
from numpy.typing import NDArray

from vatt.compatibility import OPEN_OPTIONS
from vatt.config import AudioConfig
from vatt.data.augment import to_float
from vatt.data.reader import OPTIONS, BadClip, Deadline, plain
from vatt.data.sound import PaddingCut


def read_sound_windows(path: Path, audio: AudioConfig, windows: int, time_limit: float) -> NDArray[np.float32]:
    """float32 [windows, audio.samples], about [-1, 1], mono at `audio.rate`: evenly spaced, first at the start and last
    at the end; a shorter sound repeats. Raises `BadClip` for a file without a sound that decodes in time."""
    sound = read_sound(path, audio.rate, time_limit)
    last = max(0, len(sound) - audio.samples)
    offsets = np.linspace(0, last, windows).astype(int)
    places = offsets[:, None] + np.arange(audio.samples)[None]
    return to_float(sound[places % len(sound)])


def read_sound(path: Path, rate: int, time_limit: float) -> NDArray[np.int16]:
    """The whole best sound track, int16 [S], mono at `rate` Hz; broken packets are skipped."""
    deadline = Deadline(path, time_limit)
    if not path.is_file():
        raise BadClip(path, "not a file" if path.exists() else "missing")
    resampler = av.AudioResampler("s16", "mono", rate)
    frames: list[AudioFrame] = []
    try:
        with av.open(str(path), "r", timeout=time_limit, container_options=OPTIONS, **OPEN_OPTIONS) as container:
            stream = container.streams.best("audio")
            if not isinstance(stream, AudioStream):
                raise BadClip(path, "no sound in it")
            cut = PaddingCut(container, stream)
            for packet in container.demux(stream):
                deadline.check()
                try:
                    decoded = cut(stream.decode(packet))
                except FFmpegError:
                    continue
                frames += [piece for frame in decoded for piece in resampler.resample(frame)]
            frames += [piece for frame in cut.rest() for piece in resampler.resample(frame)]
            frames += resampler.resample(None)
    except (FFmpegError, OSError, ValueError) as error:
        raise BadClip(path, f"its sound cannot be read ({plain(error)})") from error
    if not sum(frame.samples for frame in frames):
        raise BadClip(path, "no sound in it decodes")
    return np.concatenate([frame.to_ndarray().reshape(-1) for frame in frames]).astype(np.int16, copy=False)
