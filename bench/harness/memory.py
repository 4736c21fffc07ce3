"""Memory of this process, for programs that import little."""

from __future__ import annotations

import re
from pathlib import Path


def resident(name: str) -> int:
    """Bytes that this process holds: "VmRSS" now, "VmHWM" the most so far (Linux).

    Not getrusage, whose peak is also that of the process which started this one.
    """
    line = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert line
    return int(line[1]) * 1024
