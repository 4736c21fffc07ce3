"""The folder of a run: settings, vocabulary, exported model; and what every command needs to use one.

OUT/config.json        resolved settings and where they ran   OUT/checkpoints/   see checkpoint.py
OUT/vocabulary.txt     one word a line                        OUT/metrics.jsonl  one line a step
OUT/bad_clips.csv      clips that could not be read           OUT/result.json    losses, times, retrieval
OUT/model/             weights + config + vocabulary: all that is needed to use the model
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tqdm import tqdm

from .config import Config, ConfigError, from_dict, to_dict
from .data.manifest import Manifest
from .data.text import Tokenizer
from .files import write_atomically
from .model.vatt import VATT


class RunError(RuntimeError):
    """The run cannot go on; the message says why and what to do."""


def first_free(name: str) -> Path:
    """runs/NAME, or runs/NAME-2, -3, ... if that exists."""
    folder, number = Path("runs") / name, 1
    while folder.exists():
        number += 1
        folder = Path("runs") / f"{name}-{number}"
    return folder


def pick_device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {name!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return device


def compute_dtype(name: str, device: torch.device) -> torch.dtype:
    """ "auto" is bfloat16 on GPUs (parameters stay float32) and float32 elsewhere."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def autocast_for(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def fingerprint(manifest: Manifest) -> str:
    """Changes when a clip, its span, its captions or its split do; a resumed run must see the same manifest."""
    digest = hashlib.sha256()
    for clip in manifest:
        digest.update(repr((clip.name, clip.start, clip.end, clip.captions, clip.label, clip.split)).encode())
    return digest.hexdigest()


def write_config(out: Path, config: Config, record: dict[str, Any]) -> None:
    text = json.dumps({"config": to_dict(config), **record}, indent=2) + "\n"
    write_atomically(out / "config.json", text.encode())


def read_config(out: Path) -> Config:
    """Settings of the run or exported model in `out`."""
    path = out / "config.json"
    try:
        return from_dict(Config, json.loads(path.read_text())["config"])
    except FileNotFoundError as error:
        raise RunError(f"{out} holds no run: {path} is missing") from error
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} is not a run's config: {error}") from error


def export_model(out: Path, model: VATT, config: Config, tokenizer: Tokenizer) -> Path:
    """Writes OUT/model, replacing an earlier one only when the new one is complete."""
    final, temporary = out / "model", out / ".writing-model"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    save_file({name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()},
              temporary / "model.safetensors")  # fmt: skip
    write_config(temporary, config, {})
    tokenizer.save(temporary / "vocabulary.txt")
    shutil.rmtree(final, ignore_errors=True)
    temporary.rename(final)
    return final


def split_clips(manifest: Manifest, config: Config) -> tuple[Manifest, Manifest]:
    """(training clips, held-out clips); raises `RunError` when there is nothing to train on."""
    data = config.data
    clips, held_out = manifest.split(data.train_split), manifest.split(data.test_split)
    if not clips:
        names = sorted({clip.split or "" for clip in manifest})
        raise RunError(f"{manifest.root} has no rows of split {data.train_split!r} (it has: {', '.join(names)}); "
                       "choose one with --set data.train_split=NAME")  # fmt: skip
    return clips, Manifest(held_out[: config.eval_clips], manifest.root, manifest.labels)


@contextlib.contextmanager
def termination() -> Iterator[list[int]]:
    """Collects SIGTERM and SIGINT so that the step in progress ends first; a second signal exits at once."""
    received: list[int] = []

    def handle(number: int, frame: Any) -> None:
        if received:
            sys.exit(128 + number)
        received.append(number)
        tqdm.write(f"{signal.Signals(number).name}: saving after this step (again: exit at once)", file=sys.stderr)

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
