"""From a file to the tensors of a model: `vatt.read_clip`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config.run import RunConfig
from ..data.clip import Clip
from ..data.datasets.augment import Frames, centre_crop, short_side
from ..data.datasets.windows import Window, WindowReader
from ..data.decoding.audio import to_float
from ..data.decoding.container import BOTH, BadClip
from ..errors import ConfigError, DataError


@dataclass(frozen=True)
class ClipTensors:
    """W windows of one file, as a model takes them; with T frames, S samples.

    Attributes:
        video: uint8 [W, T, size, size, 3], zeros where there is none.
        audio: float32 [W, S] in [-1, 1], zeros where there is none.
        video_mask, audio_mask: float32 [W], 1 where there is any.
        starts: seconds of the file at which each window begins.
    """

    video: Tensor
    audio: Tensor
    video_mask: Tensor
    audio_mask: Tensor
    starts: tuple[float, ...]


def read_clip(
    path: str | Path, config: RunConfig, windows: int = 1, *, start: float = 0.0, end: float | None = None
) -> ClipTensors:
    """Read a video, a picture or a sound as the model of `config` sees it: its rates, its size, the centre.

    Args:
        path: the file.
        config: settings of the model, of `vatt.load_config` or `model.settings`.
        windows: how many temporal windows, evenly spaced: the first at `start`, the last one at the end.
        start, end: seconds of the file; end None is its end. A span shorter than a window is repeated.

    Returns:
        Frames, sound and masks of each window.

    Raises:
        ConfigError: `windows`, `start` or `end` cannot be.
        DataError: the file cannot be read, or has nothing at `start`.
    """
    if not isinstance(config, RunConfig):
        raise TypeError(f"read_clip: config is `settings` of a model or vatt.load_config(DIR), got {config!r:.60}")
    check_windows(windows, start, end)
    clip = Clip(0, Path(path), str(path), start=start, end=end)
    side, limit = short_side(config.model.video.size, config.data.augment), config.data.decode_seconds
    reader = WindowReader(config.model.video, config.model.audio, side, limit, read=BOTH, needs=())
    try:
        offsets = np.linspace(0, reader.last_offset(clip), windows).astype(int).tolist()
        starts = tuple(start + offset / config.model.video.fps for offset in offsets)
        return _tensors(config, reader.read_spaced(clip, windows), starts)
    except BadClip as error:
        raise DataError(str(error)) from error


def check_windows(windows: Any, start: Any, end: Any) -> None:
    """Raise `ConfigError` unless these are windows, and a span in seconds."""
    numbers = [value for value in (start, end) if value is not None]
    known = isinstance(windows, int) and start is not None and all(isinstance(n, int | float) for n in numbers)
    if not known or windows < 1 or not start >= 0 or (end is not None and not end > start):
        raise ConfigError(
            f"a clip has at least 1 window and ends after its start, got windows {windows!r}, {start!r} to {end!r} s"
        )


def _tensors(config: RunConfig, windows: list[Window], starts: tuple[float, ...]) -> ClipTensors:
    video, audio = config.model.video, config.model.audio
    black = np.zeros((video.frames, video.size, video.size, 3), np.uint8)
    silence = np.zeros(audio.samples, np.float32)
    frames: list[Frames] = [black if w.video is None else centre_crop(w.video, video.size) for w in windows]
    sounds = [silence if w.audio is None else to_float(w.audio) for w in windows]
    return ClipTensors(
        torch.from_numpy(np.stack(frames)),
        torch.from_numpy(np.stack(sounds)),
        torch.tensor([float(w.video is not None) for w in windows]),
        torch.tensor([float(w.audio is not None) for w in windows]),
        starts,
    )
