"""The state of a training run, read from its folder while it runs or after: `python -m vatt.train --status OUT`.

Nothing is asked of the run itself, so the folder may be on another machine's disk. A run that ended has given up its
lock, or its process is gone. Of one on another machine what is said is how long ago it last wrote a step,
and whether that is longer than its steps explain.
"""

from __future__ import annotations

import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoints.training_checkpoint import saved_steps
from ..data.bad_clips import read_counts
from ..errors import RunError
from ..runtime.forms import FormError, parse_json, printable, read_json, require_form
from ..runtime.lock import is_owned
from .metrics_log import LINE

FINE_TUNING = "fine-tuning"
LAST = 20  # steps that averages are taken over
TAIL_BYTES = 4 * 2**20  # of metrics.jsonl: many more lines than LAST
SILENT_STEPS, SILENT_SECONDS = 20, 120.0  # without a line for longer than both, a run is taken to have stopped


@dataclass(frozen=True)
class Status:
    """What is known of a run. None: not known (yet). Averages are over the last 20 steps; times are in seconds.

    state: "starting" (no step yet), "running", "silent" (it has written nothing for longer than 20 of its steps and two
    minutes: stopped, stuck, or busy saving), "evaluating" (all steps done), "interrupted" (its process has ended before
    that) or "done" (result.json is there).
    skipped: of the last 20 steps, those without a finite loss or gradient. bad_clips: different ones; replaced: times.
    """

    out: Path
    description: str
    state: str
    step: int
    steps: int
    age: float | None
    loss: float | None
    skipped: int
    step_seconds: float | None
    clips_per_second: float | None
    seconds_left: float | None
    wait_share: float | None
    communication_share: float | None
    world_size: int | None
    bad_clips: int
    replaced: int
    checkpoint_step: int | None
    checkpoint_age: float | None
    held_out: str = ""  # what is to be said of held-out clips that could not be used


def status(out: Path) -> Status:
    """Return the state of the run in `out`, pre-training or fine-tuning.

    Raises:
        RunError: `out` holds no run, or its config.json or metrics.jsonl is damaged.
    """
    settings, description = _settings(out)
    now, steps = time.time(), int(settings["steps"])
    metrics = out / "metrics.jsonl"
    records = _last_records(metrics)
    step = records[-1]["step"] if records else 0
    age = max(now - metrics.stat().st_mtime, 0.0) if records else None
    seconds = sum(r["step_seconds"] for r in records)
    a_step = seconds / len(records) if records else None
    losses = [r["loss"] for r in records if r["updated"] and r["loss"] is not None]
    saved = _last_checkpoint(out / "checkpoints")
    bad = _bad_clips(out / "bad_clips.csv")
    if _is_done(out / "result.json", steps):
        state = "done"
    elif is_owned(out) is False:
        state = "interrupted"
    elif not records or age is None or a_step is None:
        state = "starting"
    elif age > max(SILENT_STEPS * a_step, SILENT_SECONDS):
        state = "silent"
    else:
        state = "evaluating" if step >= steps else "running"
    return Status(
        out,
        description,
        state,
        step,
        steps,
        age,
        loss=sum(losses) / len(losses) if losses else None,
        skipped=len(records) - len(losses),
        step_seconds=a_step,
        clips_per_second=sum(r["clips_per_second"] * r["step_seconds"] for r in records) / seconds if seconds else None,
        seconds_left=(steps - step) * a_step if a_step is not None else None,
        wait_share=sum(r["wait_seconds"] for r in records) / seconds if seconds else None,
        communication_share=sum(r.get("communication_seconds", 0.0) for r in records) / seconds if seconds else None,
        world_size=records[-1].get("world_size", 1) if records else None,
        bad_clips=len(bad),
        replaced=sum(bad),
        checkpoint_step=saved[0] if saved else None,
        checkpoint_age=max(now - saved[1], 0.0) if saved else None,
        held_out=_held_out(out / "result.json") if state == "done" else "",
    )


