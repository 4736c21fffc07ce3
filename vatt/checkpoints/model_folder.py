"""The folder of a run: settings, vocabulary, exported model; and what every command needs to use one.

OUT/config.json        resolved settings and where they ran   OUT/checkpoints/   see checkpoint.py
OUT/vocabulary.txt     one word a line                        OUT/metrics.jsonl  one line a step
OUT/bad_clips.csv      clips that could not be read           OUT/result.json    losses, times, retrieval
OUT/content.json       digests of the clips' files
OUT/model/             weights + config + vocabulary: all that is needed to use the model
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..config.pretraining import Config
from ..config.serialization import from_record, to_dict
from ..config.validation import check
from ..data.tokenizer import Tokenizer, VocabularyError
from ..errors import RunError
from ..runtime.files import write_atomically, writing
from ..runtime.forms import printable, read_json


def write_config(out: Path, config: Config, record: dict[str, Any]) -> None:
    text = json.dumps({"config": to_dict(config), **record}, indent=2) + "\n"
    write_atomically(out / "config.json", text.encode())


def read_config(out: Path) -> Config:
    """Settings of the run or model in `out`. Raises `RunError` when there are none, or none that can be used."""
    path = out / "config.json"
    try:
        config = from_record(Config, read_json(path, {"config": dict})["config"])
        check(config)
    except FileNotFoundError as error:
        raise RunError(f"{out} holds no run: {path} is missing") from error
    except (ValueError, TypeError, ArithmeticError) as error:
        raise RunError(f"{path} is not a run's config: {printable(str(error))}") from error
    return config


def corpus_format(record: Mapping[str, Any]) -> int:
    """Return the format of the built-in corpus that the `record` of a run or model names; 1 where it names none."""
    return int(record.get("corpus_format", 1))


def read_record(folder: Path) -> dict[str, Any]:
    """Return all that config.json in `folder` says; nothing where there is none, or none that can be read."""
    try:
        found = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


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


VOCABULARY = "vocabulary.txt"


def model_folder(folder: str | Path) -> Path:
    """DIR/model of a finished run, or DIR itself; of a model's own file the folder that it lies in.

    Raises `RunError` for any other file.
    """
    folder = Path(folder)
    if folder.is_file():
        if not folder.name.endswith((".safetensors", ".safetensors.index.json")):
            raise RunError(f"{folder} is a file; give the folder with a model's config.json and model.safetensors")
        return folder.parent
    return folder / "model" if (folder / "model").is_dir() else folder


def _is_classifier(folder: Path) -> bool:
    return "classifier" in read_json(folder / "config.json")


def load_config(folder: str | Path) -> Config:
    """All settings of the model in `folder`; `load_config(DIR).model` holds its sizes. Raises `RunError`."""
    return read_config(model_folder(folder))


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """Words to ids for the model in `folder`. Raises `VocabularyError` for a model that has no word list."""
    path = model_folder(folder) / VOCABULARY
    if not path.is_file():
        raise VocabularyError(
            f"{path} is missing, so this model cannot read text; copy its word list there (one word a line; for the "
            "official models howto100m_en.txt of misc_data.tgz), or name it with --vocabulary"
        )
    return Tokenizer.from_file(path)
