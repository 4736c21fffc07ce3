"""All settings, their ranges, presets and JSON."""

from .data import AugmentConfig, DataConfig
from .finetuning import FinetuneConfig
from .model import AudioConfig, DropConfig, EncoderConfig, ModelConfig, TextConfig, VideoConfig
from .presets import PRESETS, preset
from .pretraining import Config, LossConfig, OptimConfig
from .serialization import apply_overrides, from_dict, to_dict

__all__ = [
    "PRESETS",
    "AudioConfig",
    "AugmentConfig",
    "Config",
    "DataConfig",
    "DropConfig",
    "EncoderConfig",
    "FinetuneConfig",
    "LossConfig",
    "ModelConfig",
    "OptimConfig",
    "TextConfig",
    "VideoConfig",
    "apply_overrides",
    "from_dict",
    "preset",
    "to_dict",
]
