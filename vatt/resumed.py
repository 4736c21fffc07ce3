"""Arrays of many clips that outlive a crash: batches are joined to shards, each a file as soon as it is done.

The same call goes on after the last whole shard and gives what an uninterrupted one gives.
"""

from __future__ import annotations

import itertools
import json
import shutil
import sys
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from .data.bad_clips import bad_share
from .data.batch import Batch, DataError
from .data.loader import EvalDataset, make_loader
from .files import write_atomically
from .progress import progress_bar

Arrays = dict[str, NDArray[Any]]
Bad = list[tuple[int, str]]  # manifest index and reason of each clip left out
SHARD_CLIPS = 64  # at least; what a crash loses


def open_parts(parts: Path, identity: dict[str, Any]) -> None:
    """Makes the folder `parts`, and empties it first when its shards are those of another `identity` (plain JSON)."""
    text, path = json.dumps(identity), parts / "identity"
    if not path.is_file() or path.read_text() != text:
        shutil.rmtree(parts, ignore_errors=True)
        parts.mkdir(parents=True)
        write_atomically(path, text.encode())


def clip_arrays(dataset: EvalDataset, make: Callable[[Batch], Arrays], what: str, parts: Path | None = None,
                max_bad_share: float = 1.0) -> tuple[Arrays, Bad]:  # fmt: skip
    """What `make` returns for each batch of `dataset`, joined along the first axes; and the clips left out.

    `make` is asked for a batch without clips too, so that its arrays have their widths. `parts`: the folder of shards,
    None keeps nothing. Raises `DataError` when no clip can be used, or when a larger share of them than
    `max_bad_share` cannot.
    """
    per_shard = max(1, SHARD_CLIPS // dataset.batch_size)
    count = -(-len(dataset) // per_shard)
    shards = [] if parts is None else [parts / f"{i:06d}.npz" for i in range(count)]
    done = [_read(shard) for shard in itertools.takewhile(Path.is_file, shards)]
    begin = len(done) * per_shard
    names = {clip.index: clip.name for clip in dataset.clips}
    left_out = [entry for _, bad in done for entry in bad]
    tried = min(begin * dataset.batch_size, len(dataset.clips))
    batches = make_loader(dataset, begin, len(dataset) - begin, dataset.data.workers)
    with progress_bar(len(dataset.clips), what, "clip", tried) as bar:
        for number in range(len(done), count):
            made: list[Arrays] = []
            bad: Bad = []
            for batch in itertools.islice(batches, per_shard):
                for index, reason in batch.bad:
                    tqdm.write(f"bad clip, left out: {names[index]}: {reason}", file=sys.stderr)
                bad += batch.bad
                tried += len(batch.tried)
                made.append(make(batch))
                bar.update(len(batch.tried))
            left_out += bad
            if bad_share(len(left_out), tried, len(dataset.clips)) > max_bad_share:
                kept = f" and delete {parts}, which remembers them" if parts else ""
                raise DataError(f"{len(left_out)} of {tried} clips tried could not be used, more than the share of "
                                f"{max_bad_share:g} that --max-bad-share (data.max_bad_share in fine-tuning) allows; "
                                f"allow more, or mend those named above{kept}")  # fmt: skip
            done.append((_joined(made), bad))
            if shards:
                _write(shards[number], *done[-1])
    if len(left_out) == tried:
        raise DataError(f"none of the {tried} clips could be read; the last one: {left_out[-1][1]}")
    return _joined([arrays for arrays, _ in done]), left_out


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
