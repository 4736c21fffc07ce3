"""What `--init` names, a model folder or an official PREFIX: its sizes and its weights."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from torch import Tensor

from ..checkpoints.loading import read_folder, require_fit, weight_shapes
from ..checkpoints.model_folder import load_config, model_folder
from ..config.model import ModelConfig
from ..config.pretraining import Config
from ..config.run import RunConfig
from ..errors import ConfigError, RunError
from ..model.vatt import VATT
from .convert import map_checkpoint, read_weights
from .infer_config import SizeError
from .tensorflow_checkpoint import TFCheckpoint


def source_sizes(init: str) -> ModelConfig:
    """Return sizes of the model in `init`, a folder or an official PREFIX.

    Raises `RunError` and, for an official checkpoint, `CheckpointError`, `MapError`, or `ConfigError` without sizes.
    """
    folder = model_folder(init)
    if (folder / "config.json").is_file():
        sizes = load_config(folder).model
        require_fit(folder, sizes, partial(VATT, sizes), exactly=False)
        return sizes
    if not Path(f"{init.removesuffix('.index')}.index").is_file() and not any(Path(init).glob("*.index")):
        raise RunError(f"--init {init}: neither a folder with a model nor an official checkpoint's PREFIX")
    try:
        with TFCheckpoint(Path(init)) as checkpoint:
            return map_checkpoint(checkpoint).description.config
    except SizeError as error:
        raise ConfigError(
            f"--init {init}: {error}; python -m vatt.official convert has --config and makes a folder that --init takes"
        ) from error


def source_settings(init: str) -> RunConfig:
    """Return the settings with which the model in `init` was trained; of an official PREFIX its sizes in a `Config`.

    Raises as `source_sizes`.
    """
    sizes = source_sizes(init)
    folder = model_folder(init)
    return load_config(folder) if (folder / "config.json").is_file() else Config(preset="official", model=sizes)


def source_shapes(init: str) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the weights in `init`, without reading them. Raises as `source_sizes`."""
    folder = model_folder(init)
    if (folder / "config.json").is_file():
        return weight_shapes(folder)
    with TFCheckpoint(Path(init)) as found:
        return {name: tuple(tensor.shape) for name, tensor in map_checkpoint(found, need_heads=False).tensors.items()}


def read_source(source: str | Path) -> dict[str, Tensor]:
    """Return weights of an exported model, a finished run, a checkpoint folder, or an official checkpoint (PREFIX).

    Raises `RunError` for a folder without a model and `CheckpointError` for an official checkpoint that is damaged.
    """
    source = Path(source)
    if (weights := read_folder(source)) is not None:
        return weights
    has_index = source.is_dir() and any(source.glob("*.index"))
    if not has_index and not Path(f"{str(source).removesuffix('.index')}.index").is_file():
        raise RunError(f"{source} is neither a folder with model.safetensors nor an official checkpoint's PREFIX")
    with TFCheckpoint(source) as checkpoint:
        return read_weights(checkpoint, map_checkpoint(checkpoint, need_heads=False))
