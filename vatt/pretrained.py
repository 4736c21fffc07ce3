"""A folder with a model becomes a model: `vatt.load(DIR)`. What `vatt.embed`, `vatt.search` and `vatt.hub` stand on.

DIR is what training exports (runs/NAME or runs/NAME/model), what `python -m vatt.official convert` writes, or what
`save_pretrained` wrote: `model.safetensors`, `config.json` and, for models that read text, `vocabulary.txt`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from .config import Config
from .data.text import Tokenizer, VocabularyError
from .model.vatt import VATT, Classifier
from .ops import choose
from .run import RunError, read_config
from .runtime.forms import read_json
from .transfer import load_classifier, load_exactly, require_fit

V = TypeVar("V", bound=VATT)
VOCABULARY = "vocabulary.txt"


def model_folder(folder: str | Path) -> Path:
    """DIR/model of a finished run, or DIR itself."""
    folder = Path(folder)
    return folder / "model" if (folder / "model").is_dir() else folder


def load(folder: str | Path, *, device: str | torch.device = "cpu", fused: bool | None = None) -> VATT | Classifier:
    """The model in `folder`, in eval mode on `device`: `VATT`, or `Classifier` for a fine-tuned one.

    `fused`: which operations it runs; None takes what the folder's settings say. Parameters are float32.

    Raises:
        RunError: no model there, or weights and settings that do not belong together.
    """
    folder, device = model_folder(folder), torch.device(device)
    config = load_config(folder)
    if not _is_classifier(folder):
        return load_vatt(folder, device=device, fused=fused)
    return load_classifier(folder, device, fused=config.fused if fused is None else fused)


def load_vatt(folder: str | Path, *, device: str | torch.device = "cpu", fused: bool | None = None) -> VATT:
    """`load` for those who need the common spaces; raises `RunError` for a fine-tuned model."""
    config = load_config(folder)
    build = partial(VATT, config.model, choose(config.fused if fused is None else fused, device))
    model = build_fitting(folder, config, build)
    load_weights(model, folder)
    return model.to(device).eval()


def build_fitting(folder: str | Path, config: Config, build: Callable[[], V]) -> V:
    """What `build` makes, the model of `config`. Raises `RunError` if it is not that of the weights in `folder`."""
    folder = model_folder(folder)
    if _is_classifier(folder):
        raise RunError(f"{folder} holds a fine-tuned model without common spaces; give a pre-trained one "
                       "(vatt.load reads both)")  # fmt: skip
    require_fit(folder, config.model, build)
    return build()


def load_weights(model: VATT, folder: str | Path) -> None:
    """Copies the weights in `folder` into `model`. Raises `RunError` unless they are all of its weights."""
    load_exactly(model, model_folder(folder))


def _is_classifier(folder: Path) -> bool:
    return "classifier" in read_json(folder / "config.json")


def load_config(folder: str | Path) -> Config:
    """All settings of the model in `folder`; `load_config(DIR).model` holds its sizes. Raises `RunError`."""
    return read_config(model_folder(folder))


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """Words to ids for the model in `folder`. Raises `VocabularyError` for a model that has no word list."""
    path = model_folder(folder) / VOCABULARY
    if not path.is_file():
        raise VocabularyError(
            f"{path} is missing, so this model cannot read text; copy its word list there (one word a line; for the "
            "official models howto100m_en.txt of misc_data.tgz), or name it with --vocabulary"
        )
    return Tokenizer.from_file(path)


def weights_fingerprint(model: nn.Module) -> str:
    """SHA-256 of names, types, shapes and values: equal for equal weights, whatever file they lie in."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
