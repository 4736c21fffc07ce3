"""The manifest: the one table every source of clips becomes. A CSV file, or a folder of clips, becomes a `Manifest`.

Columns: `path` (or `file`), optional `start` and `end` (seconds or h:mm:ss), `caption` and `label` (several separated
by ` | `, or a list in JSON and Parquet), and `split`. Other columns are ignored; those of a near name are told. Paths
are relative to the CSV. Whether the files exist or decode is not looked at here: a corpus of millions is listed in
seconds, and what cannot be decoded is met, counted and named by the loader.

A relative path stays below the CSV's folder: one that leads out, by `..`, is an error. An absolute path leads where it
says, and links are followed. VATT_ROOTS names the folders (divided by `:`) that clips may lie in besides that of the
manifest, and is then kept to by every path, absolute ones and what links lead to included: VATT_ROOTS=/data, for `..`
or for a manifest that somebody else wrote; VATT_ROOTS= allows nothing outside; VATT_ROOTS=/ everything.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from itertools import chain, islice
from pathlib import Path

from ..config.data import DATA_VERSION
from ..errors import ConfigError
from ..runtime.files import write_csv
from .clip import CAPTION_SEPARATOR, DEFAULT_SPLIT, MAX_TEXT, Clip, Manifest, ManifestError, split_captions
from .columns import COLUMNS, keys_of, parse_columns, places, unread
from .folders import labels_and_splits
from .media_types import AUDIO, IMAGE, MEDIA_SUFFIXES
from .rows.fence import ROOTS as ROOTS
from .rows.fence import Fence
from .rows.mapped import open_mapped, write_parquet
from .rows.narrations import with_candidates
from .shards.remote import address_of
from .tables import MAX_CELL, Cell, Table, TableError, encoding_of, parse_seconds, parts_in, read_rows

log = logging.getLogger(__name__)
# The file as an absolute path, start, end, captions, label and split.
Row = tuple[str, float, float | None, tuple[str, ...], str | None, str | None]
WRITTEN = 2**12  # rows that are written at once
MAPPED_BYTES = 2**22  # a table of so many is not kept in memory (see vatt.data.rows.mapped)


def read_manifest(source: str | Path, columns: str = "", version: int = DATA_VERSION) -> Manifest:
    """Read a table of clips, or list a folder of them.

    Args:
        source: a CSV or another table (vatt.data.tables); a folder, listed recursively and sorted, of videos or, where
            there are none, of sounds or pictures, with captions one a line in a .txt of the same name, and split and
            class by the folders (vatt.data.folders); or tar shards (vatt.data.shards.reading). Without a `split` column
            every clip is in "train"; an empty `split` cell puts its clip in no split.
        columns: which columns of a table are meant, as `caption=title,path=filepath`.
        version: of the rules, `DataConfig.version`.

    Raises:
        ManifestError: nothing there, no `path` column, a bad value, or no clips at all.
        ConfigError: `columns` names none, or what is needed is not installed.
    """
    from .shards.reading import absolute_source, is_shards, read_shards  # which builds on this module

    chosen = parse_columns(columns)
    if is_shards(source):
        notes: list[str] = []
        return _manifest(read_shards(source, version, notes), Path(absolute_source(str(source))), notes)
    path = Path(os.path.abspath(Path(source).expanduser()))
    if path.is_dir() and not parts_in(path):
        return _read_folder(path, version)
    if not (path.is_file() or path.is_dir()):  # opening a pipe would wait for whoever writes into it
        raise ManifestError(f"{path}: no such file or folder; give a manifest CSV or a folder of clips")
    return _read_table(path, chosen)


def tell_notes(manifest: Manifest) -> Manifest:
    """Warn of what `manifest` notes, and return it."""
    for note in manifest.notes:
        log.warning("note: %s", note)
    return manifest


def write_manifest(path: str | Path, clips: Iterable[Clip]) -> None:
    """Write `clips` as a table that `read_manifest` gives back (indices are row numbers): see `write_rows`."""
    write_rows(path, ((str(c.path), c.start, c.end, c.captions, c.label, c.split) for c in clips))


def write_rows(path: str | Path, rows: Iterable[Row], *, narrations: bool = False) -> None:
    """Write a manifest, one row after the other.

    Clips below the table's folder are written relative to it, so that the folder can move; others by absolute path.
    The file is replaced atomically.

    Args:
        path: a CSV, or .parquet.
        narrations: the rows are narrations without their candidates (see `vatt.data.rows.narrations`).

    Raises:
        ManifestError: a clip that no row could give back.
        WriteError: the disk.
    """
    path = Path(os.path.abspath(path))
    inside = os.path.join(path.parent, "")
    remaining = iter(rows)
    blocks = iter(lambda: list(islice(remaining, WRITTEN)), [])
    cells = (cells for block in blocks for cells in _cells(block, path, inside))
    columns = ["narration" if name == "caption" and narrations else name for name in COLUMNS]
    if path.suffix.lower() == ".parquet":
        write_parquet(path, columns, cells)
    else:
        write_csv(path, columns, cells, errors="strict")


def _cells(rows: Sequence[Row], path: Path, inside: str) -> Iterator[tuple[str, ...]]:
    """What is written of some rows. Raises `ManifestError` for one that these cells would not give back."""
    files, starts, ends, captions, labels, splits = zip(*rows, strict=True)
    names = {file: file if file[:1] == "/" else address_of(Path(file)) or file for file in dict.fromkeys(files)}
    texts = set(chain.from_iterable(captions))
    told = list(map(CAPTION_SEPARATOR.join, captions))
    # Where no text has a `|` and none is empty or padded, what is split again is what was joined.
    clean = not any("|" in text or not text for text in texts) and texts == set(map(str.strip, texts))
    if not clean or max(map(len, told)) > MAX_CELL:
        for file, several, cell in zip(files, captions, told, strict=True):
            if len(cell) > MAX_CELL:
                raise ManifestError(
                    f"{path}: {names[file]}: captions of {len(cell):,} characters, a cell may have {MAX_CELL:,}"
                )
            if split_captions(cell) != several:
                raise ManifestError(f"{path}: {names[file]}: captions that are empty, padded or hold `|`: {several!r}")
    return zip(
        [names[file].removeprefix(inside) for file in files],
        [repr(float(start)) if start else "" for start in starts],
        ["" if end is None else repr(float(end)) for end in ends],
        told,
        [label or "" for label in labels],
        [split or "" for split in splits],
        strict=True,
    )


def _manifest(clips: list[Clip], root: Path, notes: Sequence[str] = ()) -> Manifest:
    return Manifest(tuple(clips), root, tuple(sorted({label for clip in clips for label in clip.labels})), tuple(notes))


def _read_folder(folder: Path, version: int) -> Manifest:
    # macOS leaves ._name.mp4 beside name.mp4 on foreign disks; these and other hidden files are not clips.
    kinds = {"videos": MEDIA_SUFFIXES, "sounds": AUDIO, "pictures": IMAGE}
    there: dict[str, list[Path]] = {kind: [] for kind in kinds}
    for file in folder.rglob("*"):
        kind = next((kind for kind, suffixes in kinds.items() if file.suffix.lower() in suffixes), None)
        if kind is not None and not file.name.startswith(".") and file.is_file():
            there[kind].append(file)
    taken = next((kind for kind, files in there.items() if files), None)
    if taken is None:
        known = "; ".join(f"{kind}: {' '.join(sorted(suffixes))}" for kind, suffixes in kinds.items())
        raise ManifestError(f"{folder}: no clips in this folder; files with these suffixes are taken: {known}")
    files = sorted(there[taken])
    beside = [f"{len(count)} {kind}" for kind, count in there.items() if count and kind != taken]
    notes = [
        f"{folder}: its {len(files)} {taken} are the clips, {' and '.join(beside)} beside them are not read"
    ] * bool(beside)
    meanings: list[tuple[str | None, str | None]] = [(None, DEFAULT_SPLIT)] * len(files)
    if version >= 2:
        meanings = labels_and_splits([file.relative_to(folder) for file in files])
    clips: list[Clip] = []
    fence = Fence(folder)
    for file, (label, split) in zip(files, meanings, strict=True):
        fence.check(file.name, str(file), str(folder))
        name = file.relative_to(folder).as_posix()
        captions = _captions_beside(file.with_suffix(".txt"))
        clips.append(Clip(len(clips), file, name, captions=captions, label=label, split=split or DEFAULT_SPLIT))
    return _manifest(clips, folder, notes)


def _captions_beside(text: Path) -> tuple[str, ...]:
    if not text.is_file():
        return ()
    if text.stat().st_size > MAX_TEXT:
        raise ManifestError(f"{text}: more than {MAX_TEXT:,} bytes are no captions; cut it or take it away")
    try:
        lines = text.read_text(encoding=encoding_of(text)).splitlines()
    except UnicodeDecodeError as error:
        raise ManifestError(f"{text}: captions are not UTF-8 text ({error}); convert the file") from error
    return tuple(line.strip() for line in lines if line.strip())


def _read_table(path: Path, chosen: Mapping[str, str]) -> Manifest:
    parts = parts_in(path) or [path]

    def read(notes: list[str]) -> tuple[Iterable[Clip], bool]:
        table = read_rows(path, keys_of(chosen), MEDIA_SUFFIXES | AUDIO | IMAGE)
        positions = places(table.columns, chosen, f"{path}:1")
        for name, position in positions.items():
            content = table.wrong.get(table.columns[position])
            if content == "no text" or (content and name not in ("start", "end", "label", "split")):
                raise ManifestError(f"{path}: its column {table.columns[position]} holds {content}; write it as text")
        return _rows_of(path, table, positions, chosen, notes), "narration" in positions

    try:
        size = sum(part.stat().st_size for part in parts)
        if size >= MAPPED_BYTES and (arrow := find_spec("pyarrow")):
            key = json.dumps(chosen, sort_keys=True) if chosen else ""
            rows, labels, notes = open_mapped(path, parts, key, read)
            return Manifest(rows, path.parent, labels, notes)
        remarks: list[str] = []
        listed, narrations = read(remarks)
        clips = [clip for _, clip in with_candidates(listed)] if narrations else list(listed)
    except TableError as error:
        raise ManifestError(str(error)) from error
    except ConfigError:
        raise
    except ValueError as error:
        raise error if isinstance(error, ManifestError) else ManifestError(str(error)) from error
    if size >= MAPPED_BYTES and not arrow:
        remarks.append(
            "its rows are in the memory of every process; pip install -e '.[features]' brings what maps them"
        )
    return _manifest(clips, path.parent, [f"{path}: {note}" for note in remarks])


def _rows_of(
    path: Path, table: Table, positions: Mapping[str, int], chosen: Mapping[str, str], notes: list[str]
) -> Iterator[Clip]:
    """The clips of a table; `notes` receives at the end what was not read."""
    fence = Fence(path.parent)
    index = lists = 0
    for line, cells in table.rows:
        if any(cell.strip() if isinstance(cell, str) else cell for cell in cells):
            clip = _clip(index, cells, table.columns, positions, path, line, fence)
            yield clip
            index += 1
            lists += any(_is_list(caption) for caption in clip.captions)
    if not index:
        raise ManifestError(f"{path}: the manifest lists no clips; add one line for each, below the column names")
    notes += unread(table.columns, chosen, positions)
    if table.bare:
        notes.append(f"its first line names no columns; read as {' and '.join(table.columns)}")
    if lists:
        notes.append(f"{lists} captions look like lists; several captions of a clip are separated by ' | '")


def _is_list(caption: str) -> bool:
    return caption.startswith(("['", '["')) and caption.endswith(("']", '"]'))


def _clip(
    index: int,
    cells: Sequence[Cell],
    columns: Sequence[str],
    positions: Mapping[str, int],
    path: Path,
    line: int | str,
    fence: Fence,
) -> Clip:
    source = f"{path}{'/' if isinstance(line, str) else ':'}{line}"
    if any(cell.strip() if isinstance(cell, str) else cell for cell in cells[len(columns) :]):
        # Most likely a comma in an unquoted caption: reading on would lose half of the caption.
        raise ManifestError(f"{source}: {len(cells)} cells but {len(columns)} columns; put cells with commas in quotes")
    row = {name: _texts(cells[position]) for name, position in positions.items() if position < len(cells)}
    name = CAPTION_SEPARATOR.join(row.get("path", ()))
    if not name:
        raise ManifestError(f"{source}: no {columns[positions['path']]}; every line names a file")
    start, end = (_seconds(CAPTION_SEPARATOR.join(row.get(key, ())), key, source) for key in ("start", "end"))
    if end is not None and end <= (start or 0.0) and "narration" not in positions:
        raise ManifestError(
            f"{source}: end {end:g} s is not after start {start or 0.0:g} s; leave end empty for the rest"
        )
    captions = split_captions(CAPTION_SEPARATOR.join(row.get("caption", row.get("narration", ()))))
    label = CAPTION_SEPARATOR.join(row.get("label", ())) or None
    split = (CAPTION_SEPARATOR.join(row.get("split", ())) or None) if "split" in positions else DEFAULT_SPLIT
    return Clip(index, Path(fence.locate(name, source)), name, start or 0.0, end, captions, label, split)


def _texts(cell: Cell) -> tuple[str, ...]:
    """The texts of a cell; those of a list on a line each, without what would divide them anew."""
    if isinstance(cell, str):
        return (cell.strip(),)
    return tuple(" ".join(word for word in text.split() if word != "|") for text in cell)


def _seconds(text: str, column: str, source: str) -> float | None:
    if not text:
        return None
    try:
        value = parse_seconds(text)
    except ValueError as error:
        raise ManifestError(f"{source}: {column} is not a number of seconds: {text!r}") from error
    if not math.isfinite(value) or value < 0:
        raise ManifestError(f"{source}: {column} is not a time in the file: {text!r}; it counts from 0 seconds")
    return value


def choose_clips(source: str, split: str | None, columns: str = "") -> Manifest:
    """All rows of a manifest or folder, or those of one split."""
    manifest = tell_notes(read_manifest(source, columns))
    clips = manifest if split is None else manifest.split(split)
    if not len(clips):
        raise ConfigError(f"{source} has no rows of split {split!r}; it has: {', '.join(manifest.splits) or 'none'}")
    return clips
