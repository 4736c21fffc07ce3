"""The folder of a run: settings, vocabulary, exported model; and what every command needs to use one.

OUT/config.json        resolved settings and where they ran   OUT/checkpoints/   see training_checkpoint.py
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

from ..config.finetuning import FinetuneConfig
from ..config.pretraining import Config
from ..config.run import RunConfig
from ..config.serialization import from_record, to_dict
from ..config.validation import check
from ..data.tokenizer import Tokenizer, VocabularyError
from ..errors import RunError
from ..runtime.files import write_atomically, writing
from ..runtime.forms import FormError, printable, read_json, require_form

# Under which key a record holds settings; the first one that is there counts. A fine-tuned model that commit 20a74a7
# exported has "config" alone, with its sizes and data, and with a loss and an optimizer that it never had.
SECTIONS: dict[str, type[RunConfig]] = {"finetune": FinetuneConfig, "config": Config}


def settings_record(config: RunConfig) -> dict[str, Any]:
    """Return settings as config.json, result.json and checkpoints hold them."""
    section = next(name for name, kind in SECTIONS.items() if isinstance(config, kind))
    return {section: to_dict(config)}


def recorded_settings(record: Mapping[str, Any]) -> RunConfig:
    """Return the settings that a record holds.

    Raises:
        ValueError, TypeError, ArithmeticError: it holds none, or none that can be used.
    """
    section = next((name for name in SECTIONS if name in record), "config")
    require_form(record, {section: dict})
    config = from_record(SECTIONS[section], record[section])
    check(config)
    return config


def write_config(out: Path, config: RunConfig, record: dict[str, Any]) -> None:
    """Write OUT/config.json: the settings, and `record` beside them. Raises OSError."""
    text = json.dumps({**settings_record(config), **record}, indent=2) + "\n"
    write_atomically(out / "config.json", text.encode())


def read_config(out: Path) -> RunConfig:
    """Return the settings of the run or model in `out`: a `Config`, or a `FinetuneConfig` for a fine-tuned one.

    Raises:
        RunError: there are none, or none that can be used.
    """
    path = out / "config.json"
    try:
        config = recorded_settings(read_json(path))
    except FileNotFoundError as error:
        raise RunError(f"{out} holds no run: {path} is missing") from error
    except (ValueError, TypeError, ArithmeticError) as error:
        raise RunError(f"{path} is not a run's config: {printable(str(error))}") from error
    return config


def corpus_format(record: Mapping[str, Any]) -> int:
    """Return the format of the built-in corpus that the `record` of a run or model names; 1 where it names none."""
    version = record.get("corpus_format", 1)
    if type(version) is not int:
        raise RunError(f"config.json: corpus_format is {printable(repr(version))[:60]}, and not a whole number")
    return version


def read_record(folder: Path) -> dict[str, Any]:
    """Return all that config.json in `folder` says; nothing where there is none, or none that can be read."""
    try:
        record: dict[str, Any] = read_json(folder / "config.json")
    except (OSError, FormError):
        return {}
    return record


def write_model_folder(
    folder: Path, tensors: Mapping[str, Tensor], config: RunConfig, record: dict[str, Any], words: Tokenizer | None
) -> None:
    """Write weights, settings (with `record` beside them) and vocabulary; `folder` changes only when all is there.

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


def _write_model_folder(
    folder: Path,
    temporary: Path,
    tensors: Mapping[str, Tensor],
    config: RunConfig,
    record: dict[str, Any],
    words: Tokenizer | None,
) -> None:
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    weights = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    save_file(weights, temporary / "model.safetensors")
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
    """Return DIR/model of a finished run, or DIR itself; of a model's own file the folder that it lies in.

    Raises `RunError` for any other file.
    """
    folder = Path(folder)
    if folder.is_file():
        if not folder.name.endswith((".safetensors", ".safetensors.index.json")):
            raise RunError(f"{folder} is a file; give the folder with a model's config.json and model.safetensors")
        return folder.parent
    return folder / "model" if (folder / "model").is_dir() else folder


def is_classifier(folder: Path) -> bool:
    return "classifier" in read_json(folder / "config.json")


def load_config(folder: str | Path) -> RunConfig:
    """Return the settings that made the model in `folder`; `load_config(DIR).model` holds its sizes.

    Returns:
        A `Config`, or a `FinetuneConfig` for a fine-tuned model.

    Raises:
        RunError: there are none, or none that can be used.
    """
    return read_config(model_folder(folder))


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """Return words to ids for the model in `folder`. Raises `VocabularyError` for a model that has no word list."""
    path = model_folder(folder) / VOCABULARY
    if not path.is_file():
        raise VocabularyError(
            f"{path} is missing, so this model cannot read text; copy its word list there (one word a line; for the "
            "official models howto100m_en.txt of misc_data.tgz), or name it with --vocabulary"
        )
    return Tokenizer.from_file(path)


def tokenizer_of(folder: str | Path) -> Tokenizer | None:
    """Return the words of the model in `folder`, None for a model that has no word list."""
    return load_tokenizer(folder) if (model_folder(folder) / VOCABULARY).is_file() else None
