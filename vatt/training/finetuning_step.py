"""One update of fine-tuning: mixup, loss, backward, optimizer (paper section 4.2, numbers of the release)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..config.finetuning import FinetuneConfig, WaveformConfig
from ..data.datasets.batch import Batch
from ..model.losses import balanced_sigmoid_cross_entropy, smooth_labels, softmax_cross_entropy
from ..model.randomness import BatchRows, mix_seed
from ..model.tokens import at_level
from ..model.vatt import Classifier
from ..runtime.distributed import SINGLE_PROCESS, World
from .batch_augmentation import colour, leave_out_span, mix, play
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
    rate = multilevel_rate(step, [(config.optim.warmup, config.optim.rate)], config.steps)
    for group in optimizer.param_groups:
        waits = step < config.optim.head_steps and not group.get("head", True)
        group["lr"] = 0.0 if waits else rate * group.get("scale", 1.0)
    x, labels = batch.audio if config.modality == "audio" else batch.video, batch.labels
    rows = BatchRows(world.rank * len(x), world.size * len(x))
    torch.manual_seed(mix_seed(seed, rows.first))  # element-wise dropout
    if config.modality == "audio" and config.model.audio.level:
        x = at_level(x, config.model.audio.level)  # so that a mixture is of sounds that are equally loud
    if config.modality == "audio" and config.waveform != WaveformConfig():
        x = play(x, config.waveform, seed, rows)
        if config.waveform.equalise or config.waveform.band_mask:
            x = colour(x, config.waveform, config.model.audio.rate, seed, rows)
    if config.time_mask:
        x = leave_out_span(x, config.time_mask, seed, rows)
    if config.mixup:
        x, labels = mix(x, labels, config.mixup, seed, world)
    optimizer.zero_grad(set_to_none=True)
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
    return {"loss": total, "gradient_norm": norm, "head_gradient_norm": head, "rate": rate, "updated": finite}
