"""The registered operations: what torch.library promises of them, and models compiled without a break.

In Triton's interpreter or on a GPU, as the other tests of the kernels.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
import vatt_kernels as vk
from helpers.compiled import assert_one_graph, model_config
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vatt.ops import choose

CUDA = torch.cuda.is_available()
if not CUDA and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a CUDA device, or TRITON_INTERPRET=1 before Python starts", allow_module_level=True)
DEVICE = "cuda" if CUDA else "cpu"
BACKEND = "inductor" if CUDA else "eager"  # here the graph counts; opcheck sees to what AOTAutograd makes of it


def noise(*shape: int, grad: bool = True) -> Tensor:
    draw = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=draw).to(DEVICE).requires_grad_(grad)


def clip() -> tuple[Tensor, ...]:
    """Frames of 12 patches of 24 values, weight, bias, position and two rows of kept patches."""
    draw = torch.Generator().manual_seed(1)
    frames = torch.randint(0, 256, (2, 2, 6, 8, 3), dtype=torch.uint8, generator=draw).to(DEVICE)
    keep = torch.tensor([[0, 3, 4, 7], [1, 2, 10, 11]], dtype=torch.int32, device=DEVICE)
    return frames, noise(24, 16), noise(16), noise(12, 16), keep


def operations() -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """Each registered operation that callers reach, with arguments."""
    sample = vk.sample_keep(9, 4, seed=2, device=DEVICE, impl="triton")  # imports the file, which registers
    x, q, table = noise(2, 9, 16), noise(2, 5, 2, 16), noise(8, 2)
    vk.attention(q, q, q, impl="triton")
    frames, weight, bias, position, keep = clip()
    vk.project_voxels(frames, weight, bias, patch=(1, 2, 4), keep=keep, position=position, impl="triton")
    video, text = noise(4, 16), noise(4, 3, 16)
    vk.contrastive_loss(video, text, impl="triton")
    mask, edges = torch.tensor([1.0, 0, 1, 1], device=DEVICE), torch.tensor([0, 2, 5], device=DEVICE)
    packed = q.detach()[0].requires_grad_()
    visible = torch.ones(2, 5, dtype=torch.bool, device=DEVICE)
    together, seed = noise(2, 5, 3, 2, 16), torch.tensor(7, device=DEVICE)
    settings = (None, None, 64, None, None, 0.25)
    ops = torch.ops.vatt
    return {
        "sample_keep": (ops.sample_keep, (9, 4, seed, 6, 3, torch.device(DEVICE))),
        "gather_tokens": (ops.gather_tokens, (x, sample)),
        "project": (ops.project, (frames, weight, bias, position, keep, [1, 2, 4], 0.1, -1.0, torch.float32)),
        "project alone": (ops.project, (frames, weight, None, None, None, [1, 2, 4], 1.0, 0.0, torch.float32)),
        "attention": (ops.attention, (q, q, q, table, visible, 8, None, None, 0.25, 0.2, seed, 2, False)),
        "attention of one tensor": (ops.attention, (together, None, None, *settings, 0.2, seed, 1, False)),
        "packed attention": (
            ops.attention,
            (packed, packed, packed, None, None, 64, edges, 3, 0.25, 0.0, None, 2, False),
        ),
        "contrastive_loss": (ops.contrastive_loss, (video, text, None, None, mask, None, 0.07, False)),
        "gathered contrastive_loss": (
            ops.contrastive_loss,
            (video[:2], text[:2], video, text, mask, mask, 0.07, True),
        ),
    }


@pytest.mark.parametrize(
    "name",
    [
        "sample_keep",
        "gather_tokens",
        "project",
        "project alone",
        "attention",
        "attention of one tensor",
        "packed attention",
        "contrastive_loss",
        "gathered contrastive_loss",
    ],
)
def test_opcheck(name: str) -> None:
    """Schema, shapes without data, gradients and tracing agree with what the operation does."""
    operation, arguments = operations()[name]
    torch.library.opcheck(operation.default, arguments)


def counted(call: Callable[[], Tensor]) -> tuple[int, int]:
    with FlopCounterMode(display=False) as counter:
        out = call()
        forward = counter.get_total_flops()
        out.sum().backward()
    return forward, counter.get_total_flops() - forward


def test_flops_are_those_of_the_formulas() -> None:
    frames, weight, bias, position, keep = clip()
    x, video, text = noise(2, 5, 2, 16), noise(4, 16), noise(4, 3, 16)

    def project() -> Tensor:
        return vk.project_voxels(frames, weight, bias, patch=(1, 2, 4), keep=keep, position=position, impl="triton")

    assert counted(project) == (2 * 8 * 24 * 16, 2 * 8 * 24 * 16)  # two clips of four patches; bytes have no gradient
    products = 4 * 2 * 5 * 5 * 2 * 16
    assert counted(lambda: vk.attention(x, x, x, impl="triton")) == (products, 2 * products)
    assert counted(lambda: vk.attention(torch.stack([x, x, x], 2), impl="triton")) == (products, 2 * products)
    scores = 2 * 4 * 4 * 3 * 16
    assert counted(lambda: vk.contrastive_loss(video, text, impl="triton")) == (2 * scores, 4 * scores)


def test_autocast_chooses_the_dtype_of_products_not_of_statistics() -> None:
    frames, weight, bias, position, keep = clip()
    x, video, text = noise(2, 5, 2, 16), noise(4, 16), noise(4, 3, 16)
    dtype = torch.bfloat16 if CUDA else torch.float16  # the interpreter has no bfloat16
    with torch.autocast(DEVICE, dtype=dtype):
        tokens = vk.project_voxels(frames, weight, bias, patch=(1, 2, 4), keep=keep, position=position, impl="triton")
        out = vk.attention(x, x, x, impl="triton")
        loss = vk.contrastive_loss(video, text, impl="triton")
    assert (tokens.dtype, out.dtype, loss.dtype) == (torch.float32, dtype, torch.float32)
    tokens.sum().backward()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32
    exact = vk.project_voxels(frames, weight, bias, patch=(1, 2, 4), keep=keep, position=position, impl="reference")
    assert 0 < (tokens - exact).abs().max() < 8 * torch.finfo(dtype).eps * exact.abs().max()


def test_second_derivatives_are_refused() -> None:
    x = noise(2, 5, 2, 16)
    (gradient,) = torch.autograd.grad(vk.attention(x, x, x, impl="triton").sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives"):
        gradient.sum().backward()


def test_a_whole_model_is_one_graph() -> None:
    assert_one_graph(model_config("specific", "batch"), choose(True, DEVICE), DEVICE, BACKEND)
