"""Official checkpoint -> our tensors, and the folder that is written.

OUT/model.safetensors       weights and moving statistics under our names
OUT/config.json             settings, sizes, where the weights came from; fine-tuned models: "classifier"
OUT/optimizer.safetensors   on request: `m.NAME` and `v.NAME` (Adam) or `momentum.NAME`, and `iter`
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from ..checkpoints.model_folder import write_config
from ..config.presets import PRESETS
from ..config.pretraining import Config
from ..errors import VattError
from ..model.heads import HEAD_DROPOUT
from ..model.vatt import VATT, Classifier
from ..ops import REFERENCE, Ops
from .infer_config import Description, infer_description
from .tensorflow_checkpoint import TFCheckpoint
from .variable_names import SLOT, VALUE, Place, place, variable

_COUNTERS = "num_batches_tracked"  # of torch's batch norm; the release has none


class MapError(VattError, ValueError):
    """Variables without a place, places without a variable, or shapes that differ: nothing may be written."""


@dataclass
class Mapped:
    """A checkpoint's variables and their places in our model.

    `places` and `shapes` by variable name; `tensors` are our model's, on the meta device.
    """

    description: Description
    shapes: dict[str, tuple[int, ...]]
    places: dict[str, Place]
    tensors: dict[str, Tensor]

    def coverage(self) -> Iterable[str]:
        """Yield one line a variable."""
        for name, target in sorted(self.places.items()):
            yield f"{name}  {_shape_text(self.shapes[name])} -> {target}"

    @property
    def numbers(self) -> int:
        return sum(int(np.prod(shape, dtype=np.int64)) for shape in self.shapes.values())


def _shape_text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def build(description: Description, ops: Ops = REFERENCE) -> nn.Module:
    """Return our model of that description, with fresh weights: `VATT`, or `Classifier` for a fine-tuned checkpoint."""
    if description.modality is None:
        return VATT(description.config, ops)
    assert description.classes is not None
    dropout = HEAD_DROPOUT[description.modality]
    return Classifier(description.config, description.modality, description.classes, head_dropout=dropout, ops=ops)


def map_variables(
    entries: Mapping[str, tuple[int, ...]], settings: Mapping[str, Any] | None = None, *, need_heads: bool = True
) -> Mapped:
    """Find the place of every model variable among checkpoint `entries` (key -> shape).

    Raises `SizeError` for a checkpoint of no known model and `MapError` unless variables and places match one to one,
    shapes included. Optimiser state and bookkeeping are left out.
    """
    shapes = {name: shape for key, shape in entries.items() if (name := variable(key)) is not None}
    description = infer_description(shapes, settings, need_heads=need_heads)
    with torch.device("meta"):
        tensors = {k: t for k, t in build(description).state_dict().items() if not k.endswith(_COUNTERS)}
    places, problems = {}, []
    free = {(name, third) for name in tensors for third in ((0, 1, 2) if ".qkv." in name else (None,))}
    for name, shape in shapes.items():
        target = place(name, description.modality, description.agnostic)
        if target is None or target.name not in tensors:
            problems.append(f"{name} {_shape_text(shape)}: unmatched, no part of our model")
        elif (target.name, target.third) not in free:
            problems.append(f"{name}: {target} is taken by another variable")
        else:
            expected = target.shape(tensors[target.name], shape)
            free.discard((target.name, target.third))
            places[name] = target
            if shape != expected:
                problems.append(f"{name}: shape {_shape_text(shape)}, {target} needs {_shape_text(expected)}")
    problems += [f"no variable for our {Place(name, third)}" for name, third in sorted(free, key=str)]
    if problems:
        raise MapError(f"{len(problems)} variables do not match:\n  " + "\n  ".join(problems))
    return Mapped(description, shapes, places, tensors)


def map_checkpoint(
    checkpoint: TFCheckpoint, settings: Mapping[str, Any] | None = None, *, need_heads: bool = True
) -> Mapped:
    """Map the variables of an open checkpoint, as `map_variables`; they must be float32 besides."""
    mapped = map_variables({key: checkpoint.shape(key) for key in checkpoint}, settings, need_heads=need_heads)
    for name in mapped.places:
        if checkpoint.dtype(name + VALUE) != np.float32:
            raise MapError(f"{name} holds {checkpoint.dtype(name + VALUE)}, expected float32")
    return mapped


def read_weights(checkpoint: TFCheckpoint, mapped: Mapped) -> dict[str, Tensor]:
    """Return all of our model's tensors, float32; batch counters are the checkpoint's step."""
    weights = _assemble(checkpoint, mapped, mapped.places, VALUE)
    counters = {name.replace("running_mean", _COUNTERS) for name in weights if name.endswith("running_mean")}
    return weights | {name: torch.tensor(read_step(checkpoint) or 0) for name in counters}


def _assemble(checkpoint: TFCheckpoint, mapped: Mapped, names: Iterable[str], suffix: str) -> dict[str, Tensor]:
    result: dict[str, Tensor] = {}
    for name in names:
        target = mapped.places[name]
        ours = mapped.tensors[target.name]
        if target.name not in result:
            result[target.name] = torch.empty(ours.shape)
        value = torch.from_numpy(checkpoint[name + suffix])
        target.part(result[target.name]).copy_(target.to_ours(value, ours))
    return result


def read_step(checkpoint: TFCheckpoint) -> int | None:
    key = f"optimizer/iter{VALUE}"
    return int(checkpoint[key]) if key in checkpoint else None


def slots(checkpoint: TFCheckpoint) -> tuple[str, ...]:
    """Return kinds of moments the checkpoint holds: ("m", "v"), ("momentum",) or ()."""
    kinds = {key.partition(SLOT)[2].removesuffix(VALUE) for key in checkpoint if SLOT in key}
    return tuple(sorted(kinds))


def read_moments(checkpoint: TFCheckpoint, mapped: Mapped) -> dict[str, Tensor]:
    """Return moments in the layout of our parameters, named KIND.PARAMETER, and `iter` (int64).

    Frozen tables and moving statistics have none. Raises `MapError` when the checkpoint has no optimiser state, or
    moments for a part of a parameter only.
    """
    kinds, step = slots(checkpoint), read_step(checkpoint)
    if not kinds or step is None:
        raise MapError("the checkpoint holds no optimiser state; convert it without --with-optimizer")
    moments = {"iter": torch.tensor(step)}
    for kind in kinds:
        suffix = f"{SLOT}{kind}{VALUE}"
        names = [name for name in mapped.places if name + suffix in checkpoint]
        with_moment = {mapped.places[name].name for name in names}
        for name, target in mapped.places.items():
            if target.name in with_moment and name + suffix not in checkpoint:
                raise MapError(f"{name} has no moment {kind!r}, other parts of {target.name} do")
            if name in names and checkpoint.shape(name + suffix) != mapped.shapes[name]:
                raise MapError(f"{name}: moment {kind!r} has another shape than the variable")
        assembled = _assemble(checkpoint, mapped, names, suffix)
        moments |= {f"{kind}.{name}": tensor for name, tensor in assembled.items()}
    return moments


def preset_name(description: Description) -> str:
    """Return the preset whose model this is, or "official"."""
    if description.modality is None:
        for name, preset in PRESETS.items():
            if preset().model == description.config:
                return name
    return "official"


def write_folder(
    out: Path,
    description: Description,
    weights: dict[str, Tensor],
    moments: dict[str, Tensor] | None,
    record: dict[str, Any],
) -> None:
    """Write `out` under another name and rename it when complete. `out` must not exist, or be an empty folder."""
    config = Config(preset=preset_name(description), model=description.config)
    if description.modality is not None:
        record = record | {"classifier": {"modality": description.modality, "classes": description.classes}}
    out = out.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".writing-{out.name}-{os.getpid()}")
    temporary.mkdir()
    try:
        save_file(weights, temporary / "model.safetensors")
        if moments is not None:
            save_file(moments, temporary / "optimizer.safetensors")
        write_config(temporary, config, record)
        os.replace(temporary, out)
    except SafetensorError as error:
        raise OSError(f"{out} cannot be written: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
