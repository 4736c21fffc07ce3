"""Voxel and waveform projection in Triton: kept patches are gathered from the clip straight into the matrix product.

    y[m, n]  = scale * sum_p (x[m, p] - c) W[p, n] + extra[n] + position[keep[m], n]
    extra[n] = (shift + scale * c) * colsum(W)[n] + bias[n]
    dW[p, n] = scale * sum_m (x[m, p] - c) dy[m, n] + (shift + scale * c) * colsum(dy)[n]

c is 128 for bytes, else 0: small integers are exact operands in every dtype and need no rescaled copy of W. One launch
computes y from the clip as it lies in memory; nothing of the size of a patch matrix exists, in the backward neither.

Legend: B batch, K kept tokens, M = B K rows, N patches of the grid, P values a patch, d width. A patch is t*h lines of
`run` = w*C values that lie together.
FLOPs: 2 M P d forward and for dW each. Bytes: M P values (from L2 once for each tile of d), P d weights, M d results.
dW sums over M in `splits` parts of fixed order; bias and position gradients are sums over segments (as in
`droptoken/triton_op.py`). So two runs agree to the last bit. The gradient of a float clip is one product and one
scatter of kept patches: it stores [B, K, P] and [B, N, P] and is there for completeness, as no VATT training asks for
it.

Limits: bfloat16, float16, float32 products (float32 as IEEE, not TF32); no bfloat16 products in Triton's interpreter.
A clip whose lines do not begin at multiples of 16 bytes (a crop of a larger one) is copied first if that helps.
Source: as `projection`. All launch choices were chosen offline, by registers, spills, shared memory and useful area.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from ..aot_case import AotCase
from ..device import check_product
from ..registration import differentiable, operator, present
from .triton_kernels import project_kernel, weight_kernel
from .triton_launch import (
    CENTRE,
    FLOAT32,
    FORWARD,
    TYPES,
    WEIGHT,
    Patch,
    ProjectionLaunch,
    clip_gradient,
    clip_layout,
    fits,
    position_gradient,
    project_forward,
    project_weight_gradient,
)


def _forward(
    frames: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    position: Tensor | None,
    keep: Tensor | None,
    patch: Sequence[int],
    scale: float,
    shift: float,
    dtype: torch.dtype,
) -> Tensor:
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
    clip = clip_layout(frames, (t, h, w), keep)
    y = project_forward(clip, weight.to(dtype).contiguous(), extra, position, scale, weight.dtype)
    return y.view(frames.shape[0], clip.kept, weight.shape[1])


def _backward(
    grad: Tensor,
    frames: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    position: Tensor | None,
    keep: Tensor | None,
    patch: Sequence[int],
    scale: float,
    shift: float,
    dtype: torch.dtype,
    needed: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
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
            clip = clip_layout(frames, (t, h, w), keep)
            extra = sums * offset if offset else None
            dy = grad.to(dtype).flatten(0, 1)
            d_weight = project_weight_gradient(clip, dy, extra, scale, weight.dtype)
        if need_frames:
            narrow = (grad * scale).to(dtype)
            d_frames = clip_gradient(narrow, weight.to(dtype), frames, (t, h, w), keep)
    return d_frames, d_weight, d_bias, d_position


def _fake_forward(
    frames: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    position: Tensor | None,
    keep: Tensor | None,
    patch: Sequence[int],
    scale: float,
    shift: float,
    dtype: torch.dtype,
) -> Tensor:
    tokens = math.prod([size // step for size, step in zip(frames.shape[1:4], patch, strict=True)])
    kept = tokens if keep is None else keep.shape[-1]
    return weight.new_empty(frames.shape[0], kept, weight.shape[1])


def _fake_backward(
    grad: Tensor,
    frames: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    position: Tensor | None,
    keep: Tensor | None,
    patch: Sequence[int],
    scale: float,
    shift: float,
    dtype: torch.dtype,
    needed: Sequence[bool],
) -> tuple[Tensor, ...]:
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
    _backward,
    _fake_backward,
    _backward_flops,
)


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
    check_product("project", dtype)
    y: Tensor = _project(frames, weight, bias, position, keep, patch, scale, shift, dtype)
    return y


def aot_cases() -> list[AotCase]:
    """The tiles at VATT's voxels (4 x 16 x 16 x 3 bytes) and waveforms (128 values of float32, int16 or bfloat16)."""
    inputs = (
        ("voxels", torch.uint8, "*u8", (4, 16, 48), "[32, 32, 224, 224, 3], d 512 to 1024"),
        ("waveform", torch.float32, "*fp32", (1, 1, 128), "[32, 153600], d 512 to 1024"),
        ("int16 waveform", torch.int16, "*i16", (1, 1, 128), "[32, 153600], d 512 to 1024"),
        ("bfloat16 waveform", torch.bfloat16, "*bf16", (1, 1, 128), "[32, 153600], d 512 to 1024"),
    )
    cases = []
    for dtype, kind in ((torch.bfloat16, "*bf16"), (torch.float16, "*fp16"), (torch.float32, "*fp32")):
        for clip, pixel, pointer, (t, h, run), shape in inputs:
            # Values that are converted go from asynchronous copies into registers, which alone read what is copied.
            early = () if pixel == dtype else ("cp.async",)
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
                    cases.append(_aot_case(name, kernel, launch, types | special, constants | tile, shape, early))
    return cases


def _aot_case(
    name: str,
    kernel: Any,
    launch: ProjectionLaunch,
    types: dict[str, str],
    constexprs: dict[str, object],
    shape: str,
    early: tuple[str, ...],
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
        name,
        kernel,
        signature,
        constexprs,
        tuple(argument for argument in divisible if argument in signature),
        launch.warps,
        launch.stages,
        launch.width >= 64 and constexprs["TYPE"] != tl.float32,
        shape,
        early=early,
    )
