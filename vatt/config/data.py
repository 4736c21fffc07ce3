"""Where clips come from, how they are batched, decoded and augmented."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

DATA_VERSION = 2  # see `DataConfig.version`
DATA_ORDER = 2  # see `DataConfig.order`
Decoder = Literal["auto", "pyav", "dali"]


@dataclass(frozen=True)
class AugmentConfig:
    """Training augmentation, one draw per clip (`vatt.data.datasets.augment`); defaults are those of the release."""

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
    `version`: how a source becomes clips, and these batches, so that a run goes on as it began. Records without it are
    of version 1. Since 2 no two rows of a file are in one batch of pre-training, folders may name splits and classes,
    and more entries of tar shards are read. `order`: of an epoch; 1, where a record has none, is a table of all rows
    drawn by numpy, 2 a bijection without a table (`vatt.data.rows.permutation`).
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
    decoder: Decoder = "auto"
    columns: str = ""  # of a table, as caption=title,path=filepath
    split_unspaced: bool = False  # of a list built from captions: characters of scripts without spaces are words
    version: int = field(default=DATA_VERSION, metadata={"fixed": True})
    order: int = field(default=DATA_ORDER, metadata={"fixed": True})
    # A word list, one word a line; "" builds one from the training captions. Ids of words belong to the weights.
    vocabulary: str = field(default="", metadata={"fixed": True})
    augment: AugmentConfig = field(default_factory=AugmentConfig)
