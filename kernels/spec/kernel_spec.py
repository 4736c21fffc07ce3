"""What every operation is checked and measured on: named cases, their inputs, FLOPs, bytes, and the error allowed.

Tests and benchmarks iterate over SPECS; a new case of an operation is one line here. An error is the 2-norm of the
difference from the literal operation in float64 (one wrong element shows in it, one unlucky rounding does not decide
it). Allowed is twice the error of the literal operation in the inputs' own dtype, plus a floor of a few roundings.

FLOPs and bytes are those that the docstrings of the operations derive. "Bytes" are each input and output once.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from . import reference
from .attention import attention
from .contrastive import contrastive_loss
from .projection import project_voxels, project_waveform
from .spec_cases import (
    ATTENTION,
    ATTENTION_VATT,
    GATHER,
    GATHER_VATT,
    LOSS,
    LOSS_VATT,
    SAMPLE,
    SAMPLE_VATT,
    VOXELS,
    VOXELS_VATT,
    WAVEFORM,
    WAVEFORM_VATT,
    Case,
)
from .spec_inputs import (
    Draw,
    Inputs,
    laid_out,
    lengths,
    make_attention,
    make_gather,
    make_loss,
    make_sample,
    make_voxels,
    make_waveform,
    voxel_counts,
)
from .tokens import gather_tokens, sample_keep

FACTOR = 2.0  # times the error of the literal operation in the same dtype
FLOOR = 2.0  # roundings of each element of the result


class Cost(NamedTuple):
    """Of one call, and of the backward to all differentiable inputs."""

    forward: int
    backward: int


class Error(NamedTuple):
    """Of one tensor: the distance from float64, what of it is allowed, and the norm of the exact tensor."""

    tensor: str
    error: float
    allowed: float
    size: float

    @property
    def green(self) -> bool:
        return self.error <= self.allowed  # False for NaN

    def __str__(self) -> str:
        return f"{self.tensor}: {self.error:.3g} > {self.allowed:.3g} allowed, of {self.size:.3g}"


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Within it memory that is allocated and not written holds NaN, or the largest integer (PyTorch fills it)."""
    before = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode("warn")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        torch.set_deterministic_debug_mode(before)


def _rounding(case: Case, tensor: str, exact: Tensor, grad: Tensor, inputs: Inputs, eps: float) -> float:
    return FLOOR * eps * float(exact.norm())


@dataclass(frozen=True)
class KernelSpec:
    """One operation.

    operation: the public function. make: (case, dtype of leaves, device, seed) -> its inputs. flops and bytes: of a
    case. small, vatt: what `cases()` and `shapes()` give. literal_form: the operation with every product in the inputs'
    dtype, where that is not what impl="reference" does. floor: (case, tensor, exact, incoming gradient, inputs, eps) ->
    what is allowed beside FACTOR times the literal error.
    """

    name: str
    operation: Callable[..., Tensor]
    make: Callable[[Case, torch.dtype, torch.device | str, int], Inputs]
    small: tuple[Case, ...]
    vatt: tuple[Case, ...]
    flops: Callable[[Case], Cost]
    bytes: Callable[[Case, torch.dtype], Cost]
    literal_form: Callable[[Inputs], Tensor] | None = None
    floor: Callable[[Case, str, Tensor, Tensor, Inputs, float], float] = _rounding

    def cases(self) -> tuple[Case, ...]:
        """Small ones, for correctness."""
        return self.small

    def shapes(self) -> tuple[Case, ...]:
        """Those of VATT, for measuring; the most important first."""
        return self.vatt

    def call(self, inputs: Inputs, impl: str | None) -> Tensor:
        return self.operation(**inputs.leaves, **inputs.rest, impl=impl)

    def literal(self, inputs: Inputs) -> Tensor:
        """The literal operation with every product in the inputs' dtype, as an eager model computes it."""
        return self.call(inputs, "reference") if self.literal_form is None else self.literal_form(inputs)


# what is allowed


