"""The training loss: video-text MIL-NCE and video-audio NCE (paper section 3.5) from per-clip terms.

`contrastive_loss` of vatt_kernels gives one term a clip; masks, averages and the weights of the pairs are here.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..config import ConfigError, LossConfig
from ..ops import Ops
from .heads import Embeddings

FORMS = ("asymmetric", "symmetric", "paper")


class Losses(NamedTuple):
    """Scalars: what is minimised, and its two pairs."""

    total: Tensor
    video_text: Tensor
    video_audio: Tensor


def pair_loss(video: Tensor, other: Tensor, mask: Tensor, config: LossConfig, ops: Ops) -> Tensor:
    """Contrastive loss of one pair of modalities, averaged over the clips that have both; 0 when none has.

    video [B,D], other [B,L,D] (L candidates a clip), mask [B] bool or 0/1: whether the clip has the other modality.
    Clips without it still serve as negative videos. Official release: `asymmetric_nce` (default), `symmetric_nce`.
    "paper" is equation (3)-(4) taken literally: one denominator over both directions with each positive counted once.
    """
    if config.form not in FORMS:
        raise ConfigError(f"loss.form is one of {', '.join(FORMS)}, got {config.form!r}")
    terms = ops.contrastive_loss(
        video, other, mask=mask, temperature=config.temperature, symmetric=config.form == "symmetric"
    )
    valid = mask.to(terms.dtype)
    # The value of a clip without the other modality means nothing; it must not meet the logarithm below.
    terms = torch.where(mask.bool(), terms, torch.ones_like(terms))
    if config.form == "paper":
        # The merged denominator holds the positives twice: loss = log((P + rest + P) / P), so that
        # log(exp(loss) - 1) = log((P + rest) / P) counts them once. loss >= ln 2 keeps it well conditioned.
        terms = terms + torch.log(-torch.expm1(-terms))
    return (terms * valid).sum() / valid.sum().clamp(min=1)


def pretraining_loss(embeddings: Embeddings, audio_mask: Tensor, text_mask: Tensor, config: LossConfig,
                     ops: Ops) -> Losses:  # fmt: skip
    """Both pairs and their weighted mean (official), or weighted sum for "paper" (equation 5)."""
    text = pair_loss(embeddings.video_text, embeddings.text, text_mask, config, ops)
    audio = pair_loss(embeddings.video_audio, embeddings.audio[:, None], audio_mask, config, ops)
    total = config.video_text * text + config.video_audio * audio
    if config.form != "paper":
        total = total / (config.video_text + config.video_audio)
    return Losses(total, text, audio)
