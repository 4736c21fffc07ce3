"""Cases, inputs and costs of the voxel and waveform projections."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..spec.cases import WIDTHS, Case, kept_tokens
from ..spec.inputs import Draw, Inputs, laid_out
from ..spec.kernel_spec import Cost


def _projection_counts(case: Case) -> tuple[int, int, int]:
    """Rows B K, values a patch P, tokens of the grid N."""
    s = case.sizes
    tokens, values = voxel_counts(s) if "frames" in s else (s["samples"] // s["patch"], s["patch"])
    return s["batch"] * (tokens if s["kept"] is None else s["kept"]), values, tokens


def _signal_gradient(case: Case) -> bool:
    return case.sizes["leaf"] and not case.sizes["integers"]


def projection_flops(case: Case) -> Cost:
    rows, values, _ = _projection_counts(case)
    product = 2 * rows * values * case.sizes["width"]
    return Cost(product, 2 * product if _signal_gradient(case) else product)


def projection_bytes(case: Case, dtype: torch.dtype) -> Cost:
    """Kept values of the signal, weight, output and, of each, the gradient; position where there is one."""
    rows, values, tokens = _projection_counts(case)
    s = case.sizes
    item = dtype.itemsize if s["leaf"] else 4
    if s["integers"]:
        item = 1 if "frames" in s else 2
    signal = rows * values * item
    others = (rows + values + (tokens if s["extras"] else 0)) * s["width"] * dtype.itemsize
    return Cost(signal + others, signal * (2 if _signal_gradient(case) else 1) + others)


# `integers`: bytes or 16-bit samples; else floating point, which with `leaf` has a gradient that no training asks for.
CLIP = {
    "integers": True,
    "leaf": True,
    "kept": None,
    "per_sample": False,
    "extras": True,
    "layout": "contiguous",
    "weights": "contiguous",
}


def voxels(name: str, **sizes: Any) -> Case:
    """A grid of 2 x 3 x 2 voxels; the borders of the clip fill none."""
    small = {"batch": 2, "frames": 5, "rows": 13, "columns": 9, "patch": (2, 4, 4), "width": 7}
    return Case(name, small | CLIP | sizes)


def waveform(name: str, **sizes: Any) -> Case:
    return Case(name, {"batch": 2, "samples": 200, "patch": 16, "width": 9} | CLIP | sizes)


VOXELS = (
    voxels("all voxels"),
    voxels("some kept", kept=5),
    voxels("some kept of each clip", kept=5, per_sample=True),
    voxels("K = 0", kept=0),
    voxels("K = 0 of each clip", kept=0, per_sample=True),
    voxels("K = N", kept=12, per_sample=True),
    voxels("one clip, one voxel", batch=1, kept=1, width=1),
    voxels("no bias, no position", kept=5, extras=False),
    voxels("strided clip and weights", kept=5, layout="strided", weights="strided"),
    voxels("expanded clip", kept=5, layout="expanded"),
    voxels("strided gradient", kept=5, gradient="strided"),
    voxels("expanded gradient", kept=5, gradient="expanded"),
    voxels("floating-point clip", kept=5, per_sample=True, integers=False),
    voxels("strided floating-point clip", integers=False, layout="strided", gradient="strided"),
    voxels("voxels of 4 x 16 x 16, odd width", frames=8, rows=32, columns=48, patch=(4, 16, 16), width=33, kept=7),
    voxels("130 rows of width 63", batch=10, frames=4, rows=16, columns=20, width=63, kept=13, per_sample=True),
)
WAVEFORM = (
    waveform("all of 12 patches, 16-bit", samples=200),
    waveform("floating point, kept of each", integers=False, kept=5, per_sample=True),
    waveform("floating point without its gradient", integers=False, leaf=False, kept=5),
    waveform("N = 63", samples=63 * 16 + 3, kept=31, width=63),
    waveform("N = 1", batch=1, samples=17),
    waveform("N = 17", samples=17 * 16, kept=17, width=130),
    waveform("N = 130", samples=130 * 16, kept=65, width=17),
    waveform("K = 0", kept=0),
    waveform("strided samples", kept=5, layout="strided", weights="strided", gradient="strided"),
    waveform("expanded samples and gradient", integers=False, kept=5, layout="expanded", gradient="expanded"),
    waveform("patches of 128", samples=128 * 20, patch=128, kept=9, width=40),
)


def _vatt_voxels(size: int, batch: int, tokens: int) -> list[Case]:
    return [
        voxels(
            f"{model} {size}, {drop:.0%} dropped",
            batch=batch,
            frames=32,
            rows=size,
            columns=size,
            patch=(4, 16, 16),
            width=width,
            kept=kept_tokens(tokens, drop) if drop else None,
        )
        for model, width in WIDTHS.items()
        for drop in (0.5, 0.75, 0.0, 0.25)
    ]


VOXELS_VATT = (*_vatt_voxels(224, 32, 1568), *_vatt_voxels(320, 8, 3200))
WAVEFORM_VATT = tuple(
    waveform(
        f"{model}, {drop:.0%} dropped",
        batch=32,
        samples=153_600,
        patch=128,
        width=width,
        integers=False,
        leaf=False,
        kept=kept_tokens(1200, drop) if drop else None,
    )
    for model, width in WIDTHS.items()
    for drop in (0.5, 0.75, 0.0, 0.25)
)


def _projection(draw: Draw, sizes: dict[str, Any], name: str, signal: Tensor, values: int, tokens: int) -> Inputs:
    """Weight, bias, position and keep beside the clip or waveform `signal`."""
    width, kept = sizes["width"], sizes["kept"]
    signal = laid_out(signal, sizes["layout"])
    leaves = {name: signal} if signal.is_floating_point() and sizes["leaf"] else {}
    leaves["weight"] = laid_out(draw.normal(values, width, scale=values**-0.5), sizes["weights"])
    if sizes["extras"]:
        leaves["bias"] = draw.normal(width)
        leaves["position"] = laid_out(draw.normal(tokens, width), sizes["weights"])
    rest: dict[str, Any] = {} if name in leaves else {name: signal}
    if kept is not None:
        rows = sizes["batch"] if sizes["per_sample"] else None
        rest["keep"] = reference.sample_keep(tokens, kept, seed=3, offset=0, batch=rows, device=draw.device)
    return Inputs(leaves, rest | {"patch": sizes["patch"]})


def voxel_counts(sizes: dict[str, Any]) -> tuple[int, int]:
    """Tokens of the grid, values a patch."""
    t, h, w = sizes["patch"]
    return (sizes["frames"] // t) * (sizes["rows"] // h) * (sizes["columns"] // w), t * h * w * 3


def make_voxels(case: Case, dtype: torch.dtype, device: torch.device | str, seed: int) -> Inputs:
    s, draw = case.sizes, Draw(dtype, device, seed)
    shape = (s["batch"], s["frames"], s["rows"], s["columns"], 3)
    frames = draw.integers(0, 256, *shape, dtype=torch.uint8) if s["integers"] else draw.normal(*shape)
    tokens, values = voxel_counts(s)
    return _projection(draw, s, "frames", frames, values, tokens)


def make_waveform(case: Case, dtype: torch.dtype, device: torch.device | str, seed: int) -> Inputs:
    s, draw = case.sizes, Draw(dtype, device, seed)
    shape = (s["batch"], s["samples"])
    samples = draw.integers(-(2**15), 2**15, *shape, dtype=torch.int16) if s["integers"] else draw.normal(*shape)
    if not s["integers"] and not s["leaf"]:
        samples = samples.float()  # as a loader gives them
    return _projection(draw, s, "samples", samples, s["patch"], s["samples"] // s["patch"])
