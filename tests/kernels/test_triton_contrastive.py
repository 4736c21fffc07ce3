"""The contrastive loss's Triton kernels: values, all gradients and the official numbers, alone and gathered.

Errors are measured against the literal operation in float64, in the 2-norm. The kernels may be twice as far off as the
literal operation in the same dtype, plus what one rounding of each score does.

Compiled on a GPU, else in Triton's interpreter (TRITON_INTERPRET=1).
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import vatt_kernels as vk
from helpers.interpreter.needs import floats
from torch import Tensor
from vatt_kernels import reference
from vatt_kernels.device import processors

if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("Triton needs a GPU, or TRITON_INTERPRET=1 for its interpreter", allow_module_level=True)

from vatt_kernels.contrastive import triton_backward as contrastive_backward_triton
from vatt_kernels.contrastive import triton_forward as contrastive_forward_triton
from vatt_kernels.contrastive import triton_op as contrastive_triton

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# symmetric, masked, temperature
SETTINGS = [(False, True, 0.01), (True, False, 0.01)]  # below the temperature at which maxima are fixed
BOTH_FORMS = pytest.mark.parametrize("symmetric", [False, True])


@pytest.fixture(autouse=True)
def allocated(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What is allocated and not written shows as NaN; the list holds the number of elements of each allocation."""
    sizes: list[int] = []

    def filling(make: Any, value: float) -> Any:
        def filled(*size: Any, **options: Any) -> Tensor:
            x: Tensor = make(*size, **options)
            sizes.append(x.numel())
            with torch.no_grad():
                return x.fill_(value)

        return filled

    for make, value in ((torch.empty, math.nan), (torch.empty_like, math.nan), (torch.zeros, 0)):
        monkeypatch.setattr(torch, make.__name__, filling(make, value))
    return sizes


