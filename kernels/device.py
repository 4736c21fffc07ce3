"""What the launchers ask of a device; Triton's interpreter, on a CPU, is one processor without limits."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

INTERPRETED = 90  # whose tiles the interpreter runs
MISREAD_PRODUCTS = frozenset({torch.bfloat16})  # whose bits the interpreter multiplies as integers


@functools.cache
def processors(device: torch.device) -> int:
    """Multiprocessors that run programs at the same time."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


@functools.cache
def shared_memory(device: torch.device) -> int:
    """Bytes that one program can have."""
    if device.type != "cuda":
        return 2**31
    from triton.runtime import driver

    # What a launch is held against. `triton.compiler.max_shared_mem` is the same from triton 3.7 on, 3.6 lacks it.
    return int(driver.active.utils.get_device_properties(device.index)["max_shared_mem"])


def target(device: torch.device) -> int:
    """80, 90, 100 or 942: the architecture ahead of time whose tiles suit the device.

    GPUs with little shared memory (8.6, 8.9, 12.x) take those of 80, AMD's those of gfx942.
    """
    if device.type != "cuda":
        return INTERPRETED
    if torch.version.hip:
        return 942
    return {9: 90, 10: 100}.get(torch.cuda.get_device_capability(device)[0], 80)


def architecture(columns: Mapping[int, tuple[int, ...]], device: torch.device) -> int:
    """The column of a launch table that the device reads, for a table whose `columns` serve these targets."""
    return next(name for name, served in columns.items() if target(device) in served)


def on_device(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Triton launches on the current GPU, which need not be the tensor's."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


@functools.cache
def has_triton() -> bool:
    """Whether the package is installed; looking does not import it."""
    return find_spec("triton") is not None


def interpreting() -> bool:
    """Whether Triton's interpreter was asked for. Triton reads the variable when a kernel's file is imported."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "on", "true", "y", "yes")


def check_product(op: str, dtype: torch.dtype) -> None:
    """Refuse products that Triton's interpreter gets wrong without a word.

    Raises:
        TypeError: the interpreter was asked for and `dtype` is bfloat16.
    """
    if interpreting() and dtype in MISREAD_PRODUCTS:
        raise TypeError(
            f'{op}: impl="triton" cannot multiply in bfloat16 in Triton\'s interpreter; convert the inputs, switch '
            'autocast off, or use impl="portable"'
        )
