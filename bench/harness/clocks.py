"""Clock speeds of CPU and GPUs: a time measured at one clock says little about another.

What a machine does not tell (a container, no nvidia-smi) is None.
"""

from __future__ import annotations

import csv
import re
import subprocess
from pathlib import Path
from typing import Any

CPU_INFO = Path("/proc/cpuinfo")
GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
# Field of nvidia-smi -> name here.
GPU_FIELDS = {
    "name": "name",
    "clocks.sm": "sm_mhz",
    "clocks.mem": "memory_mhz",
    "clocks.max.sm": "max_sm_mhz",
    "power.limit": "power_limit_w",
    "temperature.gpu": "celsius",
}
SECONDS = 10.0


def clocks(*, gpus: bool) -> dict[str, Any]:
    """Return clocks now: "cpu_mhz" of each core, "governor" of the first, "gpus": one dictionary each, if asked for."""
    return {"cpu_mhz": _cpu_mhz(), "governor": _governor(), "gpus": _gpus() if gpus else None}


def describe_clocks(taken: dict[str, dict[str, Any]]) -> str:
    """Return the clocks of a report ("start", "end") in a line."""
    parts = []
    for when, speeds in taken.items():
        cores = speeds["cpu_mhz"]
        shown = [f"CPU {min(cores):.0f}–{max(cores):.0f} MHz" if cores else "CPU unknown"]
        shown += [
            f"{gpu['name']} SM {_number(gpu['sm_mhz'])} of {_number(gpu['max_sm_mhz'])} MHz, memory "
            f"{_number(gpu['memory_mhz'])} MHz, limit {_number(gpu['power_limit_w'])} W, "
            f"{_number(gpu['celsius'])} °C"
            for gpu in speeds["gpus"] or []
        ]
        parts.append(f"{when}: {', '.join(shown)}")
    governor = next(iter(taken.values()))["governor"]
    return f"{'; '.join(parts)}; governor {governor or 'unknown'}"


def _number(value: float | None) -> str:
    return "?" if value is None else f"{value:g}"


def _cpu_mhz() -> list[float] | None:
    try:
        values = re.findall(r"^cpu MHz\s*:\s*([\d.]+)", CPU_INFO.read_text(), re.MULTILINE)
    except OSError:
        return None
    return [float(mhz) for mhz in values] or None


def _governor() -> str | None:
    try:
        return GOVERNOR.read_text().strip()
    except OSError:
        return None


def _gpus() -> list[dict[str, Any]] | None:
    command = ["nvidia-smi", f"--query-gpu={','.join(GPU_FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode != 0:
        return None
    rows = (
        dict(zip(GPU_FIELDS.values(), row, strict=True))
        for row in csv.reader(done.stdout.splitlines(), skipinitialspace=True)
    )
    return [{name: text if name == "name" else _float(text) for name, text in row.items()} for row in rows]


def _float(text: str) -> float | None:
    """Return a number, or None where a GPU does not tell, as by "[N/A]"."""
    try:
        return float(text)
    except ValueError:
        return None
