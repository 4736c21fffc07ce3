"""What every operation is checked and measured on: named cases, their inputs, FLOPs, bytes, and the error allowed.

Tests and benchmarks iterate over SPECS; a new case of an operation is one line here. An error is the 2-norm of the
difference from the literal operation in float64 (one wrong element shows in it, one unlucky rounding does not decide
it). Allowed is twice the error of the literal operation in the inputs' own dtype, plus a floor of a few roundings.

FLOPs and bytes are those that the docstrings of the operations derive. "Bytes" are each input and output once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .cases import Case
from .inputs import Inputs

FLOOR = 2.0  # roundings of each element of the result


class Cost(NamedTuple):
    """Of one call, and of the backward to all differentiable inputs."""

    forward: int
    backward: int


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
