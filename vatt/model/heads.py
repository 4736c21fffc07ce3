"""Heads on the pooled (AGG) feature: the common space of pre-training and the classifier of fine-tuning."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .initializers import glorot_normal_, linear


class BatchNorm(nn.BatchNorm1d):
    """Batch norm as Keras does it: eps 1e-5, moving statistics 0.9 old + 0.1 batch, from the BIASED variance.

    Statistics are computed in float32 at least. With `total`, which sums over `ranks` processes with equally long
    batches and lets gradients through, they are those of all of them.
    """

    total: Callable[[Tensor], Tensor] | None = None
    ranks = 1

    def __init__(self, width: int):
        super().__init__(width, eps=1e-5, momentum=0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        if self.total is None:
            detached = x.detach()
            variance, mean = detached.var(dim=0, correction=0), detached.mean(dim=0)
            out = F.batch_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps)
        else:
            # The mean first, then squares of what is left: no digits cancel, as they would in E[x^2] - E[x]^2.
            count = self.ranks * len(x)
            mean = self.total(x.sum(dim=0)) / count
            left = x - mean
            variance = self.total(left.square().sum(dim=0)) / count
            out = left * torch.rsqrt(variance + self.eps) * self.weight + self.bias
        self.running_mean.lerp_(mean.detach(), self.momentum or 0.0)
        self.running_var.lerp_(variance.detach(), self.momentum or 0.0)
        self.num_batches_tracked.add_(1)
        return out


class PooledFeatures(NamedTuple):
    """The feature at AGG of each modality; D differs between modalities."""

    video: Tensor  # [B, D]
    audio: Tensor  # [B, D]
    text: Tensor  # [B, captions, D]


class Embeddings(NamedTuple):
    """Common-space embeddings, not normalised (the loss does that)."""

    video_audio: Tensor  # [B, 512] video, to be compared with audio
    video_text: Tensor  # [B, 256] video, to be compared with text
    audio: Tensor  # [B, 512]
    text: Tensor  # [B, captions, 256]


class CommonSpace(nn.Module):
    """The release's FAC head: video to the fine video-audio space, from there to the coarser video-text space.

    Only the video path has an MLP and batch norm; audio and text get one dense layer each (paper section 3.3).
    """

    def __init__(self, video: int, audio: int, text: int, video_audio: int, video_text: int):
        super().__init__()
        self.video_hidden = linear(video, video_audio, bias=False)
        self.video_hidden_norm = BatchNorm(video_audio)
        self.video_audio = linear(video_audio, video_audio, bias=False)
        self.video_audio_norm = BatchNorm(video_audio)
        self.video_text = linear(video_audio, video_text, bias=False)
        self.video_text_norm = BatchNorm(video_text)
        self.audio = linear(audio, video_audio)
        self.text = linear(text, video_text)

    def forward(self, pooled: PooledFeatures) -> Embeddings:
        to_audio, to_text = self.embed_video(pooled.video)
        # The dense layer of a 3-d input returns a view, which FSDP2 warns of.
        return Embeddings(to_audio, to_text, self.audio(pooled.audio), self.text(pooled.text).clone())

    def embed_video(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Return pooled video features [B,D] -> (to compare with audio [B,512], to compare with text [B,256])."""
        hidden = F.relu(self.video_hidden_norm(self.video_hidden(pooled)))
        to_audio = self.video_audio_norm(self.video_audio(hidden))
        return to_audio, self.video_text_norm(self.video_text(F.relu(to_audio)))


class ClassHead(nn.Module):
    """Dropout and a dense layer: pooled [B,D] -> logits [B,classes].

    `video`: glorot-normal weight, zero bias (a softmax follows). Otherwise glorot-uniform weight and the bias
    -ln(classes - 1), so that every sigmoid starts near 1 / classes.
    """

    def __init__(self, width: int, classes: int, *, dropout: float, video: bool):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = linear(width, classes)
        if video:
            glorot_normal_(self.linear.weight, width, classes)
        else:
            nn.init.constant_(self.linear.bias, -math.log(max(classes - 1, 1)))

    def forward(self, pooled: Tensor) -> Tensor:
        return self.linear(self.dropout(pooled))


HEAD_DROPOUT = {"video": 0.5, "audio": 0.0}  # of the release's fine-tuning
