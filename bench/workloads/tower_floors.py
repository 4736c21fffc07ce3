"""Where the time of a tower's features goes, by kind of operation, and what the CPU could do best.

A floor is what the FLOPs of a kind would take at the highest rate that the CPU reached with a product of the tower's
own shapes; operations that are no products have none.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from harness import timing

import torch
from accounting.flops import Flops
from torch.utils._python_dispatch import TorchDispatchMode

from vatt.config.model import EncoderConfig

KINDS = {
    "products": ("linear", "matmul", "addmm", "aten.mm"),
    "attention": ("scaled_dot_product",),
    "norms": ("layer_norm",),
}
REST = "sums, GELU and copies"  # GELU in bfloat16 is part of a product


class _Clock(TorchDispatchMode):
    """Seconds of each kind of operation."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: dict[str, float] = defaultdict(float)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        kind = next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), REST)
        tick = time.perf_counter()
        out = func(*args, **(kwargs or {}))
        self.seconds[kind] += time.perf_counter() - tick
        return out


def best_rate(encoder: EncoderConfig, rows: int, dtype: torch.dtype, rounds: int) -> float:
    """Return the highest FLOP/s of the four products of a layer."""
    inner, best = encoder.heads * encoder.head_width, 0.0
    for width, out in (
        *((encoder.width, 3 * inner), (inner, encoder.width)),
        *((encoder.width, encoder.mlp), (encoder.mlp, encoder.width)),
    ):
        x, weight = torch.randn(rows, width).to(dtype), torch.randn(width, out).to(dtype)
        for _ in range(rounds + 1):
            tick = time.perf_counter()
            x @ weight
            best = max(best, 2 * rows * width * out / (time.perf_counter() - tick))
    return best


def rows(what: str, run: Callable[[], object], flops: Flops, rate: float, rounds: int) -> list[dict[str, Any]]:
    """Run `run` and return a row for each kind of operation: seconds, share of all, GFLOP/s, floor in seconds."""
    run()
    found: list[dict[str, float]] = []
    for _ in range(rounds):
        with _Clock() as clock:
            run()
        found.append(clock.seconds)
    work = {"products": flops.projection + flops.dense, "attention": flops.attention}
    made = []
    for kind in (*KINDS, REST):
        row: dict[str, Any] = {"part": "floors", "what": what, "candidate": kind}
        row |= timing.quantiles([seconds[kind] for seconds in found])
        row["share"] = sum(seconds[kind] for seconds in found) / sum(sum(seconds.values()) for seconds in found)
        if kind in work:
            floor = work[kind] / rate
            row |= {"floor": floor, "gflops": rate * floor / row["p50"] / 1e9, "best_gflops": rate / 1e9}
        made.append(row)
    return made
