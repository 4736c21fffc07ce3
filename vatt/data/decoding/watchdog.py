"""Tells which clip each process is decoding and since when, so that what a decoder does to its process costs one clip.

A decoder that hangs inside the library looks at no deadline and cannot be interrupted, only its process can be killed;
one that crashes takes its process with it. So workers write down what they open, in memory that they share with the
main process. And one that asks for more memory than a clip is worth is refused it, before the machine runs out.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import time
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from ..clip import Clip
from ..workers import LOST, SharedTable, describe_exit
from .container import BadClip
from .memory_limit import memory_limit

# Columns of the table. _SINCE is 0 while nothing is being decoded; _ALIVE: when something last began or ended.
_PID, _CLIP, _SINCE, _ALIVE = range(4)
MAX_KILLED = 8  # workers killed from outside, each at another clip not read since, before it is called a fault


class Watch:
    """`limit`: seconds after which a decoder is given up, well above what a clip's own deadline allows. `memory`:
    gigabytes that a worker may take to decode a clip, 0 for any.

    `stuck`: clips given up, manifest index and reason. `killed`: clips that were open in a worker that somebody killed,
    and not read since. `seconds`: spent decoding in this process.
    """

    def __init__(self, limit: float, memory: float = 0.0) -> None:
        self.limit, self.memory = limit, memory
        self.stuck: dict[int, str] = {}
        self.killed: set[int] = set()
        self.seconds = 0.0
        self._table: SharedTable | None = None
        self._worker: int | None = None

    def share(self, workers: int) -> None:
        """Makes the table of `workers` processes to be started; to be called before they are."""
        self._table = SharedTable(workers, 4)

    def join(self, worker: int) -> None:
        """Makes this process the one of that number."""
        self._worker = worker
        self.alive()

    @property
    def _rows(self) -> NDArray[np.float64]:
        return np.zeros((0, 4)) if self._table is None else self._table.values

    @property
    def _row(self) -> NDArray[np.float64] | None:
        """This process's own, None where it is no worker."""
        return None if self._worker is None or self._table is None else self._table.values[self._worker]

    def alive(self) -> None:
        """To be called wherever a worker gets on: one that does not for long is stuck."""
        if (row := self._row) is not None:
            row[_ALIVE] = time.monotonic()  # one clock for all processes of a machine

    def silence(self, worker: int) -> float:
        """Seconds since that worker last got on; infinity when it never did."""
        last = self._rows[worker, _ALIVE] if worker < len(self._rows) else 0.0
        return time.monotonic() - last if last else math.inf

    @contextlib.contextmanager
    def decoding(self, clip: Clip, before: int | None = None) -> Iterator[None]:
        """Around all that opens the file of `clip`. Raises `BadClip` when that has been given up before.

        `before`: the process's `private_memory` when a file was opened that has stayed open since.
        """
        if clip.index in self.stuck:
            raise BadClip(clip.path, self.stuck[clip.index])
        row = self._row
        since = time.perf_counter()
        if row is not None:
            row[_PID], row[_CLIP] = os.getpid(), clip.index
            row[_SINCE] = row[_ALIVE] = time.monotonic()
        try:
            # Not in the main process, of whose memory others take theirs at the same time.
            with memory_limit(0.0 if row is None else self.memory, before):
                yield
        finally:
            if row is not None:
                row[_SINCE] = 0.0
                self.alive()
            self.seconds += time.perf_counter() - since

    def end_stuck(self) -> bool:
        """Kills the workers that have been at a clip for longer than `limit` and notes the clips in `stuck`."""
        ended = False
        for row in self._rows:
            since = float(row[_SINCE])
            pid, clip = int(row[_PID]), int(row[_CLIP])
            # The worker may have come back between these reads: what was read counts only if it is still the same.
            if not since or time.monotonic() - since <= self.limit or row[_SINCE] != since:
                continue
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            row[_SINCE] = 0.0
            self.stuck[clip] = f"its decoder hung for {self.limit:g} s and was ended"
            ended = True
        return ended

    def crashed(self, exits: Mapping[int, int | None]) -> bool:
        """Notes in `stuck` the clips with which workers died, and tells whether there were any.

        `exits`: exit code by process id, None while it lives. SIGKILL is nothing a decoder does to itself: a person, or
        a machine out of memory, chose the process. So the clip is tried again, and blamed if a second one dies with it;
        False after `MAX_KILLED` of them, which no clip explains.
        """
        continues = False
        for row in self._rows:
            clip, code = int(row[_CLIP]), exits.get(int(row[_PID]))
            if code is None or code == LOST or not row[_SINCE]:
                continue
            row[_SINCE] = 0.0
            if code == -signal.SIGKILL and clip not in self.killed:
                self.killed.add(clip)
                continues = continues or len(self.killed) <= MAX_KILLED
                continue
            self.stuck[clip] = f"its decoder crashed ({describe_exit(code)})"
            continues = True
        return continues
