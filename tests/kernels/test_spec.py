"""Every case of every operation, made from SPECS: output and gradients against float64, in memory that was poisoned.

On a CPU the portable operations, with TRITON_INTERPRET=1 the Triton kernels interpreted, on a GPU the Triton kernels.
"""

from __future__ import annotations

import ast
import math
import os
from pathlib import Path

import pytest
import torch
import vatt_kernels
from helpers.interpreter.needs import few
from torch import Tensor
from vatt_kernels.catalog import SPECS, TRITON_FILES
from vatt_kernels.spec.cases import Case
from vatt_kernels.spec.error_budget import expect, poisoned_memory
from vatt_kernels.spec.inputs import Inputs
from vatt_kernels.spec.kernel_spec import KernelSpec

if torch.cuda.is_available():
    DEVICE, IMPL, DTYPES = "cuda", "triton", [torch.bfloat16, torch.float16, torch.float32]
elif os.environ.get("TRITON_INTERPRET") == "1":
    # The interpreter has no bfloat16; where it is made to have it, test_triton_as_gpu.py goes through all cases.
    DEVICE, IMPL, DTYPES = "cpu", "triton", few(torch.float32, torch.float16)
else:
    DEVICE, IMPL, DTYPES = "cpu", "portable", [torch.float32, torch.bfloat16, torch.float16]
BY_NAME = {spec.name: spec for spec in SPECS}
ALL = [pytest.param(spec, case, id=f"{spec.name}: {case.name}") for spec in SPECS for case in spec.cases()]
KERNELS = Path(__file__).resolve().parents[2] / "kernels"


@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered")  # the interpreter, in rows never stored
@pytest.mark.parametrize(("spec", "case"), ALL)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_within_budget(spec: KernelSpec, case: Case, dtype: torch.dtype) -> None:
    try:
        errors = expect(spec, case, dtype, DEVICE).errors(lambda inputs: spec.call(inputs, IMPL))
    except RuntimeError as error:
        if "pack_vnni2" not in str(error):
            raise
        pytest.skip("ATEN_CPU_CAPABILITY is below what this CPU has, for which PyTorch's own attention fails")
    red = [str(error) for error in errors if not error.green]
    assert not red, "; ".join(red)


def test_every_public_operation_has_a_spec() -> None:
    assert {spec.name for spec in SPECS} == set(vatt_kernels.__all__)
    assert all(getattr(vatt_kernels, spec.name) is spec.operation for spec in SPECS)
    for spec in SPECS:
        for cases in (spec.cases(), spec.shapes()):
            assert len({case.name for case in cases}) == len(cases) > 0


def test_no_case_is_lost() -> None:
    """Small cases and shapes of VATT of each operation: who adds one raises its number in the same commit."""
    assert {spec.name: (len(spec.cases()), len(spec.shapes())) for spec in SPECS} == {
        "project_voxels": (16, 16),
        "project_waveform": (11, 8),
        "sample_keep": (6, 12),
        "gather_tokens": (9, 4),
        "attention": (27, 23),
        "contrastive_loss": (16, 8),
    }


def test_every_file_with_ahead_of_time_cases_is_listed() -> None:
    """A file that is moved or renamed must not drop out of the check without a word."""
    files = [path for path in KERNELS.rglob("*.py") if "\ndef aot_cases(" in path.read_text(encoding="utf-8")]
    assert sorted(TRITON_FILES) == sorted(".".join(path.relative_to(KERNELS).with_suffix("").parts) for path in files)


def wrong(spec: KernelSpec, how: str, inputs: Inputs) -> Tensor:
    """The literal operation with one defect."""
    out = spec.call(inputs, "reference")
    first = next(iter(inputs.leaves.values()))
    if how == "last element never written":
        return torch.cat([out.flatten()[:-1], torch.empty(1, dtype=out.dtype)]).view(out.shape)
    if how == "one element a thousandth off":
        return out + torch.zeros_like(out).index_fill_(0, torch.tensor([0]), 1e-3 * float(out.detach().abs().max()))
    if how == "gradient a thousandth off":
        return out + 1e-3 * (first - first.detach()).sum()
    return out.double()


