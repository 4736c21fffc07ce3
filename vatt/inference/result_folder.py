"""What an interrupted command left behind: may this one go on with it, or must it say why not?

Beside its results a command writes the settings that decide the numbers. One that resumes must have them in common.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from ..config.run import RunConfig
from ..config.serialization import to_dict
from ..errors import ConfigError, RunError
from ..runtime.files import write_atomically
from ..runtime.forms import FormError, read_json
from ..runtime.provenance import environment
from .features_file import read_features

# What decides the numbers of a features file; its record holds more, such as where it was made.
FEATURES_IDENTITY = (
    *("weights_sha256", "config_sha256", "vocabulary_sha256", "clips_sha256", "split", "windows", "batch_size"),
    *("shard_batches", "device", "dtype", "operations"),
)


def open_result(out: Path, settings: dict[str, Any], resume: bool, form: Any) -> dict[str, Any] | None:
    """Make the folder of an evaluation, or open the one to go on with.

    Args:
        out: the folder.
        settings: what decides the numbers.
        resume: go on with what is there.
        form: that of result.json, see `runtime.forms`.

    Returns:
        The content of result.json when an earlier command has finished, else None.

    Raises:
        ConfigError: rather than overwrite results.
        RunError: the folder is damaged, or was begun with other settings.
    """
    settings_file, result = out / "evaluate.json", out / "result.json"
    if not resume and (settings_file.exists() or result.exists()):
        raise ConfigError(f"{out} already holds results; go on with --resume, or choose another --out")
    if resume and settings_file.exists():
        finished = read_record(result, form) if result.exists() else None
        require_equal(read_record(settings_file), settings, settings, out, "repeat those, or choose another --out")
        return finished
    out.mkdir(parents=True, exist_ok=True)
    write_json(settings_file, settings)
    return None


def open_features(out: Path, parts: Path, record: dict[str, Any], resume: bool) -> dict[str, Any] | None:
    """Open the folder of shards beside a features file.

    Args:
        out: the features file to write.
        parts: folder of its shards.
        record: what will be written beside the features if nothing was begun yet.
        resume: go on with what is there.

    Returns:
        The record of the first start; None when `out` is complete.

    Raises:
        ConfigError: rather than overwrite.
        RunError: what was begun is not what is asked for now, or damaged.
    """
    settings = parts / "settings.json"
    if not resume:
        for path in (out, parts):
            if path.exists():
                raise ConfigError(f"{path} exists; go on with --resume, delete it or choose another --out")
    elif out.exists() or settings.exists():
        complete = out.exists()
        saved = read_features(out, ()).metadata if complete else read_record(settings)
        source = out if complete else parts
        require_equal(saved, record, FEATURES_IDENTITY, source, "repeat those, or delete it to start over")
        return None if complete else saved
    shutil.rmtree(parts, ignore_errors=True)  # shards of which nobody knows whence
    parts.mkdir(parents=True)
    write_json(settings, record)
    return record


def begun_dtype(out: Path, parts: Path) -> str | None:
    """Return the dtype in which the features of `out`, or its shards in `parts`, were computed; None before a start.

    Raises:
        FeaturesError: `out` is damaged.
        RunError: `parts` is damaged.
    """
    if out.exists():
        return str(read_features(out, ()).metadata["dtype"])
    settings = parts / "settings.json"
    return str(read_record(settings)["dtype"]) if settings.exists() else None


def open_parts(parts: Path, identity: dict[str, Any]) -> None:
    """Make the folder `parts`, and empty it first when its shards are those of another `identity` (plain JSON)."""
    text, path = json.dumps(identity), parts / "identity"
    if not path.is_file() or path.read_text() != text:
        shutil.rmtree(parts, ignore_errors=True)
        parts.mkdir(parents=True)
        write_atomically(path, text.encode())


def write_result(
    out: Path, settings: dict[str, Any], config: RunConfig, device: torch.device, scores: dict[str, Any]
) -> dict[str, Any]:
    """Write and return result.json of an evaluation: settings, environment, sizes of the model and `scores`."""
    result = {"evaluate": settings, "environment": environment(device), "model": to_dict(config.model), **scores}
    write_json(out / "result.json", result)
    return result


def require_equal(
    saved: Mapping[str, Any], now: Mapping[str, Any], names: Iterable[str], source: Path, way_out: str
) -> None:
    """Raise `RunError` unless the settings `names` are `now` what they were when `source` was begun."""
    now = json.loads(json.dumps(now))  # tuples become lists, as in the file they are compared with
    differ = [f"{name}: {saved.get(name)!r}, now {now[name]!r}" for name in names if saved.get(name) != now[name]]
    if differ:
        raise RunError(f"{source} was begun with other settings ({'; '.join(differ)}); {way_out}")


def read_record(path: Path, form: Any = dict) -> dict[str, Any]:
    """Return the JSON object in `path`. Raises `RunError`, which names its folder as what to delete."""
    try:
        record: dict[str, Any] = read_json(path, form)
    except FormError as error:
        raise RunError(f"{path} is damaged ({error}); delete {path.parent} to start over") from error
    return record


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write `content` as indented JSON, all of it or nothing."""
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())
