"""Batches of training clips, a pure function of (seed, step)."""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from ...config.data import DataConfig
from ...config.model import ModelConfig
from ...errors import DataError
from ..clip import Clip, Manifest
from ..decoding.audio import to_float
from ..decoding.container import BadClip
from ..rows.permutation import ORDER, Permutation
from ..tokenizer import Tokenizer
from .augment import Frames, audio_noise, train_video
from .base import Clips, Sample
from .batch import MODALITIES, Batch

MAX_ATTEMPTS = 32
LOOK_AHEAD = 8  # positions at first, where one of another file is looked for
_CLIP = 1  # keeps its draws apart from those of the order


class _Plan(NamedTuple):
    """Of one step: slot -> position of the clip in place of a second row of a file; the files of the whole batch."""

    replaced: dict[int, int]
    files: frozenset[int]


class ClipDataset(Clips):
    """Training batches: `dataset[step]`, for any step from 0 on.

    With `data.cache_gb` decoded rows are kept in memory, an equal part in each of `data.workers` processes.
    `frames`: of a window, if not `model.video.frames`; an image repeats its one frame, so 4 of them are the release's
    image protocol, a grid of one temporal row. `read`: modalities to read, as far as a clip has them; the others are as
    if no clip had any, and cost nothing. `needs`: modalities without which a clip is bad. Every pair of pre-training
    has video in it; a task of sound alone is `read=("audio",), needs=("audio",)`. `slots`: the part of each batch that
    this process builds, all of it by default; the parts of several processes make up the batch of one.

    Raises:
        DataError: no clips, a word list larger than the model's table, or no decodable clip in `MAX_ATTEMPTS` draws.
    """

    def __init__(
        self,
        clips: Manifest,
        data: DataConfig,
        model: ModelConfig,
        tokenizer: Tokenizer,
        seed: int,
        batch_size: int | None = None,
        *,
        frames: int | None = None,
        read: Collection[str] = MODALITIES,
        needs: Collection[str] = ("video",),
        slots: range | None = None,
    ) -> None:
        super().__init__(clips, data, model, tokenizer, batch_size, 1, frames, read, needs)
        self.seed = seed
        self.slots = range(self.batch_size) if slots is None else slots
        self.files = clips.file_count
        self._apart = data.version >= 2 and self.keeps_files_apart and self.batch_size <= self.files < len(clips)
        self._last_batch: tuple[int, list[int]] | None = None
        self._last_plan: tuple[int, _Plan] | None = None

    keeps_files_apart = True  # a class of clips may hold two of one file, negatives may not

    @property
    def steps_per_epoch(self) -> int:
        return max(1, len(self.clips) // self.batch_size)

    def planned(self, step: int, slot: int) -> int:
        """Return the position in `clips` of the clip that (seed, step) puts in this slot, before any replacement."""
        return self._planned(step)[slot]

    def _planned(self, step: int) -> list[int]:
        """The same of all slots."""
        if self._last_batch is None or self._last_batch[0] != step:
            n, size = len(self.clips), self.batch_size
            if n < size:
                epochs, places = np.divmod(step * size + np.arange(size), n)
            else:
                epochs = np.full(size, step // self.steps_per_epoch)
                places = step % self.steps_per_epoch * size + np.arange(size)
            batch = [self._order(int(epoch))[places[epochs == epoch]] for epoch in np.unique(epochs)]
            self._last_batch = step, np.concatenate(batch).tolist()
        return self._last_batch[1]

    def _order(self, epoch: int) -> np.ndarray | Permutation:
        return _order_of(self.data.order, self.seed, epoch, len(self.clips))

    def repeats(self, step: int) -> int:
        """Slots of the whole batch whose row gave way, as an earlier slot has another one of its file."""
        return len(self._plan(step).replaced)

    def _plan(self, step: int) -> _Plan:
        if not self._apart:
            return _Plan({}, frozenset())
        if self._last_plan is None or self._last_plan[0] != step:
            held: set[int] = set()
            second = []
            for slot, file in enumerate(self._files_of(self._planned(step))):
                if file in held:
                    second.append(slot)
                held.add(file)
            replaced = {}
            for slot in second:
                replaced[slot] = self._replacement(step, self._draws(step, slot, 1), held)
                held.update(self._files_of([replaced[slot]]))
            self._last_plan = step, _Plan(replaced, frozenset(held))
        return self._last_plan[1]

    def _files_of(self, places: list[int]) -> list[int]:
        return self.clips.file_numbers(np.array(places, np.int64)).tolist()

    def _draws(self, step: int, slot: int, attempt: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, _CLIP, step, slot, attempt])))

    def __getitem__(self, step: int) -> Batch:
        since = self.clocks()
        tried: list[int] = []
        bad: list[tuple[int, str]] = []
        samples = [self._sample(step, slot, tried, bad) for slot in self.slots]
        return self.batch(samples, tried, bad, since)

    def crop(self, frames: Frames, rng: np.random.Generator) -> Frames:
        """Augment the frames of a window: uint8 [T, h, w, 3] -> [T, size, size, 3]."""
        return train_video(frames, self.model.video.size, self.data.augment, rng)

    def _sample(self, step: int, slot: int, tried: list[int], bad: list[tuple[int, str]]) -> Sample:
        plan = self._plan(step)
        first = int(slot in plan.replaced)
        for attempt in range(first, MAX_ATTEMPTS):
            rng = self._draws(step, slot, attempt)
            position = self.planned(step, slot) if attempt == 0 else self._replacement(step, rng, plan.files)
            clip = self.clips[plan.replaced[slot] if attempt == first == 1 else position]
            tried.append(clip.index)
            try:
                return self._read(clip, rng)
            except BadClip as error:
                bad.append((clip.index, error.reason))
        raise DataError(
            f"step {step}: {MAX_ATTEMPTS} clips in a row could not be used, the last one {clip.name}: {bad[-1][1]}; "
            f"see which clips under {self.clips.root} can be decoded"
        )

    def _replacement(self, step: int, rng: np.random.Generator, held: Collection[int] = ()) -> int:
        """Return position of a clip that the batch does not hold: from a drawn one on, the first whose file is not
        `held`.
        """
        n, size = len(self.clips), self.batch_size
        if n <= size:
            return int(rng.integers(n))
        # Any clip that the batch does not hold: the same clip twice would be its own negative.
        epoch, place = divmod(step, self.steps_per_epoch)
        order, first = self._order(epoch), place * size + size + int(rng.integers(n - size))
        if not self._apart:
            return int(order[first % n])
        done, more = 0, LOOK_AHEAD
        while done < n:
            found = order[(first + np.arange(done, min(done + more, n))) % n].tolist()
            for position, file in zip(found, self._files_of(found), strict=True):
                if file not in held:
                    return int(position)
            done, more = done + more, 2 * more
        return int(order[first % n])

    def _read(self, clip: Clip, rng: np.random.Generator) -> Sample:
        self.require_text(clip)
        share = int(self.data.cache_gb * 1e9 / max(1, self.data.workers))
        windows = self.windows(share)
        window = windows.read(clip, int(rng.integers(windows.last_offset(clip) + 1)))
        text, has_text = self.text(clip, rng)
        video = audio = None
        if window.video is not None:
            video = self.crop(window.video, rng)
        if window.audio is not None:
            audio = audio_noise(to_float(window.audio), self.data.augment.audio_noise, rng)
        return Sample(clip, video, audio, text, has_text)


@lru_cache(maxsize=2)
def _order_of(version: int, seed: int, epoch: int, n: int) -> np.ndarray | Permutation:
    """What (seed, epoch) makes of positions; `version` as `DataConfig.order`."""
    if version > 1:
        return Permutation(seed, epoch, n)
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, ORDER, epoch]))).permutation(n)
