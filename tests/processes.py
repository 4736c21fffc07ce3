"""Programs in processes of their own that end, or are ended: a test that waits for ever says nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

# The loopback interface by its address and name: machines without a network may not find it by theirs.
LOCAL = ("--local-addr=127.0.0.1", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--nnodes=1")


def loopback() -> dict[str, str]:
    """The environment as it is now, with the cache folder that a fixture named since this module was imported."""
    return {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}


def finished(
    command: list[str], *, timeout: float = 400, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """The ended program with what it printed.

    Its output goes to files: pipes that a grandchild keeps open after its end would leave the reader waiting.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=env)
        late = False
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            late = True
            process.terminate()  # torchrun then ends its processes, which are no children of this one
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        said = []
        for file in (out, err):
            file.seek(0)
            said.append(file.read())
    assert not late, f"{' '.join(command)} had not ended after {timeout} s; it said:\n{said[0]}\n{said[1]}"
    return subprocess.CompletedProcess(command, process.returncode, *said)


def launched(ranks: int, *arguments: object) -> list[str]:
    """The command `torchrun --nproc-per-node=RANKS ARGUMENTS` on this machine."""
    command = [sys.executable, "-m", "torch.distributed.run", *LOCAL, f"--nproc-per-node={ranks}"]
    return [*command, *map(str, arguments)]


def torchrun(ranks: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    return finished(launched(ranks, *arguments), env=loopback())
