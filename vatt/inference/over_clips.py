"""A function of batches over many clips, resumably: `map_clips` is how every command runs a finished model.

Batches are joined to shards, and with a folder each shard is a file as soon as it is done: a crash loses at most one,
the same call makes what is missing, and the result is that of an uninterrupted call. Of processes that share the work
each makes a consecutive part of the shards.

A shard is an .npz with the arrays that the function returned, and bad_row int64 [X], bad_reason U [X] of the clips that
were left out.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..data.bad_clips import bad_share
from ..data.datasets.batch import Batch
from ..data.datasets.evaluation import EvalDataset
from ..data.loader import make_loader
from ..data.remarks import Remarks
from ..errors import DataError
from ..runtime.distributed import SINGLE_PROCESS, World
from ..runtime.forms import printable
from ..runtime.progress import progress_bar
from .npz import Arrays, read_npz, write_npz

Bad = list[tuple[int, str]]  # manifest index and reason of each clip left out
SHARD_CLIPS = 64  # at least; what a crash loses
BAD = ("bad_row", "bad_reason")


@dataclass(frozen=True)
class MappedClips:
    """What `map_clips` made, in order.

    Attributes:
        shards: arrays in memory, or the files that hold them.
        positions: arrays that count clips from the first one of their shard.
    """

    shards: list[Arrays] | list[Path]
    positions: tuple[str, ...] = ()

    @property
    def files(self) -> list[Path]:
        """The files of the shards; none when they are in memory."""
        return [shard for shard in self.shards if isinstance(shard, Path)]

    @property
    def bad(self) -> Bad:
        """Manifest index and reason of each clip left out. Raises `DataError` for a damaged shard."""
        bad: Bad = []
        for shard in self.shards:
            arrays = _read(shard, BAD) if isinstance(shard, Path) else shard
            bad += zip(arrays["bad_row"].tolist(), arrays["bad_reason"].tolist(), strict=True)
        return bad

    def arrays(self) -> Arrays:
        """Return all arrays, joined along their first axes. Raises `DataError` for a damaged shard."""
        return join([_read(shard) if isinstance(shard, Path) else shard for shard in self.shards], self.positions)


def map_clips(
    dataset: EvalDataset,
    function: Callable[[Batch], Arrays],
    label: str,
    parts: Path | None = None,
    max_bad_share: float | None = 1.0,
    world: World = SINGLE_PROCESS,
    *,
    shard_batches: int | None = None,
    positions: tuple[str, ...] = (),
    sink: Callable[[Arrays], None] | None = None,
) -> MappedClips:
    """Call `function` for each batch of `dataset` and keep what it returns.

    Args:
        dataset: the clips, each once.
        function: of a batch to arrays; called for batches without clips too, so that arrays have their widths.
        label: what the progress bar calls it.
        parts: folder of the shards, None keeps them in memory. Whole shards in it are not made again; a damaged one is
            named on standard error and made anew.
        max_bad_share: share of the clips that may be unusable, of those tried at any time (see `bad_share`); None: all.
        world: processes that share the work, with `parts`; all of them return all shards.
        shard_batches: batches a shard, None: SHARD_CLIPS clips' worth.
        positions: names of arrays that count clips from the first one of a batch; function must then return "row".
        sink: takes each shard as soon as it is made; then no shard is kept but for the clips left out.

    Raises:
        DataError: no clip can be used, or more of them than `max_bad_share` cannot. What was made is kept.
    """
    per_shard = shard_batches or max(1, SHARD_CLIPS // dataset.batch_size)
    count = -(-len(dataset) // per_shard)
    own = range(count * world.rank // world.size, count * (world.rank + 1) // world.size)
    error, made = "", list[Arrays]()
    try:
        share = math.inf if max_bad_share is None else max_bad_share
        made = _make(dataset, function, label, parts, share, own, per_shard, positions, sink)
    except DataError as caught:
        if world.size == 1:
            raise
        # The others wait for this process at the next exchange: it says there what went wrong.
        error = str(caught)
    if errors := [text for text in world.all_gather_object(error) if text]:
        raise DataError(errors[0])
    mapped = MappedClips(made if parts is None else [_shard(parts, number) for number in range(count)], positions)
    bad = mapped.bad
    if len(bad) == len(dataset.clips) and max_bad_share is not None:
        raise DataError(f"none of the {len(bad)} clips could be read; the last one: {bad[-1][1]}")
    return mapped


def join(shards: list[Arrays], positions: Iterable[str] = ()) -> Arrays:
    """Return the arrays of `shards` joined along their first axes; `positions` count from the first clip of all."""
    joined = {name: [arrays[name] for arrays in shards] for name in shards[0]}
    if positions:
        first = np.cumsum([0, *(len(rows) for rows in joined["row"])])
        for name in positions:
            joined[name] = [array + offset for array, offset in zip(joined[name], first, strict=False)]
    return {name: np.concatenate(arrays) for name, arrays in joined.items()}


def _make(
    dataset: EvalDataset,
    function: Callable[[Batch], Arrays],
    label: str,
    parts: Path | None,
    max_bad_share: float,
    own: range,
    per_shard: int,
    positions: tuple[str, ...],
    sink: Callable[[Arrays], None] | None,
) -> list[Arrays]:
    """Make the shards `own` that are missing; return them where there is no folder to keep them."""
    runs = [own] if parts is None else _missing(parts, own)
    absent = {number for run in runs for number in run}
    clips_of = per_shard * dataset.batch_size
    tried = sum(len(range(len(dataset.clips))[n * clips_of : (n + 1) * clips_of]) for n in own if n not in absent)
    bad = sum(len(_read(_shard(parts, n), BAD)["bad_row"]) for n in own if parts and n not in absent)
    made: list[Arrays] = []
    remarks = Remarks(dataset.clips)
    left_out: Counter[str] = Counter()
    with progress_bar(len(dataset.clips), label, "clip", tried) as bar:
        for run in runs:
            start, stop = run.start * per_shard, min(run.stop * per_shard, len(dataset))
            batches = make_loader(dataset, start, max(0, stop - start), dataset.data.workers)
            for number in run:
                shard: list[Arrays] = []
                for batch in itertools.islice(batches, per_shard):
                    for index, reason in batch.bad:
                        said = f"bad clip, left out: {dataset.clips.at(index).name}: {reason}"
                        left_out[said] += 1
                        if left_out[said] == 1:  # not again for each moment of a file
                            tqdm.write(printable(said), file=sys.stderr)
                    remarks.add(batch.remarks)
                    bad, tried = bad + len(batch.bad), tried + len(batch.tried)
                    shard.append(function(batch) | _bad_arrays(batch.bad))
                    bar.update(len(batch.tried))
                made.append(join(shard, positions))
                if sink is not None:
                    sink(made[-1])
                    made[-1] = {name: made[-1][name] for name in BAD}
                if parts is not None:
                    write_npz(_shard(parts, number), made.pop().items())
                if bad_share(bad, tried, len(dataset.clips)) > max_bad_share:
                    mended = f", delete {parts}, which remembers them, and start over" if parts else ""
                    raise DataError(
                        f"{bad} of {tried} clips tried could not be used, more than the share of {max_bad_share:g} "
                        "that --max-bad-share (data.max_bad_share in training) allows; they are named above. Allow "
                        f"more{' and --resume' if parts else ''}, or mend them{mended}"
                    )
    remarks.tell()
    for said, count in left_out.items():
        if count > 1:
            tqdm.write(printable(f"{said}: {count} rows"), file=sys.stderr)
    return made


def _bad_arrays(bad: Bad) -> Arrays:
    return {
        "bad_row": np.array([index for index, _ in bad], np.int64),
        "bad_reason": np.array([reason for _, reason in bad], dtype=str),
    }


def _missing(parts: Path, own: range) -> list[range]:
    """Return runs of shards of `own` that are not in `parts`; a damaged one is named and made again."""
    missing = []
    for number in own:
        path = _shard(parts, number)
        if path.exists():
            try:
                _read(path)
                continue
            except DataError as error:
                tqdm.write(printable(f"made again: {error}"), file=sys.stderr)
        missing.append(number)
    return list(_runs(missing))


def _runs(numbers: list[int]) -> Iterator[range]:
    """Yield the consecutive runs of `numbers`: a loader is started for each, not for each number."""
    for _, group in itertools.groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        run = [number for _, number in group]
        yield range(run[0], run[-1] + 1)


def _shard(parts: Path, number: int) -> Path:
    return parts / f"{number:06d}.npz"


def _read(path: Path, names: Iterable[str] | None = None) -> Arrays:
    """Return the arrays `names` of a shard, None: all of them. Raises `DataError` when it is damaged."""
    try:
        if names is not None:
            try:
                return read_npz(path, names)
            except ValueError:
                pass  # an older shard, or a damaged one: the whole file tells
        arrays = read_npz(path)
        # Until commit 20a74a7 shards of all but `vatt.embed` had these names.
        for old, new in (("bad", "bad_row"), ("reasons", "bad_reason")):
            if old in arrays:
                arrays[new] = arrays.pop(old)
        return arrays if names is None else {name: arrays[name] for name in names}
    except (FileNotFoundError, ValueError, KeyError) as error:
        raise DataError(f"{path} is damaged ({error}); delete it and go on with --resume") from error
