"""VATT: video-audio-text transformers in PyTorch (Akbari et al., NeurIPS 2021).

    import vatt

    model = vatt.load("DIR")                            # trained, converted or downloaded; eval mode
    clip = vatt.read_clip("dog.mp4", model.settings)    # frames, sound and masks as the model takes them
    to_audio, to_text = model.embed_video(clip.video)

docs/api.md lists all public names. They are imported when they are first used: `import vatt` does not import torch.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# Before torch is imported: OpenMP threads that spin while they wait make a step 10 times slower as soon as a decoding
# worker shares the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

if TYPE_CHECKING:
    from .checkpoints.loading import load as load
    from .checkpoints.model_folder import load_config as load_config
    from .checkpoints.model_folder import load_tokenizer as load_tokenizer
    from .config.finetuning import FinetuneConfig as FinetuneConfig
    from .config.model import ModelConfig as ModelConfig
    from .config.presets import preset as preset
    from .config.pretraining import Config as Config
    from .data.clip import Manifest as Manifest
    from .data.manifest import read_manifest as read_manifest
    from .errors import VattError as VattError
    from .evaluation.retrieval import retrieve as retrieve
    from .inference.read_clip import read_clip as read_clip
    from .inference.search.index import SearchIndex as SearchIndex
    from .model.vatt import VATT as VATT
    from .model.vatt import Classifier as Classifier

__version__ = "0.1.0"

_LAZY = {
    "load": "checkpoints.loading",
    "load_config": "checkpoints.model_folder",
    "load_tokenizer": "checkpoints.model_folder",
    "VATT": "model.vatt",
    "Classifier": "model.vatt",
    "Config": "config.pretraining",
    "ModelConfig": "config.model",
    "FinetuneConfig": "config.finetuning",
    "preset": "config.presets",
    "Manifest": "data.clip",
    "read_manifest": "data.manifest",
    "read_clip": "inference.read_clip",
    "embed": "",  # the module of the command, which can be called: see its end
    "retrieve": "evaluation.retrieval",
    "SearchIndex": "inference.search.index",
    "VattError": "errors",
}
__all__ = list(_LAZY)


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if not _LAZY[name]:
        return import_module(f".{name}", __name__)
    return getattr(import_module(f".{_LAZY[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
