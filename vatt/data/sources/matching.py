"""Clips that an annotation lists, matched with the media files there are; what is missing is counted and told."""

from __future__ import annotations

import csv
import os
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from ...runtime.files import replacing
from ...runtime.progress import progress_bar
from ..clip import CAPTION_SEPARATOR
from ..decoding.audio import read_sound
from ..decoding.container import BadClip, probe
from ..manifest import Row
from ..media_types import AUDIO
from ..media_types import MEDIA_SUFFIXES as VIDEO
from .numbers import Numbers, later_of_equals
from .records import Name, Record, last_part

LABEL_SEPARATOR = CAPTION_SEPARATOR
SECONDS = 30.0  # for a file to open
GLANCES = 8  # files that are opened without being asked, to see whether spans lie inside of them
STRIDE = 1000  # records
EARLY = 2**19  # records among which equal ones are noticed at once
SLACK = 1.0  # seconds that a span may end after its file: annotations are rounded, and end with the last sound
SOUND_RATE = 8_000  # enough to see that it decodes
STATES = ("found", "missing", "unreadable", "bad rows")
_NUMBERS = re.compile(r"(?P<video>.+?)_(?P<first>\d+(?:\.\d+)?)(?:_(?P<second>\d+(?:\.\d+)?))?")


class Media(NamedTuple):
    """A file below one of the media folders; `key`: its path from there, without suffix."""

    path: str
    key: str


class MediaIndex:
    """All files of some kinds in some folders, by name. Names are looked up without their folders and suffixes."""

    def __init__(self, folders: Sequence[Path], suffixes: frozenset[str]) -> None:
        self.folders, self.suffixes = folders, suffixes
        # Of each folder: name -> the paths from there, one or several. Text alone, as there may be millions.
        self._names: list[tuple[str, dict[str | Name, str | list[str]]]] = []
        self.count = 0
        self._last: tuple[str | None, Media | None] = None, None
        for folder in folders:
            self._add(os.path.join(os.path.abspath(folder), ""))

    def find(self, names: Iterable[Name]) -> Media | None:
        """The file of the first name there is; of several files that in the folder the name says, then a video."""
        for name in names:
            last = _last(name)
            key = last[0] if len(last) == 1 else last
            files = [
                Media(root + file, os.path.splitext(file)[0])
                for root, known in self._names
                for file in _several(known.get(key, ()))  # type: ignore[arg-type]
            ]
            if len(files) == 1:
                return files[0]
            if files:
                said = str(name[0])
                return min(files, key=lambda file: (_distance(file.key, said), _kind(file.path), file.path))
        return None

    def whole(self, video: str) -> Media | None:
        """The file that is named by the video alone."""
        if self._last[0] != video:
            self._last = video, self.find([(video,)])
        return self._last[1]

    def examples(self, count: int = 3) -> list[str]:
        """Names of some files that are there."""
        files = (
            os.path.basename(next(iter(_several(files))))
            for _, known in self._names
            for name, files in known.items()
            if isinstance(name, str)
        )
        return list(islice(files, count))

    def _add(self, root: str) -> None:
        known: dict[str | Name, str | list[str]] = {}
        self._names.append((root, known))
        visited: set[tuple[int, int]] = set()  # a link may lead back up
        for parent, folders, names in os.walk(root, followlinks=True):
            status = os.stat(parent)
            if (status.st_dev, status.st_ino) in visited:
                folders.clear()
                continue
            visited.add((status.st_dev, status.st_ino))
            folders.sort()
            for name in names:
                stem, suffix = os.path.splitext(name)
                if name.startswith(".") or suffix.lower() not in self.suffixes:
                    continue
                file = os.path.join(parent, name).removeprefix(root)
                self.count += 1
                for key in _names_of(stem):
                    before = known.setdefault(key[0] if len(key) == 1 else key, file)  # type: ignore[arg-type]
                    if before is not file:
                        known[key[0] if len(key) == 1 else key] = [*_several(before), file]  # type: ignore[index]


def _several(files: str | Iterable[str]) -> Iterable[str]:
    return (files,) if isinstance(files, str) else files


class Repeats(Exception):
    """Some records are equal to earlier ones. `rows`: their numbers in the order of the records."""

    def __init__(self, rows: frozenset[int]) -> None:
        self.rows = rows


