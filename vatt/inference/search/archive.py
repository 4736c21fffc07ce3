"""An archive of moments: a LanceDB table that grows, `NAME.lance` in a folder or an object store.

A row is a clip or a moment that could be read, or that could not and says why:
    id string                     digest of path, start and end
    path string                   absolute; "" for the table's own rows, of which `reason` holds JSON
    start, end double             seconds; end null: to the end of the file
    split, label string           null without one
    captions list<string>
    shown string                  what a search tells of it, as JSON: one column is read faster than five
    reason string                 null, or why it could not be read; it has no vectors then
    size, modified int64          of the file when it was read: bytes, nanoseconds since the epoch
    content, rows string          digests of the file's bytes (`checkpoints.content`) and of its rows in the manifest
    video_to_text [256], video_to_audio [512], audio_embedding [512]
                                  float32, null without video or sound; also null where a model gave no finite vector

The schema's metadata hold under "vatt" what made the vectors, as in a file of features. Each change is one version of
the table: a file's moments come, or are replaced, all at once, and what a killed process had not committed is not
there. LanceDB lets two inserts of the same row pass side by side; therefore every change also updates the row with the
id "", so that of two at once the second is done again, upon what the first left. How an index is searched lies in the
metadata of its column: a row about it would be new to it, and a query looks at new rows one by one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ...data.shards.index import tar_of
from ...errors import ConfigError, MissingPackage, RunError, VattError
from ...runtime.forms import printable
from ..features_file import FeaturesError

Real = TypeVar("Real", np.float32, np.float64)
SUFFIX = ".lance"
SPACES = ("video_to_text", "video_to_audio", "audio_embedding")
SHOWN = ("id", "path", "start", "end", "label", "captions")
FORMAT = 1
# Above so many vectors a search goes through an approximate index.
INDEXED_FROM = 100_000
BITS = 4  # of each number, where the width is a multiple of 8; else 8
RECALL, SAMPLES = 0.95, 100  # of the ten nearest, and over how many queries it is measured
# Partitions looked into, and candidates ranked exactly (times top): cheap ones first. Reading a candidate takes as long
# as most of a partition, so the fewest candidates that 4 bits order well enough are tried with more partitions.
PROBES = (
    *((2, 1.6), (3, 1.6), (4, 1.6), (5, 1.6), (7, 1.6), (7, 2.0), (10, 2.0)),
    *((10, 4.0), (20, 4.0), (40, 4.0), (40, 10.0), (100, 20.0), (400, 100.0)),
)
FEW = 100  # rows, which the partitions looked into hold
# Bytes of an index that a process keeps, of which a query reads 6 MB; LanceDB alone keeps all that it has read.
KEPT = 96 << 20
IDENTITY = ("weights_sha256", "windows", "every", "window")
OWN = {"id": "", "path": "", "reason": "{}"}
TRIES = 20  # of a change that others were faster than


class KnownFile(NamedTuple):
    """What a table holds of a file."""

    size: int
    modified: int
    content: str
    rows: str


def is_archive(path: str | Path) -> bool:
    """Whether that is the name of an archive rather than of a file of features."""
    return str(path).rstrip("/").endswith(SUFFIX)


def moment_id(path: str, start: float, end: float | None) -> str:
    """Return the id of the row of that span."""
    span = float(start), None if end is None else float(end)
    return hashlib.sha256(f"{path}\n{span[0]!r}\n{span[1]!r}".encode(errors="surrogateescape")).hexdigest()[:32]


def normalised(vectors: NDArray[Real]) -> NDArray[Real]:
    """Return vectors [...,D] divided by their length; zeros stay zeros."""
    unit: NDArray[Real] = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
    return unit


def _lancedb() -> Any:
    try:
        import lancedb
    except ImportError as error:
        raise MissingPackage(
            "an archive in .lance needs LanceDB: pip install -e '.[archive]' in the project's folder"
        ) from error
    return lancedb


@lru_cache(maxsize=1)
def _session() -> Any:
    """The caches of all tables of this process."""
    return _lancedb().Session(index_cache_size_bytes=KEPT)


@contextlib.contextmanager
def _failing(source: str, doing: str) -> Iterator[None]:
    """What LanceDB raises, panics of its Rust code among them, as one sentence."""
    try:
        yield
    except VattError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise FeaturesError(
            f"{source} {doing} ({_short(error)}); python -m vatt.embed --out writes archives"
        ) from error


def _short(error: BaseException) -> str:
    """The first sentence of an error, without places in source files."""
    text = re.sub(r",? *\(?/?[\w./@-]+\.rs:\d+(:\d+)?\)?", "", str(error).strip() or type(error).__name__)
    return printable(text.split("\n")[0])[:300].rstrip(" ,.")


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


class Archive:
    """A table of moments, open for reading and adding. Use `open_archive` or `create_archive`."""

    def __init__(self, source: str, table: Any) -> None:
        self.source, self.table = source, table
        self._reader: Any = None  # the same table, as `nearest` opened it
        self._complete: set[str] = set()  # columns whose index knows all rows of it
        with _failing(source, "is damaged or no archive"):
            try:
                self.metadata: dict[str, Any] = json.loads((table.schema.metadata or {})[b"vatt"])
                own = {row["id"]: json.loads(row["reason"]) for row in self._select("path = ''", ["id", "reason"])}
                if "" not in own:
                    raise KeyError("")
                # The columns that hold what a search tells of a row: in older archives these are five.
                self._shown = ["shown"] if "shown" in table.schema.names else list(SHOWN[1:])
                # In archives without the column `shown` a row of its own tells of an index.
                self.indexes: dict[str, dict[str, Any]] = {name: own[name] for name in own if own[name]}
                for space in SPACES:
                    if told := (table.schema.field(space).metadata or {}).get(b"vatt"):
                        self.indexes[space] = json.loads(told)
            except (KeyError, TypeError) as error:
                raise FeaturesError(f"{source} is a table, but not one that python -m vatt.embed wrote") from error

    def __len__(self) -> int:
        """How many rows have video, which all searches rank."""
        with _failing(self.source, "cannot be read"):
            return int(self.table.count_rows("video_to_text IS NOT NULL"))

    def _select(self, where: str, columns: Sequence[str], limit: int | None = None) -> list[dict[str, Any]]:
        query = self.table.search().where(where).select(list(columns))
        return (query if limit is None else query.limit(limit)).to_list()

    # -- what is there

    def known(self) -> dict[str, KnownFile]:
        """Return what is held of each file, by its path."""
        columns = ["path", *KnownFile._fields]
        with _failing(self.source, "is damaged"):
            table = self.table.search().where("path != ''").select(columns).to_arrow().group_by("path")
            found = table.aggregate([(name, "max") for name in KnownFile._fields]).to_pylist()
        return {row["path"]: KnownFile(*(row[f"{name}_max"] for name in KnownFile._fields)) for row in found}

    def count(self, where: str) -> int:
        """Return how many rows a filter holds for. Raises `ConfigError` for one that does not parse."""
        self.check_filter(where)
        with _failing(self.source, "is damaged"):
            return int(self.table.count_rows(f"({where}) AND path != ''"))

    def check_filter(self, where: str) -> None:
        """Raise `ConfigError` unless `where` is one condition on the table's columns."""
        outside = re.sub(r"'(?:[^']|'')*'", "", where)
        reason = "one condition, without ;" if ";" in outside else ""  # what follows one would not be looked at
        if not reason:
            try:
                self._select(where, ["id"], 1)
            except ValueError as error:
                reason = _short(error).removeprefix("Invalid input, ")
        if reason:
            columns = ", ".join((*SHOWN[1:], "split"))
            raise ConfigError(f"the filter {where!r} cannot be read ({reason}); its columns are {columns}")

    def silent(self) -> int:
        """Return how many rows could be read and have no video, so that no search ranks them."""
        with _failing(self.source, "is damaged"):
            return int(self.table.count_rows("path != '' AND reason IS NULL AND video_to_text IS NULL"))

    @property
    def widths(self) -> dict[str, int]:
        """How wide the vectors are, by the name of their column."""
        return {name: self.table.schema.field(name).type.list_size for name in SPACES}

    # -- searching

    def nearest(
        self, space: str, vector: NDArray[np.float32], top: int, where: str | None = None
    ) -> list[dict[str, Any]]:
        """Return the rows nearest to `vector` by cosine, best first, with `cosine` and the columns of `SHOWN`.

        Args:
            space: which vectors are compared.
            vector: [256] or [512].
            top: rows at most.
            where: a filter in SQL; `check_filter` says whether it is one.
        """
        from lancedb.background_loop import LOOP

        with _failing(self.source, "cannot be searched"):
            found = LOOP.run(self._candidates(space, np.asarray(vector, np.float32), top, where))
        vectors = found[space].combine_chunks().flatten().to_numpy().reshape(-1, len(vector)).astype(np.float64)
        cosine = normalised(vectors) @ normalised(np.asarray(vector, np.float64))
        order, windows = np.argsort(-cosine, kind="stable")[:top], self.metadata["windows"]
        rows = found.select(self._shown).take(order).to_pylist()
        if self._shown == ["shown"]:
            rows = [json.loads(row["shown"]) for row in rows]
        return [
            {"cosine": near, "id": moment_id(row["path"], row["start"], row["end"]), **row, "windows": windows}
            for near, row in zip(cosine[order].tolist(), rows, strict=True)
            if np.isfinite(near)
        ]

    async def _candidates(self, space: str, vector: NDArray[np.float32], top: int, where: str | None) -> Any:
        """Rows that may be the nearest, with their vectors, as a table of Arrow: all columns are read at once.

        LanceDB's other interface asks for the schema again and again, each time across two threads, which takes
        longer than an index does.
        """
        if self._reader is None:
            folder, name = _place(self.source)
            reader = await (await _lancedb().connect_async(folder, session=_session())).open_table(name)
            stats = [(index.columns[0], await reader.index_stats(index.name)) for index in await reader.list_indices()]
            self._complete = {column for column, known in stats if known and not known.num_unindexed_rows}
            schema = await reader.schema()

            async def same() -> Any:
                return schema

            reader.schema = same  # each query asks for it, which takes a tenth of its time
            self._reader = reader
        query = self._reader.query().nearest_to(vector).column(space).distance_type("cosine")
        if where is not None:
            query = query.where(where)
        if built := self.indexes.get(space):
            query = query.nprobes(built["partitions"])
            if space in self._complete:
                query = query.fast_search()  # does not look for rows that the index lacks
            if where is not None or top > FEW:
                query = query.maximum_nprobes(0)  # further ones while there are too few rows
            top = math.ceil(top * built["refined"])
        return await query.limit(top).select([*self._shown, space, "_distance"]).to_arrow()

    def vector(self, identity: str, space: str) -> NDArray[np.float32] | None:
        """Return the vector of the row of that id; None where there is no such row, or it has none."""
        with _failing(self.source, "is damaged"):
            rows = self._select(f"id = {_quoted(identity)}", [space], 1)
        return np.array(rows[0][space], np.float32) if rows and rows[0][space] is not None else None

    def holds(self, path: str) -> bool:
        """Whether the archive has rows of that file."""
        with _failing(self.source, "is damaged"):
            return bool(path) and self.table.count_rows(f"path = {_quoted(path)}") > 0

    # -- adding

    def put(self, rows: Iterable[Mapping[str, Any]], files: Mapping[str, KnownFile]) -> None:
        """Make `rows` all that the table holds of `files`, in one version of it.

        Args:
            rows: path, start, end, split, label, captions, reason and vectors, as far as there are any.
            files: what the rows were made from, by path.
        """
        made = []
        for row in rows:
            stamp = files[row["path"]]._asdict()
            vectors = {name: _usable(row.get(name)) for name in SPACES}
            identity = moment_id(row["path"], row["start"], row["end"])
            made.append({**row, **stamp, **vectors, "id": identity, "shown": shown(row)})
        self._commit(made, f"path IN ({', '.join(map(_quoted, files))})")

    def remove(self, paths: Iterable[str]) -> None:
        """Remove all rows of these files, in one version."""
        if paths := list(paths):
            self._commit([], f"path IN ({', '.join(map(_quoted, paths))})")

    def _commit(self, rows: Sequence[Mapping[str, Any]], replaced: str) -> None:
        data = _table([*rows, OWN], self.table.schema)
        self._reader = None
        with _failing(self.source, "cannot be written"):
            for left in reversed(range(TRIES)):
                try:
                    self.table.checkout_latest()
                    merge = self.table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
                    merge.when_not_matched_by_source_delete(replaced).execute(data, on_bad_vectors="null")
                    return
                except (RuntimeError, OSError, ValueError) as error:
                    if not left or "conflict" not in str(error).lower():
                        raise

    # -- index

    def settle(self) -> list[str]:
        """Join small fragments, bring the index up to date, build what is missing; return what to tell of it.

        Another process that writes at the same time may be faster; then its own `settle` does it.
        """
        told: list[str] = []
        try:
            self.table.checkout_latest()
            self._optimize()
            self._reader = None
            if self.table.count_rows() > INDEXED_FROM:
                there = {name for index in self.table.list_indices() for name in index.columns}
                for column in {"id", "path"} - there:  # a page that shows twelve hits asks for each of their files
                    self.table.create_index(column, config=_lancedb().index.BTree())
            for space in SPACES[:2]:
                count = self.table.count_rows(f"{space} IS NOT NULL")
                if count > INDEXED_FROM and count >= 4 * self.indexes.get(space, {}).get("rows", 0):
                    told.append(self._build(space, count))
        except (RuntimeError, OSError, ValueError) as error:
            if "conflict" not in str(error).lower():
                raise FeaturesError(f"{self.source}: its index cannot be built ({_short(error)})") from error
            told.append(f"{self.source}: another process writes; the next one that adds joins and indexes")
        return told

    def _optimize(self) -> None:
        try:
            self.table.optimize()
        except RuntimeError as error:
            # LanceDB 0.40 raises where none of the rows that are new to an index has a vector, as when files were
            # removed: fragments are joined then, and there is nothing that the index could take up.
            if not re.search(r"Not found: \S*ivf_\d+\.lance", str(error)):
                raise

    def _build(self, space: str, count: int) -> str:
        lancedb = _lancedb()
        index, width = lancedb.index, self.table.schema.field(space).type.list_size
        kind = index.IvfSq("cosine") if width % 8 else index.IvfRq("cosine", num_bits=BITS)
        self.table.create_index(space, config=kind)
        self._reader = None
        queries, exact = self._sample(space, count)
        for partitions, refined in PROBES:
            self.indexes[space] = {"rows": count, "partitions": partitions, "refined": refined}
            found = [{hit["id"] for hit in self.nearest(space, query, 10)} for query in queries]
            recall = float(np.mean([len(a & b) / len(b) for a, b in zip(found, exact, strict=True)]))
            self.indexes[space]["recall"] = recall
            if recall >= RECALL:
                break
        told = {"vatt": json.dumps(self.indexes[space])}
        self.table.update_field_metadata({"path": space, "metadata": told})
        self._reader = None
        return (
            f"{self.source}: index of {count:,} rows of {space}: {recall:.3f} of the ten nearest are found "
            f"(mean of {len(queries)} rows moved by their length, "
            f"{partitions} partitions and {10 * refined:.0f} rows each)"
        )

    def _sample(self, space: str, count: int) -> tuple[NDArray[np.float32], list[set[str]]]:
        """Queries, rows at even distances moved at random by their own length, and the ids of the ten nearest."""

        def batches() -> Iterator[tuple[list[str], NDArray[np.float32]]]:
            query = self.table.search().where(f"{space} IS NOT NULL").select(["id", space])
            for batch in query.to_batches(10_000):
                yield batch["id"].to_pylist(), batch[space].flatten().to_numpy().reshape(len(batch), -1)

        step, first, taken = max(1, count // SAMPLES), 0, []
        for ids, vectors in batches():
            taken.append(vectors[-first % step :: step])
            first += len(ids)
        queries = normalised(np.concatenate(taken)[:SAMPLES])
        queries += normalised(np.random.default_rng(0).standard_normal(queries.shape, np.float32))
        best: list[list[tuple[float, str]]] = [[] for _ in queries]
        for ids, vectors in batches():
            cosine = normalised(queries) @ normalised(vectors).T
            near = np.argpartition(-cosine, min(10, len(ids) - 1))[:, :10]
            for held, row, columns in zip(best, cosine, near, strict=True):
                held[:] = sorted([*held, *((float(row[i]), ids[i]) for i in columns)], reverse=True)[:10]
        return queries, [{identity for _, identity in held} for held in best]


def shown(row: Mapping[str, Any]) -> str:
    """Return what a search tells of a row, as its column holds it."""
    return json.dumps({name: row.get(name) for name in SHOWN[1:]}, default=list)


def gone(path: str) -> bool:
    """Whether the file of an indexed clip, or the tar it lies in, is not there any more."""
    place = Path(path)
    return not (tar_of(place) or place).exists()


def open_archive(source: str | Path) -> Archive:
    """Open a table to search in or to add to.

    Raises:
        FeaturesError: there is none, it is damaged, or something else.
        MissingPackage: LanceDB is not installed.
    """
    folder, name = _place(source)
    if "://" not in folder and not Path(str(source)).exists():
        raise FeaturesError(f"{source}: no such archive; python -m vatt.embed --out writes it")
    with _failing(str(source), "is damaged or no archive"):
        return Archive(str(source), _lancedb().connect(folder, session=_session()).open_table(name))


def create_archive(source: str | Path, metadata: Mapping[str, Any], widths: Mapping[str, int]) -> Archive:
    """Open a table to add to, made if it is not there.

    Args:
        source: its name, which ends in .lance.
        metadata: what makes the vectors; that of a table that is there must agree with it.
        widths: of each vector of `SPACES`.

    Raises:
        RunError: the table was made by another model, or holds other moments.
        FeaturesError: it is damaged, or something else.
    """
    folder, name = _place(source)
    lancedb, there = _lancedb(), "://" in folder or Path(str(source)).exists()
    with _failing(str(source), "cannot be opened or made"):
        if "://" not in folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
        schema = _schema(widths, metadata)
        own = _table([OWN], schema)
        try:
            database = lancedb.connect(folder, session=_session())
            table = database.create_table(name, data=own, schema=schema, on_bad_vectors="null")
            return Archive(str(source), table)
        except (ValueError, OSError, RuntimeError) as error:
            if not there and "exist" not in str(error):
                raise
    archive = open_archive(source)
    differ = [
        f"{name}: {archive.metadata.get(name)!r}, now {metadata[name]!r}"
        for name in IDENTITY
        if archive.metadata.get(name) != metadata[name]
    ]
    if differ:
        raise RunError(f"{source} was begun with other settings ({'; '.join(differ)}); repeat those, or choose another")
    return archive


def _place(source: str | Path) -> tuple[str, str]:
    """Folder and name of the table; Lance's tables are folders that end in .lance."""
    folder, _, name = str(source).rstrip("/").rpartition("/")
    name = name.removesuffix(SUFFIX)
    if not re.fullmatch(r"[\w.-]+", name, re.ASCII):
        raise ConfigError(f"{source}: an archive is called in letters, digits, _, - and ., and ends in {SUFFIX}")
    return folder or ".", name


def _schema(widths: Mapping[str, int], metadata: Mapping[str, Any]) -> Any:
    import pyarrow as pa

    text, number = pa.string(), pa.int64()
    kinds = {"id": text, "path": text, "start": pa.float64(), "end": pa.float64(), "split": text, "label": text}
    kinds |= {"captions": pa.list_(text), "shown": text, "reason": text}
    kinds |= {"size": number, "modified": number, "content": text, "rows": text}
    kinds |= {name: pa.list_(pa.float32(), widths[name]) for name in SPACES}
    return pa.schema(kinds).with_metadata({"vatt": json.dumps({"format": FORMAT, **metadata})})


def _table(rows: Sequence[Mapping[str, Any]], schema: Any) -> Any:
    import pyarrow as pa

    return pa.Table.from_pylist([{name: row.get(name) for name in schema.names} for row in rows], schema=schema)


def _usable(vector: Any) -> NDArray[np.float32] | None:
    """A vector that has a direction, else None: it would be near to nothing, or to everything."""
    if vector is None or not np.isfinite(vector).all() or not np.any(vector):
        return None
    return np.asarray(vector, np.float32)
