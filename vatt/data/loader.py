"""(seed, step) to a batch: a pure function, so that neither workers nor restarts change what a run sees.

Order: each epoch is a permutation drawn from (seed, epoch), cut into whole batches; a corpus smaller than a batch wraps
around. The window, the captions and every augmentation of a clip are drawn from (seed, step, slot, attempt). A clip
that cannot be decoded is replaced by one that is not in the batch, drawn from the same numbers with the next attempt,
never from what a process happens to know already; the batch tells which clips were bad and why. A second row of a file
in a batch is replaced in the same way, as far as there are other files: it would be a negative of the first. One thing
is outside of this function: the time limit of a clip is wall clock, so set it far above what a clip takes.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Collection, Generator, Iterator
from functools import lru_cache
from multiprocessing import connection, resource_tracker
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from vatt.config import DataConfig, ModelConfig
from vatt.data.augment import Frames, audio_noise, centre_crop, to_float, train_video
from vatt.data.batch import MODALITIES, Batch, DataError
from vatt.data.clips import Clips, Sample
from vatt.data.limits import return_freed_memory
from vatt.data.manifest import Clip, Manifest
from vatt.data.reader import BadClip
from vatt.data.text import Tokenizer
from vatt.data.watch import Watch
from vatt.data.windows import Window

MAX_ATTEMPTS = 32
LOOK_SECONDS = 5.0  # how often a waiting main process looks whether its workers live
_ORDER, _CLIP = 0, 1  # keep the two kinds of draws apart


class BatchSource(Protocol):
    """Anything that builds batch `index`: `ClipDataset` (index is the step) or `EvalDataset`.

    `watch` hears of each clip that is being decoded.
    """

    watch: Watch

    @property
    def longest_seconds(self) -> float:
        """A batch that takes longer is stuck."""
        ...

    def __getitem__(self, index: int) -> Batch: ...


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
        numbers = {path: i for i, path in enumerate(dict.fromkeys(clip.path for clip in clips))}
        self.files = len(numbers)
        self._file_of: np.ndarray | None = None  # number of the file of each clip, where rows of one are kept apart
        if data.version >= 2 and self.keeps_files_apart and self.batch_size <= self.files < len(clips):
            self._file_of = np.array([numbers[clip.path] for clip in clips], np.int32)
        self._last_plan: tuple[int, _Plan] | None = None

    keeps_files_apart = True  # a class of clips may hold two of one file, negatives may not

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

    def repeats(self, step: int) -> int:
        """Slots of the whole batch whose row gave way, as an earlier slot has another one of its file."""
        return len(self._plan(step).replaced)

    def _plan(self, step: int) -> _Plan:
        if self._file_of is None:
            return _Plan({}, frozenset())
        if self._last_plan is None or self._last_plan[0] != step:
            held: set[int] = set()
            second = []
            for slot in range(self.batch_size):
                file = int(self._file_of[self.planned(step, slot)])
                if file in held:
                    second.append(slot)
                held.add(file)
            replaced = {}
            for slot in second:
                replaced[slot] = self._replacement(step, self._draws(step, slot, 1), held)
                held.add(int(self._file_of[replaced[slot]]))
            self._last_plan = step, _Plan(replaced, frozenset(held))
        return self._last_plan[1]

    def _draws(self, step: int, slot: int, attempt: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, _CLIP, step, slot, attempt])))

    def __getitem__(self, step: int) -> Batch:
        since = self.clocks()
        tried: list[int] = []
        bad: list[tuple[int, str]] = []
        samples = [self._sample(step, slot, tried, bad) for slot in self.slots]
        return self.batch(samples, tried, bad, since)

    def crop(self, frames: Frames, rng: np.random.Generator) -> Frames:
        """uint8 [T, h, w, 3] -> [T, size, size, 3]: the augmentation of a window."""
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
        """Position of a clip that the batch does not hold: from a drawn one on, the first whose file is not `held`."""
        n, size = len(self.clips), self.batch_size
        if n <= size:
            return int(rng.integers(n))
        # Any clip that the batch does not hold: the same clip twice would be its own negative.
        epoch, place = divmod(step, self.steps_per_epoch)
        order, first = _permutation(self.seed, epoch, n), place * size + size + int(rng.integers(n - size))
        if self._file_of is not None:
            others = (i for i in range(first, first + n) if self._file_of[order[i % n]] not in held)
            first = next(others, first)
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


class EvalDataset(Clips):
    """Every clip once, in order, `windows` evenly spaced windows each, centre crop, nothing random.

    `dataset[i]` holds clips `i * batch_size` and following, with a windows axis V: video uint8 [B, V, T, H, W, 3],
    audio float32 [B, V, S]. Clips that cannot be decoded, or lack what the task `needs`, are left out and told in
    `bad`, so B may be 0. `frames`, `read` and `needs` as in `ClipDataset`. A subclass may take several crops a window:
    video is then [B, V * crops, ...], the crops of a window side by side.
    """

    def __init__(
        self,
        clips: Manifest,
        data: DataConfig,
        model: ModelConfig,
        tokenizer: Tokenizer,
        windows: int = 4,
        batch_size: int | None = None,
        *,
        frames: int | None = None,
        read: Collection[str] = MODALITIES,
        needs: Collection[str] = ("video",),
    ) -> None:
        super().__init__(clips, data, model, tokenizer, batch_size, windows, frames, read, needs)

    crops_per_window = 1

    def crops(self, frames: Frames) -> Frames:
        """uint8 [T, h, w, 3] -> [crops_per_window, T, size, size, 3]."""
        return centre_crop(frames, self.model.video.size)[None]

    @property
    def video_axes(self) -> tuple[int, ...]:
        return (self.windows_per_clip * self.crops_per_window,)

    @property
    def audio_axes(self) -> tuple[int, ...]:
        return (self.windows_per_clip,)

    def __len__(self) -> int:
        return -(-len(self.clips) // self.batch_size)

    def __getitem__(self, index: int) -> Batch:
        since = self.clocks()
        if not 0 <= index < len(self):
            raise IndexError(index)
        samples: list[Sample] = []
        bad: list[tuple[int, str]] = []
        chunk = self.clips[index * self.batch_size : (index + 1) * self.batch_size]
        for clip in chunk:
            try:
                self.require_text(clip)
                samples.append(self._sample(clip, self.windows(0).read_spaced(clip, self.windows_per_clip)))
            except BadClip as error:
                bad.append((clip.index, error.reason))
        return self.batch(samples, [clip.index for clip in chunk], bad, since)

    def _sample(self, clip: Clip, windows: list[Window]) -> Sample:
        silence = np.zeros(self.model.audio.samples, np.float32)
        views = [self.crops(window.video) for window in windows if window.video is not None]
        sounds = [None if window.audio is None else to_float(window.audio) for window in windows]
        audio = None
        if any(sound is not None for sound in sounds):
            audio = np.stack([silence if sound is None else sound for sound in sounds])
        return Sample(clip, np.concatenate(views) if views else None, audio, *self.text(clip, None))


def make_loader(
    dataset: BatchSource, start: int, count: int, workers: int, prefetch: int = 4
) -> Generator[Batch, None, None]:
    """Batches `start` to `start + count - 1` of `dataset` in order, built by `workers` processes ahead of their use.

    Each worker keeps up to `prefetch` batches ready; 0 workers build them in this process. Workers come from a fork
    server, not from a fork of this process: a fork would copy its locks, its signal handlers and the state of its
    thread pools. As with every such start, a script that calls this needs the `if __name__ == "__main__"` guard.

    A decoder that hangs is ended with its worker, one that crashes ends it; workers begin anew with the batch that is
    next, in which the clip is bad. One that wants more than `data.decode_gb` of memory fails alone. Without workers a
    hung decoder cannot be ended, and a crash or too much memory ends this process.

    Raises:
        DataError: from the dataset, or because a worker died or is stuck with something else.
    """
    stop = start + count
    if workers == 0:
        for index in range(start, stop):
            yield dataset[index]
        return
    while start < stop:
        dataset.watch.share(workers)
        batches = _received(dataset, range(start, stop), workers, prefetch)
        try:
            for batch in batches:
                start += 1
                yield batch
        finally:
            batches.close()  # ends the workers now, also while somebody holds on to the traceback


def _received(dataset: BatchSource, indices: range, workers: int, prefetch: int) -> Generator[Batch, None, None]:
    """The batches of `indices`, fewer when a worker had to be ended or was."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["vatt.data.loader"])
    loader: DataLoader[Batch | DataError] = DataLoader(
        _Carrier(dataset),
        batch_size=None,
        sampler=indices,
        num_workers=workers,
        prefetch_factor=prefetch,
        collate_fn=_as_is,
        worker_init_fn=_start_worker,
        multiprocessing_context=context,
        timeout=min(LOOK_SECONDS, dataset.longest_seconds),
    )
    others = multiprocessing.active_children()
    with _sigterm_blocked():
        batches = iter(loader)
    processes = [process for process in multiprocessing.active_children() if process not in others]
    try:
        yield from _checked(dataset, loader, batches, processes)
    finally:
        del batches  # ends the workers; those that are at a clip still are killed, as SIGTERM does not reach them
        for process in processes:
            process.kill()


