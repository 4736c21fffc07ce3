"""Run the tests with the oldest and the newest PyAV and numpy on every Python of this machine.

    make compat           decoding and manifests, no torch needed: two minutes
    make compat FULL=1    also the whole suite with the newest release of everything, torch and triton included; hours,
                          gigabytes of downloads; written into reports/compat.json and reports/compat.md

    make compat FULL=1 ARGS='--python 3.12'    one Python at a time: rows of earlier runs stay in the report
    ... ARGS='--hold torch==2.13.0'            the newest of all else; the table says what was held

Each combination has an environment of its own, which is thrown away; those with torch follow one another, and each
needs up to 10 GB of disk where pip brings a CUDA build. A combination that was not run is never claimed: the table
names it "not tried", and of torch it names the build that was taken.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.version import Version
from pythons import ROOT, SUPPORTED, Python, pythons, requirements

# Tests that need neither torch nor what imports it.
WITHOUT_TORCH = (
    *("test_decode.py", "test_manifest.py", "test_media_walk.py", "test_matrix.py", "test_synthetic.py"),
    "test_compatibility.py",
)
SUITE = ("-n", "auto", "--maxprocesses", "8", "--dist", "loadfile", "--no-loadscope-reorder")  # as make test
TOOLS = ("pytest", "pytest-timeout", "tqdm")
SHOWN = ("av", "numpy", "torch", "triton", "pandas")
REPORT = ROOT / "reports" / "compat.json"
WHICH = {"oldest": "oldest PyAV, numpy", "newest": "newest PyAV, numpy", "full": "newest of everything"}
SUMMARY = re.compile(r"^(?:=+ )?((?:\d+ \w+(?:, )?)+) in [\d.]+s", re.MULTILINE)


@dataclass(frozen=True)
class Row:
    """One combination: what was installed, which tests ran, how they ended."""

    python: str
    which: str
    result: str  # passed | failed | not tried
    tests: str = ""
    summary: str = ""
    versions: dict[str, str] | None = None
    commit: str = ""
    date: str = ""
    machine: str = ""
    command: str = ""
    held: str = ""  # requirements that need not be the newest release


class Failed(RuntimeError):
    """A program ended with an error; the message holds the end of what it said."""


def call(command: Sequence[str], env: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise Failed(f"{shlex.join(command)}\n{done.stdout[-6000:]}")
    return done.stdout


def wheels(pip: Sequence[str], name: str) -> list[str]:
    """Return the releases of `name` in setup.py's range that have a wheel for the Python behind `pip`, oldest first."""
    # pip offers no list of wheels (`pip index` counts source distributions), but names them when none fits.
    command = [*pip, "install", "--dry-run", "--no-deps", "--only-binary=:all:", f"{name}<0"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stderr
    listed = re.search(r"\(from versions: ([^)]+)\)", said)
    if listed is None:
        raise Failed(f"pip names no release of {name}:\n{said}")
    wanted = next(one.specifier for one in map(Requirement, requirements()) if one.name == name)
    return sorted((one for one in listed[1].split(", ") if wanted.contains(one, prereleases=False)), key=Version)


def files(names: Sequence[str]) -> list[str]:
    """Return where the test files of these names are, relative to the project."""
    found = [sorted((ROOT / "tests").rglob(name)) for name in names]
    if not all(found):
        raise Failed(f"tests/ lacks one of {', '.join(names)}")
    return [str(path.relative_to(ROOT)) for paths in found for path in paths]


def attempt(python: Python, which: str, tests: Sequence[str], hold: Sequence[str] = ()) -> Row:
    """Make an environment, install, run the tests, and return how it went with the end of the output if it failed."""
    row = Row(python.version, which, "failed", " ".join(tests) or "whole suite", held=" ".join(hold), **provenance())
    with tempfile.TemporaryDirectory() as folder:
        inside = str(Path(folder) / "venv" / "bin" / "python")
        try:
            call([python.path, "-m", "venv", str(Path(folder) / "venv")])
            pip = [inside, "-m", "pip", "--disable-pip-version-check"]
            if which == "full":
                call([*pip, "install", "--quiet", "-e", ".[test,bench]", *hold])
                tests = tests or SUITE
            else:
                place = 0 if which == "oldest" else -1
                chosen = [f"{name}=={wheels(pip, name)[place]}" for name in ("av", "numpy")]
                call([*pip, "install", "--quiet", "--only-binary=:all:", *chosen, *TOOLS])
            held = {one["name"].lower(): one["version"] for one in json.loads(call([*pip, "list", "--format=json"]))}
            if "torch" in held:
                cuda = call([inside, "-c", "import torch; print(torch.version.cuda or '')"]).strip()
                held["torch"] = held["torch"].partition("+")[0] + (f" (CUDA {cuda})" if cuda else " (CPU)")
            row = replace(row, versions={name: held[name] for name in SHOWN if name in held})
            env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VATT_FULL")}
            env |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
            if which != "full":
                env |= {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
            said = call([inside, "-m", "pytest", "-p", "no:cacheprovider", *tests], env)
        except Failed as error:
            return replace(row, summary=str(error))
        counted = SUMMARY.search(said)
        return replace(row, result="passed", summary=counted[1] if counted else said[-200:])


def provenance() -> dict[str, Any]:
    """Return commit, date, machine and command of a row."""
    try:
        commit = call(["git", "rev-parse", "HEAD"]).strip()
        if call(["git", "status", "--porcelain", "--", ".", ":!reports"]).strip():
            commit += ", changed files"
    except (Failed, OSError):
        commit = "no commit"  # an unpacked sdist
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "commit": commit,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.system()} {platform.machine()}, {cores} cores",
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
    }


