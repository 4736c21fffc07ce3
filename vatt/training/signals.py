"""SIGTERM and SIGINT end a run after the step in progress."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm


@contextlib.contextmanager
def termination(together: float = 0.0) -> Iterator[list[int]]:
    """Collect SIGTERM and SIGINT so that the step in progress ends first. A second signal exits at once.

    Signals of `together` seconds are one: a terminal and a launcher may both pass on the same Ctrl-C.
    """
    received: list[int] = []
    since = 0.0

    def handle(number: int, frame: Any) -> None:
        nonlocal since
        if received and time.monotonic() - since >= together:
            sys.exit(128 + number)
        if received:
            return
        received.append(number)
        since = time.monotonic()
        tqdm.write(f"{signal.Signals(number).name}: saving after this step (again: exit at once)", file=sys.stderr)

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
