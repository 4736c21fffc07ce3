"""Memory of this process, for programs that import little."""

from __future__ import annotations

import multiprocessing
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any


def resident(name: str) -> int:
    """Return bytes that this process holds: "VmRSS" now, "VmHWM" the most so far (Linux).

    Not getrusage, whose peak is also that of the process which started this one.
    """
    line = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert line
    return int(line[1]) * 1024


def peak_memory(setup: Callable[..., Callable[[], object]], *arguments: Any) -> dict[str, int]:
    """Return bytes of main memory that `setup(*arguments)()` takes, measured in a fresh process (Linux).

    `peak_bytes`: the most the process held, less what it held after its imports: weights, input, gradients and
    everything stored in between. `step_bytes`: the same, less what `setup` left behind (weights and input).
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_peak_of, setup, arguments).result()


def _peak_of(setup: Callable[..., Callable[[], object]], arguments: tuple[Any, ...]) -> dict[str, int]:
    imported = resident("VmRSS")
    step = setup(*arguments)
    ready = resident("VmRSS")
    step()
    peak = resident("VmHWM")
    return {"peak_bytes": peak - imported, "step_bytes": peak - ready}
