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
from collections.abc import Generator, Iterator
from multiprocessing import connection, resource_tracker
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset

from ..errors import DataError
from .datasets.batch import Batch
from .decoding.memory_limit import return_freed_memory
from .decoding.watchdog import Watch

LOOK_SECONDS = 5.0  # how often a waiting main process looks whether its workers live


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
