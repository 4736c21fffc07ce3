"""Checkpoints that survive a kill at any moment: atomic, checksummed, never unpickled.

A checkpoint is a folder `step-00001000` with `model.safetensors` (weights and moving statistics), `state.pt` (what
resuming needs besides, read with `weights_only=True`) and `checksums.json`. It is written under another name and
renamed when complete, so a folder of that name is whole or damaged later; checksums tell which. Weights and moments of
a sharded model are in `shards/` instead (`vatt.training.parallel`).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import re
import shutil
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from ..errors import RunError, VattError
from ..runtime.files import writing
from ..runtime.forms import FormError, printable, read_json, require_form

log = logging.getLogger(__name__)
WEIGHTS, STATE, SHARDS = "model.safetensors", "state.pt", "shards"
FORMAT = 2  # of a checkpoint; 1 had no number
_NAME = re.compile(r"step-(\d{8,})")


class ForeignCheckpoint(RunError):
    """A whole checkpoint that this version cannot go on with. The message says why."""


class DamagedCheckpoint(VattError, ValueError):
    """A checkpoint whose files are missing, truncated or altered."""


class Checkpoint(NamedTuple):
    step: int
    path: Path
    model: dict[str, Tensor] | None  # None: in shards below `path`
    state: dict[str, Any]


def save(folder: Path, step: int, model: dict[str, Tensor], state: dict[str, Any], *, keep: int) -> Path:
    """Write checkpoint `step` into `folder`, then remove all but the newest `keep`. Return its path."""
    writer = CheckpointWriter(folder, step, keep, size=_bytes_in(model) + _bytes_in(state))
    if writer.create():
        with writer:
            save_file({name: t.detach().contiguous() for name, t in model.items()}, writer.temporary / WEIGHTS)
            writer.commit(state)
    return writer.final


class CheckpointWriter(contextlib.AbstractContextManager["CheckpointWriter"]):
    """A checkpoint that is being written, by one process or by several that share the folder.

    One process calls `create`; then each writes its files into `temporary`, inside `with`; then one calls `commit`. If
    anything fails inside, the space is given back, and older checkpoints are as they were.

    Args:
        folder: of the run's checkpoints.
        step: of this one.
        keep: how many of the newest remain.
        size: bytes that it takes, where that is known.
    """

    def __init__(self, folder: Path, step: int, keep: int, size: int | None = None) -> None:
        self.folder, self.step, self.keep, self.size = folder, step, keep, size
        self.final = folder / _name(step)
        self.temporary = folder / f".writing-{self.final.name}"
        self._guard = contextlib.ExitStack()

    def create(self) -> bool:
        """Make the empty folder `temporary`; False when this checkpoint is there already, and whole."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if _is_whole(self.final):  # resumed here: the same step of the same run
            return False
        for leftover in self.folder.glob(".writing-*"):  # of a run that was killed while saving
            shutil.rmtree(leftover)
        self.temporary.mkdir()
        return True

    def __enter__(self) -> CheckpointWriter:
        older = [path.name for _, path in saved_steps(self.folder) if path.name < self.final.name]
        kept = f"{older[-1]} is as it was, and --resume goes on with it" if older else ""
        self._guard.enter_context(writing(self.final, self.size, kept, also=(SafetensorError, CheckpointException)))
        return self

    def __exit__(self, *error: Any) -> bool:
        try:
            return bool(self._guard.__exit__(*error))
        finally:
            if error[0] is not None:
                shutil.rmtree(self.temporary, ignore_errors=True)

    def commit(self, state: dict[str, Any]) -> None:
        """Add `state` and the checksums of all files, give the folder its name, and remove what is too old."""
        with open(self.temporary / STATE, "wb") as stream:
            file = _RememberingFile(stream)
            try:
                torch.save({"format": FORMAT, "step": self.step, **state}, cast(IO[bytes], file))
            except RuntimeError:
                if file.error is None:
                    raise
                raise file.error from None  # torch has lost it on its way
        files = sorted(path for path in self.temporary.rglob("*") if path.is_file())
        sums = {str(file.relative_to(self.temporary)): _sha256(file) for file in files}
        (self.temporary / "checksums.json").write_text(json.dumps(sums, indent=2) + "\n")
        for path in [*files, self.temporary / "checksums.json", *{file.parent for file in files}]:
            _sync(path)
        # Newer ones exist only when a run resumed from an older checkpoint because they are damaged.
        kept = [path for path in _checkpoints(self.folder) if path.name < self.final.name]
        for newer in _checkpoints(self.folder)[len(kept) :]:
            shutil.rmtree(newer)
        os.replace(self.temporary, self.final)
        _sync(self.folder)
        for old in kept[: max(len(kept) + 1 - self.keep, 0)]:
            shutil.rmtree(old)


