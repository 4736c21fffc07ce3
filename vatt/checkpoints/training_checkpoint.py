"""Checkpoints that survive a kill at any moment: atomic, checksummed, never unpickled.

A checkpoint is a folder `step-00001000` with `model.safetensors` (weights and moving statistics), `state.pt` (what
resuming needs besides, read with `weights_only=True`) and `checksums.json`. It is written under another name and
renamed when complete, so a folder of that name is whole or damaged later; checksums tell which. Weights and moments of
a sharded model are in `shards/` instead (`vatt.training.parallel`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from ..errors import RunError, VattError

WEIGHTS, STATE, SHARDS = "model.safetensors", "state.pt", "shards"
_NAME = re.compile(r"step-(\d{8,})")


class DamagedCheckpoint(VattError, ValueError):
    """A checkpoint whose files are missing, truncated or altered."""


class Checkpoint(NamedTuple):
    step: int
    path: Path
    model: dict[str, Tensor] | None  # None: in shards below `path`
    state: dict[str, Any]


def save(folder: Path, step: int, model: dict[str, Tensor], state: dict[str, Any], *, keep: int) -> Path:
    """Writes checkpoint `step` into `folder`, then removes all but the newest `keep`. Returns its path."""
    temporary = begin(folder, step)
    if temporary is not None:
        with clearing(temporary):
            save_file({name: t.detach().contiguous() for name, t in model.items()}, temporary / WEIGHTS)
            finish(temporary, step, state, keep=keep)
    return folder / _name(step)


def begin(folder: Path, step: int) -> Path | None:
    """An empty folder for what belongs to checkpoint `step`; None when that is there and whole."""
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / _name(step)
    if _is_whole(final):  # resumed here: the same step of the same run
        return None
    for leftover in folder.glob(".writing-*"):  # of a run that was killed while saving
        shutil.rmtree(leftover)
    temporary = folder / f".writing-{final.name}"
    temporary.mkdir()
    return temporary


def finish(temporary: Path, step: int, state: dict[str, Any], *, keep: int) -> None:
    """Adds `state` and the checksums of all files, gives the folder its name and removes all but the newest `keep`."""
    folder, final = temporary.parent, temporary.parent / _name(step)
    torch.save({"step": step, **state}, temporary / STATE)
    files = sorted(path for path in temporary.rglob("*") if path.is_file())
    sums = {str(file.relative_to(temporary)): _sha256(file) for file in files}
    (temporary / "checksums.json").write_text(json.dumps(sums, indent=2) + "\n")
    for file in [*files, temporary / "checksums.json", *{file.parent for file in files}]:
        _sync(file)
    # Newer ones exist only when a run resumed from an older checkpoint because they are damaged.
    kept = [p for p in _checkpoints(folder) if p.name < final.name]
    for newer in _checkpoints(folder)[len(kept) :]:
        shutil.rmtree(newer)
    os.replace(temporary, final)
    _sync(folder)
    for old in kept[: max(len(kept) + 1 - keep, 0)]:
        shutil.rmtree(old)


@contextlib.contextmanager
def clearing(temporary: Path) -> Iterator[None]:
    """Around what writes `temporary`. A full disk: gives the space back, keeps the older checkpoints; OSError."""
    try:
        yield
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, RunError):  # another rank's, which reports it
            raise
        nameless = isinstance(error, OSError) and not error.filename
        if nameless or isinstance(error, SafetensorError | RuntimeError | CheckpointException):
            name = temporary.name.removeprefix(".writing-")
            raise OSError(f"{temporary.parent / name} cannot be written: {error}") from error
        raise


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _is_whole(path: Path) -> bool:
    try:
        load(path)
    except DamagedCheckpoint:
        return False
    return True


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("step-*") if _NAME.fullmatch(p.name))


def load(path: Path) -> Checkpoint:
    """Reads one checkpoint folder. Raises `DamagedCheckpoint` naming the file when a checksum does not match."""
    try:
        sums = dict(json.loads((path / "checksums.json").read_text()))
        sharded = WEIGHTS not in sums
        if STATE not in sums or (sharded and not any(name.startswith(f"{SHARDS}/") for name in sums)):
            raise ValueError("incomplete")
    except (OSError, ValueError, TypeError) as error:
        raise DamagedCheckpoint(f"{path / 'checksums.json'} is missing or unreadable") from error
    for name, wanted in sums.items():
        try:
            found = _sha256(path / name)
        except OSError as error:
            raise DamagedCheckpoint(f"{path / name} is missing or unreadable") from error
        if found != wanted:
            raise DamagedCheckpoint(f"{path / name} does not match its checksum")
    state = torch.load(path / STATE, map_location="cpu", weights_only=True)
    return Checkpoint(state.pop("step"), path, None if sharded else load_file(path / WEIGHTS), state)


def load_latest(folder: Path, warn: Callable[[str], None] = print) -> Checkpoint | None:
    """The newest whole checkpoint in `folder`, or None; damaged ones are named through `warn` and passed over."""
    damaged: list[str] = []
    for path in reversed(_checkpoints(folder)):
        try:
            found = load(path)
        except DamagedCheckpoint as error:
            damaged.append(str(error))
            continue
        for message in damaged:
            warn(f"damaged checkpoint: {message}; using {path.name} instead")
        return found
    if damaged:
        raise DamagedCheckpoint(f"no whole checkpoint in {folder}: {'; '.join(damaged)}; restore one, or delete the "
                                "folder to begin anew")  # fmt: skip
    return None


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
