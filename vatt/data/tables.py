"""Tables as people have them, read row by row: CSV, TSV and their like, JSON lines, JSON, Parquet, and plain lists.

Text is UTF-8, or UTF-16 with its byte order mark; commas, tabs or semicolons divide it, whichever makes the first line
name a file. A first line that is a media file itself is no line of names: the table is then a list of files, perhaps
with a label behind each, as SlowFast, VideoMAE and MMAction2 have them (`path label`; the last space divides).
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .media_types import AUDIO, IMAGE, MEDIA_SUFFIXES

MAX_CELL = 2**20  # characters
DELIMITERS = ",\t;"
SUFFIXES = (".csv", ".tsv", ".txt", ".jsonl", ".ndjson", ".json", ".parquet")
csv.field_size_limit(max(csv.field_size_limit(), MAX_CELL))

Cell = str | tuple[str, ...]  # a text, or several of one cell
_CLOCK = re.compile(r"(?:(?P<hours>\d+):)?(?P<minutes>\d+):(?P<seconds>\d+(?:[.,]\d*)?)")
_NUMBER = re.compile(r"\d+")


class TableError(ValueError):
    """A table that cannot be read. The message names the file, the line and the way out."""


@dataclass(frozen=True)
class Table:
    """`columns`: their names, lower case; `rows`: number of the line (or of the entry) and cells of each, once;
    `PART:NUMBER` where the table is a folder of parts.

    `bare`: there was no line of names, and these are what the cells were taken for. `wrong`: columns that hold "no
    text" or "numbers" by their type.
    """

    columns: tuple[str, ...]
    rows: Iterator[tuple[int | str, list[Cell]]]
    bare: bool = False
    wrong: Mapping[str, str] = field(default_factory=dict)


def parse_seconds(text: str) -> float:
    """Return the seconds that `text` says: 83.5, 83,5, 1:23.5 or 0:01:23.500.

    Raises:
        ValueError: it is no time.
    """
    try:
        return float(text)
    except ValueError:
        clock = _CLOCK.fullmatch(text.strip())
    if clock is None:
        try:
            return float(text.strip().replace(",", "."))
        except ValueError as error:
            raise ValueError(f"{text!r} is no time") from error
    hours, minutes = int(clock["hours"] or 0), int(clock["minutes"])
    return 3600.0 * hours + 60.0 * minutes + float(clock["seconds"].replace(",", "."))


def read_rows(path: Path, keys: Collection[str], media: Collection[str]) -> Table:
    """Open the table in `path`.

    Args:
        keys: names a column with file names may have, lower case; they tell which character divides the cells.
        media: suffixes of media files, with their dots.

    Raises:
        TableError: now or while the rows are read: it is no table, or cannot be decoded.
    """
    suffix = path.suffix.lower()
    try:
        if suffix in (".jsonl", ".ndjson"):
            return _of_objects(path, lambda: _json_lines(path))
        if suffix == ".json":
            listed = list(_json_list(path))
            return _of_objects(path, lambda: iter(listed))
        if suffix == ".parquet" or path.is_dir():
            return _parquet(path)
        return _text(path, keys, media)
    except UnicodeDecodeError as error:
        raise not_text(path, error) from error


def encoding_of(path: Path) -> str:
    """Return "utf-16" for a file with such a byte order mark, else "utf-8-sig"."""
    with open(path, "rb") as file:
        return "utf-16" if file.read(2) in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"


def not_text(path: Path, error: UnicodeDecodeError) -> TableError:
    return TableError(
        f"{path}: not UTF-8 text ({error}), nor UTF-16 with its mark; convert it (iconv -f LATIN1 -t UTF-8), or give a "
        "CSV, or a folder of clips"
    )


def _text(path: Path, keys: Collection[str], media: Collection[str]) -> Table:
    encoding = encoding_of(path)
    with open(path, encoding=encoding, newline="") as file:
        first = file.readline()
    if not first.strip():
        raise TableError(f"{path}: the manifest is empty; its first line names the columns, e.g. path,caption")
    named = [
        (mark, [cell.strip().lower() for cell in next(csv.reader([first], delimiter=mark))]) for mark in DELIMITERS
    ]
    for mark, names in named:
        if set(names) & set(keys):
            return Table(tuple(names), _checked(path, encoding, mark))
    for mark in DELIMITERS:
        cells = next(csv.reader([first.strip()], delimiter=mark))
        if _is_media(cells[0], media) and len(cells) > 1:
            if len(cells) > 2:
                raise TableError(
                    f"{path}:1: {len(cells)} cells and no names of columns; add a first line, such as path,label,split"
                )
            return Table(("path", "label"), _checked(path, encoding, mark, skip=False), bare=True)
    if rest := _listed(first.strip(), media):
        return Table(("path", "label")[: len(rest)], _lines(path, encoding, media, len(rest)), bare=True)
    return Table(tuple(named[0][1]), iter(()))  # names that say nothing: for the caller to refuse


def _listed(line: str, media: Collection[str]) -> list[str]:
    """`path`, `path label` or `path frames label` without what is between; nothing for any other line."""
    if _is_media(line, media):
        return [line]
    head, _, label = line.rpartition(" ")
    name, _, frames = head.rpartition(" ")
    if _is_media(name, media) and _NUMBER.fullmatch(frames):
        return [name, label]
    return [head, label] if _is_media(head, media) else []


def _is_media(name: str, media: Collection[str]) -> bool:
    return Path(name.strip()).suffix.lower() in media


def _lines(path: Path, encoding: str, media: Collection[str], count: int) -> Iterator[tuple[int, list[Cell]]]:
    try:
        with open(path, encoding=encoding) as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    cells = _listed(line.strip(), media)
                    if len(cells) != count:
                        expected = "a file and its label" if count == 2 else "a file"
                        raise TableError(f"{path}:{number}: {line.strip()!r} is not {expected}, as the first line is")
                    yield number, list(cells)
    except UnicodeDecodeError as error:
        raise not_text(path, error) from error


def _checked(path: Path, encoding: str, mark: str, skip: bool = True) -> Iterator[tuple[int, list[Cell]]]:
    row = 1  # line on which the row being read begins
    try:
        with open(path, encoding=encoding, newline="") as file:
            # Not strict, a quote that nothing closes would silently take all lines after it into one cell.
            reader = csv.reader(file, strict=True, delimiter=mark)
            for cells in reader:
                if not skip:
                    yield row, list(cells)
                skip = False
                row = reader.line_num + 1
    except UnicodeDecodeError as error:
        raise not_text(path, error) from error
    except csv.Error as error:
        if "field limit" in str(error):
            raise TableError(
                f"{path}:{row}: a cell of more than {MAX_CELL:,} characters, by line {reader.line_num}; shorten it, or "
                "close the quotes of this row if it holds the next ones"
            ) from error
        raise TableError(
            f"{path}:{row}: not a CSV ({error}, at line {reader.line_num}); close the quotes of this row, and write a "
            'quote inside of them twice: "a ""red"" car"'
        ) from error


def cell_of(value: Any) -> Cell:
    """Return a value of JSON or Parquet as a cell: null and NaN are empty, a list is several texts, one in it JSON."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, (list, tuple)):
        inner = [json.dumps(one) if isinstance(one, (list, tuple)) else cell_of(one) for one in value]
        return tuple(cell for cell in inner if isinstance(cell, str) and cell.strip())
    return value if isinstance(value, str) else json.dumps(value) if isinstance(value, (dict, bool)) else str(value)


