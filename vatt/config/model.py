"""Sizes of the encoders, heads and inputs of a model, and how many tokens it keeps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["specific", "agnostic"]
Sampling = Literal["batch", "sample"]
# Of a field that came after others: digests of settings leave it out at its default, so that those of before stay.
LATER = {"later": True}


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
    """`samples` mono samples at `rate` Hz, cut into patches of `patch` samples. Covers the same span as the frames.

    `level`: root mean square that each sound is scaled to before its projection, 0 leaves it as it is (official). The
    projection starts so small that sound in [-1, 1] is drowned by the positions, and a short training does not grow
    out of that.
    `tones`: the projection starts as tones, a cosine and a sine of each of width / 2 pitches, instead of as noise.
    """

    samples: int = 153_600
    rate: int = 48_000
    patch: int = 128
    level: float = field(default=0.0, metadata=LATER)
    tones: bool = field(default=False, metadata=LATER)

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
    sampling: Sampling = "batch"
    align: int = 1


def kept_tokens(tokens: int, drop_rate: float, align: int = 1) -> int:
    """Return tokens left after dropping the share `drop_rate`: int(keep * tokens), as the release rounds it.

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

    kind: Kind = "specific"
    video: VideoConfig = field(default_factory=VideoConfig)
    audio: AudioConfig = field(default_factory=AudioConfig)
    text: TextConfig = field(default_factory=TextConfig)
    video_encoder: EncoderConfig = field(default_factory=lambda: EncoderConfig(1024, 12, 16, 64, 4096))
    audio_encoder: EncoderConfig = field(default_factory=lambda: EncoderConfig(768, 12, 12, 64, 3072))
    text_encoder: EncoderConfig = field(default_factory=lambda: EncoderConfig(512, 6, 8, 64, 2048))
    shared_encoder: EncoderConfig = field(default_factory=lambda: EncoderConfig(1024, 12, 16, 64, 4096))
    post_width: int = 1024
    head: HeadConfig = field(default_factory=HeadConfig)
    # Dropping changes no weight's shape, so that a run may go on with another rate.
    drop: DropConfig = field(default_factory=DropConfig, metadata={"fixed": False})
