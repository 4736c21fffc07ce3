"""What all native annotation formats have in common: the clips they list, and how their files are read.

A format is a function from annotation files to `Record`s (classification.py, captions.py); it
looks for no media. Byte order marks, CRLF, empty lines, spaces behind commas and comments in front are dropped here.
"""

from __future__ import annotations

import ast
import csv
import html
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import UsageError
from ..media_types import AUDIO, IMAGE
from ..media_types import MEDIA_SUFFIXES as VIDEO
from ..tables import DELIMITERS, Cell, cell_of, encoding_of, parse_seconds

QUOTED_LINES = 20  # a cell over more lines than this is a quote that nobody closed
BLOCK = 2**12  # rows that are worked on at once
JSON_BLOCK = 2**18  # characters that are read at once
_SPACE = re.compile(r"\s*")

Name = tuple[str | float, ...]  # ("stem",), or ("stem", start) and ("stem", start, end) for any zeros in front


class SourceError(UsageError, ValueError):
    """Annotations that cannot be read. The message names the file, the line and the way out."""


class Record(NamedTuple):
    """One clip as the annotation lists it.

    `video`: name of the whole source file without suffix, perhaps behind folders; clips of one video share it.
    `start`, `end`: seconds in that file; `end` None is its end. A time that could not be read is NaN.
    `cut`: names of files that hold just this clip. `file`: the file of `video`, where that is known from the start.
    `narration`: the times are those of what is said, however short; whoever reads the manifest makes a clip of it.
    """

    video: str
    start: float = 0.0
    end: float | None = None
    labels: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()
    split: str | None = "train"
    cut: tuple[Name, ...] = ()
    file: Path | None = None
    narration: bool = False

    @property
    def fault(self) -> str | None:
        """Why no file could serve this row, or None."""
        video, start, end, *_, narration = self
        if not last_part(video):
            return "names no file"
        if not video.isascii() and not _is_text(video):
            return "its name is not UTF-8: no manifest can hold it"
        if not 0 <= start < math.inf:
            return "its start is no time"
        if (end is not None and not (start < end or narration)) or end == math.inf or end != end:
            return f"its end {end:g} is not after its start {start:g}"
        return None


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # bytes of a file system, or halves of characters in JSON
        return False
    return True


def read_text(path: Path) -> str:
    """Raises `SourceError` unless the file is there and UTF-8."""
    try:
        return path.read_text(encoding=encoding_of(path))
    except UnicodeDecodeError as error:
        raise SourceError(f"{path}: not UTF-8 text ({error}); convert it, or name the annotation file") from error
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror})") from error


def read_lines(path: Path) -> list[str]:
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def read_cell_blocks(path: Path) -> Iterator[list[list[str]]]:
    """Rows of a CSV without column names, thousands at a time, without empty ones and `#` comments.

    Raises:
        SourceError: after the rows before the fault.
    """
    rows: list[list[str]] = []
    try:
        with open(path, encoding=encoding_of(path), newline="") as file:
            # Tabs or semicolons divide a table whose first line has more of them than commas.
            head = file.readline()
            file.seek(0)
            mark = max(DELIMITERS, key=head.count)
            reader = csv.reader(file, skipinitialspace=True, delimiter=mark)
            while True:
                line = reader.line_num
                rows += islice(reader, BLOCK)  # what was read before an error is in the list
                if not rows:
                    return
                if reader.line_num - line >= len(rows) + QUOTED_LINES:
                    _check_quotes(path, rows, line)
                yield _filled(rows)
                rows = []
    except (SourceError, UnicodeDecodeError, csv.Error, OSError) as error:
        if rows := _filled(rows):
            yield rows
        if isinstance(error, UnicodeDecodeError):
            raise SourceError(f"{path}: not UTF-8 text ({error}); convert it, or name the annotation file") from error
        if isinstance(error, csv.Error):
            raise SourceError(f"{path}:{reader.line_num}: not a CSV ({error})") from error
        if isinstance(error, OSError):
            raise SourceError(f"{path}: cannot be read ({error.strerror})") from error
        raise


def _check_quotes(path: Path, rows: list[list[str]], line: int) -> None:
    """Raise `SourceError` where one of `rows` takes too many lines, and leave in the list those before it."""
    for place, cells in enumerate(rows):
        lines = 1 + sum(cell.count("\n") + cell.count("\r") - cell.count("\r\n") for cell in cells)
        if lines > QUOTED_LINES:
            del rows[place:]
            raise SourceError(f"{path}:{line + 1}: a quote that opens near this line is not closed; close it")
        line += lines


