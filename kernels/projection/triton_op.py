"""Voxel and waveform projection in Triton: kept patches are gathered from the clip straight into the matrix product.

    y[m, n]  = scale * sum_p (x[m, p] - c) W[p, n] + extra[n] + position[keep[m], n]
    extra[n] = (shift + scale * c) * colsum(W)[n] + bias[n]
    dW[p, n] = scale * sum_m (x[m, p] - c) dy[m, n] + (shift + scale * c) * colsum(dy)[n]

c is 128 for bytes, else 0: small integers are exact operands in every dtype and need no rescaled copy of W. One launch
computes y from the clip as it lies in memory; nothing of the size of a patch matrix exists, in the backward neither.

Legend: B batch, K kept tokens, M = B K rows, N patches of the grid, P values a patch, d width. A patch is t*h lines of
`run` = w*C values that lie together.
FLOPs: 2 M P d forward and for dW each. Bytes: M P values (from L2 once for each tile of d), P d weights, M d results.
dW sums over M in `splits` parts of fixed order; bias and position gradients are sums over segments (`tokens_triton`).
So two runs agree to the last bit. The gradient of a float clip is one product and one scatter of kept patches: it
stores [B, K, P] and [B, N, P] and is there for completeness, as no VATT training asks for it.

Limits: bfloat16, float16, float32 products (float32 as IEEE, not TF32); no bfloat16 products in Triton's interpreter.
A clip whose lines do not begin at multiples of 16 bytes (a crop of a larger one) is copied first if that helps.
Source: as `projection`. All launch choices were chosen offline, by registers, spills, shared memory and useful area.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .aot_case import AotCase
from .checks import interpreting
from .device import processors, shared_memory
from .library import differentiable, operator, present
from .projection_kernels_triton import project_kernel, starts_kernel, weight_kernel
from .reference import patches
from .tokens_triton import segment_sum

CENTRE = {torch.uint8: 128}
TYPES = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}
Patch = tuple[int, int, int]


class Launch(NamedTuple):
    """Tile of one program: `width` x `other` results, `depth` terms of the sum at a time."""

    width: int
    other: int  # tokens in the forward, patch values in the gradient of the weight
    depth: int  # patch values in the forward, tokens in the gradient of the weight
    warps: int
    stages: int
    per_sm: int  # programs that fit on a multiprocessor of 64 K registers and 228 KiB


# Chosen offline, for sm_90, from the top: the first that fits the device and fills it (`choose`).
FORWARD = (
    Launch(128, 256, 64, 8, 3, 1),  # widest products; a byte is converted d / 128 times whatever the tokens
    Launch(128, 128, 64, 8, 3, 1),  # fewer rows, or values of four bytes
    Launch(64, 64, 64, 4, 3, 5),
)
WEIGHT = (Launch(128, 128, 64, 8, 3, 2), Launch(64, 64, 64, 4, 3, 5))
# No matrix unit: 16 terms at a time keep operands in registers without spills. 32 columns also because Triton 3.7 takes
# TF32 products on sm_100 for 64 or more when an operand was converted from bytes, though IEEE is asked for.
FLOAT32 = (Launch(32, 64, 16, 4, 3, 4),)
SPLIT_COST = 16  # iterations that one more part of a split sum costs: pipeline start, and its partial result


class Clip(NamedTuple):
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
    def unit(self) -> int:
        """Number of values in 16 bytes if all patches begin at multiples of it, else 1."""
        unit = 16 // self.values.element_size()
        whole = all(step % unit == 0 for step in (*self.strides, self.patch[2]))
        return unit if whole and self.values.data_ptr() % 16 == 0 else 1


def describe(frames: Tensor, patch: Patch, keep: Tensor | None) -> Clip:
    """The clip as it lies, or a copy where its lines are not contiguous or a copy is read 16 bytes at a time."""
    (t, h, w), (batch, _, height, width, channels) = patch, frames.shape
    grid = (height // h, width // w)
    kept = frames.shape[1] // t * grid[0] * grid[1] if keep is None else keep.shape[-1]

    def seen(frames: Tensor) -> Clip:
        # the stride of an axis of one place means nothing; 0 is divisible by all units
        steps = [0 if size == 1 else step for size, step in zip(frames.shape[:3], frames.stride()[:3], strict=True)]
        per_sample = keep is not None and keep.ndim == 2
        return Clip(
            frames, None if keep is None else keep.contiguous(), batch * kept, kept, kept if per_sample else 0, grid,
            (steps[0], steps[1], steps[2]), (t, h, w * channels),
        )  # fmt: skip

    columns_apart = width > 1 and frames.stride(3) != channels
    if columns_apart or (channels > 1 and frames.stride(4) != 1):
        return seen(frames.contiguous())
    clip = seen(frames)
    lines_align = width * channels * frames.element_size() % 16 == 0 and clip.patch[2] * frames.element_size() % 16 == 0
    return seen(frames.clone(memory_format=torch.contiguous_format)) if clip.unit == 1 and lines_align else clip


def fits(launch: Launch, other: torch.dtype, values: torch.dtype, limit: int) -> bool:
    """Whether all stages of weights or gradients (`other`) and of `values` fit into `limit` bytes of shared memory."""
    return launch.stages * launch.depth * (launch.width * other.itemsize + launch.other * values.itemsize) <= limit


def choose(table: tuple[Launch, ...], clip: Clip, width: int, other: int, dtype: torch.dtype) -> Launch:
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
    clip: Clip, weight: Tensor, extra: Tensor | None, position: Tensor | None, scale: float, dtype: torch.dtype
) -> Tensor:
    """y [rows, d] in `dtype` for weight [P, d] in the dtype of the product, extra [d] float32, position [N, d]."""
    rows, width = clip.rows, weight.shape[1]
    y = torch.empty(rows, width, dtype=dtype, device=weight.device)
    if not y.numel():
        return y
    launch = choose(FORWARD, clip, width, rows, weight.dtype)
    t, h, run = clip.patch
    grid = (triton.cdiv(width, launch.width) * triton.cdiv(rows, launch.other),)
    with torch.cuda.device_of(y):
        project_kernel[grid](
            clip.values, weight, extra, position, clip.keep, y, rows, clip.kept, clip.keep_stride, width, *clip.grid,
            *clip.strides, scale, T=t, H=h, RUN=run, HAS_KEEP=clip.keep is not None, HAS_EXTRA=extra is not None,
            HAS_POSITION=position is not None, TYPE=TYPES[weight.dtype], COLUMNS=launch.width, TOKENS=launch.other,
            DEPTH=launch.depth, num_warps=launch.warps, num_stages=launch.stages,
        )  # fmt: skip
    return y


def parts(tiles: int, steps: int, slots: int) -> int:
    """How many parts a sum of `steps` iterations is cut into, so that `slots` programs at a time end together."""
    return min(
        range(1, min(8, steps) + 1), key=lambda n: triton.cdiv(tiles * n, slots) * (triton.cdiv(steps, n) + SPLIT_COST)
    )


def project_weight_gradient(
    clip: Clip, dy: Tensor, extra: Tensor | None, scale: float, dtype: torch.dtype, splits: int | None = None
) -> Tensor:
    """dW [P, d] in `dtype` for dy [rows, d] in the dtype of the product; `extra` [d] float32 is added to all rows."""
    rows, width = dy.shape
    t, h, run = clip.patch
    values = t * h * run
    if not dy.numel():
        return torch.zeros(values, width, dtype=dtype, device=dy.device)
    starts = torch.empty(rows, dtype=torch.int64, device=dy.device)
    launch = choose(WEIGHT, clip, width, values, dy.dtype)
    tiles = triton.cdiv(width, launch.width) * triton.cdiv(values, launch.other)
    steps = triton.cdiv(rows, launch.depth)
    if splits is None:
        splits = parts(tiles, steps, launch.per_sm * processors(dy.device))
    partial = torch.empty(splits, values, width, dtype=dtype if splits == 1 else torch.float32, device=dy.device)
    with torch.cuda.device_of(dy):
        starts_kernel[(triton.cdiv(rows, 256),)](
            clip.keep, starts, rows, clip.kept, clip.keep_stride, *clip.grid, *clip.strides,
            T=t, H=h, RUN=run, HAS_KEEP=clip.keep is not None, UNIT=clip.unit, BLOCK=256, num_warps=4,
        )  # fmt: skip
        weight_kernel[(tiles, splits)](
            clip.values, dy, extra, starts, partial, rows, width, *clip.strides[1:], scale,
            triton.cdiv(steps, splits) * launch.depth, T=t, H=h, RUN=run, UNIT=clip.unit, HAS_EXTRA=extra is not None,
            TYPE=TYPES[dy.dtype], COLUMNS=launch.width, VALUE_BLOCK=launch.other, DEPTH=launch.depth,
            num_warps=launch.warps, num_stages=launch.stages,
        )  # fmt: skip
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


def _forward(
    frames: Tensor, weight: Tensor, bias: Tensor | None, position: Tensor | None, keep: Tensor | None,
    patch: Sequence[int], scale: float, shift: float, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    t, h, w = patch
    offset = shift + scale * CENTRE.get(frames.dtype, 0)
    extra = None if bias is None else bias.float()
    if offset:
        sums = weight.sum(dim=0, dtype=torch.float32) * offset
        extra = sums if extra is None else sums + extra
    if extra is not None:
        extra = extra.contiguous()
    if position is not None:
        position = position.contiguous()
    clip = describe(frames, (t, h, w), keep)
    y = project_forward(clip, weight.to(dtype).contiguous(), extra, position, scale, weight.dtype)
    return y.view(frames.shape[0], clip.kept, weight.shape[1])


def _backward(
    grad: Tensor, frames: Tensor, weight: Tensor, bias: Tensor | None, position: Tensor | None, keep: Tensor | None,
    patch: Sequence[int], scale: float, shift: float, dtype: torch.dtype, needed: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of frames, weight, bias and position where `needed`, else empty. The clip is gathered again."""
    t, h, w = patch
    need_frames, need_weight, need_bias, need_position = needed
    offset = shift + scale * CENTRE.get(frames.dtype, 0)
    grad = grad.contiguous()
    d_frames = d_weight = d_bias = d_position = grad.new_empty(0)
    with torch.autocast(grad.device.type, enabled=False):
        if need_position and position is not None:
            of_positions = position_gradient(grad, keep, position.shape[0])
            d_position, sums = of_positions.to(position.dtype), of_positions.sum(dim=0)
        else:
            sums = grad.sum(dim=(0, 1), dtype=torch.float32)
        if need_bias and bias is not None:
            d_bias = sums.to(bias.dtype, copy=True)
        if need_weight:
            clip = describe(frames, (t, h, w), keep)
            extra = sums * offset if offset else None
            dy = grad.to(dtype).flatten(0, 1)
            d_weight = project_weight_gradient(clip, dy, extra, scale, weight.dtype)
        if need_frames:
            narrow = (grad * scale).to(dtype)
            d_frames = clip_gradient(narrow, weight.to(dtype), frames, (t, h, w), keep)
    return d_frames, d_weight, d_bias, d_position


