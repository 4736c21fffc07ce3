"""Programs in processes of their own, forked from one that has imported PyTorch and the commands: no start of seconds.

Each is a process with a command line, an environment, output, signals and an exit code, and with several ranks it is
the launcher that torchrun is, its ranks below it. What the start of Python or of torchrun itself is part of, begins
with `helpers.processes` instead.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

from helpers.processes import environment, of_this_test

IMPORTED = ["vatt.train", "vatt.finetune", "vatt.embed", "vatt.evaluate", "torch._dynamo", "torch.distributed.run"]


class Forked:
    """`python WORDS` as far as `subprocess.Popen` of text goes; output is in files, so that nothing waits for a pipe.

    Args:
        words: `-m module`, `-c code` or a file, and what follows.
        ranks: more than one: `torchrun --nproc-per-node=ranks WORDS`.
        merged: Errors stand in `stdout`, too.
    """

    stdin = None

    def __init__(
        self,
        *words: object,
        ranks: int = 1,
        merged: bool = True,
        env: dict[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self.args = [str(word) for word in words]
        files = [tempfile.NamedTemporaryFile("r+", suffix=".txt") for _ in range(1 if merged else 2)]  # noqa: SIM115
        self.stdout, self.stderr = files[0], None if merged else files[-1]
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(IMPORTED)
        call = (self.args, ranks, env or environment(), str(cwd or Path.cwd()), files[0].name, files[-1].name)
        self._process = context.Process(target=_main, args=call)
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid
        of_this_test(self)

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    poll = returncode.fget

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return self.returncode

    def said(self) -> str:
        """What it printed so far."""
        return Path(self.stdout.name).read_text()

    def communicate(self, timeout: float | None = None) -> tuple[str, str | None]:
        self.wait(timeout)
        return self.said(), self.stderr and Path(self.stderr.name).read_text()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def torchrun(ranks: int, *words: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """The ended `torchrun --nproc-per-node=RANKS WORDS` with what it printed."""
    process = Forked(*words, ranks=ranks, merged=False, env=env)
    out, err = process.communicate()
    assert process.returncode is not None
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def _main(words: list[str], ranks: int, env: dict[str, str], folder: str, out: str, err: str) -> None:
    os.environ.clear()
    os.environ.update(env)
    os.chdir(folder)
    for number, path in ((1, out), (2, err)):
        file = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    if ranks == 1:
        _run(words)
        return
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    local = "127.0.0.1"
    meeting = {"rdzv_backend": "c10d", "rdzv_endpoint": f"{local}:0", "local_addr": local}
    config = LaunchConfig(1, 1, ranks, start_method="fork", max_restarts=0, **meeting)
    elastic_launch(config, _run)(words)


def _run(words: list[str]) -> None:
    """In a process of a launcher as well, whose handlers of signals it does not keep."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    warnings.filterwarnings("ignore", ".*found in sys.modules after import", RuntimeWarning, "runpy")
    kind = words[0] if words[0] in ("-m", "-c") else ""
    what, *rest = words[1:] if kind else words
    sys.argv = ["-c" if kind == "-c" else what, *rest]
    try:
        if kind == "-m":
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        elif kind == "-c":
            exec(what, {"__name__": "__main__"})
        else:
            runpy.run_path(what, run_name="__main__")
    except SystemExit as end:
        if end.code not in (None, 0):  # a launcher wants the others to return
            raise
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
