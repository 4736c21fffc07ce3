"""The device, the dtype of products and the autocast that settings name."""

from __future__ import annotations

import os
import platform

import torch
import torch.nn.functional as F

from ..errors import ConfigError


def pick_device(name: str, local_rank: int | None = None) -> torch.device:
    """Return the device of that name; "auto" is a GPU if there is one.

    Args:
        name: cpu, cuda, cuda:1, ... or auto.
        local_rank: number of this process among several of this machine, each of which takes the GPU of its number.

    Raises:
        ConfigError: there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and local_rank is not None:
        name = f"cuda:{local_rank}"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"device {name!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return device


def require_bfloat16(device: torch.device) -> None:
    """Raise `ConfigError` where PyTorch cannot compute attention in bfloat16.

    That is so on a CPU with AMX when `ATEN_CPU_CAPABILITY` holds PyTorch back: it packs keys for AMX all the same.
    """
    x = torch.zeros(1, 1, 64, 64, dtype=torch.bfloat16, device=device)
    try:
        F.scaled_dot_product_attention(x, x, x)
    except RuntimeError as error:
        raise ConfigError(
            f"bfloat16 cannot be used here ({str(error).splitlines()[0]}); use float32, or unset ATEN_CPU_CAPABILITY"
        ) from error


def compute_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the type that products are computed in: "auto" is bfloat16 on GPUs (parameters stay float32) and float32
    elsewhere.
    """
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if name == "bfloat16" and device.type == "cpu":
        require_bfloat16(device)
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def cpu_multiplies_bfloat16() -> bool:
    """Return whether this CPU multiplies bfloat16 in hardware, and PyTorch and oneDNN may use that here.

    `ATEN_CPU_CAPABILITY` and `ONEDNN_MAX_CPU_ISA` hold them back where they are set.
    """
    can: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    if not (can.get("amx_bf16") or can.get("avx512_bf16") or can.get("arm_bf16")):
        return False
    held_back = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() not in ("", "DEFAULT", "ALL") or (
        platform.machine() == "x86_64" and "AVX512" not in torch.backends.cpu.get_cpu_capability()
    )
    return not held_back and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def autocast_for(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)