def _fake_forward(
    frames: Tensor, weight: Tensor, bias: Tensor | None, position: Tensor | None, keep: Tensor | None,
    patch: Sequence[int], scale: float, shift: float, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    tokens = math.prod([size // step for size, step in zip(frames.shape[1:4], patch, strict=True)])
    kept = tokens if keep is None else keep.shape[-1]
    return weight.new_empty(frames.shape[0], kept, weight.shape[1])


def _fake_backward(
    grad: Tensor, frames: Tensor, weight: Tensor, bias: Tensor | None, position: Tensor | None, keep: Tensor | None,
    patch: Sequence[int], scale: float, shift: float, dtype: torch.dtype, needed: Sequence[bool],
) -> tuple[Tensor, ...]:  # fmt: skip
    inputs = (frames, weight, bias, position)
    return tuple(
        x.new_empty(x.shape) if need and x is not None else grad.new_empty(0)
        for x, need in zip(inputs, needed, strict=True)
    )


def _forward_flops(
    frames: torch.Size, weight: torch.Size, bias: Any, position: Any, keep: Any, *settings: Any, out_shape: torch.Size
) -> int:
    return 2 * math.prod(out_shape) * weight[0]


def _backward_flops(
    grad: torch.Size, frames: torch.Size, weight: torch.Size, *settings: Any, out_shape: Any, **more: Any
) -> int:
    return 2 * math.prod(grad) * weight[0] * sum(settings[-1][:2])  # of frames and weight, where needed


ARGUMENTS = (
    "Tensor frames, Tensor weight, Tensor? bias, Tensor? position, Tensor? keep, int[] patch, float scale, "
    "float shift, ScalarType dtype"
)
_project = operator(f"project({ARGUMENTS}) -> Tensor", _forward, _fake_forward, _forward_flops)
_project_backward = operator(
    f"project_backward(Tensor grad, {ARGUMENTS}, bool[] needed) -> (Tensor, Tensor, Tensor, Tensor)",
    _backward, _fake_backward, _backward_flops,
)  # fmt: skip


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:5])
    ctx.settings = inputs[5:]


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    needed = ctx.needs_input_grad[:4]
    gradients = _project_backward(grad, *ctx.saved_tensors, *ctx.settings, needed)
    return *present(gradients, needed), *[None] * 5


differentiable(_project, _save, _gradients, _project_backward)


def project(
    frames: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    patch: Patch,
    keep: Tensor | None,
    position: Tensor | None,
    scale: float,
    shift: float,
    dtype: torch.dtype,
) -> Tensor:
    ways_out = 'use another dtype, or impl="portable"'
    if dtype not in TYPES:
        raise TypeError(f'project: impl="triton" multiplies in bfloat16, float16 or float32, got {dtype}; {ways_out}')
    if dtype == torch.bfloat16 and interpreting():
        raise TypeError(f"project: Triton's interpreter cannot multiply in bfloat16; {ways_out}")
    y: Tensor = _project(frames, weight, bias, position, keep, patch, scale, shift, dtype)
    return y


def aot_cases() -> list[AotCase]:
    """The tiles at VATT's voxels (4 x 16 x 16 x 3 bytes) and waveforms (128 values of float32 or int16)."""
    inputs = (
        ("voxels", torch.uint8, "*u8", (4, 16, 48), "[32, 32, 224, 224, 3], d 512 to 1024"),
        ("waveform", torch.float32, "*fp32", (1, 1, 128), "[32, 153600], d 512 to 1024"),
        ("int16 waveform", torch.int16, "*i16", (1, 1, 128), "[32, 153600], d 512 to 1024"),
    )
    cases = []
    for dtype, kind in ((torch.bfloat16, "*bf16"), (torch.float16, "*fp16"), (torch.float32, "*fp32")):
        for clip, pixel, pointer, (t, h, run), shape in inputs:
            constants = {"T": t, "H": h, "RUN": run, "HAS_EXTRA": True, "TYPE": TYPES[dtype]}
            types = {"X": pointer, "EXTRA": "*fp32", "scale": "fp32"}
            for direction, table in (("forward", FORWARD), ("gradient", WEIGHT)):
                for launch in FLOAT32 if dtype == torch.float32 else table:
                    if not fits(launch, dtype, pixel, 227 * 1024):
                        continue
                    tile = {"COLUMNS": launch.width, "DEPTH": launch.depth}
                    kernel: Any
                    if direction == "forward":
                        kernel = project_kernel
                        special = {"W": kind, "POSITION": "*fp32", "KEEP": "*i32", "Y": kind}
                        tile |= {"TOKENS": launch.other, "HAS_KEEP": True, "HAS_POSITION": True}
                    else:
                        kernel = weight_kernel
                        special = {"DY": kind, "STARTS": "*i64", "DW": "*fp32"}
                        tile |= {"VALUE_BLOCK": launch.other, "UNIT": 16 // pixel.itemsize}
                    name = f"projection {direction} {clip} {kind[1:]} {launch.width}x{launch.other}"
                    cases.append(_aot_case(name, kernel, launch, types | special, constants | tile, shape))
    return cases


def _aot_case(
    name: str, kernel: Any, launch: Launch, types: dict[str, str], constexprs: dict[str, object], shape: str
) -> AotCase:
    signature = {
        argument: "constexpr" if argument in constexprs else types.get(argument, "i32") for argument in kernel.arg_names
    }
    divisible = (
        "width",
        "stride_b",
        "stride_t",
        "stride_h",
        "per_split",
        *(argument for argument in types if argument != "scale"),
    )
    return AotCase(
        name, kernel, signature, constexprs,
        tuple(argument for argument in divisible if argument in signature), launch.warps, launch.stages,
        launch.width >= 64 and constexprs["TYPE"] != tl.float32, shape,
    )  # fmt: skip
