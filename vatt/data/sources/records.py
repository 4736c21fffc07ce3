"""What all native annotation formats have in common: the clips they list, and how their files are read.

A format is a function from annotation files to `Record`s (classification.py, captions.py); it
looks for no media. Byte order marks, CRLF, empty lines, spaces behind commas and comments in front are dropped here.
"""

from __future__ import annotations

import csv
import html
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import UsageError
from ..media_types import AUDIO, IMAGE
from ..media_types import MEDIA_SUFFIXES as VIDEO
from ..tables import DELIMITERS, encoding_of, parse_seconds

CLIP_SECONDS = 3.2  # what the model sees at once: 32 frames at 10 a second
QUOTED_LINES = 20  # a cell over more lines than this is a quote that nobody closed

Name = tuple[str | float, ...]  # ("stem",), or ("stem", start) and ("stem", start, end) for any zeros in front


class SourceError(UsageError, ValueError):
    """Annotations that cannot be read. The message names the file, the line and the way out."""


@dataclass(frozen=True)
class Record:
    """One clip as the annotation lists it.

    `video`: name of the whole source file without suffix, perhaps behind folders; clips of one video share it.
    `start`, `end`: seconds in that file; `end` None is its end. A time that could not be read is NaN.
    `cut`: names of files that hold just this clip. `file`: the file of `video`, where that is known from the start.
    """

    video: str
    start: float = 0.0
    end: float | None = None
    labels: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()
    split: str | None = "train"
    cut: tuple[Name, ...] = ()
    file: Path | None = None

    @property
    def fault(self) -> str | None:
        """Why no file could serve this row, or None."""
        if not last_part(self.video):
            return "names no file"
        if not _is_text(self.video):
            return "its name is not UTF-8: no manifest can hold it"
        if not math.isfinite(self.start) or self.start < 0:
            return "its start is no time"
        if self.end is not None and not (math.isfinite(self.end) and self.end > self.start):
            return f"its end {self.end:g} is not after its start {self.start:g}"
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


def read_cells(path: Path) -> Iterator[list[str]]:
    """Rows of a CSV without column names, empty ones and `#` comments left out; cells without spaces around."""
    try:
        with open(path, encoding=encoding_of(path), newline="") as file:
            # Tabs or semicolons divide a table whose first line has more of them than commas.
            head = file.readline()
            file.seek(0)
            mark = max(DELIMITERS, key=head.count)
            reader = csv.reader(file, skipinitialspace=True, delimiter=mark)
            line = 0
            for cells in reader:
                if reader.line_num - line > QUOTED_LINES:
                    raise SourceError(f"{path}:{line + 1}: a quote that opens near this line is not closed; close it")
                line = reader.line_num
                if any(cell.strip() for cell in cells) and not cells[0].startswith("# "):
                    yield [cell.strip() for cell in cells]
    except UnicodeDecodeError as error:
        raise SourceError(f"{path}: not UTF-8 text ({error}); convert it, or name the annotation file") from error
    except csv.Error as error:
        raise SourceError(f"{path}:{reader.line_num}: not a CSV ({error})") from error
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror})") from error


def read_table(path: Path, needed: Mapping[str, Sequence[str]]) -> Iterator[dict[str, str]]:
    """Rows of a CSV with column names, which are read as lower case with `_` for `-` and spaces.

    `needed`: name in the row -> names that the column may have; it is there, or `SourceError` says what was found.
    """
    cells = read_cells(path)
    header = [name.lower().replace("-", "_").replace(" ", "_") for name in next(cells, [])]
    columns = {}
    for name, aliases in needed.items():
        column = next((alias for alias in aliases if alias in header), None)
        if column is None:
            raise SourceError(f"{path}:1: no column {' or '.join(aliases)}; found: {', '.join(header) or 'nothing'}")
        columns[header.index(column)] = name
    names = [columns.get(i, name) for i, name in enumerate(header)]
    for row in cells:
        yield dict.fromkeys(names, "") | dict(zip(names, row, strict=False))


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
    words = html.unescape(str(text)).encode(errors="ignore").decode().split()  # JSON can hold halves of characters
    return " ".join(word for word in words if word != "|")


def captions(*texts: object) -> tuple[str, ...]:
    """Without empty ones; a list among `texts` is several."""
    single = (one for text in texts for one in (text if isinstance(text, (list, tuple)) else [text]))
    return tuple(cleaned for text in single if (cleaned := caption(text)))


def split_called(name: str) -> str | None:
    """ "train", "val" or "test" when the name of a split or file says so."""
    name = name.lower()
    # "eval" holds "val" but is the test list of AudioSet.
    for word, split in (("train", "train"), ("eval", "test"), ("test", "test"), ("val", "val")):
        if word in name:
            return split
    return None


def split_of(name: str, path: Path) -> str:
    """The split a row names, or else its file's name, or else "train"."""
    return split_called(name) or name or split_called(path.stem) or "train"


def span_names(video: str, start: float, end: float) -> tuple[Name, ...]:
    """Files cut out by downloaders: NAME_START_END in seconds or in milliseconds."""
    return (video, start, end), (video, 1000 * start, 1000 * end)


def start_names(video: str, start: float) -> tuple[Name, ...]:
    """Files cut out by downloaders of clips that all last 10 s: NAME_START."""
    return (video, start), (video, 1000 * start)
