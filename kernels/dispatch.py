"""What all operations ask of their arguments, and which implementation answers. Errors say what came and what fits."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from . import portable, reference
from .device import has_triton, interpreting

IMPLEMENTATIONS = {"reference": reference, "portable": portable}
OPERATIONS = ("project", "sample_keep", "gather_tokens", "attention", "contrastive_loss")


def default_implementation(device: torch.device) -> str:
    """What `impl=None` means: "triton" on CUDA if it is installed, and on a CPU where its interpreter is asked for."""
    if device.type == "cuda":
        return "triton" if has_triton() else "portable"
    return "triton" if device.type == "cpu" and interpreting() else "portable"


def implementation(op: str, impl: str | None, device: torch.device) -> Callable[..., Tensor]:
    """The function that computes `op` (one of OPERATIONS) for tensors on `device`.

    Raises:
        RuntimeError: "triton" was asked for and cannot run on `device`; an explicit request never falls back silently.
        ImportError: "triton" was asked for and is not installed.
        ValueError: no implementation has this name.
    """
    impl = default_implementation(device) if impl is None else impl
    if impl == "triton":
        return _triton(op, device)
    if impl not in IMPLEMENTATIONS:
        known = ", ".join(map(repr, (*IMPLEMENTATIONS, "triton")))
        raise ValueError(f"impl={impl!r} is unknown; choose None or one of {known}")
    chosen: Callable[..., Tensor] = getattr(IMPLEMENTATIONS[impl], op)
    return chosen


def _triton(op: str, device: torch.device) -> Callable[..., Tensor]:
    ways_out = 'choose impl="portable" or impl="reference"'
    if not torch.compiler.is_compiling() and not has_triton():  # a tracer cannot look; the import below fails as well
        raise ImportError(f'{op}: impl="triton" needs the package triton, which is not installed; {ways_out}')
    if device.type == "cpu" and not interpreting():
        raise RuntimeError(
            f'{op}: impl="triton" needs tensors on a CUDA device, got {device}; {ways_out}, or set TRITON_INTERPRET=1 '
            "before Python starts to run the kernels in Triton's interpreter (slow, for checking)"
        )
    if device.type not in ("cpu", "cuda"):
        raise RuntimeError(f'{op}: impl="triton" needs tensors on a CUDA device, got {device}; {ways_out}')
    return _imported(op)


def _imported(op: str) -> Callable[..., Tensor]:
    """By import statements, which torch.compile traces, unlike importlib; not before it is time: they import triton."""
    match op:
        case "project":
            from .projection import triton_op as projection_triton

            return projection_triton.project
        case "sample_keep":
            from .droptoken import triton_op as tokens_triton

            return tokens_triton.sample_keep
        case "gather_tokens":
            from .droptoken import triton_op as tokens_triton

            return tokens_triton.gather_tokens
        case "attention":
            from .self_attention import triton_op as attention_triton

            return attention_triton.attention
        case _:
            from .contrastive import triton_op as contrastive_triton

            return contrastive_triton.contrastive_loss