def _filled(rows: list[list[str]]) -> list[list[str]]:
    return [cells for cells in rows if (cells and "$" < cells[0][:1] < "\x7f") or _is_filled(cells)]


def _is_filled(cells: list[str]) -> bool:
    return any(map(str.strip, cells)) and not cells[0].startswith("# ")


def read_cells(path: Path) -> Iterator[list[str]]:
    """The same rows one by one, cells without spaces around."""
    return ([cell.strip() for cell in cells] for rows in read_cell_blocks(path) for cells in rows)


def transposed(rows: Sequence[Sequence[Any]]) -> list[tuple[Any, ...]]:
    """Columns of rows; cells that a row lacks are empty."""
    try:
        return list(zip(*rows, strict=True))
    except ValueError:
        return list(zip_longest(*rows, fillvalue=""))


def read_table(path: Path, needed: Mapping[str, Sequence[str]]) -> Iterator[dict[str, str]]:
    """Rows of a CSV with column names, which are read as lower case with `_` for `-` and spaces.

    `needed`: name in the row -> names that the column may have; it is there, or `SourceError` says what was found.
    """
    for columns in read_columns(path, needed):
        for row in zip(*columns.values(), strict=True):
            yield dict(zip(columns, row, strict=True))


def read_columns(
    path: Path, needed: Mapping[str, Sequence[str]], more: Sequence[str] | None = None
) -> Iterator[dict[str, list[str]]]:
    """The same by columns, thousands of rows at a time: those of `needed`, and of `more` where there are such, None:
    all; "" where a row has no such cell."""
    names: list[str] = []
    for rows in read_cell_blocks(path):
        if not names:
            names = _names([cell.strip() for cell in rows.pop(0)], path, needed)
            chosen = {name: i for i, name in enumerate(names) if more is None or name in needed or name in more}
        if rows:
            columns = transposed(rows)
            empty = [""] * len(rows)
            yield {
                name: list(map(str.strip, columns[place])) if place < len(columns) else empty
                for name, place in chosen.items()
            }
    if not names:
        _names([], path, needed)


def _names(header: list[str], path: Path, needed: Mapping[str, Sequence[str]]) -> list[str]:
    """The names of columns, those that are needed by the name they are asked for by."""
    header = [name.lower().replace("-", "_").replace(" ", "_") for name in header]
    columns = {}
    for name, aliases in needed.items():
        column = next((alias for alias in aliases if alias in header), None)
        if column is None:
            raise SourceError(f"{path}:1: no column {' or '.join(aliases)}; found: {', '.join(header) or 'nothing'}")
        columns[header.index(column)] = name
    return [columns.get(i, name) for i, name in enumerate(header)]


def json_entries(path: Path) -> Iterator[tuple[str, Any]]:
    """Keys and values of a JSON object, each as soon as it is read; also with `#` comments in front.

    Raises:
        SourceError: it is no JSON, or no object.
    """
    decoder, text, place, done = json.JSONDecoder(), "", 0, 0

    def fault(what: str) -> SourceError:
        return SourceError(f"{path}: not JSON ({what} near character {done + place:,})")

    try:
        with open(path, encoding=encoding_of(path)) as file:
            while (line := file.readline()) and (not line.strip() or line.lstrip().startswith("#")):
                pass
            text = line
            if not text.lstrip().startswith("{"):
                raise fault("no object")
            place = text.index("{") + 1
            first = True
            while True:
                try:
                    after = _SPACE.match(text, place).end()  # type: ignore[union-attr]
                    if text[after : after + 1] == "}" and first:
                        break
                    key, after = decoder.raw_decode(text, after)
                    after = _SPACE.match(text, after).end()  # type: ignore[union-attr]
                    if not isinstance(key, str) or text[after : after + 1] not in (":", ""):
                        raise fault("no key")
                    value, after = decoder.raw_decode(text, _SPACE.match(text, after + 1).end())  # type: ignore[union-attr]
                    after = _SPACE.match(text, after).end()  # type: ignore[union-attr]
                    mark = text[after : after + 1]
                    if mark not in (",", "}"):
                        raise ValueError("neither , nor }")
                except ValueError as error:
                    if isinstance(error, SourceError):
                        raise
                    more = file.read(JSON_BLOCK + len(text) - place)
                    if not more:
                        raise fault(getattr(error, "msg", str(error))) from error
                    text, place, done = text[place:] + more, 0, done + place
                    continue
                yield key, value
                first = False
                place = after + 1
                if mark == "}":
                    break
    except UnicodeDecodeError as error:
        raise SourceError(f"{path}: not UTF-8 text ({error}); convert it, or name the annotation file") from error
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror})") from error


