"""One update of fine-tuning: mixup, loss, backward, optimizer (paper section 4.2, numbers of the release).

The first `pretrain_steps` of a run on sound learn descriptors of what is heard instead of labels.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..config.finetuning import FinetuneConfig, WaveformConfig
from ..data.datasets.batch import Batch
from ..model.losses import balanced_sigmoid_cross_entropy, smooth_labels, softmax_cross_entropy
from ..model.randomness import BatchRows, mix_seed
from ..model.tokens import AudioTokens, at_level
from ..model.vatt import Classifier
from ..runtime.distributed import SINGLE_PROCESS, World
from .batch_augmentation import colour, leave_out_span, mix, overlay, play
from .descriptors import PLAYED, descriptor_loss
from .optimizers import clip_gradients
from .parallel import full_tensor
from .schedules import multilevel_rate


def class_loss(
    logits: Tensor, labels: Tensor, loss: str, smoothing: float = 0.0, counts: Tensor | None = None
) -> Tensor:
    """Return the loss: cross-entropy with smoothed labels ("softmax") or the balanced binary one ("sigmoid").

    Logits and labels are [B,classes].

    `counts` [classes]: how often each class occurs in a batch of which these clips are a part.
    """
    if loss == "sigmoid":
        return balanced_sigmoid_cross_entropy(logits, labels, counts)
    return softmax_cross_entropy(logits, smooth_labels(labels, smoothing))


def finetune_step(
    model: Classifier,
    optimizer: Optimizer,
    batch: Batch,
    config: FinetuneConfig,
    step: int,
    autocast: Any,
    world: World = SINGLE_PROCESS,
    part: nn.Module | None = None,
) -> dict[str, Any]:
    """Make one update from this rank's part of the batch.

    A loss or gradient that is not finite changes nothing.

    Args:
        part: what to call for `model`, see `parallel.parallelize`.

    Returns:
        The line of metrics, the same on all ranks.
    """
    seed = mix_seed(config.seed, step)
    first, pretrains = config.pretrain_steps, step < config.pretrain_steps
    done, steps = (step, first) if pretrains else (step - first, config.steps - first)
    rate = multilevel_rate(done, [(config.optim.warmup, config.optim.rate)], steps)
    if first and not done:
        optimizer.state.clear()  # gradients of the other loss say nothing of the size of this one's
    for group in optimizer.param_groups:
        waits = not pretrains and done < config.optim.head_steps and not group.get("head", True)
        group["lr"] = 0.0 if waits else rate * (1.0 if pretrains else group.get("scale", 1.0))
    x, labels = batch.audio if config.modality == "audio" else batch.video, batch.labels
    rows = BatchRows(world.rank * len(x), world.size * len(x))
    torch.manual_seed(mix_seed(seed, rows.first))  # element-wise dropout
    if config.modality == "audio" and config.model.audio.level:
        x = at_level(x, config.model.audio.level)  # so that a mixture is of sounds that are equally loud
    waveform = PLAYED if pretrains else config.waveform
    if config.modality == "audio" and waveform != WaveformConfig():
        x = play(x, waveform, seed, rows)
        if waveform.equalise or waveform.band_mask:
            x = colour(x, waveform, config.model.audio.rate, seed, rows)
    optimizer.zero_grad(set_to_none=True)
    if pretrains:
        x = overlay(x, seed, world)
        tokens = cast(AudioTokens, model.backbone.tokens["audio"])
        keep = tokens.draw(len(x), x.shape[1] // config.model.audio.patch, seed, x.device, rows)
        with autocast:
            features = (part or model)(x, seed=seed, rows=rows, keep=keep, headless=True)
        loss = descriptor_loss(features, x, config.model.audio, keep)
    else:
        if config.time_mask:
            x = leave_out_span(x, config.time_mask, seed, rows)
        if config.mixup:
            x, labels = mix(x, labels, config.mixup, seed, world)
        with autocast:
            logits = (part or model)(x, seed=seed, rows=rows)
        loss = class_loss(
            logits.float(), labels, config.loss, config.smoothing, counts=world.all_reduce_sum(labels.sum(dim=0))
        )
    loss.backward()
    norm = full_tensor(clip_gradients(model.backbone.parameters(), config.optim.clip)).item()
    head = full_tensor(nn.utils.get_total_norm([p.grad for p in model.head.parameters() if p.grad is not None])).item()
    total = world.mean(loss).item()
    finite = all(map(math.isfinite, (total, norm, head)))
    if finite:
        optimizer.step()
    record = {"loss": total, "gradient_norm": norm, "head_gradient_norm": head, "rate": rate, "updated": finite}
    return record | ({"pretraining": pretrains} if first else {})
