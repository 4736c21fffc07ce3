"""Which class each output of a classifier is: a list of names, or labels that are the numbers of outputs."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ..errors import ConfigError
from .clip import Manifest

SORTED = "sorted"  # in place of a file: the manifest's own labels in alphabetical order
_NUMBER = re.compile(r"\d+")
_NAME_COLUMNS = ("display_name", "name", "label", "class", "class_name")


def read_classes(path: Path, classes: int) -> tuple[str, ...]:
    """Read the names of a classifier's outputs, in their order.

    Args:
        path: a name a line; or a table, tab or comma between its cells, one of which numbers the outputs from 0 or 1
            (as AudioSet's class_labels_indices.csv); or JSON, a list of names or an object of names and numbers.
        classes: how many outputs there are.

    Raises:
        ConfigError: the file cannot be read, holds a name twice or another number of them.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        names = _of_json(json.loads(text)) if path.suffix.lower() == ".json" else _of_lines(text.splitlines())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give a class name a line") from error
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path}: no list of classes ({error}); give a class name a line") from error
    doubles = [name for name, count in Counter(names).items() if count > 1]
    if doubles:
        raise ConfigError(f"{path}: the class {doubles[0]!r} is listed twice; outputs would be ambiguous")
    if len(names) != classes:
        raise ConfigError(f"{path}: {len(names)} classes for a model of {classes} outputs; list each once, in order")
    return names


def numbered_classes(clips: Manifest, classes: int) -> tuple[str, ...]:
    """Name `classes` outputs by the labels of `clips`, which are their numbers: label "7" is output 7.

    Without any label the names are the numbers.

    Raises:
        ConfigError: labels that are no such numbers; the message shows which output each would be.
    """
    way_out = f"--classes FILE names the outputs in their order, --classes {SORTED} takes the labels as they are sorted"
    words = [label for label in clips.labels if not _NUMBER.fullmatch(label)]
    if words:
        raise ConfigError(
            f"{clips.root}: the model has {classes} outputs without names, and labels such as {words[0]!r} do not say "
            f"which is theirs (sorted they would be {_shown(clips.labels)}); {way_out}"
        )
    names = [str(number) for number in range(classes)]
    taken: dict[int, str] = {}
    for label in clips.labels:
        number = int(label)
        if number in taken:
            raise ConfigError(f"{clips.root}: {taken[number]!r} and {label!r} are one number; write these labels alike")
        taken[number] = label
        if number < classes:
            names[number] = label
    if taken and max(taken) >= classes:
        raise ConfigError(
            f"{clips.root}: the model has outputs 0 to {classes - 1}, and the labels are {min(taken)} to {max(taken)} "
            f"(sorted they would be {_shown(sorted(clips.labels, key=int))}); {way_out}"
        )
    return tuple(names)


def _shown(names: Sequence[str], count: int = 5) -> str:
    return ", ".join(f"output {i}: {name!r}" for i, name in enumerate(names[:count])) + ", ..." * (len(names) > count)


def _of_json(data: object) -> tuple[str, ...]:
    if isinstance(data, list) and all(isinstance(name, str) for name in data):
        return tuple(data)
    if isinstance(data, dict):
        pairs = list(data.items())
        if all(isinstance(value, int) or _NUMBER.fullmatch(str(value)) for value in data.values()):
            return _in_order([(int(number), str(name)) for name, number in pairs])
        if all(_NUMBER.fullmatch(str(key)) for key in data):
            return _in_order([(int(number), str(name)) for number, name in pairs])
    raise ValueError("neither a list of names nor an object of names and numbers")


def _of_lines(lines: Sequence[str]) -> tuple[str, ...]:
    lines = [line.strip() for line in lines if line.strip()]
    for rows in (
        [line.split("\t") for line in lines],
        list(csv.reader(lines, skipinitialspace=True)),
        [line.split(" ", 1) for line in lines],
        [line.rsplit(" ", 1) for line in lines],
    ):
        names = _of_table([[cell.strip() for cell in row] for row in rows])
        if names:
            return names
    return tuple(lines)


def _of_table(rows: list[list[str]]) -> tuple[str, ...]:
    """Return the names of a table that has a column of all numbers; nothing for what is no such table."""
    if not rows or len(rows[0]) < 2 or any(len(row) != len(rows[0]) for row in rows):
        return ()
    header = [cell.lower() for cell in rows[0]]
    if not any(_NUMBER.fullmatch(cell) for cell in header):
        rows = rows[1:]
    for column in range(len(header)):
        numbers = [int(row[column]) if _NUMBER.fullmatch(row[column]) else -1 for row in rows]
        if rows and sorted(numbers) in (list(range(len(rows))), list(range(1, len(rows) + 1))):
            others = [i for i in range(len(header)) if i != column]
            named = next((header.index(name) for name in _NAME_COLUMNS if name in header), others[0])
            distinct = len({row[named] for row in rows}) == len(rows)  # "class 1", "class 2" are names with a number
            if distinct and (len(others) == 1 or header[named] in _NAME_COLUMNS):
                return _in_order([(number, row[named]) for number, row in zip(numbers, rows, strict=True)])
    return ()


def _in_order(pairs: list[tuple[int, str]]) -> tuple[str, ...]:
    pairs.sort()
    first = pairs[0][0] if pairs else 0
    if first not in (0, 1) or [number for number, _ in pairs] != list(range(first, first + len(pairs))):
        raise ValueError("the numbers do not count the outputs from 0 or 1")
    return tuple(name for _, name in pairs)
