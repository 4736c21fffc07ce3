"""Measure what a fresh environment costs: download, disk and time, for each Python of this machine.

    python .ci/install_cost.py                 every Python that runs here
    python .ci/install_cost.py --python 3.11   only these; other rows of the report stay

Downloads what `make train` installs (gigabytes where pip takes a CUDA build of torch), installs it, trains until the
first step is in metrics.jsonl, the built-in corpus included, and throws all of it away. Writes
reports/install_cost.json and reports/install_cost.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compat import call, provenance
from pythons import ROOT, SUPPORTED, Python, pythons

WANTED = ".[test,bench,dev]"  # what the Makefile installs
REPORT = ROOT / "reports" / "install_cost.json"
BUILD = "import torch; print(torch.__version__, torch.version.cuda or '')"


def size(folder: Path) -> int:
    """Return the bytes of all files below `folder`."""
    return sum(path.lstat().st_size for path in folder.rglob("*"))


def seconds_to_first_step(python: Path, folder: Path) -> float:
    """Return the seconds from starting a training in an empty `folder` to its first recorded step."""
    run = folder / "run"
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive", "VATT_CACHE": str(folder / "cache")}
    command = [str(python), "-m", "vatt.train", "--fused", "--out", str(run)]
    with open(folder / "log", "w+", encoding="utf-8") as log:
        tick = time.monotonic()
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        records = run / "metrics.jsonl"
        while not (records.exists() and records.stat().st_size):
            if process.poll() is not None:
                log.seek(0)
                raise RuntimeError(f"training ended with exit code {process.returncode}:\n{log.read()[-3000:]}")
            time.sleep(0.1)
        seconds = time.monotonic() - tick
        process.kill()
        process.wait()
    return seconds


def measure(python: Python) -> dict[str, Any]:
    """Return the row of one Python."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        call([python.path, "-m", "venv", str(folder / "venv")])
        inside = folder / "venv" / "bin" / "python"
        pip = [str(inside), "-m", "pip", "--disable-pip-version-check"]
        chosen = ["-c", "constraints.txt", "--quiet"]
        tick = time.monotonic()
        call([*pip, "download", "--no-cache-dir", *chosen, "-d", str(folder / "wheels"), WANTED])
        downloaded = time.monotonic()
        before = size(folder / "venv")
        call([*pip, "install", "--find-links", str(folder / "wheels"), *chosen, "-e", WANTED])
        installed = time.monotonic()
        torch, _, cuda = call([str(inside), "-c", BUILD]).strip().partition(" ")
        return {
            "python": python.version,
            "torch": torch,
            "cuda": cuda,
            "download_bytes": size(folder / "wheels"),
            "download_seconds": downloaded - tick,
            "install_seconds": installed - downloaded,
            "environment_bytes": size(folder / "venv") - before,
            "first_step_seconds": seconds_to_first_step(inside, folder),
            **provenance(),
        }


def page(rows: Sequence[dict[str, Any]]) -> str:
    """Return the Markdown table of a report."""
    lines = [
        "# What a fresh environment costs",
        "",
        "Everything that `make` installs, training, tests and benchmarks; packages as `constraints.txt` names them.",
        "A file that lay on the disk counts as a download in bytes, not in seconds. First step: from the start of",
        "`python -m vatt.train --fused` with an empty cache, writing the built-in corpus included. Written by",
        "`python .ci/install_cost.py`.",
        "",
        "| Python | torch | CUDA | download | seconds | on disk | install s | first step s | commit | date |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        cells = [
            row["python"],
            row["torch"],
            row["cuda"] or "none",
            f"{row['download_bytes'] / 1e9:.2f} GB",
            f"{row['download_seconds']:.0f}",
            f"{row['environment_bytes'] / 1e9:.2f} GB",
            f"{row['install_seconds']:.0f}",
            f"{row['first_step_seconds']:.0f}",
            row["commit"][:9],
            row["date"][:10],
        ]
        lines.append("| " + " | ".join(cells) + " |")
    machines = sorted({row["machine"] for row in rows})
    return "\n".join([*lines, "", f"Machine: {'; '.join(machines)}.", ""])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", nargs="+", choices=SUPPORTED, metavar="3.x", help="only these")
    args = parser.parse_args(argv)
    rows = json.loads(REPORT.read_text("utf-8")) if REPORT.exists() else []
    for python in pythons():
        if args.python and python.minor not in args.python:
            continue
        row = measure(python)
        print(json.dumps(row), flush=True)
        rows = sorted([*(old for old in rows if old["python"] != row["python"]), row], key=lambda one: one["python"])
        REPORT.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        REPORT.with_suffix(".md").write_text(page(rows), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
