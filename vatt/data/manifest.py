"""The manifest: the one table every source of clips becomes. A CSV file, or a folder of clips, becomes a `Manifest`.

Columns: `path` (or `file`), optional `start` and `end` in seconds, `caption` and `label` (several separated by ` | `),
and `split`. Other columns are ignored. Paths are relative to the CSV. Whether the files exist or decode is not looked
at here: a corpus of millions is listed in seconds, and what cannot be decoded is met, counted and named by the loader.

A relative path stays below the CSV's folder: one that leads out, by `..`, is an error. An absolute path leads where it
says, and links are followed. VATT_ROOTS names the folders (divided by `:`) that clips may lie in besides that of the
manifest, and is then kept to by every path, absolute ones and what links lead to included: VATT_ROOTS=/data, for `..`
or for a manifest that somebody else wrote; VATT_ROOTS= allows nothing outside; VATT_ROOTS=/ everything.
"""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Iterable
from pathlib import Path

from ..errors import ConfigError
from ..runtime.files import write_atomically
from .clip import CAPTION_SEPARATOR, DEFAULT_SPLIT, MAX_TEXT, Clip, Manifest, ManifestError, split_captions
from .media_types import MEDIA_SUFFIXES

COLUMNS = ("path", "start", "end", "caption", "label", "split")


ROOTS = "VATT_ROOTS"


def read_manifest(source: str | Path) -> Manifest:
    """Reads a CSV, or lists a folder of clips (recursively, sorted; captions one a line in a .txt of the same name).

    Tar shards (a tar, a folder, a pattern or an address of tars) are listed by vatt.data.shards.reading.
    Without a `split` column every clip is in "train"; an empty `split` cell puts its clip in no split.

    Raises:
        ManifestError: nothing there, no `path` column, a bad value, or no clips at all.
    """
    from .shards.reading import absolute_source, is_shards, read_shards  # which builds on this module

    if is_shards(source):
        return _manifest(read_shards(source), Path(absolute_source(str(source))))
    path = Path(os.path.abspath(Path(source).expanduser()))
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise ManifestError(f"{path}: no such file or folder; give a manifest CSV or a folder of clips")
    return _read_csv(path)


def write_manifest(path: str | Path, clips: Iterable[Clip]) -> None:
    """Writes `clips` as a CSV that `read_manifest` gives back (indices are row numbers). Replaces the file atomically.

    Clips below the CSV's folder are written relative to it, so that the folder can move; others by absolute path.
    """
    path = Path(os.path.abspath(path))
    rows = [_row(clip, path) for clip in clips]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode())


def _row(clip: Clip, path: Path) -> list[str]:
    captions = CAPTION_SEPARATOR.join(clip.captions)
    if split_captions(captions) != clip.captions:
        raise ManifestError(f"{path}: {clip.name}: captions that are empty, padded or hold `|`: {clip.captions!r}")
    inside = clip.path.is_relative_to(path.parent)
    name = clip.path.relative_to(path.parent).as_posix() if inside else str(clip.path)
    start = repr(float(clip.start)) if clip.start else ""
    end = "" if clip.end is None else repr(float(clip.end))
    return [name, start, end, captions, clip.label or "", clip.split or ""]


def _manifest(clips: list[Clip], root: Path) -> Manifest:
    return Manifest(tuple(clips), root, tuple(sorted({label for clip in clips for label in clip.labels})))


class _Fence:
    """Where the clips of a manifest may lie. `root`: the folder of the manifest."""

    def __init__(self, root: Path) -> None:
        self.root, self.said = root, os.environ.get(ROOTS)
        self.inside = os.path.join(root, "")
        roots = [root, *(Path(folder) for folder in (self.said or "").split(os.pathsep) if folder)]
        self.roots = [os.path.join(os.path.realpath(folder), "") for folder in roots]

    def check(self, name: str, file: str, where: str) -> None:
        """Raises `ManifestError` for a clip that is elsewhere. `name`: as written, `file`: made absolute."""
        if self.said is not None:
            real = os.path.realpath(file)
            if not any(real.startswith(root) for root in self.roots):
                raise ManifestError(
                    f"{where}: {name} leads to {real}, outside of {self.root} and of what {ROOTS}={self.said} allows; "
                    f"take the row out, or add a folder to {ROOTS} if you trust it"
                )
        elif not os.path.isabs(name) and not file.startswith(self.inside):
            raise ManifestError(
                f"{where}: {name} leads out of {self.root}; write the absolute path if that is meant, or allow the "
                f"folder: {ROOTS}={os.path.dirname(file)}"
            )


