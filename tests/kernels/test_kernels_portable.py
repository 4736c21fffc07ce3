"""The portable operations against the literal ones: results and gradients, what they read, and what they store.

Errors are measured against the literal operation in float64, in the 2-norm (one wrong element shows in it, one unlucky
rounding does not decide it). The portable operation may be at most twice as far off as the literal one in the same
dtype, plus one rounding of each element.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import vatt_kernels as vk
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from vatt_kernels import dropped_attention, portable, reference

Operation = Callable[..., Tensor]
FLOATS = [torch.float32, torch.bfloat16, torch.float16]


def randn(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * scale


def results(operation: Operation, leaves: Sequence[Tensor], grad: Tensor | None = None) -> list[Tensor]:
    """The output and the gradient of each leaf, for one incoming gradient; a strided one, as real ones often are."""
    inputs = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    out = operation(*inputs)
    if grad is None:
        grad = torch.randn(out.mT.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(99)).mT
    return [out.detach(), *torch.autograd.grad(out, inputs, grad.to(out.dtype))]


def assert_within_budget(
    operation: Operation, leaves: Sequence[Tensor], dtype: torch.dtype, magnitude: float = 0.0, order: float = 0.0
) -> None:
    """`operation(impl, *leaves)`: portable in `dtype` against reference in `dtype` and in float64.

    All three start from the leaves rounded to `dtype`. `magnitude` is that of terms that cancel in the result, where
    these are larger than it: they are what is rounded. `order` is how far the output may be off because a library may
    add its terms in any order.
    """
    rounded = [leaf.to(dtype) for leaf in leaves]
    exact = results(lambda *x: operation("reference", *x), [leaf.double() for leaf in rounded])
    literal = results(lambda *x: operation("reference", *x), rounded)
    got = results(lambda *x: operation("portable", *x), rounded)
    for index, (e, r, p) in enumerate(zip(exact, literal, got, strict=True)):
        assert p.dtype == r.dtype
        assert p.shape == r.shape
        rounding = torch.finfo(p.dtype).eps * max(float(e.norm()), magnitude * e.numel() ** 0.5)
        allowed = 2 * float((r.double() - e).norm()) + rounding + (order if index == 0 else 0.0)
        error = float((p.double() - e).norm())
        assert error <= allowed, f"{'output' if index == 0 else f'gradient {index - 1}'}: {error:.3g} > {allowed:.3g}"


class LargestTensor(TorchDispatchMode):
    """Records the bytes of the largest tensor that any operation returns, views left out, and counts products."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.products = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.products += "bmm" in func.name()
        known = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        for x in tree_leaves(out):
            if isinstance(x, Tensor) and x.untyped_storage().data_ptr() not in known:
                self.bytes = max(self.bytes, x.numel() * x.element_size())
        return out


# projection

KEEPS = {
    "all": None,
    "shared": torch.tensor([0, 2, 3, 9, 11], dtype=torch.int32),
    "each": torch.tensor([[11, 0, 5], [4, 4, 1]]),
    "none": torch.zeros(0, dtype=torch.int64),
    "every": torch.arange(12),
}


def clip(kind: str) -> Tensor:
    """[2, 5, 13, 9, 3] with borders that fill no 2x4x4 voxel (grid 2x3x2), in several layouts and dtypes."""
    generator = torch.Generator().manual_seed(5)
    frames = torch.randint(0, 256, (2, 5, 13, 9, 3), dtype=torch.uint8, generator=generator)
    if kind == "planar":
        return frames.permute(0, 4, 1, 2, 3).contiguous().permute(0, 2, 3, 4, 1)
    if kind == "crop":
        large = torch.randint(0, 256, (2, 7, 20, 15, 3), dtype=torch.uint8, generator=generator)
        return large[:, 1:6, 3:16, 4:13]
    if kind == "every second frame":
        return frames.repeat_interleave(2, dim=1)[:, ::2]
    if kind == "expanded":
        return frames[:1].expand(2, -1, -1, -1, -1)
    return frames


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("kind", ["planar", "crop", "every second frame"])
def test_projection_of_bytes(keep: str, kind: str) -> None:
    frames = clip(kind)

    def operation(impl: str, weight: Tensor, bias: Tensor, position: Tensor) -> Tensor:
        return vk.project_voxels(frames, weight, bias, patch=(2, 4, 4), keep=KEEPS[keep], position=position, impl=impl)

    leaves = [randn(96, 7, scale=0.1), randn(7, seed=1), randn(12, 7, seed=2)]
    assert_within_budget(operation, leaves, torch.float32)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("brightness", [0, 200])
