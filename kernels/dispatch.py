"""What all operations ask of their arguments, and which implementation answers. Errors say what came and what fits."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from typing import NoReturn

import torch
from torch import Tensor

from . import portable, reference

IMPLEMENTATIONS = {"reference": reference, "portable": portable}
OPERATIONS = ("project", "sample_keep", "gather_tokens", "attention", "contrastive_loss")


@functools.cache
def has_triton() -> bool:
    """Whether the package is installed; looking does not import it."""
    return find_spec("triton") is not None


def interpreting() -> bool:
    """Whether Triton's interpreter was asked for. Triton reads the variable when a kernel's file is imported."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "on", "true", "y", "yes")


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
            from . import projection_triton

            return projection_triton.project
        case "sample_keep":
            from . import tokens_triton

            return tokens_triton.sample_keep
        case "gather_tokens":
            from . import tokens_triton

            return tokens_triton.gather_tokens
        case "attention":
            from . import attention_triton

            return attention_triton.attention
        case _:
            from . import contrastive_triton

            return contrastive_triton.contrastive_loss


def shape_of(x: Tensor) -> str:
    return f"{x.dtype} {list(x.shape)}"


def shape_error(op: str, name: str, expected: str, got: Tensor) -> NoReturn:
    raise ValueError(f"{op}: {name} must be {expected}, got {shape_of(got)}")


def check_same_device(op: str, **tensors: Tensor | None) -> None:
    devices = {name: x.device for name, x in tensors.items() if x is not None}
    if len(set(devices.values())) > 1:
        listed = ", ".join(f"{name} on {device}" for name, device in devices.items())
        raise ValueError(f"{op}: all tensors must be on one device, got {listed}")


def check_keep(op: str, keep: Tensor, batch: int, tokens: int) -> None:
    """`keep` is [K] or [batch, K], int32 or int64, in 0..tokens-1.

    Values are read on a CPU only, and not while torch.compile traces: neither a GPU nor a graph waits for them.
    """
    if keep.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{op}: keep must hold int32 or int64 indices, got {keep.dtype}")
    if keep.ndim not in (1, 2) or (keep.ndim == 2 and keep.shape[0] != batch):
        shape_error(op, "keep", f"[K] or [{batch}, K]", keep)
    if keep.device.type == "cpu" and not torch.compiler.is_compiling() and keep.numel():
        low, high = (int(value) for value in keep.aminmax())
        if low < 0 or high >= tokens:
            raise IndexError(f"{op}: keep must lie in 0..{tokens - 1} (there are {tokens} tokens), got {low}..{high}")


def compute_dtype(tensor: Tensor, default: torch.dtype) -> torch.dtype:
    """The dtype of matrix products: autocast's where it is on for the tensor's device, else `default`."""
    kind = tensor.device.type
    if default != torch.float64 and torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return default


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Operations keep the dtypes they choose; on devices without autocast (meta) there is nothing to stop."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
