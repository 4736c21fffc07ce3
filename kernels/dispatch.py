"""Which implementation of an operation answers: the one asked for by name, or that of the device."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from . import portable, reference
from .device import has_triton, interpreting

IMPLEMENTATIONS = {"reference": reference, "portable": portable}


def default_implementation(device: torch.device) -> str:
    """What `impl=None` means: "triton" on CUDA if it is installed, and on a CPU where its interpreter is asked for."""
    if device.type == "cuda":
        return "triton" if has_triton() else "portable"
    return "triton" if device.type == "cpu" and interpreting() else "portable"


def implementation(
    op: str, impl: str | None, device: torch.device, load_triton: Callable[[], Callable[..., Tensor]]
) -> Callable[..., Tensor]:
    """The function that computes `op` for tensors on `device`.

    `load_triton` imports the Triton form, which it does by an import statement: torch.compile traces that, unlike
    importlib. It is called when its turn has come, as it imports triton.

    Raises:
        RuntimeError: "triton" was asked for and cannot run on `device`; an explicit request never falls back silently.
        ImportError: "triton" was asked for and is not installed.
        ValueError: no implementation has this name.
    """
    impl = default_implementation(device) if impl is None else impl
    if impl == "triton":
        _check_triton(op, device)
        return load_triton()
    if impl not in IMPLEMENTATIONS:
        known = ", ".join(map(repr, (*IMPLEMENTATIONS, "triton")))
        raise ValueError(f"impl={impl!r} is unknown; choose None or one of {known}")
    chosen: Callable[..., Tensor] = getattr(IMPLEMENTATIONS[impl], op)
    return chosen


def _check_triton(op: str, device: torch.device) -> None:
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
