"""(seed, step) to a batch: a pure function, so that neither workers nor restarts change what a run sees.

Order: each epoch is a permutation drawn from (seed, epoch), cut into whole batches; a corpus smaller than a batch wraps
around. The window, the captions and every augmentation of a clip are drawn from (seed, step, slot, attempt). A clip
that cannot be decoded is replaced by one that is not in the batch, drawn from the same numbers with the next attempt,
never from what a process happens to know already; the batch tells which clips were bad and why. One thing is outside
of this function: the time limit of a clip is wall clock, so set it far above what a clip takes.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from vatt.config import DataConfig, ModelConfig
from vatt.data.augment import audio_noise, centre_crop, short_side, to_float, train_video
from vatt.data.manifest import Clip, Manifest
from vatt.data.reader import BadClip
from vatt.data.text import Tokenizer
from vatt.data.windows import Window, WindowReader

MAX_ATTEMPTS = 32
LOOK_SECONDS = 5.0  # how often a waiting main process looks whether its workers live
_ORDER, _CLIP = 0, 1  # keep the two kinds of draws apart


class DataError(RuntimeError):
    """Data that a run cannot go on with. The message names the way out."""


@dataclass(frozen=True)
class Batch:
    """B clips, with T frames, S samples, L captions of W words; evaluation batches have a windows axis after B.

    video uint8 [B, T, H, W, 3]; audio float32 [B, S], about [-1, 1] (zeros without sound); text int64 [B, L, W] (zeros
    without a caption); audio_mask and text_mask float32 [B], 1 where there is any; label int64 [B], -1 where a clip has
    none or several.
    `clips`: manifest indices of the rows; `tried`: those plus the bad ones; `bad`: (manifest index, reason) of each
    clip that was replaced or left out; `seconds`: time it took to build the batch.
    """

    video: torch.Tensor
    audio: torch.Tensor
    text: torch.Tensor
    audio_mask: torch.Tensor
    text_mask: torch.Tensor
    label: torch.Tensor
    clips: list[int]
    tried: list[int]
    bad: list[tuple[int, str]]
    seconds: float

    def to(self, device: torch.device) -> Batch:
        """The same batch with its tensors on `device`."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        moved: dict[str, Any] = {name: value.to(device, non_blocking=True) for name, value in tensors.items()}
        return replace(self, **moved)


@dataclass
class _Sample:
    clip: Clip
    video: np.ndarray
    audio: np.ndarray | None
    text: np.ndarray
    has_text: bool


class BatchSource(Protocol):
    """Anything that builds batch `index`: `ClipDataset` (index is the step) or `EvalDataset`."""

    @property
    def longest_seconds(self) -> float:
        """A batch that takes longer is stuck."""
        ...

    def __getitem__(self, index: int) -> Batch: ...


class _Clips(Dataset[Batch]):
    """What training and evaluation share: the clips, their readers and the making of batches."""

    def __init__(
        self,
        clips: Manifest,
        data: DataConfig,
        model: ModelConfig,
        tokenizer: Tokenizer,
        batch_size: int | None,
        windows_per_clip: int,
    ) -> None:
        if not len(clips):
            raise DataError(f"{clips.root}: no clips in this split; see the manifest's `split` column and data.*_split")
        if len(tokenizer) > model.text.vocabulary:
            raise DataError(
                f"the word list has {len(tokenizer)} words but the model's table {model.text.vocabulary}; "
                "set model.text.vocabulary or shorten the list"
            )
        self.clips, self.data, self.model, self.tokenizer = clips, data, model, tokenizer
        self.batch_size, self.windows_per_clip = batch_size or data.batch_size, windows_per_clip
        self._labels = clips.label_ids
        self._windows: WindowReader | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_windows": None}  # open caches stay in their process

    @property
    def longest_seconds(self) -> float:
        # Every clip may use up its limit for the headers and for each window, and have replacements that do as well.
        return 60.0 + 4 * self.data.decode_seconds * self.batch_size * self.windows_per_clip

    def windows(self, cache_bytes: int) -> WindowReader:
        if self._windows is None:
            side = short_side(self.model.video.size, self.data.augment)
            limit = self.data.decode_seconds
            self._windows = WindowReader(self.model.video, self.model.audio, side, limit, cache_bytes)
        return self._windows

    def text(self, clip: Clip, rng: np.random.Generator | None) -> tuple[np.ndarray, bool]:
        return self.tokenizer.encode_captions(clip.captions, self.model.text.captions, self.model.text.words, rng)

    def batch(
        self, samples: list[_Sample], tried: list[int], bad: list[tuple[int, str]], axes: tuple[int, ...], since: float
    ) -> Batch:
        """`axes`: leading axes of one sample's video and audio."""
        video, audio, text = self.model.video, self.model.audio, self.model.text
        count = len(samples)
        pixels = torch.zeros((count, *axes, video.frames, video.size, video.size, 3), dtype=torch.uint8)
        sound = torch.zeros((count, *axes, audio.samples))
        words = torch.zeros((count, text.captions, text.words), dtype=torch.int64)
        for i, sample in enumerate(samples):
            pixels[i] = torch.from_numpy(sample.video)
            if sample.audio is not None:
                sound[i] = torch.from_numpy(sample.audio)
            words[i] = torch.from_numpy(sample.text)
        return Batch(
            video=pixels,
            audio=sound,
            text=words,
            audio_mask=torch.tensor([float(s.audio is not None) for s in samples]),
            text_mask=torch.tensor([float(s.has_text) for s in samples]),
            label=torch.tensor(
                [self._labels[s.clip.labels[0]] if len(s.clip.labels) == 1 else -1 for s in samples], dtype=torch.int64
            ),
            clips=[s.clip.index for s in samples],
            tried=tried,
            bad=bad,
            seconds=time.perf_counter() - since,
        )


