"""The file of features that `vatt.embed` writes and `vatt.search` reads: an .npz archive or a Parquet table.

C clips that could be read, V of them with video and A with sound, Q captions, X clips that could not be read. A clip
has video, sound or both: a sound file is none of the V, a silent video or an image none of the A. All features are
float32 and means over a clip's windows; D is the width of the modality's backbone, 512 and 256 those of the common
spaces.

.npz, every array readable without pickle:
    path U [C], row int64 [C]                absolute path; row of the manifest, or moment (--every), counted from 0
    start, end float64 [C]                   seconds; end NaN: to the end of the file
    split, label U [C]                       "" without one
    video_clip int64 [V]                     position in the C clips; arange(C) where all have video
    video_pooled [V,D]                       pooled (AGG) feature of the backbone
    video_to_audio [V,512]                   common space, to compare with audio_embedding
    video_to_text [V,256]                    common space, to compare with text_embedding
    audio_clip int64 [A]                     position in the C clips
    audio_pooled [A,D], audio_embedding [A,512]
    text_clip int64 [Q], caption U [Q]       position in the C clips; the caption
    text_pooled [Q,D], text_embedding [Q,256]
    bad_path U [X], bad_row int64 [X], bad_reason U [X]
    metadata U []                            JSON: model, weights, clips, windows, versions, command

.parquet, a row a clip in the order of the manifest: path, row, start, end, split, label, `reason` (null, or why the
clip could not be read; its features are null then), the three video features (null without video), audio_pooled and
audio_embedding (null without sound), and the lists captions, text_pooled, text_embedding. The schema metadata holds the
JSON under "vatt".

Texts are stored at the width of the longest in an .npz; for millions of captions take Parquet.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, VattError
from ..runtime.files import replacing
from ..runtime.forms import FormError, parse_json, printable
from .npz import DAMAGED, Arrays, read_npz, write_npz

CLIP = ("path", "row", "start", "end", "split", "label")
VIDEO = ("video_pooled", "video_to_audio", "video_to_text")
AUDIO = ("audio_pooled", "audio_embedding")
TEXT = ("text_pooled", "text_embedding")
BAD = ("bad_path", "bad_row", "bad_reason")
NAMES = (*CLIP, "video_clip", *VIDEO, "audio_clip", *AUDIO, "text_clip", "caption", *TEXT, *BAD)
POSITIONS = ("video_clip", "audio_clip", "text_clip")
SUFFIXES = (".npz", ".parquet")
FORMAT = 2  # 1 had video features of every clip
METADATA = {"format": int, "model": str, "weights_sha256": str, "windows": int}
# Of each array: kind of its values, axes, and how many there are of what.
_FORMS: dict[str, tuple[str, int, str]] = {
    **dict.fromkeys(("path", "split", "label"), ("text", 1, "clips")),
    "row": ("whole numbers", 1, "clips"),
    **dict.fromkeys(("start", "end"), ("numbers", 1, "clips")),
    "video_clip": ("whole numbers", 1, "clips with video"),
    **dict.fromkeys(VIDEO, ("numbers", 2, "clips with video")),
    "audio_clip": ("whole numbers", 1, "clips with sound"),
    **dict.fromkeys(AUDIO, ("numbers", 2, "clips with sound")),
    "text_clip": ("whole numbers", 1, "captions"),
    "caption": ("text", 1, "captions"),
    **dict.fromkeys(TEXT, ("numbers", 2, "captions")),
    **dict.fromkeys(("bad_path", "bad_reason"), ("text", 1, "bad clips")),
    "bad_row": ("whole numbers", 1, "bad clips"),
}
_KINDS = {"text": "U", "whole numbers": "i", "numbers": "f"}  # by NumPy's letters


class FeaturesError(VattError, ValueError):
    """A file that does not hold features. The message names it and the way out."""


@dataclass(frozen=True)
class Features:
    """`arrays` as in the table above, whichever format `source` has; `metadata` decoded."""

    source: Path
    arrays: Arrays
    metadata: dict[str, Any]

    @property
    def widths(self) -> dict[str, int]:
        """How wide the vectors are, by the name of their array."""
        return {name: array.shape[1] for name, array in self.arrays.items() if array.ndim == 2}


def check_format(path: Path) -> None:
    """Raises `ConfigError` unless a features file of that name can be written here."""
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"{path}: features are written to a file that ends in {' or '.join(SUFFIXES)}")
    if path.suffix == ".parquet":
        _pyarrow()


def read_shard(path: Path, names: Iterable[str] = NAMES) -> Arrays:
    """Return arrays of a shard or an .npz. Raises `FeaturesError` if the file is damaged or something else."""
    names = tuple(names)
    try:
        arrays = read_npz(path, names)
        if "metadata" not in names:
            _check(arrays)
        return arrays
    except FileNotFoundError as error:
        raise FeaturesError(f"{path}: no such file; python -m vatt.embed writes it") from error
    except ValueError as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: BaseException) -> FeaturesError:
    reason = printable(str(error) or type(error).__name__)[:300]
    return FeaturesError(f"{path} is damaged or no file of features ({reason}); python -m vatt.embed writes them")


def _check(arrays: Arrays) -> None:
    """Raises ValueError unless `arrays` can be those of one file."""
    counts: dict[str, tuple[str, int]] = {}
    for name, array in arrays.items():
        kind, axes, axis = _FORMS[name]
        if array.dtype.kind != _KINDS[kind] or array.ndim != axes:
            raise ValueError(f"{name} holds {array.dtype} {list(array.shape)}, not {kind} along {axes} axes")
        if counts.setdefault(axis, (name, len(array)))[1] != len(array):
            other, count = counts[axis]
            raise ValueError(f"{len(array)} rows of {name}, but {count} of {other}")
        if axes == 2 and not array.shape[1]:
            raise ValueError(f"{name} has no columns")
        if kind == "numbers" and name != "end" and not np.isfinite(array).all():
            raise ValueError(f"{name} holds numbers that are not finite")
    for name in POSITIONS:
        owners = arrays.get(name)
        if owners is None or not len(owners):
            continue
        if owners.min() < 0 or ("clips" in counts and owners.max() >= counts["clips"][1]):
            raise ValueError(f"{name} names clips from {owners.min()} to {owners.max()}, which are not there")
        if name != "text_clip" and len(np.unique(owners)) < len(owners):
            raise ValueError(f"{name} names a clip twice")


def assemble(shards: list[Path], out: Path, metadata: dict[str, Any]) -> dict[str, int]:
    """Writes `out` from its shards, atomically; returns how many clips, captions and bad clips it holds."""
    sizes = [
        {name: len(a) for name, a in read_shard(shard, (*POSITIONS, "row", "bad_row")).items()} for shard in shards
    ]
    names = {
        "clips": "row",
        "with_video": "video_clip",
        "with_sound": "audio_clip",
        "captions": "text_clip",
        "bad_clips": "bad_row",
    }
    counts = {key: sum(size[name] for size in sizes) for key, name in names.items()}
    text = json.dumps({"format": FORMAT, **metadata, **counts})
    if out.suffix == ".parquet":
        with replacing(out) as temporary:
            _write_parquet(temporary, shards, text)
    else:
        firsts = np.cumsum([0, *(size["row"] for size in sizes)])[:-1].tolist()
        joined = ((name, _join(shards, name, firsts)) for name in NAMES)
        write_npz(out, itertools.chain(joined, [("metadata", np.array(text))]))
    return counts


def read_features(path: str | Path, names: Iterable[str] = NAMES) -> Features:
    """The arrays `names` of a features file. Raises `FeaturesError`; `ConfigError` without pyarrow for Parquet."""
    path = Path(path)
    if path.suffix == ".parquet":
        arrays, text = _read_parquet(path, tuple(names))
        return Features(path, arrays, _metadata(path, text))
    metadata = _metadata(path, str(read_shard(path, ["metadata"])["metadata"]))
    return Features(path, read_shard(path, names), metadata)


def _metadata(path: Path, text: str) -> dict[str, Any]:
    try:
        metadata: dict[str, Any] = parse_json(text, {"format": int})
        known = metadata["format"] == FORMAT
        if known:
            parse_json(text, METADATA)
            if not 1 <= metadata["windows"] < 2**31:
                raise FormError(f"windows is {metadata['windows']}")
    except FormError as error:
        raise _damaged(path, FormError(f"its metadata: {error}")) from error
    if not known:
        raise FeaturesError(
            f"{path} has format {metadata['format']}, this version reads {FORMAT}; embed the clips again"
        )
    return metadata


def _join(shards: list[Path], name: str, firsts: list[int]) -> NDArray[Any]:
    parts = [read_shard(shard, [name])[name] for shard in shards]
    if name in POSITIONS:
        parts = [part + first for part, first in zip(parts, firsts, strict=True)]
    return np.concatenate(parts)


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.compute
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError(
            "Parquet needs pyarrow: pip install -e '.[features]' in the project's folder; .npz works without"
        ) from error
    return pyarrow, pyarrow.parquet


def _write_parquet(path: Path, shards: list[Path], metadata: str) -> None:
    """One row group a shard."""
    pa, parquet = _pyarrow()
    first = read_shard(shards[0], (*VIDEO, *AUDIO, *TEXT))
    vector = {name: pa.list_(pa.float32(), array.shape[1]) for name, array in first.items()}
    fields = [("path", pa.string()), ("row", pa.int64()), ("start", pa.float64()), ("end", pa.float64())]
    fields += [("split", pa.string()), ("label", pa.string()), ("reason", pa.string())]
    fields += [(name, vector[name]) for name in (*VIDEO, *AUDIO)]
    fields += [("captions", pa.list_(pa.string())), *((name, pa.list_(vector[name])) for name in TEXT)]
    schema = pa.schema(fields).with_metadata({"vatt": metadata})
    with parquet.ParquetWriter(path, schema) as writer:
        for shard in shards:
            rows = sorted(rows_of(read_shard(shard)), key=lambda row: row["row"])
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))


def rows_of(arrays: Arrays) -> Iterator[dict[str, Any]]:
    """Yield a dictionary for each clip, good or bad, with the columns of the Parquet table that it has."""
    pictures, sounds = ({clip: i for i, clip in enumerate(arrays[name].tolist())} for name in POSITIONS[:2])
    texts: dict[int, list[int]] = {}
    for i, clip in enumerate(arrays["text_clip"].tolist()):
        texts.setdefault(clip, []).append(i)
    for c in range(len(arrays["row"])):
        row: dict[str, Any] = {name: arrays[name][c].item() for name in CLIP}
        row["end"] = None if np.isnan(row["end"]) else row["end"]
        row |= {name: row[name] or None for name in ("split", "label")}
        if c in pictures:
            row |= {name: arrays[name][pictures[c]] for name in VIDEO}
        if c in sounds:
            row |= {name: arrays[name][sounds[c]] for name in AUDIO}
        row["captions"] = [str(arrays["caption"][i]) for i in texts.get(c, [])]
        row |= {name: [arrays[name][i] for i in texts.get(c, [])] for name in TEXT}
        yield row
    for path, number, reason in zip(*(arrays[name].tolist() for name in BAD), strict=True):
        yield {"path": path, "row": number, "reason": reason}


def _read_parquet(path: Path, names: tuple[str, ...]) -> tuple[Arrays, str]:
    pa, parquet = _pyarrow()
    columns = {"text_clip": "captions", "caption": "captions"}
    columns |= {"video_clip": "video_to_text", "audio_clip": "audio_embedding"}
    columns |= {name: name.removeprefix("bad_") for name in BAD}
    chosen = {columns.get(name, name) for name in names} | {"reason"}
    try:
        table = parquet.read_table(path, columns=sorted(chosen)).combine_chunks()
        metadata = (table.schema.metadata or {})[b"vatt"].decode()
        bad = pa.compute.is_valid(table["reason"])
        good, failed = table.filter(pa.compute.invert(bad)), table.filter(bad)
        arrays = {name: _column(name, failed if name in BAD else good, columns.get(name, name)) for name in names}
        _check(arrays)
        return arrays, metadata
    except FileNotFoundError as error:
        raise FeaturesError(f"{path}: no such file; python -m vatt.embed writes it") from error
    except (*DAMAGED, pa.ArrowException) as error:
        raise _damaged(path, error) from error


def _column(name: str, table: Any, column: str) -> NDArray[Any]:
    values = table[column].combine_chunks()
    if name in (*VIDEO, *AUDIO, *TEXT):
        while not hasattr(values.type, "list_size"):
            values = values.flatten()
        return values.flatten().to_numpy(zero_copy_only=False).reshape(-1, values.type.list_size)
    if name in ("video_clip", "audio_clip"):
        return np.flatnonzero(values.is_valid().to_numpy(zero_copy_only=False)).astype(np.int64)
    if name == "text_clip":
        return np.repeat(np.arange(len(values)), [len(captions) for captions in values.to_pylist()]).astype(np.int64)
    if name == "caption":
        return np.array(values.flatten().to_pylist(), dtype=str)
    if name == "end":
        return values.fill_null(np.nan).to_numpy(zero_copy_only=False)
    if name in ("path", "split", "label", "bad_path", "bad_reason"):
        return np.array(values.fill_null("").to_pylist(), dtype=str)
    return values.to_numpy(zero_copy_only=False)
