"""One update of pre-training: forward, losses over the clips of all ranks, backward, optimizer.

`micro_batch` computes it in pieces without changing it. A contrastive loss needs all embeddings of a batch at once, so
ordinary gradient accumulation would change the negatives. Here the backbone runs twice: without gradients for all
pieces, then head and loss once on the whole batch (its batch norm included), then each piece again with gradients,
which continue from those of the loss. The memory is that of a piece plus the pooled features of the batch (Gao et al.,
Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup, 2021).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ..config.pretraining import Config
from ..data.datasets.batch import Batch
from ..model.heads import Embeddings, PooledFeatures
from ..model.losses import Gathered, Losses, pretraining_loss
from ..model.randomness import BatchRows, mix_seed
from ..model.vatt import VATT
from ..ops import Ops
from ..runtime.distributed import SINGLE_PROCESS, World
from .optimizers import Adam, clip_gradients
from .parallel import full_tensor, no_gradient_sync
from .schedules import learning_rate


def train_step(
    model: VATT,
    optimizer: Adam,
    batch: Batch,
    config: Config,
    step: int,
    autocast: Any,
    ops: Ops,
    world: World = SINGLE_PROCESS,
    parts: Sequence[nn.Module] | None = None,
) -> dict[str, Any]:
    """Make one update from this rank's part of the batch.

    A loss or gradient that is not finite, on whichever rank, changes nothing anywhere: weights, moments and moving
    statistics stay.

    Args:
        parts: what to call for `model.backbone` and `model.head`, see `parallelize`.

    Returns:
        The line of metrics, the same on all ranks.
    """
    seed = mix_seed(config.seed, step)
    statistics = {name: value.clone() for name, value in model.named_buffers()}
    rate = learning_rate(step, config.optim, config.steps)
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("scale", 1.0)
    optimizer.zero_grad(set_to_none=True)
    backbone, head = parts or (model.backbone, model.head)
    losses = backward(backbone, head, batch, config, seed, autocast, ops, world)
    norm = full_tensor(clip_gradients(model.parameters(), config.optim.clip))
    total, text, audio = world.mean(torch.stack(losses)).tolist()
    gradient = norm.item()
    finite = math.isfinite(total) and math.isfinite(gradient)
    if finite:
        optimizer.step()
    else:
        for name, value in model.named_buffers():
            value.copy_(statistics[name])
    return {
        "loss": total,
        "video_text": text,
        "video_audio": audio,
        "gradient_norm": gradient,
        "rate": rate,
        "updated": finite,
    }


def backward(
    backbone: nn.Module, head: nn.Module, batch: Batch, config: Config, seed: int, autocast: Any, ops: Ops, world: World
) -> Losses:
    """Add the gradients of the batch to the parameters.

    Returns:
        This rank's losses; their mean over the ranks is the batch's.
    """
    size = len(batch.video)
    pieces = list(torch.arange(size).split(config.micro_batch or size))
    if len(pieces) == 1:
        losses = _losses(
            head, _pool(backbone, batch, pieces[0], seed, autocast, world), batch, config, autocast, ops, world
        )
        losses.total.backward()
        return losses
    with torch.no_grad():
        made = [_pool(backbone, batch, piece, seed, autocast, world) for piece in pieces]
    pooled = PooledFeatures(*(torch.cat(parts).requires_grad_() for parts in zip(*made, strict=True)))
    losses = _losses(head, pooled, batch, config, autocast, ops, world)
    losses.total.backward()
    gradients = [torch.zeros_like(x) if x.grad is None else x.grad for x in pooled]
    for piece in pieces:
        with nullcontext() if piece is pieces[-1] else no_gradient_sync(backbone):
            again = _pool(backbone, batch, piece, seed, autocast, world)
            trained = [(x, gradient[piece]) for x, gradient in zip(again, gradients, strict=True) if x.requires_grad]
            torch.autograd.backward([x for x, _ in trained], [gradient for _, gradient in trained])
    return losses


def _pool(backbone: nn.Module, batch: Batch, piece: Tensor, seed: int, autocast: Any, world: World) -> PooledFeatures:
    """Return pooled features of consecutive rows of this rank's part of the batch.

    It makes the same draws whenever it is called.
    """
    share = len(batch.video)
    begin, end = int(piece[0]), int(piece[-1]) + 1
    rows = BatchRows(world.rank * share + begin, world.size * share)
    torch.manual_seed(mix_seed(seed, rows.first))  # element-wise dropout
    with autocast:
        pooled: PooledFeatures = backbone(
            batch.video[begin:end], batch.audio[begin:end], batch.text[begin:end], seed=seed, rows=rows
        )
    return pooled


def _losses(
    head: nn.Module, pooled: PooledFeatures, batch: Batch, config: Config, autocast: Any, ops: Ops, world: World
) -> Losses:
    with autocast:
        embeddings: Embeddings = head(pooled)
    gathered = None
    if world.size > 1:
        masks = torch.stack([batch.video_mask, batch.audio_mask, batch.text_mask], dim=1)
        *everyone, masks = world.gather_many([*embeddings, masks])
        video_mask, audio_mask, text_mask = masks.unbind(1)
        gathered = Gathered(
            Embeddings(*everyone), audio_mask, text_mask, world.rank * len(batch.video), video_mask, average="all"
        )
    return pretraining_loss(
        embeddings, batch.audio_mask, batch.text_mask, config.loss, ops, video_mask=batch.video_mask, gathered=gathered
    )