@pytest.mark.parametrize("name", ["project_voxels", "attention", "contrastive_loss", "gather_tokens"])
@pytest.mark.parametrize(
    "how", ["last element never written", "one element a thousandth off", "gradient a thousandth off", "another dtype"]
)
def test_the_budget_notices(name: str, how: str) -> None:
    spec = BY_NAME[name]
    expected = expect(spec, spec.cases()[0], torch.float32)
    assert all(error.green for error in expected.errors(lambda inputs: spec.call(inputs, "reference")))
    assert not all(error.green for error in expected.errors(lambda inputs: wrong(spec, how, inputs)))


def test_memory_is_poisoned_and_then_is_not() -> None:
    with poisoned_memory():
        assert torch.empty(3).isnan().all()
        assert torch.empty_like(torch.zeros(3, dtype=torch.bfloat16)).isnan().all()
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(
    ("name", "shape", "microseconds"),
    [
        ("project_voxels", "Base 224, 0% dropped", 299.7),
        ("project_voxels", "Base 224, 50% dropped", 149.9),
        ("project_voxels", "Base 224, 75% dropped", 74.9),
    ],
)
def test_floors_of_the_projection(name: str, shape: str, microseconds: float) -> None:
    """The forward at 790 TFLOP/s, counted by hand: 2 * 32 clips * kept voxels * 3072 values * 768."""
    spec = BY_NAME[name]
    case = next(case for case in spec.shapes() if case.name == shape)
    assert spec.flops(case).forward / 790e6 == pytest.approx(microseconds, abs=0.1)


def test_costs_grow_as_the_formulas_say() -> None:
    for name, less, more, ratio in (
        ("attention", "Base 224, 50% dropped", "Base 224, 0% dropped", (1569 / 785) ** 2),
        ("contrastive_loss", "MIL-NCE, 2048 clips", "MIL-NCE, 8192 clips", 16),
        ("gather_tokens", "agnostic Medium, 1568 tokens, 75% dropped", "agnostic Medium, 1568 tokens, 50% dropped", 2),
    ):
        spec = BY_NAME[name]
        one, other = (next(case for case in spec.shapes() if case.name == wanted) for wanted in (less, more))
        cost = (lambda case, spec=spec: spec.bytes(case, torch.bfloat16)) if name == "gather_tokens" else spec.flops
        assert cost(other).forward / cost(one).forward == pytest.approx(ratio)
        assert math.isfinite(spec.bytes(one, torch.bfloat16).backward)


def test_nothing_but_tests_and_benchmarks_imports_the_specs() -> None:
    """And it imports no Triton: a machine without a GPU reads it."""
    for path in (*KERNELS.rglob("*.py"), *(KERNELS.parent / "vatt").rglob("*.py")):
        names = [
            f"{getattr(node, 'module', '') or ''}.{alias.name}"
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
        ]
        if path.stem in ("spec", "catalog") or path.parent.name == "spec":
            assert not any("triton" in name for name in names), path
        else:
            assert not any(part.startswith("spec") for name in names for part in name.split(".")), path


def test_where_the_exact_result_is_zero_a_rounding_is_allowed_and_a_mistake_is_not() -> None:
    """Allowed is more than nothing, unless no arithmetic leads there (hidden, dropped or no elements at all)."""
    structural = ("K = 0", "N = 0", "blind", "nothing valid")
    for spec in SPECS:
        for case in spec.cases():
            expected = expect(spec, case, torch.float16)
            for error in expected.errors(lambda inputs, spec=spec: spec.call(inputs, "reference")):
                if error.size == 0 and not any(reason in case.name for reason in structural):
                    assert error.allowed > 0 or not expected.exact[error.tensor].is_floating_point(), (case.name, error)
    spec = BY_NAME["attention"]
    expected = expect(spec, next(case for case in spec.cases() if case.name == "plain, N = 1"), torch.float32)

    def off(inputs: Inputs) -> Tensor:
        return spec.call(inputs, "reference") + 1e-4 * (inputs.leaves["q"] - inputs.leaves["q"].detach())

    red = [error.tensor for error in expected.errors(off) if not error.green]
    assert red == ["gradient of q"]
