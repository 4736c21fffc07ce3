"""Attention in Triton against the literal one: forward and all gradients, in the interpreter or on a GPU.

Errors are measured against the literal operation in float64, in the 2-norm. The kernel may be at most twice as far off
as the literal one in the same dtype, plus two roundings of each element.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
import vatt_kernels as vk
from helpers.interpreter.needs import floats
from torch import Tensor
from vatt_kernels import reference

CUDA = torch.cuda.is_available()
if not CUDA and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a CUDA device, or TRITON_INTERPRET=1 before Python starts", allow_module_level=True)
DEVICE = "cuda" if CUDA else "cpu"
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "mask": {"mask": True},
    "bias": {"bias": True, "scale": 1.0},
    "dropout": {"dropout_p": 0.3, "seed": 4},
    "everything": {"mask": True, "bias": True, "dropout_p": 0.3, "seed": -(2**40)},
}
Operation = Callable[..., Tensor]


@pytest.fixture(autouse=True)
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel forgets to write is NaN."""
    empty = torch.empty

    def poisoned(*shape: Any, **options: Any) -> Tensor:
        x = empty(*shape, **options)
        return x.fill_(torch.nan) if x.is_floating_point() else x

    monkeypatch.setattr(torch, "empty", poisoned)
    monkeypatch.setattr(torch, "empty_like", lambda x: poisoned(x.shape, dtype=x.dtype, device=x.device))


