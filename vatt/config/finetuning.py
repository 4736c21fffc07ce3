"""Settings of fine-tuning, and a preset a task: what the official release does with a pre-trained model.

A preset takes the sizes of the model it starts from (of `--init`, or of a pre-training preset when training from
scratch) and returns the settings around them. All are the release's defaults, but for the batch size, which it does
not tell.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from operator import attrgetter

from ..errors import ConfigError
from .data import AugmentConfig, DataConfig
from .model import ModelConfig
from .pretraining import Config
from .validation import check

FPS, RATE = 12.5, 24_000  # of the release's fine-tuning: half of 25 frames a second, half of 48 kHz


@dataclass(frozen=True)
class SGDConfig:
    """SGD with momentum, the rate inside the velocity: linear warm-up to `rate`, half a cosine down to 0.

    `clip`: largest global norm of the backbone's gradients, 0 is off; those of the class head are never clipped.
    """

    rate: float = 0.005
    warmup: int = 2_500
    momentum: float = 0.9
    clip: float = 0.75


@dataclass(frozen=True)
class CropConfig:
    """Training crops, `style` "inception" or "vgg" (those of pre-training, see `data.augment`).

    Inception: one box a clip, a share of the picture in `area`, width / height in `aspect`, stretched to the model's
    size.
    """

    style: str = "inception"
    area: tuple[float, float] = (0.08, 1.0)
    aspect: tuple[float, float] = (0.5, 2.0)


@dataclass(frozen=True)
class FinetuneConfig:
    """One run. `init`: where the weights came from, "" is from scratch. Fields that `Config` has mean the same here.

    `loss`: "softmax" for one class a clip, "sigmoid" for any number of them, of which rare ones count more.
    `smoothing`: share of a softmax label that is spread over all classes. `mixup`: a = b of the Beta distribution from
    which the shares of two mixed sounds and their labels come, 0 is off. `head_dropout`: before the class head.
    `eval_windows`, `eval_crops`: temporal windows of a test clip and crops of each; their logits are averaged.
    """

    preset: str = "video"
    task: str = "video"
    init: str = ""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=lambda: DataConfig(augment=AugmentConfig(audio_noise=0.0)))
    crop: CropConfig = field(default_factory=CropConfig)
    loss: str = "softmax"
    smoothing: float = 0.1
    mixup: float = 0.0
    head_dropout: float = 0.5
    optim: SGDConfig = field(default_factory=SGDConfig)
    fused: bool = False
    seed: int = 1
    steps: int = 100_000
    device: str = "auto"
    dtype: str = "auto"
    save_every: int = 5_000
    max_nonfinite: int = 10
    keep_checkpoints: int = 10
    log_every: int = 10
    eval_windows: int = 4
    eval_crops: int = 3
    tensorboard: bool = False
    parallel: str = "ddp"
    recompute: bool = False

    @property
    def modality(self) -> str:
        return modality(self.task)

    def base(self) -> Config:
        """What an exported model's folder says of it: sizes, and how its clips are read."""
        # One clip a batch is enough here; only contrastive losses need a second one.
        data = replace(self.data, batch_size=max(self.data.batch_size, 2))
        return Config(
            preset=self.preset, model=self.model, data=data, fused=self.fused, seed=self.seed, steps=self.steps,
            device=self.device, dtype=self.dtype, save_every=self.save_every, max_nonfinite=self.max_nonfinite,
            keep_checkpoints=self.keep_checkpoints, log_every=self.log_every, eval_windows=self.eval_windows,
            parallel=self.parallel, recompute=self.recompute,
        )  # fmt: skip


def video(model: ModelConfig) -> FinetuneConfig:
    """Video classification (Table 1): 32 frames at 12.5 a second, inception crops, 12 test views. Official.

    `python -m vatt.finetune --task video --data kinetics.csv --init vatt-mbs --size 320`
    """
    sizes = replace(model.video, tables=None)
    if sizes.fps == ModelConfig().video.fps:
        sizes = replace(sizes, fps=FPS)
    return FinetuneConfig(model=replace(model, video=sizes))


