"""The error allowed: distances from float64 of an implementation and of the literal operation."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .cases import Case
from .inputs import Draw, Inputs, laid_out
from .kernel_spec import KernelSpec

FACTOR = 2.0  # times the error of the literal operation in the same dtype


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
