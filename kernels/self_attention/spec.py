"""Cases, inputs and costs of attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..spec.cases import HEADS, Case, kept_tokens
from ..spec.inputs import Draw, Inputs, laid_out
from ..spec.kernel_spec import FLOOR, Cost


def attention_flops(case: Case) -> Cost:
    pairs = sum(n * n for n in lengths(case)) * case.sizes["heads"] * case.sizes["width"]
    return Cost(4 * pairs, 10 * pairs)


def attention_bytes(case: Case, dtype: torch.dtype) -> Cost:
    """q, k, v, out; in the backward also the four gradients of them."""
    values = sum(lengths(case)) * case.sizes["heads"] * case.sizes["width"] * dtype.itemsize
    return Cost(4 * values, 8 * values)


def attend(name: str, **sizes: Any) -> Case:
    """`mask`: None, "some" keys hidden, "one blind" sequence that sees no key, "all blind". `lengths`: packed.

    `layout`: of q, k and v; "together" is one tensor of all three.
    """
    small = {
        "batch": 2,
        "tokens": 17,
        "heads": 2,
        "width": 16,
        "mask": None,
        "buckets": 0,
        "dropout": 0.0,
        "lengths": None,
        "scale": None,
        "layout": "model",
        "one_pass": False,
    }
    return Case(name, small | sizes)


PACKED = [5, 17, 0, 1, 40]


def lengths(case: Case) -> list[int]:
    return case.sizes["lengths"] or [case.sizes["tokens"]] * case.sizes["batch"]


ATTENTION = (
    attend("plain"),
    attend("plain, N = 63", tokens=63, heads=1),
    attend("plain, N = 0", tokens=0),
    attend("plain, N = 1", batch=1, tokens=1, heads=1, width=5),
    attend("T5 bias and dropout, N = 1", tokens=1, buckets=32, scale=1.0, dropout=0.3),
    attend("packed, all N = 1", lengths=[1, 0, 1]),
    attend("plain, N = 130", batch=1, tokens=130, heads=1, width=64),
    attend("plain, N = 65, D = 128", batch=1, tokens=65, heads=1, width=128),
    attend("plain, D = 24", tokens=33, width=24),
    attend("strided, with gradient", tokens=40, layout="strided", gradient="strided"),
    attend("expanded, with gradient", tokens=40, layout="expanded", gradient="expanded"),
    attend("key mask", mask="some"),
    attend("key mask, a blind sequence", tokens=63, heads=1, mask="one blind"),
    attend("key mask, all blind", mask="all blind"),
    attend("T5 bias and key mask", mask="some", buckets=32, scale=1.0),
    attend("T5 bias, far keys", batch=1, tokens=130, heads=1, buckets=32, scale=1.0),
    attend("dropout", dropout=0.3),
    attend("dropout, N = 65, D = 64", batch=1, tokens=65, heads=1, width=64, dropout=0.1),
    attend("dropout and key mask", tokens=63, heads=1, mask="one blind", dropout=0.3),
    attend("packed", lengths=PACKED),
    attend("packed, key mask", lengths=PACKED, mask="one blind", heads=1),
    attend("packed, everything", lengths=PACKED, mask="one blind", buckets=32, dropout=0.3, heads=1),
    attend("one tensor, dropout", tokens=40, layout="together", dropout=0.1),
    attend("one tensor, packed, T5 bias", lengths=PACKED, layout="together", buckets=32, scale=1.0),
    attend("one pass, N = 130, D = 64", batch=1, tokens=130, heads=1, width=64, layout="together", one_pass=True),
    attend("one pass, dropout, D = 24", tokens=70, width=24, dropout=0.1, one_pass=True),
    attend("one pass, packed, key mask", lengths=PACKED, mask="one blind", dropout=0.3, heads=1, one_pass=True),
)
ATTENTION_VATT = (
    *(
        attend(
            f"{model} {size}, {drop:.0%} dropped",
            batch=batch,
            heads=heads,
            width=64,
            tokens=kept_tokens(tokens, drop) + 1,
        )
        for size, batch, tokens in ((224, 32, 1568), (320, 8, 3200))
        for model, heads in HEADS.items()
        for drop in (0.5, 0.75, 0.0, 0.25)
    ),
    attend("text, T5 bias and key mask", batch=160, tokens=17, heads=8, width=64, mask="some", buckets=32, scale=1.0),
    *(
        attend(f"Base audio, {drop:.0%} dropped", batch=32, heads=12, width=64, tokens=kept_tokens(1200, drop) + 1)
        for drop in (0.5, 0.0)
    ),
    *(
        attend(
            f"Medium 224, {drop:.0%} dropped, dropout 0.1",
            batch=32,
            heads=16,
            width=64,
            dropout=0.1,
            tokens=kept_tokens(1568, drop) + 1,
        )
        for drop in (0.5, 0.0)
    ),
    attend("Medium 224, 50% dropped, key mask", batch=32, heads=16, width=64, tokens=785, mask="some"),
    attend(
        "packed, three modalities of the agnostic Medium",
        heads=16,
        width=64,
        lengths=[785] * 16 + [601] * 16 + [17] * 80,
    ),
)


def make_attention(case: Case, dtype: torch.dtype, device: torch.device | str, seed: int) -> Inputs:
    s, draw = case.sizes, Draw(dtype, device, seed)
    total = sum(lengths(case))
    outer = (total,) if s["lengths"] else (s["batch"], s["tokens"])
    # One product makes q, k and v side by side, as in the model.
    together = draw.normal(*outer, 3, s["heads"], s["width"])
    leaves = {"q": together} if s["layout"] == "together" else dict(zip("qkv", together.unbind(-3), strict=True))
    if s["layout"] not in ("model", "together"):
        leaves = {name: laid_out(x.contiguous(), s["layout"]) for name, x in leaves.items()}
    rest: dict[str, Any] = {"scale": s["scale"], "dropout_p": s["dropout"], "seed": 5, "max_distance": 64}
    rest["one_pass"] = s["one_pass"]
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


def attention_floor(case: Case, tensor: str, exact: Tensor, grad: Tensor, inputs: Inputs, eps: float) -> float:
    """A token that sees itself alone has P = 1, so that dS = dP - delta is exactly 0; both are rounded by themselves.

    Each is the product grad v, at most |grad| |v| / (1 - dropout), and dS is multiplied by scale |k| or scale |q|.
    """
    alone = max(lengths(case), default=0) <= 1 and case.sizes["mask"] != "all blind"
    other = {"gradient of q": "k", "gradient of k": "q", "gradient of bias_table": None}
    if not alone or tensor not in other:
        return FLOOR * eps * float(exact.norm())
    x, s = {name: leaf.double().norm(dim=-1) for name, leaf in inputs.leaves.items()}, case.sizes
    cancelling = grad.double().norm(dim=-1) * x["v"] / (1 - s["dropout"])
    name = other[tensor]
    if name is not None:
        cancelling *= x[name] * (s["width"] ** -0.5 if s["scale"] is None else s["scale"])
    return FLOOR * eps * float(cancelling.norm())
