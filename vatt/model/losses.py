"""The losses: video-text MIL-NCE and video-audio NCE (paper section 3.4), and the two of fine-tuning.

`contrastive_loss` of vatt_kernels gives one term a clip; masks, averages and the weights of the pairs are here.
"""

from __future__ import annotations

from typing import Any, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config.pretraining import LossConfig, LossForm
from ..errors import ConfigError
from ..ops import Ops
from .heads import Embeddings

FORMS = get_args(LossForm)


class Losses(NamedTuple):
    """Scalars: what is minimised, and its two pairs."""

    total: Tensor
    video_text: Tensor
    video_audio: Tensor


class Gathered(NamedTuple):
    """The batches of all ranks, this one's included, whose first row is `offset`. Embeddings carry gradients.

    `average`: what the mean of the ranks' losses is. "rank": each averages its own clips, as the release does. "all":
    the average over all clips, whichever ranks lack a modality; so it does not change with the number of ranks.
    """

    embeddings: Embeddings
    audio_mask: Tensor
    text_mask: Tensor
    offset: int
    video_mask: Tensor | None = None
    average: str = "rank"


class _Others(NamedTuple):
    """One pair of modalities of `Gathered`."""

    video: Tensor
    other: Tensor
    mask: Tensor
    video_mask: Tensor | None
    offset: int
    average: str


def pair_loss(
    video: Tensor,
    other: Tensor,
    mask: Tensor,
    config: LossConfig,
    ops: Ops,
    *,
    video_mask: Tensor | None = None,
    others: _Others | None = None,
) -> Tensor:
    """Return contrastive loss of one pair of modalities, averaged over the clips that have both; 0 when none has.

    video [B,D], other [B,L,D] (L candidates a clip), mask [B] bool or 0/1: whether the clip has the other modality.
    Clips without it still serve as negative videos. Official release: `asymmetric_nce` (default), `symmetric_nce`,
    which also reads `video_mask` [B] and then multiplies two averages, as the release does.
    "paper" is the formula of that section taken literally: one denominator over both directions, positives once.
    With `others`, negatives come from all ranks; positives stay this rank's.
    """
    if config.form not in FORMS:
        raise ConfigError(f"loss.form is one of {', '.join(FORMS)}, got {config.form!r}")
    symmetric = config.form == "symmetric"
    gathered: dict[str, Any] = {}
    if others is not None:
        gathered = {
            "all_video": others.video,
            "all_other": others.other,
            "all_mask": others.mask,
            "all_video_mask": others.video_mask,
            "offset": others.offset,
        }
    terms = ops.contrastive_loss(
        video, other, mask=mask, video_mask=video_mask, temperature=config.temperature, symmetric=symmetric, **gathered
    )
    valid = mask.to(terms.dtype)
    # The value of a clip without the other modality means nothing; it must not meet the logarithm below.
    terms = torch.where(mask.bool(), terms, torch.ones_like(terms))
    if config.form == "paper":
        # The merged denominator holds the positives twice: loss = log((P + rest + P) / P), so that
        # log(exp(loss) - 1) = log((P + rest) / P) counts them once. loss >= ln 2 keeps it well conditioned.
        terms = terms + torch.log(-torch.expm1(-terms))
    whole, whole_seen = mask, video_mask
    if others is not None and others.average == "all":
        whole, whole_seen = others.mask, others.video_mask
    ranks = len(whole) / len(mask)
    weights = valid * ranks / whole.to(terms.dtype).sum().clamp(min=1)
    if symmetric and video_mask is not None and whole_seen is not None:
        weights = weights * video_mask.to(terms.dtype)
        weights = weights * len(whole_seen) / whole_seen.to(terms.dtype).sum().clamp(min=1)
    return (terms * weights).sum()


def pretraining_loss(
    embeddings: Embeddings,
    audio_mask: Tensor,
    text_mask: Tensor,
    config: LossConfig,
    ops: Ops,
    *,
    video_mask: Tensor | None = None,
    gathered: Gathered | None = None,
) -> Losses:
    """Return both pairs and their weighted mean (official), or weighted sum for "paper"."""
    all_text = all_audio = None
    if gathered is not None:
        e = gathered.embeddings
        rest = gathered.video_mask, gathered.offset, gathered.average
        all_text = _Others(e.video_text, e.text, gathered.text_mask, *rest)
        all_audio = _Others(e.video_audio, e.audio[:, None], gathered.audio_mask, *rest)
    text = pair_loss(
        embeddings.video_text, embeddings.text, text_mask, config, ops, video_mask=video_mask, others=all_text
    )
    audio = pair_loss(
        embeddings.video_audio,
        embeddings.audio[:, None],
        audio_mask,
        config,
        ops,
        video_mask=video_mask,
        others=all_audio,
    )
    total = config.video_text * text + config.video_audio * audio
    if config.form != "paper":
        total = total / (config.video_text + config.video_audio)
    return Losses(total, text, audio)


def smooth_labels(labels: Tensor, share: float = 0.1) -> Tensor:
    """Return one-hot labels [B,C] with `share` of their weight spread over all classes."""
    return labels * (1 - share) + share / labels.shape[-1]


def softmax_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Video fine-tuning: mean over clips of -sum(labels * log p), logits and labels [B,C].

    As the release: p renormalised, then kept within [1e-7, 1 - 1e-7], so that a loss never passes 16.1.
    """
    p = logits.softmax(dim=-1)
    p = (p / p.sum(dim=-1, keepdim=True)).clamp(1e-7, 1 - 1e-7)
    return -(labels * p.log()).sum(dim=-1).mean()


def balanced_sigmoid_cross_entropy(logits: Tensor, labels: Tensor, counts: Tensor | None = None) -> Tensor:
    """Audio fine-tuning: binary cross-entropy summed over classes, averaged over clips; logits, labels [B,C].

    A clip's weight is the mean, over its classes, of 1 / (clips of the batch with that class): rare classes count more.
    `counts` [C]: those numbers of clips where the batch is larger than what is given here.
    """
    share = labels / (labels.sum(dim=0) if counts is None else counts).clamp(min=1e-12)
    weights = share.sum(dim=-1) / labels.sum(dim=-1).clamp(min=1e-12)
    losses = F.binary_cross_entropy_with_logits(logits, labels, reduction="none").sum(dim=-1)
    return (losses * weights).mean()
