# mypy: disallow-incomplete-defs=False
"""Flash attention in Triton: the forward kernel and the differentiable function.

    S = scale * q k^T + bias_table[bucket(key - query)];   P = softmax(S over visible keys);   out = dropout(P) v

Legend: B batch, N tokens, H heads, D width of a head, total = all tokens of packed sequences (B N of dense ones).
Scores are kept times log2(e), so that exponentials are exp2 and the scale is part of a multiply-add; statistics are
float32. Only the last tile of keys is checked against the length.
FLOPs: 4 H D sum(N^2) forward. Bytes: q, k, v, out once, where tiles of keys come from the L2 cache.
Limits: bfloat16, float16, float32; D <= 128; on a GPU `cu_seqlens` is trusted where `max_seqlen` is given, as reading
it would make the host wait.

Source: Dao 2023, "FlashAttention-2", algorithm 1; relative bias: Raffel et al. 2020, section 2.1.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import reference
from .aot_case import AotCase
from .attention_backward_triton import attention_backward
from .attention_tiles_triton import (
    ARCHITECTURES,
    ONE_TILE,
    SIZES,
    TYPES,
    Launch,
    aot_case,
    column_of,
    describe,
    diagonal_bias,
    kept,
    load_at,
    load_rows,
    locate,
    readable,
    row_words,
    settings,
    store_rows,
    strides,
    tile_at,
)
from .device import architecture, on_device
from .library import differentiable, operator, present, signed64

LENGTHS = (301, 393, 601, 785, 801, 901, 1177, 1201, 1569, 1601, 2401, 3201)  # what the drop rates keep, and AGG

# Chosen offline: compiled for sm_80, sm_90 and sm_100 without spills, wgmma not serialised; rates are estimates, no GPU
# has measured them. By (architecture, width). What 128 rows save in reads of keys they lose again at dropped lengths.
PLAIN = {
    (80, 64): (Launch(128, 64, 8, 3), Launch(64, 64, 4, 3, rate=0.95)),
    (80, 128): (Launch(128, 32, 8, 2),),  # all else of 64 rows or more spills
    (90, 64): (Launch(128, 64, 8, 3), Launch(64, 64, 4, 3, rate=0.95)),
    (90, 128): (Launch(128, 64, 8, 2), Launch(64, 64, 8, 2, rate=0.9)),
}
SMALL = Launch(ONE_TILE, ONE_TILE, 8, 1)  # 4 warps of 64 wide heads spill 8 bytes on sm_90 (text)
FEATURES = {  # a key mask or dropout: registers are short
    (80, 64): Launch(64, 64, 4, 2),
    (80, 128): Launch(128, 32, 8, 2),
    (90, 64): Launch(64, 64, 4, 2),
    (90, 128): Launch(64, 64, 8, 2),
}


@triton.jit
def attend_tile(
    acc, norm, peak, queries, k_tile, v_tile, query, key, words, key_mask, diagonals, first, length, head, reach, scale,
    threshold, WIDTH: tl.constexpr, PADDED: tl.constexpr, DROPOUT: tl.constexpr, LAST: tl.constexpr
):  # fmt: skip
    """One step of the streamed softmax: a tile of keys for a tile of queries."""
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
        weights = tl.where(kept(words[:, None], key[None, :], threshold), weights, 0.0)
    values = load_rows(v_tile, key, length, WIDTH, PADDED, LAST)
    acc = tl.dot(weights.to(values.dtype), values, acc, input_precision="ieee")
    return acc, norm, top


@triton.jit(do_not_specialize=SIZES)
def forward_kernel(
    q, k, v, out, lse, q_sequence, q_row, q_head, k_sequence, k_row, k_head, v_sequence, v_row, v_head,
    key_mask, diagonals, edges, heads, longest, total, reach, scale, threshold, seed_low, seed_high, rescale,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, DROPOUT: tl.constexpr, EXACT: tl.constexpr, ROWS: tl.constexpr,
    KEYS: tl.constexpr
):  # fmt: skip
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
        words = row_words(first, query, head, heads, seed_low, seed_high)
    acc = tl.zeros([ROWS, PADDED], dtype=tl.float32)
    norm = tl.zeros([ROWS], dtype=tl.float32)
    peak = tl.full([ROWS], float("-inf"), dtype=tl.float32)
    whole = length // KEYS * KEYS
    for n in range(0, whole, KEYS):
        acc, norm, peak = attend_tile(
            acc, norm, peak, queries, k_tile, v_tile, query, n + tl.arange(0, KEYS), words, key_mask, diagonals, first,
            length, head, reach, scale, threshold, WIDTH, PADDED, DROPOUT, False
        )  # fmt: skip
        k_tile += KEYS * k_row
        v_tile += KEYS * v_row
    if whole < length:
        acc, norm, peak = attend_tile(
            acc, norm, peak, queries, k_tile, v_tile, query, whole + tl.arange(0, KEYS), words, key_mask, diagonals,
            first, length, head, reach, scale, threshold, WIDTH, PADDED, DROPOUT, True
        )  # fmt: skip
    if key_mask is not None:  # a row that sees no key: out is 0, and +inf makes the backward's probabilities 0
        peak = tl.where(norm > 0, peak, float("inf"))
        norm = tl.where(norm > 0, norm, 1.0)
    acc = acc * (rescale / norm)[:, None]
    store_rows(out, acc, first, query, length, head, heads, WIDTH, PADDED)
    here = lse + head * total + first + query
    if EXACT:
        tl.store(here, peak, mask=query < length)
        tl.store(here + tl.cast(heads, tl.int64) * total, 1.0 / norm, mask=query < length)
    else:
        tl.store(here, peak + tl.log2(norm), mask=query < length)


def forward_launch(
    longest: int, padded: int, dtype: torch.dtype, architecture: int, *, mask: bool, bias: bool, dropout: bool
) -> Launch:
    """The tile whose rate times the useful share of its area is largest."""
    if bias or dtype == torch.float32 or longest <= ONE_TILE:
        return SMALL
    column = (architecture, column_of(padded))
    if mask or dropout:
        return FEATURES[column]

    def worth(launch: Launch) -> float:
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
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Launch the forward kernel; arguments as in `vatt_kernels.attention`, `max_seqlen` is needed with `cu_seqlens`.

    Returns:
        out, contiguous, of shape and dtype of q; lse float32 for the backward: [1, H, total], the base-2 logarithm of
        the softmax's denominator, or, of float32 inputs, [2, H, total], the maximum and the inverse of the denominator
        relative to it (a logarithm near 30 has lost 5 bits). +inf, and 1, for a row that sees no key.
    """
    if scale <= 0:  # the kernel takes the factor out of a maximum
        q, scale = (-q, -scale) if scale else (torch.zeros_like(q), 1.0)
    problem = describe(
        q, key_mask=key_mask, bias_table=bias_table, max_distance=max_distance, cu_seqlens=cu_seqlens,
        max_seqlen=max_seqlen, scale=scale, dropout_p=dropout_p, seed=seed,
    )  # fmt: skip
    q, k, v = readable(q), readable(k), readable(v)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(1 + problem.exact, problem.heads, problem.total, dtype=torch.float32, device=q.device)
    launch = forward_launch(
        problem.longest, problem.padded, q.dtype, architecture(ARCHITECTURES, q.device), mask=key_mask is not None,
        bias=bias_table is not None, dropout=dropout_p > 0,
    )  # fmt: skip
    with on_device(q):
        forward_kernel[problem.grid(triton.cdiv(problem.longest, launch.rows))](
            q, k, v, out, lse, *strides(q), *strides(k), *strides(v), **problem.arguments(), ROWS=launch.rows,
            KEYS=launch.keys, num_warps=launch.warps, num_stages=launch.stages,
        )  # fmt: skip
    return out, lse