@contextlib.contextmanager
def _sigterm_blocked() -> Iterator[None]:
    """Processes started inside never see SIGTERM. It is the main process's to answer, like Ctrl-C, but launchers
    (torchrun, systemd) send it to all: decoders would seem to crash, and good clips would be replaced.
    """
    resource_tracker.ensure_running()  # whose start would let the signal through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _checked(dataset: BatchSource, loader: DataLoader[Any], batches: Iterator[Any],
             processes: list[Any]) -> Generator[Batch, None, None]:  # fmt: skip
    """What `batches` of `loader` brings, until a worker of `processes` had to be ended or was."""
    waited = 0.0
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except (RuntimeError, EOFError, OSError) as error:
            if str(error).startswith("Caught "):  # raised by the dataset, and not foreseen: its traceback says more
                raise
            # After each time-out the loader has looked whether its workers live, and can be asked again.
            waited += loader.timeout
            if not isinstance(error, RuntimeError):
                # A finished batch is fetched from the worker that built it: it has died since, or is about to.
                connection.wait([process.sentinel for process in processes], LOOK_SECONDS)
            if dataset.watch.crashed({process.pid or 0: process.exitcode for process in processes}):
                return
            if "timed out" in str(error):
                if dataset.watch.end_stuck():
                    return
                if waited < dataset.longest_seconds:
                    continue
            raise DataError(
                f"a data worker stopped ({error}); if memory ran out (or /dev/shm, in a container), lower "
                "data.batch_size, data.prefetch or data.cache_gb; data.workers=0 builds batches in the main process"
            ) from error
        waited = 0.0
        if isinstance(batch, DataError):
            raise batch
        dataset.watch.killed -= set(batch.tried)  # these were read since
        yield batch


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
    return_freed_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to answer
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # also if the fork server was started by somebody else
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
