"""Settings to JSON and back, dotted overrides (`--set`), and what differs between two."""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

from ..errors import ConfigError

T = TypeVar("T")


def to_dict(config: Any) -> dict[str, Any]:
    """Nested plain dictionaries, ready for JSON."""
    return dataclasses.asdict(config)


def to_json(config: Any) -> str:
    return json.dumps(to_dict(config), indent=2) + "\n"


def from_dict(kind: type[T], values: dict[str, Any], path: str = "") -> T:
    """Rebuilds dataclass `kind` from nested dictionaries; missing keys take their defaults, unknown ones are errors."""
    hints = typing.get_type_hints(kind)
    names = [f.name for f in dataclasses.fields(kind)]  # type: ignore[arg-type]
    given: dict[str, Any] = {}
    for name, value in values.items():
        if name not in names:
            raise ConfigError(_unknown(path + name, [path + n for n in names]))
        hint = hints[name]
        if dataclasses.is_dataclass(hint):
            if not isinstance(value, dict):
                raise ConfigError(f"{path}{name} holds settings of its own; set one of them, e.g. {path}{name}.X=...")
            given[name] = from_dict(typing.cast(type, hint), value, f"{path}{name}.")
        else:
            given[name] = _coerce(value, hint, path + name)
    return kind(**given)


def from_record(kind: type[T], values: dict[str, Any]) -> T:
    """Return settings of a run or model that was written earlier: what it does not say was as it was before that.

    Raises:
        ConfigError: as `from_dict`.
        TypeError, AttributeError: these are no settings.
    """
    return from_dict(kind, {"dropout": 1} | values | {"data": {"version": 1, "order": 1} | values.get("data", {})})


def apply_overrides(config: T, overrides: list[str]) -> T:
    """Applies `a.b=c` settings in order. Unknown names raise `ConfigError` with the nearest known name."""
    values = to_dict(config)
    known = list(_leaves(values))
    for text in overrides:
        key, sep, raw = text.partition("=")
        key = key.strip()
        if not sep:
            raise ConfigError(f"--set takes NAME=VALUE, got {text!r}")
        if key not in known:
            raise ConfigError(_unknown(key, known))
        node = values
        *parents, leaf = key.split(".")
        for parent in parents:
            node = node[parent]
        node[leaf] = raw.strip()
    return from_dict(type(config), values)


class Difference(NamedTuple):
    """A setting, by its dotted name, that two configurations have differently."""

    name: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.name}: {self.old!r} -> {self.new!r}"


def differences(old: Any, new: Any) -> list[Difference]:
    """Return the settings of `new` that `old` has differently, or not at all (None)."""
    before, after = settings_of(old), settings_of(new)
    return [Difference(name, before.get(name), after[name]) for name in after if before.get(name) != after[name]]


def settings_of(config: Any) -> dict[str, Any]:
    """Return all settings by their dotted names."""
    return dict(_items(to_dict(config)))


def require_resumable(old: T, new: T) -> None:
    """Check that a run which began with the settings `old` can go on with `new`.

    Raises:
        ConfigError: a field that its dataclass marks as fixed differs.
    """
    fixed = fixed_settings(type(new))
    for difference in differences(old, new):
        if difference.name in fixed:
            raise ConfigError(
                f"a resumed run keeps its model and what it learns; this would change {difference}; start a new one"
            )


def fixed_settings(kind: type, fixed: bool = False, path: str = "") -> set[str]:
    """Return the dotted names of what a resumed run may not change, by the marks of `vatt.config.run`."""
    names: set[str] = set()
    for name, hint, metadata in _fields(kind):
        marked = metadata.get("fixed", fixed)
        if dataclasses.is_dataclass(hint):
            names |= fixed_settings(typing.cast(type, hint), marked, f"{path}{name}.")
        elif marked:
            names.add(path + name)
    return names


def word_settings(kind: type, path: str = "") -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield dotted names and allowed words of all settings that take one of a few words."""
    for name, hint, _ in _fields(kind):
        if dataclasses.is_dataclass(hint):
            yield from word_settings(typing.cast(type, hint), f"{path}{name}.")
        elif typing.get_origin(hint) is typing.Literal:
            yield path + name, typing.get_args(hint)


def _fields(kind: type) -> Iterator[tuple[str, Any, Mapping[str, Any]]]:
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        yield field.name, hints[field.name], field.metadata


def _items(values: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _items(value, f"{path}{name}.")
        else:
            yield path + name, value


def _leaves(values: dict[str, Any]) -> Iterator[str]:
    return (name for name, _ in _items(values))


def _unknown(name: str, known: list[str]) -> str:
    # Users often type only the last part of a dotted name, so match on that as well.
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if not close:
        tail = name.rsplit(".", 1)[-1]
        tails = {k.rsplit(".", 1)[-1]: k for k in known}
        close = [tails[t] for t in difflib.get_close_matches(tail, list(tails), n=1, cutoff=0.6)]
    hint = f"; did you mean {close[0]!r}?" if close else f"; known names: {', '.join(known)}"
    return f"unknown setting {name!r}{hint}"


def _coerce(value: Any, hint: Any, name: str) -> Any:
    origin = typing.get_origin(hint)
    try:
        if origin in (typing.Union, types.UnionType):
            if value is None or value == "none":
                return None
            hint = next(a for a in typing.get_args(hint) if a is not type(None))
            return _coerce(value, hint, name)
        if origin is tuple:
            parts = value.strip("()[] ").split(",") if isinstance(value, str) else list(value)
            kinds = typing.get_args(hint)
            if len(parts) != len(kinds):
                raise ValueError(f"takes {len(kinds)} values")
            return tuple(_coerce(p, k, name) for p, k in zip(parts, kinds, strict=True))
        if origin is typing.Literal:
            return str(value)  # validation knows the words
        if hint is bool:
            if isinstance(value, bool):
                return value
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[str(value).lower()]
        if hint is int:
            if isinstance(value, bool) or (isinstance(value, float) and value != int(value)):
                raise ValueError("takes a whole number")
            number = int(value)
            if abs(number) >= 2**63:
                raise ValueError("takes a number of at most 64 bits")
            return number
        return hint(value)
    except (ValueError, KeyError, TypeError, ArithmeticError) as error:
        kind = getattr(hint, "__name__", str(hint))
        raise ConfigError(f"{name} takes {kind}, got {value!r}") from error
