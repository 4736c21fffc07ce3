"""A folder with a model becomes a model: `vatt.load(DIR)`.

DIR is what training exports (runs/NAME or runs/NAME/model), what `python -m vatt.official convert` writes, or what
`save_pretrained` wrote: `model.safetensors`, `config.json` and, for models that read text, `vocabulary.txt`.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import RunError
from ..model.heads import HEAD_DROPOUT
from ..model.vatt import VATT, Classifier
from ..ops import choose
from .model_folder import is_classifier, load_config, model_folder, read_config


def load(folder: str | Path, *, device: str | torch.device = "cpu", fused: bool | None = None) -> VATT | Classifier:
    """The model in `folder`, in eval mode on `device`: `VATT`, or `Classifier` for a fine-tuned one.

    `fused`: which operations it runs; None takes what the folder's settings say. Parameters are float32.

    Raises:
        RunError: no model there, or weights and settings that do not belong together.
    """
    folder, device = model_folder(folder), torch.device(device)
    config = load_config(folder)
    if not is_classifier(folder):
        return load_vatt(folder, device=device, fused=fused)
    return load_classifier(folder, device, fused=config.fused if fused is None else fused)


def load_vatt(folder: str | Path, *, device: str | torch.device = "cpu", fused: bool | None = None) -> VATT:
    """`load` for those who need the common spaces; raises `RunError` for a fine-tuned model."""
    config = load_config(folder)
    model = VATT(config.model, choose(config.fused if fused is None else fused, device))
    load_weights(model, folder)
    return model.to(device).eval()


def load_weights(model: VATT, folder: str | Path) -> None:
    """Copies the weights in `folder` into `model`. Raises `RunError` unless they are all of its weights."""
    folder = model_folder(folder)
    if is_classifier(folder):
        raise RunError(f"{folder} holds a fine-tuned model without common spaces; give a pre-trained one "
                       "(vatt.load reads both)")  # fmt: skip
    load_exactly(model, folder)


def load_classifier(folder: Path, device: torch.device, *, fused: bool = False) -> Classifier:
    """A fine-tuned model of `folder` (config.json with "classifier", model.safetensors) in eval mode."""
    config = read_config(folder)
    saved = json.loads((folder / "config.json").read_text())
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
    classifier = Classifier(config.model, modality, classes, head_dropout=dropout, ops=choose(fused, device))
    load_exactly(classifier, folder)
    return classifier.to(device).eval()


def load_exactly(model: nn.Module, folder: Path) -> None:
    """Copies the weights in `folder` into `model`. Raises `RunError` unless they are all of its weights and no more."""
    ours, theirs = model.state_dict(), read_folder(folder)
    if theirs is None:
        raise RunError(f"{folder} is no folder with model.safetensors")
    differ = [f"{name} is missing" for name in ours if name not in theirs]
    differ += [f"{name} is unknown" for name in theirs if name not in ours]
    differ += [
        f"{name} has shape {list(theirs[name].shape)}, here {list(tensor.shape)}"
        for name, tensor in ours.items()
        if name in theirs and theirs[name].shape != tensor.shape
    ]
    if differ:
        more = f", and {len(differ) - 1} more differ" if len(differ) > 1 else ""
        raise RunError(f"{folder / 'model.safetensors'} does not fit {folder / 'config.json'}: {differ[0]}{more}")
    model.load_state_dict(theirs)


def read_folder(source: Path) -> dict[str, Tensor] | None:
    """Weights of an exported model or a finished run, None where there are none; raises `RunError` if damaged."""
    for folder in (source / "model", source):
        if (path := folder / "model.safetensors").is_file():
            try:
                return load_file(path)
            except (OSError, SafetensorError) as error:
                raise RunError(f"{path} cannot be read: {error}") from error
    return None
