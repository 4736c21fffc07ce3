"""Arrays of many clips that outlive a crash: batches are joined to shards, each a file as soon as it is done.

The same call goes on after the last whole shard and gives what an uninterrupted one gives.
"""

from __future__ import annotations

import itertools
import sys
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ..data.bad_clips import bad_share
from ..data.datasets.batch import Batch
from ..data.datasets.evaluation import EvalDataset
from ..data.loader import make_loader
from ..data.remarks import Remarks
from ..errors import DataError
from ..runtime.distributed import ALONE, World
from ..runtime.files import write_atomically
from ..runtime.forms import printable
from ..runtime.progress import progress_bar

Arrays = dict[str, NDArray[Any]]
Bad = list[tuple[int, str]]  # manifest index and reason of each clip left out
SHARD_CLIPS = 64  # at least; what a crash loses


def clip_arrays(dataset: EvalDataset, make: Callable[[Batch], Arrays], what: str, parts: Path | None = None,
                max_bad_share: float = 1.0, world: World = ALONE) -> tuple[Arrays, Bad]:  # fmt: skip
    """What `make` returns for each batch of `dataset`, joined along the first axes; and the clips left out.

    `make` is asked for a batch without clips too, so that its arrays have their widths. `parts`: the folder of shards,
    None keeps nothing. Each rank of `world` makes a consecutive part of the shards; all of them return all. Raises
    `DataError` when no clip can be used, or when a larger share of them than `max_bad_share` cannot.
    """
    per_shard = max(1, SHARD_CLIPS // dataset.batch_size)
    count = -(-len(dataset) // per_shard)
    own = range(count * world.rank // world.size, count * (world.rank + 1) // world.size)
    error, done = "", []
    try:
        done = _make(dataset, make, what, parts, max_bad_share, own, per_shard)
    except DataError as caught:
        if world.size == 1:
            raise
        error = str(caught)
    if errors := [text for text in world.exchange(error) if text]:
        raise DataError(errors[0])
    if world.size > 1:
        assert parts is not None
        done = [_read(_shard(parts, number)) for number in range(count)]
    left_out = [entry for _, bad in done for entry in bad]
    if len(left_out) == len(dataset.clips):
        raise DataError(f"none of the {len(left_out)} clips could be read; the last one: {left_out[-1][1]}")
    return _joined([arrays for arrays, _ in done]), left_out


def _make(dataset: EvalDataset, make: Callable[[Batch], Arrays], what: str, parts: Path | None, max_bad_share: float,
          own: range, per_shard: int) -> list[tuple[Arrays, Bad]]:  # fmt: skip
    """The shards `own`, those that are there already from their files."""
    done: list[tuple[Arrays, Bad]] = []
    if parts is not None:
        done = [_read(shard) for shard in itertools.takewhile(Path.is_file, (_shard(parts, i) for i in own))]
    begin, end = (own.start + len(done)) * per_shard, min(own.stop * per_shard, len(dataset))
    names = {clip.index: clip.name for clip in dataset.clips}
    left_out = [entry for _, bad in done for entry in bad]
    tried = min(len(done) * per_shard * dataset.batch_size, len(dataset.clips))
    remarks = Remarks(dataset.clips)
    batches = make_loader(dataset, begin, max(0, end - begin), dataset.data.workers)
    with progress_bar(len(dataset.clips), what, "clip", tried) as bar:
        for number in own[len(done) :]:
            made: list[Arrays] = []
            bad: Bad = []
            for batch in itertools.islice(batches, per_shard):
                for index, reason in batch.bad:
                    tqdm.write(printable(f"bad clip, left out: {names[index]}: {reason}"), file=sys.stderr)
                bad += batch.bad
                remarks.add(batch.remarks)
                tried += len(batch.tried)
                made.append(make(batch))
                bar.update(len(batch.tried))
            left_out += bad
            if bad_share(len(left_out), tried, len(dataset.clips)) > max_bad_share:
                kept = f" and delete {parts}, which remembers them" if parts else ""
                raise DataError(f"{len(left_out)} of {tried} clips tried could not be used, more than the share of "
                                f"{max_bad_share:g} that --max-bad-share (data.max_bad_share in training) allows; "
                                f"allow more, or mend those named above{kept}")  # fmt: skip
            done.append((_joined(made), bad))
            if parts is not None:
                _write(_shard(parts, number), *done[-1])
    remarks.tell()
    return done


def _shard(parts: Path, number: int) -> Path:
    return parts / f"{number:06d}.npz"


def _joined(made: list[Arrays]) -> Arrays:
    return {name: np.concatenate([arrays[name] for arrays in made]) for name in made[0]}


def _write(path: Path, arrays: Arrays, bad: Bad) -> None:
    whole: dict[str, Any] = {**arrays, "bad": np.array([index for index, _ in bad], np.int64),
                             "reasons": np.array([reason for _, reason in bad], dtype=str)}  # fmt: skip
    buffer = BytesIO()
    np.savez(buffer, **whole)
    write_atomically(path, buffer.getvalue())


def _read(path: Path) -> tuple[Arrays, Bad]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        bad, reasons = arrays.pop("bad").tolist(), arrays.pop("reasons").tolist()
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is damaged ({error}); delete {path.parent} to start over") from error
    return arrays, list(zip(bad, reasons, strict=True))