@dataclass(frozen=True)
class Expected:
    """What any implementation of a case is compared with: the exact tensors and the literal ones' distances."""

    spec: KernelSpec
    case: Case
    inputs: Inputs
    grad: Tensor
    exact: dict[str, Tensor]
    literal: dict[str, Tensor]

    def errors(self, call: Callable[[Inputs], Tensor], *, poison: bool = True) -> list[Error]:
        """Of the output and of each gradient of `call`; with `poison` memory that it does not write holds NaN."""
        with poisoned_memory() if poison else nullcontext():
            got = results(call, self.inputs, self.grad, gradient_layout(self.case))
        eps = torch.finfo(self.grad.dtype).eps
        errors = []
        for name, exact in self.exact.items():
            this, literal = got[name], self.literal[name]
            size = float(exact.double().norm())
            if this.shape != exact.shape or this.dtype != literal.dtype:
                errors.append(Error(f"{name} ({this.dtype} {list(this.shape)})", math.inf, 0.0, size))
                continue
            allowed = 0.0
            if exact.is_floating_point():
                allowed = FACTOR * float((literal.double() - exact).norm())
                allowed += self.spec.floor(self.case, name, exact, self.grad, self.inputs, eps)
            errors.append(Error(name, float((this.double() - exact).norm()), allowed, size))
        return errors


def expect(
    spec: KernelSpec, case: Case, dtype: torch.dtype, device: torch.device | str = "cpu", seed: int = 0
) -> Expected:
    """Runs the literal operation in float64 and in `dtype` on the same values."""
    inputs = spec.make(case, dtype, device, seed)
    with torch.no_grad():
        shape = spec.literal(inputs).shape
    grad = Draw(dtype, device, seed + 1).normal(*shape)
    layout = gradient_layout(case)
    exact = results(lambda x: spec.call(x, "reference"), inputs.to(torch.float64), grad, layout)
    return Expected(spec, case, inputs, grad, exact, results(spec.literal, inputs, grad, layout))


def gradient_layout(case: Case) -> str:
    return str(case.sizes.get("gradient", "contiguous"))


def results(
    call: Callable[[Inputs], Tensor], inputs: Inputs, grad: Tensor, layout: str = "contiguous"
) -> dict[str, Tensor]:
    """The output, and the gradient of every leaf for the incoming gradient `grad`, laid out as `layout` says."""
    inputs = inputs.differentiable()
    out = call(inputs)
    if not inputs.leaves:
        return {"output": out}
    gradients = torch.autograd.grad(out, list(inputs.leaves.values()), laid_out(grad.to(out.dtype), layout))
    return {"output": out.detach(), **{f"gradient of {n}": g for n, g in zip(inputs.leaves, gradients, strict=True)}}


# projection


