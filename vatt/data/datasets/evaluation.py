"""Batches of evaluation clips: equal or middle windows, nothing drawn."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from ...config.data import DataConfig
from ...config.model import ModelConfig
from ..clip import Clip, Manifest
from ..decoding.audio import to_float
from ..decoding.container import BadClip
from ..tokenizer import Tokenizer
from .augment import Frames, centre_crop
from .base import Clips, Sample
from .batch import MODALITIES, Batch
from .windows import Window


class EvalDataset(Clips):
    """Every clip once, in order, `windows` evenly spaced windows each, centre crop, nothing random.

    `dataset[i]` holds clips `i * batch_size` and following, with a windows axis V: video uint8 [B, V, T, H, W, 3],
    audio float32 [B, V, S]. Clips that cannot be decoded, or lack what the task `needs`, are left out and told in
    `bad`, so B may be 0. `frames`, `read` and `needs` as in `ClipDataset`. A subclass may take several crops a window:
    video is then [B, V * crops, ...], the crops of a window side by side.
    """

    def __init__(
        self,
        clips: Manifest,
        data: DataConfig,
        model: ModelConfig,
        tokenizer: Tokenizer,
        windows: int = 4,
        batch_size: int | None = None,
        *,
        frames: int | None = None,
        read: Collection[str] = MODALITIES,
        needs: Collection[str] = ("video",),
    ) -> None:
        super().__init__(clips, data, model, tokenizer, batch_size, windows, frames, read, needs)

    crops_per_window = 1
    chosen = slice(None)  # of the evenly spaced windows, those that are read

    def crops(self, frames: Frames) -> Frames:
        """uint8 [T, h, w, 3] -> [crops_per_window, T, size, size, 3]."""
        return centre_crop(frames, self.model.video.size)[None]

    @property
    def video_axes(self) -> tuple[int, ...]:
        return (self.windows_per_clip * self.crops_per_window,)

    @property
    def audio_axes(self) -> tuple[int, ...]:
        return (self.windows_per_clip,)

    def __len__(self) -> int:
        return -(-len(self.clips) // self.batch_size)

    def __getitem__(self, index: int) -> Batch:
        since = self.clocks()
        if not 0 <= index < len(self):
            raise IndexError(index)
        samples: list[Sample] = []
        bad: list[tuple[int, str]] = []
        chunk = self.clips[index * self.batch_size : (index + 1) * self.batch_size]
        for clip in chunk:
            try:
                self.require_text(clip)
                samples.append(
                    self._sample(clip, self.windows(0).read_spaced(clip, self.windows_per_clip, self.chosen))
                )
            except BadClip as error:
                bad.append((clip.index, error.reason))
        return self.batch(samples, [clip.index for clip in chunk], bad, since)

    def _sample(self, clip: Clip, windows: list[Window]) -> Sample:
        silence = np.zeros(self.model.audio.samples, np.float32)
        views = [self.crops(window.video) for window in windows if window.video is not None]
        sounds = [None if window.audio is None else to_float(window.audio) for window in windows]
        audio = None
        if any(sound is not None for sound in sounds):
            audio = np.stack([silence if sound is None else sound for sound in sounds])
        return Sample(clip, np.concatenate(views) if views else None, audio, *self.text(clip, None))


class CentreDataset(EvalDataset):
    """One window of every clip, from its middle; of its sound or its pictures."""

    chosen = slice(1, 2)  # of three

    def __init__(self, clips: Manifest, data: DataConfig, model: ModelConfig, modality: str, batch_size: int) -> None:
        only = (modality,)
        super().__init__(clips, data, model, Tokenizer([]), 3, batch_size, read=only, needs=only)

    @property
    def video_axes(self) -> tuple[int, ...]:
        return (1,)

    @property
    def audio_axes(self) -> tuple[int, ...]:
        return (1,)
