# mypy: disallow-incomplete-defs=False
"""Gradients of the contrastive loss with respect to its vectors: the tiles of scores are computed once more.

With the scores s_ij of triton_forward.py, the gradient of the loss by s_ij is a softmax in each direction,

    dS_ij = exp(s_ij) * (g_i / a_i * r_j + q_i * h_j / b_j)

with incoming gradients g, h, sums a, b of rows and columns, and admissions r, q (0 for what is masked): one exponential
times a matrix of rank two. (Below FIXED_TEMPERATURE: two exponentials, of differences from the logarithms.) A program
keeps a block of rows, streams columns and has dX_i = sum_j dS_ij y_j in its accumulator. A second kernel adds the
positives and goes through the normalisation x = v / sqrt(max(|v|^2, 1e-12)); in the first one that would spill
registers. The gradient by the columns is the same with the roles exchanged, so nothing needs atomics.

FLOPs: 4 M N D a side (two products). Bytes: (M + N) W elements, M D results, and float32 sums of up to four row blocks
a processor at a time, in as many parts as stay below SUMS_BYTES: linear in M and N.

Source: VATT (Akbari et al. 2021), section 3.4; derivation above.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..aot_case import AotCase
from ..device import processors
from .triton_forward import (
    AOT_ARCHS,
    AOT_TYPES,
    FIXED_TEMPERATURE,
    SHAPES,
    SMALL,
    SMALLEST_SQUARE,
    SPARE,
    aot_case,
    launch_for,
    parts_for,
    small_block,
    tile_for,
)

SUMS_BYTES = 2**27  # of the parts of one launch; one part of it may be more
AOT_SWITCHES = [(True, True, True), (True, True, False), (True, False, True), (False, True, True)]


@triton.jit(do_not_specialize=["first_block"])
def gradient_kernel(
    ROWS,
    COLUMNS,
    ROW_TERMS,
    COLUMN_TERMS,
    SUMS,
    first_block,
    row_count,
    column_blocks,
    part_blocks,
    scale,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    FIXED: tl.constexpr,
    OF_ROWS: tl.constexpr,
    OF_COLUMNS: tl.constexpr,
):
    """SUMS float32 [P, rows of this launch, WIDTH]. Program (row block after `first_block`, part of the columns).

    ROW_TERMS [3, M], COLUMN_TERMS [3, N]: gains (g, h; if FIXED over a, b), admissions (q, r), log2 of a, b.
    """
    part = tl.program_id(1)
    local = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    m = first_block.to(tl.int64) * BLOCK_M + local
    n, inner = tl.arange(0, BLOCK_N), tl.arange(0, WIDTH)
    column_count = column_blocks * BLOCK_N
    begin = part * part_blocks
    end = tl.minimum(begin + part_blocks, column_blocks)
    x = tl.load(ROWS + m[:, None] * WIDTH + inner[None, :])
    gain = tl.load(ROW_TERMS + m)[:, None]
    admit = tl.load(ROW_TERMS + row_count + m)[:, None]
    level = tl.load(ROW_TERMS + 2 * row_count + m)[:, None]
    total = tl.full([BLOCK_M, WIDTH], 0.0, tl.float32)
    tile = n[:, None] * WIDTH + inner[None, :]
    at = COLUMNS + begin.to(tl.int64) * (BLOCK_N * WIDTH)
    for block in range(begin, end):
        y = tl.load(at + tile)
        terms = COLUMN_TERMS + block * BLOCK_N + n
        column_gain = tl.load(terms)[None, :]
        column_admit = tl.load(terms + column_count)[None, :]
        product = tl.dot(x, y.T, input_precision="ieee")
        if FIXED:
            of_rows = gain * column_admit
            of_columns = admit * column_gain
        else:
            # An admitted score is not above its log-sum; others may be, and must not become infinite times 0.
            column_level = tl.load(terms + 2 * column_count)[None, :]
            of_rows = tl.exp2(tl.minimum(product * scale - level, 0.0)) * gain * column_admit
            of_columns = tl.exp2(tl.minimum(product * scale - column_level, 0.0)) * admit * column_gain
        if not OF_COLUMNS:
            slope = of_rows
        elif not OF_ROWS:
            slope = of_columns
        else:
            slope = of_rows + of_columns
        if FIXED:
            slope *= tl.exp2(product * scale)
        total = tl.dot(slope.to(y.dtype), y, total, input_precision="ieee")
        at += BLOCK_N * WIDTH
    sums = SUMS + part.to(tl.int64) * tl.num_programs(0) * (BLOCK_M * WIDTH)
    tl.store(sums + local[:, None] * WIDTH + inner[None, :], total)


@triton.jit(do_not_specialize=["first_row"])
def finish_kernel(
    SUMS,
    PARTNERS,
    PAIRS,
    FACTOR,
    VECTORS,
    GRADIENT,
    rows,
    first_row,
    sum_rows,
    parts,
    width,
    candidates,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    POSITIVES: tl.constexpr,
):
    """GRADIENT [rows, width]: the sum of SUMS [parts, sum_rows, WIDTH] and the positives, through the normalisation.

    POSITIVES: "none"; "clips", each with `candidates` partners; "candidates", each with a clip as its partner. PAIRS
    [clips * candidates] weighs them.
    """
    local = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row, inner = first_row + local, tl.arange(0, WIDTH)
    valid = row < rows
    total = tl.full([BLOCK, WIDTH], 0.0, tl.float32)
    if POSITIVES == "clips":
        for candidate in range(candidates):
            pair = row * candidates + candidate
            weight = tl.load(PAIRS + pair, mask=valid, other=0.0)
            partner = tl.load(PARTNERS + pair[:, None] * WIDTH + inner[None, :], mask=valid[:, None], other=0.0)
            total += weight[:, None] * partner.to(tl.float32)
    elif POSITIVES == "candidates":
        weight = tl.load(PAIRS + row, mask=valid, other=0.0)
        at_clip = PARTNERS + (row // candidates)[:, None] * WIDTH + inner[None, :]
        total += weight[:, None] * tl.load(at_clip, mask=valid[:, None], other=0.0).to(tl.float32)
    at_sums = SUMS + local[:, None] * WIDTH + inner[None, :]
    for _ in range(parts):
        total += tl.load(at_sums)
        at_sums += sum_rows * WIDTH
    total *= tl.load(FACTOR)

    at = row[:, None] * width + inner[None, :]
    inside = valid[:, None] & (inner < width)[None, :]
    x = tl.load(VECTORS + at, mask=inside, other=0.0).to(tl.float32)
    square = tl.sum(x * x, axis=1)
    inverse = tl.div_rn(tl.full([BLOCK], 1.0, tl.float32), tl.sqrt_rn(tl.maximum(square, SMALLEST_SQUARE)))
    unit = x * inverse[:, None]
    radial = tl.where(square >= SMALLEST_SQUARE, tl.sum(total * unit, axis=1), 0.0)  # below, the length is a constant
    result = (total - unit * radial[:, None]) * inverse[:, None]
    tl.store(GRADIENT + at, result.to(GRADIENT.dtype.element_ty), mask=inside)


class Side(NamedTuple):
    """One side of a score matrix: vectors [n, D], their units [padded n, W], terms [3, padded n] (`gradient_kernel`).

    `own`: do its own softmaxes (gains) contribute to the gradient?
    """

    vectors: Tensor
    units: Tensor
    terms: Tensor
    own: bool


class Positives(NamedTuple):
    """`kind` of the rows ("clips" or "candidates"), units of the other side, weights [clips * candidates] of pairs."""

    kind: str
    partners: Tensor
    pairs: Tensor
    candidates: int


def vector_gradient(
    rows: Side, columns: Side, positives: Positives | None, factor: Tensor, temperature: float
) -> Tensor:
    """Gradient by `rows.vectors`, in their shape and dtype: `factor` (float32 [1]) times the sums of the kernels."""
    (row_count, wide), (count, width) = rows.units.shape, rows.vectors.shape
    device = rows.units.device
    tile = tile_for("gradient", rows.units)
    at_once = processors(device)
    row_blocks, column_blocks = row_count // tile.rows, columns.units.shape[0] // tile.columns
    kind, partners, pairs, candidates = positives or Positives("none", columns.units, factor, 1)
    block = small_block(wide)
    result = torch.empty_like(rows.vectors)
    for first in range(0, row_blocks, 4 * at_once):
        blocks = min(4 * at_once, row_blocks - first)
        most = max(1, min(64, SUMS_BYTES // (blocks * tile.rows * wide * 4)))
        part_blocks = triton.cdiv(column_blocks, parts_for(blocks, column_blocks, at_once, most))
        parts = triton.cdiv(column_blocks, part_blocks)
        sums = torch.empty(parts, blocks * tile.rows, wide, dtype=torch.float32, device=device)
        with torch.cuda.device_of(result):
            gradient_kernel[(blocks, parts)](
                rows.units,
                columns.units,
                rows.terms,
                columns.terms,
                sums,
                first,
                row_count,
                column_blocks,
                part_blocks,
                math.log2(math.e) / temperature,
                WIDTH=wide,
                BLOCK_M=tile.rows,
                BLOCK_N=tile.columns,
                FIXED=temperature >= FIXED_TEMPERATURE,
                OF_ROWS=rows.own,
                OF_COLUMNS=columns.own,
                num_warps=tile.warps,
                num_stages=tile.stages,
            )
            finish_kernel[(blocks * tile.rows // block,)](
                sums,
                partners,
                pairs,
                factor,
                rows.vectors,
                result,
                count,
                first * tile.rows,
                blocks * tile.rows,
                parts,
                width,
                candidates,
                WIDTH=wide,
                BLOCK=block,
                POSITIVES=kind,
                num_warps=SMALL.warps,
            )
    return result


def aot_cases() -> list[AotCase]:
    """Both common spaces of VATT: a rank alone, and gathered batches by the local and by the gathered side."""
    cases = []
    for width in SHAPES:
        for name, dtype in AOT_TYPES.items():
            block = {"WIDTH": width, "BLOCK": small_block(width)}
            for kind in ("clips", "candidates", "none"):
                cases.append(aot_case(finish_kernel, name, block | {"POSITIVES": kind}, SMALL, ()))
            for sm, archs in AOT_ARCHS.items():
                launch = launch_for("gradient", sm, dtype, width)
                for fixed, of_rows, of_columns in AOT_SWITCHES:
                    tile = {"WIDTH": width, "BLOCK_M": launch.rows, "BLOCK_N": launch.columns}
                    switches = {"FIXED": fixed, "OF_ROWS": of_rows, "OF_COLUMNS": of_columns}
                    cases.append(aot_case(gradient_kernel, name, tile | switches, launch, archs))
                spare = SPARE.get(("gradient", sm, dtype.itemsize == 2, width))
                if spare is not None:
                    tile = {"WIDTH": width, "BLOCK_M": spare.rows, "BLOCK_N": spare.columns}
                    tile |= {"OF_ROWS": True, "OF_COLUMNS": True}
                    for fixed in (True, False):
                        case = aot_case(gradient_kernel, name, tile | {"FIXED": fixed}, spare, archs)
                        cases.append(case._replace(name=f"{case.name} spare tile"))
    return cases
