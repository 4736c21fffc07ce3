"""The folder of an evaluation: finished parts, result.json, what a resume may go on from."""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch

from ..config.run import RunConfig
from ..config.serialization import to_dict
from ..errors import ConfigError, RunError
from ..runtime.files import first_free, write_atomically
from ..runtime.forms import FormError, read_json
from ..runtime.lock import owned
from ..runtime.provenance import environment

# What decides the numbers; a resumed run must have them all in common with the shards.
IDENTITY = ("weights_sha256", "config_sha256", "vocabulary_sha256", "clips_sha256", "split", "windows", "batch_size",
            "shard_batches", "device", "dtype", "operations")  # fmt: skip

# What is printed of a result.json that an earlier command wrote.
RESULT: dict[str, Any] = {
    "classify": {
        "test": {"scores?": {"*": (complex, None)}, "labelled": int, "clips": int, "views": int, "bad_clips": int}
    },
    "probe": {"probe": {"*": {"scores": {"*": complex}, "folds": (list, dict), "classes": int, "bad_clips": int}}},
    "retrieve": {
        "retrieval": {
            "*": dict.fromkeys(("R@1", "R@5", "R@10", "median_rank", "queries", "candidates", "chance_R@10"), complex)
        },
        "bad_clips": int,
    },
}


def read_settings(path: Path) -> dict[str, Any]:
    try:
        settings: dict[str, Any] = read_json(path)
    except FormError as error:
        raise RunError(f"{path} is damaged ({error}); delete {path.parent} to start over") from error
    return settings


def scores_only(args: argparse.Namespace) -> bool:
    return args.out is not None and args.out.suffix == ".json"


def open_out(
    args: argparse.Namespace, settings: dict[str, Any], held: contextlib.ExitStack
) -> tuple[Path | None, dict[str, Any] | None]:
    """The folder to write, None for none, and the result in it when an earlier command has finished.

    What is written is this command's own until `held` is closed.

    Raises `ConfigError` rather than overwrite, `RunError` when what was begun is not what is asked for now.
    """
    if args.out is None and args.task == "retrieve":
        return None, None
    out = args.out or first_free(f"evaluate-{args.task}", held)
    if args.out:
        held.enter_context(owned(out, folder=not scores_only(args), force=args.force))
    if scores_only(args):
        return None, None
    begun, result = out / "evaluate.json", out / "result.json"
    settings = json.loads(json.dumps(settings))  # tuples become lists, as in the file they are compared with
    if not args.resume and (begun.exists() or result.exists()):
        raise ConfigError(f"{out} already holds results; go on with --resume, or choose another --out")
    if args.resume and begun.exists():
        try:
            before = read_json(begun)
            differ = [f"{name}: {before.get(name)!r}, now {value!r}" for name, value in settings.items()
                      if before.get(name) != value]  # fmt: skip
            finished = read_json(result, RESULT[args.task]) if result.exists() else None
        except FormError as error:
            raise RunError(f"{out} is damaged ({error}); delete it to start over") from error
        if differ:
            raise RunError(f"{out} was begun with other settings ({'; '.join(differ)}); repeat those, or choose "
                           "another --out")  # fmt: skip
        return out, finished
    write_atomically(begun, (json.dumps(settings, indent=2) + "\n").encode())
    return out, None


def finish(out: Path, settings: dict[str, Any], config: RunConfig, device: torch.device,
           found: dict[str, Any]) -> dict[str, Any]:  # fmt: skip
    """Writes and returns result.json."""
    result = {"evaluate": settings, "environment": environment(device), "model": to_dict(config.model), **found}
    write_atomically(out / "result.json", (json.dumps(result, indent=2) + "\n").encode())
    return result


def open_parts(parts: Path, identity: dict[str, Any]) -> None:
    """Makes the folder `parts`, and empties it first when its shards are those of another `identity` (plain JSON)."""
    text, path = json.dumps(identity), parts / "identity"
    if not path.is_file() or path.read_text() != text:
        shutil.rmtree(parts, ignore_errors=True)
        parts.mkdir(parents=True)
        write_atomically(path, text.encode())
