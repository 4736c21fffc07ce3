"""What a run writes down: where and with what it ran, a line of metrics a step, the loss curve.

`METRICS` documents every key of metrics.jsonl; docs/metrics.md shows it as a table.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any, NamedTuple

from ..runtime.files import pyplot, write_atomically, write_figure, writing
from ..runtime.forms import FormError, parse_json

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
    Metric(
        "pretraining", "bool", "true: no labels were looked at, and the loss is a mean squared error", "pretrain_steps"
    ),
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
    Metric(
        "communication_seconds",
        "s",
        "of it, waiting for other processes in gathers, means and exchanges; what DDP "
        "and FSDP2 send beside the backward pass is not in it",
    ),
    Metric("world_size", "", "processes that compute the batch together"),
    Metric("clips_per_second", "clips/s", "clips of the batch, all processes, over step_seconds"),
    Metric("build_seconds", "s", "what the first process's part of the batch cost its worker, usually before the step"),
    Metric("decode_seconds", "s", "of it, in files"),
    Metric("replaced", "clips", "clips of the batch that could not be used and were replaced"),
    Metric("same_file", "clips", "clips drawn in place of a second row of a file of the batch", "pre-training"),
    Metric("bad_clips", "clips", "different clips that could not be used, in the run so far"),
)


# What a reader may rely on in a line of metrics.jsonl, also of older runs.
LINE = {
    "step": int,
    "loss": (float, None),
    "updated": bool,
    "step_seconds": float,
    "wait_seconds": float,
    "clips_per_second": float,
    "communication_seconds?": float,
    "world_size?": int,
}


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
        """Bring all lines to the disk: a checkpoint that outlives a loss of power must not be ahead of them."""
        with writing(self._path, None, KEPT):
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        with writing(self._path, None, KEPT):
            self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl. Raises `FormError` naming the line that is none, OSError without a file."""
    lines = path.read_bytes().split(b"\n")
    records = []
    for number, line in enumerate(lines[:-1] if not lines[-1] else lines, 1):
        try:
            records.append(parse_json(line, LINE))
        except FormError as error:
            raise FormError(
                f"{path}:{number} is damaged: {error}; --resume writes anew what follows the newest checkpoint"
            ) from error
    return records


def draw_losses(records: list[dict[str, Any]], path: Path) -> None:
    """Draw loss curves over steps as a PNG. Raises ImportError without matplotlib."""
    plt = pyplot()
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


def _step_of(line: str) -> float:
    try:
        return int(parse_json(line, {"step": int})["step"])
    except FormError:
        return float("inf")
