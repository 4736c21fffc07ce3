"""Moments of clips: rows of a manifest cut into spans that follow each other, so that a search can say where."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from ...config.model import VideoConfig
from ...errors import ConfigError
from ..clip import Clip, Manifest
from ..look import Look, look_at

SHORTEST = 1e-3  # seconds between moments


def moment_length(every: float, window: float | None, video: VideoConfig) -> tuple[float, int]:
    """Return the seconds of a moment, and how many windows of a model see all of it.

    Args:
        every: seconds from the start of a moment to that of the next one.
        window: seconds of a moment; None: one window of the model, or `every` where that is more.
        video: frames and rate of the model's window.

    Raises:
        ConfigError: `every` or `window` are no lengths.
    """
    own = video.frames / video.fps
    length = max(every, own) if window is None else window
    for name, value in (("every", every), ("window", length)):
        if not SHORTEST <= value < math.inf:
            raise ConfigError(f"--{name} is a number of seconds of at least {SHORTEST:g}, got {value:g}")
    return length, max(1, math.ceil(length / own - 1e-6))


def cut_moments(clips: Manifest, every: float, length: float, processes: int) -> Manifest:
    """Return the moments of all clips, in order; `index` counts them, and each has its row's captions and label.

    A row's moments start `every` seconds apart; the first that reaches its end is the last one, and shorter where the
    row ends before. Pictures, and files that cannot be read, stay as they are. Rows of one span are taken together.

    Args:
        clips: rows of a manifest.
        every: seconds from one start to the next.
        length: seconds of a moment.
        processes: how many ask the files for their lengths, see `look_at`.
    """
    rows = clips.one_clip_a_span()
    looks = look_at((clip.path for clip in rows), processes)
    spans = (span for clip in rows for span in _spans(clip, looks[clip.path], every, length))
    moments = tuple(replace(clip, index=number) for number, clip in enumerate(spans))
    return Manifest(moments, clips.root, clips.labels, clips.notes)


def _spans(clip: Clip, look: Look, every: float, length: float) -> Iterator[Clip]:
    end = look.seconds if clip.end is None else min(clip.end, look.seconds)
    if look.fault or end <= clip.start:
        yield clip
        return
    last = max(0, math.ceil((end - clip.start - length) / every - 1e-6))
    for number in range(last + 1):
        start = clip.start + number * every
        yield replace(clip, start=start, end=min(start + length, end))
