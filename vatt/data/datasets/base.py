"""The clips of a dataset, their reader, and how what was read of them becomes a batch."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from ...config.data import DataConfig
from ...config.model import ModelConfig
from ...errors import DataError
from ..clip import Clip, Manifest
from ..decoding.container import BadClip
from ..decoding.watchdog import Watch
from ..tokenizer import Tokenizer
from .augment import short_side
from .batch import MODALITIES, Batch
from .windows import WindowReader


@dataclass
class Sample:
    """What is there of one clip; video and sound with a windows axis in evaluation."""

    clip: Clip
    video: np.ndarray | None
    audio: np.ndarray | None
    text: np.ndarray
    has_text: bool


class Clocks(NamedTuple):
    """Seconds: of the wall, and spent in decoders by this process."""

    wall: float
    decoding: float


class Clips(Dataset[Batch]):
    """What training and evaluation share: the clips, their reader and the making of batches.

    Raises:
        DataError: no clips, or a word list larger than the model's table.
        ValueError: `read` or `needs` name no modality, or `needs` one that is not read.
    """

    def __init__(
        self,
        clips: Manifest,
        data: DataConfig,
        model: ModelConfig,
        tokenizer: Tokenizer,
        batch_size: int | None,
        windows_per_clip: int,
        frames: int | None,
        read: Collection[str],
        needs: Collection[str],
    ) -> None:
        unknown = sorted({*read, *needs} - set(MODALITIES))
        if unknown or not set(needs) <= set(read) or not {"video", "audio"} & set(read):
            raise ValueError(
                f"read {sorted(read)} of {MODALITIES}, video or audio among them; {sorted(needs)} of these"
            )
        if not len(clips):
            raise DataError(f"{clips.root}: no clips in this split; see the manifest's `split` column and data.*_split")
        if len(tokenizer) > model.text.vocabulary:
            raise DataError(
                f"the word list has {len(tokenizer)} words but the model's table {model.text.vocabulary}; "
                "set model.text.vocabulary or shorten the list"
            )
        if frames is not None:
            model = replace(model, video=replace(model.video, frames=frames))
        self.clips, self.data, self.model, self.tokenizer = clips, data, model, tokenizer
        self.read, self.needs = frozenset(read), frozenset(needs)
        self.batch_size, self.windows_per_clip = batch_size or data.batch_size, windows_per_clip
        self._labels = clips.label_ids
        # A deadline is looked at between frames: twice its time, and no frame comes any more.
        self.watch = Watch(2 * data.decode_seconds, data.decode_gb)
        self._windows: WindowReader | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_windows": None}  # open caches stay in their process

    @property
    def longest_seconds(self) -> float:
        return 60.0 + self.watch.limit  # a decoder that hangs is ended before; the rest is for making the batch

    def windows(self, cache_bytes: int) -> WindowReader:
        if self._windows is None:
            side = short_side(self.model.video.size, self.data.augment)
            limit = self.data.decode_seconds
            self._windows = WindowReader(
                self.model.video,
                self.model.audio,
                side,
                limit,
                cache_bytes,
                read=self.read,
                needs=self.needs,
                watch=self.watch,
            )
        return self._windows

    def take_remarks(self) -> list[tuple[int, str]]:
        """Return (manifest index, remark) of what was decoded since the last call."""
        return [] if self._windows is None else self._windows.take_remarks()

    def clocks(self) -> Clocks:
        return Clocks(time.perf_counter(), self.watch.seconds)

    def text(self, clip: Clip, rng: np.random.Generator | None) -> tuple[np.ndarray, bool]:
        captions = clip.captions if "text" in self.read else ()
        return self.tokenizer.encode_captions(captions, self.model.text.captions, self.model.text.words, rng)

    def require_text(self, clip: Clip) -> None:
        """Raise `BadClip` for a clip without a caption that the task needs, before its file is read for nothing."""
        if "text" in self.needs and not self.text(clip, None)[1]:
            raise BadClip(clip.path, "no caption")

    @property
    def video_axes(self) -> tuple[int, ...]:
        """Leading axes of one sample's video."""
        return ()

    @property
    def audio_axes(self) -> tuple[int, ...]:
        """Leading axes of one sample's sound."""
        return ()

    def batch(self, samples: list[Sample], tried: list[int], bad: list[tuple[int, str]], since: Clocks) -> Batch:
        """Return `samples` as tensors; `since`: what `clocks` said before the first of them was read."""
        video, audio, text = self.model.video, self.model.audio, self.model.text
        count = len(samples)
        frames, samples_each = video.frames if "video" in self.read else 0, audio.samples if "audio" in self.read else 0
        pixels = torch.zeros((count, *self.video_axes, frames, video.size, video.size, 3), dtype=torch.uint8)
        sound = torch.zeros((count, *self.audio_axes, samples_each))
        words = torch.zeros((count, text.captions, text.words), dtype=torch.int64)
        labels = torch.zeros((count, len(self._labels)))
        for i, sample in enumerate(samples):
            labels[i, [self._labels[label] for label in sample.clip.labels]] = 1.0
            if sample.video is not None:
                pixels[i] = torch.from_numpy(sample.video)
            if sample.audio is not None:
                sound[i] = torch.from_numpy(sample.audio)
            words[i] = torch.from_numpy(sample.text)
        return Batch(
            video=pixels,
            audio=sound,
            text=words,
            video_mask=torch.tensor([float(s.video is not None) for s in samples]),
            audio_mask=torch.tensor([float(s.audio is not None) for s in samples]),
            text_mask=torch.tensor([float(s.has_text) for s in samples]),
            label=torch.tensor(
                [self._labels[s.clip.labels[0]] if len(s.clip.labels) == 1 else -1 for s in samples], dtype=torch.int64
            ),
            labels=labels,
            clips=[s.clip.index for s in samples],
            tried=tried,
            bad=bad,
            seconds=time.perf_counter() - since.wall,
            decode_seconds=self.watch.seconds - since.decoding,
            remarks=self.take_remarks(),
        )
