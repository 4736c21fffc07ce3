"""The memory of a process that decodes: what a hostile file asks for is refused."""

from __future__ import annotations

import contextlib
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

STATM = Path("/proc/self/statm")


def private_memory() -> int:
    """Return the bytes that this process writes to and shares with nobody, touched or not; 0 where nobody tells."""
    return int(STATM.read_text().split()[5]) * resource.getpagesize() if STATM.exists() else 0


@contextlib.contextmanager
def memory_limit(gigabytes: float, before: int | None = None) -> Iterator[None]:
    """Inside, this process cannot have more than `gigabytes` (1e9 bytes) of memory on top of what it has; 0: no limit.

    `before`: what it had when it began with what it goes on with, if that is not now.
    What goes beyond fails as where there is no more: MemoryError. Counted is what it writes to and shares with nobody,
    whether touched or not. Linux only; elsewhere nothing is limited.
    """
    if not gigabytes or not STATM.exists():
        yield
        return
    has = min(private_memory(), before or sys.maxsize)
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    asked = has + int(gigabytes * 1e9)
    allowed = [limit for limit in (asked, soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min(allowed), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
