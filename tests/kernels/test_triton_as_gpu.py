"""Every case of every operation in an interpreter that computes and orders like a GPU, bfloat16 first of all.

Needs TRITON_INTERPRET=1. VATT_GPU_DTYPES names the dtypes, one or more of bfloat16, float16, float32 with commas
between; the first is what there is time for always.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import vatt_kernels as vk
from vatt_kernels.catalog import SPECS
from vatt_kernels.spec.cases import Case
from vatt_kernels.spec.error_budget import expect
from vatt_kernels.spec.kernel_spec import KernelSpec

if os.environ.get("TRITON_INTERPRET") != "1" or torch.cuda.is_available():
    pytest.skip("changes Triton's interpreter: needs TRITON_INTERPRET=1 and no GPU", allow_module_level=True)

import triton
import triton.language as tl
from helpers.interpreter import as_gpu
from triton.runtime.errors import InterpreterError

DTYPES = os.environ.get("VATT_GPU_DTYPES", "bfloat16").split(",")
ALL = [pytest.param(spec, case, id=f"{spec.name}: {case.name}") for spec in SPECS for case in spec.cases()]


@pytest.fixture
def problems() -> Iterator[list[str]]:
    with pytest.MonkeyPatch.context() as patch:
        yield as_gpu.install(patch)


@pytest.mark.filterwarnings("ignore:(overflow|invalid value|divide by zero) encountered")  # in rows never stored
@pytest.mark.parametrize(("spec", "case"), ALL)
@pytest.mark.parametrize("dtype", DTYPES)
def test_within_budget_as_on_a_gpu(spec: KernelSpec, case: Case, dtype: str, problems: list[str]) -> None:
    errors = expect(spec, case, getattr(torch, dtype), "cpu").errors(lambda inputs: spec.call(inputs, "triton"))
    red = [str(error) for error in errors if not error.green]
    assert not red, "; ".join(red)
    assert problems == []


def test_bfloat16_is_rounded_to_nearest_even_as_torch_does() -> None:
    x = torch.cat(
        [torch.randn(10_000, generator=torch.Generator().manual_seed(0)) * 10.0**p for p in range(-40, 39, 3)]
    )
    x = torch.cat([x, torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, 0.0, -0.0, torch.inf, -torch.inf, torch.nan])])
    bits = as_gpu.narrowed(x.numpy())
    torch.testing.assert_close(
        torch.from_numpy(as_gpu.widened(bits)), x.bfloat16().float(), rtol=0, atol=0, equal_nan=True
    )


@triton.jit
def faulty_kernel(X, Y, n, FAULT: tl.constexpr, BLOCK: tl.constexpr):
    program = tl.program_id(0)
    at = program * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(X + at, mask=at < n + (FAULT == "load"))
    if FAULT == "race":
        tl.store(Y + tl.arange(0, BLOCK), x)
    elif FAULT == "twice":
        tl.store(Y + at // 2, x, mask=at < n)
    elif FAULT == "neighbour":
        tl.store(Y + at, x + tl.load(Y + (at + BLOCK) % n, mask=at < n), mask=at < n)
    else:
        tl.store(Y + at + (FAULT == "store"), x, mask=at < n)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("none", []),
        ("load", ["load outside of all tensors (1 elements)"]),
        ("store", ["store outside of all tensors (1 elements)"]),
        ("race", ["two programs write one address"]),
        ("twice", ["one store writes an address twice"]),
        ("neighbour", ["reads what another program wrote", "writes what another program has read"]),
    ],
)
def test_faults_are_noticed(fault: str, said: list[str], problems: list[str]) -> None:
    room = torch.zeros(256)
    x, y = room[:31], room[128 : 128 + 31]
    faulty_kernel[(4,)](x, y, 31, FAULT=fault, BLOCK=8)
    assert sorted(problems) == [f"faulty_kernel: {line}" for line in said]


@triton.jit
def order_kernel(ORDER, COUNT):
    """Programs that run at once may not do this; one after the other they show their order."""
    number = tl.load(COUNT)
    tl.store(ORDER + number, tl.program_id(0))
    tl.store(COUNT, number + 1)


def test_programs_run_in_another_order(problems: list[str]) -> None:
    order, count = torch.zeros(32, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    order_kernel[(32,)](order, count)
    assert order.tolist() != list(range(32)) == sorted(order.tolist())
    assert problems


@triton.jit
def inexact_kernel(X, EXP2, QUOTIENT, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    x = tl.load(X + at)
    tl.store(EXP2 + at, tl.exp2(x))
    tl.store(QUOTIENT + at, 1.0 / x)


@pytest.mark.usefixtures("problems")
def test_exp2_and_division_are_as_good_as_those_of_a_gpu() -> None:
    x = torch.linspace(0.1, 7.3, 1024)
    found = torch.empty(2, 1024)
    inexact_kernel[(1,)](x, found[0], found[1], BLOCK=1024)
    exact = torch.stack([x.double().exp2(), 1 / x.double()])
    error = ((found - exact) / exact).abs().amax(dim=1)
    assert (error > 2.0**-24).all()  # correctly rounded would be below
    assert (error < torch.tensor([2.0**-21, 2.0**-22])).all()


@pytest.mark.usefixtures("problems")
def test_an_index_that_no_token_has_stops_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU indices are not read before the launch."""
    monkeypatch.setattr("vatt_kernels.droptoken.api.check_keep", lambda *_: None)
    for wrong in (5, -1):
        with pytest.raises(InterpreterError, match="index that no token has"):
            vk.gather_tokens(torch.zeros(2, 5, 3), torch.tensor([0, wrong]), impl="triton")


@pytest.mark.usefixtures("problems")
def test_a_sequence_longer_than_stated_stops_the_kernel() -> None:
    from vatt_kernels.self_attention.triton_forward import attention_forward

    q, edges = torch.zeros(40, 1, 16), torch.tensor([0, 35, 40], dtype=torch.int32)
    with pytest.raises(InterpreterError, match="longer than max_seqlen"):
        attention_forward(
            q,
            q,
            q,
            key_mask=None,
            bias_table=None,
            max_distance=64,
            cu_seqlens=edges,
            max_seqlen=33,
            scale=1.0,
            dropout_p=0.0,
            seed=None,
            dropout_version=2,
        )


def test_the_changes_are_undone() -> None:
    with pytest.MonkeyPatch.context() as patch:
        as_gpu.install(patch)
        assert vk.attention(*[torch.zeros(1, 3, 1, 16, dtype=torch.bfloat16)] * 3).dtype == torch.bfloat16
    with pytest.raises(TypeError, match="cannot multiply in bfloat16"):
        vk.attention(*[torch.zeros(1, 3, 1, 16, dtype=torch.bfloat16)] * 3)
    assert np.exp2(np.float32(3)) == 8
