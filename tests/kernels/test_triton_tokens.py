"""DropToken's Triton kernels: the same draws as everywhere, gathers bit for bit, gradients that add up without atomics.

Compiled on a GPU, else in Triton's interpreter (TRITON_INTERPRET=1).
"""

from __future__ import annotations

import os

import pytest
import torch
import vatt_kernels as vk
from helpers.interpreter.needs import few
from torch import Tensor

if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("Triton needs a GPU, or TRITON_INTERPRET=1 for its interpreter", allow_module_level=True)

from vatt_kernels.droptoken import triton_op as tokens_triton

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FLOATS = few(torch.bfloat16, torch.float32, torch.float16)
KEEPS = {
    "shared": torch.tensor([0, 2, 3, 9, 11], dtype=torch.int32),
    "shared, twice the same": torch.tensor([5, 0, 5, 5]),
    "each": torch.tensor([[11, 0, 5], [4, 4, 1], [3, 2, 1]]),
    "none": torch.zeros(0, dtype=torch.int64),
    "none each": torch.zeros(3, 0, dtype=torch.int32),
    "all backwards": torch.arange(12).flip(0),
    "each of a slice": torch.arange(36, dtype=torch.int32).view(3, 12)[:, ::4] % 12,
}


@pytest.fixture(autouse=True)
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is allocated and not written shows: as NaN, or as the largest integer."""
    empty = torch.empty

    def poisoned(*size, **options):
        x = empty(*size, **options)
        if x.dtype == torch.bool:
            return x.fill_(True)
        return x.fill_(float("nan") if x.is_floating_point() else torch.iinfo(x.dtype).max)

    monkeypatch.setattr(torch, "empty", poisoned)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


# draws


@pytest.mark.parametrize(
    ("tokens", "kept", "batch"),
    [(1568, 784, None), (1025, 1025, 2), (33, 16, 7), (1, 1, 2), (9, 0, 3), (0, 0, 2), (5, 2, 0), (1024, 1, None)],
)
@pytest.mark.parametrize(("seed", "offset"), [(0, 0), (-5, 3), (2**63 + 12345, 2**40 + 7), (2**31, 2**64 - 1), (1, 1)])
def test_draws_are_those_of_the_reference(tokens: int, kept: int, batch: int | None, seed: int, offset: int) -> None:
    expected, got = (
        vk.sample_keep(tokens, kept, seed=seed, offset=offset, batch=batch, device=DEVICE, impl=impl)
        for impl in ("reference", "triton")
    )
    assert got.dtype == expected.dtype == torch.int32
    assert got.device == expected.device
    assert torch.equal(got, expected)


def test_draws_on_this_device_are_those_of_the_cpu() -> None:
    on_cpu = vk.sample_keep(801, 600, seed=7, batch=4, impl="portable")
    assert torch.equal(vk.sample_keep(801, 600, seed=7, batch=4, device=DEVICE, impl="triton").cpu(), on_cpu)


# gathers


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("dtype", [*FLOATS, torch.float64, torch.int32, torch.uint8, torch.bool])
def test_gathering_moves_bits(keep: str, dtype: torch.dtype) -> None:
    x = (randn(3, 12, 300) * 10).to(dtype)
    index = KEEPS[keep].to(DEVICE)
    for layout in (x, x.transpose(1, 2).contiguous().transpose(1, 2), x[:1].expand(3, -1, -1), x[..., ::2]):
        expected, got = (vk.gather_tokens(layout, index, impl=impl) for impl in ("reference", "triton"))
        assert got.dtype == dtype
        assert torch.equal(got, expected)


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("width", [5, 300])
def test_gradients_of_a_gather_add_up(keep: str, dtype: torch.dtype, width: int) -> None:
    index = KEEPS[keep].to(DEVICE)
    x = randn(3, 12, width).to(dtype)
    gradients = [
        randn(3, width, index.shape[-1], seed=1).mT.to(dtype),
        randn(1, 1, width, seed=2).expand(3, index.shape[-1], width).to(dtype),
    ]
    for gradient in gradients:
        found = {}
        for name, impl, type_ in (("exact", "reference", torch.float64), ("triton", "triton", dtype)):
            leaf = x.to(type_, copy=True).requires_grad_()
            out = vk.gather_tokens(leaf, index, impl=impl)
            (found[name],) = torch.autograd.grad(out, leaf, gradient.to(type_))
        assert found["triton"].dtype == dtype
        # sums are made in float32 and rounded once; what fell out of the draw is exactly zero
        torch.testing.assert_close(found["triton"].double(), found["exact"], rtol=torch.finfo(dtype).eps, atol=1e-6)
        assert torch.equal(found["triton"] == 0, found["exact"] == 0)


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("dtype", [*FLOATS, torch.float64])
def test_sums_over_the_batch(keep: str, dtype: torch.dtype) -> None:
    index = KEEPS[keep].to(DEVICE)
    dy = randn(3, index.shape[-1], 300).to(dtype)
    expected = torch.zeros(12, 300, dtype=torch.float64, device=DEVICE)
    expected.index_add_(0, index.expand(3, -1).flatten().long(), dy.double().flatten(0, 1))
    got = tokens_triton.segment_sum(dy, index, 12, over_batch=True)
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(got.double(), expected, rtol=1e-6, atol=1e-6)


def test_a_token_of_many_samples_is_summed_in_float32() -> None:
    dy = torch.full((300, 2, 8), 0.1, dtype=torch.float16, device=DEVICE)
    got = tokens_triton.segment_sum(dy, torch.tensor([1, 3], device=DEVICE), 5, over_batch=True)
    expected = 300 * dy[0, 0].double()
    torch.testing.assert_close(got[[1, 3]].double(), expected.expand(2, 8), rtol=1e-6, atol=0)
    assert torch.equal(got[[0, 2, 4]], torch.zeros_like(got[:3]))


def test_empty_batches_and_rows_without_width() -> None:
    index = torch.tensor([1, 0], device=DEVICE)
    for shape in ((0, 4, 8), (2, 4, 0)):
        x = torch.zeros(shape, device=DEVICE, requires_grad=True)
        y = vk.gather_tokens(x, index, impl="triton")
        assert y.shape == (shape[0], 2, shape[2])
        assert torch.autograd.grad(y.sum(), x)[0].shape == shape


def test_complex_values_are_refused_with_a_way_out() -> None:
    with pytest.raises(TypeError, match=r"complex64.*portable"):
        vk.gather_tokens(
            torch.zeros(1, 2, 3, dtype=torch.complex64, device=DEVICE), torch.tensor([0], device=DEVICE), impl="triton"
        )
