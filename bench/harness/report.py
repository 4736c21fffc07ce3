"""The JSON of a report: rows, and all that is needed to trace and resume them.

`reports/<machine>/<name>.json` is the truth: what was measured, with command, commit, versions, machine and method.
pages.py draws the page (.md) and the figure (.png) beside it from the JSON alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

# Comes before torch in every benchmark: it sets OMP_WAIT_POLICY, which OpenMP reads when torch is imported.
from vatt.runtime.files import write_atomically
from vatt.runtime.provenance import environment

from .clocks import clocks

ROOT = Path(__file__).resolve().parents[2]
REPORTS = ROOT / "reports"


class ReportError(RuntimeError):
    """A report that cannot be read, continued or drawn; the message names the file and the way out."""


@dataclass
class Report:
    """One benchmark on one machine. Everything in it is plain JSON.

    settings: what the rows depend on; rows of other settings never mix. method: how they were measured.
    gate: {"green": bool | None, "checks": [...]}, whether the numerics were right; None while unchecked.
    sources: a digest of the program that ran, so that rows of two programs never mix either.
    """

    name: str
    title: str
    settings: dict[str, Any]
    method: dict[str, Any]
    environment: dict[str, Any]
    sources: str
    quick: bool = False
    finished: bool = False
    date: str = ""
    gate: dict[str, Any] = field(default_factory=lambda: {"green": None, "checks": []})
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def machine(self) -> str:
        return machine_name(self.environment)

    @property
    def source(self) -> str:
        """The commit, short, and whether files differed from it."""
        commit = (self.environment["commit"] or "no commit")[:9]
        return f"{commit}, changed files" if self.environment["dirty"] else commit

    def save(self, path: Path) -> None:
        self.date = datetime.now(UTC).isoformat(timespec="seconds")
        taken = self.environment.get("clocks")  # reports of earlier programs have none
        if self.finished and taken and "end" not in taken:
            taken["end"] = clocks(gpus=self.environment["device"] != "cpu")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, (json.dumps(dataclasses.asdict(self), indent=1) + "\n").encode())


def load(path: Path) -> Report:
    """Return the report in `path`. Raises `ReportError` when it is not one."""
    try:
        return Report(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ReportError(f"{path} is not a report: {error}; run its benchmark again") from error


def machine_name(environment: Mapping[str, Any]) -> str:
    """Return folder of a machine's reports: `cpu-2core`, or the name of the GPU, e.g. `nvidia-h200`."""
    if environment["device"] == "cpu":
        return f"cpu-{environment['cores']}core"
    return re.sub(r"[^a-z0-9]+", "-", environment["device"].lower()).strip("-")


def open_report(
    name: str,
    title: str,
    *,
    settings: dict[str, Any],
    method: dict[str, Any],
    out: Path,
    resume: bool,
    quick: bool,
    device: str = "cpu",
) -> tuple[Report, Path]:
    """Return a new report, or with `resume` the one that was begun, and the path of its JSON.

    Raises `ReportError` when the rows there come from other settings or another program.
    """
    machine = {
        **environment(device),
        "dirty": _dirty(),
        "load_average": os.getloadavg()[0],
        "clocks": {"start": clocks(gpus=device != "cpu")},
    }
    settings = json.loads(json.dumps(settings))  # tuples become lists, as in the file they are compared with
    fresh = Report(name, title, settings, method, machine, _sources(), quick)
    path = out / fresh.machine / f"{name}.json"
    if not resume or not path.exists():
        return fresh, path
    earlier = load(path)
    changed = [
        f"{key}: {earlier.settings.get(key)} -> {value}"
        for key, value in settings.items()
        if earlier.settings.get(key) != value
    ]
    if earlier.environment["threads"] != machine["threads"]:
        changed.append(f"threads: {earlier.environment['threads']} -> {machine['threads']}")
    if earlier.sources != fresh.sources:
        changed.append(f"program: {earlier.source} -> {fresh.source}")
    if changed:
        raise ReportError(
            f"{path} cannot be continued, its rows were measured with something else "
            f"({'; '.join(changed)}); start over without --resume"
        )
    return dataclasses.replace(fresh, gate=earlier.gate, rows=earlier.rows), path


def _sources() -> str:
    digest = hashlib.sha256()
    for folder in ("vatt", "kernels", "bench"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _dirty() -> bool | None:
    """Return whether the tree differs from its commit.

    Reports do not count (one must not soil the next), new files do.
    """
    command = ["git", "status", "--porcelain", "--", ".", ":!reports"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return bool(done.stdout.strip()) if done.returncode == 0 else None
