"""Running the project's own commands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from .report import ReportError


def run(command: list[str], log: Path) -> None:
    """Run a command of the project. Raises `ReportError` with its last line when it fails."""
    with open(log, "a", encoding="utf-8") as file:
        code = subprocess.run([sys.executable, "-m", *command], stdout=file, stderr=subprocess.STDOUT).returncode
    if code:
        last = log.read_text(encoding="utf-8").strip().splitlines()[-1:]
        raise ReportError(f"{' '.join(command[:3])} ended with exit code {code}: {''.join(last)} (all of it: {log})")
