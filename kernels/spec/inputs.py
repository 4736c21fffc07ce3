"""Random inputs of the cases of `spec`: in any dtype, on any device, also strided and expanded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import reference
from .spec_cases import Case


@dataclass(frozen=True)
class Inputs:
    """Arguments of one call by name: `leaves` are differentiable, `rest` is not."""

    leaves: dict[str, Tensor]
    rest: dict[str, Any]

    def to(self, dtype: torch.dtype) -> Inputs:
        """The same values, contiguous, in another dtype."""
        return Inputs({name: x.to(dtype).contiguous() for name, x in self.leaves.items()}, self.rest)

    def differentiable(self) -> Inputs:
        """The same memory and strides, as leaves of a new graph."""
        return Inputs({name: x.detach().requires_grad_() for name, x in self.leaves.items()}, self.rest)


class Draw:
    """Random tensors on one device: functions of the seed and of the order of calls."""

    def __init__(self, dtype: torch.dtype, device: torch.device | str, seed: int) -> None:
        self.dtype, self.device = dtype, torch.device(device)
        self.generator = torch.Generator(self.device).manual_seed(seed)

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        x = torch.randn(shape, generator=self.generator, device=self.device)
        return (x * scale).to(self.dtype)

    def integers(self, low: int, high: int, *shape: int, dtype: torch.dtype) -> Tensor:
        return torch.randint(low, high, shape, generator=self.generator, device=self.device, dtype=dtype)

    def mask(self, *shape: int, share: float = 0.6) -> Tensor:
        """bool, True with probability `share`; the first of every row (the AGG token) always."""
        mask = torch.rand(shape, generator=self.generator, device=self.device) < share
        mask[..., :1] = True
        return mask


def laid_out(x: Tensor, layout: str) -> Tensor:
    """x "contiguous", "strided" (every second element of a row, strangers between) or "expanded" (its first, repeated).

    Strangers are NaN or the largest integer, so that reading one shows.
    """
    if layout == "strided":
        stranger = math.nan if x.is_floating_point() else torch.iinfo(x.dtype).max
        return torch.stack([x, torch.full_like(x, stranger)], dim=-1)[..., 0]
    if layout == "expanded":
        return x[:1].expand_as(x)
    return x


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


def make_sample(case: Case, dtype: torch.dtype, device: torch.device | str, seed: int) -> Inputs:
    return Inputs({}, {**case.sizes, "seed": case.sizes["seed"] + seed, "device": device})


def make_gather(case: Case, dtype: torch.dtype, device: torch.device | str, seed: int) -> Inputs:
    s, draw = case.sizes, Draw(dtype, device, seed)
    rows = s["batch"] if s["per_sample"] else None
    keep = reference.sample_keep(s["tokens"], s["kept"], seed=3, offset=0, batch=rows, device=draw.device)
    if s["repeated"]:
        keep = keep // 2 * 2
    return Inputs({"x": laid_out(draw.normal(s["batch"], s["tokens"], s["width"]), s["layout"])}, {"keep": keep})


def lengths(case: Case) -> list[int]:
    return case.sizes["lengths"] or [case.sizes["tokens"]] * case.sizes["batch"]


def make_attention(case: Case, dtype: torch.dtype, device: torch.device | str, seed: int) -> Inputs:
    s, draw = case.sizes, Draw(dtype, device, seed)
    total = sum(lengths(case))
    outer = (total,) if s["lengths"] else (s["batch"], s["tokens"])
    # One product makes q, k and v side by side, as in the model.
    q, k, v = draw.normal(*outer, 3, s["heads"], s["width"]).unbind(-3)
    if s["layout"] != "model":
        q, k, v = (laid_out(x.contiguous(), s["layout"]) for x in (q, k, v))
    leaves = {"q": q, "k": k, "v": v}
    rest: dict[str, Any] = {"scale": s["scale"], "dropout_p": s["dropout"], "seed": 5, "max_distance": 64}
    if s["buckets"]:
        leaves["bias_table"] = draw.normal(s["buckets"], s["heads"])
    if s["mask"]:
        rest["key_mask"] = draw.mask(*outer)
        if s["mask"] == "one blind":
            rest["key_mask"][: 1 if not s["lengths"] else s["lengths"][0]] = False
        elif s["mask"] == "all blind":
            rest["key_mask"][:] = False
    if s["lengths"]:
        edges = torch.tensor([0, *s["lengths"]], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        rest |= {"cu_seqlens": edges.to(device), "max_seqlen": max(s["lengths"])}
    return Inputs(leaves, rest)


def make_loss(case: Case, dtype: torch.dtype, device: torch.device | str, seed: int) -> Inputs:
    s, draw = case.sizes, Draw(dtype, device, seed)
    clips, total = s["batch"], s["total"] or s["batch"]
    shape = (s["candidates"], s["width"])
    leaves = {"video": draw.normal(clips, s["width"]), "other": draw.normal(clips, *shape)}
    rest: dict[str, Any] = {"temperature": s["temperature"], "symmetric": s["symmetric"]}
    masks = {}
    if s["mask"]:
        masks = {name: draw.mask(total) & (s["mask"] != "nothing") for name in ("mask", "video_mask")}
    if s["total"]:
        leaves |= {"all_video": draw.normal(total, s["width"]), "all_other": draw.normal(total, *shape)}
        rest["offset"] = s["offset"]
        part = slice(s["offset"], s["offset"] + clips)
        rest |= {f"all_{name}": x for name, x in masks.items()}
        masks = {name: x[part] for name, x in masks.items()}
    return Inputs({name: laid_out(x, s["layout"]) for name, x in leaves.items()}, rest | masks)
