"""What a loader hands to a step: the clips of a batch as tensors, what is there of each, and what it cost."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch

MODALITIES = ("video", "audio", "text")


@dataclass(frozen=True)
class Batch:
    """B clips, with T frames, S samples, L captions of W words; evaluation batches have a windows axis after B.

    video uint8 [B, T, H, W, 3]; audio float32 [B, S], about [-1, 1]; text int64 [B, L, W]: zeros where a clip has none.
    video_mask, audio_mask and text_mask float32 [B], 1 where there is any. label int64 [B], -1 where a clip has none or
    several; labels float32 [B, C], 1 at each class of a clip, C classes of the manifest.
    `clips`: manifest indices of the rows; `tried`: those plus the bad ones; `bad`: (manifest index, reason) of each
    clip that was replaced or left out; `remarks`: the same of clips that are used, and odd; `seconds`: time it took to
    build the batch, `decode_seconds` of it in files.
    """

    video: torch.Tensor
    audio: torch.Tensor
    text: torch.Tensor
    video_mask: torch.Tensor
    audio_mask: torch.Tensor
    text_mask: torch.Tensor
    label: torch.Tensor
    labels: torch.Tensor
    clips: list[int]
    tried: list[int]
    bad: list[tuple[int, str]]
    seconds: float
    decode_seconds: float
    remarks: list[tuple[int, str]] = field(default_factory=list, kw_only=True)

    def to(self, device: torch.device) -> Batch:
        """Return the same batch with its tensors on `device`."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        moved: dict[str, Any] = {name: value.to(device, non_blocking=True) for name, value in tensors.items()}
        return replace(self, **moved)
