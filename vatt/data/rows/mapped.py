"""Manifests of any size: their rows in an Arrow file, which all processes of a machine map and share.

The first opening of a large table reads it as any other, and writes a folder NAME.index beside it, or below the cache
where nothing can be written there. Later openings read only about.json, and map the rest:

about.json     of which table (sizes and times of its files), what `vatt.data.rows.survey` counts, fingerprints, notes
rows.arrow     a row a clip, in record batches of `BATCH`
files.npy      int64 [rows]: a number of the file, equal for rows of one file
split-N.npy    int64: which rows are in split N, where there are several
words-N.arrow  the words of the captions of split N, most frequent first; words.arrow those of all

An index is made anew when its table has changed. A process keeps 16 bytes a row at most: none but what it looks at.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from functools import lru_cache
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from ...errors import DataError, MissingPackage
from ...runtime.files import cache_root, replacing, write_atomically, writing
from ...runtime.progress import progress_bar
from ..clip import Clip, Rows
from ..tokenizer import split_words
from .fence import Fence
from .narrations import NEAREST, around, columns, told, with_candidates
from .survey import Surveyor, file_number

log = logging.getLogger(__name__)
FORMAT = 1
BATCH = 2**16  # rows; also those between which words are counted
KEPT_BATCHES = 64
GROUP = 2**14  # rows of a Parquet file that are written at once
Notes = list[str]
Read = Callable[[Notes], tuple[Iterable[Clip], bool]]


def import_arrow(what: str) -> ModuleType:
    """pyarrow, with its parts that read and write files. Raises `MissingPackage`."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingPackage(f"{what} needs pyarrow: pip install -e '.[features]' in the project's folder") from error
    return pyarrow