@dataclass
class Coverage:
    """What became of the records: `counts`: split -> state -> clips."""

    counts: dict[str, Counter[str]] = field(default_factory=dict)
    found: int = 0
    labelled: int = 0
    told: int = 0
    outside: int = 0  # of the clips found, those that lie elsewhere than below the manifest's folder
    repeated: int = 0
    files: dict[str, str | None] = field(default_factory=dict)  # of the clips, with the split of the first
    leaking: set[str] = field(default_factory=set)  # files that have clips in several splits
    beyond: int = 0  # clips of those found whose span ends after their file
    looked: int = 0  # files that were opened to know
    cut: int = 0  # of these spans, those that are as long as their file, which is taken whole

    def add(self, split: str | None, state: str) -> None:
        counts = self.counts.get(split or "-")
        if counts is None:
            counts = self.counts[split or "-"] = Counter()
        counts[state] += 1

    def take(self, file: str, record: Record, label: str | None) -> None:
        self.found += 1
        self.labelled += label is not None
        self.told += bool(record.captions)
        before = self.files.setdefault(file, record.split)
        if before != record.split and not (record.narration and None in (before, record.split)):
            self.leaking.add(file)

    @property
    def leaks(self) -> int:
        """Files that have clips in several splits."""
        return len(self.leaking)

    @property
    def lost(self) -> int:
        """Clips that are not in the manifest."""
        return sum(counts.total() for counts in self.counts.values()) - self.found

    def table(self) -> str:
        rows: list[tuple[str, ...]] = [("split", "listed", *STATES)]
        for split, counts in [*sorted(self.counts.items()), ("all", sum(self.counts.values(), Counter()))]:
            rows.append((split, str(counts.total()), *(str(counts[state]) for state in STATES)))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [[cell.rjust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
        return "\n".join("  ".join([row[0].ljust(widths[0]), *line[1:]]) for row, line in zip(rows, lines, strict=True))


def matched(
    records: Iterable[Record],
    media: MediaIndex,
    coverage: Coverage,
    lose: Callable[[Record, str, str], object],
    *,
    trimmed: bool = False,
    durations: Mapping[str, float | str] | None = None,
    hold_out: float = 0.0,
    repeats: frozenset[int] | None = None,
) -> Iterator[Row]:
    """Rows of a manifest for all records that have a file.

    A clip's own file is used whole, that of the whole video by its span.

    Args:
        coverage: is filled as the clips are taken.
        lose: is told of every record without a usable file: its state, and why.
        trimmed: files named by the video alone are cut as well.
        durations: of all files, where they have been opened: see `files_of`.
        hold_out: this share of the training videos goes to the test split, always the same ones, with all their clips.
        repeats: numbers of records that are left out, as they are equal to earlier ones; None: it is not known.

    Raises:
        Repeats: at the end, when there are some and it was not known.
    """
    numbers, ends, owners = Numbers("q"), Numbers("d"), Numbers("q")
    early, dropped = set[int](), set[int]()
    with progress_bar(0, "listing", "clip") as bar:
        for row, record in enumerate(records):
            if not row % STRIDE:
                bar.update(STRIDE if row else 0)
                for written in (numbers, ends, owners):
                    written.settle()
            if repeats is None:
                number = hash(record)
                numbers.append(number)
                again = number in early
                if again:
                    dropped.add(row)
                elif row < EARLY:
                    early.add(number)
            else:
                again = row in repeats
            if again:
                coverage.repeated += 1
                continue
            if hold_out and record.split == "train" and _share_of(record.video) < hold_out:
                record = record._replace(split="test")
            if (fault := record.fault) is not None:
                coverage.add(record.split, "bad rows")
                lose(record, "bad rows", fault)
                continue
            found = _file_of(record, media, trimmed)
            if found is None:
                coverage.add(record.split, "missing")
                lose(record, "missing", "no file")
                continue
            file, is_cut = found
            start, end = (0.0, None) if is_cut else (record.start, record.end)
            if durations is not None:
                span = _span_in(durations[file.path], start, end, coverage)
                if isinstance(span, str):
                    coverage.add(record.split, "unreadable")
                    lose(record, "unreadable", span)
                    continue
                start, end = span
            elif end is not None:
                ends.append(end)
                owners.append(hash(file.path))
            coverage.add(record.split, "found")
            label = LABEL_SEPARATOR.join(record.labels) or None
            coverage.take(file.path, record, label)
            yield file.path, start, end, record.captions, label, record.split
    if durations is not None:
        coverage.looked = len(durations)
    if repeats is None and len(numbers) > EARLY and (later := later_of_equals(numbers)) != dropped:
        raise Repeats(later)
    if durations is None:
        _glance(ends, owners, media, coverage)


def files_of(records: Iterable[Record], media: MediaIndex, trimmed: bool) -> set[str]:
    """The files of all records that have one."""
    found = (_file_of(record, media, trimmed) for record in records if record.fault is None)
    return {one[0].path for one in found if one is not None}


def _file_of(record: Record, media: MediaIndex, trimmed: bool) -> tuple[Media, bool] | None:
    """The file of a record, and whether it holds just the clip."""
    if record.file is not None:
        return Media(str(record.file.absolute()), record.video), trimmed
    if record.cut and (own := media.find(record.cut)):
        return own, True
    whole = media.whole(record.video)
    return None if whole is None else (whole, trimmed)


def _span_in(
    duration: float | str, start: float, end: float | None, coverage: Coverage
) -> tuple[float, float | None] | str:
    """The span of a clip in a file that lasts so long, or why there is none."""
    if isinstance(duration, str):
        return duration
    late = end is not None and end > duration + SLACK
    coverage.beyond += late
    if late and end is not None and abs(duration - (end - start)) < SLACK:
        # It lasts as long as the clip, which it cannot hold as a part: it was cut out already.
        coverage.cut += 1
        return 0.0, None
    if start and start >= duration:
        return f"starts at {start:g} s, the file ends at {duration:.2f} s (--trimmed?)"
    return start, end


def _glance(ends: Numbers, owners: Numbers, media: MediaIndex, coverage: Coverage) -> None:
    """Open a few files, evenly spaced among those with spans, and count spans that end behind them."""
    step = max(1, len(owners) // GLANCES)
    chosen = {owners[place] for place in range(0, len(owners), step)[:GLANCES]}
    paths = {hash(path): path for path in coverage.files if hash(path) in chosen}
    if not paths:
        return
    durations = check_files(paths.values(), GLANCES, bool(media.suffixes & AUDIO))
    coverage.looked = len(durations)
    for number, path in paths.items():
        duration = durations[path]
        if not isinstance(duration, str):
            for late, of in zip(ends.blocks(), owners.blocks(), strict=True):
                coverage.beyond += int(((of == number) & (late > duration + SLACK)).sum())


def check_files(files: Iterable[str], threads: int, sound_alone: bool) -> Mapping[str, float | str]:
    """Seconds that each file lasts, or why it cannot be read. `sound_alone`: files without pictures will do."""
    paths = sorted(files)
    check = _check_sound_or_video if sound_alone else _check_video
    with ThreadPoolExecutor(threads) as pool, progress_bar(len(paths), "opening", "file") as bar:
        results: dict[str, float | str] = {}
        for path, result in zip(paths, pool.map(check, map(Path, paths)), strict=True):
            results[path] = result
            bar.update()
    return results


class LostFile:
    """A CSV of every clip that is not in the manifest, and why; an older one goes if there is none."""

    def __init__(self, path: Path, held: ExitStack) -> None:
        self._path, self._held = path, held
        self._writer: Any = None

    def add(self, record: Record, state: str, reason: str) -> None:
        if self._writer is None:
            temporary = self._held.enter_context(replacing(self._path))
            opened = open(temporary, "w", encoding="utf-8", errors="replace", newline="")  # noqa: SIM115
            self._writer = csv.writer(self._held.enter_context(opened), lineterminator="\n")
            self._writer.writerow(("video", "start", "end", "split", "label", "state", "reason"))
        video, start, end, labels, _, split, *_ = record
        self._writer.writerow(
            (video, start, "" if end is None else end, split or "", LABEL_SEPARATOR.join(labels), state, reason)
        )


def expected(record: Record) -> list[str]:
    """The names a file of this clip may have, `*` for the suffix."""
    names = ["_".join(part if isinstance(part, str) else f"{part:g}" for part in _last(name)) for name in record.cut]
    return [f"{name}.*" for name in dict.fromkeys([*names, last_part(record.video)])]


def _share_of(video: str) -> float:
    """A number from 0 to 1 that only the name decides."""
    return zlib.crc32(video.encode(errors="surrogatepass")) / 2**32


def _check_video(path: Path) -> float | str:
    try:
        return probe(path, time_limit=SECONDS).duration
    except BadClip as error:
        return error.reason


def _check_sound_or_video(path: Path) -> float | str:
    result = _check_video(path)
    if isinstance(result, str):
        try:
            return len(read_sound(path, SOUND_RATE, SECONDS)) / SOUND_RATE
        except BadClip as error:
            return error.reason if path.suffix.lower() in AUDIO else result
    return result


def _names_of(stem: str) -> Iterable[Name]:
    stem = _composed(stem)
    yield (stem,)
    match = _NUMBERS.fullmatch(stem)
    if match is None:
        return
    video, first, second = match["video"], float(match["first"]), match["second"]
    if second is None:
        yield (video, first)
    else:
        yield (video, first, float(second))
        # An id may end in _ and digits itself.
        yield (f"{video}_{match['first']}", float(second))


def _last(name: Name) -> Name:
    return (_composed(last_part(str(name[0]))), *name[1:])


def _composed(name: str) -> str:
    """One form of the same letters: file systems and annotations write accents as part of a letter or behind it."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def _distance(file: str, key: str) -> int:
    return 0 if file == key else 1 if file.endswith(f"/{key}") else 2


def _kind(path: str) -> int:
    suffix = os.path.splitext(path)[1].lower()
    return 0 if suffix in VIDEO else 1 if suffix in AUDIO else 2
