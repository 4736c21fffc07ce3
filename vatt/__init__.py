"""VATT: video-audio-text transformers in PyTorch (Akbari et al., NeurIPS 2021).

    import vatt
    model = vatt.load("DIR")                     # trained, converted or downloaded; eval mode
    config = vatt.load_config("DIR")             # its settings; config.model holds sizes, frames, rates
    tokenizer = vatt.load_tokenizer("DIR")       # its word list
    model = vatt.VATT.from_pretrained("user/name")   # from the Hugging Face hub, with pip install -e '.[hub]'

These names are imported when they are first used: `import vatt` itself does not import torch.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# Before torch is imported: OpenMP threads that spin while they wait make a step 10 times slower as soon as a decoding
# worker shares the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

if TYPE_CHECKING:
    from .checkpoints.hub import VATT as VATT
    from .checkpoints.loading import load as load
    from .checkpoints.model_folder import load_config as load_config
    from .checkpoints.model_folder import load_tokenizer as load_tokenizer

__version__ = "0.1.0"

_LAZY = {
    "VATT": "checkpoints.hub",
    "load": "checkpoints.loading",
    "load_config": "checkpoints.model_folder",
    "load_tokenizer": "checkpoints.model_folder",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_LAZY[name]}", __name__), name)