def audio(model: ModelConfig) -> FinetuneConfig:
    """Audio event classification (Table 2): 6.4 s at 24 kHz, several labels a clip, mixup, 4 test windows. Official.

    `python -m vatt.finetune --task audio --data audioset.csv --init vatt-mbs --steps 50000`
    """
    sizes = model.audio
    if sizes.rate == ModelConfig().audio.rate:
        sizes = replace(sizes, rate=RATE)
    return FinetuneConfig(preset="audio", task="audio", model=replace(model, audio=sizes), loss="sigmoid",
                          smoothing=0.0, mixup=5.0, head_dropout=0.0, eval_crops=1)  # fmt: skip


def image(model: ModelConfig) -> FinetuneConfig:
    """Image classification (Table 3): a picture fills one row of voxels; the temporal table keeps its first row.

    `python -m vatt.finetune --task image --data imagenet.csv --init vatt-bbs`
    """
    sizes = replace(model.video, tables=None, frames=model.video.patch[0])
    return FinetuneConfig(preset="image", task="image", model=replace(model, video=sizes), eval_windows=1)


def modality(task: str) -> str:
    """What a clip is classified by: a picture is video of a single row of voxels."""
    return "audio" if task == "audio" else "video"


TASKS = ("video", "audio", "image")
LOSSES = ("softmax", "sigmoid")


PRESETS: dict[str, Callable[[ModelConfig], FinetuneConfig]] = {f.__name__: f for f in (video, audio, image)}


def check_finetuning(config: FinetuneConfig) -> None:
    """Raises `ConfigError` naming the first setting out of range and what it must be."""
    for name, fine, wanted in _findings(config):
        if not fine:
            raise ConfigError(f"{name} must be {wanted}, got {attrgetter(name)(config)!r}")
    check(config.base())


def _findings(c: FinetuneConfig) -> Iterator[tuple[str, bool, str]]:
    yield "task", c.task in TASKS, "video, audio or image"
    yield "loss", c.loss in LOSSES, "softmax (one class a clip) or sigmoid (any number of them)"
    yield "smoothing", 0 <= c.smoothing < 1, "at least 0 and below 1"
    yield "smoothing", c.smoothing == 0 or c.loss == "softmax", "0 with loss=sigmoid"
    yield "mixup", 0 <= c.mixup < math.inf, "at least 0"
    yield "mixup", c.mixup == 0 or c.task == "audio", "0: only sound is mixed"
    yield "head_dropout", 0 <= c.head_dropout < 1, "at least 0 and below 1"
    yield "data.batch_size", c.data.batch_size >= 1, "at least 1"
    yield "optim.rate", 0 <= c.optim.rate < math.inf, "at least 0"
    yield "optim.warmup", 0 <= c.optim.warmup <= c.steps, f"between 0 and the {c.steps} steps of the run"
    yield "optim.momentum", 0 <= c.optim.momentum < 1, "at least 0 and below 1"
    yield "optim.clip", 0 <= c.optim.clip < math.inf, "at least 0"
    yield "crop.style", c.crop.style in ("inception", "vgg"), "inception or vgg"
    low, high = c.crop.area
    yield "crop.area", 0 < low <= high <= 1, "two shares above 0, the smaller one first"
    low, high = c.crop.aspect
    yield "crop.aspect", 0 < low <= high < math.inf, "two ratios above 0, the smaller one first"
    yield "eval_crops", c.eval_crops in (1, 3), "1 (centre) or 3"
    if c.task == "audio":
        yield "eval_crops", c.eval_crops == 1, "1 for sound"
    if c.task == "image":
        yield (
            "model.video.frames",
            c.model.video.frames == c.model.video.patch[0],
            (f"{c.model.video.patch[0]}, one row of voxels, for images"),
        )
        yield "eval_windows", c.eval_windows == 1, "1 for images"
