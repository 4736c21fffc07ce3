"""Fine-tuning starts from a pre-trained model: its weights into a `Classifier`, and a report of what differs.

As the release does it: the backbone of the classifier's modality is copied by name, position tables of another length
go through the spline, the class head starts fresh. Unlike the release, nothing that stays behind goes unsaid.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from .config import ModelConfig
from .model.tokens import resample_table
from .model.vatt import Classifier
from .official.convert import HEAD_DROPOUT, map_checkpoint, read_weights
from .ops import choose
from .run import RunError, read_config
from .runtime.forms import printable, read_json
from .tf_checkpoint import TFCheckpoint


@dataclass
class Transfer:
    """What `load_backbone` did, by tensor name. `loaded` + `resampled` + `mismatched` + `fresh` is the classifier."""

    loaded: list[str] = field(default_factory=list)
    resampled: list[tuple[str, int, int]] = field(default_factory=list)  # rows of the table before and after
    mismatched: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)  # theirs, ours
    fresh: list[str] = field(default_factory=list)  # the class head, and what the source does not have
    unused: list[str] = field(default_factory=list)  # of the source: other modalities, its head

    def __str__(self) -> str:
        lines = [f"{len(self.loaded)} tensors loaded"]
        lines += [f"resampled {name}: {old} -> {new} rows" for name, old, new in self.resampled]
        lines += [
            f"NOT loaded {name}: shape {list(theirs)}, here {list(ours)}" for name, theirs, ours in self.mismatched
        ]
        lines += [f"starts fresh: {name}" for name in self.fresh]
        groups: dict[str, int] = {}
        for name in self.unused:
            group = ".".join(name.split(".")[: 3 if name.startswith("backbone.") else 1])
            groups[group] = groups.get(group, 0) + 1
        lines += [f"not used: {group} ({count} tensors)" for group, count in sorted(groups.items())]
        return "\n".join(lines)


def read_source(source: str | Path) -> dict[str, Tensor]:
    """Weights of an exported model, a finished run, a checkpoint folder, or an official checkpoint (PREFIX).

    Raises `RunError` for a folder without a model and `CheckpointError` for an official checkpoint that is damaged.
    """
    source = Path(source)
    for folder in (source / "model", source):
        if (path := folder / "model.safetensors").is_file():
            try:
                return load_file(path)
            except (OSError, SafetensorError) as error:
                raise RunError(f"{path} cannot be read: {error}") from error
    has_index = source.is_dir() and any(source.glob("*.index"))
    if not has_index and not Path(f"{str(source).removesuffix('.index')}.index").is_file():
        raise RunError(f"{source} is neither a folder with model.safetensors nor an official checkpoint's PREFIX")
    with TFCheckpoint(source) as checkpoint:
        return read_weights(checkpoint, map_checkpoint(checkpoint, need_heads=False))


@torch.no_grad()
def load_backbone(classifier: Classifier, source: str | Path) -> Transfer:
    """Copies the backbone of a pre-trained (or fine-tuned) model into `classifier`, in place.

    `source` as in `read_source`. The head always starts fresh. Raises `RunError` when the encoder finds no weights at
    all, e.g. those of a modality-agnostic model for a modality-specific one; print the report for the rest.
    """
    theirs = read_source(source)
    report = Transfer()
    for name, ours in classifier.state_dict().items():
        value = theirs.get(name)
        if value is None or name.startswith("head."):
            report.fresh.append(name)
        elif value.shape == ours.shape:
            ours.copy_(value)
            report.loaded.append(name)
        elif ".position.tables." in name and value.shape[1:] == ours.shape[1:]:
            ours.copy_(resample_table(value.to(ours.device), len(ours)))
            report.resampled.append((name, len(value), len(ours)))
        else:
            report.mismatched.append((name, tuple(value.shape), tuple(ours.shape)))
    report.unused = [name for name in theirs if name in report.fresh or name not in classifier.state_dict()]
    if not any(name.startswith("backbone.encoder.") for name in report.loaded):
        found = sorted({".".join(name.split(".")[:3]) for name in theirs if name.startswith("backbone.encoder.")})
        wanted = next(iter(classifier.backbone.encoder))
        raise RunError(
            f"{source}: no weights for backbone.encoder.{wanted} (the source has: {', '.join(found) or 'no encoder'}); "
            "check model.kind, the modality and the sizes of the classifier"
        )
    return report


def load_classifier(folder: Path, device: torch.device, *, fused: bool = False) -> Classifier:
    """A fine-tuned model of `folder` (config.json with "classifier", model.safetensors) in eval mode."""
    config = read_config(folder)
    saved = read_json(folder / "config.json")
    if "classifier" not in saved:
        raise RunError(f"{folder} holds a pre-trained model, not a classifier; vatt.load reads it")
    try:
        modality, classes = saved["classifier"]["modality"], saved["classifier"]["classes"]
        dropout = HEAD_DROPOUT[modality]
        if type(classes) is not int or classes < 1:
            raise ValueError(f"classes {classes!r}")
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f'{folder / "config.json"}: "classifier" must hold a modality ({" or ".join(HEAD_DROPOUT)}) and '
                       f"a number of classes ({error})") from error  # fmt: skip
    build = partial(Classifier, config.model, modality, classes, head_dropout=dropout, ops=choose(fused, device))
    require_fit(folder, config.model, build)
    classifier = build()
    load_exactly(classifier, folder)
    return classifier.to(device).eval()


def require_fit(folder: Path, config: ModelConfig, build: Callable[[], nn.Module], *, exactly: bool = True) -> None:
    """Raises `RunError` unless `build` makes a model of just the weights in `folder`, before it is made in earnest.

    Not `exactly`: either may have weights that the other has not.

    Settings that were damaged or forged may ask for any number of layers and any size; the weights' header tells
    which are there. `build` is called without memory for weights ("meta"), with no more layers than there are weights.
    """
    theirs = weight_shapes(folder)
    encoders = {"shared": config.shared_encoder} if config.kind == "agnostic" else {
        "video": config.video_encoder, "audio": config.audio_encoder, "text": config.text_encoder}  # fmt: skip
    for name, encoder in encoders.items():
        if encoder.layers > len(theirs):
            raise _unfit(folder, [f"{len(theirs)} weights in all, here {encoder.layers} layers of the {name} encoder"])
    try:
        with torch.device("meta"):
            ours = {name: tuple(tensor.shape) for name, tensor in build().state_dict().items()}
    except (RuntimeError, ValueError, ArithmeticError, TypeError, MemoryError) as error:  # sizes beyond any tensor's
        raise RunError(f"{folder / 'config.json'}: no model has these sizes ({error})") from error
    if not exactly:
        common = ours.keys() & theirs.keys()
        ours, theirs = ({name: one[name] for name in one if name in common} for one in (ours, theirs))
    if differ := _differences(ours, theirs):
        raise _unfit(folder, differ)


def weight_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights in `folder`, from the header of their file. Raises `RunError`."""
    path = folder / "model.safetensors"
    try:
        with safe_open(path, "numpy") as weights:
            return {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise RunError(f"{path} is missing: {folder} holds no model") from error
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path} cannot be read: {error}") from error


def _differences(ours: Mapping[str, tuple[int, ...]], theirs: Mapping[str, tuple[int, ...]]) -> list[str]:
    """What is wrong with `theirs`, a line a weight."""
    differ = [f"{name} is missing" for name in ours if name not in theirs]
    differ += [f"{name} is unknown" for name in theirs if name not in ours]
    return differ + [f"{name} has shape {list(theirs[name])}, here {list(shape)}" for name, shape in ours.items()
                     if name in theirs and theirs[name] != shape]  # fmt: skip


def _unfit(folder: Path, differ: list[str]) -> RunError:
    more = f", and {len(differ) - 1} more differ" if len(differ) > 1 else ""
    text = printable(differ[0])
    return RunError(f"{folder / 'model.safetensors'} does not fit {folder / 'config.json'}: {text}{more}")


def load_exactly(model: nn.Module, folder: Path) -> None:
    """Copies the weights in `folder` into `model`. Raises `RunError` unless they are all of its weights and no more."""
    theirs = read_source(folder)
    shapes = ({name: tuple(x.shape) for name, x in weights.items()} for weights in (model.state_dict(), theirs))
    if differ := _differences(*shapes):
        raise _unfit(folder, differ)
    model.load_state_dict(theirs)
