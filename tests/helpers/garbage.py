"""What a piece of code leaves for Python's garbage collector."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def left_behind() -> Iterator[set[str]]:
    """Within it the collector does not run; afterwards the set holds the types ("module.name") it would have freed."""
    left: set[str] = set()
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield left
        gc.collect()
        left |= {f"{type(thing).__module__}.{type(thing).__qualname__}" for thing in gc.garbage}
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def of_ffmpeg(types: set[str]) -> list[str]:
    """Return those with memory of FFmpeg behind them; a format, in a circle in PyAV 14, points into its tables."""
    return sorted(name for name in types if name.startswith("av.") and not name.startswith("av.video.format."))