def describe(row: Row) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in (row.versions or {}).items())
    return f"Python {row.python}, {asked(row)}: {row.result} ({versions or 'nothing installed'})"


def asked(row: Row) -> str:
    """Return what an environment was made of, in words."""
    return WHICH[row.which] + (f" but {row.held}" if row.held else "")


def save(rows: Sequence[Row]) -> None:
    """Write the report, with the rows of before where `rows` has none."""
    table = merge(rows, REPORT)
    REPORT.write_text(json.dumps([asdict(row) for row in table], indent=1) + "\n", encoding="utf-8")
    REPORT.with_suffix(".md").write_text(page(table), encoding="utf-8")


def merge(rows: Sequence[Row], before: Path) -> list[Row]:
    """Return the rows of the report in `before`, replaced by those of `rows` and filled up with what nobody tried."""
    known = [Row(**row) for row in json.loads(before.read_text("utf-8"))] if before.exists() else []
    table = {(row.python.rpartition(".")[0], row.which): row for row in known if row.result != "not tried"}
    table |= {(row.python.rpartition(".")[0], row.which): row for row in rows}
    return [
        table.get((minor, which), Row(f"{minor}.x", which, "not tried"))
        for minor in SUPPORTED
        for which in ("oldest", "newest", "full")
    ]


def page(rows: Sequence[Row]) -> str:
    """Return the Markdown table of a report."""
    lines = [
        "# Versions tried",
        "",
        "Each row is an environment of its own on a CPU. What is not in the table, or stands as not tried, was not",
        "tried. Written by `make compat FULL=1`.",
        "",
        "| Python | what | PyAV | numpy | torch | triton | pandas | tests | result | commit | date |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        versions = [(row.versions or {}).get(name, "–") for name in SHOWN]
        tests = row.tests if len(row.tests.split()) < 3 else f"{len(row.tests.split())} files"
        counts = f" ({row.summary})" if row.result == "passed" else ""
        cells = [row.python, asked(row), *versions, tests, row.result + counts, row.commit[:9], row.date[:10]]
        lines.append("| " + " | ".join(cells) + " |")
    machines = sorted({row.machine for row in rows if row.machine})
    return "\n".join([*lines, "", f"Machine: {'; '.join(machines)}.", ""])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="make compat", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--full", action="store_true", help="also the newest of everything with the whole suite")
    add("--report", action="store_true", help="write what was tried into reports/compat.json and compat.md")
    add("--python", nargs="+", choices=SUPPORTED, metavar="3.x", help="only these; other rows of the report stay")
    add("--hold", nargs="+", default=[], metavar="REQUIREMENT", help="with --full: take these, the newest of all else")
    add("--tests", nargs="+", default=[], metavar="FILE", help="these tests in place of the whole suite")
    add("--jobs", type=int, default=2, help="environments side by side (default 2)")
    args = parser.parse_args(argv)
    here = pythons()
    chosen = [python for python in here if not args.python or python.minor in args.python]
    small = files(WITHOUT_TORCH)
    work = [(python, which, small) for which in ("oldest", "newest") for python in chosen]
    rows = []
    with ThreadPoolExecutor(args.jobs) as pool:
        for row in pool.map(lambda one: attempt(*one), work):
            rows.append(row)
            print(describe(row), flush=True)
            if args.report:  # after each: the next may take an hour
                save(rows)
    for python in chosen if args.full else []:  # one at a time: the suite uses all cores
        rows.append(attempt(python, "full", args.tests, args.hold))
        print(describe(rows[-1]), flush=True)
        if args.report:
            save(rows)
    if args.report:
        print(f"{REPORT} (.md beside it)")
    failed = [row for row in rows if row.result != "passed"]
    for row in failed:
        print(f"\n{describe(row)}\n{row.summary}", file=sys.stderr)
    if not args.python and len(here) > 1 and len({row.python for row in rows}) < 2:
        print("error: fewer than two Pythons were tried, though more are installed", file=sys.stderr)
        return 1
    if not rows:
        print(f"error: none of Python {', '.join(SUPPORTED)} runs here", file=sys.stderr)
        return 1
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