class ClipDataset(_Clips):
    """Training batches: `dataset[step]`, for any step from 0 on.

    With `data.cache_gb` decoded rows are kept in memory, an equal part in each of `data.workers` processes.

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
    ) -> None:
        super().__init__(clips, data, model, tokenizer, batch_size, windows_per_clip=1)
        self.seed = seed

    @property
    def steps_per_epoch(self) -> int:
        return max(1, len(self.clips) // self.batch_size)

    def planned(self, step: int, slot: int) -> int:
        """Position in `clips` of the clip that (seed, step) puts in this slot, before any replacement."""
        n, size = len(self.clips), self.batch_size
        if n < size:
            epoch, place = divmod(step * size + slot, n)
        else:
            epoch, place = step // self.steps_per_epoch, step % self.steps_per_epoch * size + slot
        return int(_permutation(self.seed, epoch, n)[place])

    def __getitem__(self, step: int) -> Batch:
        since = time.perf_counter()
        tried: list[int] = []
        bad: list[tuple[int, str]] = []
        samples = [self._sample(step, slot, tried, bad) for slot in range(self.batch_size)]
        return self.batch(samples, tried, bad, (), since)

    def _sample(self, step: int, slot: int, tried: list[int], bad: list[tuple[int, str]]) -> _Sample:
        for attempt in range(MAX_ATTEMPTS):
            rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, _CLIP, step, slot, attempt])))
            clip = self.clips[self.planned(step, slot) if attempt == 0 else self._replacement(step, rng)]
            tried.append(clip.index)
            try:
                return self._read(clip, rng)
            except BadClip as error:
                bad.append((clip.index, error.reason))
        raise DataError(
            f"step {step}: {MAX_ATTEMPTS} clips in a row could not be used, the last one {clip.name}: {bad[-1][1]}; "
            f"see which clips under {self.clips.root} can be decoded"
        )

    def _replacement(self, step: int, rng: np.random.Generator) -> int:
        n, size = len(self.clips), self.batch_size
        if n <= size:
            return int(rng.integers(n))
        # Any clip that the batch does not hold: the same clip twice would be its own negative.
        epoch, place = divmod(step, self.steps_per_epoch)
        return int(_permutation(self.seed, epoch, n)[(place * size + size + rng.integers(n - size)) % n])

    def _read(self, clip: Clip, rng: np.random.Generator) -> _Sample:
        share = int(self.data.cache_gb * 1e9 / max(1, self.data.workers))
        windows = self.windows(share)
        window = windows.read(clip, int(rng.integers(windows.last_offset(clip) + 1)))
        text, has_text = self.text(clip, rng)
        video = train_video(window.video, self.model.video.size, self.data.augment, rng)
        audio = None if window.audio is None else to_float(window.audio)
        if audio is not None:
            audio = audio_noise(audio, self.data.augment.audio_noise, rng)
        return _Sample(clip, video, audio, text, has_text)


class EvalDataset(_Clips):
    """Every clip once, in order, `windows` evenly spaced windows each, centre crop, nothing random.

    `dataset[i]` holds clips `i * batch_size` and following, with a windows axis V: video uint8 [B, V, T, H, W, 3],
    audio float32 [B, V, S]. Clips that cannot be decoded are left out and told in `bad`, so B may be 0.
    """

    def __init__(
        self,
        clips: Manifest,
        data: DataConfig,
        model: ModelConfig,
        tokenizer: Tokenizer,
        windows: int = 4,
        batch_size: int | None = None,
    ) -> None:
        super().__init__(clips, data, model, tokenizer, batch_size, windows_per_clip=windows)

    def __len__(self) -> int:
        return -(-len(self.clips) // self.batch_size)

    def __getitem__(self, index: int) -> Batch:
        since = time.perf_counter()
        if not 0 <= index < len(self):
            raise IndexError(index)
        samples: list[_Sample] = []
        bad: list[tuple[int, str]] = []
        chunk = self.clips[index * self.batch_size : (index + 1) * self.batch_size]
        for clip in chunk:
            try:
                samples.append(self._sample(clip, self.windows(0).read_spaced(clip, self.windows_per_clip)))
            except BadClip as error:
                bad.append((clip.index, error.reason))
        return self.batch(samples, [clip.index for clip in chunk], bad, (self.windows_per_clip,), since)

    def _sample(self, clip: Clip, windows: list[Window]) -> _Sample:
        video = np.stack([centre_crop(window.video, self.model.video.size) for window in windows])
        silence = np.zeros(self.model.audio.samples, np.float32)
        audio = None
        if any(window.audio is not None for window in windows):
            audio = np.stack([silence if window.audio is None else to_float(window.audio) for window in windows])
        return _Sample(clip, video, audio, *self.text(clip, None))


def make_loader(dataset: BatchSource, start: int, count: int, workers: int, prefetch: int = 4) -> Iterator[Batch]:
    """Batches `start` to `start + count - 1` of `dataset` in order, built by `workers` processes ahead of their use.

    Each worker keeps up to `prefetch` batches ready; 0 workers build them in this process. Workers come from a fork
    server, not from a fork of this process: a fork would copy its locks, its signal handlers and the state of its
    thread pools. As with every such start, a script that calls this needs the `if __name__ == "__main__"` guard.

    Raises:
        DataError: from the dataset, or because a worker died or is stuck.
    """
    if workers == 0:
        for index in range(start, start + count):
            yield dataset[index]
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["vatt.data.loader"])
    loader: DataLoader[Batch | DataError] = DataLoader(
        _Carrier(dataset),
        batch_size=None,
        sampler=range(start, start + count),
        num_workers=workers,
        prefetch_factor=prefetch,
        collate_fn=_as_is,
        worker_init_fn=_start_worker,
        multiprocessing_context=context,
        timeout=min(LOOK_SECONDS, dataset.longest_seconds),
    )
    batches = iter(loader)
    waited = 0.0
    try:
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except RuntimeError as error:
                if str(error).startswith("Caught "):  # raised by the dataset, and not foreseen: its traceback says more
                    raise
                # After each time-out the loader has looked whether its workers live, and can be asked again.
                waited += loader.timeout
                if "timed out" in str(error) and waited < dataset.longest_seconds:
                    continue
                raise DataError(
                    f"a data worker stopped ({error}); if memory ran out (or /dev/shm, in a container), lower "
                    "data.batch_size, data.prefetch or data.cache_gb; data.workers=0 builds batches in the main process"
                ) from error
            waited = 0.0
            if isinstance(batch, DataError):
                raise batch
            yield batch
    finally:
        del batches  # ends the workers now, also while somebody holds on to the traceback


class _Carrier(Dataset["Batch | DataError"]):
    """Brings a worker's DataError home as it is, without the worker's traceback around its message."""

    def __init__(self, dataset: BatchSource) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> Batch | DataError:
        try:
            return self.dataset[index]
        except DataError as error:
            return error


def _as_is(batch: Any) -> Any:
    return batch


def _start_worker(_: int) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to answer
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    # A worker's parent by process id is the fork server, which outlives a killed main process as long as workers do.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, n: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, _ORDER, epoch]))).permutation(n)
