"""The sentences that class names are compared as: names, templates around them, and files of several a class."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError

_WORDS = re.compile(r"(?<=[a-z])(?=[A-Z])")
_JOINED = re.compile(r"(?:[A-Z][a-z]+){2,}")


def class_prompts(
    classes: Sequence[str] | Mapping[str, Sequence[str]], templates: Sequence[str] = ()
) -> dict[str, list[str]]:
    """Return the sentences of each class.

    Args:
        classes: names, or names with their sentences. A name alone is its own sentence, with spaces for underscores
            and between JoinedWords.
        templates: texts with {} where a sentence goes; each is put around each sentence. None: the sentences alone.

    Raises:
        ConfigError: no classes, one of them without a sentence, a name twice, or a template without {}.
        TypeError: `classes` are something else.
    """
    sentences = _sentences(classes)
    if not sentences:
        raise ConfigError("no classes to compare with: the list is empty")
    if len(sentences) < len(classes):
        raise ConfigError("a class is named twice; name each once")
    for name, said in sentences.items():
        if not said or not all(text.strip() for text in said):
            raise ConfigError(f"the class {name!r} has no sentence, or an empty one")
    for template in templates:
        if "{}" not in template:
            raise ConfigError(f'a template holds {{}} where the class goes, e.g. "a video of {{}}", got {template!r}')
    return {
        name: [template.replace("{}", text) for text in said for template in templates or ("{}",)]
        for name, said in sentences.items()
    }


def _sentences(classes: Sequence[str] | Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    texts: list[Any]
    if isinstance(classes, Mapping):
        found = {name: [said] if isinstance(said, str) else list(said) for name, said in classes.items()}
        texts = [text for name, said in found.items() for text in (name, *said)]
    else:
        texts = list(classes) if isinstance(classes, Sequence) and not isinstance(classes, str) else [None]
        found = {}
    if not all(isinstance(text, str) for text in texts):
        raise TypeError(f"texts to rank are a list of sentences, or names with lists of them, got {classes!r:.60}")
    return found or {name: [spoken(name)] for name in texts}


def spoken(name: str) -> str:
    """Return a class name as words: ApplyLipstick and apply_lipstick are two of them."""
    return _WORDS.sub(" ", name) if _JOINED.fullmatch(name) else name.replace("_", " ")


def read_prompts(path: Path) -> dict[str, list[str]]:
    """Read classes with their sentences.

    Args:
        path: a class a line, and behind it its sentences, divided by tabs or, where the file has none, by commas; a
            class without sentences is its own, and one of several lines has those of all. Or JSON: an object of names
            and sentences, or lists of them.

    Raises:
        ConfigError: the file cannot be read, or holds no classes.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        found = _of_json(json.loads(text)) if path.suffix.lower() == ".json" else _of_lines(text)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give a class a line") from error
    except (ValueError, csv.Error, RecursionError) as error:
        raise ConfigError(f"{path}: no classes with sentences ({error}); give a class a line") from error
    if not found:
        raise ConfigError(f"{path}: no classes in this file; give one a line, its sentences behind it")
    return found


def _of_lines(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    delimiter = "\t" if "\t" in text else ","
    for row in csv.reader(text.splitlines(), delimiter=delimiter, skipinitialspace=True):
        name, *said = [cell.strip() for cell in row] or [""]
        if name:
            found.setdefault(name, []).extend(filter(None, said))
    return {name: said or [spoken(name)] for name, said in found.items()}


def _of_json(data: object) -> dict[str, list[str]]:
    if not isinstance(data, dict):
        raise ValueError("JSON of classes is an object of names and sentences")
    found = {name: [said] if isinstance(said, str) else said for name, said in data.items()}
    if not all(isinstance(said, list) and all(isinstance(text, str) for text in said) for said in found.values()):
        raise ValueError("the sentences of a class are a text or a list of texts")
    return found