@pytest.fixture
def many_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU too large for the batch: rows and columns are divided among processors."""
    for module in (contrastive_forward_triton, contrastive_backward_triton):
        monkeypatch.setattr(module, "processors", lambda device: 24)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def vectors(clips: int, candidates: int, width: int, total: int | None = None) -> list[Tensor]:
    """video, other, and if `total` is given, all_video, all_other."""
    shapes = [(clips, width), (clips, candidates, width)]
    if total is not None:
        shapes += [(total, width), (total, candidates, width)]
    return [randn(*shape, seed=seed) for seed, shape in enumerate(shapes)]


def some(clips: int, step: int) -> Tensor:
    """A mask of clips without every `step`-th."""
    return (torch.arange(clips, device=DEVICE) % step != 1).float()


def results(
    module: Any,
    leaves: list[Tensor],
    grad: Tensor,
    mask: Tensor | None = None,
    video_mask: Tensor | None = None,
    **settings: Any,
) -> list[Tensor]:
    """The losses and the gradients by all leaves. Masks stay float32: in float16, -1e9 is infinite."""
    inputs = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    wide = leaves[0].dtype if leaves[0].dtype == torch.float64 else torch.float32
    masks = [None if x is None else x.to(wide) for x in (mask, video_mask)]
    gathered = inputs if len(inputs) == 4 else [*inputs, *inputs]
    loss = module.contrastive_loss(*gathered, mask=masks[0], video_mask=masks[1], **settings)
    return [loss.detach(), *torch.autograd.grad(loss, inputs, grad.to(loss.dtype))]


def assert_within_budget(leaves: list[Tensor], dtype: torch.dtype, temperature: float = 0.07, **settings: Any) -> None:
    """Leaves start out rounded to `dtype`, for the literal operation in float64 too."""
    rounded = [leaf.to(dtype) for leaf in leaves]
    grad = randn(leaves[0].shape[0], seed=99)
    settings["temperature"] = temperature
    exact = results(reference, [leaf.double() for leaf in rounded], grad, **settings)
    literal = results(reference, rounded, grad, **settings)
    got = results(contrastive_triton, rounded, grad, **settings)
    assert got[0].dtype == torch.float32
    score = torch.finfo(dtype).eps / (2 * temperature)  # rounding of a score, and so of its exponential
    size = float(grad.norm()) / temperature / leaves[0].shape[1] ** 0.5  # of softmaxes that cancel in a gradient
    for index, (e, r, t) in enumerate(zip(exact, literal, got, strict=True)):
        assert t.shape == e.shape
        assert index == 0 or t.dtype == dtype
        # A loss is a difference, of two roundings; a gradient may be one of softmaxes larger than itself.
        rounding = score * (max(float(e.norm()), size) if index else 2 * e.numel() ** 0.5)
        allowed = 2 * float((r.double() - e).norm()) + max(rounding, torch.finfo(t.dtype).eps * float(e.norm()))
        error = float((t.double() - e).norm())
        assert error <= allowed, f"{f'gradient {index}' if index else 'loss'}: {error:.3g} > {allowed:.3g}"


# values and gradients


def masks(clips: int) -> dict[str, Tensor]:
    return {"mask": some(clips, 3), "video_mask": some(clips, 4)}


@pytest.mark.parametrize("dtype", floats())
@pytest.mark.parametrize(("symmetric", "masked", "temperature"), SETTINGS)
@pytest.mark.parametrize("shape", [(1, 1, 16), (1, 5, 20), (7, 1, 33), (63, 2, 8), (130, 1, 64)], ids=str)
def test_a_rank_alone(
    dtype: torch.dtype, symmetric: bool, masked: bool, temperature: float, shape: tuple[int, int, int]
) -> None:
    assert_within_budget(
        vectors(*shape), dtype, temperature, symmetric=symmetric, **(masks(shape[0]) if masked else {})
    )


@pytest.mark.parametrize("dtype", floats())
def test_wide_vectors(dtype: torch.dtype) -> None:
    assert_within_budget(vectors(17, 5, 300), dtype, symmetric=False)


@pytest.mark.parametrize("dtype", floats())
@pytest.mark.parametrize(("symmetric", "masked", "temperature"), SETTINGS)
@pytest.mark.parametrize("shape", [(1, 1, 16, 2), (5, 3, 20, 9), (33, 5, 64, 66)], ids=str)
def test_gathered_batches(
    dtype: torch.dtype, symmetric: bool, masked: bool, temperature: float, shape: tuple[int, int, int, int]
) -> None:
    assert_within_budget(
        vectors(*shape), dtype, temperature, symmetric=symmetric, **(masks(shape[3]) if masked else {})
    )


@pytest.mark.usefixtures("many_processors")
@pytest.mark.parametrize("dtype", floats())
@pytest.mark.parametrize("total", [None, 110])
@pytest.mark.parametrize("temperature", [0.07, 0.01])
def test_rows_and_columns_divided_among_processors(
    dtype: torch.dtype, total: int | None, temperature: float, allocated: list[int]
) -> None:
    leaves = vectors(100, 3, 40, total)
    assert_within_budget(leaves, dtype, temperature, symmetric=False, mask=some(total or 100, 3))
    assert max(allocated) > 1.5 * 384 * 64  # float32 gradients in parts, more than all vectors: it was divided


@pytest.mark.parametrize("dtype", floats())
@BOTH_FORMS
@pytest.mark.parametrize("total", [None, 9])
def test_nothing_is_valid(dtype: torch.dtype, symmetric: bool, total: int | None) -> None:
    """As the literal operation has it: -1e9 added to all scores changes no softmax."""
    nothing = torch.zeros(total or 5, device=DEVICE)
    leaves = [leaf.to(dtype) for leaf in vectors(5, 2, 24, total)]
    settings: dict[str, Any] = {"mask": nothing, "video_mask": nothing, "temperature": 0.07, "symmetric": symmetric}
    grad = randn(5, seed=9)
    exact = results(reference, [leaf.double() for leaf in leaves], grad, **settings)
    got = results(contrastive_triton, leaves, grad, **settings)
    torch.testing.assert_close(got[0].double(), exact[0], rtol=1e-6, atol=torch.finfo(dtype).eps / 0.07)
    for e, t in zip(exact[1:], got[1:], strict=True):
        assert float((t.double() - e).norm()) <= 4 * torch.finfo(dtype).eps / 0.07 * float(e.norm())


@BOTH_FORMS
def test_scores_at_the_limit_of_float32(symmetric: bool) -> None:
    """All cosines but the positives' are -1, and at 0.02 their exponentials are the smallest there are."""
    video = randn(1, 32).repeat(6, 1)
    other = -video[:, None] + 1e-3 * randn(6, 1, 32, seed=1)
    for temperature in (0.02, 0.0199, 0.002):
        assert_within_budget([video, other], torch.float32, temperature, symmetric=symmetric)


def test_masked_scores_above_all_others_do_not_drown_them() -> None:
    video, other = vectors(6, 1, 128)
    other[1] = video[0] * 3  # cosine 1, where the others stay below 0.5: exp(-0.5 / 0.002) is 0 in float32
    mask = torch.ones(6, device=DEVICE)
    mask[1] = 0
    for symmetric in (False, True):
        assert_within_budget([video, other], torch.float32, 0.002, symmetric=symmetric, mask=mask)


