"""The algorithms of the kernels in PyTorch operations, for any device: drop before computing, stream, store little.

Same arguments as `reference`, same results to rounding. The projection reads kept patches only and gathers them again
in its backward; attention is PyTorch's fused one; the contrastive loss walks over tiles of its score matrix.
Arguments are checked by the public functions.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from . import reference

# Integers become operands of a product as (x - centre) * unit: exact in bfloat16 and float16, in [-1, 1], and
# balanced around zero, so that `scale * product + shift * colsum(weight)` does not cancel.
OPERAND = {torch.uint8: (128.0, 1 / 128), torch.int16: (0.0, 1 / 32768)}
DROPOUT_SCORES = 2**24  # probabilities that exist at a time with dropout of version 1: 64 MiB in float32
LOSS_BLOCK = 1024  # rows and columns of a tile of the contrastive loss: 4 MiB in float32


def accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


# projection


def _patch_indices(frames: Tensor, patch: tuple[int, int, int], keep: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Places in the patch grid, each broadcast to [B, K]: (batch, t, h, w)."""
    rows, columns = frames.shape[2] // patch[1], frames.shape[3] // patch[2]
    index = keep.long().expand(frames.shape[0], -1)
    batch = torch.arange(frames.shape[0], device=frames.device)[:, None].expand_as(index)
    return batch, index // (rows * columns), index // columns % rows, index % columns


def gather_patches(frames: Tensor, patch: tuple[int, int, int], keep: Tensor | None) -> Tensor:
    """[B, T, H, W, C] -> [B, K, t*h*w*C] in the input's dtype, reading nothing but the kept patches.

    A patch is t*h runs of w*C values that lie together in memory. Runs are rows of an overlapping view with stride one,
    so one index_select copies them as blocks; indexing the patches themselves is ten times slower (it goes by element).
    """
    if frames.stride(4) != 1 or frames.stride(3) != frames.shape[4]:
        frames = frames.contiguous()
    if keep is None:
        return reference.patches(frames, patch).flatten(4).flatten(1, 3)
    (t, h, w), channels = patch, frames.shape[4]
    batch, at_t, at_h, at_w = _patch_indices(frames, patch, keep)
    out = frames.new_empty(*batch.shape, t * h * w * channels)
    if not out.numel():
        return out
    by_batch, by_t, by_h, by_w, _ = frames.stride()
    first = batch * by_batch + at_t * (t * by_t) + at_h * (h * by_h) + at_w * (w * by_w)
    steps = torch.arange(t, device=frames.device)[:, None] * by_t + torch.arange(h, device=frames.device) * by_h
    runs = (first[..., None] + steps.flatten()).flatten()
    span = 1 + sum((size - 1) * stride for size, stride in zip(frames.shape, frames.stride(), strict=True))
    overlapping = frames.as_strided((span - w * channels + 1, w * channels), (1, 1))
    torch.index_select(overlapping, 0, runs, out=out.view(-1, w * channels))
    return out