def _read_folder(folder: Path) -> Manifest:
    # macOS leaves ._name.mp4 beside name.mp4 on foreign disks; these and other hidden files are not clips.
    files = sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in MEDIA_SUFFIXES and not file.name.startswith(".") and file.is_file()
    )
    if not files:
        known = " ".join(sorted(MEDIA_SUFFIXES))
        raise ManifestError(f"{folder}: no clips in this folder; files with these suffixes are taken: {known}")
    clips: list[Clip] = []
    fence = _Fence(folder)
    for file in files:
        fence.check(file.name, str(file), str(folder))
        text = file.with_suffix(".txt")
        captions: tuple[str, ...] = ()
        if text.is_file():
            if text.stat().st_size > MAX_TEXT:
                raise ManifestError(f"{text}: more than {MAX_TEXT:,} bytes are no captions; cut it or take it away")
            try:
                lines = text.read_text(encoding="utf-8-sig").splitlines()
            except UnicodeDecodeError as error:
                raise ManifestError(f"{text}: captions are not UTF-8 text ({error}); convert the file") from error
            captions = tuple(line.strip() for line in lines if line.strip())
        clips.append(Clip(len(clips), file, file.relative_to(folder).as_posix(), captions=captions))
    return _manifest(clips, folder)


def _read_csv(path: Path) -> Manifest:
    row = 1  # line on which the row being read begins
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            # Not strict, a quote that nothing closes would silently take all lines after it into one cell.
            reader = csv.reader(file, strict=True)
            header = next(reader, None)
            if not header:
                raise ManifestError(
                    f"{path}: the manifest is empty; its first line names the columns, e.g. path,caption"
                )
            columns = [name.strip().lower() for name in header]
            key = next((name for name in ("path", "file") if name in columns), None)
            if key is None:
                raise ManifestError(f"{path}:1: no column `path` (or `file`); found: {', '.join(columns)}")
            double = sorted({name for name in columns if columns.count(name) > 1} & {*COLUMNS, key})
            if double:
                raise ManifestError(f"{path}:1: two columns `{double[0]}`; keep one, or rename the other")
            row = reader.line_num + 1
            clips: list[Clip] = []
            fence = _Fence(path.parent)
            for cells in reader:
                if any(cell.strip() for cell in cells):
                    clips.append(_clip(len(clips), cells, columns, key, path, row, fence))
                row = reader.line_num + 1
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path}: not UTF-8 text ({error}); give a CSV, or a folder of clips") from error
    except csv.Error as error:
        raise ManifestError(
            f"{path}:{row}: not a CSV ({error}, at line {reader.line_num}); close the quotes of this row, and write a "
            'quote inside of them twice: "a ""red"" car"'
        ) from error
    if not clips:
        raise ManifestError(f"{path}: the manifest lists no clips; add one line for each, below the column names")
    return _manifest(clips, path.parent)


def _clip(index: int, cells: list[str], columns: list[str], key: str, path: Path, line: int, fence: _Fence) -> Clip:
    where = f"{path}:{line}"
    if any(cell.strip() for cell in cells[len(columns) :]):
        # Most likely a comma in an unquoted caption: reading on would lose half of the caption.
        raise ManifestError(f"{where}: {len(cells)} cells but {len(columns)} columns; put cells with commas in quotes")
    row = {name: cell.strip() for name, cell in zip(columns, cells, strict=False)}
    name = row.get(key, "")
    if not name:
        raise ManifestError(f"{where}: no {key}; every line names a file")
    start = _seconds(row.get("start", ""), "start", where)
    end = _seconds(row.get("end", ""), "end", where)
    if end is not None and end <= (start or 0.0):
        raise ManifestError(
            f"{where}: end {end:g} s is not after start {start or 0.0:g} s; leave end empty for the rest"
        )
    captions = split_captions(row.get("caption", ""))
    split = (row.get("split") or None) if "split" in columns else DEFAULT_SPLIT
    file = os.path.abspath(path.parent / name)
    fence.check(name, file, where)
    return Clip(index, Path(file), name, start or 0.0, end, captions, row.get("label") or None, split)


def _seconds(text: str, column: str, where: str) -> float | None:
    if not text:
        return None
    try:
        value = float(text)
    except ValueError as error:
        raise ManifestError(f"{where}: {column} is not a number of seconds: {text!r}") from error
    if not math.isfinite(value) or value < 0:
        raise ManifestError(f"{where}: {column} is not a time in the file: {text!r}; it counts from 0 seconds")
    return value


def choose_clips(source: str, split: str | None) -> Manifest:
    """All rows of a manifest or folder, or those of one split."""
    manifest = read_manifest(source)
    clips = manifest if split is None else manifest.split(split)
    if not len(clips):
        raise ConfigError(f"{source} has no rows of split {split!r}; it has: {', '.join(manifest.splits) or 'none'}")
    return clips
