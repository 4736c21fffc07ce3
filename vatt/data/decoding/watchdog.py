"""Tells which clip each process is decoding and since when, so that what a decoder does to its process costs one clip.

A decoder that hangs inside the library looks at no deadline and cannot be interrupted, only its process can be killed;
one that crashes takes its process with it. So workers write down what they open, in memory that they share with the
main process. And one that asks for more memory than a clip is worth is refused it, before the machine runs out.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator, Mapping

import torch
from torch.utils.data import get_worker_info

from ..clip import Clip
from .container import BadClip
from .memory_limit import memory_limit

_PID, _CLIP, _SINCE = range(3)  # columns of the table; _SINCE is 0 while nothing is being decoded
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
            # Not in the main process, of whose memory others take theirs at the same time.
            with memory_limit(0.0 if row is None else self.memory):
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

    def crashed(self, exits: Mapping[int, int | None]) -> bool:
        """Notes in `stuck` the clips with which workers died, and tells whether there were any.

        `exits`: exit code by process id, None while it lives. SIGKILL is nothing a decoder does to itself: a person, or
        a machine out of memory, chose the process. So the clip is tried again, and blamed if a second one dies with it;
        False after `MAX_KILLED` of them, which no clip explains.
        """
        found = False
        for row in [] if self._table is None else self._table:
            clip, code = int(row[_CLIP].item()), exits.get(int(row[_PID].item()))
            if code is None or not row[_SINCE].item():
                continue
            row[_SINCE] = 0.0
            if code == -signal.SIGKILL and clip not in self.killed:
                self.killed.add(clip)
                found = found or len(self.killed) <= MAX_KILLED
                continue
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            self.stuck[clip] = f"its decoder crashed ({how})"
            found = True
        return found
