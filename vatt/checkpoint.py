"""Checkpoints that survive a kill at any moment: atomic, checksummed, never unpickled.

A checkpoint is a folder `step-00001000` with `model.safetensors` (weights and moving statistics), `state.pt` (what
resuming needs besides, read with `weights_only=True`) and `checksums.json`. It is written under another name and
renamed when complete, so a folder of that name is whole or damaged later; checksums tell which.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

_NAME = re.compile(r"step-(\d{8,})")


class DamagedCheckpoint(ValueError):
    """A checkpoint whose files are missing, truncated or altered."""


class Checkpoint(NamedTuple):
    step: int
    path: Path
    model: dict[str, Tensor]
    state: dict[str, Any]


def save(folder: Path, step: int, model: dict[str, Tensor], state: dict[str, Any], *, keep: int) -> Path:
    """Writes checkpoint `step` into `folder`, then removes all but the newest `keep`. Returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step-{step:08d}"
    temporary = folder / f".writing-{final.name}"
    if _is_whole(final):  # resumed here: the same step of the same run
        return final
    for leftover in folder.glob(".writing-*"):  # of a run that was killed while saving
        shutil.rmtree(leftover)
    temporary.mkdir()
    try:
        save_file({name: t.detach().contiguous() for name, t in model.items()}, temporary / "model.safetensors")
        torch.save({"step": step, **state}, temporary / "state.pt")
        sums = {name: _sha256(temporary / name) for name in ("model.safetensors", "state.pt")}
        (temporary / "checksums.json").write_text(json.dumps(sums, indent=2) + "\n")
        for file in temporary.iterdir():
            _sync(file)
        _sync(temporary)
    except BaseException as error:  # a full disk: give the space back, keep the older checkpoints
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, SafetensorError | RuntimeError):
            raise OSError(f"{final} cannot be written: {error}") from error
        raise
    # Newer ones exist only when a run resumed from an older checkpoint because they are damaged.
    kept = [p for p in _checkpoints(folder) if p.name < final.name]
    for newer in _checkpoints(folder)[len(kept) :]:
        shutil.rmtree(newer)
    os.replace(temporary, final)
    _sync(folder)
    for old in kept[: max(len(kept) + 1 - keep, 0)]:
        shutil.rmtree(old)
    return final


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
        sums = json.loads((path / "checksums.json").read_text())
        names = [sums["model.safetensors"], sums["state.pt"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedCheckpoint(f"{path / 'checksums.json'} is missing or unreadable") from error
    for name, wanted in zip(("model.safetensors", "state.pt"), names, strict=True):
        try:
            found = _sha256(path / name)
        except OSError as error:
            raise DamagedCheckpoint(f"{path / name} is missing or unreadable") from error
        if found != wanted:
            raise DamagedCheckpoint(f"{path / name} does not match its checksum")
    state = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
    return Checkpoint(state.pop("step"), path, load_file(path / "model.safetensors"), state)


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
        raise DamagedCheckpoint(f"no whole checkpoint in {folder}: {'; '.join(damaged)}")
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
