"""A folder with a model becomes a model: `vatt.load(DIR)`.

DIR is what training exports (runs/NAME or runs/NAME/model), what `python -m vatt.official convert` writes, or what
`save_pretrained` wrote: `model.safetensors` (or its parts and model.safetensors.index.json), `config.json` and, for
models that read text, `vocabulary.txt`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from ..config.model import ModelConfig
from ..config.run import RunConfig
from ..errors import RunError
from ..model.heads import HEAD_DROPOUT
from ..model.vatt import VATT, Classifier
from ..ops import Ops, choose
from ..runtime.forms import FormError, printable, read_json, require_form
from .model_folder import is_classifier, load_config, model_folder, read_config

V = TypeVar("V", bound=VATT)


def load(
    folder: str | Path,
    *,
    device: str | torch.device = "cpu",
    fused: bool | None = None,
    attention: str | None = None,
) -> VATT | Classifier:
    """The model in `folder`, in eval mode on `device`: `VATT`, or `Classifier` for a fine-tuned one.

    `fused`, `attention`: which operations it runs, see `vatt.ops`; None takes what the folder's settings say, as far as
    `device` can. Parameters are float32.

    Raises:
        RunError: no model there, or weights and settings that do not belong together.
    """
    folder, device = model_folder(folder), torch.device(device)
    if not is_classifier(folder):
        return load_vatt(folder, device=device, fused=fused, attention=attention)
    return load_classifier(folder, device, fused=fused, attention=attention)


def operations(config: RunConfig, device: torch.device | str, fused: bool | None, attention: str | None) -> Ops:
    """Of a finished model: those asked for, else those of its training as far as `device` can."""
    wanted = attention or config.attention
    return choose(config.fused if fused is None else fused, device, wanted, asked=attention is not None)


def load_vatt(
    folder: str | Path,
    *,
    device: str | torch.device = "cpu",
    fused: bool | None = None,
    attention: str | None = None,
) -> VATT:
    """`load` for those who need the common spaces; raises `RunError` for a fine-tuned model."""
    config = load_config(folder)
    build = partial(VATT, config.model, operations(config, device, fused, attention))
    model = build_fitting(folder, config, build)
    load_weights(model, folder)
    model.settings, model.folder = config, model_folder(folder)
    return model.to(device).eval()


def build_fitting(folder: str | Path, config: RunConfig, build: Callable[[], V]) -> V:
    """What `build` makes, the model of `config`. Raises `RunError` if it is not that of the weights in `folder`."""
    folder = model_folder(folder)
    if is_classifier(folder):
        raise RunError(
            f"{folder} holds a fine-tuned model without common spaces; give a pre-trained one (vatt.load reads both)"
        )
    require_fit(folder, config.model, build)
    return build()


def load_weights(model: VATT, folder: str | Path) -> None:
    """Copies the weights in `folder` into `model`. Raises `RunError` unless they are all of its weights."""
    load_exactly(model, model_folder(folder))


def load_classifier(
    folder: Path, device: torch.device, *, fused: bool | None = False, attention: str | None = None
) -> Classifier:
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
        raise RunError(
            f'{folder / "config.json"}: "classifier" must hold a modality ({" or ".join(HEAD_DROPOUT)}) and '
            f"a number of classes ({error})"
        ) from error
    ops = operations(config, device, fused, attention)
    build = partial(Classifier, config.model, modality, classes, head_dropout=dropout, ops=ops)
    require_fit(folder, config.model, build)
    classifier = build()
    load_exactly(classifier, folder)
    classifier.settings, classifier.record = config, _classifier_record(folder, saved["classifier"])
    return classifier.to(device).eval()


def _classifier_record(folder: Path, saved: dict[str, Any]) -> dict[str, Any]:
    """Return task, loss, windows, crops and, where there are names, labels of a classifier. Raises `RunError`."""
    # What a converted model has no record of is done as the release does it.
    record = {"task": saved["modality"], "loss": "sigmoid", "windows": 4, "crops": 1}
    if saved["modality"] == "video":
        record |= {"loss": "softmax", "crops": 3}
    record |= saved
    try:
        require_form(record, {"task": str, "loss": str, "windows": int, "crops": int, "labels?": list})
    except FormError as error:
        raise RunError(f'{folder / "config.json"}: "classifier" cannot be read ({error})') from error
    if "labels" in record and len(record["labels"]) != record["classes"]:
        raise RunError(f"{folder / 'config.json'}: {len(record['labels'])} labels for {record['classes']} classes")
    return record


def require_fit(folder: Path, config: ModelConfig, build: Callable[[], nn.Module], *, exactly: bool = True) -> None:
    """Raises `RunError` unless `build` makes a model of just the weights in `folder`, before it is made in earnest.

    Not `exactly`: either may have weights that the other has not.

    Settings that were damaged or forged may ask for any number of layers and any size; the weights' header tells
    which are there. `build` is called without memory for weights ("meta"), with no more layers than there are weights.
    """
    theirs = weight_shapes(folder)
    encoders = (
        {"shared": config.shared_encoder}
        if config.kind == "agnostic"
        else {"video": config.video_encoder, "audio": config.audio_encoder, "text": config.text_encoder}
    )
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
    shapes: dict[str, tuple[int, ...]] = {}
    for path in weight_files(folder) or [folder / "model.safetensors"]:
        try:
            with safe_open(path, "numpy") as weights:
                shapes |= {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
        except FileNotFoundError as error:
            raise RunError(f"{path} is missing: {folder} holds no model") from error
        except (OSError, SafetensorError) as error:
            raise RunError(f"{path} cannot be read: {error}") from error
    return shapes


def weight_files(folder: Path) -> list[Path]:
    """The file of the weights in `folder`, or those that its index lists; none where there is no model.

    Raises `RunError` for an index that cannot be read or names files elsewhere.
    """
    if (path := folder / "model.safetensors").is_file():
        return [path]
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return []
    try:
        names = sorted(set(read_json(index, {"weight_map": {"*": str}})["weight_map"].values()))
    except (OSError, ValueError) as error:
        raise RunError(f"{index} is no index of weights: {error}") from error
    for name in names:
        if not name.endswith(".safetensors") or Path(name).name != name:
            raise RunError(f"{index} names {printable(name)}, which is no file of weights beside it")
    return [folder / name for name in names]


def _differences(ours: Mapping[str, tuple[int, ...]], theirs: Mapping[str, tuple[int, ...]]) -> list[str]:
    """What is wrong with `theirs`, a line a weight."""
    differ = [f"{name} is missing" for name in ours if name not in theirs]
    differ += [f"{name} is unknown" for name in theirs if name not in ours]
    return differ + [
        f"{name} has shape {list(theirs[name])}, here {list(shape)}"
        for name, shape in ours.items()
        if name in theirs and theirs[name] != shape
    ]


def _unfit(folder: Path, differ: list[str]) -> RunError:
    more = f", and {len(differ) - 1} more differ" if len(differ) > 1 else ""
    text = printable(differ[0])
    return RunError(f"{folder / 'model.safetensors'} does not fit {folder / 'config.json'}: {text}{more}")


def load_exactly(model: nn.Module, folder: Path) -> None:
    """Copies the weights in `folder` into `model`. Raises `RunError` unless they are all of its weights and no more."""
    theirs = read_folder(folder)
    if theirs is None:
        raise RunError(f"{folder} is no folder with model.safetensors")
    shapes = ({name: tuple(x.shape) for name, x in weights.items()} for weights in (model.state_dict(), theirs))
    if differ := _differences(*shapes):
        raise _unfit(folder, differ)
    model.load_state_dict(theirs)


def read_folder(source: Path) -> dict[str, Tensor] | None:
    """Weights of an exported model or a finished run, None where there are none; raises `RunError` if damaged."""
    for folder in (source / "model", source):
        if files := weight_files(folder):
            weights: dict[str, Tensor] = {}
            for path in files:
                try:
                    weights |= load_file(path)
                except (OSError, SafetensorError) as error:
                    raise RunError(f"{path} cannot be read: {error}") from error
            return weights
    return None
