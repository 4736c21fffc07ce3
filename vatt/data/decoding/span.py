"""The frames and the sound of one span of a file."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .audio import read_audio, read_audio_alone
from .container import BOTH, BadClip, opened
from .video import grid_frames, read_video


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
        reader.require(needs)
        video = audio = None
        if reader.still:
            start, frames = 0.0, 1
        if reader.video is not None:
            video = read_video(reader, start, fps, frames, short_side)
            frames = len(video)
        if reader.audio is not None:
            hear = read_audio_alone if video is None else read_audio
            audio = hear(reader, start, rate, round(frames * rate / fps))
    if audio is None and (video is None or "audio" in needs):
        raise BadClip(path, "no sound" if reader.audio is None else "no sound in it decodes")
    return DecodedSpan(video, audio, frozenset(reader.remarks))
