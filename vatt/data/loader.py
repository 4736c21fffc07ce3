"""(seed, step) to a batch: a pure function, so that neither workers nor restarts change what a run sees.

Order: each epoch is a permutation drawn from (seed, epoch), cut into whole batches; a corpus smaller than a batch wraps
around. The window, the captions and every augmentation of a clip are drawn from (seed, step, slot, attempt). A clip
that cannot be decoded is replaced by one that is not in the batch, drawn from the same numbers with the next attempt,
never from what a process happens to know already; the batch tells which clips were bad and why. One thing is outside
of this function: the time limit of a clip is wall clock, so set it far above what a clip takes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection, Generator
from functools import lru_cache
from typing import Protocol, cast

import numpy as np
from tqdm import tqdm

from vatt.config import DataConfig, ModelConfig
from vatt.data.augment import Frames, audio_noise, centre_crop, to_float, train_video
from vatt.data.batch import MODALITIES, Batch, DataError
from vatt.data.clips import Clips, Sample
from vatt.data.manifest import Clip, Manifest
from vatt.data.reader import BadClip
from vatt.data.text import Tokenizer
from vatt.data.watch import Watch
from vatt.data.windows import Window
from vatt.data.workers import LOST, Failure, Lost, Workers, describe_exit

MAX_ATTEMPTS = 32
LOOK_SECONDS = 0.5  # how often a waiting main process looks whether its workers get on
MAX_LOSSES = 8  # of the fork server in a row, without a batch between them
_ORDER, _CLIP = 0, 1  # keep the two kinds of draws apart


class BatchSource(Protocol):
    """Anything that builds batch `index`: `ClipDataset` (index is the step) or `EvalDataset`.

    `watch` hears of each clip that is being decoded.
    """

    watch: Watch

    @property
    def longest_seconds(self) -> float:
        """A worker that neither begins nor ends a clip for longer is stuck."""
        ...

    def __getitem__(self, index: int) -> Batch: ...


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
        since = self.clocks()
        tried: list[int] = []
        bad: list[tuple[int, str]] = []
        samples = [self._sample(step, slot, tried, bad) for slot in self.slots]
        return self.batch(samples, tried, bad, since)

    def crop(self, frames: Frames, rng: np.random.Generator) -> Frames:
        """uint8 [T, h, w, 3] -> [T, size, size, 3]: the augmentation of a window."""
        return train_video(frames, self.model.video.size, self.data.augment, rng)

    def _sample(self, step: int, slot: int, tried: list[int], bad: list[tuple[int, str]]) -> Sample:
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


class Interrupted(Exception):
    """A signal came while a batch was waited for."""


def make_loader(
    dataset: BatchSource,
    start: int,
    count: int,
    workers: int,
    prefetch: int = 4,
    interrupted: Callable[[], object] = bool,
) -> Generator[Batch, None, None]:
    """Batches `start` to `start + count - 1` of `dataset` in order, built by `workers` processes ahead of their use.

    Each worker keeps up to `prefetch` batches ready; 0 workers build them in this process. Workers come from a fork
    server: as with every such start, a script that calls this needs the `if __name__ == "__main__"` guard.

    A decoder that hangs is ended with its worker, one that crashes ends it; workers begin anew with the batch that is
    next, in which the clip is bad. One that wants more than `data.decode_gb` of memory fails alone. Without workers a
    hung decoder cannot be ended, and a crash or too much memory ends this process.

    Args:
        interrupted: asked while a worker is waited for; `Interrupted` is raised as soon as it says so.

    Raises:
        DataError: from the dataset, or because a worker died, failed or is stuck with something else.
        Interrupted: `interrupted` said so.
    """
    stop = start + count
    if workers == 0:
        for index in range(start, stop):
            yield dataset[index]
        return
    losses = 0
    told: list[str] = []
    while start < stop:
        dataset.watch.share(workers)
        first = start
        batches = _received(dataset, range(start, stop), workers, prefetch, interrupted, told)
        try:
            for batch in batches:
                start += 1
                yield batch
        except _ServerLost as error:
            losses = losses + 1 if start == first else 1
            if losses > MAX_LOSSES:
                raise DataError(f"the process from which data workers are started was ended {losses} times in a row "
                                f"({error}); see what kills it, or set data.workers=0") from error  # fmt: skip
        finally:
            batches.close()  # ends the workers now, also while somebody holds on to the traceback


class _ServerLost(Exception):
    """The fork server was ended. Its workers are well, but can no longer be watched."""


def _received(
    dataset: BatchSource,
    indices: range,
    workers: int,
    prefetch: int,
    interrupted: Callable[[], object],
    told: list[str],
) -> Generator[Batch, None, None]:
    """The batches of `indices`, fewer when a worker had to be ended or was. `told`: what was said once."""
    try:
        pool = Workers(dataset, indices, workers, prefetch, _join)
    except (ConnectionError, EOFError) as error:
        raise _ServerLost(str(error) or type(error).__name__) from error
    except OSError as error:
        raise DataError(f"{workers} data workers cannot be started ({error}); lower data.workers, or raise the limits "
                        "on processes and open files (ulimit -u, -n)") from error  # fmt: skip
    try:
        for _ in indices:
            batch = _next(dataset, pool, interrupted)
            if batch is None:
                return
            if pool.through_connections and not told:
                told.append(pool.through_connections)
                tqdm.write(f"note: no shared memory for batches ({told[0]}); they are sent through sockets, which "
                           "costs this process time", file=sys.stderr)  # fmt: skip
            dataset.watch.killed -= set(batch.tried)  # these were read since
            yield batch
    finally:
        pool.close()


def _next(dataset: BatchSource, pool: Workers, interrupted: Callable[[], object]) -> Batch | None:
    """The next batch of `pool`; None when a worker had to be ended or was, and all have to begin anew."""
    since = time.monotonic()
    try:
        while not pool.ready(LOOK_SECONDS):
            if interrupted():
                raise Interrupted
            if dataset.watch.end_stuck():
                return None
            silent = min(time.monotonic() - since, dataset.watch.silence(pool.due))
            if silent > dataset.longest_seconds:
                raise DataError(f"a data worker stopped: it has done nothing for {silent:.0f} s, though it is not in a "
                                "decoder; see whether the machine or its disk hangs; data.workers=0 builds batches in "
                                "the main process")  # fmt: skip
        batch = pool.take()
    except Lost as error:
        exits = pool.exits(LOOK_SECONDS)
        if dataset.watch.crashed(exits):
            return None
        codes = {code for code in exits.values() if code is not None}
        if codes == {LOST}:
            raise _ServerLost(f"exit code {LOST}") from error
        how = " and ".join(sorted(map(describe_exit, codes))) or "for no known reason"
        raise DataError(
            f"a data worker stopped ({how}); if memory ran out, lower data.batch_size, data.prefetch or "
            "data.cache_gb; data.workers=0 builds batches in the main process"
        ) from error
    except OSError as error:
        raise DataError(f"a batch cannot be received ({error}); lower data.prefetch or data.workers") from error
    if isinstance(batch, Failure):
        raise _raised(batch)
    return cast(Batch, batch)


def _raised(failure: Failure) -> Exception:
    """What the main process raises for an exception of a worker."""
    if failure.kind == "DataError":
        return DataError(failure.text)
    if failure.kind in ("MemoryError", "OutOfMemoryError"):
        return DataError(f"a data worker has not enough memory ({failure.text or failure.kind}); lower "
                         "data.batch_size, data.workers or data.cache_gb")  # fmt: skip
    if failure.kind.endswith("Error") and "Errno" in failure.text:
        return DataError(f"a data worker failed: {failure.text}")
    return RuntimeError(f"a data worker failed:\n{failure.where}")


def _join(dataset: BatchSource, worker: int) -> None:
    dataset.watch.join(worker)


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, n: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, _ORDER, epoch]))).permutation(n)