ARGUMENTS = (
    "Tensor? bias_table, Tensor? key_mask, SymInt max_distance, Tensor? cu_seqlens, SymInt? max_seqlen, float scale, "
    "float dropout_p, SymInt seed"
)


def _forward(q: Tensor, k: Tensor, v: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
    return attention_forward(q, k, v, **_named(settings))


def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *settings: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dq, dk, dv, d_table = attention_backward(grad, q, k, v, out, lse, **_named(settings))
    return dq, dk, dv, grad.new_empty(0) if d_table is None else d_table


def _named(settings: tuple[Any, ...]) -> dict[str, Any]:
    """ARGUMENTS by name; the backward's launcher takes them in another order."""
    names = ("bias_table", "key_mask", "max_distance", "cu_seqlens", "max_seqlen", "scale", "dropout_p", "seed")
    return dict(zip(names, settings, strict=True))


def _fake_forward(q: Tensor, k: Tensor, v: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
    statistics = 2 if q.dtype == torch.float32 else 1
    total = math.prod(q.shape[:-2])
    return q.new_empty(q.shape), q.new_empty(statistics, q.shape[-2], total, dtype=torch.float32)


def _fake_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, bias_table: Tensor | None, *settings: Any
) -> tuple[Tensor, ...]:
    d_table = grad.new_empty(0) if bias_table is None else bias_table.new_empty(bias_table.shape)
    return *(x.new_empty(q.shape) for x in (q, k, v)), d_table


def _forward_flops(q: torch.Size, *shapes: Any, out_shape: Any) -> int:
    """Packed sequences count as if each had `max_seqlen` tokens: the shapes do not tell their lengths."""
    longest = q[1] if len(q) == 4 else shapes[6]
    return 4 * math.prod(q) * longest


def _backward_flops(grad: torch.Size, *shapes: Any, out_shape: Any) -> int:
    """Of the products in the formula; computing the scores again is the implementation's own expense."""
    longest = grad[1] if len(grad) == 4 else shapes[9]
    return 8 * math.prod(grad) * longest


_attention = operator(
    f"attention(Tensor q, Tensor k, Tensor v, {ARGUMENTS}) -> (Tensor, Tensor)", _forward, _fake_forward, _forward_flops
)
_attention_backward = operator(
    f"attention_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, {ARGUMENTS}) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    _backward, _fake_backward, _backward_flops,
)  # fmt: skip


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, bias_table, key_mask, max_distance, cu_seqlens, *settings = inputs
    ctx.save_for_backward(q, k, v, *output, bias_table, key_mask, cu_seqlens)
    ctx.max_distance, ctx.settings = max_distance, settings
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, grad: Tensor | None, of_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    """Saves q, k, v, out and statistics, and computes probabilities again; nobody differentiates the statistics."""
    if grad is None:
        return (None,) * 11
    *tensors, bias_table, key_mask, cu_seqlens = ctx.saved_tensors
    gradients = _attention_backward(grad, *tensors, bias_table, key_mask, ctx.max_distance, cu_seqlens, *ctx.settings)
    return *present(gradients, ctx.needs_input_grad[:4]), *[None] * 7


differentiable(_attention, _save, _gradients, _attention_backward)


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
    seed: int,
) -> Tensor:
    """The differentiable operation; arguments as in `vatt_kernels.attention`, checked there.

    Reads `cu_seqlens` on the host where `max_seqlen` is missing, and on a CPU, where that costs nothing.
    """
    if cu_seqlens is not None and (max_seqlen is None or not (cu_seqlens.is_cuda or torch.compiler.is_compiling())):
        bounds = reference.sequence_bounds(cu_seqlens, q.shape[0], max_seqlen)
        max_seqlen = max(end - begin for begin, end in bounds)
    out: Tensor = _attention(
        q, k, v, bias_table, key_mask, max_distance, cu_seqlens, max_seqlen, scale, dropout_p, signed64(seed)
    )[0]
    return out


def aot_cases() -> list[AotCase]:
    """The forward at the shapes of VATT: video and audio at all drop rates and both resolutions, text."""
    cases = []
    for setting in settings():
        for tokens in (17,) if setting.has["bias"] else LENGTHS:
            launch = forward_launch(
                tokens, setting.width, TYPES[setting.type_name], setting.architecture, **setting.has
            )
            blocks = {"ROWS": launch.rows, "KEYS": launch.keys}
            cases.append(aot_case("forward", forward_kernel, "q k v out", launch, blocks, setting, f"N={tokens}"))
    return cases
