"""Is every setting of a run in its range? Asked once, before anything is written or trained."""

from __future__ import annotations

import math
from collections.abc import Iterator
from operator import attrgetter

from ..errors import ConfigError
from .data import DATA_ORDER, DATA_VERSION, DataConfig
from .finetuning import DESCRIPTORS, FinetuneConfig
from .model import EncoderConfig, ModelConfig, kept_tokens
from .pretraining import Config
from .run import DROPOUT_VERSION, RunConfig
from .serialization import word_settings

TOWERS = ("video", "audio", "text")
Finding = tuple[str, bool, str]  # setting, fine, what it must be


def check(config: RunConfig) -> None:
    """Check every setting of a run, of pre-training or of fine-tuning.

    Raises:
        ConfigError: a setting is out of range; the message names the first one and says what it must be.
    """
    for name, fine, expected in _findings(config):
        if not fine:
            raise ConfigError(f"{name} must be {expected}, got {attrgetter(name)(config)!r}")


def _at_least(low: float, **values: float) -> Iterator[Finding]:
    """`values`: dotted names with __ for the dots."""
    for name, value in values.items():
        yield name.replace("__", "."), math.isfinite(value) and value >= low, f"at least {low:g}"


def _share(name: str, value: float) -> Finding:
    return name, 0 <= value <= 1, "between 0 and 1"


def _findings(c: RunConfig) -> Iterator[Finding]:
    for name, words in word_settings(type(c)):
        text = " or ".join([", ".join(words[:-1]), words[-1]])
        yield name, attrgetter(name)(c) in words, text
    if isinstance(c, FinetuneConfig):
        yield from _finetuning(c)
    yield from _model(c.model)
    if isinstance(c, Config):
        yield from _pretraining(c)
    yield from _data(c.data)
    yield "seed", 0 <= c.seed < 2**32, "between 0 and 4294967295"
    yield "dropout", c.dropout in range(1, DROPOUT_VERSION + 1), f"a whole number from 1 to {DROPOUT_VERSION}"
    yield "residual", c.residual == "float32" or c.dtype != "float32", "float32, as dtype is"
    yield from _at_least(
        1,
        steps=c.steps,
        save_every=c.save_every,
        keep_checkpoints=c.keep_checkpoints,
        max_nonfinite=c.max_nonfinite,
        log_every=c.log_every,
        eval_windows=c.eval_windows,
    )


def _pretraining(c: Config) -> Iterator[Finding]:
    yield "loss.temperature", 0 < c.loss.temperature < math.inf, "above 0"
    yield from _at_least(0, loss__video_text=c.loss.video_text, loss__video_audio=c.loss.video_audio)
    yield "loss.video_text", c.loss.video_text + c.loss.video_audio > 0, "above 0 where loss.video_audio is 0"
    yield "data.batch_size", c.data.batch_size >= 2, "at least 2: one clip has no negatives"
    o = c.optim
    yield from _at_least(
        0, optim__rate=o.rate, optim__final_rate=o.final_rate, optim__warmup=o.warmup, optim__clip=o.clip
    )
    for name, beta in (("optim.beta1", o.beta1), ("optim.beta2", o.beta2)):
        yield name, 0 <= beta < 1, "at least 0 and below 1"
    yield "optim.eps", 0 < o.eps < math.inf, "above 0"
    yield from _at_least(0, eval_clips=c.eval_clips, micro_batch=c.micro_batch)
    try:
        scales = c.rate_scales
    except ValueError:
        scales = {"": 0.0}
    good = set(scales) <= set(TOWERS) and all(0 < x < math.inf for x in scales.values())
    yield "lr_scale", good, "towers with a factor above 0, as video=0.1,text=0.5"
    yield "freeze", set(c.frozen) <= set(TOWERS), f"names of towers, out of {', '.join(TOWERS)}, with commas between"
    both = set(c.frozen) & set(scales)
    yield "lr_scale", not both, f"without {', '.join(sorted(both))}, which freeze names too"
    for name in ("freeze", "lr_scale"):
        alone = c.model.kind == "specific" or not getattr(c, name)
        yield name, alone, "empty for a model with one encoder for all modalities"


