"""What a run writes down: where and with what it ran, a line of metrics a step, the loss curve.

`METRICS` documents every key of metrics.jsonl; `python -m vatt.records` prints it as a table.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import platform
import subprocess
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .files import write_atomically, writing
from .runtime.forms import FormError, parse_json

PACKAGES = ("vatt", "torch", "triton", "numpy", "av", "safetensors")
KEPT = "--resume goes on with the newest checkpoint"


class Metric(NamedTuple):
    """A key of metrics.jsonl. `lines`: which have it, "all" or those of one kind of training or of step."""

    key: str
    unit: str
    meaning: str
    lines: str = "all"


METRICS = (
    Metric("step", "steps", "number of the step, from 1"),
    Metric("loss", "nats", "what was minimised, over the clips of all processes; null: not finite"),
    Metric("video_text", "nats", "its video-text part (MIL-NCE)", "pre-training"),
    Metric("video_audio", "nats", "its video-audio part (NCE)", "pre-training"),
    Metric("gradient_norm", "", "Euclidean norm before clipping: of all parameters, in fine-tuning of the backbone's"),
    Metric("head_gradient_norm", "", "the same of the class head, which is never clipped", "fine-tuning"),
    Metric("rate", "", "learning rate of the step"),
    Metric("updated", "bool", "false: loss or gradient not finite, the step changed nothing"),
    Metric("clips", "names", "the clips of that step", "without update"),
    Metric("operations", "name", "what computed: reference, portable or triton"),
    Metric("step_seconds", "s", "the whole step, from asking for a batch to the update"),
    Metric("wait_seconds", "s", "of it, until the batch was there: waiting for the data"),
    Metric("communication_seconds", "s", "of it, waiting for other processes in gathers, means and exchanges; what DDP "
           "and FSDP2 send beside the backward pass is not in it"),
    Metric("world_size", "", "processes that compute the batch together"),
    Metric("clips_per_second", "clips/s", "clips of the batch, all processes, over step_seconds"),
    Metric("build_seconds", "s", "what the first process's part of the batch cost its worker, usually before the step"),
    Metric("decode_seconds", "s", "of it, in files"),
    Metric("replaced", "clips", "clips of the batch that could not be used and were replaced"),
    Metric("bad_clips", "clips", "different clips that could not be used, in the run so far"),
)  # fmt: skip


def environment(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Command, commit, versions and machine: enough to trace a figure to what made it."""
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


# What a reader may rely on in a line of metrics.jsonl, also of older runs.
LINE = {"step": int, "loss": (float, None), "updated": bool, "step_seconds": float, "wait_seconds": float,
        "clips_per_second": float, "communication_seconds?": float, "world_size?": int}  # fmt: skip


def code_identity() -> dict[str, object]:
    """What processes that work together must have in common of the code: versions, commit and the files themselves."""
    digest = hashlib.sha256()
    for package in ("vatt", "vatt_kernels"):
        spec = find_spec(package)
        for folder in [] if spec is None else spec.submodule_search_locations or []:
            for file in sorted(Path(folder).rglob("*.py")):
                digest.update(file.relative_to(folder).as_posix().encode() + file.read_bytes())
    versions = {f"the version of {name}": _version(name) for name in ("vatt", "torch")}
    return {**versions, "the commit": _commit()["commit"], "the code (SHA-256)": digest.hexdigest()[:16]}


class MetricsLog:
    """metrics.jsonl: one JSON object a step, in step order also after a resume; null stands for NaN and infinity.

    Its keys are those of `METRICS`.
    """

    def __init__(self, path: Path, *, resume_step: int | None = None):
        if resume_step is not None and path.exists():
            # What followed the checkpoint is computed again, to the bit; a line cut by a crash goes too, or noise that
            # a loss of power left.
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            kept = [line for line in lines if _step_of(line) <= resume_step]
            write_atomically(path, "".join(line + "\n" for line in kept).encode())
        self._path = path
        self._file = open(path, "a" if resume_step is not None else "w", buffering=1)  # noqa: SIM115 (kept open)

    def write(self, record: dict[str, Any]) -> None:
        strict = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        line = json.dumps(strict) + "\n"
        with writing(self._path, len(line), KEPT):
            self._file.write(line)

    def sync(self) -> None:
        """Brings all lines to the disk: a checkpoint that outlives a loss of power must not be ahead of them."""
        with writing(self._path, None, KEPT):
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        with writing(self._path, None, KEPT):
            self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl. Raises `FormError` naming the line that is none, OSError without a file."""
    lines = path.read_bytes().split(b"\n")
    records = []
    for number, line in enumerate(lines[:-1] if not lines[-1] else lines, 1):
        try:
            records.append(parse_json(line, LINE))
        except FormError as error:
            raise FormError(f"{path}:{number} is damaged: {error}; --resume writes anew what follows the newest "
                            "checkpoint") from error  # fmt: skip
    return records


def draw_losses(records: list[dict[str, Any]], path: Path) -> None:
    """Loss curves over steps as a PNG. Raises ImportError without matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    records = [r for r in records if r["updated"] and r["loss"] is not None]
    steps = [r["step"] for r in records]
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for key, label, colour in (
        ("loss", "total", "black"),
        ("video_text", "video-text", "#0072b2"),
        ("video_audio", "video-audio", "#d55e00"),
    ):
        axes.plot(steps, [r.get(key, math.nan) for r in records], label=label, color=colour, linewidth=1)
    axes.set(xlabel="step", ylabel="loss (nats)", title="Training loss")
    axes.grid(alpha=0.3)
    axes.legend()
    write_figure(figure, path)


def write_figure(figure: Any, path: Path) -> None:
    """Saves a figure of matplotlib as PNG, whole or not at all, and closes it."""
    import matplotlib.pyplot as plt

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    plt.close(figure)
    write_atomically(path, buffer.getvalue())


def metrics_table() -> str:
    """`METRICS` as a Markdown table."""
    rows = ["| key | unit | meaning | lines |", "| --- | --- | --- | --- |"]
    return "\n".join(rows + [f"| `{key}` | {unit} | {meaning} | {lines} |" for key, unit, meaning, lines in METRICS])


def _step_of(line: str) -> float:
    try:
        return int(parse_json(line, {"step": int})["step"])
    except FormError:
        return float("inf")


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


if __name__ == "__main__":
    print(metrics_table())
