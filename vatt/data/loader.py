"""(seed, step) to a batch: a pure function, so that neither workers nor restarts change what a run sees.

Order: each epoch is a permutation drawn from (seed, epoch), cut into whole batches; a corpus smaller than a batch wraps
around. The window, the captions and every augmentation of a clip are drawn from (seed, step, slot, attempt). A clip
that cannot be decoded is replaced by one that is not in the batch, drawn from the same numbers with the next attempt,
never from what a process happens to know already; the batch tells which clips were bad and why. A second row of a file
in a batch is replaced in the same way, as far as there are other files: it would be a negative of the first. One thing
is outside of this function: the time limit of a clip is wall clock, so set it far above what a clip takes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator
from typing import Protocol, cast

from ..errors import DataError
from ..runtime.faults import Fault
from ..runtime.memory import keep_freed_memory
from .datasets.batch import Batch
from .decoding.watchdog import Watch
from .workers import LOST, Failure, Lost, Workers, describe_exit

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.5  # how often a waiting main process looks whether its workers get on
MAX_LOSSES = 8  # of the fork server in a row, without a batch between them


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
    """Yield batches `start` to `start + count - 1` of `dataset` in order, built by `workers` processes ahead of their
    use.

    Each worker keeps up to `prefetch` batches ready; 0 workers build them in this process. Workers come from a fork
    server: as with every such start, a script that calls this needs the `if __name__ == "__main__"` guard. With workers
    this process computes and does not decode: it keeps up to 1 GiB of what it frees from then on (`runtime.memory`).

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
    keep_freed_memory()
    losses = 0
    fallbacks: list[str] = []
    while start < stop:
        dataset.watch.share(workers)
        first = start
        batches = _received(dataset, range(start, stop), workers, prefetch, interrupted, fallbacks)
        try:
            for batch in batches:
                start += 1
                yield batch
        except _ServerLost as error:
            losses = losses + 1 if start == first else 1
            if losses > MAX_LOSSES:
                raise DataError(
                    f"the process from which data workers are started was ended {losses} times in a row "
                    f"({error}); see what kills it, or set data.workers=0"
                ) from error
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
    fallbacks: list[str],
) -> Generator[Batch, None, None]:
    """Yield the batches of `indices`, fewer when a worker had to be ended or was.

    Args:
        fallbacks: reasons why batches come without shared memory; each is logged once, and then kept here.
    """
    try:
        pool = Workers(dataset, indices, workers, prefetch, _join)
    except (ConnectionError, EOFError) as error:
        raise _ServerLost(str(error) or type(error).__name__) from error
    except OSError as error:
        raise DataError(
            f"{workers} data workers cannot be started ({error}); lower data.workers, or raise the limits "
            "on processes and open files (ulimit -u, -n)"
        ) from error
    try:
        for _ in indices:
            batch = _next(dataset, pool, interrupted)
            if batch is None:
                return
            if pool.through_connections and not fallbacks:
                fallbacks.append(pool.through_connections)
                log.warning(
                    "note: no shared memory for batches (%s); they are sent through sockets, which costs this process "
                    "time",
                    fallbacks[0],
                )
            dataset.watch.killed -= set(batch.tried)  # these were read since
            yield batch
    finally:
        pool.close()


def _next(dataset: BatchSource, pool: Workers, interrupted: Callable[[], object]) -> Batch | None:
    """Return the next batch of `pool`; None when a worker had to be ended or was, and all have to begin anew."""
    since = time.monotonic()
    try:
        while not pool.ready(LOOK_SECONDS):
            if interrupted():
                raise Interrupted
            if dataset.watch.end_stuck():
                return None
            silent = min(time.monotonic() - since, dataset.watch.silence(pool.due))
            if silent > dataset.longest_seconds:
                raise DataError(
                    f"a data worker stopped: it has done nothing for {silent:.0f} s, though it is not in a "
                    "decoder; see whether the machine or its disk hangs; data.workers=0 builds batches in "
                    "the main process"
                )
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
    """Return what the main process raises for an exception of a worker."""
    if failure.kind == "DataError":
        return DataError(failure.text)
    if failure.kind in ("MemoryError", "OutOfMemoryError"):
        return DataError(
            f"a data worker has not enough memory ({failure.text or failure.kind}); lower "
            "data.batch_size, data.workers or data.cache_gb"
        )
    if failure.kind.endswith("Error") and "Errno" in failure.text:
        return DataError(f"a data worker failed: {failure.text}")
    return Fault(f"in a data worker:\n{failure.traceback}")


def _join(dataset: BatchSource, worker: int) -> None:
    dataset.watch.join(worker)
