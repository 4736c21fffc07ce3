"""One step of VATT-Base's video backbone, and of Hugging Face's VideoMAE-Base: models of one size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

from harness.report import ReportError

import torch

from vatt.config.model import DropConfig, ModelConfig, VideoConfig
from vatt.config.presets import preset
from vatt.runtime.device import autocast_for

from . import model_steps
from .model_steps import StepCase

MODELS = ("vatt", "videomae")
MODES = ("forward", "forward + backward")


def fast_bfloat16() -> bool:
    """Return whether this CPU multiplies bfloat16 in hardware; emulated, a step takes minutes."""
    return any(torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def video_model(layers: int, size: int, rate: float) -> ModelConfig:
    """Return VATT-Base's video backbone without dropout, as VideoMAE-Base has none."""
    model = preset("bbs").model
    encoder = replace(model.video_encoder, layers=layers, dropout=0.0)
    return replace(model, video=VideoConfig(size=size), video_encoder=encoder, drop=DropConfig(rate))


@cache
def rival(layers: int, size: int) -> Any:
    """Return videoMAE-Base with random weights. Raises `ReportError` where transformers is not installed."""
    try:
        from transformers import VideoMAEConfig, VideoMAEModel
    except ImportError as error:
        raise ReportError("the rival needs transformers: pip install transformers") from error
    config: Any = VideoMAEConfig(num_hidden_layers=layers, image_size=size)
    config._attn_implementation = "sdpa"
    return VideoMAEModel(config)


def rival_step(layers: int, size: int, rate: float, dtype: str, *, training: bool) -> Callable[[], object]:
    """Return one step of VideoMAE as `steps.make_step` makes one of ours: a clip, no optimiser."""
    model, device = rival(layers, size), torch.device("cpu")
    clip = torch.randn(1, 16, 3, size, size, generator=torch.Generator().manual_seed(2))
    patches = model.embeddings.num_patches
    dropped = None
    if rate:
        dropped = torch.zeros(1, patches, dtype=torch.bool)
        order = torch.randperm(patches, generator=torch.Generator().manual_seed(3))
        dropped[0, order[: patches - int((1 - rate) * patches)]] = True
    direction = torch.randn(1, 768, generator=torch.Generator().manual_seed(4))

    def forward() -> torch.Tensor:
        model.train(training)
        with autocast_for(device, getattr(torch, dtype)):
            out: torch.Tensor = model(clip, bool_masked_pos=dropped).last_hidden_state[:, 0]
        return out

    def inference() -> None:
        with torch.inference_mode():
            forward()

    def train() -> None:
        model.zero_grad(set_to_none=True)
        out = forward()
        out.backward(direction.to(out.dtype))

    return train if training else inference


def make(row: dict[str, Any], layers: int, size: int) -> Callable[[], object]:
    """Return the step of a row.

    A dropped forward is not what an evaluation runs; here it times the same work of both.
    """
    training = row["mode"] != MODES[0]
    if row["model"] == "videomae":
        return rival_step(layers, size, row["drop_rate"], row["dtype"], training=training)
    model = video_model(layers, size, row["drop_rate"])
    dropped = row["drop_rate"] > 0 and not training
    return model_steps.make_step(StepCase(model, training, drop_in_eval=dropped, dtype=row["dtype"]))
