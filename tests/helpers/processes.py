"""Programs in processes of their own, each of which ends with the test that began it.

Nothing here looks at a clock: how long a program takes depends on the machine and on what else it does. One that never
ends is cut off by pytest's timeout, which shows the line that waited.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# The loopback interface by its address and name: machines without a network may not find it by theirs.
LOCAL = ("--local-addr=127.0.0.1", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--nnodes=1")
_begun: list[Any] = []  # of what `subprocess.Popen` has


def environment(**changes: str) -> dict[str, str]:
    """What programs find in their environment: what is there now, as fixtures name the caches after imports."""
    return {**os.environ, "GLOO_SOCKET_IFNAME": "lo", **changes}


def begin(command: list[str], **options: Any) -> subprocess.Popen[str]:
    """A `subprocess.Popen` of text that `end_all` ends, if nothing else did."""
    options.setdefault("env", environment())
    process = subprocess.Popen([str(word) for word in command], text=True, **options)
    of_this_test(process)
    return process


def of_this_test(process: Any) -> None:
    """`end_all` ends it."""
    _begun.append(process)


def end_all() -> None:
    """Kills what is left of the programs begun, with the processes that they began in turn, and waits for their end."""
    while _begun:
        process = _begun.pop()
        if process.poll() is None:
            for pid in _family(process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def wait_until(process: Any, reached: Callable[[], bool]) -> None:
    """Waits until `reached` is so, or fails with what the program said if it ends first."""
    while not reached():
        assert process.poll() is None or reached(), process.communicate()[0]
        time.sleep(0.005)


def children(pid: int) -> list[int]:
    """The processes that a process began and that live, in the order of their start (Linux; elsewhere none)."""
    lists = sorted(Path(f"/proc/{pid}/task").glob("*/children"), key=lambda file: int(file.parent.name))
    return [int(child) for file in lists for child in file.read_text().split()]


def _family(pid: int) -> list[int]:
    """The process and all below it: torchrun's are in sessions of their own, so no signal to a group reaches them."""
    found = [pid]
    for one in found:
        with contextlib.suppress(OSError):  # ended meanwhile
            found += children(one)
    return found


def finished(command: list[str], *, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """The ended program with what it printed.

    Its output goes to files: pipes that a grandchild keeps open after its end would leave the reader waiting.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = begin(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=env or environment())
        process.wait()
        said = []
        for file in (out, err):
            file.seek(0)
            said.append(file.read())
    return subprocess.CompletedProcess(command, process.returncode, *said)


def launched(ranks: int, *arguments: object) -> list[str]:
    """The command `torchrun --nproc-per-node=RANKS ARGUMENTS` on this machine."""
    command = [sys.executable, "-m", "torch.distributed.run", *LOCAL, f"--nproc-per-node={ranks}"]
    return [*command, *map(str, arguments)]