def test_softmaxes_below_the_smallest_float16_reach_the_gradient() -> None:
    video, other = (x.half() for x in vectors(130, 3, 16))
    grad = torch.full((130,), 1e-3, device=DEVICE, dtype=torch.float64)
    settings: dict[str, Any] = {"temperature": 1.0, "symmetric": False}
    exact = results(reference, [video.double(), other.double()], grad, **settings)
    got = results(contrastive_triton, [video, other], grad, **settings)
    for e, t in zip(exact[1:], got[1:], strict=True):
        subnormal = 2.0**-25 * e.numel() ** 0.5
        assert float((t.double() - e).norm()) <= 2 * torch.finfo(torch.float16).eps * float(e.norm()) + subnormal


def test_vectors_shorter_than_the_epsilon() -> None:
    video, other = vectors(4, 2, 16)
    video[0], video[1], other[0, 0], other[1] = 0, video[1] * 1e-8, 0, other[1] * 1e-8
    got = results(contrastive_triton, [video.float(), other.float()], randn(4), temperature=0.07, symmetric=False)
    exact = results(reference, [video, other], randn(4), temperature=0.07, symmetric=False)
    for e, t in zip(exact, got, strict=True):
        torch.testing.assert_close(t.double(), e, rtol=1e-5, atol=1e-5)


# the public function


def public(leaves: list[Tensor], impl: str, **options: Any) -> list[Tensor]:
    names = ("all_video", "all_other")
    loss = vk.contrastive_loss(*leaves[:2], **dict(zip(names, leaves[2:], strict=False)), impl=impl, **options)
    return [loss, *torch.autograd.grad((loss * loss).sum(), [x for x in leaves if x.requires_grad])]