class MappedRows(Rows):
    """Rows of an index. `place`: number of their split in it, None: all of them. Pickled, it is the folder's name.

    Raises:
        DataError: the index is not the one with this `fingerprint` (any more).
    """

    def __init__(self, folder: Path, root: Path, place: int | None = None, fingerprint: str | None = None) -> None:
        self.folder, self.root, self.place = folder, root, place
        arrow = import_arrow(f"{folder}")
        try:
            self._reader = arrow.ipc.open_file(arrow.memory_map(str(folder / "rows.arrow")))
            self._files: NDArray[np.int64] = np.load(folder / "files.npy", mmap_mode="r")
            self.about = _about(folder)
            self._places: NDArray[np.int64] | None = None  # which rows these are; None for all
            if place is not None and len(self.about["splits"]) > 1:
                self._places = np.load(folder / f"split-{place}.npy", mmap_mode="r")
            self._words = arrow.memory_map(str(folder / ("words.arrow" if place is None else f"words-{place}.arrow")))
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"{folder}: it cannot be read ({error}); remove it, it is made anew") from error
        if fingerprint not in (None, self.about["fingerprint"]):
            raise DataError(f"{folder}: its manifest changed while it was in use; restore it, or start again")
        self.narrations = bool(self.about["narrations"])
        self._batch: Callable[[int], Any] = lru_cache(KEPT_BATCHES)(self._reader.get_batch)
        self._fence = Fence(root)

    def __reduce__(self) -> tuple[Any, ...]:
        return MappedRows, (self.folder, self.root, self.place, self.about["fingerprint"])

    def __len__(self) -> int:
        return int(self.about["survey"]["clips"] if self.place is None else self.about["splits"][self.place]["rows"])

    @overload
    def __getitem__(self, index: int) -> Clip: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Clip, ...]: ...
    def __getitem__(self, index: int | slice) -> Clip | tuple[Clip, ...]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self))))
        place = range(len(self))[index]
        return self.at(place if self._places is None else int(self._places[place]))

    def __iter__(self) -> Iterator[Clip]:
        return (self[i] for i in range(len(self)))

    def at(self, index: int) -> Clip:
        clip = self._row(index)
        if not self.narrations:
            return clip
        first, last = (max(0, index - NEAREST + 1), index + NEAREST)
        near = [first + i for i, file in enumerate(self._files[first:last]) if file == self._files[index]]
        clips = around(*columns([told(self._row(i)) for i in near]), bounds=(0, len(near)))
        start, end, captions = (column[near.index(index)] for column in clips)
        return Clip(index, clip.path, clip.name, start, end, captions, clip.label, clip.split)  # type: ignore[arg-type]

    def _row(self, index: int) -> Clip:
        number, place = divmod(index, self.about["batch"])
        batch = self._batch(number)
        name, start, end, captions, label, split = (column[place].as_py() for column in batch.columns)
        file = self._fence.locate(name, str(self.folder))
        return Clip(index, Path(file), name, start, end, tuple(captions), label, self.about["splits"][split]["name"])

    @property
    def splits(self) -> tuple[str, ...]:
        chosen = self.about["splits"] if self.place is None else [self.about["splits"][self.place]]
        return tuple(sorted(one["name"] for one in chosen if one["name"] is not None and one["rows"]))

    def split(self, name: str) -> Rows:
        for place, one in enumerate(self.about["splits"]):
            if one["name"] == name and self.place in (None, place):
                return MappedRows(self.folder, self.root, place, self.about["fingerprint"])
        return NoRows()

    def file_numbers(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.asarray(self._files[places if self._places is None else self._places[places]])

    @property
    def file_count(self) -> int:
        if self.place is None:
            return int(self.about["survey"]["files"])
        return int(self.about["splits"][self.place]["files"])

    def of_files(self, paths: Iterable[Path]) -> Iterator[Clip]:
        wanted = np.array([file_number(str(path)) for path in paths], np.int64)
        rows = np.flatnonzero(np.isin(self._files, wanted))
        if self._places is not None:
            rows = np.intersect1d(rows, self._places, assume_unique=True)
        return map(self.at, rows.tolist())

    @property
    def one_a_span(self) -> bool:
        return bool(self.about["survey"]["same_span"] == 0)

    @property
    def fingerprint(self) -> str:
        return str(self.about["fingerprint"] if self.place is None else self.about["splits"][self.place]["fingerprint"])

    @property
    def survey(self) -> dict[str, Any]:
        return dict(self.about["survey"])

    def words(self) -> Iterator[str]:
        reader = import_arrow(f"{self.folder}").ipc.open_file(self._words)
        for number in range(reader.num_record_batches):
            yield from reader.get_batch(number).column(0).to_pylist()


class NoRows(Rows):
    """The rows of a split that has none."""

    splits, file_count, one_a_span, fingerprint = (), 0, True, hashlib.sha256().hexdigest()
    survey: dict[str, Any] = {}  # noqa: RUF012

    def __len__(self) -> int:
        return 0

    def __getitem__(self, index: Any) -> Any:
        return ()[index]

    def split(self, name: str) -> Rows:
        return self

    def at(self, index: int) -> Clip:
        raise KeyError(index)

    def file_numbers(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        return places[:0]

    def of_files(self, paths: Iterable[Path]) -> Iterator[Clip]:
        return iter(())

    def words(self) -> Iterator[str]:
        return iter(())


def _about(folder: Path) -> Any:
    return json.loads((folder / "about.json").read_text(encoding="utf-8"))


def open_mapped(
    table: Path, parts: Sequence[Path], key: str, read: Read
) -> tuple[MappedRows, tuple[str, ...], tuple[str, ...]]:
    """The rows of a table, its labels and notes; written first where there is no index of its present state.

    Args:
        table: the file or folder, `parts`: the files that it consists of.
        key: what else decides what its rows are, the choice of columns.
        read: gives the clips of the table in order, and whether they are narrations without their candidates; notes
            are in its list by the time the clips end.
    """
    state = {"format": FORMAT, "key": key, "parts": [_state(part) for part in parts]}
    name = f"{table.name}{'.' + _short(key) if key else ''}.index"
    here, there = table.with_name(name), cache_root().absolute() / "manifests" / f"{_short(str(table))}-{name}"
    for folder in (here, there):
        if _is_of(folder, state):
            return _opened(folder, table)
    folder = here if os.access(table.parent, os.W_OK) else there
    with _alone(there.with_suffix(".lock")):
        if not _is_of(folder, state):
            stale = (folder / "about.json").exists()
            began = time.perf_counter()
            _write(folder, state, read)
            rows = _opened(folder, table)
            log.info(
                "%s: %s%s rows read into %s in %.1f s; from now on they are mapped",
                table,
                "its index was of another state; " * stale,
                f"{len(rows[0]):,}",
                folder,
                time.perf_counter() - began,
            )
            return rows
    return _opened(folder, table)


def _opened(folder: Path, table: Path) -> tuple[MappedRows, tuple[str, ...], tuple[str, ...]]:
    rows = MappedRows(folder, table.parent)
    return rows, tuple(rows.about["labels"]), tuple(f"{table}: {note}" for note in rows.about["notes"])


def _state(part: Path) -> list[Any]:
    status = part.stat()
    return [part.name, status.st_size, status.st_mtime_ns]


def _short(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]


def _is_of(folder: Path, state: dict[str, Any]) -> bool:
    """Whether a whole index in `folder` is of this state of its table."""
    try:
        about = _about(folder)
        sizes = {name: (folder / name).stat().st_size for name in about["sizes"]}
    except (OSError, ValueError, LookupError, TypeError):
        return False
    return about.get("state") == state and sizes == about["sizes"]


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process of a machine at a time, where there can be locks; else each makes the same."""
    with ExitStack() as held:
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            fcntl.flock(held.enter_context(open(path, "w")), fcntl.LOCK_EX)
        yield


def _write(folder: Path, state: dict[str, Any], read: Read) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        with writing(folder):
            temporary.mkdir()
            about = _fill(temporary, read) | {"state": state}
            about["sizes"] = {file.name: file.stat().st_size for file in sorted(temporary.iterdir())}
            write_atomically(temporary / "about.json", json.dumps(about).encode())
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):  # another machine that shares the disk was faster: its index is as good
                os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _fill(folder: Path, read: Read) -> dict[str, Any]:
    """Write all files but about.json; return what that says of the rows."""
    arrow = import_arrow("a manifest of this size")
    text = arrow.string()
    schema = arrow.schema(
        {
            "name": text,
            "start": arrow.float64(),
            "end": arrow.float64(),
            "captions": arrow.list_(text),
            "label": text,
            "split": arrow.int32(),
        }
    )
    surveyor, notes, words = Surveyor(), Notes(), _Words()
    digests = {None: hashlib.sha256()} | dict[Any, Any]()
    pending: list[tuple[Any, ...]] = []
    clips, narrations = read(notes)
    pairs = with_candidates(clips) if narrations else ((clip, clip) for clip in clips)
    with (
        arrow.OSFile(str(folder / "rows.arrow"), "wb") as file,
        arrow.ipc.new_file(file, schema) as writer,
        progress_bar(0, "reading the manifest", "row") as bar,
    ):

        def write() -> None:
            writer.write_batch(arrow.record_batch([list(column) for column in zip(*pending, strict=True)], schema))
            bar.update(len(pending))
            pending.clear()
            words.count()

        for row, clip in pairs:
            surveyor.add(clip)
            split = surveyor.splits[-1]
            content = repr((clip.name, clip.start, clip.end, clip.captions, clip.label, clip.split)).encode()
            for digest in (digests[None], digests.setdefault(split, hashlib.sha256())):
                digest.update(content)
            words.add(split, clip.captions)
            pending.append((row.name, row.start, row.end, row.captions, row.label, split))
            if len(pending) == BATCH:
                write()
        if pending:
            write()
    names = list(surveyor.names)
    files, splits = np.frombuffer(surveyor.files, np.int64), np.frombuffer(surveyor.splits, np.int32)
    np.save(folder / "files.npy", files)
    for code in range(len(names)):
        if len(names) > 1:
            np.save(folder / f"split-{code}.npy", np.flatnonzero(splits == code))
        words.write(folder / f"words-{code}.arrow", code, arrow)
    words.write(folder / "words.arrow", None, arrow)
    if not len(files):
        return {}  # for the caller to refuse
    counted = surveyor.finish()
    rows = np.bincount(splits, minlength=len(names)).tolist()
    return {
        "survey": asdict(counted),
        "fingerprint": digests[None].hexdigest(),
        "splits": [
            {
                "name": name,
                "rows": rows[code],
                "files": 0 if name is None else counted.split_files[name],
                "fingerprint": digests[code].hexdigest(),
            }
            for name, code in surveyor.names.items()
        ],
        "labels": sorted(surveyor.labels),
        "notes": notes,
        "batch": BATCH,
        "narrations": narrations,
    }


class _Words:
    """Counts the words of captions by split, many captions at once."""

    def __init__(self) -> None:
        self.counts: dict[int, Counter[str]] = {}
        self._texts: dict[int, list[str]] = {}

    def add(self, split: int, captions: Iterable[str]) -> None:
        self._texts.setdefault(split, []).extend(captions)

    def count(self) -> None:
        for split, texts in self._texts.items():
            self.counts.setdefault(split, Counter()).update(split_words("\n".join(texts)))
            texts.clear()

    def write(self, path: Path, split: int | None, arrow: ModuleType) -> None:
        """The words of one split or of all, most frequent first, ties in alphabetical order."""
        counts = self.counts.get(split, Counter()) if split is not None else sum(self.counts.values(), Counter())
        ranked = sorted(counts, key=lambda word: (-counts[word], word))
        table = arrow.table({"word": arrow.array(ranked, arrow.string())})
        with arrow.OSFile(str(path), "wb") as file, arrow.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table, BATCH)


def write_parquet(path: Path, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write cells of a manifest as text, times as numbers, empty ones as null; whole or not at all."""
    arrow = import_arrow(f"{path}:")
    text = arrow.string()
    schema = arrow.schema([(name, arrow.float64() if name in ("start", "end") else text) for name in columns])
    with replacing(path) as temporary, arrow.parquet.ParquetWriter(temporary, schema, compression="zstd") as writer:
        remaining = iter(rows)
        while block := list(islice(remaining, GROUP)):
            cells = (
                [None if not cell else float(cell) if of.type == arrow.float64() else cell for cell in column]
                for of, column in zip(schema, zip(*block, strict=True), strict=True)
            )
            writer.write_batch(arrow.record_batch(list(cells), schema))
