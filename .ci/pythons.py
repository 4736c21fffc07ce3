"""Which Pythons run on this machine, and what setup.py asks for: shared by constraints.py and compat.py."""

from __future__ import annotations

import os
import runpy
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[1]
SUPPORTED = ("3.11", "3.12", "3.13", "3.14")
# A shim of pyenv answers to a name although no such Python is chosen; Debian's Python may lack what venv needs.
ASK = "import sys, ensurepip, venv; print('%d.%d.%d' % sys.version_info[:3], sys.executable)"


@dataclass(frozen=True)
class Python:
    """An interpreter that runs, can make environments, and is of a supported release."""

    version: str  # 3.11.7
    path: str

    @property
    def minor(self) -> str:
        return self.version.rpartition(".")[0]

    @property
    def micro(self) -> int:
        return int(self.version.rpartition(".")[2])


def pythons() -> list[Python]:
    """Return one interpreter for each supported minor release that runs here, oldest first.

    Looked for on PATH and among pyenv's versions, which need not be on PATH; the newest patch release wins.
    """
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    names = [*(f"python{minor}" for minor in SUPPORTED), "python3", "python"]
    candidates = [*names, *map(str, sorted(pyenv.glob("versions/*/bin/python3")))]
    found: dict[str, Python] = {}
    for candidate in candidates:
        try:
            answer = subprocess.run([candidate, "-c", ASK], capture_output=True, text=True, timeout=60)
        except (OSError, subprocess.TimeoutExpired):
            continue
        if answer.returncode:
            continue
        python = Python(*answer.stdout.strip().split(maxsplit=1))
        known = found.get(python.minor)
        if python.minor in SUPPORTED and (known is None or known.micro < python.micro):
            found[python.minor] = python
    return [found[minor] for minor in SUPPORTED if minor in found]


_patching = threading.Lock()  # compat.py asks from several threads, and a patch is everybody's


def package() -> dict[str, Any]:
    """Return the arguments that setup.py gives to `setup`, without building anything."""
    import setuptools  # which make's environment has; a Python of compat.py need not

    given: dict[str, Any] = {}
    with _patching, patch.object(setuptools, "setup", given.update):
        runpy.run_path(str(ROOT / "setup.py"))
    return given


def requirements(*extras: str) -> list[str]:
    """Return what setup.py requires for the package itself and for `extras`, as it is written there."""
    given = package()
    return [*given["install_requires"], *(line for extra in extras for line in given["extras_require"][extra])]
