"""Configuration: frozen dataclasses, JSON round trip, dotted overrides. Presets live in `vatt.presets`.

Every run is described by one `Config`. It is written into each checkpoint and report, so that any number can be
traced back to the settings that made it. Sizes follow Table 7 of the paper; defaults are those of the official
release (VATT-MBS pre-training). Fields hold plain values only (int, float, str, bool, None, tuples of them).
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")


class ConfigError(ValueError):
    """A setting that does not exist, does not parse or contradicts another one."""


@dataclass(frozen=True)
class EncoderConfig:
    """One transformer encoder (Table 7). `dropout` applies in training only."""

    width: int = 768
    layers: int = 12
    heads: int = 12
    head_width: int = 64
    mlp: int = 3072
    dropout: float = 0.1


@dataclass(frozen=True)
class VideoConfig:
    """A clip of `frames` frames at `fps`, cropped to `size` x `size` pixels, cut into voxels of `patch` = (t, h, w).

    `tables`: lengths of the three position tables where they are not those of the clip's grid; a spline resamples them.
    """

    frames: int = 32
    size: int = 224
    fps: float = 10.0
    patch: tuple[int, int, int] = (4, 16, 16)
    tables: tuple[int, int, int] | None = None

    @property
    def grid(self) -> tuple[int, int, int]:
        """Voxels along (t, h, w); leftover borders are dropped, as the official VALID convolution does."""
        t, h, w = self.patch
        return self.frames // t, self.size // h, self.size // w

    @property
    def tokens(self) -> int:
        t, h, w = self.grid
        return t * h * w

    @property
    def seconds(self) -> float:
        return self.frames / self.fps


@dataclass(frozen=True)
class AudioConfig:
    """`samples` mono samples at `rate` Hz, cut into patches of `patch` samples. Covers the same span as the frames."""

    samples: int = 153_600
    rate: int = 48_000
    patch: int = 128

    @property
    def tokens(self) -> int:
        return self.samples // self.patch


@dataclass(frozen=True)
class TextConfig:
    """`captions` captions a clip of `words` words each, out of `vocabulary` words with `embedding`-wide vectors.

    `freeze_embedding` keeps the word table fixed (the release loads word2vec and never trains it).
    `buckets` and `max_distance` belong to the T5 relative bias of the modality-specific text encoder.
    """

    words: int = 16
    captions: int = 5
    vocabulary: int = 65_536
    embedding: int = 300
    freeze_embedding: bool = True
    buckets: int = 32
    max_distance: int = 64


@dataclass(frozen=True)
class HeadConfig:
    """Widths of the video-audio and the video(-audio)-text common spaces."""

    video_audio: int = 512
    video_text: int = 256


@dataclass(frozen=True)
class DropConfig:
    """DropToken. `rate` is the share of video and audio tokens DROPPED in training (the paper's drop rate).

    `sampling`: "batch" draws once for the whole batch (official), "sample" once for each clip.
    `align`: sequences (kept tokens and AGG) become the nearest multiple of it that there are tokens for, so that the
    tiles of a GPU kernel are full: 64 keeps 767 of 1568 tokens at rate 0.5 instead of 784. 1 is official.
    """

    rate: float = 0.5
    sampling: str = "batch"
    align: int = 1


def kept_tokens(tokens: int, drop_rate: float, align: int = 1) -> int:
    """Tokens left after dropping the share `drop_rate`: int(keep * tokens), as the release rounds it.

    With `align` the kept tokens and one AGG token are then rounded to the nearest multiple of it, at least one and at
    most what `tokens` can fill; where nothing is dropped, nothing is rounded.
    The tiny summand undoes float error only: (1 - 0.8) * 10 is 1.9999999999999996 and means 2.
    """
    if not 0 <= drop_rate < 1:
        raise ValueError(f"the drop rate is a share in [0, 1), got {drop_rate}")
    kept = int((1 - drop_rate) * tokens + 1e-9)
    if align == 1 or drop_rate == 0:
        return kept
    multiples = min(max(1, (kept + 1 + align // 2) // align), (tokens + 1) // align)
    return multiples * align - 1


@dataclass(frozen=True)
class ModelConfig:
    """`kind` "specific": three encoders `video_encoder`, `audio_encoder`, `text_encoder`.

    `kind` "agnostic": one encoder `shared_encoder` for all modalities, followed by a projection to `post_width`.
    """

    kind: str = "specific"
    video: VideoConfig = field(default_factory=VideoConfig)
    audio: AudioConfig = field(default_factory=AudioConfig)
    text: TextConfig = field(default_factory=TextConfig)
    video_encoder: EncoderConfig = field(default_factory=lambda: EncoderConfig(1024, 12, 16, 64, 4096))
    audio_encoder: EncoderConfig = field(default_factory=lambda: EncoderConfig(768, 12, 12, 64, 3072))
    text_encoder: EncoderConfig = field(default_factory=lambda: EncoderConfig(512, 6, 8, 64, 2048))
    shared_encoder: EncoderConfig = field(default_factory=lambda: EncoderConfig(1024, 12, 16, 64, 4096))
    post_width: int = 1024
    head: HeadConfig = field(default_factory=HeadConfig)
    drop: DropConfig = field(default_factory=DropConfig)


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
class AugmentConfig:
    """Training augmentation, one draw per clip; defaults are the official pre-training ones (`vatt.data.augment`)."""

    scale_jitter: float = 0.8  # probability
    scale_range: tuple[float, float] = (0.8, 1.2)
    flip: bool = True
    colour_jitter: float = 0.8  # probability
    brightness: float = 32 / 255
    saturation: float = 0.4
    contrast: float = 0.4
    hue: float = 0.2
    audio_noise: float = 0.01  # standard deviation as a share of max |x|


@dataclass(frozen=True)
class DataConfig:
    """Where clips come from and how they are read.

    `source`: a manifest CSV or a folder of clips; "" is the built-in corpus of `builtin_clips` generated clips.
    `cache_gb`: decoded clips kept in memory, summed over workers; 0 is off (right for corpora larger than memory). It
    is a part of the settings, not of speed alone: a window cut from a resampled clip and one resampled on its own lie
    up to half a sample apart.
    `max_bad_share`: a run stops when a larger share of the clips it tried could not be decoded.
    `decode_seconds`, `decode_gb`: time and memory that decoding one clip may take, the memory on top of what a worker
    holds; 0 GB is no limit, and with `workers` 0 there is none.
    `decoder`: of pre-training's video: "pyav" (CPU), "dali" (NVIDIA GPUs) or "auto", DALI where it works.
    """

    source: str = ""
    builtin_clips: int = 800
    train_split: str = "train"
    test_split: str = "test"
    batch_size: int = 32
    workers: int = 2
    prefetch: int = 4
    cache_gb: float = 0.0
    max_bad_share: float = 0.3
    decode_seconds: float = 30.0
    decode_gb: float = 8.0
    decoder: str = "auto"
    vocabulary: str = ""  # a word list, one word a line; "" builds one from the training captions
    augment: AugmentConfig = field(default_factory=AugmentConfig)


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


def to_dict(config: Any) -> dict[str, Any]:
    """Nested plain dictionaries, ready for JSON."""
    return dataclasses.asdict(config)


def to_json(config: Any) -> str:
    return json.dumps(to_dict(config), indent=2) + "\n"


def from_dict(kind: type[T], values: dict[str, Any], path: str = "") -> T:
    """Rebuilds dataclass `kind` from nested dictionaries; missing keys take their defaults, unknown ones are errors."""
    hints = typing.get_type_hints(kind)
    names = [f.name for f in dataclasses.fields(kind)]  # type: ignore[arg-type]
    given: dict[str, Any] = {}
    for name, value in values.items():
        if name not in names:
            raise ConfigError(_unknown(path + name, [path + n for n in names]))
        hint = hints[name]
        if dataclasses.is_dataclass(hint):
            if not isinstance(value, dict):
                raise ConfigError(f"{path}{name} holds settings of its own; set one of them, e.g. {path}{name}.X=...")
            given[name] = from_dict(typing.cast(type, hint), value, f"{path}{name}.")
        else:
            given[name] = _coerce(value, hint, path + name)
    return kind(**given)


def apply_overrides(config: T, overrides: list[str]) -> T:
    """Applies `a.b=c` settings in order. Unknown names raise `ConfigError` with the nearest known name."""
    values = to_dict(config)
    known = list(_leaves(values))
    for text in overrides:
        key, sep, raw = text.partition("=")
        key = key.strip()
        if not sep:
            raise ConfigError(f"--set takes NAME=VALUE, got {text!r}")
        if key not in known:
            raise ConfigError(_unknown(key, known))
        node = values
        *parents, leaf = key.split(".")
        for parent in parents:
            node = node[parent]
        node[leaf] = raw.strip()
    return from_dict(type(config), values)


def differences(old: Any, new: Any) -> list[str]:
    """Settings that differ, as `name: old -> new` lines."""
    a, b = dict(_items(to_dict(old))), dict(_items(to_dict(new)))
    return [f"{name}: {a.get(name)!r} -> {b[name]!r}" for name in b if a.get(name) != b[name]]


def settings_of(config: Any) -> dict[str, Any]:
    """All settings by their dotted names."""
    return dict(_items(to_dict(config)))


def _items(values: dict[str, Any], path: str = "") -> typing.Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _items(value, f"{path}{name}.")
        else:
            yield path + name, value


def _leaves(values: dict[str, Any]) -> typing.Iterator[str]:
    return (name for name, _ in _items(values))


def _unknown(name: str, known: list[str]) -> str:
    # Users often type only the last part of a dotted name, so match on that as well.
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if not close:
        tail = name.rsplit(".", 1)[-1]
        tails = {k.rsplit(".", 1)[-1]: k for k in known}
        close = [tails[t] for t in difflib.get_close_matches(tail, list(tails), n=1, cutoff=0.6)]
    hint = f"; did you mean {close[0]!r}?" if close else f"; known names: {', '.join(known)}"
    return f"unknown setting {name!r}{hint}"


def _coerce(value: Any, hint: Any, name: str) -> Any:
    origin = typing.get_origin(hint)
    try:
        if origin in (typing.Union, types.UnionType):
            if value is None or value == "none":
                return None
            hint = next(a for a in typing.get_args(hint) if a is not type(None))
            return _coerce(value, hint, name)
        if origin is tuple:
            parts = value.strip("()[] ").split(",") if isinstance(value, str) else list(value)
            kinds = typing.get_args(hint)
            if len(parts) != len(kinds):
                raise ValueError(f"takes {len(kinds)} values")
            return tuple(_coerce(p, k, name) for p, k in zip(parts, kinds, strict=True))
        if hint is bool:
            if isinstance(value, bool):
                return value
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[str(value).lower()]
        if hint is int:
            if isinstance(value, bool) or (isinstance(value, float) and value != int(value)):
                raise ValueError("takes a whole number")
            number = int(value)
            if abs(number) >= 2**63:
                raise ValueError("takes a number of at most 64 bits")
            return number
        return hint(value)
    except (ValueError, KeyError, TypeError, ArithmeticError) as error:
        wanted = getattr(hint, "__name__", str(hint))
        raise ConfigError(f"{name} takes {wanted}, got {value!r}") from error