def _finetuning(c: FinetuneConfig) -> Iterator[Finding]:
    yield "smoothing", 0 <= c.smoothing < 1, "at least 0 and below 1"
    yield "smoothing", c.smoothing == 0 or c.loss == "softmax", "0 with loss=sigmoid"
    yield "mixup", 0 <= c.mixup < math.inf, "at least 0"
    yield "time_mask", 0 <= c.time_mask < 1, "at least 0 and below 1"
    yield from _at_least(1, waveform__speed=c.waveform.speed, waveform__gain=c.waveform.gain)
    yield "waveform.speed", c.waveform.speed <= 2, "at most 2"
    yield "waveform.equalise", 0 <= c.waveform.equalise <= 3, "between 0 and 3"
    yield "waveform.band_mask", 0 <= c.waveform.band_mask < 1, "at least 0 and below 1"
    yield "head_dropout", 0 <= c.head_dropout < 1, "at least 0 and below 1"
    yield "optim.warmup", 0 <= c.optim.warmup <= c.steps, f"between 0 and the {c.steps} steps of the run"
    yield "optim.momentum", 0 <= c.optim.momentum < 1, "at least 0 and below 1"
    yield from _at_least(
        0, optim__rate=c.optim.rate, optim__clip=c.optim.clip, optim__weight_decay=c.optim.weight_decay
    )
    yield "optim.layer_decay", 0 < c.optim.layer_decay <= 1, "above 0 and at most 1"
    yield "optim.head_steps", 0 <= c.optim.head_steps <= c.steps, f"between 0 and the {c.steps} steps of the run"
    yield "pretrain_steps", 0 <= c.pretrain_steps < c.steps, f"at least 0 and fewer than the {c.steps} steps of the run"
    if c.pretrain_steps:
        m = c.model
        yield "pretrain_steps", c.task == "audio", "0 but for sound"
        width = m.audio_encoder.width if m.kind == "specific" else m.post_width
        yield "pretrain_steps", width >= DESCRIPTORS, f"0 for features narrower than {DESCRIPTORS}"
        yield "pretrain_steps", m.audio.tokens >= 4, "0 for sound of fewer than 4 patches"
    low, high = c.crop.area
    yield "crop.area", 0 < low <= high <= 1, "two shares above 0, the smaller one first"
    low, high = c.crop.aspect
    yield "crop.aspect", 0 < low <= high < math.inf, "two ratios above 0, the smaller one first"
    yield "eval_crops", c.eval_crops in (1, 3), "1 (centre) or 3"
    if c.task == "audio":
        yield "eval_crops", c.eval_crops == 1, "1 for sound"
    if c.task == "image":
        row = c.model.video.patch[0]
        yield "model.video.frames", c.model.video.frames == row, f"{row}, one row of voxels, for images"
        yield "eval_windows", c.eval_windows == 1, "1 for images"