def _projection_counts(case: Case) -> tuple[int, int, int]:
    """Rows B K, values a patch P, tokens of the grid N."""
    s = case.sizes
    tokens, values = voxel_counts(s) if "frames" in s else (s["samples"] // s["patch"], s["patch"])
    return s["batch"] * (tokens if s["kept"] is None else s["kept"]), values, tokens


def _signal_gradient(case: Case) -> bool:
    return case.sizes["leaf"] and not case.sizes["integers"]


def _projection_flops(case: Case) -> Cost:
    rows, values, _ = _projection_counts(case)
    product = 2 * rows * values * case.sizes["width"]
    return Cost(product, 2 * product if _signal_gradient(case) else product)


def _projection_bytes(case: Case, dtype: torch.dtype) -> Cost:
    """Kept values of the signal, weight, output and, of each, the gradient; position where there is one."""
    rows, values, tokens = _projection_counts(case)
    s = case.sizes
    item = dtype.itemsize if s["leaf"] else 4
    if s["integers"]:
        item = 1 if "frames" in s else 2
    signal = rows * values * item
    others = (rows + values + (tokens if s["extras"] else 0)) * s["width"] * dtype.itemsize
    return Cost(signal + others, signal * (2 if _signal_gradient(case) else 1) + others)


# tokens


def _sample_bytes(case: Case, dtype: torch.dtype) -> Cost:
    return Cost(4 * (case.sizes["batch"] or 1) * case.sizes["kept"], 0)


def _gather_bytes(case: Case, dtype: torch.dtype) -> Cost:
    s = case.sizes
    row = s["batch"] * s["width"] * dtype.itemsize
    return Cost(2 * s["kept"] * row, (s["kept"] + s["tokens"]) * row)


# attention


def _attention_flops(case: Case) -> Cost:
    pairs = sum(n * n for n in lengths(case)) * case.sizes["heads"] * case.sizes["width"]
    return Cost(4 * pairs, 10 * pairs)


def _attention_floor(case: Case, tensor: str, exact: Tensor, grad: Tensor, inputs: Inputs, eps: float) -> float:
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


def _attention_bytes(case: Case, dtype: torch.dtype) -> Cost:
    """q, k, v, out; in the backward also the four gradients of them."""
    values = sum(lengths(case)) * case.sizes["heads"] * case.sizes["width"] * dtype.itemsize
    return Cost(4 * values, 8 * values)


# contrastive loss


def _literal_loss(inputs: Inputs) -> Tensor:
    """Products in the inputs' dtype; masks in float32, as -1e9 is infinite in float16."""
    x, rest = inputs.leaves, inputs.rest
    prefix = "all_" if "all_video" in x else ""
    masks = {name: rest.get(prefix + name) for name in ("mask", "video_mask")}
    return reference.contrastive_loss(
        x["video"], x["other"], x[f"{prefix}video"], x[f"{prefix}other"],
        mask=None if masks["mask"] is None else masks["mask"].float(),
        video_mask=None if masks["video_mask"] is None else masks["video_mask"].float(),
        temperature=rest["temperature"], symmetric=rest["symmetric"],
    ).float()  # fmt: skip


def _loss_floor(case: Case, tensor: str, exact: Tensor, grad: Tensor, inputs: Inputs, eps: float) -> float:
    """A score is at most 1 / temperature, and a loss is a difference of such; its rounding is that of an exponential.

    A gradient is one of softmaxes that may be larger than itself: |incoming| / temperature / |x|, with |x| = sqrt(D).
    """
    temperature = case.sizes["temperature"]
    if tensor == "output":
        return eps * max(FLOOR * float(exact.norm()), exact.numel() ** 0.5 / temperature)
    cancelling = float(grad.double().norm()) / temperature / case.sizes["width"] ** 0.5
    return eps / (2 * temperature) * max(float(exact.norm()), cancelling)


def _loss_flops(case: Case) -> Cost:
    """Two matrices of scores if others' batches are there, else one and its transpose."""
    s = case.sizes
    product = 2 * s["batch"] * (s["total"] or s["batch"]) * s["candidates"] * s["width"] * (2 if s["total"] else 1)
    return Cost(product, 4 * product)


def _loss_bytes(case: Case, dtype: torch.dtype) -> Cost:
    s = case.sizes
    vectors = (s["batch"] + s["total"]) * (1 + s["candidates"]) * s["width"] * dtype.itemsize
    return Cost(vectors, 2 * vectors)


def _nothing(case: Case) -> Cost:
    return Cost(0, 0)


SPECS = (
    KernelSpec("project_voxels", project_voxels, make_voxels, VOXELS, VOXELS_VATT,
               _projection_flops, _projection_bytes),
    KernelSpec("project_waveform", project_waveform, make_waveform, WAVEFORM, WAVEFORM_VATT,
               _projection_flops, _projection_bytes),
    KernelSpec("sample_keep", sample_keep, make_sample, SAMPLE, SAMPLE_VATT, _nothing, _sample_bytes),
    KernelSpec("gather_tokens", gather_tokens, make_gather, GATHER, GATHER_VATT, _nothing,
               _gather_bytes),
    KernelSpec("attention", attention, make_attention, ATTENTION, ATTENTION_VATT, _attention_flops,
               _attention_bytes, floor=_attention_floor),
    KernelSpec("contrastive_loss", contrastive_loss, make_loss, LOSS, LOSS_VATT, _loss_flops,
               _loss_bytes, _literal_loss, _loss_floor),
)  # fmt: skip
