"""What all operations ask of their arguments. Errors say what came and what fits."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import NoReturn

import torch
from torch import Tensor


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
