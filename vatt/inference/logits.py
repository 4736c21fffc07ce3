"""Class scores of clips, averaged over their windows and crops."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.datasets.batch import Batch
from ..data.datasets.classification import ViewDataset
from ..model.vatt import Classifier
from ..runtime.distributed import SINGLE_PROCESS, World
from .npz import Arrays
from .over_clips import map_clips


@dataclass(frozen=True)
class Predictions:
    """logits float32 [C,K], means over the views; `clips`: manifest index of each; `bad`: those left out, and why."""

    logits: Tensor
    clips: list[int]
    bad: list[tuple[int, str]]


@torch.no_grad()
def predict(
    model: Classifier, dataset: ViewDataset, parts: Path, autocast: Any, world: World = SINGLE_PROCESS
) -> Predictions:
    """Return averaged logits of every clip of `dataset`, in eval mode.

    Finished shards in `parts` are read, not made again.

    Raises `DataError` when more than `data.max_bad_share` of the clips cannot be used.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device

    def make(batch: Batch) -> Arrays:
        logits = torch.empty(0, model.head.linear.out_features)
        if batch.clips:
            x = batch.audio if model.modality == "audio" else batch.video
            with autocast:
                logits = model(x.flatten(0, 1).to(device), views=x.shape[1]).float().cpu()
        return {"logits": logits.numpy(), "clips": np.array(batch.clips, np.int64)}

    mapped = map_clips(dataset, make, "classifying", parts, dataset.data.max_bad_share, world)
    model.train(was_training)
    arrays = mapped.arrays()
    return Predictions(torch.from_numpy(arrays["logits"]), arrays["clips"].tolist(), mapped.bad)
