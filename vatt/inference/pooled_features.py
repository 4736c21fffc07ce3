"""Pooled features of a frozen backbone, one row a clip."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..data.datasets.batch import Batch
from ..data.datasets.evaluation import EvalDataset
from ..model.vatt import Backbone
from ..runtime.distributed import SINGLE_PROCESS, World
from .npz import Arrays
from .over_clips import Bad, map_clips


class PooledClips(NamedTuple):
    """Return pooled features float32 [n,W,D] of the clips with these manifest indices, and those left out."""

    features: Tensor
    clips: list[int]
    bad: Bad


def pooled_features(
    backbone: Backbone,
    modality: str,
    dataset: EvalDataset,
    autocast: Any,
    label: str,
    parts: Path | None = None,
    max_bad_share: float = 1.0,
    world: World = SINGLE_PROCESS,
) -> PooledClips:
    """Return the pooled feature of every window of `dataset`, in eval mode; see `map_clips` for `parts` and errors."""
    device = next(backbone.parameters()).device
    (views,) = dataset.video_axes if modality == "video" else dataset.audio_axes

    @torch.no_grad()
    def make(batch: Batch) -> Arrays:
        pooled = torch.empty(0, backbone.width(modality))
        if batch.clips:
            x = batch.video if modality == "video" else batch.audio
            with autocast:
                pooled = backbone.features(modality, x.flatten(0, 1).to(device))[:, 0]
        windows = pooled.float().reshape(-1, views, pooled.shape[-1]).cpu().numpy()
        return {"features": windows, "row": np.array(batch.clips, np.int64)}

    was_training = backbone.training
    backbone.eval()
    mapped = map_clips(dataset, make, label, parts, max_bad_share, world)
    backbone.train(was_training)
    arrays = mapped.arrays()
    return PooledClips(torch.from_numpy(arrays["features"]), arrays["row"].tolist(), mapped.bad)