def _of_objects(path: Path, read: Callable[[], Iterator[tuple[int, Any]]]) -> Table:
    """The table of what `read` gives, which is read twice: the columns are those of all objects."""
    names: dict[str, None] = {}
    number = 0
    for number, one in read():
        if not isinstance(one, dict):
            raise TableError(f'{path}:{number}: no JSON object; a row is {{"path": ..., "caption": ...}}')
        names |= dict.fromkeys(one)
    if not number:
        raise TableError(f"{path}: the table is empty")
    columns = list(names)
    rows = ((number, [cell_of(one.get(name)) for name in columns]) for number, one in read())
    return Table(tuple(name.strip().lower() for name in columns), rows)


def _json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    with open(path, encoding=encoding_of(path)) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, _json(path, number, line)


def _json_list(path: Path) -> Iterator[tuple[int, Any]]:
    data = _json(path, 1, path.read_text(encoding=encoding_of(path)))
    if not isinstance(data, list):
        raise TableError(
            f"{path}: no list of rows; published annotations become a manifest by: python -m vatt.data.sources FORMAT"
        )
    yield from enumerate(data, 1)


def _json(path: Path, number: int, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TableError(f"{path}:{number}: not JSON ({error})") from error


def parts_in(path: Path) -> list[Path]:
    """The Parquet files that a folder is a table of, sorted; none for a folder with media, or what is no folder."""
    if not path.is_dir():
        return []
    files = sorted(file for file in path.iterdir() if not file.name.startswith((".", "_")) and file.is_file())
    parts = [file for file in files if file.suffix.lower() == ".parquet"]
    return [] if any(file.suffix.lower() in MEDIA_SUFFIXES | AUDIO | IMAGE for file in files) else parts


def _parquet(path: Path) -> Table:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise TableError(
            f"{path}: Parquet needs pyarrow: pip install -e '.[features]' in the project's folder"
        ) from error
    parts = parts_in(path) or [path]
    names: list[str] = []
    kinds: dict[str, str] = {}
    for part in parts:
        try:
            schema = parquet.read_schema(part)
        except (ArrowException, OSError) as error:
            raise TableError(f"{part}: not a Parquet table ({error})") from error
        names = names or schema.names
        if sorted(schema.names) != sorted(names):
            raise TableError(
                f"{part}: its columns are {', '.join(schema.names)}, those of {parts[0].name} {', '.join(names)}; "
                "parts of one table have the same columns"
            )
        for column in schema:
            kind = _kind(str(column.type))
            if kind and kinds.setdefault(column.name, kind) != kind:
                raise TableError(
                    f"{part}: its column {column.name} is of {kind} ({column.type}), in parts before it of "
                    f"{kinds[column.name]}; write it alike in all parts"
                )

    def rows() -> Iterator[tuple[int | str, list[Cell]]]:
        for part in parts:
            number = 0
            try:
                with parquet.ParquetFile(part) as file:
                    for batch in file.iter_batches(2**13):
                        columns = [batch.column(batch.schema.names.index(name)).to_pylist() for name in names]
                        for values in zip(*columns, strict=True):
                            number += 1
                            yield number if part == path else f"{part.name}:{number}", [*map(cell_of, values)]
            except (ArrowException, OSError) as error:
                raise TableError(f"{part}: damaged after row {number} ({error})") from error

    wrong = {name.strip().lower(): kind for name, kind in kinds.items() if kind in ("numbers", "no text")}
    return Table(tuple(name.strip().lower() for name in names), rows(), wrong=wrong)


def _kind(arrow_type: str) -> str:
    """What a column of this type of Arrow holds; "" for one of nulls alone, which goes with every other."""
    if arrow_type == "null":
        return ""
    if "binary" in arrow_type or arrow_type.startswith(("struct", "map", "timestamp", "date", "time", "duration")):
        return "no text"
    if arrow_type.startswith(("list", "large_list", "fixed_size_list")):
        return "lists"
    return "text" if "string" in arrow_type else "numbers"
