"""Tells which clip each process is decoding, since when, and ends a process whose decoder does not come back.

A decoder that hangs inside the library looks at no deadline and cannot be interrupted, only its process can be killed.
So workers write down what they open, in memory that they share with the main process.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator

import torch
from torch.utils.data import get_worker_info

from vatt.data.manifest import Clip
from vatt.data.reader import BadClip

_PID, _CLIP, _SINCE = range(3)  # columns of the table; _SINCE is 0 while nothing is being decoded


class Watch:
    """`limit`: seconds after which a decoder is given up, well above what a clip's own deadline allows.

    `stuck`: clips given up, manifest index and reason. `seconds`: spent decoding in this process.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.stuck: dict[int, str] = {}
        self.seconds = 0.0
        self._table: torch.Tensor | None = None

    def share(self, workers: int) -> None:
        """Makes the table of `workers` processes to be started; to be called before they are."""
        self._table = torch.zeros((workers, 3), dtype=torch.float64).share_memory_()

    @contextlib.contextmanager
    def decoding(self, clip: Clip) -> Iterator[None]:
        """Around all that opens the file of `clip`. Raises `BadClip` when that has been given up before."""
        if clip.index in self.stuck:
            raise BadClip(clip.path, self.stuck[clip.index])
        worker = get_worker_info()
        row = None if worker is None or self._table is None else self._table[worker.id]
        since = time.perf_counter()
        if row is not None:
            row[_PID], row[_CLIP] = os.getpid(), clip.index
            row[_SINCE] = time.monotonic()  # one clock for all processes of a machine
        try:
            yield
        finally:
            if row is not None:
                row[_SINCE] = 0.0
            self.seconds += time.perf_counter() - since

    def end_stuck(self) -> bool:
        """Kills the workers that have been at a clip for longer than `limit` and notes the clips in `stuck`."""
        found = False
        for row in [] if self._table is None else self._table:
            since = row[_SINCE].item()
            pid, clip = int(row[_PID].item()), int(row[_CLIP].item())
            # The worker may have come back between these reads: what was read counts only if it is still the same.
            if not since or time.monotonic() - since <= self.limit or row[_SINCE].item() != since:
                continue
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            row[_SINCE] = 0.0
            self.stuck[clip] = f"its decoder hung for {self.limit:g} s and was ended"
            found = True
        return found