def format_status(s: Status) -> str:
    """Return a few lines for people."""
    command = "vatt.finetune" if s.description.startswith(FINE_TUNING) else "vatt.train"
    state = {
        "starting": "no step yet",
        "running": "running",
        "silent": "silent for longer than its steps explain: stopped or stuck; --resume goes on where it was saved",
        "evaluating": "all steps are made; the run is evaluated, or stopped there",
        "interrupted": f"interrupted; go on with: python -m {command} --out {shlex.quote(str(s.out))} --resume",
        "done": "done",
    }[s.state]
    lines = {"run": f"{s.out}: {s.description}", "state": state}
    share = f" ({s.step / s.steps:.1%})" if s.steps else ""
    lines["step"] = f"{s.step:,} of {s.steps:,}{share}"
    if s.age is not None and s.step_seconds is not None:
        lines["step"] += f", last one {_ago(s.age)}, {s.step_seconds:.3g} s a step"
    if s.loss is not None or s.skipped:
        lines["loss"] = "not finite" if s.loss is None else f"{s.loss:.4f}, mean of the last {min(LAST, s.step)} steps"
        lines["loss"] += f"; {s.skipped} of them without update (not finite)" if s.skipped else ""
    if s.clips_per_second is not None:
        lines["rate"] = f"{s.clips_per_second:,.1f} clips/s, {s.wait_share or 0:.0%} of the time waiting for data"
        if s.world_size is not None and s.world_size > 1:
            lines["rate"] += f", {s.communication_share or 0:.0%} for the other processes ({s.world_size} in all)"
    if s.seconds_left and s.state in ("running", "silent"):
        lines["time left"] = f"{_duration(s.seconds_left)}, without saving and evaluation"
    lines["bad clips"] = f"{s.bad_clips:,}, replaced {s.replaced:,} times; see bad_clips.csv" if s.bad_clips else "none"
    if s.held_out:
        lines["held out"] = s.held_out
    lines["checkpoint"] = "none yet"
    if s.checkpoint_step is not None and s.checkpoint_age is not None:
        lines["checkpoint"] = f"step {s.checkpoint_step:,}, {_ago(s.checkpoint_age)}"
    return "\n".join(f"{name:<11}{printable(text)}" for name, text in lines.items())


def held_out_line(result: dict[str, Any]) -> str:
    """Return what result.json says of held-out clips that could not be used, in words; nothing when all could."""
    test = result.get("test", {})
    bad = result.get("held_out_bad_clips", 0) + test.get("bad_clips", 0)
    clips = result.get("held_out_clips", test.get("clips", 0) + test.get("bad_clips", 0))
    return f"{bad:,} of {clips:,} held-out clips could not be used" if bad and clips else ""


def _settings(out: Path) -> tuple[dict[str, Any], str]:
    """Return the settings of the run, and in words what kind of run it is."""
    path = out / "config.json"
    try:
        record = read_json(path)
        fine_tuning = "finetune" in record
        section = "finetune" if fine_tuning else "config"
        require_form(record, {section: {"steps": int, "task" if fine_tuning else "preset": str}})
        settings = record[section]
        description = f"{FINE_TUNING}, {settings['task']}" if fine_tuning else f"pre-training, {settings['preset']}"
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RunError(f"{out} holds no run: {path} is missing") from error
    except FormError as error:
        raise RunError(
            f"{path} is not a run's config: {error}; --resume takes the settings from the newest "
            "checkpoint and writes it anew"
        ) from error
    return settings, description


def _last_records(path: Path) -> list[dict[str, Any]]:
    """Return the last whole lines of metrics.jsonl, at most LAST; the very last one may be half written."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            file.seek(max(size - TAIL_BYTES, 0))
            tail = file.read()
    except FileNotFoundError:
        return []
    lines = tail.split(b"\n")[:-1]  # what follows the last line end is not whole
    try:
        return [parse_json(line, LINE) for line in lines[1 if size > TAIL_BYTES else 0 :][-LAST:]]
    except FormError as error:
        raise RunError(f"{path} is damaged: {error}; --resume makes what follows the newest checkpoint anew") from error


def _last_checkpoint(folder: Path) -> tuple[int, float] | None:
    """Return (step, time of writing) of the newest checkpoint.

    A damaged one is not told apart: that takes reading it.
    """
    checkpoints = saved_steps(folder)
    try:
        return (checkpoints[-1][0], checkpoints[-1][1].stat().st_mtime) if checkpoints else None
    except FileNotFoundError:  # an older one that has just made place for a newer
        return None


def _bad_clips(path: Path) -> list[int]:
    """Return how often each bad clip was met."""
    try:
        return read_counts(path)
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise RunError(f"{path} cannot be read ({error}); move it away: --resume writes it anew") from error


def _is_done(path: Path, steps: int) -> bool:
    """Return whether the result is that of all steps: a finished run may have been given more."""
    try:
        return bool(read_json(path, {"steps": int})["steps"] >= steps)
    except (FileNotFoundError, FormError):  # a damaged one is written again by --resume
        return False


def _held_out(path: Path) -> str:
    return held_out_line(read_json(path, {}))


def _ago(seconds: float) -> str:
    return f"{_duration(seconds)} ago"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (rest, "s")]
    first = next((i for i, (value, _) in enumerate(parts) if value), len(parts) - 1)
    return " ".join(f"{value} {unit}" for value, unit in parts[first : first + 2])
