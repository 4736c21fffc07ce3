"""Registration of the Triton kernels with torch.library, under `torch.ops.vatt`.

An operation and its backward are opaque to PyTorch: torch.compile does not look into them, fake tensors get shapes from
a formula, and `FlopCounterMode` FLOPs. One implementation serves all devices, as Triton kernels run on a GPU and, in
Triton's interpreter, on a CPU. The portable and the reference form are not registered: they consist of PyTorch
operations, which torch.compile sees through, differentiates and fuses by itself.

Source: PyTorch's "Custom C++ and CUDA operators" manual, whose Python interface this is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

NAMESPACE = "vatt"


def operator(
    schema: str, implementation: Callable[..., Any], fake: Callable[..., Any], flops: Callable[..., int] | None = None
) -> Any:
    """Define `vatt::schema` once and return its overload, which is what callers call.

    Args:
        schema: "name(arguments) -> results" in PyTorch's schema language.
        implementation: computes real tensors; what it returns shares no memory with its arguments.
        fake: the same arguments to empty tensors of the results' shapes, dtypes and strides.
        flops: shapes instead of tensors, the other arguments, and out_shape= to a number of FLOPs.
    """
    name = schema.partition("(")[0]
    torch.library.define(f"{NAMESPACE}::{name}", f"({schema.partition('(')[2]}")
    no_tensors = "Tensor" not in schema.partition(" -> ")[0]
    torch.library.impl(f"{NAMESPACE}::{name}", "BackendSelect" if no_tensors else "CompositeExplicitAutograd")(
        implementation
    )
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake)
    packet = getattr(torch.ops.vatt, name)
    if flops is not None:
        register_flop_formula(packet)(flops)
    return packet.default


def differentiable(operation: Any, save: Callable[..., None], backward: Callable[..., Any], *others: Any) -> None:
    """Register the gradient of `operation`; `others` (its backward) refuse to be differentiated.

    Args:
        save: `setup_context(ctx, inputs, output)`.
        backward: `(ctx, *gradients)` to one gradient or None for each input.
    """
    torch.library.register_autograd(operation, backward, setup_context=save)
    for other in others:
        torch.library.register_autograd(other, _no_double_backward)


def _no_double_backward(ctx: Any, *gradients: Tensor) -> None:
    raise NotImplementedError('second derivatives are not defined for impl="triton"; use impl="reference"')


def present(gradients: Sequence[Tensor], needed: Sequence[bool]) -> list[Tensor | None]:
    """None for what was not needed: an operator returns tensors only, and empty ones stand for missing gradients."""
    return [gradient if need else None for gradient, need in zip(gradients, needed, strict=True)]


def signed64(word: int) -> int:
    """The low 64 bits as a signed number: all that the schema language has for integers."""
    return ((word & 0xFFFFFFFFFFFFFFFF) ^ 0x8000000000000000) - 0x8000000000000000


def seed_tensor(seed: int | Tensor, device: torch.device) -> Tensor:
    """A seed where kernels read it: a replayed CUDA graph sees the value of that moment, not that of the capture.

    Raises:
        TypeError, ValueError: the tensor is not one int64 on `device`.
    """
    if not isinstance(seed, Tensor):
        return torch.full((), signed64(seed), dtype=torch.int64, device=device)
    if seed.dtype != torch.int64:
        raise TypeError(f"a seed is an int64 tensor, got {seed.dtype}")
    if seed.numel() != 1 or seed.device.type != device.type:
        raise ValueError(f"a seed is one number on {device}, got {list(seed.shape)} on {seed.device}")
    return seed
