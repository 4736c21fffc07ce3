"""How the projection's kernels are launched: tiles for each GPU, memory, splits of sums."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..device import processors, shared_memory
from ..droptoken.triton_op import segment_sum
from ..reference import patches
from ..tuning import tuned
from .triton_kernels import project_kernel, starts_kernel, weight_kernel

CENTRE = {torch.uint8: 128}
TYPES = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}
Patch = tuple[int, int, int]


class ProjectionLaunch(NamedTuple):
    """Tile of one program: `width` x `other` results, `depth` terms of the sum at a time."""

    width: int
    other: int  # tokens in the forward, patch values in the gradient of the weight
    depth: int  # patch values in the forward, tokens in the gradient of the weight
    warps: int
    stages: int
    per_sm: int  # programs that fit on a multiprocessor of 64 K registers and 228 KiB


# Chosen offline, for sm_90, from the top: the first that fits the device and fills it (`choose`).
FORWARD = (
    ProjectionLaunch(128, 256, 64, 8, 3, 1),  # widest products; a byte is converted d / 128 times whatever the tokens
    ProjectionLaunch(128, 128, 64, 8, 3, 1),  # fewer rows, or values of four bytes
    ProjectionLaunch(64, 64, 64, 4, 3, 5),
)
WEIGHT = (ProjectionLaunch(128, 128, 64, 8, 3, 2), ProjectionLaunch(64, 64, 64, 4, 3, 5))
# No matrix unit: 16 terms at a time keep operands in registers without spills. 32 columns also because Triton 3.7 takes
# TF32 products on sm_100 for 64 or more when an operand was converted from bytes, though IEEE is asked for.
FLOAT32 = (ProjectionLaunch(32, 64, 16, 4, 3, 4),)
SPLIT_COST = 16  # iterations that one more part of a split sum costs: pipeline start, and its partial result


class ClipLayout(NamedTuple):
    """A clip [B, T, H, W, C] as the kernels see it: lines of contiguous values, and which patches are kept."""

    values: Tensor
    keep: Tensor | None  # int32 or int64, contiguous
    rows: int
    kept: int
    keep_stride: int  # 0: all samples share a draw
    grid: tuple[int, int]  # patches high and wide
    strides: tuple[int, int, int]  # of samples, frames and lines
    patch: tuple[int, int, int]  # frames, lines, values a line

    @property
    def tokens(self) -> int:
        """Patches of the grid."""
        return self.values.shape[1] // self.patch[0] * self.grid[0] * self.grid[1]

    @property
    def unit(self) -> int:
        """Number of values in 16 bytes if all patches begin at multiples of it, else 1."""
        unit = 16 // self.values.element_size()
        whole = all(step % unit == 0 for step in (*self.strides, self.patch[2]))
        return unit if whole and self.values.data_ptr() % 16 == 0 else 1


def clip_layout(frames: Tensor, patch: Patch, keep: Tensor | None) -> ClipLayout:
    """The clip as it lies, or a copy where its lines are not contiguous or a copy is read 16 bytes at a time."""
    (t, h, w), (batch, _, height, width, channels) = patch, frames.shape
    grid = (height // h, width // w)
    kept = frames.shape[1] // t * grid[0] * grid[1] if keep is None else keep.shape[-1]

    def seen(frames: Tensor) -> ClipLayout:
        # the stride of an axis of one place means nothing; 0 is divisible by all units
        steps = [0 if size == 1 else step for size, step in zip(frames.shape[:3], frames.stride()[:3], strict=True)]
        per_sample = keep is not None and keep.ndim == 2
        return ClipLayout(
            frames,
            None if keep is None else keep.contiguous(),
            batch * kept,
            kept,
            kept if per_sample else 0,
            grid,
            (steps[0], steps[1], steps[2]),
            (t, h, w * channels),
        )

    columns_apart = width > 1 and frames.stride(3) != channels
    if columns_apart or (channels > 1 and frames.stride(4) != 1):
        return seen(frames.contiguous())
    clip = seen(frames)
    lines_align = width * channels * frames.element_size() % 16 == 0 and clip.patch[2] * frames.element_size() % 16 == 0
    return seen(frames.clone(memory_format=torch.contiguous_format)) if clip.unit == 1 and lines_align else clip


def fits(launch: ProjectionLaunch, other: torch.dtype, values: torch.dtype, limit: int) -> bool:
    """Whether all stages of weights or gradients (`other`) and of `values` fit into `limit` bytes of shared memory."""
    return launch.stages * launch.depth * (launch.width * other.itemsize + launch.other * values.itemsize) <= limit


def choose(
    table: tuple[ProjectionLaunch, ...], clip: ClipLayout, width: int, other: int, dtype: torch.dtype
) -> ProjectionLaunch:
    """The first launch that fits, is no wider than the result and fills the device once, else the last."""
    device = clip.values.device
    table = FLOAT32 if dtype == torch.float32 else table
    limit = shared_memory(device)
    for launch in table:
        tiles = triton.cdiv(width, launch.width) * triton.cdiv(other, launch.other)
        if width >= launch.width and tiles >= processors(device) and fits(launch, dtype, clip.values.dtype, limit):
            return launch
    return table[-1]


def project_forward(
    clip: ClipLayout, weight: Tensor, extra: Tensor | None, position: Tensor | None, scale: float, dtype: torch.dtype
) -> Tensor:
    """y [rows, d] in `dtype` for weight [P, d] in the dtype of the product, extra [d] float32, position [N, d]."""
    rows, width = clip.rows, weight.shape[1]
    y = torch.empty(rows, width, dtype=dtype, device=weight.device)
    if not y.numel():
        return y
    launch = choose(tuned("projection forward", FORWARD, y.device), clip, width, rows, weight.dtype)
    t, h, run = clip.patch
    grid = (triton.cdiv(width, launch.width) * triton.cdiv(rows, launch.other),)
    with torch.cuda.device_of(y):
        project_kernel[grid](
            clip.values,
            weight,
            extra,
            position,
            clip.keep,
            y,
            rows,
            clip.kept,
            clip.keep_stride,
            width,
            clip.tokens,
            *clip.grid,
            *clip.strides,
            scale,
            T=t,
            H=h,
            RUN=run,
            HAS_KEEP=clip.keep is not None,
            HAS_EXTRA=extra is not None,
            HAS_POSITION=position is not None,
            TYPE=TYPES[weight.dtype],
            COLUMNS=launch.width,
            TOKENS=launch.other,
            DEPTH=launch.depth,
            num_warps=launch.warps,
            num_stages=launch.stages,
        )
    return y


def parts(tiles: int, steps: int, slots: int) -> int:
    """How many parts a sum of `steps` iterations is cut into, so that `slots` programs at a time end together."""
    return min(
        range(1, min(8, steps) + 1), key=lambda n: triton.cdiv(tiles * n, slots) * (triton.cdiv(steps, n) + SPLIT_COST)
    )


def project_weight_gradient(
    clip: ClipLayout, dy: Tensor, extra: Tensor | None, scale: float, dtype: torch.dtype, splits: int | None = None
) -> Tensor:
    """dW [P, d] in `dtype` for dy [rows, d] in the dtype of the product; `extra` [d] float32 is added to all rows."""
    rows, width = dy.shape
    t, h, run = clip.patch
    values = t * h * run
    if not dy.numel():
        return torch.zeros(values, width, dtype=dtype, device=dy.device)
    starts = torch.empty(rows, dtype=torch.int64, device=dy.device)
    launch = choose(tuned("projection weight", WEIGHT, dy.device), clip, width, values, dy.dtype)
    tiles = triton.cdiv(width, launch.width) * triton.cdiv(values, launch.other)
    steps = triton.cdiv(rows, launch.depth)
    if splits is None:
        splits = parts(tiles, steps, launch.per_sm * processors(dy.device))
    partial = torch.empty(splits, values, width, dtype=dtype if splits == 1 else torch.float32, device=dy.device)
    with torch.cuda.device_of(dy):
        starts_kernel[(triton.cdiv(rows, 256),)](
            clip.keep,
            starts,
            rows,
            clip.kept,
            clip.keep_stride,
            clip.tokens,
            *clip.grid,
            *clip.strides,
            T=t,
            H=h,
            RUN=run,
            HAS_KEEP=clip.keep is not None,
            UNIT=clip.unit,
            BLOCK=256,
            num_warps=4,
        )
        weight_kernel[(tiles, splits)](
            clip.values,
            dy,
            extra,
            starts,
            partial,
            rows,
            width,
            *clip.strides[1:],
            scale,
            triton.cdiv(steps, splits) * launch.depth,
            T=t,
            H=h,
            RUN=run,
            UNIT=clip.unit,
            HAS_EXTRA=extra is not None,
            TYPE=TYPES[dy.dtype],
            COLUMNS=launch.width,
            VALUE_BLOCK=launch.other,
            DEPTH=launch.depth,
            num_warps=launch.warps,
            num_stages=launch.stages,
        )
    return partial[0] if splits == 1 else partial.sum(dim=0).to(dtype)


def position_gradient(dy: Tensor, keep: Tensor | None, tokens: int) -> Tensor:
    """dy [B, K, d] -> [N, d] float32."""
    if keep is None:
        return dy.sum(dim=0, dtype=torch.float32)
    return segment_sum(dy, keep, tokens, over_batch=True)


def clip_gradient(narrow: Tensor, weight: Tensor, frames: Tensor, patch: Patch, keep: Tensor | None) -> Tensor:
    """dy [B, K, d] times `scale`, and weight, in the dtype of the product -> the gradient of a float clip."""
    of_patches = (narrow @ weight.T).to(frames.dtype)
    gradient = torch.zeros(frames.shape, dtype=frames.dtype, device=frames.device)
    grid = patches(gradient, patch)
    if keep is not None:
        of_patches = segment_sum(of_patches, keep, grid.shape[1:4].numel(), over_batch=False)
    grid.copy_(of_patches.view(grid.shape))
    return gradient