class _ProjectPatches(torch.autograd.Function):
    """(scale * patches + shift) @ weight for kept patches; saves the input and gathers again in backward."""

    @staticmethod
    def forward(
        ctx: Any,
        frames: Tensor,
        weight: Tensor,
        keep: Tensor | None,
        patch: tuple[int, int, int],
        scale: float,
        shift: float,
        dtype: torch.dtype,
    ) -> Tensor:
        centre, unit = OPERAND.get(frames.dtype, (0.0, 1.0))
        ctx.save_for_backward(frames, weight, keep)
        ctx.patch, ctx.dtype, ctx.operand = patch, dtype, (centre, unit)
        ctx.scale, ctx.shift = scale / unit, shift + scale * centre
        wide = accumulator(dtype)
        tokens = (_operand(frames, patch, keep, ctx.operand, dtype) @ weight.to(dtype)).to(wide)
        if ctx.scale != 1.0:
            tokens.mul_(ctx.scale)
        if ctx.shift != 0.0:
            tokens.add_(weight.to(wide).sum(dim=0), alpha=ctx.shift)
        return tokens

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        frames, weight, keep = ctx.saved_tensors
        grad_frames = grad_weight = None
        with torch.autocast(grad.device.type, enabled=False):
            narrow = (grad * ctx.scale).to(ctx.dtype)
            if ctx.needs_input_grad[1]:
                values = _operand(frames, ctx.patch, keep, ctx.operand, ctx.dtype)
                grad_weight = (values.flatten(0, 1).T @ narrow.flatten(0, 1)).to(grad.dtype)
                if ctx.shift != 0.0:
                    grad_weight.add_(grad.sum(dim=(0, 1)), alpha=ctx.shift)
                grad_weight = grad_weight.to(weight.dtype)
            if ctx.needs_input_grad[0]:
                grad_patches = (narrow @ weight.to(ctx.dtype).T).to(frames.dtype)
                grad_frames = torch.zeros(frames.shape, dtype=frames.dtype, device=frames.device)
                grid = reference.patches(grad_frames, ctx.patch)
                if keep is None:
                    grid.copy_(grad_patches.view(grid.shape))
                else:
                    indices = _patch_indices(frames, ctx.patch, keep)
                    grid.index_put_(indices, grad_patches.unflatten(2, grid.shape[4:]), accumulate=True)
        return grad_frames, grad_weight, None, None, None, None, None


def _operand(
    frames: Tensor, patch: tuple[int, int, int], keep: Tensor | None, operand: tuple[float, float], dtype: torch.dtype
) -> Tensor:
    """Kept patches [B, K, P] as operands of the product: (x - centre) * unit in `dtype`."""
    values = gather_patches(frames, patch, keep).to(dtype)
    if frames.dtype in OPERAND:  # then `values` is a new tensor
        centre, unit = operand
        values.sub_(centre).mul_(unit)
    return values


def project(
    frames: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    patch: tuple[int, int, int],
    keep: Tensor | None,
    position: Tensor | None,
    scale: float,
    shift: float,
    dtype: torch.dtype,
) -> Tensor:
    """Gather kept patches, one product in `dtype`, then normalisation, bias and position in at least float32."""
    tokens: Tensor = _ProjectPatches.apply(frames, weight, keep, patch, scale, shift, dtype)
    if bias is not None:
        tokens = tokens + bias.to(tokens.dtype)
    if position is not None:
        position = position.to(tokens.dtype)
        tokens = tokens + (position if keep is None else F.embedding(keep, position))
    return tokens.to(weight.dtype)


# tokens


def sample_keep(
    tokens: int, kept: int, *, seed: int | Tensor, offset: int, batch: int | None, device: torch.device
) -> Tensor:
    """Selects on (word, index) packed into one integer, so there are no ties and nothing has to be sorted stably."""
    words = reference.draw_words(tokens, 1 if batch is None else batch, seed, offset, device)
    packed = (words << 31) | torch.arange(tokens, device=device)
    chosen = packed.topk(kept, dim=1, largest=False, sorted=False).values & (2**31 - 1)
    keep = chosen.sort(dim=1).values.int()
    return keep[0] if batch is None else keep


def gather_tokens(x: Tensor, keep: Tensor) -> Tensor:
    if keep.ndim == 1:
        return x.index_select(1, keep)
    return x.gather(1, keep.long()[..., None].expand(-1, -1, x.shape[2]))


# attention


def dropout_keep(keys: Tensor, p: float) -> Tensor:
    """`reference.dropout_keep` of version 1 for row keys [..., N], in wrapping 32-bit integers: [..., N, N] bool."""
    word = keys.to(torch.int32)[..., None] + torch.arange(keys.shape[-1], dtype=torch.int32, device=keys.device)
    word ^= (word >> 16) & 0xFFFF  # the shifts are arithmetic: clear the copies of the sign bit
    word *= 0x7FEB352D
    word ^= (word >> 15) & 0x1FFFF
    word *= 0x846CA68B - 2**32
    word ^= (word >> 16) & 0xFFFF
    return word >= reference.dropout_threshold(p, 1)


