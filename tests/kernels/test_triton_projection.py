"""The projection's Triton kernels against the literal projection: results, gradients, what is read, where it ends.

Compiled on a GPU, else in Triton's interpreter (TRITON_INTERPRET=1, without bfloat16). Errors are measured against the
literal operation in float64, in the 2-norm: at most twice those of the literal one in the same dtype, plus one rounding
of each element. Everything that is allocated and not written shows as NaN.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import pytest
import torch
import vatt_kernels as vk
from helpers.interpreter.needs import floats
from torch import Tensor
from vatt_kernels import reference

if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("Triton needs a GPU, or TRITON_INTERPRET=1 for its interpreter", allow_module_level=True)

from vatt_kernels.projection import triton_launch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Operation = Callable[..., Tensor]
KEEPS = {
    "all": None,
    "shared": torch.tensor([0, 2, 3, 9, 11], dtype=torch.int32),
    "each": torch.tensor([[11, 0, 5], [4, 4, 1]]),
    "none": torch.zeros(0, dtype=torch.int64),
    "none each": torch.zeros(2, 0, dtype=torch.int32),
    "every": torch.arange(12),
}


@pytest.fixture(autouse=True)
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = torch.empty

    def poisoned(*size, **options):
        x = empty(*size, **options)
        return x.fill_(float("nan") if x.is_floating_point() else torch.iinfo(x.dtype).max)

    monkeypatch.setattr(torch, "empty", poisoned)


def randn(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return (torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * scale).to(DEVICE)


def randint(low: int, high: int, *shape: int, dtype: torch.dtype = torch.uint8) -> Tensor:
    return torch.randint(low, high, shape, dtype=dtype, generator=torch.Generator().manual_seed(5)).to(DEVICE)


def chosen(name: str) -> Tensor | None:
    keep = KEEPS[name]
    return None if keep is None else keep.to(DEVICE)


def results(operation: Operation, leaves: Sequence[Tensor], *, expanded: bool = False) -> list[Tensor]:
    """The output and the gradient of each leaf, for a strided or an expanded incoming gradient."""
    inputs = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    out = operation(*inputs)
    grad = randn(*out.mT.shape, seed=99).mT
    if expanded:
        grad = randn(1, 1, 1, seed=99).expand(out.shape)
    return [out.detach(), *torch.autograd.grad(out, inputs, grad.to(out.dtype))]


def assert_within_budget(
    operation: Operation, leaves: Sequence[Tensor], dtype: torch.dtype, *, expanded: bool = False
) -> None:
    """`operation(impl, *leaves)`: triton in `dtype` against reference in `dtype` and in float64, from equal leaves."""
    rounded = [leaf.to(dtype) for leaf in leaves]
    exact = results(lambda *x: operation("reference", *x), [leaf.double() for leaf in rounded], expanded=expanded)
    literal = results(lambda *x: operation("reference", *x), rounded, expanded=expanded)
    got = results(lambda *x: operation("triton", *x), rounded, expanded=expanded)
    for index, (e, r, t) in enumerate(zip(exact, literal, got, strict=True)):
        assert t.dtype == r.dtype
        assert t.shape == r.shape
        allowed = 2 * float((r.double() - e).norm()) + torch.finfo(t.dtype).eps * float(e.norm())
        error = float((t.double() - e).norm())
        assert error <= allowed, f"{'output' if index == 0 else f'gradient {index - 1}'}: {error:.3g} > {allowed:.3g}"


def clip(kind: str) -> Tensor:
    """[2, 5, 13, 9, 3] with borders that fill no 2x4x4 voxel (grid 2x3x2), in several layouts."""
    frames = randint(0, 256, 2, 5, 13, 9, 3)
    if kind == "planar":
        return frames.permute(0, 4, 1, 2, 3).contiguous().permute(0, 2, 3, 4, 1)
    if kind == "crop":
        return randint(0, 256, 2, 7, 20, 15, 3)[:, 1:6, 3:16, 4:13]
    if kind == "time first":
        return frames.transpose(0, 1).contiguous().transpose(0, 1)
    if kind == "expanded":
        return frames[:1].expand(2, -1, -1, -1, -1)
    return frames


@pytest.mark.parametrize(
    ("kind", "keep"),
    [(kind, "each") for kind in ("planar", "crop", "time first")],
)
def test_projection_of_bytes(kind: str, keep: str) -> None:
    frames = clip(kind)

    def operation(impl: str, weight: Tensor, bias: Tensor, position: Tensor) -> Tensor:
        return vk.project_voxels(frames, weight, bias, patch=(2, 4, 4), keep=chosen(keep), position=position, impl=impl)

    leaves = [randn(96, 7, scale=0.1), randn(7, seed=1), randn(12, 7, seed=2)]
    assert_within_budget(operation, leaves, torch.float32)
    assert_within_budget(operation, leaves, torch.float16, expanded=True)


@pytest.mark.parametrize("dtype", floats())
@pytest.mark.parametrize("brightness", [0, 200])
def test_projection_of_full_voxels_in_low_precision(dtype: torch.dtype, brightness: int) -> None:
    """4 x 16 x 16 voxels are read 16 bytes at a time; in dark and bright clips the mean must not cost digits."""
    frames = randint(brightness, brightness + 40, 2, 4, 32, 32, 3)
    keep = torch.tensor([[3, 1], [0, 2]], device=DEVICE)
    assert triton_launch.clip_layout(frames, (4, 16, 16), keep).unit == 16

    def operation(impl: str, weight: Tensor, bias: Tensor, position: Tensor) -> Tensor:
        return vk.project_voxels(frames, weight, bias, keep=keep, position=position, impl=impl)

    leaves = [randn(3072, 33, scale=0.02) + 0.005, randn(33, seed=1), randn(4, 33, seed=2)]
    assert_within_budget(operation, leaves, dtype)


@pytest.mark.parametrize("dtype", floats())
def test_projection_of_waveforms_of_every_third_sample(dtype: torch.dtype) -> None:
    samples = randint(-(2**15), 2**15, 3, 600, dtype=torch.int16)[:, ::3]
    keep = vk.sample_keep(12, 5, seed=0, batch=3, device=DEVICE)

    def operation(impl: str, weight: Tensor, bias: Tensor, position: Tensor) -> Tensor:
        return vk.project_waveform(samples, weight, bias, patch=16, keep=keep, position=position, impl=impl)

    assert_within_budget(operation, [randn(16, 9), randn(9, seed=1), randn(12, 9, seed=2)], dtype)

    def of_floats(impl: str, samples: Tensor, weight: Tensor) -> Tensor:
        return vk.project_waveform(samples, weight, patch=16, keep=keep, impl=impl)

    assert_within_budget(of_floats, [randn(3, 200), randn(16, 9, seed=1)], dtype)


@pytest.mark.parametrize("launch", range(3))
@pytest.mark.parametrize("dtype", floats())
def test_every_tile_with_rests_in_all_directions(
    launch: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_launch, "FORWARD", triton_launch.FORWARD[launch : launch + 1])
    monkeypatch.setattr(triton_launch, "WEIGHT", triton_launch.WEIGHT[min(launch, 1) :][:1])
    samples = randint(-3000, 3000, 2, 137 * 140, dtype=torch.int16)
    keep = vk.sample_keep(140, 130, seed=0, batch=2, device=DEVICE)  # 260 rows, 137 values, 130 columns

    def operation(impl: str, weight: Tensor, bias: Tensor, position: Tensor) -> Tensor:
        return vk.project_waveform(samples, weight, bias, patch=137, keep=keep, position=position, impl=impl)

    assert_within_budget(operation, [randn(137, 130), randn(130, seed=1), randn(140, 130, seed=2)], dtype)


@pytest.mark.parametrize("splits", [1, 2, 3, 7])
def test_parts_of_the_weight_gradient_add_up(splits: int) -> None:
    samples, dy, extra = randint(-9, 9, 1, 200 * 16, dtype=torch.int16), randn(200, 32), randn(32, seed=1)
    expected = 0.5 * samples.view(200, 16).double().T @ dy.float().double() + extra.float()
    described = triton_launch.clip_layout(samples[:, None, None, :, None], (1, 1, 16), None)
    got = triton_launch.project_weight_gradient(described, dy.float(), extra.float(), 0.5, torch.float32, splits=splits)
    error = (got.double() - expected).norm() / expected.norm()
    assert float(error) < 4 * torch.finfo(torch.float32).eps


def test_parts_fill_the_device_evenly() -> None:
    assert triton_launch.parts(tiles=264, steps=400, slots=264) == 1
    assert triton_launch.parts(tiles=8, steps=400, slots=264) == 8
    assert triton_launch.parts(tiles=144, steps=1, slots=264) == 1
    waves = [-(-144 * n // 264) / n for n in (1, triton_launch.parts(tiles=144, steps=400, slots=264))]
    assert waves[1] < 0.7 * waves[0]


def test_a_crop_that_breaks_wide_reads_is_copied_and_one_that_does_not_is_read_in_place() -> None:
    large = torch.zeros(2, 4, 64, 96, 3, dtype=torch.uint8, device=DEVICE)
    aside, inside = large[:, :, 1:33, 5:37], large[:, :, 1:33, 16:48]
    assert triton_launch.clip_layout(aside, (4, 16, 16), None).unit == 16
    assert triton_launch.clip_layout(aside, (4, 16, 16), None).values.data_ptr() != aside.data_ptr()
    assert triton_launch.clip_layout(inside, (4, 16, 16), None).unit == 16
    assert triton_launch.clip_layout(inside, (4, 16, 16), None).values.data_ptr() == inside.data_ptr()
    odd = large[:, :, :, :35]  # 105 bytes a line: no copy would help
    assert (
        triton_launch.clip_layout(odd[:, :, :, 1:], (4, 16, 16), None).values.data_ptr() == odd[:, :, :, 1:].data_ptr()
    )


@pytest.mark.parametrize("per_sample", [False, True])
def test_dropped_voxels_are_never_read(per_sample: bool) -> None:
    keep = vk.sample_keep(12, 5, seed=1, batch=2 if per_sample else None, device=DEVICE)
    frames, weight, position = randn(2, 5, 13, 9, 3).float(), randn(96, 7, seed=1).float(), randn(12, 7, seed=2).float()

    def operation(frames: Tensor, weight: Tensor, position: Tensor) -> Tensor:
        return vk.project_voxels(
            frames, weight, patch=(2, 4, 4), keep=keep, position=position, shift=0.5, impl="triton"
        )

    clean = results(operation, [frames, weight, position])
    poisoned = torch.full_like(frames, float("nan"))
    grid, source = reference.patches(poisoned, (2, 4, 4)), reference.patches(frames, (2, 4, 4))
    for sample in range(2):
        for index in (keep[sample] if per_sample else keep).tolist():
            place = (sample, index // 6, index // 2 % 3, index % 2)
            grid[place] = source[place]
    rows = torch.full_like(position, float("nan"))
    rows[keep.unique().long()] = position[keep.unique().long()]
    for got, expected in zip(results(operation, [poisoned, weight, rows]), clean, strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize(("samples", "size"), [(1, 27200), (3, 19200)])
def test_clips_beyond_2_to_the_31_bytes(samples: int, size: int) -> None:
    """In one sample, and in three of fewer: the last patches of the last one, and the first of the first."""
    frames = torch.zeros(samples, 1, size, size, 3, dtype=torch.uint8, device=DEVICE)  # untouched pages cost nothing
    frames[-1, :, -16:] = randint(0, 256, 16, size, 3)
    frames[0, :, :16, :16] = 77
    grid = size // 16
    keep = torch.tensor([grid * grid - 1, 0, (grid - 1) * grid], device=DEVICE)

    def operation(impl: str, weight: Tensor) -> Tensor:
        if impl == "triton":
            return vk.project_voxels(frames, weight, patch=(1, 16, 16), keep=keep, impl=impl)
        kept = [frames[:, :, -16:, -16:], frames[:, :, :16, :16], frames[:, :, -16:, :16]]
        return torch.cat([vk.project_voxels(x, weight, patch=(1, 16, 16), impl=impl) for x in kept], dim=1)

    assert_within_budget(operation, [randn(768, 16, scale=0.05)], torch.float32)


def test_no_samples_and_one_token() -> None:
    weight = randn(48, 5).float().requires_grad_()
    none = vk.project_voxels(clip("plain")[:0], weight, patch=(1, 4, 4), impl="triton")
    assert none.shape == (0, 5 * 3 * 2, 5)
    assert torch.equal(torch.autograd.grad(none.sum(), weight)[0], torch.zeros_like(weight))
    one = clip("plain")[:1, :1, :4, :4]

    def operation(impl: str, weight: Tensor) -> Tensor:
        return vk.project_voxels(one, weight, patch=(1, 4, 4), impl=impl)

    assert_within_budget(operation, [weight], torch.float32)


def test_projection_follows_autocast() -> None:
    low = torch.bfloat16 if DEVICE == "cuda" else torch.float16
    frames, weight, bias = clip("plain"), randn(96, 7, scale=0.1).float(), randn(7).float()
    exact = vk.project_voxels(frames, weight.double(), bias.double(), patch=(2, 4, 4), impl="reference")
    leaf = weight.clone().requires_grad_()
    with torch.autocast(DEVICE, low):
        got = vk.project_voxels(frames, leaf, bias, patch=(2, 4, 4), impl="triton")
    got.sum().backward()
    assert got.dtype == torch.float32
    assert leaf.grad is not None
    assert leaf.grad.dtype == torch.float32
    error = float((got.detach() - exact).abs().max() / exact.abs().max())
    assert 1e-6 < error < 2 * torch.finfo(low).eps  # a product in `low`, and nothing worse


def test_two_runs_agree_to_the_last_bit() -> None:
    frames = randint(0, 256, 2, 4, 32, 64, 3)
    keep = torch.tensor([[3, 1, 1], [0, 2, 3]], device=DEVICE)
    leaves = [randn(3072, 40, scale=0.02).float(), randn(40, seed=1).float(), randn(8, 40, seed=2).float()]

    def operation(weight: Tensor, bias: Tensor, position: Tensor) -> Tensor:
        return vk.project_voxels(frames, weight, bias, keep=keep, position=position, impl="triton")

    for a, b in zip(results(operation, leaves), results(operation, leaves), strict=True):
        assert torch.equal(a, b)


def test_what_triton_cannot_multiply_is_an_error_with_a_way_out() -> None:
    with pytest.raises(TypeError, match=r"float64.*portable"):
        vk.project_voxels(clip("plain"), randn(96, 7), patch=(2, 4, 4), impl="triton")
    if DEVICE == "cpu":
        with pytest.raises(TypeError, match=r"cannot multiply in bfloat16 in Triton's interpreter.*portable"):
            vk.project_voxels(clip("plain"), randn(96, 7).bfloat16(), patch=(2, 4, 4), impl="triton")


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
def test_no_call_waits_for_the_device() -> None:
    frames, weight = randint(0, 256, 2, 4, 32, 32, 3), randn(3072, 64).float().requires_grad_()
    position = randn(4, 64).float().requires_grad_()

    def step() -> None:
        keep = vk.sample_keep(4, 2, seed=0, batch=2, device=DEVICE, impl="triton")
        vk.project_voxels(frames, weight, keep=keep, position=position, impl="triton").sum().backward()

    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
