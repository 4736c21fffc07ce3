"""What all operations ask of their arguments, and which implementation answers. Errors say what came and what fits."""

from __future__ import annotations

from types import ModuleType
from typing import NoReturn

import torch
from torch import Tensor

from . import portable, reference

IMPLEMENTATIONS: dict[str, ModuleType] = {"reference": reference, "portable": portable}


def implementation(impl: str | None) -> ModuleType:
    """The module that computes. None is "portable" on every device.

    Raises:
        NotImplementedError: "triton" was asked for; an explicit request never falls back silently.
        ValueError: no implementation has this name.
    """
    if impl is None:
        return portable
    if impl == "triton":
        raise NotImplementedError(
            'impl="triton": no Triton implementation exists yet; choose impl="portable" or impl="reference"'
        )
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl={impl!r} is unknown; choose None or one of {', '.join(map(repr, IMPLEMENTATIONS))}")
    return IMPLEMENTATIONS[impl]


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
    """`keep` is [K] or [batch, K], int32 or int64, in 0..tokens-1. Values are read on a CPU only (no GPU waits)."""
    if keep.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{op}: keep must hold int32 or int64 indices, got {keep.dtype}")
    if keep.ndim not in (1, 2) or (keep.ndim == 2 and keep.shape[0] != batch):
        shape_error(op, "keep", f"[K] or [{batch}, K]", keep)
    if keep.device.type == "cpu" and keep.numel():
        low, high = (int(value) for value in keep.aminmax())
        if low < 0 or high >= tokens:
            raise IndexError(f"{op}: keep must lie in 0..{tokens - 1} (there are {tokens} tokens), got {low}..{high}")


def compute_dtype(tensor: Tensor, default: torch.dtype) -> torch.dtype:
    """The dtype of matrix products: autocast's where it is on for the tensor's device, else `default`."""
    kind = tensor.device.type
    if torch.is_autocast_enabled(kind) and default != torch.float64:
        return torch.get_autocast_dtype(kind)
    return default
