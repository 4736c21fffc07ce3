"""Write constraints.txt anew: for each supported Python the newest releases that fit setup.py and each other.

    make constraints

pip resolves what `make` installs, once for each Python: with that Python where it runs here, else with the newest one
that does, told to look for the other's wheels. Only Linux on x86-64 is resolved; a constraint binds nobody who does
not install the package. Read the difference before you commit it, and run `make compat FULL=1`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from pythons import ROOT, SUPPORTED, Python, pythons, requirements

EXTRAS = ("test", "bench", "dev")
# What is chosen rather than newest. torch: the release that the reports were measured with and that the whole suite
# passes with on every Python here; it brings its own triton on CUDA machines, and that one is named for CPU builds.
PINS = ("torch==2.13.0", "triton==3.7.1")
# torch's CUDA builds name the exact release of each of these themselves.
PINNED_BY_TORCH = ("nvidia-", "cuda-")
HEADER = """\
# What `make` and CI install; setup.py holds the ranges that work. Written by `make constraints`: do not edit.
# Resolved on Linux x86-64 with Python {there}{foreign}.
"""


def resolve(minor: str, python: Python) -> dict[str, str]:
    """Return the release of each package that pip would install for Python `minor`, asking `python`'s pip."""
    with tempfile.TemporaryDirectory() as folder:
        venv, report = Path(folder) / "venv", Path(folder) / "report.json"
        subprocess.run([python.path, "-m", "venv", str(venv)], check=True)
        foreign = [] if python.minor == minor else [f"--python-version={minor}", f"--target={folder}/none"]
        command = [
            *(str(venv / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"),
            *("--dry-run", "--ignore-installed", "--only-binary=:all:", f"--report={report}"),
            *(*foreign, *PINS, *requirements(*EXTRAS)),
        ]
        subprocess.run(command, check=True, stdout=sys.stderr)
        packages = [package["metadata"] for package in json.loads(report.read_text("utf-8"))["install"]]
    # 2.13.0+cpu is a build of 2.13.0; which build it is, is left to pip.
    chosen = {package["name"].lower().replace("_", "-"): package["version"].partition("+")[0] for package in packages}
    return {name: version for name, version in chosen.items() if not name.startswith(PINNED_BY_TORCH)}


def lines(resolved: dict[str, dict[str, str]]) -> list[str]:
    """Return the constraints: one line where all Pythons agree, else one for each release with its Pythons."""
    releases: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for minor, chosen in resolved.items():
        for name, version in chosen.items():
            releases[name][version].append(minor)
    written = []
    for name, versions in sorted(releases.items()):
        for version, minors in sorted(versions.items(), key=lambda item: SUPPORTED.index(item[1][0])):
            marker = " or ".join(f'python_version == "{minor}"' for minor in minors)
            written.append(f"{name}=={version}" + (f" ; {marker}" if len(versions) > 1 else ""))
    return written


def main() -> int:
    here = {python.minor: python for python in pythons()}
    if not here:
        print("error: no supported Python runs here", file=sys.stderr)
        return 1
    newest = list(here.values())[-1]
    resolved = {minor: resolve(minor, here.get(minor, newest)) for minor in SUPPORTED}
    missing = [minor for minor in SUPPORTED if minor not in here]
    foreign = f"; for {', '.join(missing)} from the names of its wheels" if missing else ""
    text = HEADER.format(there=", ".join(python.version for python in here.values()), foreign=foreign)
    (ROOT / "constraints.txt").write_text(text + "\n".join(lines(resolved)) + "\n", encoding="utf-8")
    print(f"constraints.txt: {len(lines(resolved))} lines for Python {', '.join(SUPPORTED)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
