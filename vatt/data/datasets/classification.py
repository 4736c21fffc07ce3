"""Clips of one task for a classifier: only the task's modality is read, crops are those of fine-tuning.

`task`: "video", "audio" or "image" (a picture is a clip of one frame, repeated). A clip without the task's modality is
bad, as one that cannot be decoded is.
"""

from __future__ import annotations

import numpy as np

from ...config.data import DataConfig
from ...config.finetuning import modality
from ...config.model import ModelConfig
from ..clip import Manifest
from ..tokenizer import Tokenizer
from .augment import Frames
from .crops import inception_video, three_crops
from .evaluation import EvalDataset
from .training import ClipDataset

Range = tuple[float, float]


class LabelledDataset(ClipDataset):
    """Training batches. `ranges`: area and aspect of inception crops; None: crops of pre-training."""

    keeps_files_apart = False

    def __init__(
        self,
        clips: Manifest,
        data: DataConfig,
        model: ModelConfig,
        task: str,
        seed: int,
        ranges: tuple[Range, Range] | None,
        slots: range | None = None,
    ) -> None:
        only = (modality(task),)
        super().__init__(clips, data, model, Tokenizer([]), seed, read=only, needs=only, slots=slots)
        self.ranges = ranges

    def crop(self, frames: Frames, rng: np.random.Generator) -> Frames:
        if self.ranges is None:
            return super().crop(frames, rng)
        return inception_video(frames, self.model.video.size, *self.ranges, self.data.augment, rng)


class ViewDataset(EvalDataset):
    """Test batches: `windows` windows of every clip with `crops` crops each, 1 (centre) or 3, side by side."""

    def __init__(
        self,
        clips: Manifest,
        data: DataConfig,
        model: ModelConfig,
        task: str,
        windows: int,
        crops: int,
        batch_size: int,
    ) -> None:
        only = (modality(task),)
        super().__init__(clips, data, model, Tokenizer([]), windows, batch_size, read=only, needs=only)
        self.crops_per_window = crops

    def crops(self, frames: Frames) -> Frames:
        return three_crops(frames, self.model.video.size) if self.crops_per_window == 3 else super().crops(frames)
