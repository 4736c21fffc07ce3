"""A trace of some training steps by PyTorch's profiler, to be opened in chrome://tracing or https://ui.perfetto.dev.

`--profile 20:5` traces steps 20 to 24, as metrics.jsonl numbers them, on every process. The profiler only listens: the
run computes what it would compute without it, the profiled steps a little slower.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from ..errors import ConfigError
from ..runtime.files import replacing


class ProfiledSteps(NamedTuple):
    """`length` steps, the first of them number `first` (from 1)."""

    first: int
    length: int

    @property
    def last(self) -> int:
        return self.first + self.length - 1


def parse_profile(text: str, steps: int) -> ProfiledSteps:
    """Parse "START:COUNT" of a run of `steps` steps.

    Raises:
        ConfigError: it is anything else, or steps past the end of the run.
    """
    first, colon, count = text.partition(":")
    if not (colon and first.isdecimal() and count.isdecimal() and int(first) and int(count)):
        raise ConfigError(f"--profile takes START:COUNT, e.g. 20:5 for steps 20 to 24, got {text!r}")
    profiled = ProfiledSteps(int(first), int(count))
    if profiled.last > steps:
        raise ConfigError(f"--profile {text} asks for step {profiled.last} of {steps}")
    return profiled


@contextlib.contextmanager
def profiling(profiled: ProfiledSteps | None, path: Path, start: int) -> Iterator[Callable[[], None]]:
    """Give what is to be called after every step, and write the trace.

    The trace is written after the last profiled step, or when the run ends. Without `profiled` nothing happens.

    Args:
        profiled: the steps to trace.
        path: of the trace.
        start: steps that are done already.

    Raises:
        ConfigError: some of the steps are done already.
        OSError: `path` cannot be written.
    """
    if profiled is None:
        yield lambda: None
        return
    if profiled.first <= start:
        raise ConfigError(f"--profile {profiled.first}:{profiled.length}: {start} steps are done already")

    def write(profiler: Any) -> None:
        with replacing(path) as temporary:
            profiler.export_chrome_trace(str(temporary))

    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    ahead = profiled.first - 1 - start
    warmup = min(ahead, 1)  # the profiler's own start falls into a step that is not profiled, where there is one
    plan = schedule(wait=0, warmup=warmup, active=profiled.length, repeat=1, skip_first=ahead - warmup)
    with profile(activities=activities, schedule=plan, on_trace_ready=write, acc_events=True) as profiler:
        yield profiler.step
