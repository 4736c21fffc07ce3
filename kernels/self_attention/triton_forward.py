# mypy: disallow-incomplete-defs=False
"""Attention's forward kernel and its launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..device import architecture, on_device
from .triton_tiles import (
    ARCHITECTURES,
    ONE_TILE,
    SIZES,
    AttentionLaunch,
    column_of,
    diagonal_bias,
    kept,
    load_at,
    load_rows,
    locate,
    make_problem,
    measured_launch,
    readable,
    row_words,
    store_rows,
    strides,
    tile_at,
)

LENGTHS = (301, 393, 601, 785, 801, 901, 1177, 1201, 1569, 1601, 2401, 3201)  # what the drop rates keep, and AGG


# Chosen offline: compiled for sm_80, sm_90 and sm_100 without spills, wgmma not serialised; rates are estimates, no GPU
# has measured them. By (architecture, width). What 128 rows save in reads of keys they lose again at dropped lengths.
PLAIN = {
    (80, 64): (AttentionLaunch(128, 64, 8, 3), AttentionLaunch(64, 64, 4, 3, rate=0.95)),
    (80, 128): (AttentionLaunch(128, 32, 8, 2),),  # all else of 64 rows or more spills
    (90, 64): (AttentionLaunch(128, 64, 8, 3), AttentionLaunch(64, 64, 4, 3, rate=0.95)),
    (90, 128): (AttentionLaunch(128, 64, 8, 2), AttentionLaunch(64, 64, 8, 2, rate=0.9)),
}
SMALL = AttentionLaunch(ONE_TILE, ONE_TILE, 8, 1)  # 4 warps of 64 wide heads spill 8 bytes on sm_90 (text)
FEATURES = {  # a key mask or dropout: registers are short
    (80, 64): AttentionLaunch(64, 64, 4, 2),
    (80, 128): AttentionLaunch(128, 32, 8, 2),
    (90, 64): AttentionLaunch(64, 64, 4, 2),
    (90, 128): AttentionLaunch(64, 64, 8, 2),
}


@triton.jit
def attend_tile(
    acc,
    norm,
    peak,
    queries,
    k_tile,
    v_tile,
    query,
    words,
    key_mask,
    diagonals,
    first,
    length,
    head,
    reach,
    scale,
    threshold,
    start,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    DROPOUT: tl.constexpr,
    KEYS: tl.constexpr,
    LAST: tl.constexpr,
):
    """One step of the streamed softmax: a tile of keys, of which `start` is the first, for a tile of queries."""
    offset = tl.arange(0, KEYS)
    key = start + offset
    keys = load_rows(k_tile, key, length, WIDTH, PADDED, LAST)
    scores = tl.dot(queries, tl.trans(keys), input_precision="ieee")
    factor = scale
    if diagonals is not None:
        scores = scores * scale + diagonal_bias(diagonals, head, reach, query[:, None], key[None, :])
        factor = 1.0
    if key_mask is not None:
        visible = tl.load(key_mask + first + key, mask=key < length, other=0) != 0
        scores = tl.where(visible[None, :], scores, float("-inf"))
    elif LAST:
        scores = tl.where(key[None, :] < length, scores, float("-inf"))
    top = tl.maximum(peak, tl.max(scores, 1) * factor)
    base = top
    if key_mask is not None:  # no key seen yet: -inf minus -inf would be NaN
        base = tl.where(top == float("-inf"), 0.0, top)
    weights = tl.exp2(scores * factor - base[:, None])
    decay = tl.exp2(peak - base)
    norm = norm * decay + tl.sum(weights, 1)
    acc = acc * decay[:, None]
    if DROPOUT:
        weights = tl.where(kept(words[:, None], start, offset[None, :], threshold, DROPOUT), weights, 0.0)
    values = load_rows(v_tile, key, length, WIDTH, PADDED, LAST)
    acc = tl.dot(weights.to(values.dtype), values, acc, input_precision="ieee")
    return acc, norm, top


@triton.jit(do_not_specialize=SIZES)
def forward_kernel(
    q,
    k,
    v,
    out,
    lse,
    q_sequence,
    q_row,
    q_head,
    k_sequence,
    k_row,
    k_head,
    v_sequence,
    v_row,
    v_head,
    key_mask,
    diagonals,
    edges,
    seed,
    heads,
    longest,
    total,
    reach,
    scale,
    threshold,
    rescale,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    DROPOUT: tl.constexpr,
    EXACT: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
):
    """One tile of queries of one head: out and, for the backward, what normalises the exponentials of scores."""
    tile, head, origin, first, length = locate(edges, heads, longest, tl.cdiv(longest, ROWS))
    start = tile * ROWS
    if start >= length:
        return
    query = start + tl.arange(0, ROWS)
    queries = load_at(q, origin, start, head, q_sequence, q_row, q_head, length, ROWS, WIDTH, PADDED)
    k_tile = tile_at(k, origin, 0, head, k_sequence, k_row, k_head, KEYS, PADDED)
    v_tile = tile_at(v, origin, 0, head, v_sequence, v_row, v_head, KEYS, PADDED)
    words = query
    if DROPOUT:
        words = row_words(first, query, head, heads, seed)
    acc = tl.zeros([ROWS, PADDED], dtype=tl.float32)
    norm = tl.zeros([ROWS], dtype=tl.float32)
    peak = tl.full([ROWS], float("-inf"), dtype=tl.float32)
    whole = length // KEYS * KEYS
    for n in range(0, whole, KEYS):
        acc, norm, peak = attend_tile(
            acc,
            norm,
            peak,
            queries,
            k_tile,
            v_tile,
            query,
            words,
            key_mask,
            diagonals,
            first,
            length,
            head,
            reach,
            scale,
            threshold,
            n,
            WIDTH,
            PADDED,
            DROPOUT,
            KEYS,
            False,
        )
        k_tile += KEYS * k_row
        v_tile += KEYS * v_row
    if whole < length:
        acc, norm, peak = attend_tile(
            acc,
            norm,
            peak,
            queries,
            k_tile,
            v_tile,
            query,
            words,
            key_mask,
            diagonals,
            first,
            length,
            head,
            reach,
            scale,
            threshold,
            whole,
            WIDTH,
            PADDED,
            DROPOUT,
            KEYS,
            True,
        )
    if key_mask is not None:  # a row that sees no key: out is 0, and +inf makes the backward's probabilities 0
        peak = tl.where(norm > 0, peak, float("inf"))
        norm = tl.where(norm > 0, norm, 1.0)
    acc = acc * (rescale / norm)[:, None]
    store_rows(out, acc, first, query, length, head, heads * WIDTH, WIDTH, PADDED)
    here = lse + head * total + first + query
    if EXACT:
        tl.store(here, peak, mask=query < length)
        tl.store(here + tl.cast(heads, tl.int64) * total, 1.0 / norm, mask=query < length)
    else:
        tl.store(here, peak + tl.log2(norm), mask=query < length)


def forward_launch(
    longest: int, padded: int, dtype: torch.dtype, architecture: int, *, mask: bool, bias: bool, dropout: bool
) -> AttentionLaunch:
    """The tile whose rate times the useful share of its area is largest."""
    if bias or dtype == torch.float32 or longest <= ONE_TILE:
        return SMALL
    column = (architecture, column_of(padded))
    if mask or dropout:
        return FEATURES[column]

    def worth(launch: AttentionLaunch) -> float:
        rows, keys = (triton.cdiv(longest, block) * block for block in launch[:2])
        return launch.rate * longest * longest / (rows * keys)

    return max(PLAIN[column], key=worth)


def attention_forward(
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
    seed: Tensor | None,
    dropout_version: int,
) -> tuple[Tensor, Tensor]:
    """Launch the forward kernel; arguments as in `vatt_kernels.attention`, `max_seqlen` is needed with `cu_seqlens`.

    Returns:
        out, contiguous, of shape and dtype of q; lse float32 for the backward: [1, H, total], the base-2 logarithm of
        the softmax's denominator, or, of float32 inputs, [2, H, total], the maximum and the inverse of the denominator
        relative to it (a logarithm near 30 has lost 5 bits). +inf, and 1, for a row that sees no key.
    """
    if scale <= 0:  # the kernel takes the factor out of a maximum
        q, scale = (-q, -scale) if scale else (torch.zeros_like(q), 1.0)
    problem = make_problem(
        q,
        key_mask=key_mask,
        bias_table=bias_table,
        max_distance=max_distance,
        cu_seqlens=cu_seqlens,
        max_seqlen=max_seqlen,
        scale=scale,
        dropout_p=dropout_p,
        dropout_version=dropout_version,
    )
    q, k, v = readable(q), readable(k), readable(v)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(1 + problem.exact, problem.heads, problem.total, dtype=torch.float32, device=q.device)
    launch = forward_launch(
        problem.longest,
        problem.padded,
        q.dtype,
        architecture(ARCHITECTURES, q.device),
        mask=key_mask is not None,
        bias=bias_table is not None,
        dropout=dropout_p > 0,
    )
    features = key_mask is not None or dropout_p > 0
    launch = measured_launch("forward with features" if features else "forward", launch, problem.padded, q)
    with on_device(q):
        forward_kernel[problem.grid(triton.cdiv(problem.longest, launch.rows))](
            q,
            k,
            v,
            out,
            lse,
            *strides(q),
            *strides(k),
            *strides(v),
            seed=seed,
            **problem.arguments(),
            ROWS=launch.rows,
            KEYS=launch.keys,
            num_warps=launch.warps,
            num_stages=launch.stages,
        )
    return out, lse