def test_projection_of_bytes_in_low_precision(dtype: torch.dtype, brightness: int) -> None:
    """Dark and bright clips: the mean must not cost digits.

    Of 3,072 terms the order of adding shows: MKL on SSE4.2 (that of torch 2.13.0, one thread) adds those of four rows
    one by one, where other products are sums of blocks.
    """
    frames = torch.randint(
        brightness, brightness + 40, (2, 4, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(2)
    )
    keep = torch.tensor([3, 1])

    def operation(impl: str, weight: Tensor, bias: Tensor, position: Tensor) -> Tensor:
        return vk.project_voxels(frames, weight, bias, keep=keep, position=position, impl=impl)

    leaves = [randn(3072, 33, scale=0.02) + 0.005, randn(33, seed=1), randn(4, 33, seed=2)]
    values = (portable.gather_patches(frames, (4, 16, 16), keep).float() - 128) / 128
    weight = leaves[0].float()
    one_by_one = torch.zeros(*values.shape[:-1], weight.shape[-1])
    for term, row in zip(values.unbind(-1), weight, strict=True):
        one_by_one += term[..., None] * row
    order = float((one_by_one.double() - values.double() @ weight.double()).norm())
    assert_within_budget(operation, leaves, dtype, order=order)


@pytest.mark.parametrize("per_sample", [False, True])
def test_dropped_voxels_are_never_read(per_sample: bool) -> None:
    keep = vk.sample_keep(12, 5, seed=1, batch=2 if per_sample else None)
    frames, weight, position = randn(2, 5, 13, 9, 3).float(), randn(96, 7, seed=1).float(), randn(12, 7, seed=2).float()

    def operation(frames: Tensor, weight: Tensor, position: Tensor) -> Tensor:
        return vk.project_voxels(frames, weight, patch=(2, 4, 4), keep=keep, position=position, shift=0.5)

    clean = results(operation, [frames, weight, position])
    poisoned = torch.full_like(frames, float("nan"))
    grid, source = reference.patches(poisoned, (2, 4, 4)), reference.patches(frames, (2, 4, 4))
    for sample in range(2):
        for index in (keep[sample] if per_sample else keep).tolist():
            place = (sample, index // 6, index // 2 % 3, index % 2)
            grid[place] = source[place]
    assert bool(poisoned.isnan().any())
    rows = torch.full_like(position, float("nan"))
    rows[keep.unique().long()] = position[keep.unique().long()]
    for got, expected in zip(results(operation, [poisoned, weight, rows]), clean, strict=True):
        assert torch.equal(got, expected)


def test_projection_stores_no_more_than_the_kept_voxels() -> None:
    frames = torch.zeros(2, 8, 64, 64, 3, dtype=torch.uint8)
    weight = randn(3072, 8).float().requires_grad_()
    keep = vk.sample_keep(32, 8, seed=0)
    saved: list[Tensor] = []

    def pack(x: Tensor) -> Tensor:
        saved.append(x)
        return x

    with LargestTensor() as largest, torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = vk.project_voxels(frames, weight, keep=keep)
        out.backward(torch.ones_like(out))
    assert largest.bytes <= 2 * 8 * 3072 * 4  # the kept voxels as float32; all of them would be four times that
    assert all(x is frames or x is weight or x.numel() <= keep.numel() for x in saved)


def test_projection_follows_autocast() -> None:
    frames, weight, bias = clip("plain"), randn(96, 7, scale=0.1).float(), randn(7).float()
    exact = vk.project_voxels(frames, weight.double(), bias.double(), patch=(2, 4, 4), impl="reference")
    for impl in ("reference", "portable"):
        leaf = weight.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            got = vk.project_voxels(frames, leaf, bias, patch=(2, 4, 4), impl=impl)
        got.sum().backward()
        assert got.dtype == torch.float32
        assert leaf.grad is not None
        assert leaf.grad.dtype == torch.float32
        error = float((got.detach() - exact).abs().max() / exact.abs().max())
        assert 1e-5 < error < 2**-7  # a product in bfloat16, and nothing worse


# tokens


# attention

ATTENTION: dict[str, dict[str, Any]] = {
    "plain": {},
    "mask": {"mask": True},
    "bias": {"bias": True, "scale": 1.0},
    "mask and bias": {"mask": True, "bias": True},
    "dropout": {"dropout_p": 0.3, "seed": 4},
    "everything": {"mask": True, "bias": True, "dropout_p": 0.3, "seed": -4},
}


def attend(name: str, shape: tuple[int, ...], edges: Tensor | None = None) -> Operation:
    settings = dict(ATTENTION[name])
    mask = None
    if settings.pop("mask", False):
        mask = torch.rand(shape[:-2], generator=torch.Generator().manual_seed(3)) > 0.4
        mask[:1] = False  # dense: a whole sequence without keys
    use_bias = settings.pop("bias", False)

    def operation(impl: str, q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> Tensor:
        out = vk.attention(
            q,
            k,
            v,
            key_mask=mask,
            bias_table=table if use_bias else None,
            max_distance=9,
            cu_seqlens=edges,
            impl=impl,
            **settings,
        )
        return out + 0 * table.sum()  # so that the table has a gradient in any case

    return operation


@pytest.mark.parametrize("name", ATTENTION)
@pytest.mark.parametrize("lengths", [[4, 4, 4], []])
def test_packed_attention(name: str, lengths: list[int]) -> None:
    edges = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    shape = (sum(lengths), 2, 8)
    leaves = [*(randn(*shape, seed=seed) for seed in range(3)), randn(8, 2, seed=4)]
    assert_within_budget(attend(name, shape, edges), leaves, torch.float32)


def test_attention_takes_any_layout() -> None:
    def operation(impl: str, packed: Tensor, shared: Tensor) -> Tensor:
        q, k, _ = packed.permute(1, 0, 3, 2, 4).unbind(0)
        return vk.attention(q, k, shared.expand(2, 9, 3, 4), impl=impl)

    assert_within_budget(operation, [randn(2, 3, 3, 9, 4), randn(1, 9, 1, 4, seed=1)], torch.float32)


def test_both_drop_the_same_probabilities() -> None:
    first, heads, tokens = torch.tensor([0, 33, 2**32 - 10]), 4, 33
    for p in (0.0, 1e-9, 0.1, 0.5, 1 - 1e-12):
        expected = reference.dropout_keep(first, tokens, heads, p, 2**40 + 1, version=1)
        keys = reference.dropout_keys(first, tokens, heads, seed=2**40 + 1)
        assert torch.equal(portable.dropout_keep(keys, p), expected)
        for some in (tokens, 24, 7):
            expected = reference.dropout_keep(first, some, heads, p, 2**40 + 1)
            words = reference.dropout_keys(first, some, heads, torch.tensor(2**40 + 1)).int()
            bits = torch.empty(*words.shape, -(-some // 16) * 2, dtype=torch.uint8)
            assert torch.equal(dropped_attention.unpacked(dropped_attention.keep_bits(words, p, bits), some), expected)


@pytest.mark.parametrize("name", ["dropout", "everything"])
def test_dropout_in_blocks_gives_the_same_and_bounds_memory(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = (3, 40, 4, 8)
    leaves = [*(randn(*shape, seed=seed) for seed in range(3)), randn(8, 4, seed=4)]
    operation = attend(name, shape)
    expected = results(lambda *x: operation("portable", *x), leaves)
    for scores in (40 * 40 * 5, 40 * 24):  # 12 rows of heads in blocks of 5, 5 and 2, and each in 24 and 16 rows
        monkeypatch.setattr(dropped_attention, "SCORES", scores)
        got = results(lambda *x: operation("portable", *x), leaves)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_dropout_of_version_1_is_that_of_the_specification(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portable, "DROPOUT_SCORES", 9 * 9 * 2)
    settings = {"dropout_p": 0.3, "seed": 4, "dropout_version": 1}
    leaves = [randn(2, 9, 3, 4, seed=seed) for seed in range(3)]
    got, expected = (
        results(lambda *x, impl=impl: vk.attention(*x, impl=impl, **settings), leaves)
        for impl in ("portable", "reference")
    )
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    assert not torch.equal(got[0], vk.attention(*leaves, impl="portable", **settings | {"dropout_version": 2}))


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_dropout_is_the_same_on_many_threads(threads: int) -> None:
    operation = attend("dropout", (1, 400, 3, 8))
    leaves = [*(randn(1, 400, 3, 8, seed=seed) for seed in range(3)), randn(8, 3, seed=4)]
    got = results(lambda *x: operation("portable", *x), leaves)
    with torch.inference_mode():
        assert torch.equal(operation("portable", *leaves), got[0])
    assert torch.get_num_threads() == threads  # and what later threads begin with
    assert ThreadPoolExecutor(1).submit(torch.get_num_threads).result() == threads
    torch.set_num_threads(1)
    torch.testing.assert_close(got, results(lambda *x: operation("portable", *x), leaves), rtol=0, atol=1e-14)


@pytest.mark.parametrize("threads", [1], indirect=True)
def test_dropout_computes_nothing_that_it_need_not_and_keeps_a_bit_a_probability(threads: int) -> None:
    """Two products forward, five backward, no tensor larger than a block or the bits."""
    tokens, heads, width = 640, 2, 8
    q = randn(1, tokens, heads, width).float()
    words = reference.dropout_keys(torch.zeros(1), tokens, heads, 1).flatten(0, 1).int()
    with LargestTensor() as largest:
        out, statistics, bits = dropped_attention._forward(q, q, q, None, None, words, 0.3, 0.1)
        dropped_attention._backward(out, q, q, q, None, None, statistics, bits, 0.3, 0.1)
    blocks = heads * math.ceil(tokens / (dropped_attention.SCORES // tokens))
    assert largest.products == 7 * sum(map(len, dropped_attention._parts(heads, tokens))) == 7 * blocks > 7 * heads
    assert bits.nbytes == heads * tokens * tokens / 8
    assert largest.bytes <= 4 * dropped_attention.SCORES < 4 * tokens * tokens


def test_attention_follows_autocast() -> None:
    q, k, v = (randn(2, 5, 2, 8, seed=seed).float() for seed in range(3))
    for impl in ("reference", "portable"):
        for dropout in (0.0, 0.2):
            with torch.autocast("cpu", torch.bfloat16):
                assert vk.attention(q, k, v, dropout_p=dropout, impl=impl).dtype == torch.bfloat16


# contrastive loss


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("clips", "candidates"), [(1, 1), (7, 1), (6, 5)])
@pytest.mark.parametrize("masked", [False, True])
def test_contrastive_loss_in_many_tiles(symmetric: bool, clips: int, candidates: int, masked: bool) -> None:
    mask = torch.arange(clips) % 3 != 1 if masked else None
    video_mask = torch.arange(clips) % 4 != 2 if masked else None

    def operation(impl: str, video: Tensor, other: Tensor) -> Tensor:
        module, more = (portable, {"block": 4}) if impl == "portable" else (reference, {})
        loss = module.contrastive_loss(
            video,
            other,
            video,
            other,
            temperature=0.07,
            symmetric=symmetric,
            mask=None if mask is None else mask.to(video.dtype),
            video_mask=None if video_mask is None else video_mask.to(video.dtype),
            **more,
        )
        valid = torch.ones(clips) if mask is None or video_mask is None else mask * video_mask
        return (loss * valid)[None]

    leaves = [randn(clips, 16), randn(clips, candidates, 16, seed=1)]
    assert_within_budget(operation, leaves, torch.float32, magnitude=1 / 0.07)


def test_contrastive_loss_needs_no_gradient_to_gathered_batches() -> None:
    video, other = randn(3, 8).requires_grad_(), randn(3, 2, 8, seed=1)
    loss = vk.contrastive_loss(video, other, all_video=randn(6, 8, seed=2), all_other=randn(6, 2, 8, seed=3))
    loss.sum().backward()
    assert video.grad is not None
    assert other.grad is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_contrastive_loss_is_float32_for_low_precision_and_under_autocast(dtype: torch.dtype) -> None:
    video, other = randn(5, 8).to(dtype).requires_grad_(), randn(5, 2, 8, seed=1).to(dtype).requires_grad_()
    exact = vk.contrastive_loss(video.double(), other.double(), impl="reference")
    expected = torch.autograd.grad(exact.sum(), (video, other))
    for impl in ("reference", "portable"):
        with torch.autocast("cpu", torch.bfloat16):
            loss = vk.contrastive_loss(video, other, impl=impl)
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss.double(), exact, rtol=0, atol=16 * torch.finfo(torch.float32).eps / 0.07)
        for got, gradient in zip(torch.autograd.grad(loss.sum(), (video, other)), expected, strict=True):
            assert got.dtype == dtype
            torch.testing.assert_close(
                got, gradient, rtol=torch.finfo(dtype).eps, atol=1e-5
            )  # rounded once, at the end


def test_contrastive_loss_can_be_weighted_and_differentiated_twice_over() -> None:
    video, other = randn(6, 8).requires_grad_(), randn(6, 3, 8, seed=1).requires_grad_()
    loss = vk.contrastive_loss(video, other)
    each = [torch.autograd.grad(loss[i], (video, other), retain_graph=True) for i in range(6)]
    weights = randn(6, seed=2)
    together = torch.autograd.grad((loss * weights).sum(), (video, other))
    for index in (0, 1):
        expected = sum(weight * gradients[index] for weight, gradients in zip(weights, each, strict=True))
        torch.testing.assert_close(together[index], expected)


@pytest.mark.parametrize("symmetric", [False, True])
def test_contrastive_loss_memory_is_linear_in_the_candidates(symmetric: bool) -> None:
    """Nothing of the size batch x batch x captions is made or kept, forward or backward."""
    block, width, candidates = 16, 8, 5
    for clips in (64, 128):
        video, other = randn(clips, width).requires_grad_(), randn(clips, candidates, width, seed=1).requires_grad_()
        saved: list[int] = []

        def pack(x: Tensor, saved: list[int] = saved) -> Tensor:
            saved.append(x.numel())
            return x

        with LargestTensor() as largest, torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            loss = portable.contrastive_loss(
                video,
                other,
                video,
                other,
                mask=None,
                video_mask=None,
                temperature=0.07,
                symmetric=symmetric,
                block=block,
            )
            loss.sum().backward()
        linear = clips * candidates * width
        assert largest.bytes <= 8 * max(linear, block * block)
        assert max(saved) <= linear
        assert linear * 8 < clips * clips * candidates * 8
