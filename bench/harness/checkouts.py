"""The code of another commit, to measure beside what is here."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

from .report import ROOT, ReportError


def checkout(commit: str, folder: Path) -> Path:
    """`vatt` and `vatt_kernels` of a commit, in `folder`; "" is what is here. Raises `ReportError`."""
    if not commit:
        (folder / "vatt").symlink_to(ROOT / "vatt")
        (folder / "vatt_kernels").symlink_to(ROOT / "kernels")
        return folder
    done = subprocess.run(["git", "archive", commit, "vatt", "kernels"], cwd=ROOT, capture_output=True)
    if done.returncode:
        raise ReportError(f"--before {commit}: {done.stderr.decode().strip() or 'git cannot read it'}")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")
    (folder / "kernels").rename(folder / "vatt_kernels")
    return folder


class OtherCode:
    """A program that runs with the code of another commit, in a process of its own, and answers line by line of JSON.

    Args:
        program: a file of Python.
        arguments: its own.
        options: of `subprocess.Popen`.
    """

    def __init__(self, program: Path, *arguments: object, **options: Any) -> None:
        command = [sys.executable, str(program), *map(str, arguments)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options)

    def ask(self, **job: Any) -> Any:
        """Return the answer to `job`. Raises `ReportError` where the program has ended."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        line = ""
        try:
            self.process.stdin.write(json.dumps(job) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except OSError:  # it ended before
            pass
        if not line:
            raise ReportError(f"the other commit's code has failed (above) at {json.dumps(job)}")
        return json.loads(line)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
