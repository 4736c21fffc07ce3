"""Voxel and waveform projection with token drop: only the kept patches are read, normalised and multiplied.

    y[b, i] = (scale * patch[b, keep[i]] + shift) @ weight + bias + position[keep[i]]

computed as `scale * (raw @ weight) + shift * colsum(weight) + bias + position[keep]` with raw integers as operands and
an epilogue in at least float32, so that no normalised copy of the input exists.

Legend: B batch, T H W frames rows columns, C channels, S samples, N patches of the whole grid, K kept patches,
P values a patch, d width.
FLOPs: 2 B K P d forward, as much again for the gradient of the weight (and of float inputs, where asked for).
Bytes: B K P values read once forward and once more in the backward, which gathers again instead of saving patches.
Limits: double backward is not defined; "triton" multiplies in bfloat16, float16 and float32, not in float64. The inner
two dimensions of `frames` (columns, channels) should be contiguous; any other layout is copied first.

Source: Akbari et al. 2021, section 3.1 (tokenisation, DropToken); patch order and VALID borders as the release.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..dispatch import implementation
from ..validation import check_keep, check_same_device, compute_dtype, shape_error, shape_of, without_autocast


def project_voxels(
    frames: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    patch: tuple[int, int, int] = (4, 16, 16),
    keep: Tensor | None = None,
    position: Tensor | None = None,
    scale: float | None = None,
    shift: float | None = None,
    impl: str | None = None,
) -> Tensor:
    """Cut a clip into voxels, keep some, project each linearly and add its position.

    Args:
        frames: [B, T, H, W, C] uint8 or floating point, channels last. What does not fill a patch at the far borders is
            ignored.
        weight: [t*h*w*C, d], voxel values in (t, h, w, channel) order.
        bias: [d].
        patch: voxel size (t, h, w).
        keep: [K] or [B, K] int32 or int64, voxels to keep in (t, h, w) order, columns fastest; None keeps all N.
        position: [N, d], added to each kept voxel's row.
        scale, shift: input normalisation `scale * x + shift`; defaults 2/255 and -1 for uint8, 1 and 0 for floats.
        impl: "reference", "portable", "triton" or None: by device, see the package's docstring.

    Returns:
        [B, K, d] in the dtype of `weight`. Under autocast the product runs in autocast's dtype, the rest does not.

    Raises:
        ValueError, TypeError, IndexError: a shape, a dtype or an index in `keep` does not fit.
        RuntimeError, ImportError: `impl` was given and cannot run here.
    """
    if frames.ndim != 5:
        shape_error("project_voxels", "frames", "[B, T, H, W, C], channels last", frames)
    if frames.dtype != torch.uint8 and not frames.is_floating_point():
        raise TypeError(f"project_voxels: frames must be uint8 or floating point, got {frames.dtype}")
    if len(patch) != 3 or min(patch) < 1:
        raise ValueError(f"project_voxels: patch must be three positive sizes (t, h, w), got {patch}")
    defaults = (2 / 255, -1.0) if frames.dtype == torch.uint8 else (1.0, 0.0)
    return _project("project_voxels", frames, weight, bias, patch, keep, position, (scale, shift), defaults, impl)


def project_waveform(
    samples: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    patch: int = 128,
    keep: Tensor | None = None,
    position: Tensor | None = None,
    scale: float | None = None,
    shift: float | None = None,
    impl: str | None = None,
) -> Tensor:
    """Cut a waveform into patches, keep some, project each linearly and add its position.

    Args:
        samples: [B, S] int16 or floating point. A rest that does not fill a patch is ignored.
        weight: [patch, d].
        bias: [d].
        patch: samples a patch.
        keep: [K] or [B, K] int32 or int64; None keeps all N = S // patch.
        position: [N, d], added to each kept patch's row.
        scale, shift: input normalisation `scale * x + shift`; defaults 1/32768 and 0 for int16, 1 and 0 for floats.
        impl: "reference", "portable", "triton" or None: by device, see the package's docstring.

    Returns:
        [B, K, d] in the dtype of `weight`. Under autocast the product runs in autocast's dtype, the rest does not.

    Raises:
        ValueError, TypeError, IndexError: a shape, a dtype or an index in `keep` does not fit.
        RuntimeError, ImportError: `impl` was given and cannot run here.
    """
    if samples.ndim != 2:
        shape_error("project_waveform", "samples", "[B, S]", samples)
    if samples.dtype != torch.int16 and not samples.is_floating_point():
        raise TypeError(f"project_waveform: samples must be int16 or floating point, got {samples.dtype}")
    if patch < 1:
        raise ValueError(f"project_waveform: patch must be a positive number of samples, got {patch}")
    defaults = (1 / 32768 if samples.dtype == torch.int16 else 1.0, 0.0)
    line = samples[:, None, None, :, None]  # a waveform is a video of one row and one channel
    return _project(
        "project_waveform", line, weight, bias, (1, 1, patch), keep, position, (scale, shift), defaults, impl
    )


def _project(
    op: str,
    frames: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    patch: tuple[int, int, int],
    keep: Tensor | None,
    position: Tensor | None,
    normalise: tuple[float | None, float | None],
    defaults: tuple[float, float],
    impl: str | None,
) -> Tensor:
    values = math.prod(patch) * frames.shape[-1]
    if not weight.is_floating_point():
        raise TypeError(f"{op}: weight must be floating point, got {weight.dtype}")
    if weight.ndim != 2 or weight.shape[0] != values:
        shape_error(op, "weight", f"[{values}, d] (a patch {patch} of {frames.shape[-1]} channels)", weight)
    tokens = math.prod([size // step for size, step in zip(frames.shape[1:4], patch, strict=True)])
    if tokens == 0:
        raise ValueError(f"{op}: the input {shape_of(frames)} is smaller than one patch {patch}")
    width = weight.shape[1]
    if bias is not None and bias.shape != (width,):
        shape_error(op, "bias", f"[{width}]", bias)
    if position is not None and position.shape != (tokens, width):
        shape_error(op, "position", f"[{tokens}, {width}], one row for each of the N patches before dropping", position)
    if keep is not None:
        check_keep(op, keep, frames.shape[0], tokens)
    check_same_device(op, frames=frames, weight=weight, bias=bias, keep=keep, position=position)
    scale, shift = (default if given is None else given for given, default in zip(normalise, defaults, strict=True))
    dtype = compute_dtype(weight, weight.dtype)
    compute = implementation("project", impl, frames.device, _load_triton)
    with without_autocast(weight.device):
        result: Tensor = compute(
            frames, weight, bias, patch=patch, keep=keep, position=position, scale=scale, shift=shift, dtype=dtype
        )
    return result


def _load_triton() -> Callable[..., Tensor]:
    from .triton_op import project

    return project
