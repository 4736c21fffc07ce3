"""Training runs that take seconds, as their users start them, for tests of what happens to runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from helpers.forked import Forked
from helpers.processes import begin
from vatt import train
from vatt.checkpoints.training_checkpoint import load_latest
from vatt.training.metrics_log import read_metrics

SMALL = [
    *("--batch-size=4", "--device=cpu", "--set=data.builtin_clips=24", "--set=data.workers=0", "--set=save_every=3"),
    *("--set=optim.warmup=2", "--set=eval_windows=1", "--set=model.video.frames=8", "--set=model.video.size=32"),
    *("--set=model.audio.samples=3200", "--set=model.text.words=8", "--set=model.text.captions=2"),
    *(
        f"--set=model.{encoder}_encoder.{setting}"
        for encoder in ("video", "audio", "text", "shared")
        for setting in ("width=32", "layers=1", "heads=2", "head_width=16", "mlp=32", "dropout=0.1")
    ),
]


def run(*arguments: object) -> int:
    """`python -m vatt.train` in this process."""
    return train.main([*SMALL, *map(str, arguments)])


def start(
    *arguments: object, program: tuple[str, ...] = ("-m", "vatt.train"), ranks: int = 1, cwd: Path | None = None
) -> Forked:
    """The same in a process of its own, or under torchrun; `program`: what to run in place of the command."""
    return Forked(*program, *SMALL, *arguments, ranks=ranks, cwd=cwd)


def start_anew(*arguments: object, program: tuple[str, ...] = ("-m", "vatt.train"), **options: Any) -> Any:
    """The same from the start of Python on, with `options` of `subprocess.Popen`."""
    command = [sys.executable, *program, *SMALL, *map(str, arguments)]
    return begin(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)


def steps(out: Path) -> int:
    path = out / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def losses(out: Path) -> list[float]:
    return [record["loss"] for record in read_metrics(out / "metrics.jsonl")]


def same_run(a: Path, b: Path) -> bool:
    """Whether losses and weights of two finished runs are the same to the bit."""
    weights = [(run / "model" / "model.safetensors").read_bytes() for run in (a, b)]
    return losses(a) == losses(b) and weights[0] == weights[1]


def saved_step(out: Path) -> int:
    found = load_latest(out / "checkpoints")
    return found.step if found else 0
