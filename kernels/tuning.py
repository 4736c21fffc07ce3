"""Launches that were measured on a GPU, which stand before those of the code.

The launch tables beside the kernels were chosen by what the compiler says: registers, spills, shared memory. Where
`bench/tune.py` has run, its choices lie in measured_launches.json by the name that PyTorch gives the GPU, with the
versions and the commit that they were measured with. Only products in bfloat16 and float16 are tuned.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch

L = TypeVar("L", bound=tuple[Any, ...])
TABLE = Path(__file__).with_name("measured_launches.json")
_tried: dict[str, tuple[Any, ...]] = {}


@functools.cache
def measured(gpu: str) -> dict[str, list[Any]]:
    """Name of a launch to its values, for a GPU; empty where none was measured."""
    found: dict[str, list[Any]] = json.loads(TABLE.read_text()).get(gpu, {}).get("launches", {})
    return found


@functools.cache
def _gpu(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else ""


def tuned(name: str, table: tuple[L, ...], device: torch.device) -> tuple[L, ...]:
    """The launches of `table`, all of one type, with the one that was measured for `device` before them."""
    values = _tried.get(name) or measured(_gpu(device)).get(name)
    return table if values is None else (type(table[0])(*values), *table)


@contextmanager
def trying(name: str, launch: tuple[Any, ...]) -> Iterator[None]:
    """Within it `launch` is what was measured for `name`, on whatever device."""
    _tried[name] = launch
    try:
        yield
    finally:
        del _tried[name]
