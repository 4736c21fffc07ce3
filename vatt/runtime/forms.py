"""JSON from files that somebody may have changed: of a size that can be, and of the form that its reader expects.

A form is a type (`int`, `float` for any finite number, `complex` for any at all, `str`, `bool`, `dict`, `list`, None),
a tuple of forms of which one fits, a list with the form of its items, or a dictionary with the form of each key: those
that end in "?" may be missing, others that are not listed may be there; "*" is the form of all.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from ..errors import VattError

LARGEST_FILE = 2**26  # bytes; a run's longest record is a few kilobytes, a model's with a million labels 30 MB
LARGEST_NUMBER = 2**63


class FormError(VattError, ValueError):
    """What was read has not the form that is expected. The message says where, and what is wrong."""


def read_json(path: Path, form: Any = dict) -> Any:
    """Return the content of a JSON file, which has `form`.

    Raises:
        OSError: the file cannot be read; FileNotFoundError if it is not there.
        FormError: it is no JSON, or JSON of another form.
    """
    with open(path, "rb") as file:
        data = file.read(LARGEST_FILE + 1)
    if len(data) > LARGEST_FILE:
        raise FormError(f"it has more than {LARGEST_FILE:,} bytes")
    return parse_json(data, form)


def parse_json(data: bytes | str, form: Any = dict) -> Any:
    """Parse what `read_json` reads from a file. Raises `FormError`."""
    try:
        value = json.loads(data)
    except RecursionError as error:
        raise FormError("its brackets are nested too deep") from error
    except ValueError as error:  # also bytes that are no UTF-8
        raise FormError(f"it is not JSON: {error}") from error
    require_form(value, form)
    return value


def require_form(value: Any, form: Any, path: str = "") -> None:
    """Raise `FormError`, which names the `path` in the document, unless `value` has `form`."""
    if isinstance(form, dict):
        if not isinstance(value, dict):
            raise FormError(f"{path or 'it'} is {_kind(value)} and not an object of names and values")
        for key, one in form.items():
            if key == "*":
                for name, entry in value.items():
                    require_form(entry, one, f"{path}.{printable(name)[:60]}".lstrip("."))
                continue
            name = key.removesuffix("?")
            if name in value:
                require_form(value[name], one, f"{path}.{name}".lstrip("."))
            elif name == key:
                raise FormError(f"{path or 'it'} has no {name!r}")
    elif isinstance(form, list):
        if not isinstance(value, list):
            raise FormError(f"{path or 'it'} is {_kind(value)} and not a list")
        for i, one in enumerate(value):
            require_form(one, form[0], f"{path}[{i}]")
    elif isinstance(form, tuple):
        if not any(_fits(value, one) for one in form):
            raise FormError(f"{path or 'it'} is {_kind(value)}: {_short(value)}")
    elif not _fits(value, form):
        raise FormError(f"{path or 'it'} is {_kind(value)} and not {_name(form)}: {_short(value)}")


def _fits(value: Any, form: Any) -> bool:
    if form is None:
        return value is None
    if form is complex:  # NaN and infinity too
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if form in (int, float):
        if isinstance(value, bool) or not isinstance(value, int if form is int else (int, float)):
            return False
        return math.isfinite(value) if isinstance(value, float) else abs(value) < LARGEST_NUMBER
    if isinstance(form, type):
        return isinstance(value, form)
    try:
        require_form(value, form)
    except FormError:
        return False
    return True


def _name(form: Any) -> str:
    if form in (float, complex):
        return "a number"
    names = {
        int: "a whole number",
        str: "a text",
        bool: "true or false",
        dict: "an object of names and values",
        list: "a list",
        None: "null",
    }
    return names[form]


def _kind(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    return {int: "a number", float: "a number", str: "a text", dict: "an object", list: "a list"}[type(value)]


def _short(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return f"of {len(value)} entries"
    text = str(value) if not isinstance(value, int) or abs(value) < LARGEST_NUMBER else "a very large one"
    return printable(text[:60])


def printable(text: str) -> str:
    """Return `text` as it can be shown in a terminal: control characters and what is no character are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
