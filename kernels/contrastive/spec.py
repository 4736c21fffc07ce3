"""Cases, inputs, costs and rounding floor of the contrastive loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..spec.cases import Case
from ..spec.inputs import Draw, Inputs, laid_out
from ..spec.kernel_spec import FLOOR, Cost


def literal_loss(inputs: Inputs) -> Tensor:
    """Products in the inputs' dtype; masks in float32, as -1e9 is infinite in float16."""
    x, rest = inputs.leaves, inputs.rest
    prefix = "all_" if "all_video" in x else ""
    masks = {name: rest.get(prefix + name) for name in ("mask", "video_mask")}
    return reference.contrastive_loss(
        x["video"],
        x["other"],
        x[f"{prefix}video"],
        x[f"{prefix}other"],
        mask=None if masks["mask"] is None else masks["mask"].float(),
        video_mask=None if masks["video_mask"] is None else masks["video_mask"].float(),
        temperature=rest["temperature"],
        symmetric=rest["symmetric"],
    ).float()


def loss_floor(case: Case, tensor: str, exact: Tensor, grad: Tensor, inputs: Inputs, eps: float) -> float:
    """A score is at most 1 / temperature, and a loss is a difference of such; its rounding is that of an exponential.

    A gradient is one of softmaxes that may be larger than itself: |incoming| / temperature / |x|, with |x| = sqrt(D).
    """
    temperature = case.sizes["temperature"]
    if tensor == "output":
        return eps * max(FLOOR * float(exact.norm()), exact.numel() ** 0.5 / temperature)
    cancelling = float(grad.double().norm()) / temperature / case.sizes["width"] ** 0.5
    return eps / (2 * temperature) * max(float(exact.norm()), cancelling)


def loss_flops(case: Case) -> Cost:
    """Two matrices of scores if others' batches are there, else one and its transpose."""
    s = case.sizes
    product = 2 * s["batch"] * (s["total"] or s["batch"]) * s["candidates"] * s["width"] * (2 if s["total"] else 1)
    return Cost(product, 4 * product)


def loss_bytes(case: Case, dtype: torch.dtype) -> Cost:
    s = case.sizes
    vectors = (s["batch"] + s["total"]) * (1 + s["candidates"]) * s["width"] * dtype.itemsize
    return Cost(vectors, 2 * vectors)


def nce(name: str, **sizes: Any) -> Case:
    """`total`: clips of all ranks, 0 where this one is alone. `mask`: None, "some" or "nothing" valid."""
    small = {
        "batch": 7,
        "candidates": 5,
        "width": 16,
        "total": 0,
        "offset": 0,
        "mask": None,
        "symmetric": False,
        "temperature": 0.07,
        "layout": "contiguous",
    }
    return Case(name, small | sizes)


LOSS = (
    nce("MIL-NCE"),
    nce("NCE", candidates=1),
    nce("one clip", batch=1),
    nce("63 clips", batch=63, candidates=2, width=40),
    nce("130 clips, width 63", batch=130, candidates=1, width=63),
    nce("17 clips, width 256", batch=17, width=256),
    nce("masked", mask="some"),
    nce("nothing valid", mask="nothing"),
    nce("symmetric", symmetric=True),
    nce("symmetric, masked", symmetric=True, mask="some", candidates=1),
    nce("gathered", total=20, offset=9),
    nce("gathered, masked", total=20, offset=13, mask="some"),
    nce("gathered, symmetric, masked", total=66, offset=0, batch=33, symmetric=True, mask="some"),
    nce("strided vectors, expanded gradient", layout="strided", gradient="expanded"),
    nce("expanded vectors, strided gradient", layout="expanded", gradient="strided"),
    nce("low temperature", temperature=0.02),
)
LOSS_VATT = (
    nce("MIL-NCE, 2048 clips", batch=2048, width=256),
    nce("NCE, 2048 clips", batch=2048, candidates=1, width=512),
    nce("MIL-NCE, 65536 clips", batch=65_536, width=256),
    nce("MIL-NCE, 8192 clips", batch=8192, width=256),
    nce("MIL-NCE, 256 clips of 2048 gathered", batch=256, total=2048, offset=256, width=256),
    nce("NCE, 256 clips of 2048 gathered", batch=256, total=2048, offset=256, candidates=1, width=512),
    nce("MIL-NCE, 16384 clips", batch=16_384, width=256),
    nce("NCE, 16384 clips", batch=16_384, candidates=1, width=512),
)


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
