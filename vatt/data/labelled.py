"""Clips of one task for a classifier: only the task's modality is read, crops are those of fine-tuning.

`task`: "video", "audio" or "image" (a picture is a clip of one frame, repeated). A clip without the task's modality is
bad, as one that cannot be decoded is.
"""

from __future__ import annotations

import numpy as np

from vatt.config import DataConfig, ModelConfig
from vatt.data.augment import Frames
from vatt.data.crops import inception_video, three_crops
from vatt.data.loader import ClipDataset, EvalDataset
from vatt.data.manifest import Manifest
from vatt.data.text import Tokenizer

Range = tuple[float, float]


def modality(task: str) -> str:
    """What a clip is classified by: a picture is video of a single row of voxels."""
    return "audio" if task == "audio" else "video"


class LabelledDataset(ClipDataset):
    """Training batches. `ranges`: area and aspect of inception crops; None: crops of pre-training."""

    keeps_files_apart = False

    def __init__(self, clips: Manifest, data: DataConfig, model: ModelConfig, task: str, seed: int,
                 ranges: tuple[Range, Range] | None, slots: range | None = None) -> None:  # fmt: skip
        only = (modality(task),)
        super().__init__(clips, data, model, Tokenizer([]), seed, read=only, needs=only, slots=slots)
        self.ranges = ranges

    def crop(self, frames: Frames, rng: np.random.Generator) -> Frames:
        if self.ranges is None:
            return super().crop(frames, rng)
        return inception_video(frames, self.model.video.size, *self.ranges, self.data.augment, rng)


class ViewDataset(EvalDataset):
    """Test batches: `windows` windows of every clip with `crops` crops each, 1 (centre) or 3, side by side."""

    def __init__(self, clips: Manifest, data: DataConfig, model: ModelConfig, task: str, windows: int, crops: int,
                 batch_size: int) -> None:  # fmt: skip
        only = (modality(task),)
        super().__init__(clips, data, model, Tokenizer([]), windows, batch_size, read=only, needs=only)
        self.crops_per_window = crops

    def crops(self, frames: Frames) -> Frames:
        return three_crops(frames, self.model.video.size) if self.crops_per_window == 3 else super().crops(frames)
