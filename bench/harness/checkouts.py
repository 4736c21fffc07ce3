"""The code of another commit, to measure beside what is here."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

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