def _data(d: DataConfig) -> Iterator[Finding]:
    a = d.augment
    yield "data.order", d.order in (1, DATA_ORDER), f"1 or {DATA_ORDER}"
    yield "data.version", d.version in range(1, DATA_VERSION + 1), f"a whole number from 1 to {DATA_VERSION}"
    yield from _at_least(1, data__batch_size=d.batch_size)
    yield from _at_least(0, data__workers=d.workers, data__cache_gb=d.cache_gb, data__decode_gb=d.decode_gb)
    yield from _at_least(1, data__prefetch=d.prefetch)
    yield "data.hold_out", 0 <= d.hold_out < 1, "at least 0 and below 1"
    yield "data.hold_out", not d.hold_out or d.source != "", "0 for the built-in corpus, which has a test split"
    yield "data.builtin_clips", d.builtin_clips >= 2, "at least 2"
    yield _share("data.max_bad_share", d.max_bad_share)
    yield "data.decode_seconds", 0 < d.decode_seconds < math.inf, "above 0"
    yield _share("data.augment.scale_jitter", a.scale_jitter)
    yield _share("data.augment.colour_jitter", a.colour_jitter)
    low, high = a.scale_range
    yield "data.augment.scale_range", 0 < low <= high < math.inf, "two factors above 0, the smaller one first"
    for name in ("brightness", "saturation", "contrast"):
        yield _share(f"data.augment.{name}", getattr(a, name))
    yield "data.augment.hue", 0 <= a.hue <= 0.5, "between 0 and 0.5"
    yield from _at_least(0, data__augment__audio_noise=a.audio_noise)


def _model(m: ModelConfig) -> Iterator[Finding]:
    for name in ("video_encoder", "audio_encoder", "text_encoder", "shared_encoder"):
        yield from _encoder(f"model.{name}", getattr(m, name))
    v, a, t = m.video, m.audio, m.text
    yield from _at_least(1, model__video__frames=v.frames, model__video__size=v.size)
    yield "model.video.frames", v.frames <= 2**16, "at most 65536"
    yield "model.video.size", v.size <= 2**13, "at most 8192 pixels"
    yield "model.video.fps", 0 < v.fps < math.inf, "above 0"
    yield "model.video.patch", min(v.patch) >= 1, "three sizes of at least 1"
    yield "model.video.patch", min(v.grid) >= 1, f"at most {v.frames} frames and {v.size} x {v.size} pixels"
    yield "model.video.tables", v.tables is None or min(v.tables) >= 1, "three lengths of at least 1"
    yield from _at_least(1, model__audio__rate=a.rate, model__audio__patch=a.patch)
    yield "model.audio.samples", a.samples >= a.patch, f"at least one patch, {a.patch} samples"
    yield "model.audio.samples", a.samples <= 2**31, "at most 2147483648"
    yield from _at_least(0, model__audio__level=a.level)
    yield "model.text.words", t.words <= 2**16, "at most 65536"
    yield "model.text.captions", t.captions <= 2**16, "at most 65536"
    yield from _at_least(
        1, model__text__words=t.words, model__text__captions=t.captions, model__text__embedding=t.embedding
    )
    yield "model.text.vocabulary", t.vocabulary >= 3, "at least 3: padding, unknown and a word"
    yield "model.text.buckets", t.buckets >= 4 and t.buckets % 2 == 0, "even and at least 4"
    yield "model.text.max_distance", t.max_distance > t.buckets // 4, f"above a quarter of {t.buckets} buckets"
    yield from _at_least(
        1,
        model__post_width=m.post_width,
        model__head__video_audio=m.head.video_audio,
        model__head__video_text=m.head.video_text,
    )
    yield "model.drop.rate", 0 <= m.drop.rate < 1, "at least 0 and below 1"
    for tokens, modality in ((v.tokens, "video"), (a.tokens, "audio")):
        kept = kept_tokens(tokens, m.drop.rate)
        yield "model.drop.rate", kept >= 1, f"low enough to keep one of the {tokens} {modality} tokens"
        filled = 1 <= m.drop.align <= (tokens + 1) // 2
        yield "model.drop.align", filled, f"at least 1 and at most half of the {tokens} {modality} tokens and AGG"


def _encoder(name: str, e: EncoderConfig) -> Iterator[Finding]:
    for setting in ("width", "layers", "heads", "mlp"):
        yield f"{name}.{setting}", getattr(e, setting) >= 1, "at least 1"
    yield f"{name}.head_width", 1 <= e.head_width <= 128, "between 1 and 128"
    yield f"{name}.dropout", 0 <= e.dropout < 1, "at least 0 and below 1"
