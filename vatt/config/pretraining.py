"""Configuration: frozen dataclasses, JSON round trip, dotted overrides. Presets live in `vatt.config.presets`.

Every run is described by one `Config`. It is written into each checkpoint and report, so that any number can be
traced back to the settings that made it. Sizes follow Table 7 of the paper; defaults are those of the official
release (VATT-MBS pre-training). Fields hold plain values only (int, float, str, bool, None, tuples of them).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .data import DataConfig
from .model import ModelConfig


@dataclass(frozen=True)
class LossConfig:
    """`form`: "asymmetric" (official default, one merged denominator), "symmetric" or "paper" (positives counted once).

    "asymmetric" and "symmetric" average the two pairs by their weights; "paper" sums them.
    """

    form: str = "asymmetric"
    temperature: float = 0.07
    video_text: float = 1.0
    video_audio: float = 1.0


@dataclass(frozen=True)
class OptimConfig:
    """Adam as the release runs it: linear warm-up to `rate`, half a cosine down to `final_rate` at the last step.

    `clip`: largest global gradient norm, 0 is off.
    """

    rate: float = 1e-4
    final_rate: float = 5e-5
    warmup: int = 5_000
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-7
    clip: float = 0.0


@dataclass(frozen=True)
class Config:
    """One run.

    `dtype`: compute type under autocast (parameters stay float32); "auto" is bfloat16 on GPUs and float32 on CPUs.
    `save_every`, `log_every`: in steps. `max_nonfinite`: steps without update, in a row, after which a run gives up.
    `eval_windows`: temporal windows a test clip is read at; `eval_clips`: at most so many test clips.
    `parallel`: on several processes, "ddp" keeps a whole model on each, "fsdp" a part. `recompute`: activation
    checkpointing. `micro_batch`: clips a process computes at a time, 0 is all of its part; a matter of memory only.
    """

    preset: str = "mbs"
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    fused: bool = False
    seed: int = 1
    steps: int = 500_000
    device: str = "auto"
    dtype: str = "auto"
    save_every: int = 1_000
    max_nonfinite: int = 10
    keep_checkpoints: int = 3
    log_every: int = 10
    eval_windows: int = 4
    eval_clips: int = 1_000
    tensorboard: bool = False
    parallel: str = "ddp"
    recompute: bool = False
    micro_batch: int = 0