def _attend_dropped(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, visible: Tensor | None, keys: Tensor, scale: float, p: float
) -> Tensor:
    """With version 1, as runs of that time computed it: q, k, v [B, H, N, D], bias [H, N, N], visible [B, N], keys
    [B, H, N] -> [B, H, N, D].

    Rows of B*H are taken a few at a time; if there is more than one block, the backward computes each again.
    """
    batch, heads, tokens, _ = q.shape
    wide = accumulator(q.dtype)
    q, k, v, keys = (x.flatten(0, 1) for x in (q, k, v, keys))

    def attend(begin: int, end: int) -> Tensor:
        row = torch.arange(begin, end, device=q.device)
        scores = (q[begin:end].to(wide) * scale) @ k[begin:end].to(wide).mT
        if bias is not None:
            scores = scores + bias[row % heads]
        if visible is not None:
            scores = scores.masked_fill(~visible[row // heads, None], -torch.inf)
        probabilities = scores.softmax(dim=-1).masked_fill(~dropout_keep(keys[begin:end], p), 0.0)
        return probabilities @ v[begin:end].to(wide) / (1 - p)

    size = max(1, DROPOUT_SCORES // max(1, tokens * tokens))
    if size >= batch * heads:
        out = attend(0, batch * heads)
    else:
        blocks = [(begin, min(begin + size, batch * heads)) for begin in range(0, batch * heads, size)]
        out = torch.cat([checkpoint(attend, *block, use_reentrant=False, preserve_rng_state=False) for block in blocks])
    return out.to(q.dtype).unflatten(0, (batch, heads))


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    first: Tensor,
    key_mask: Tensor | None,
    bias_table: Tensor | None,
    max_distance: int,
    scale: float,
    dropout_p: float,
    seed: int | Tensor,
    dropout_version: int,
) -> Tensor:
    """Dense attention [B, N, H, D]; `first` [B] is the row of each sequence's first token in the flattened batch."""
    tokens, heads = q.shape[1:3]
    wide = accumulator(q.dtype)
    bias = None if bias_table is None else relative_bias(bias_table.to(wide), tokens, max_distance)
    visible = blind = None
    if key_mask is not None:
        blind = ~key_mask.any(dim=1, keepdim=True)
        visible = key_mask | blind  # a softmax over nothing is NaN: attend to all, clear the result
    if dropout_p and dropout_version > 1:
        from . import dropped_attention  # registers an operation, for which PyTorch imports much

        keys = reference.dropout_keys(first, tokens, heads, seed)
        out = dropped_attention.attend(q, k, v, bias, visible, keys, scale, dropout_p)
        return out if blind is None else out.masked_fill(blind[:, :, None, None], 0.0)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if dropout_p:
        keys = reference.dropout_keys(first, tokens, heads, seed)
        out = _attend_dropped(q, k, v, bias, visible, keys, scale, dropout_p)
    else:
        mask = visible[:, None, None, :] if visible is not None else None
        if bias is not None:
            additive = bias.to(q.dtype)[None]
            mask = additive if mask is None else additive.masked_fill(~mask, -torch.inf)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    if blind is not None:
        out = out.masked_fill(blind[:, :, None, None], 0.0)
    return out.transpose(1, 2)


def relative_bias(bias_table: Tensor, tokens: int, max_distance: int) -> Tensor:
    """[buckets, H] -> [H, N, N]; an embedding, because its backward adds up in order and is faster than indexing's."""
    position = torch.arange(tokens, device=bias_table.device)
    buckets = reference.relative_buckets(position[None, :] - position[:, None], bias_table.shape[0], max_distance)
    return F.embedding(buckets, bias_table).permute(2, 0, 1)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    key_mask: Tensor | None,
    bias_table: Tensor | None,
    max_distance: int,
    cu_seqlens: Tensor | None,
    max_seqlen: int | None,
    scale: float,
    dropout_p: float,
    seed: int | Tensor,
    dropout_version: int,
) -> Tensor:
    """Packed sequences of one length go through dense attention together, so nothing is ever padded."""
    settings = (bias_table, max_distance, scale, dropout_p, seed, dropout_version)
    if cu_seqlens is None:
        first = torch.arange(q.shape[0], device=q.device) * q.shape[1]
        return _attend(q, k, v, first, key_mask, *settings)
    starts: dict[int, list[int]] = {}
    for begin, end in reference.sequence_bounds(cu_seqlens, q.shape[0], max_seqlen):
        if end > begin:
            starts.setdefault(end - begin, []).append(begin)
    outputs, order = [], []
    for length, begins in starts.items():
        first = torch.tensor(begins, device=q.device)
        rows = first[:, None] + torch.arange(length, device=q.device)
        parts = [x.index_select(0, rows.flatten()).unflatten(0, rows.shape) for x in (q, k, v)]
        mask = None if key_mask is None else key_mask[rows]
        outputs.append(_attend(parts[0], parts[1], parts[2], first, mask, *settings).flatten(0, 1))
        order.append(rows.flatten())
    return torch.cat(outputs).index_select(0, torch.cat(order).argsort())


# contrastive loss


class _TiledLogSumExp(torch.autograd.Function):
    """logsumexp_j(x_i . y_j * inverse_temperature + penalty_j), [n, D] and [m, D] -> [n], tile by tile."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, penalty: Tensor, inverse_temperature: float, block: int) -> Tensor:
        result = x.new_full((x.shape[0],), -torch.inf)
        for rows, part in zip(x.split(block), result.split(block), strict=True):
            for columns, minus in zip(y.split(block), penalty.split(block), strict=True):
                tile = torch.addmm(minus, rows, columns.T, alpha=inverse_temperature)
                torch.logaddexp(part, tile.logsumexp(dim=1), out=part)
        ctx.save_for_backward(x, y, penalty, result)
        ctx.inverse_temperature, ctx.block = inverse_temperature, block
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, y, penalty, result = ctx.saved_tensors
        need_x, need_y = ctx.needs_input_grad[:2]
        grad_x = torch.zeros_like(x) if need_x else None
        grad_y = torch.zeros_like(y) if need_y else None
        with torch.autocast(grad.device.type, enabled=False):
            for i in range(0, x.shape[0], ctx.block):
                row = slice(i, i + ctx.block)
                for j in range(0, y.shape[0], ctx.block):
                    column = slice(j, j + ctx.block)
                    tile = torch.addmm(penalty[column], x[row], y[column].T, alpha=ctx.inverse_temperature)
                    tile.sub_(result[row, None]).exp_().mul_(grad[row, None])
                    if grad_x is not None:
                        grad_x[row].addmm_(tile, y[column], alpha=ctx.inverse_temperature)
                    if grad_y is not None:
                        grad_y[column].addmm_(tile.T, x[row], alpha=ctx.inverse_temperature)
        return grad_x, grad_y, None, None, None


def contrastive_loss(
    video: Tensor,
    other: Tensor,
    all_video: Tensor,
    all_other: Tensor,
    *,
    mask: Tensor | None,
    video_mask: Tensor | None,
    temperature: float,
    symmetric: bool,
    block: int = LOSS_BLOCK,
) -> Tensor:
    """Two streamed passes (`block` x `block` scores at a time); the rest is a few vectors for each clip."""
    clips, candidates = other.shape[:2]
    video, other, all_video, all_other = (reference.normalised(x) for x in (video, other, all_video, all_other))
    penalty = reference.NEGATIVE / temperature if symmetric else reference.NEGATIVE
    minus_other = all_other.new_zeros(all_other.shape[:2])
    minus_video = all_video.new_zeros(all_video.shape[0])
    if mask is not None:
        minus_other += ((1 - mask) * penalty)[:, None]
    if video_mask is not None and symmetric:
        minus_video += (1 - video_mask) * penalty
    inverse = 1 / temperature
    positives = ((video[:, None] * other).sum(dim=2) * inverse).logsumexp(dim=1)
    forth: Tensor = _TiledLogSumExp.apply(video, all_other.flatten(0, 1), minus_other.flatten(), inverse, block)
    back: Tensor = _TiledLogSumExp.apply(other.flatten(0, 1), all_video, minus_video, inverse, block)
    back = back.view(clips, candidates).logsumexp(dim=1)
    if symmetric:
        return (forth - positives) + (back - positives)
    return torch.logaddexp(forth, back) - positives
