"""Backward of flash attention in Triton. By default no two programs add to one number, so it repeats to the bit.

    P = exp2(S - lse);  dP = dropout(grad v^T);  delta = rowsum(P dP) = rowsum(grad out);  dS = P (dP - delta)
    dq = scale dS k;   dk = scale dS^T q;   dv = dropout(P)^T grad;   dtable[b] = sum of dS with key - query in bucket b

Legend: N tokens, H heads, D width of a head, total = all tokens; S, lse in units of log2, as the forward leaves them.
Two passes compute S and dP twice: one for tiles of queries (delta, dq), one for tiles of keys (dk, dv). Sequences of at
most one tile (text) take one pass that does everything. The gradient of a relative bias is a third pass: a program adds
up all tiles that lie on one diagonal of tiles, element by element, and sums along its diagonals once, at the end.
`one_pass` is faster and does not repeat to the bit: programs for tiles of keys also add what they have of dq, in
float32, in the order in which they come. Float32 inputs and a relative bias are computed in two passes nevertheless.
Where q, k and v are parts of one tensor their gradients are written into one, too.
FLOPs: 14 H D sum(N^2) in two passes (10 are needed), 4 more with a bias, 4 more of float32; 10 in one tile or one pass.
Bytes: q, k, v, grad twice, out, dq, dk, dv once; in one pass dq in float32, once for each tile of keys.
Limits: those of the forward.

Source: Dao 2023, "FlashAttention-2", algorithm 2.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from .. import reference
from ..aot_case import AotCase
from ..device import architecture, on_device
from .triton_backward_kernels import diagonals_kernel, keys_kernel, one_pass_kernel, one_tile_kernel, queries_kernel
from .triton_tiles import (
    ARCHITECTURES,
    ONE_TILE,
    TYPES,
    AttentionLaunch,
    Problem,
    aot_case,
    column_of,
    make_problem,
    measured_launch,
    readable,
    settings,
    strides,
)

# Chosen offline: compiled for sm_80, sm_90 and sm_100 without spills, wgmma not serialised; no GPU has measured them.
# By (architecture, width).
SMALL = {
    64: AttentionLaunch(ONE_TILE, ONE_TILE, 8, 1),  # 4 warps spill 8 bytes on sm_80 and sm_100
    128: AttentionLaunch(ONE_TILE, ONE_TILE, 8, 1),
}  # by width alone
EXACT_QUERIES = AttentionLaunch(
    ONE_TILE, ONE_TILE, 8, 1
)  # of float32: 4 warps of 64 wide heads spill 2,424 bytes, 8 spill 704
QUERIES = {  # the first pass
    (80, 64): AttentionLaunch(64, 64, 4, 2),
    (80, 128): AttentionLaunch(32, 32, 4, 2),  # more spills
    (90, 64): AttentionLaunch(
        64, 64, 4, 2
    ),  # 4 warps: with 8 of 128 rows as many instructions for a score, less useful area
    (90, 128): AttentionLaunch(64, 64, 4, 2),
}
KEYS = {  # the second pass: two accumulators
    (80, 64): AttentionLaunch(32, 64, 4, 2),  # 64x64 spills
    (80, 128): AttentionLaunch(32, 32, 8, 2),
    (90, 64): AttentionLaunch(64, 64, 4, 2),  # two programs fit on a processor; 64x128 with 8 warps: one
    (90, 128): AttentionLaunch(32, 64, 8, 2),  # 64x64 spills on sm_100 with a mask
}
ONE_PASS = {  # the only pass, with dq besides
    (80, 64): AttentionLaunch(32, 64, 8, 2),  # 4 warps spill
    (80, 128): AttentionLaunch(16, 32, 8, 2),  # 32x32 spills
    (90, 64): AttentionLaunch(64, 64, 4, 2),
    (90, 128): AttentionLaunch(32, 64, 8, 2),
}


def backward_launches(
    padded: int, dtype: torch.dtype, architecture: int, *, bias: bool
) -> tuple[AttentionLaunch, AttentionLaunch]:
    """Tiles of the first and the second pass."""
    small = SMALL[column_of(padded)]
    if dtype == torch.float32:
        return EXACT_QUERIES, small
    if bias:
        return small, small
    column = (architecture, column_of(padded))
    return QUERIES[column], KEYS[column]


def table_gradient(sums: Tensor, problem: Problem, bias_table: Tensor, max_distance: int) -> Tensor:
    """[sequences * H * diagonals of tiles, 2 BLOCK] sums along diagonals -> the gradient of bias_table.

    A product with a 0/1 matrix adds up in a fixed order, which an indexed addition on a GPU does not.
    """
    block = sums.shape[1] // 2
    of_head = sums.view(problem.sequences, problem.heads, -1, 2 * block).sum(dim=0, dtype=torch.float64)
    diagonals = of_head.shape[1]
    ahead = torch.arange(diagonals, device=sums.device) - diagonals // 2
    distance = ahead[:, None] * block + torch.arange(2 * block, device=sums.device) - (block - 1)
    buckets = reference.relative_buckets(distance.flatten(), bias_table.shape[0], max_distance)
    member = torch.nn.functional.one_hot(buckets, bias_table.shape[0]).double()
    return (member.T @ of_head.flatten(1).T).to(bias_table.dtype)


def attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
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
    one_pass: bool,
    into: tuple[Tensor, Tensor, Tensor],
) -> Tensor | None:
    """Launch the backward kernels: `grad` of `out`; out, lse and all else as `attention_forward` returned or took them.

    Args:
        one_pass: see above.
        into: what becomes dq, dk, dv, of shape and dtype of q and with the same strides, heads following one another.

    Returns:
        The gradient of bias_table (None without one) in its dtype.
    """
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
    grad, q, k, v = grad.contiguous(), readable(q), readable(k), readable(v)
    dq, dk, dv = into
    d_row = dq.stride(-3)
    arguments = (*strides(q), *strides(k), *strides(v))
    shared, small = problem.arguments(), SMALL[column_of(problem.padded)]

    def bias_sums(tiles: int) -> Tensor | None:
        if bias_table is None:
            return None
        return torch.empty(*problem.grid(tiles), 2 * ONE_TILE, dtype=torch.float32, device=q.device)

    with on_device(q):
        if problem.longest <= ONE_TILE:
            sums = bias_sums(1)
            one_tile_kernel[problem.grid(1)](
                q,
                k,
                v,
                grad,
                lse,
                sums,
                dq,
                dk,
                dv,
                *arguments,
                seed=seed,
                d_row=d_row,
                **shared,
                BLOCK=ONE_TILE,
                num_warps=small.warps,
                num_stages=small.stages,
            )
        else:
            delta = torch.empty_like(lse[0])
            words = torch.empty(delta.shape, dtype=torch.int32, device=q.device) if dropout_p else None
            acc = None
            if one_pass and not problem.exact and bias_table is None:
                acc = torch.zeros(q.shape, dtype=torch.float32, device=q.device)
            first, second = backward_launches(
                problem.padded, q.dtype, architecture(ARCHITECTURES, q.device), bias=bias_table is not None
            )
            first = measured_launch("dq", first, problem.padded, q)
            second = measured_launch("dk dv", second, problem.padded, q)
            queries_kernel[problem.grid(triton.cdiv(problem.longest, first.rows))](
                q,
                k,
                v,
                out,
                grad,
                lse,
                delta,
                words,
                dq if acc is None else None,
                *arguments,
                seed=seed,
                d_row=d_row,
                **shared,
                ROWS=first.rows,
                KEYS=first.keys,
                num_warps=first.warps,
                num_stages=first.stages,
            )
            if acc is not None:
                second = ONE_PASS[architecture(ARCHITECTURES, q.device), column_of(problem.padded)]
                second = measured_launch("dq dk dv", second, problem.padded, q)
            kernel = keys_kernel if acc is None else one_pass_kernel
            kernel[problem.grid(triton.cdiv(problem.longest, second.keys))](
                q,
                k,
                v,
                grad,
                lse,
                delta,
                words,
                *([] if acc is None else [acc]),
                dk,
                dv,
                *arguments,
                d_row=d_row,
                **shared,
                ROWS=second.rows,
                KEYS=second.keys,
                num_warps=second.warps,
                num_stages=second.stages,
            )
            if acc is not None:
                dq.copy_(acc)
            tiles = 2 * triton.cdiv(problem.longest, ONE_TILE) - 1
            sums = bias_sums(tiles)
            if sums is not None:
                diagonals_kernel[problem.grid(tiles)](
                    q,
                    k,
                    v,
                    grad,
                    lse,
                    delta,
                    words,
                    sums,
                    *arguments,
                    **shared,
                    BLOCK=ONE_TILE,
                    num_warps=small.warps,
                    num_stages=small.stages,
                )
    if sums is None or bias_table is None:
        return None
    return table_gradient(sums, problem, bias_table, max_distance)


def aot_cases() -> list[AotCase]:
    """The backward at the shapes of VATT; launches depend on the length only where a sequence is one tile."""
    cases = []
    for setting in settings():
        bias, small = setting.has["bias"], SMALL[column_of(setting.width)]
        first, second = backward_launches(setting.width, TYPES[setting.type_name], setting.architecture, bias=bias)
        tensors, block = "q k v out grad dq dk dv", {"BLOCK": ONE_TILE}
        for name, kernel, launch in (("dq", queries_kernel, first), ("dk dv", keys_kernel, second)):
            blocks = {"ROWS": launch.rows, "KEYS": launch.keys}
            cases.append(aot_case(name, kernel, tensors, launch, blocks, setting, "all of video and audio"))
        if not bias and setting.type_name != "fp32":
            one = ONE_PASS[setting.architecture, column_of(setting.width)]
            blocks = {"ROWS": one.rows, "KEYS": one.keys}
            cases.append(aot_case("dq dk dv", one_pass_kernel, tensors, one, blocks, setting, "one pass"))
        if bias:
            cases.append(aot_case("diagonals", diagonals_kernel, tensors, small, block, setting, "more than one tile"))
            cases.append(aot_case("one tile", one_tile_kernel, tensors, small, block, setting, "N=17"))
    return cases
