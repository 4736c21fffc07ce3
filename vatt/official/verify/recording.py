"""Recorded arrays of the official model, and how ours are compared with them.

An array passes when each element is within `absolute + relative * |recorded|` and, where `scaled` is given, the
largest error is within `scaled` times the largest recorded value: 1e-4 alone would not notice a wrong epsilon.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import VattError
from ...ops import Ops
from ..convert import Mapped, build, map_checkpoint, read_weights
from ..tensorflow_checkpoint import TFCheckpoint
from ..variable_names import MODEL

Array = np.ndarray[Any, Any]


class VerifyError(VattError, ValueError):
    """A folder of recordings that cannot be used; the message names the file."""


class Tolerance(NamedTuple):
    absolute: float = 1e-4
    relative: float = 1e-4
    scaled: float | None = 1e-5

    def __str__(self) -> str:
        if not any((self.absolute, self.relative)):
            return "equal"
        return f"{self.absolute:.0e}" + ("" if self.scaled is None else f", {self.scaled:.0e} of max")


DEFAULT = Tolerance()
EQUAL = Tolerance(0.0, 0.0, None)
# Gradients of whole models: the recorded float32 ones are up to 8e-6 of the largest value away from float64 ones.
GRADIENT = Tolerance(1e-4, 1e-4, 1e-4)
# Exactly 0 in exact arithmetic (the softmax ignores what all keys share): what is recorded is rounding noise.
NOISE = Tolerance(1e-4, 0.0, None)


def spline_tolerance(rows: int, epsilon: float = 2.0**-23) -> Tolerance:
    """Return tolerance of what went through the official spline on a table of `rows` rows, solved with float `epsilon`.

    The condition number of that system grows as rows ** 4 (2e12 at 1200), so its own error does, too. Up to 8 rows
    the usual tolerance holds; at 1200 rows a float32 recording says nothing and a float64 one is good to 2e-3.
    """
    own = 0.0 if rows <= 8 else 4 * epsilon * rows**4
    return Tolerance(max(1e-4, own), max(1e-4, own), None)


@dataclass
class Row:
    file: str
    array: str
    absolute: float  # largest error
    relative: float  # largest error / largest recorded value
    tolerance: str
    passed: bool
    note: str = ""


class Model(NamedTuple):
    """A checkpoint in our model, in eval mode."""

    mapped: Mapped
    module: nn.Module

    def gradient(self, name: str) -> Tensor:
        """Return gradient of a checkpoint variable, in its layout."""
        place, parameters = self.mapped.places[name], dict(self.module.named_parameters())
        gradient = parameters[place.name].grad
        assert gradient is not None, f"{place.name} has no gradient"
        return place.to_official(gradient, self.mapped.shapes[name])

    def trainable(self) -> list[str]:
        parameters = dict(self.module.named_parameters())
        places = self.mapped.places
        return [n for n, p in places.items() if p.name in parameters and parameters[p.name].requires_grad]


class Fixtures:
    """A folder of recordings: its sizes, its checkpoints in our model, and the operations to run them with."""

    def __init__(self, folder: Path, ops: Ops):
        self.folder, self.ops = folder, ops
        path = folder / "config.json"
        try:
            self.settings: dict[str, Any] = json.loads(path.read_text())
        except FileNotFoundError as error:
            raise VerifyError(f"{folder} holds no recordings: {path} with the sizes is missing") from error
        except ValueError as error:
            raise VerifyError(f"{path} is not JSON: {error}") from error
        self.load = cache(self._load)

    @property
    def fused(self) -> bool:
        return self.ops.impl != "reference"

    @property
    def temperature(self) -> float:
        return float(self.settings.get("common", {}).get("temperature", 0.07))

    def _load(self, name: str) -> Model:
        with TFCheckpoint(self.folder / name) as checkpoint:
            mapped = map_checkpoint(checkpoint, self.settings)
            weights = read_weights(checkpoint, mapped)
        module = build(mapped.description, self.ops)
        module.load_state_dict(weights)
        return Model(mapped, module.eval())


@dataclass
class Recording:
    """One .npz file. Collects a row for every array that is compared."""

    name: str
    arrays: dict[str, Array]
    fixtures: Fixtures
    rows: list[Row] = field(default_factory=list)
    read: set[str] = field(default_factory=set)

    def input(self, name: str) -> Tensor:
        """Return a recorded array as a tensor; it counts as used."""
        self.read.add(name)
        if name not in self.arrays:
            raise VerifyError(f"{self.name} has no array {name!r}")
        return torch.from_numpy(np.array(self.arrays[name]))

    def optional(self, name: str) -> Tensor | None:
        return self.input(name) if name in self.arrays else None

    def number(self, name: str) -> int:
        return int(self.input(name))

    def check(self, name: str, ours: Tensor | float, tolerance: Tolerance = DEFAULT, note: str = "") -> None:
        """Compare `ours` with the recorded array `name`."""
        self.read.add(name)
        value = ours.detach().double().numpy() if isinstance(ours, Tensor) else np.float64(ours)
        if name not in self.arrays:
            self.rows.append(Row(self.name, name, np.nan, np.nan, str(tolerance), False, "not in the file"))
            return
        recorded = self.arrays[name].astype(np.float64)
        if value.shape != recorded.shape:
            note = f"shape {list(value.shape)}, recorded {list(recorded.shape)}"
            self.rows.append(Row(self.name, name, np.nan, np.nan, str(tolerance), False, note))
            return
        error = np.abs(value - recorded)
        largest = float(np.abs(recorded).max(initial=0.0))
        absolute = float(error.max(initial=0.0))
        relative = absolute / largest if largest else (0.0 if absolute == 0 else np.inf)
        # Written so that NaN fails.
        passed = bool((error <= tolerance.absolute + tolerance.relative * np.abs(recorded)).all())
        if tolerance.scaled is not None:
            passed = passed and absolute <= max(tolerance.scaled * largest, 1e-12)
        self.rows.append(Row(self.name, name, absolute, relative, str(tolerance), passed, note))

    def undefined(self, name: str, ours: float, note: str) -> None:
        """Record an array that is NaN in the release, where ours is a number."""
        recorded = self.input(name).double().numpy()
        passed = bool(np.isnan(recorded).all() and np.isfinite(ours))
        self.rows.append(Row(self.name, name, np.nan, np.nan, "NaN recorded", passed, note))

    def finish(self) -> list[Row]:
        """Return all rows, and a failed one for each array that nothing has read."""
        unread = [name for name in self.arrays if name not in self.read]
        rows = [Row(self.name, name, np.nan, np.nan, "", False, "no check reads this array") for name in unread]
        return [*self.rows, *rows]


def variable_name(path: str) -> str:
    """Return full name of a variable that is recorded below `_head_layer` only, e.g. `vid_to_hid.kernel`."""
    return f"{MODEL}_head_layer/_bridge_heads/0/{path.replace('.', '/')}"
