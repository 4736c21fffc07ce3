"""Where a figure comes from: command, commit, versions and machine."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch


def public(text: str) -> str:
    """Return a path, address or argument as others may see it: no folders of this machine, no user or key of an
    address.
    """
    match = re.match(r"(?:[\w.-]+=)+", text)  # --set=a.b=
    option = match[0] if match else ""
    value = text[len(option) :]
    if "://" in value:
        value = re.sub(r"://[^/@]*@", "://", value).partition("?")[0]
    elif value.startswith("~") or Path(value).is_absolute():
        path = Path(value)
        # The model of runs/NAME/model is known as NAME.
        value = path.parent.name if path.name == "model" else path.name
    return f"{option}{value}"


PACKAGES = ("vatt", "torch", "triton", "numpy", "av", "safetensors")


def environment(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Return command, commit, versions and machine: enough to trace a figure to what made it."""
    device = torch.device(device)
    return {
        "argv": sys.orig_argv[1:],
        **_commit(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
    }


def code_identity() -> dict[str, object]:
    """Return what processes that work together must have in common of the code: versions, commit and the files
    themselves.
    """
    digest = hashlib.sha256()
    for package in ("vatt", "vatt_kernels"):
        spec = find_spec(package)
        for folder in [] if spec is None else spec.submodule_search_locations or []:
            for file in sorted(Path(folder).rglob("*.py")):
                digest.update(file.relative_to(folder).as_posix().encode() + file.read_bytes())
    versions = {f"the version of {name}": _version(name) for name in ("vatt", "torch")}
    return {**versions, "the commit": _commit()["commit"], "the code (SHA-256)": digest.hexdigest()[:16]}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> dict[str, Any]:
    def git(*command: str) -> str | None:
        folder = Path(__file__).parent
        try:
            done = subprocess.run(["git", *command], cwd=folder, capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    status = git("status", "--porcelain", "--untracked-files=no")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
