"""Settings to JSON and back, dotted overrides (`--set`), and what differs between two."""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from typing import Any, TypeVar

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
    """Settings of a run or model that was written earlier: what it does not say was as it was before there was a word.

    Raises `ConfigError` as `from_dict`, TypeError or AttributeError for what are no settings.
    """
    return from_dict(kind, values | {"data": {"version": 1} | values.get("data", {})})


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


def differences(old: Any, new: Any) -> list[str]:
    """Settings that differ, as `name: old -> new` lines."""
    a, b = dict(_items(to_dict(old))), dict(_items(to_dict(new)))
    return [f"{name}: {a.get(name)!r} -> {b[name]!r}" for name in b if a.get(name) != b[name]]


def settings_of(config: Any) -> dict[str, Any]:
    """All settings by their dotted names."""
    return dict(_items(to_dict(config)))


def _items(values: dict[str, Any], path: str = "") -> typing.Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _items(value, f"{path}{name}.")
        else:
            yield path + name, value


def _leaves(values: dict[str, Any]) -> typing.Iterator[str]:
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
        wanted = getattr(hint, "__name__", str(hint))
        raise ConfigError(f"{name} takes {wanted}, got {value!r}") from error