def read_json(path: Path) -> Any:
    """Also with `#` comments in front."""
    lines = read_text(path).splitlines(keepends=True)
    while lines and (not lines[0].strip() or lines[0].lstrip().startswith("#")):
        del lines[0]
    try:
        return json.loads("".join(lines))
    except ValueError as error:
        raise SourceError(f"{path}: not JSON ({error})") from error


def files_in(paths: Sequence[Path], *patterns: str) -> list[Path]:
    """The files among `paths`, and those that match a pattern in the folders among them, sorted.

    Raises `SourceError` when a path is not there or a folder holds no such file.
    """
    files: list[Path] = []
    for path in paths:
        if not path.is_dir():
            if not path.exists():
                raise SourceError(f"{path}: no such file or folder")
            files.append(path)
            continue
        matches = sorted({file for pattern in patterns for file in path.glob(pattern) if file.is_file()})
        if not matches:
            raise SourceError(f"{path}: no {' or '.join(patterns)} in this folder; name the annotation files")
        files += matches
    return files


def seconds(text: str) -> float:
    """Seconds, or h:mm:ss in seconds; NaN for what is no time."""
    try:
        return parse_seconds(text)
    except ValueError:
        return math.nan


def stem(name: str) -> str:
    """`folder/file.avi` -> `folder/file`; ids and names may hold other dots."""
    base, dot, suffix = name.rpartition(".")
    return base if (dot + suffix).lower() in VIDEO | AUDIO | IMAGE else name


def last_part(name: str) -> str:
    """`folder/file` -> `file`. Plain text work, as it is done for every clip and pathlib takes ten times as long."""
    return name.rpartition("/")[2]


def caption(text: object) -> str:
    """One line that survives the manifest: a lone `|` would read as the end of a caption, and says nothing.

    Entities of HTML, which titles of web pages hold, become their characters.
    """
    if text is None or text != text:  # null and NaN of JSON
        return ""
    if isinstance(text, str) and text.isascii() and "&" not in text and "|" not in text:
        return " ".join(text.split())  # as most are; the rest takes three times as long
    words = html.unescape(str(text)).encode(errors="ignore").decode().split()  # JSON can hold halves of characters
    return " ".join(word for word in words if word != "|")


def captions(*texts: object) -> tuple[str, ...]:
    """Without empty ones; a list among `texts` is several."""
    single = (one for text in texts for one in (text if isinstance(text, (list, tuple)) else [text]))
    return tuple(cleaned for text in single if (cleaned := caption(text)))


def listed(cell: Cell) -> tuple[str, ...]:
    """The texts of a cell; a list that was written into it as text is taken apart."""
    if not isinstance(cell, str):
        return cell
    if cell.startswith("[") and cell.endswith("]"):
        try:
            value = cell_of(ast.literal_eval(cell))
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return (cell,)
        return value if isinstance(value, tuple) else (cell,)
    return (cell,)


def split_called(name: str) -> str | None:
    """ "train", "val" or "test" when the name of a split or file says so."""
    name = name.lower()
    # "eval" holds "val" but is the test list of AudioSet.
    for word, split in (("train", "train"), ("eval", "test"), ("test", "test"), ("val", "val")):
        if word in name:
            return split
    return None


@lru_cache(maxsize=1024)
def split_of(name: str, path: Path) -> str:
    """The split a row names, or else its file's name, or else "train"."""
    return split_called(name) or name or split_called(path.stem) or "train"


def span_names(video: str, start: float, end: float | None) -> tuple[Name, ...]:
    """Files cut out by downloaders: NAME_START_END in seconds or in milliseconds; none without an end."""
    return () if end is None else ((video, start, end), (video, 1000 * start, 1000 * end))


def start_names(video: str, start: float) -> tuple[Name, ...]:
    """Files cut out by downloaders of clips that all last 10 s: NAME_START."""
    return (video, start), (video, 1000 * start)
