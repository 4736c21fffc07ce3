"""What Triton's interpreter needs of the releases that are installed, and how its tests take minutes less.

`VATT_FULL=1`, which `make full` sets, gives it all cases; GPUs always have all.
"""

from __future__ import annotations

import inspect
import os
from importlib.metadata import PackageNotFoundError, version
from typing import Any


def few(*values: Any) -> list[Any]:
    """All of `values` on a GPU and in `make full`, otherwise the first."""
    import torch

    return list(values if torch.cuda.is_available() or os.environ.get("VATT_FULL") == "1" else values[:1])


def floats() -> list[Any]:
    """The dtypes of tests that compute in each: one that rounds, as test_spec.py goes through all cases in float32."""
    import torch

    bfloat16 = [torch.bfloat16] if torch.cuda.is_available() else []  # the interpreter has none
    return few(torch.float16, torch.float32, *bfloat16)


def quicken() -> None:
    """Each call of a kernel's function looks through triton.language for what to replace: a third of all time."""
    from triton.language.core import is_builtin
    from triton.runtime import interpreter

    names: dict[Any, list[str]] = {}

    def replace(package: Any, *rest: Any) -> None:
        if package not in names:
            names[package] = [name for name, member in inspect.getmembers(package) if is_builtin(member)]
        for name in names[package]:
            if is_builtin(member := getattr(package, name)):  # if not, whoever calls this function replaced it
                interpreter._patch_attr(package, name, member, *rest)

    interpreter._patch_builtin = replace


def interpreter_fails() -> str:
    """Why Triton's interpreter cannot run here, where it is the fault of the releases that are installed."""
    try:
        triton, numpy = (tuple(map(int, version(name).split(".")[:2])) for name in ("triton", "numpy"))
    except PackageNotFoundError:
        return ""
    if triton < (3, 7) and numpy >= (2, 4):
        return "triton 3.6's interpreter turns arrays into numbers as numpy 2.4 no longer does; with numpy<2.4 it works"
    return ""
