"""`python bench/workloads/pretended_gpu.py`: cases of the kernels' specs on a GPU that is not there, as JSON.

Triton gets a driver that knows the figures of an H200 and whose launches do nothing, PyTorch tensors that say they are
on CUDA. So every host path of the launchers runs, and every kernel is specialised and compiled as that GPU would have
it. Results are what memory held. All of it is the process's own: import nothing from here elsewhere.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

CAPABILITY, PROCESSORS, SHARED_MEMORY = (9, 0), 132, 232_448
CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
GRID_LIMITS = (2**31 - 1, 65_535, 65_535)
ALSO = ("one pass, N = 130, D = 64",)  # other kernels than the first case of its operation
launches: list[dict[str, Any]] = []


class Utils:
    """What Triton asks of the CUDA driver."""

    def get_device_properties(self, index: int) -> dict[str, int]:
        return {
            "max_shared_mem": SHARED_MEMORY,
            "multiprocessor_count": PROCESSORS,
            "max_num_regs": 65_536,
            "warpSize": 32,
        }

    def load_binary(self, name: str, binary: bytes, shared: int, index: int) -> tuple[int, int, int, int, int]:
        """Module, function, registers, spills (found out by `aot` instead) and the largest block."""
        return 0, 0, 0, 0, 1024


class Launcher:
    """In the place of the compiled one: notes the launch."""

    def __init__(self, source: Any, metadata: Any) -> None:
        self.name, self.metadata = source.fn.__name__, metadata

    def __call__(self, x: int, y: int, z: int, *rest: Any) -> None:
        launches.append(
            {
                "kernel": self.name,
                "grid": (x, y, z),
                "warps": self.metadata.num_warps,
                "stages": self.metadata.num_stages,
                "shared": self.metadata.shared,
            }
        )


class Driver:
    def __init__(self) -> None:
        self.utils, self.launcher_cls = Utils(), Launcher

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, index: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 10 * CAPABILITY[0] + CAPABILITY[1], 32)

    def get_active_torch_device(self) -> torch.device:
        return CUDA

    def get_device_interface(self) -> Any:
        return torch.cuda

    def map_python_to_cpp_type(self, kind: str) -> str:
        from triton.backends.nvidia.driver import ty_to_cpp

        return str(ty_to_cpp(kind))


def on_cpu(make: Callable[..., Any]) -> Callable[..., Any]:
    """A function that makes tensors, which makes them on the CPU whatever `device` says."""

    @functools.wraps(make)
    def made(*arguments: Any, **settings: Any) -> Any:
        if settings.get("device") is not None:
            settings["device"] = CPU
        return make(*arguments, **settings)

    return made


def move(to: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`Tensor.to` that changes dtypes only."""

    @functools.wraps(to)
    def moved(self: Tensor, *arguments: Any, **settings: Any) -> Tensor:
        settings.pop("device", None)
        rest = [x for x in arguments if not isinstance(x, torch.device | str)]
        return to(self, *rest, **settings) if rest or settings else self

    return moved


def install() -> None:
    """From here on this process has the GPU."""
    driver.set_active(Driver())
    for name in (
        "empty",
        "zeros",
        "ones",
        "full",
        "arange",
        "tensor",
        "rand",
        "randn",
        "randint",
        "empty_like",
        "zeros_like",
        "ones_like",
        "full_like",
    ):
        setattr(torch, name, on_cpu(getattr(torch, name)))
    for name in ("new_empty", "new_zeros", "new_ones", "new_full", "new_tensor"):
        setattr(Tensor, name, on_cpu(getattr(Tensor, name)))
    generator = torch.Generator
    changes: dict[Any, dict[str, Any]] = {
        torch: {"Generator": lambda device=None: generator()},
        Tensor: {
            "to": move(Tensor.to),
            "get_device": lambda self: 0,
            "device": property(lambda self: CUDA),
            "is_cuda": property(lambda self: True),
        },
        torch.cuda: {
            "is_available": lambda: True,
            "current_device": lambda: 0,
            "get_device_name": lambda *of: "pretended",
            "get_device_capability": lambda *of: CAPABILITY,
            "get_device_properties": lambda *of: SimpleNamespace(multi_processor_count=PROCESSORS, name="pretended"),
            "device": lambda *of: contextlib.nullcontext(),
            "device_of": lambda *of: contextlib.nullcontext(),
        },
    }
    for owner, attributes in changes.items():
        for name, value in attributes.items():
            setattr(owner, name, value)


def launch(spec: Any, case: Any, dtype: torch.dtype) -> None:
    """The case forward, and backward to all of its leaves."""
    inputs = spec.make(case, dtype, CUDA, 0).differentiable()
    out = spec.call(inputs, "triton")
    if inputs.leaves:
        torch.autograd.grad(out, list(inputs.leaves.values()), torch.ones_like(out))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--all", action="store_true", help="all cases, not the first of each operation and form")
    parser.add_argument("--shapes", action="store_true", help="the first shape of VATT of each operation as well")
    options = parser.parse_args()
    install()
    from vatt_kernels.catalog import SPECS  # after the GPU is there

    rows = []
    for spec in SPECS:
        cases = [case for n, case in enumerate(spec.cases()) if options.all or n == 0 or case.name in ALSO]
        for case in (*cases, *(spec.shapes()[:1] if options.shapes else ())):
            row: dict[str, Any] = {"operation": spec.name, "case": case.name, "error": ""}
            launches.clear()
            try:
                launch(spec, case, getattr(torch, options.dtype))
            except Exception as error:  # the other cases are still worth a look
                row["error"] = f"{type(error).__name__}: {error}"
            rows.append(row | {"launches": list(launches)})
    print(json.dumps({"triton": triton.__version__, "limits": GRID_LIMITS, "shared": SHARED_MEMORY, "rows": rows}))
    return int(any(row["error"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
