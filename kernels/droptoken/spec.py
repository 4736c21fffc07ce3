"""Cases, inputs and costs of drawing and gathering kept tokens."""

from __future__ import annotations

from typing import Any

import torch

from .. import reference
from ..spec.cases import Case, kept_tokens
from ..spec.inputs import Draw, Inputs, laid_out
from ..spec.kernel_spec import Cost


def sample_bytes(case: Case, dtype: torch.dtype) -> Cost:
    return Cost(4 * (case.sizes["batch"] or 1) * case.sizes["kept"], 0)


def gather_bytes(case: Case, dtype: torch.dtype) -> Cost:
    s = case.sizes
    row = s["batch"] * s["width"] * dtype.itemsize
    return Cost(2 * s["kept"] * row, (s["kept"] + s["tokens"]) * row)


def no_flops(case: Case) -> Cost:
    return Cost(0, 0)


def sample(tokens: int, kept: int, batch: int | None = None, seed: int = 0, offset: int = 0) -> Case:
    rows = "one draw" if batch is None else f"{batch} draws"
    name = f"{kept} of {tokens}, {rows}, seed {seed}, offset {offset}"
    return Case(name, {"tokens": tokens, "kept": kept, "batch": batch, "seed": seed, "offset": offset})


def gather(name: str, **sizes: Any) -> Case:
    small = {"batch": 3, "tokens": 17, "kept": 5, "width": 13, "per_sample": False, "repeated": False}
    return Case(name, small | {"layout": "contiguous"} | sizes)


SAMPLE = (
    sample(63, 31),
    sample(130, 65, batch=3, seed=-5, offset=3),
    sample(17, 0, batch=2),
    sample(17, 17, batch=2),
    sample(1, 1, seed=2**40, offset=2**33),
    sample(1568, 784, batch=2, seed=7),
)
GATHER = (
    gather("shared draw"),
    gather("draw for each", per_sample=True),
    gather("one sample, N = 63", batch=1, tokens=63, kept=31, width=130),
    gather("N = 1", tokens=1, kept=1),
    gather("K = 0", kept=0),
    gather("K = N", kept=17, per_sample=True),
    gather("repeated indices", kept=17, per_sample=True, repeated=True),
    gather("strided", layout="strided", gradient="strided"),
    gather("expanded", layout="expanded", gradient="expanded", per_sample=True),
)
SAMPLE_VATT = tuple(
    sample(tokens, kept_tokens(tokens, drop), batch)
    for tokens in (1568, 3200, 1200)
    for drop in (0.5, 0.75)
    for batch in (None, 32)
)
GATHER_VATT = tuple(
    gather(
        f"agnostic Medium, {tokens} tokens, {drop:.0%} dropped",
        batch=32,
        tokens=tokens,
        width=1024,
        kept=kept_tokens(tokens, drop),
    )
    for tokens in (1568, 1200)
    for drop in (0.5, 0.75)
)


def make_sample(case: Case, dtype: torch.dtype, device: torch.device | str, seed: int) -> Inputs:
    return Inputs({}, {**case.sizes, "seed": case.sizes["seed"] + seed, "device": device})


def make_gather(case: Case, dtype: torch.dtype, device: torch.device | str, seed: int) -> Inputs:
    s, draw = case.sizes, Draw(dtype, device, seed)
    rows = s["batch"] if s["per_sample"] else None
    keep = reference.sample_keep(s["tokens"], s["kept"], seed=3, offset=0, batch=rows, device=draw.device)
    if s["repeated"]:
        keep = keep // 2 * 2
    return Inputs({"x": laid_out(draw.normal(s["batch"], s["tokens"], s["width"]), s["layout"])}, {"keep": keep})
