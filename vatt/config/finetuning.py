"""Settings of fine-tuning, and a preset a task: what the official release does with a pre-trained model.

A preset takes the sizes of the model it starts from (of `--init`, or of a pre-training preset when training from
scratch) and returns the settings around them. All are the release's defaults, but for the batch size, which it does
not tell.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

from .data import AugmentConfig, DataConfig
from .model import AudioConfig, EncoderConfig, ModelConfig
from .run import FIXED, RunConfig

Task = Literal["video", "audio", "image"]
ClassLoss = Literal["softmax", "sigmoid"]  # one class a clip, or any number of them
CropStyle = Literal["inception", "vgg"]
Optimizer = Literal["sgd", "adamw"]
DESCRIPTORS = 72  # numbers of a sound that pre-training regresses, see `training.descriptors`
FPS, RATE = 12.5, 24_000  # of the release's fine-tuning: half of 25 frames a second, half of 48 kHz


@dataclass(frozen=True)
class FinetuneOptimConfig:
    """The updates of fine-tuning: linear warm-up to `rate`, half a cosine down to 0.

    Args:
        optimizer: "sgd" with momentum, the rate inside the velocity, or "adamw".
        weight_decay: of AdamW, of matrices alone.
        clip: largest global norm of the backbone's gradients, 0 is off; those of the class head are never clipped.
        layer_decay: the rate of a layer is that of the one above it times this; the class head has `rate`, and so have
            all layers in steps without labels.
        head_steps: so many first steps train the class head alone.
    """

    rate: float = 0.005
    warmup: int = 2_500
    momentum: float = 0.9
    clip: float = 0.75
    optimizer: Optimizer = field(default="sgd", metadata=FIXED)
    weight_decay: float = 0.05
    layer_decay: float = field(default=1.0, metadata=FIXED)
    head_steps: int = 0


@dataclass(frozen=True)
class WaveformConfig:
    """What is drawn for each training sound, all off by default as in the release.

    Args:
        turn: what leaves a window at its end comes back at its beginning, by any number of samples.
        speed: largest factor either way by which it is played faster or slower, 1 is off.
        gain: largest factor either way of its loudness, and either polarity; 1 is off.
        equalise: standard deviation of the logarithm of a gain that is drawn at eight pitches, 0 is off.
        band_mask: widest band of pitches that is taken out, as a share of all on the mel scale, 0 is off.
    """

    turn: bool = False
    speed: float = 1.0
    gain: float = 1.0
    equalise: float = 0.0
    band_mask: float = 0.0


@dataclass(frozen=True)
class CropConfig:
    """Training crops, `style` "inception" or "vgg" (those of pre-training, see `data.augment`).

    Inception: one box a clip, a share of the picture in `area`, width / height in `aspect`, stretched to the model's
    size.
    """

    style: CropStyle = "inception"
    area: tuple[float, float] = (0.08, 1.0)
    aspect: tuple[float, float] = (0.5, 2.0)


@dataclass(frozen=True)
class FinetuneConfig(RunConfig):
    """One run of fine-tuning.

    Args:
        init: where the weights came from, "" is from scratch.
        loss: "softmax" for one class a clip, "sigmoid" for any number of them, of which rare ones count more.
        smoothing: share of a softmax label that is spread over all classes.
        mixup: a = b of the Beta distribution from which the shares of two mixed clips and their labels come, 0 is off.
        time_mask: longest span of a training clip that is silent or grey, as a share of it, 0 is off.
        head_dropout: before the class head.
        pretrain_steps: so many first steps look at no labels: the sound encoder learns to tell the log-mel spectrogram
            of what it hears, and statistics of it. Then follow those of the class loss, with a schedule of their own.
        eval_windows, eval_crops: temporal windows of a test clip and crops of each; their logits are averaged.
    """

    preset: str = field(default="video", metadata=FIXED)
    task: Task = field(default="video", metadata=FIXED)
    init: str = field(default="", metadata=FIXED)
    data: DataConfig = field(default_factory=lambda: DataConfig(augment=AugmentConfig(audio_noise=0.0)))
    crop: CropConfig = field(default_factory=CropConfig)
    loss: ClassLoss = field(default="softmax", metadata=FIXED)
    smoothing: float = 0.1
    mixup: float = 0.0
    time_mask: float = 0.0
    waveform: WaveformConfig = field(default_factory=WaveformConfig)
    head_dropout: float = 0.5
    pretrain_steps: int = field(default=0, metadata=FIXED)
    optim: FinetuneOptimConfig = field(default_factory=FinetuneOptimConfig)
    save_every: int = 5_000
    keep_checkpoints: int = 10
    eval_crops: int = 3

    @property
    def modality(self) -> str:
        return modality(self.task)


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
    return FinetuneConfig(
        preset="audio",
        task="audio",
        model=replace(model, audio=sizes),
        loss="sigmoid",
        smoothing=0.0,
        mixup=5.0,
        head_dropout=0.0,
        eval_crops=1,
    )


def image(model: ModelConfig) -> FinetuneConfig:
    """Image classification (Table 3): a picture fills one row of voxels; the temporal table keeps its first row.

    `python -m vatt.finetune --task image --data imagenet.csv --init vatt-bbs`
    """
    sizes = replace(model.video, tables=None, frames=model.video.patch[0])
    return FinetuneConfig(preset="image", task="image", model=replace(model, video=sizes), eval_windows=1)


def small(config: FinetuneConfig) -> FinetuneConfig:
    """The settings `config` of a task, changed for a few hundred clips with one label each.

    AdamW and sounds that are turned, faster or slower and coloured let a model learn that much, but not by heart.
    From scratch a sound is heard whole: 5 s at 16 kHz, at a level that moves the projection, which starts as tones.
    The first steps teach the encoder what log-mel spectrograms say, without labels. A pre-trained model keeps its
    sizes, and its class head is trained alone at first. What was learned without labels changes less in lower layers.

    `python -m vatt.finetune --task audio --preset small --data esc10.csv --init none`
    """
    model, optim = config.model, replace(config.optim, optimizer="adamw", rate=2e-3, warmup=50, clip=1.0)
    if not config.init:
        sound = AudioConfig(samples=79_872, rate=16_000, patch=512, level=20.0, tones=True)
        model = replace(model, audio=sound, audio_encoder=EncoderConfig(96, 3, 3, 32, 192, dropout=0.0))
        if config.task == "audio":
            config = replace(config, eval_windows=1, pretrain_steps=2_000)
            optim = replace(optim, rate=3e-3, layer_decay=0.3)
    else:
        optim = replace(optim, rate=5e-4, layer_decay=0.75, head_steps=100, warmup=200)
    return replace(
        config,
        preset="small",
        model=model,
        loss="softmax",
        smoothing=0.0,
        mixup=0.4 if config.init else 0.0,
        time_mask=0.2 if config.init else 0.0,
        waveform=WaveformConfig(turn=True, speed=1.15, gain=2.0, equalise=0.5, band_mask=0.25),
        head_dropout=0.1,
        optim=optim,
        data=replace(config.data, batch_size=16, workers=1, cache_gb=1.0),
        steps=2_500 if config.pretrain_steps else 3_000,
        save_every=1_000,
        keep_checkpoints=3,
    )


def modality(task: str) -> str:
    """Return what a clip is classified by: a picture is video of a single row of voxels."""
    return "audio" if task == "audio" else "video"


PRESETS: dict[str, Callable[[ModelConfig], FinetuneConfig]] = {f.__name__: f for f in (video, audio, image)}
