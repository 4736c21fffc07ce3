"""Settings of pre-training: loss, optimizer, steps.

A pre-training run is described by one `Config`, which is written into its checkpoints and its config.json. Defaults are
those of the official release (VATT-MBS); presets.py holds others, model.py the sizes. Fields hold plain values only
(int, float, str, bool, None, tuples of them).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from .run import FIXED, RunConfig

LossForm = Literal["asymmetric", "symmetric", "paper"]


@dataclass(frozen=True)
class LossConfig:
    """`form`: "asymmetric" (official default, one merged denominator), "symmetric" or "paper" (positives counted once).

    "asymmetric" and "symmetric" average the two pairs by their weights; "paper" sums them.
    """

    form: LossForm = "asymmetric"
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
class Config(RunConfig):
    """One run of pre-training.

    Args:
        init: the model whose weights it began with, "" is from scratch.
        freeze: towers that are not trained, as "text,audio": tokens and encoder, while the heads go on.
        lr_scale: what the rate of a tower is multiplied by, as "video=0.1,text=0.5".
        word_vectors: the file that the word table was filled from, "" is none.
        eval_clips: at most so many test clips are scored.
        micro_batch: clips a process computes at a time, 0 is all of its part; a matter of memory only.
    """

    preset: str = field(default="mbs", metadata=FIXED)
    init: str = field(default="", metadata=FIXED)
    freeze: str = field(default="", metadata=FIXED)
    lr_scale: str = field(default="", metadata=FIXED)
    word_vectors: str = field(default="", metadata=FIXED)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    steps: int = 500_000
    eval_clips: int = 1_000
    micro_batch: int = 0

    @property
    def frozen(self) -> tuple[str, ...]:
        """Towers that `freeze` names."""
        return tuple(name.strip() for name in self.freeze.split(",")) if self.freeze else ()

    @property
    def rate_scales(self) -> dict[str, float]:
        """Factors by tower that `lr_scale` names. Raises ValueError where it names none."""
        parts = (part.partition("=") for part in self.lr_scale.split(",") if self.lr_scale)
        return {name.strip(): float(factor) for name, _, factor in parts}
