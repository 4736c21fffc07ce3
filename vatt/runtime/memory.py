"""What glibc does with memory that is freed: gives it back to the system, or keeps it for what is computed next.

On its own it maps large blocks apart, and raises the size from which it does so to that of the largest one freed, up to
32 MiB. Other C libraries are left as they are.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt
BLOCK = 128 * 1024  # bytes, glibc's own value before it raises it
KEPT = 2**30  # bytes; older releases of glibc take 32 MiB at most for blocks that are mapped apart
OLDEST_KEPT = 32 * 2**20


def return_freed_memory() -> None:
    """Make glibc give large blocks back to the system as soon as they are freed, in this process, from now on.

    On its own, pictures of all sizes come to lie in one heap between small things that stay, and over thousands of
    clips its resident part grows in steps by tens of MiB, though no more is in use. The price is fresh pages for each
    picture, so this is for processes that decode and do little else.
    """
    if mallopt := _mallopt():
        mallopt(M_MMAP_THRESHOLD, BLOCK)


def keep_freed_memory() -> None:
    """Make glibc keep up to 1 GiB of what is freed, in this process, from now on.

    Each step of a computation asks for what the one before has freed. As fresh pages it is a few hundredths of a step
    on a CPU, a tenth of a forward pass with large batches. This is for processes that compute while others decode.
    """
    if mallopt := _mallopt():
        mallopt(M_MMAP_THRESHOLD, KEPT) or mallopt(M_MMAP_THRESHOLD, OLDEST_KEPT)
        mallopt(M_TRIM_THRESHOLD, KEPT)


def _mallopt() -> Callable[[int, int], int] | None:
    try:
        found: Callable[[int, int], int] = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return None
    return found
