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
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from .check_config import check
from .config import Config, ConfigError, from_dict, to_dict
from .data.manifest import Clip, Manifest
from .data.text import Tokenizer
from .files import write_atomically, writing
from .runtime.forms import printable, read_json
from .runtime.lock import owned


class RunError(RuntimeError):
    """The run cannot go on; the message says why and what to do."""


def first_free(name: str, held: contextlib.ExitStack) -> Path:
    """Makes runs/NAME, or runs/NAME-2, -3, ... if that exists; it is this command's own until `held` is closed."""
    folder, number = Path("runs") / name, 1
    while True:
        with contextlib.suppress(FileExistsError):
            held.enter_context(owned(folder, folder=True, new=True))
            return folder
        number += 1
        folder = Path("runs") / f"{name}-{number}"


def holds_run(folder: Path) -> bool:
    """Whether a new run in `folder` would overwrite another: its settings may be lost, its checkpoints are not."""
    return (folder / "config.json").exists() or any((folder / "checkpoints").glob("step-*"))


def pick_device(name: str, local_rank: int | None = None) -> torch.device:
    """`local_rank`: among several processes of this machine, each takes the GPU of its number."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and local_rank is not None:
        name = f"cuda:{local_rank}"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"device {name!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return device


def compute_dtype(name: str, device: torch.device) -> torch.dtype:
    """ "auto" is bfloat16 on GPUs (parameters stay float32) and float32 elsewhere."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def autocast_for(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def fingerprint(rows: Iterable[Clip | str]) -> str:
    """Changes when a clip, its span, its captions or its split do, or a word; a resumed run must see the same."""
    digest = hashlib.sha256()
    for row in rows:
        content = row if isinstance(row, str) else (row.name, row.start, row.end, row.captions, row.label, row.split)
        digest.update(repr(content).encode())
    return digest.hexdigest()


def write_config(out: Path, config: Config, record: dict[str, Any]) -> None:
    text = json.dumps({"config": to_dict(config), **record}, indent=2) + "\n"
    write_atomically(out / "config.json", text.encode())


def read_config(out: Path) -> Config:
    """Settings of the run or model in `out`. Raises `RunError` when there are none, or none that can be used."""
    path = out / "config.json"
    try:
        config = from_dict(Config, read_json(path, {"config": dict})["config"])
        check(config)
    except FileNotFoundError as error:
        raise RunError(f"{out} holds no run: {path} is missing") from error
    except (ValueError, TypeError, ArithmeticError) as error:
        raise RunError(f"{path} is not a run's config: {printable(str(error))}") from error
    return config


def write_model_folder(folder: Path, tensors: Mapping[str, Tensor], config: Config, record: dict[str, Any],
                       words: Tokenizer | None) -> None:  # fmt: skip
    """Writes weights, settings (with `record` beside them) and vocabulary; `folder` changes only when all is there.

    Raises:
        OSError: something cannot be written; an earlier model in `folder` is still there.
    """
    temporary = folder.with_name(f".writing-{folder.name}")
    size, kept = sum(t.nbytes for t in tensors.values()), f"{folder} is as it was" if folder.exists() else ""
    try:
        with writing(folder, size, kept, also=(SafetensorError,)):
            _write_model_folder(folder, temporary, tensors, config, record, words)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_model_folder(folder: Path, temporary: Path, tensors: Mapping[str, Tensor], config: Config,
                        record: dict[str, Any], words: Tokenizer | None) -> None:  # fmt: skip
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()},
              temporary / "model.safetensors")  # fmt: skip
    write_config(temporary, config, record)
    if words is not None:
        words.save(temporary / "vocabulary.txt")
    # Until the new one has its name the old one is kept under another.
    old = folder.with_name(f".old-{folder.name}")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    temporary.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


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
def termination(together: float = 0.0) -> Iterator[list[int]]:
    """Collects SIGTERM and SIGINT so that the step in progress ends first; a second signal exits at once.

    Signals of `together` seconds are one: a terminal and a launcher may both pass on the same Ctrl-C.
    """
    received: list[int] = []
    since = 0.0

    def handle(number: int, frame: Any) -> None:
        nonlocal since
        if received and time.monotonic() - since >= together:
            sys.exit(128 + number)
        if received:
            return
        received.append(number)
        since = time.monotonic()
        tqdm.write(f"{signal.Signals(number).name}: saving after this step (again: exit at once)", file=sys.stderr)

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