class _RememberingFile(io.RawIOBase):
    """A file that remembers why it could not be written."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise


def _bytes_in(value: Any) -> int:
    """Return the bytes of all tensors in a state."""
    if isinstance(value, Tensor):
        return value.nbytes
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return sum(map(_bytes_in, inner))


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
    """Read one checkpoint folder. Raises `DamagedCheckpoint` naming the file when a checksum does not match."""
    try:
        sums = read_json(path / "checksums.json")
        require_form(list(sums.values()), [str])
        sharded = WEIGHTS not in sums
        if STATE not in sums or (sharded and not any(name.startswith(f"{SHARDS}/") for name in sums)):
            raise ValueError("incomplete")
        if any(".." in Path(name).parts or Path(name).is_absolute() for name in sums):
            raise ValueError("leads out of its folder")
    except (OSError, ValueError) as error:
        raise DamagedCheckpoint(f"{path / 'checksums.json'} is missing or unreadable") from error
    for name, expected in sums.items():
        try:
            digest = _sha256(path / name)
        except OSError as error:
            raise DamagedCheckpoint(f"{path / name} is missing or unreadable") from error
        if digest != expected:
            raise DamagedCheckpoint(f"{path / name} does not match its checksum")
    return _loaded(path, sharded)


def _loaded(path: Path, sharded: bool) -> Checkpoint:
    step, state = _read_state(path)
    return Checkpoint(step, path, None if sharded else _read_weights(path / WEIGHTS), state)


def _read_state(path: Path) -> tuple[int, dict[str, Any]]:
    """Return the step of a checkpoint, and what else is in its state.

    Its checksum was right: who wrote it meant it so.
    """
    file = path / STATE
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's reader has many of them, and nothing of this project is in between
        raise DamagedCheckpoint(f"{file} cannot be read: {printable(str(error)[:200])}") from error
    written = state.pop("format", 1) if isinstance(state, dict) else None
    if type(written) is int and written > FORMAT:
        raise ForeignCheckpoint(
            f"{file} has format {written}, this version reads up to {FORMAT}; resume with the "
            "version of vatt that wrote it, or a newer one"
        )
    try:
        require_form(state, {"step": int})
    except FormError as error:
        raise DamagedCheckpoint(f"{file} is no state of a run: {error}") from error
    step: int = state.pop("step")
    if path.name != _name(step):
        raise DamagedCheckpoint(f"{path} holds step {step}; it was renamed or copied")
    return step, state


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise DamagedCheckpoint(f"{path} cannot be read: {error}") from error


def saved_steps(folder: Path) -> list[tuple[int, Path]]:
    """Return steps and paths of the checkpoints in `folder`, the oldest first; which are whole takes reading them."""
    matches = ((_NAME.fullmatch(path.name), path) for path in _checkpoints(folder))
    return sorted((int(match[1]), path) for match, path in matches if match)


def load_latest(folder: Path) -> Checkpoint | None:
    """Return the newest whole checkpoint in `folder`, or None without any; warn of damaged ones, and pass them over.

    Raises:
        DamagedCheckpoint: none of them is whole.
    """
    damaged: list[str] = []
    for path in reversed(_checkpoints(folder)):
        try:
            checkpoint = load(path)
        except DamagedCheckpoint as error:
            damaged.append(str(error))
            continue
        for message in damaged:
            log.warning("damaged checkpoint: %s; using %s instead", message, path.name)
        return checkpoint
    if damaged:
        raise DamagedCheckpoint(
            f"no whole checkpoint in {folder}: {'; '.join(damaged)}; restore one, or delete the folder to begin anew"
        )
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