def test_strided_and_expanded_inputs_and_gradients() -> None:
    base, shared = randn(16, 9).requires_grad_(), randn(5, 1, 16, seed=1).requires_grad_()
    everyone = randn(3, 16, 8, seed=2).requires_grad_()
    expected, got = (
        public(
            [
                base.to(dtype).mT[:5],
                shared.to(dtype).expand(5, 3, 16),
                base.to(dtype).mT[1:9],
                everyone.to(dtype).permute(2, 0, 1),
            ],
            impl,
        )
        for impl, dtype in (("reference", torch.float64), ("triton", torch.float32))
    )
    for e, t in zip(expected, got, strict=True):
        torch.testing.assert_close(t.double(), e, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", floats())
def test_low_precision_is_multiplied_as_it_comes(dtype: torch.dtype) -> None:
    """The public function leaves vectors of one dtype to the kernels; losses are float32, gradients of that dtype."""
    leaves = [leaf.to(dtype).requires_grad_() for leaf in vectors(6, 2, 16)]
    direct = contrastive_triton.contrastive_loss(
        *leaves, *leaves, mask=None, video_mask=None, temperature=0.07, symmetric=False
    )
    with torch.autocast(DEVICE, torch.bfloat16):
        loss, *gradients = public(leaves, "triton")
    assert torch.equal(loss, direct)
    assert loss.dtype == torch.float32
    assert [gradient.dtype for gradient in gradients] == [dtype, dtype]


def test_mixed_dtypes_are_multiplied_in_float32() -> None:
    video, other = vectors(6, 2, 16)
    leaves = [video.half().requires_grad_(), other.float().requires_grad_()]
    wide = [leaf.detach().float().requires_grad_() for leaf in leaves]
    expected, got = public(wide, "triton"), public(leaves, "triton")
    assert torch.equal(got[0], expected[0])
    assert [gradient.dtype for gradient in got[1:]] == [torch.float16, torch.float32]


def test_only_what_is_needed() -> None:
    video, other, all_video, all_other = (x.float() for x in vectors(3, 2, 16, 5))
    for needed in (video, other, all_video, all_other):
        leaves = [x.detach().requires_grad_(x is needed) for x in (video, other, all_video, all_other)]
        expected, got = (public(leaves, impl)[1] for impl in ("reference", "triton"))
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    loss = vk.contrastive_loss(video, other, impl="triton")
    assert not loss.requires_grad


def test_no_clips() -> None:
    video, other = torch.zeros(0, 8, device=DEVICE, requires_grad=True), torch.zeros(0, 2, 8, device=DEVICE)
    loss = vk.contrastive_loss(video, other, impl="triton")
    assert loss.shape == (0,)
    assert torch.autograd.grad(loss.sum(), video)[0].shape == (0, 8)


def test_same_bits_every_time() -> None:
    leaves = [leaf.half().requires_grad_() for leaf in vectors(130, 2, 32)]
    for first, second in zip(public(leaves, "triton"), public(leaves, "triton"), strict=True):
        assert torch.equal(first, second)


def test_what_kernels_cannot_do_is_an_error() -> None:
    video, other = vectors(2, 1, 8)
    with pytest.raises(TypeError, match=r"float64.*portable"):
        vk.contrastive_loss(video, other, impl="triton")
    with pytest.raises(ValueError, match=r"up to 512 numbers, got 520.*portable"):
        vk.contrastive_loss(torch.ones(2, 520, device=DEVICE), torch.ones(2, 1, 520, device=DEVICE), impl="triton")
    if DEVICE == "cpu":
        with pytest.raises(TypeError, match=r"bfloat16 in Triton's interpreter.*portable"):
            vk.contrastive_loss(video.bfloat16(), other.bfloat16(), impl="triton")


@pytest.mark.parametrize("total", [None, 220])
def test_memory_is_linear_in_the_candidates(total: int | None, allocated: list[int]) -> None:
    clips, candidates, width = 200, 5, 16
    leaves = [leaf.half().requires_grad_() for leaf in vectors(clips, candidates, width, total)]
    saved: list[int] = []

    def pack(x: Tensor) -> Tensor:
        saved.append(x.numel())
        return x

    allocated.clear()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        public(leaves, "triton")
    linear = (total or clips) * candidates * width
    assert max(saved) <= linear
    if processors(torch.device(DEVICE)) == 1:
        assert max(allocated) <= 1.2 * linear  # 1.2: padding
        assert 10 * linear < clips * (total or clips) * candidates


# official numbers


def official(case: dict[str, np.ndarray], names: tuple[str, str, str], symmetric: bool) -> tuple[Tensor, list[Tensor]]:
    """The losses [replicas] of one pair of modalities, each replica with the gathered batch, and the gradients."""
    video, flat = (torch.from_numpy(case[name]).to(DEVICE).requires_grad_() for name in names[:2])
    replicas, clips = int(case["replicas"]), video.shape[0]
    other = flat.view(clips, -1, flat.shape[1])
    masks = [torch.from_numpy(case[name]).to(DEVICE) if name in case else None for name in (names[2], "video_mask")]
    losses = []
    for rows in torch.arange(clips).view(replicas, -1):
        part = slice(int(rows[0]), int(rows[-1]) + 1)
        local = [None if mask is None else mask[part] for mask in masks]
        gathered: dict[str, Any] = {}
        if replicas > 1:
            gathered = {"all_video": video, "all_other": other, "all_mask": masks[0], "all_video_mask": masks[1]}
            gathered["offset"] = part.start
        loss = vk.contrastive_loss(
            video[part], other[part], mask=local[0], video_mask=local[1], symmetric=symmetric, impl="triton", **gathered
        )
        for weight in (local[0], local[1] if symmetric else None):
            if weight is not None:
                loss = loss * weight * (len(rows) / weight.sum().clamp(min=1))
        losses.append(loss.mean())
    return torch.stack(losses), list(torch.autograd.grad(losses[0] / 2, [video, flat], retain_graph=True))


@BOTH_FORMS
@pytest.mark.parametrize(
    "tag", ["nomask", "allvalid", "partial", "notext", "onevalid", "nce_L1", "videomask", "replicas2"]
)
def test_official_losses_and_gradients(shared: Path, tag: str, symmetric: bool) -> None:
    recorded = np.load(shared / "parity/fixtures/nce_losses.npz")
    case = {name.removeprefix(f"{tag}."): recorded[name] for name in recorded.files if name.startswith(f"{tag}.")}
    form = "symmetric_nce" if symmetric else "asymmetric_nce"
    pairs = (("video_totxt", "text_tovid", "text_mask"), ("video_toaud", "audio_tovid", "audio_mask"))
    (text, of_text), (audio, of_audio) = (official(case, pair, symmetric) for pair in pairs)
    got = torch.stack([(text + audio) / 2, text, audio], dim=1).detach().cpu().numpy()
    np.testing.assert_allclose(got, case[f"{form}.loss_vidtxt_vidaud"], rtol=1e-5, atol=2e-6)
    if int(case["replicas"]) > 1:
        return  # gradients were recorded for one replica
    for name, gradient in zip([name for pair in pairs for name in pair[:2]], of_text + of_audio, strict=True):
        expected = case[f"{form}.grad.{name}"]
        atol = 1e-5 * max(np.abs(expected).max(), 0.1)
        np.testing.assert_allclose(gradient.cpu().numpy(), expected, rtol=1e-4, atol=atol)
