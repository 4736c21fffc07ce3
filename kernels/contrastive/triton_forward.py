# mypy: disallow-incomplete-defs=False
"""Sums of exponentials over all scores of a batch, tile by tile: the forward kernels of the contrastive loss.

With unit vectors x_i and y_j as rows of X [M, W] and Y [N, W], scores s_ij = x_i.y_j / temperature, and admissions
r_j, q_i (1, or 0 for what a mask or padding leaves out):

    row_sums    a_i = sum_j r_j exp(s_ij)
    both_sums   a_i, and b_j = sum_i q_i exp(s_ij), from one product: alone, a rank's second direction is the transpose
                of its first

Scores lie within 1 / temperature of 0, so from FIXED_TEMPERATURE on their exponentials, and sums and inverses of these,
are ordinary float32 numbers: no maximum has to be looked for, and nothing is rescaled. Below it, `row_sums` keeps a
running maximum and gives the logarithms of the sums.

Legend: M rows, N columns (both padded to full tiles with rows of zeros that nothing admits), D width, W the power of
two that holds it, P and R parts into which columns and rows are divided so that all processors have work.
FLOPs: 2 M N D a product. Bytes: (M + N) W elements, one statistic a row and part. Parts are added in order, not by
atomics. Limits: D <= 512; bfloat16 and float16 products accumulate in float32, float32 is multiplied exactly (no TF32).

Source: VATT (Akbari et al. 2021), section 3.4.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..aot_case import AotCase
from ..device import architecture, processors
from ..tuning import tuned

PADDING = {2: 128, 4: 32}  # by bytes of an element: rows are padded to the largest tile, so that nothing needs masks
MAX_WIDTH = 512
SMALLEST_SQUARE = tl.constexpr(1e-12)
FIXED_TEMPERATURE = 0.02  # exp(1 / 0.02) = 5e21, which leaves 2e16 for the number of candidates and the gradients
LN2 = tl.constexpr(math.log(2))


class ContrastiveLaunch(NamedTuple):
    """Tile, warps and stages of the software pipeline."""

    rows: int
    columns: int
    warps: int
    stages: int


# (kernel, architecture, 2-byte elements, largest W) -> launch; the first row that fits is taken. Chosen offline, for
# triton 3.6.0 and 3.7.1: the largest tile that neither spills nor leaves the shared memory (99 KiB under 80), because
# each row of a tile saves reading the other side once more. Larger tiles spill on 100, and with W = 512 on 90 too.
# float32 is multiplied without tensor cores.
LAUNCHES: list[tuple[str, int, bool, int, ContrastiveLaunch]] = [
    ("sums", 80, True, 256, ContrastiveLaunch(64, 64, 4, 2)),
    ("sums", 80, True, 512, ContrastiveLaunch(64, 32, 4, 2)),
    ("sums", 90, True, 128, ContrastiveLaunch(128, 128, 8, 3)),
    ("sums", 90, True, 256, ContrastiveLaunch(128, 128, 8, 2)),
    ("sums", 90, True, 512, ContrastiveLaunch(64, 64, 4, 2)),
    ("sums", 100, True, 256, ContrastiveLaunch(64, 128, 8, 2)),
    ("sums", 100, True, 512, ContrastiveLaunch(64, 32, 4, 2)),
    ("gradient", 80, True, 256, ContrastiveLaunch(64, 64, 8, 2)),
    ("gradient", 80, True, 512, ContrastiveLaunch(32, 32, 8, 2)),
    ("gradient", 90, True, 128, ContrastiveLaunch(128, 64, 8, 3)),
    ("gradient", 90, True, 256, ContrastiveLaunch(128, 64, 8, 2)),
    ("gradient", 90, True, 512, ContrastiveLaunch(64, 32, 8, 2)),
    ("gradient", 100, True, 256, ContrastiveLaunch(128, 64, 8, 2)),
    ("gradient", 100, True, 512, ContrastiveLaunch(64, 32, 8, 2)),
    *(
        (kernel, sm, False, 512, ContrastiveLaunch(32, 32, 8, 1))
        for kernel in ("sums", "gradient")
        for sm in (80, 90, 100)
    ),
]

SMALL = ContrastiveLaunch(1, 1, 4, 3)  # of the kernels without products
SHAPES = {256: "video-text, D=256, L=5", 512: "video-audio, D=512, L=1"}
AOT_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# Triton has open reports of wgmma that reads shared memory wrongly where an operand is 16 or 32 wide beside a second
# product (triton-lang/triton issues 10486, 11366). Where compute-sanitizer, which gpu_report asks, is red for a row of
# LAUNCHES, its tile here takes its place; it spills 368 bytes where ranks are gathered.
SPARE = {("gradient", 90, True, 512): ContrastiveLaunch(64, 64, 8, 1)}
# The sums of rows go between warps through shared memory that begins behind all operands (byte 196,608 of D = 256).
BEHIND_OPERANDS = ("st.shared.v2.b32", "st.shared.b32")
AOT_ARCHS = {80: (80, 942), 90: (90,), 100: (100,)}


def launch_for(kernel: str, architecture: int, dtype: torch.dtype, width: int) -> ContrastiveLaunch:
    """`width` is W. Whoever calls has checked that it is at most MAX_WIDTH."""
    rows = (row for row in LAUNCHES if row[:3] == (kernel, architecture, dtype.itemsize == 2) and width <= row[3])
    return next(rows)[4]


def tile_for(kernel: str, units: Tensor) -> ContrastiveLaunch:
    """For units [M, W] on their device."""
    launch = launch_for(kernel, architecture(AOT_ARCHS, units.device), units.dtype, units.shape[1])
    if units.dtype.itemsize != 2:
        return launch
    return tuned(f"contrastive {kernel} {units.shape[1]}", (launch,), units.device)[0]


def small_block(width: int) -> int:
    """Rows of a program that keeps them in registers, for W."""
    return min(32, 4096 // width)


def parts_for(programs: int, steps: int, at_once: int, most: int = 64) -> int:
    """Into how many parts to divide the `steps` of each program: the fewest waves, of `at_once`, of the shortest ones.

    A part costs two steps more, for what it reads first and stores last. There are at most `most`.
    """
    return min(range(1, min(steps, most) + 1), key=lambda n: -(-programs * n // at_once) * (-(-steps // n) + 2))


@triton.jit
def unit_kernel(VECTORS, UNITS, rows, width, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    column = tl.arange(0, WIDTH)
    valid = (row < rows)[:, None] & (column < width)[None, :]
    x = tl.load(VECTORS + row[:, None] * width + column[None, :], mask=valid, other=0.0).to(tl.float32)
    length = tl.sqrt_rn(tl.maximum(tl.sum(x * x, axis=1), SMALLEST_SQUARE))
    unit = tl.div_rn(x, tl.broadcast_to(length[:, None], BLOCK, WIDTH))
    tl.store(UNITS + row[:, None] * WIDTH + column[None, :], unit.to(UNITS.dtype.element_ty))


@triton.jit
def pair_kernel(
    VIDEOS, OTHERS, SCORES, pairs, candidates, inverse_temperature, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):
    pair = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    column = tl.arange(0, WIDTH)
    valid = pair < pairs
    at_video = VIDEOS + (pair // candidates)[:, None] * WIDTH + column[None, :]
    video = tl.load(at_video, mask=valid[:, None], other=0.0).to(tl.float32)
    other = tl.load(OTHERS + pair[:, None] * WIDTH + column[None, :], mask=valid[:, None], other=0.0).to(tl.float32)
    tl.store(SCORES + pair, tl.sum(video * other, axis=1) * inverse_temperature, mask=valid)


@triton.jit
def row_sums_kernel(
    ROWS,
    COLUMNS,
    ADMIT,
    RESULT,
    row_count,
    column_blocks,
    part_blocks,
    scale,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    FIXED: tl.constexpr,
):
    """RESULT [P, M]: sums if FIXED, else their logarithms. Program (row block, part): its rows stay, columns pass."""
    part = tl.program_id(1)
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    inner = tl.arange(0, WIDTH)
    x = tl.load(ROWS + m.to(tl.int64)[:, None] * WIDTH + inner[None, :])
    begin = part * part_blocks
    end = tl.minimum(begin + part_blocks, column_blocks)
    n = tl.arange(0, BLOCK_N)
    tile = n[:, None] * WIDTH + inner[None, :]
    at = COLUMNS + begin.to(tl.int64) * (BLOCK_N * WIDTH)
    # Below any score: a part whose columns are all left out stays finite and sums up to nothing.
    top = tl.full([BLOCK_M], -2.0, tl.float32) * scale
    total = tl.full([BLOCK_M], 0.0, tl.float32)
    for block in range(begin, end):
        admit = tl.load(ADMIT + block * BLOCK_N + n)
        product = tl.dot(x, tl.load(at + tile).T, input_precision="ieee")
        if FIXED:
            total += tl.sum(tl.exp2(product * scale) * admit[None, :], axis=1)
        else:
            score = tl.where(admit[None, :] > 0, product * scale, -2 * scale)
            higher = tl.maximum(top, tl.max(score, axis=1))
            total = total * tl.exp2(top - higher)
            total += tl.sum(tl.exp2(score - higher[:, None]) * admit[None, :], axis=1)
            top = higher
        at += BLOCK_N * WIDTH
    if not FIXED:
        total = tl.log(total) + top * LN2
    tl.store(RESULT + part.to(tl.int64) * row_count + m, total)


@triton.jit
def both_sums_kernel(
    ROWS,
    COLUMNS,
    ROW_ADMIT,
    COLUMN_ADMIT,
    ROW_SUMS,
    COLUMN_SUMS,
    row_blocks,
    column_blocks,
    row_part_blocks,
    column_part_blocks,
    scale,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """ROW_SUMS [P, M], zeros before; COLUMN_SUMS [R, N]. Program (column part, row part).

    A block of columns stays while the rows pass: its sums grow in a register tile that is added up once, at the end.
    The rows' sums are added up in each tile, to a row of ROW_SUMS that belongs to the column part alone.
    """
    column_part, row_part = tl.program_id(0), tl.program_id(1)
    row_begin, column_begin = row_part * row_part_blocks, column_part * column_part_blocks
    row_end = tl.minimum(row_begin + row_part_blocks, row_blocks)
    column_end = tl.minimum(column_begin + column_part_blocks, column_blocks)
    m, n, inner = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, WIDTH)
    row_tile = m[:, None] * WIDTH + inner[None, :]
    column_tile = n[:, None] * WIDTH + inner[None, :]
    row_sums = ROW_SUMS + column_part.to(tl.int64) * row_blocks * BLOCK_M
    column_sums = COLUMN_SUMS + row_part.to(tl.int64) * column_blocks * BLOCK_N
    at_column = COLUMNS + column_begin.to(tl.int64) * (BLOCK_N * WIDTH)
    for column_block in range(column_begin, column_end):
        y = tl.load(at_column + column_tile)
        column_admit = tl.load(COLUMN_ADMIT + column_block * BLOCK_N + n)
        grown = tl.full([BLOCK_M, BLOCK_N], 0.0, tl.float32)
        at_row = ROWS + row_begin.to(tl.int64) * (BLOCK_M * WIDTH)
        for row_block in range(row_begin, row_end):
            row = row_block * BLOCK_M + m
            exponential = tl.exp2(tl.dot(tl.load(at_row + row_tile), y.T, input_precision="ieee") * scale)
            grown += exponential * tl.load(ROW_ADMIT + row)[:, None]
            before = tl.load(row_sums + row)
            tl.store(row_sums + row, before + tl.sum(exponential * column_admit[None, :], axis=1))
            at_row += BLOCK_M * WIDTH
        tl.store(column_sums + column_block * BLOCK_N + n, tl.sum(grown, axis=0))
        at_column += BLOCK_N * WIDTH
        tl.debug_barrier()  # the next block of columns reads ROW_SUMS back, perhaps in other threads


def padded(rows: int, dtype: torch.dtype) -> int:
    return triton.cdiv(rows, PADDING[dtype.itemsize]) * PADDING[dtype.itemsize]


def unit_vectors(vectors: Tensor) -> Tensor:
    """[n, D] contiguous -> [padded n, W] in the same dtype: rows of length one, rounded once; padding is zero."""
    rows, width = vectors.shape
    wide = max(16, triton.next_power_of_2(width))
    block = small_block(wide)
    units = torch.empty(padded(rows, vectors.dtype), wide, dtype=vectors.dtype, device=vectors.device)
    with torch.cuda.device_of(vectors):
        unit_kernel[(units.shape[0] // block,)](
            vectors, units, rows, width, WIDTH=wide, BLOCK=block, num_warps=SMALL.warps
        )
    return units


def pair_scores(videos: Tensor, others: Tensor, clips: int, candidates: int, temperature: float) -> Tensor:
    """Unit vectors of clips and of their candidates -> float32 [clips, candidates]: the scores of the positives."""
    scores = torch.empty(clips, candidates, dtype=torch.float32, device=videos.device)
    wide, pairs = videos.shape[1], clips * candidates
    block = small_block(wide)
    with torch.cuda.device_of(videos):
        pair_kernel[(triton.cdiv(pairs, block),)](
            videos, others, scores, pairs, candidates, 1 / temperature, WIDTH=wide, BLOCK=block, num_warps=SMALL.warps
        )
    return scores


def row_sums(rows: Tensor, columns: Tensor, admit: Tensor, temperature: float) -> Tensor:
    """sum_j admit_j exp(x_i.y_j / temperature) for units [M, W] and [N, W], admit [N] -> float32 [M].

    Below FIXED_TEMPERATURE: the logarithm of that.
    """
    (row_count, wide), column_count = rows.shape, columns.shape[0]
    tile = tile_for("sums", rows)
    row_blocks, column_blocks = row_count // tile.rows, column_count // tile.columns
    parts = parts_for(row_blocks, column_blocks, processors(rows.device))
    part_blocks = triton.cdiv(column_blocks, parts)
    parts = triton.cdiv(column_blocks, part_blocks)
    result = torch.empty(parts, row_count, dtype=torch.float32, device=rows.device)
    with torch.cuda.device_of(rows):
        row_sums_kernel[(row_blocks, parts)](
            rows,
            columns,
            admit,
            result,
            row_count,
            column_blocks,
            part_blocks,
            math.log2(math.e) / temperature,
            WIDTH=wide,
            BLOCK_M=tile.rows,
            BLOCK_N=tile.columns,
            FIXED=temperature >= FIXED_TEMPERATURE,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
    if parts == 1:
        return result[0]
    return result.sum(dim=0) if temperature >= FIXED_TEMPERATURE else result.logsumexp(dim=0)


def both_sums(
    rows: Tensor, columns: Tensor, row_admit: Tensor, column_admit: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """`row_sums` of both directions, float32 [M] and [N], for temperatures from FIXED_TEMPERATURE on.

    The columns should be the longer side: their sums stay in registers.
    """
    (row_count, wide), column_count = rows.shape, columns.shape[0]
    tile = tile_for("sums", rows)
    row_blocks, column_blocks = row_count // tile.rows, column_count // tile.columns
    at_once = processors(rows.device)
    column_part_blocks = triton.cdiv(column_blocks, 2 * at_once)
    column_parts = triton.cdiv(column_blocks, column_part_blocks)
    row_part_blocks = triton.cdiv(row_blocks, parts_for(column_parts, row_blocks, at_once))
    row_parts = triton.cdiv(row_blocks, row_part_blocks)
    of_rows = torch.zeros(column_parts, row_count, dtype=torch.float32, device=rows.device)
    of_columns = torch.empty(row_parts, column_count, dtype=torch.float32, device=rows.device)
    with torch.cuda.device_of(rows):
        both_sums_kernel[(column_parts, row_parts)](
            rows,
            columns,
            row_admit,
            column_admit,
            of_rows,
            of_columns,
            row_blocks,
            column_blocks,
            row_part_blocks,
            column_part_blocks,
            math.log2(math.e) / temperature,
            WIDTH=wide,
            BLOCK_M=tile.rows,
            BLOCK_N=tile.columns,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
    return of_rows.sum(dim=0), of_columns.sum(dim=0)


def aot_case(
    kernel: Any,
    dtype: str,
    constexprs: dict[str, Any],
    launch: ContrastiveLaunch,
    archs: tuple[int, ...],
    early: tuple[str, ...] = (),
) -> AotCase:
    """A case with the arguments as the launchers here and in triton_backward.py pass them."""
    low = {"ROWS", "COLUMNS", "VECTORS", "UNITS", "VIDEOS", "OTHERS", "PARTNERS"}  # tensors of the inputs' dtype

    def type_of(argument: str) -> str:
        if argument in constexprs:
            return "constexpr"
        if argument.isupper():
            return f"*{dtype}" if argument in low or argument == "GRADIENT" else "*fp32"
        return "fp32" if argument in ("scale", "inverse_temperature") else "i32"

    signature = {argument: type_of(argument) for argument in kernel.arg_names}
    divisible = [argument for argument, type_ in signature.items() if type_.startswith("*")]
    divisible += [argument for argument in ("row_count", "sum_rows", "width") if argument in signature]
    name = kernel.__name__.removesuffix("_kernel").replace("_", " ")
    switches = [key.lower().replace("_", " ") for key, value in constexprs.items() if value is True]
    switches += [value for value in constexprs.values() if isinstance(value, str)]
    width = constexprs["WIDTH"]
    return AotCase(
        " ".join(["contrastive", name, dtype, f"D{width}", *switches]),
        kernel,
        signature,
        constexprs,
        tuple(divisible),
        launch.warps,
        launch.stages,
        launch.rows >= 64,
        SHAPES[width],
        archs,
        early,
    )


def aot_cases() -> list[AotCase]:
    """Both common spaces of VATT, on each architecture that has tiles of its own."""
    cases = []
    for width in SHAPES:
        for name, dtype in AOT_TYPES.items():
            block = {"WIDTH": width, "BLOCK": small_block(width)}
            cases += [aot_case(kernel, name, block, SMALL, ()) for kernel in (unit_kernel, pair_kernel)]
            for sm, archs in AOT_ARCHS.items():
                launch = launch_for("sums", sm, dtype, width)
                tile = {"WIDTH": width, "BLOCK_M": launch.rows, "BLOCK_N": launch.columns}
                cases.append(aot_case(both_sums_kernel, name, tile, launch, archs, BEHIND_OPERANDS))
                cases += [aot_case(row_sums_kernel, name, tile | {"FIXED": f}, launch, archs) for f in (True, False)]
    return cases