def randn(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    x = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * scale
    return x.to(DEVICE)


def results(operation: Operation, leaves: list[Tensor]) -> list[Tensor]:
    """The output and the gradient of each leaf, for a strided incoming gradient."""
    inputs = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    out = operation(*inputs)
    grad = randn(*out.mT.shape, seed=99).mT
    return [out.detach(), *torch.autograd.grad(out, inputs, grad.to(out.dtype))]


def assert_within_budget(operation: Operation, leaves: list[Tensor], dtype: torch.dtype) -> None:
    """`operation(impl, *leaves)`, all from the leaves rounded to `dtype`."""
    rounded = [leaf.to(dtype) for leaf in leaves]
    exact = results(lambda *x: operation("reference", *x), [leaf.double() for leaf in rounded])
    literal = results(lambda *x: operation("reference", *x), rounded)
    got = results(lambda *x: operation("triton", *x), rounded)
    for index, (e, r, t) in enumerate(zip(exact, literal, got, strict=True)):
        assert t.dtype == r.dtype
        assert t.shape == r.shape
        allowed = 2 * float((r.double() - e).norm()) + 2 * torch.finfo(dtype).eps * float(e.norm())
        error = float((t.double() - e).norm())
        assert error <= allowed, f"{'output' if index == 0 else f'gradient {index - 1}'}: {error:.3g} > {allowed:.3g}"


def attend(name: str, shape: tuple[int, ...], edges: list[int] | None = None, **more: Any) -> Operation:
    settings = VARIANTS[name] | more
    mask = None
    if settings.pop("mask", False):
        mask = (torch.rand(shape[:-2], generator=torch.Generator().manual_seed(3)) > 0.4).to(DEVICE)
        if edges is not None or shape[0] > 1:
            mask[: (1 if edges is None else edges[1])] = False  # a whole sequence without keys
    with_bias = settings.pop("bias", False)
    cu_seqlens = None if edges is None else torch.tensor(edges, dtype=torch.int32, device=DEVICE)

    def operation(impl: str, q: Tensor, k: Tensor, v: Tensor, *table: Tensor) -> Tensor:
        bias = table[0] if with_bias else None
        out = vk.attention(
            q, k, v, key_mask=mask, bias_table=bias, max_distance=9, cu_seqlens=cu_seqlens, impl=impl, **settings
        )
        return out + 0 * sum(x.sum() for x in table)  # so that the table has a gradient in any case

    return operation


def leaves_of(shape: tuple[int, ...]) -> list[Tensor]:
    return [*(randn(*shape, seed=seed) for seed in range(3)), randn(8, shape[-2], seed=4)]


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("dtype", floats())
def test_packed(name: str, dtype: torch.dtype) -> None:
    lengths, heads = [21, 40, 0, 1], 1
    edges = [0, *torch.tensor(lengths).cumsum(0).tolist()]
    shape = (sum(lengths), heads, 16)
    assert_within_budget(attend(name, shape, edges), leaves_of(shape), dtype)


def test_packed_lengths_may_be_bounded_from_above() -> None:
    shape = (38, 1, 16)
    operation = attend("everything", shape, [0, 33, 38], max_seqlen=70)
    assert_within_budget(operation, leaves_of(shape), torch.float16)


@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize("width", [64, 128])
def test_every_column_of_the_launch_tables(architecture: int, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from vatt_kernels.self_attention import triton_backward, triton_forward

    for module in (triton_forward, triton_backward):
        monkeypatch.setattr(module, "architecture", lambda columns, device: architecture)
    shape = (1, 70, 1, width)
    for operation in (attend("plain", shape), attend("dropout", shape, mask=True)):
        assert_within_budget(operation, leaves_of(shape), torch.float16)


def test_any_layout() -> None:
    """Slices of one projection, heads before tokens, a value that all samples and heads share, a transposed width."""

    def operation(impl: str, packed: Tensor, shared: Tensor, turned: Tensor) -> Tensor:
        q, k, _ = packed.permute(1, 0, 3, 2, 4).unbind(0)
        values = shared.expand(2, 37, 3, 16)
        return vk.attention(q, k, values, impl=impl) + vk.attention(turned.mT, k, q, impl=impl)

    leaves = [randn(2, 3, 3, 37, 16), randn(1, 37, 1, 16, seed=1), randn(2, 37, 16, 3, seed=2)]
    assert_within_budget(operation, leaves, torch.float16)


@pytest.mark.parametrize("scale", [-0.7, 0.0, 2.0])
def test_any_scale(scale: float) -> None:
    assert_within_budget(attend("mask", (2, 40, 1, 16), scale=scale), leaves_of((2, 40, 1, 16)), torch.float32)


@pytest.mark.parametrize("tokens", [17, 40])
def test_rows_without_keys_are_zero_and_give_no_gradient(tokens: int) -> None:
    mask = torch.ones(2, tokens, dtype=torch.bool, device=DEVICE)
    mask[0] = False
    leaves = [randn(2, tokens, 2, 16, seed=seed) for seed in range(3)]
    got = results(lambda q, k, v: vk.attention(q, k, v, key_mask=mask, impl="triton"), [x.float() for x in leaves])
    for x in got:
        assert not x[0].any()
        assert x[1].all()


@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered")  # in rows that are never stored
@pytest.mark.parametrize("tokens", [17, 40])
@pytest.mark.parametrize("sign", [1, -1])
def test_scores_far_from_zero_stay_finite(tokens: int, sign: int) -> None:
    """Scores near +-4000: the exponential of one that is masked, or past the end, must not leak as inf * 0."""
    mask = (torch.arange(tokens, device=DEVICE) % 3 > 0).expand(1, -1)
    q, k = 8 + randn(1, tokens, 1, 64), sign * (8 + randn(1, tokens, 1, 64, seed=1))
    leaves = [q, k, randn(1, tokens, 1, 64, seed=2)]
    for key_mask in (None, mask):

        def operation(impl: str, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = key_mask) -> Tensor:
            return vk.attention(q, k, v, key_mask=key_mask, scale=1.0, impl=impl)

        assert_within_budget(operation, leaves, torch.float32)


@pytest.mark.parametrize(("p", "seed"), [(1e-9, 0), (0.1, 7), (0.5, 2**40 + 1), (0.9, -3), (1 - 1e-12, 1)])
@pytest.mark.parametrize("tokens", [20, 40])
def test_dropout_mask_is_that_of_the_specification(p: float, seed: int, tokens: int) -> None:
    """Equal scores and unit vectors as values make the output the mask itself, in the dense batch and packed."""
    zeros = torch.zeros(2, tokens, 2, tokens, device=DEVICE)
    units = torch.eye(tokens, device=DEVICE)[None, :, None].expand(2, -1, 2, -1)
    expected = reference.dropout_keep(torch.tensor([0, tokens]), tokens, 2, p, seed).transpose(1, 2).to(DEVICE)
    out = vk.attention(zeros, zeros, units, dropout_p=p, seed=seed, impl="triton")
    assert torch.equal(out > 0, expected)
    edges = torch.tensor([0, tokens, 2 * tokens], device=DEVICE)
    flat = [x.flatten(0, 1) for x in (zeros, zeros, units)]
    packed = vk.attention(*flat, cu_seqlens=edges, dropout_p=p, seed=seed, impl="triton")
    assert torch.equal(packed.view_as(out), out)


@pytest.mark.parametrize("version", [1, 2])
def test_a_seed_is_read_from_its_tensor_at_each_call(version: int) -> None:
    """So that a captured launch drops anew when the tensor's value changes."""
    q, seed = randn(1, 40, 1, 16).float(), torch.zeros(1, dtype=torch.int64, device=DEVICE)
    settings = {"dropout_p": 0.3, "dropout_version": version, "impl": "triton"}
    outs = []
    for value in (3, -(2**40), 3):
        seed.fill_(value)
        outs.append(vk.attention(q, q, q, seed=seed, **settings))
        assert torch.equal(outs[-1], vk.attention(q, q, q, seed=value, **settings))
        kept = vk.sample_keep(90, 30, seed=seed, device=DEVICE, impl="triton")
        assert torch.equal(kept, vk.sample_keep(90, 30, seed=value, device=DEVICE, impl="reference"))
    assert not torch.equal(outs[0], outs[1])
    assert torch.equal(outs[0], outs[2])


def test_masks_of_version_1_are_those_of_the_specification() -> None:
    zeros, units = torch.zeros(1, 40, 1, 40, device=DEVICE), torch.eye(40, device=DEVICE)[None, :, None]
    expected = reference.dropout_keep(torch.tensor([0]), 40, 1, 0.3, 9, version=1).transpose(1, 2).to(DEVICE)
    assert torch.equal(
        vk.attention(zeros, zeros, units, dropout_p=0.3, seed=9, dropout_version=1, impl="triton") > 0, expected
    )


def test_gradients_repeat_to_the_last_bit() -> None:
    shape = (1, 33, 1, 16) if DEVICE == "cpu" else (16, 300, 8, 64)
    leaves = [x.half() for x in leaves_of(shape)]
    runs = [results(lambda *x: attend("everything", shape)("triton", *x), leaves) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_limits_are_told_with_a_way_out() -> None:
    wide = torch.zeros(1, 4, 1, 129, device=DEVICE)
    with pytest.raises(ValueError, match=r'up to 128 wide, got 129; use impl="portable"'):
        vk.attention(wide, wide, wide, impl="triton")
    double = torch.zeros(1, 4, 1, 8, device=DEVICE, dtype=torch.float64)
    with pytest.raises(TypeError, match=r'got torch.float64; use impl="portable"'):
        vk.attention(double, double, double, impl="triton")
    x = torch.zeros(5, 1, 8, device=DEVICE)
    with pytest.raises(ValueError, match="the longest packed sequence has 5 tokens"):
        vk.attention(x, x, x, cu_seqlens=torch.tensor([0, 5]), max_seqlen=4, impl="triton")


@pytest.mark.skipif(not CUDA, reason="needs 5 GB on a CUDA device")
@pytest.mark.parametrize("strides", [(2**31, 16, 16, 1), (16, 2**25, 16, 1), (16, 64, 2**31, 1)])
def test_elements_past_2_31(strides: tuple[int, ...]) -> None:
    shape = (2, 40, 2, 16)
    span = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    far = torch.zeros(span, dtype=torch.float16, device=DEVICE).as_strided(shape, strides)
    far.copy_(randn(*shape))
    near = far.contiguous()
    assert torch.equal(vk.attention(far, far, far, impl="triton"), vk.attention(near, near, near, impl="triton"))
