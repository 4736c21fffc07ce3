"""Clips that an annotation lists, matched with the media files there are; what is missing is counted and told."""

from __future__ import annotations

import csv
import math
import os
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import compress, islice
from pathlib import Path
from typing import Any, cast

import numpy as np

from ...runtime.files import replacing
from ...runtime.progress import progress_bar
from ..clip import CAPTION_SEPARATOR
from ..decoding.audio import read_sound
from ..decoding.container import BadClip, probe
from ..manifest import Row
from ..media_types import AUDIO
from ..media_types import MEDIA_SUFFIXES as VIDEO
from .blocks import Block, Cut
from .numbers import Numbers, later_of_equals
from .records import Name, Record, last_part

LABEL_SEPARATOR = CAPTION_SEPARATOR
SECONDS = 30.0  # for a file to open
GLANCES = 8  # files that are opened without being asked, to see whether spans lie inside of them
EARLY = 2**19  # records among which equal ones are noticed at once
SLACK = 1.0  # seconds that a span may end after its file: annotations are rounded, and end with the last sound
SOUND_RATE = 8_000  # enough to see that it decodes
STATES = ("found", "missing", "unreadable", "bad rows")
_NUMBERS = re.compile(r"(?P<video>.+?)_(?P<first>\d+(?:\.\d+)?)(?:_(?P<second>\d+(?:\.\d+)?))?")


class MediaIndex:
    """All files of some kinds in some folders, by name. Names are looked up without their folders and suffixes."""

    def __init__(self, folders: Sequence[Path], suffixes: frozenset[str]) -> None:
        self.folders, self.suffixes = folders, suffixes
        # Of each folder: name -> the paths from there, one or several. Text alone, as there may be millions.
        self._names: list[tuple[str, dict[str | Name, str | tuple[str, ...]]]] = []
        self._cut: set[str] = set()  # names of videos of which files with times behind them are there
        self.count = 0
        for folder in folders:
            self._add(os.path.join(os.path.abspath(folder), ""))

    def find(self, names: Iterable[Name]) -> str | None:
        """The file of the first name there is; of several files that in the folder the name says, then a video."""
        for name in names:
            last = _last(name)
            key = last[0] if len(last) == 1 else last
            files = [
                (root, file)
                for root, known in self._names
                if (there := known.get(key)) is not None  # type: ignore[arg-type]
                for file in _several(there)
            ]
            if len(files) == 1:
                return "".join(files[0])
            if files:
                said = str(name[0])
                root, file = min(files, key=lambda one: (_distance(one[1], said), _kind(one[1]), "".join(one)))
                return root + file
        return None

    def of_block(self, block: Block) -> tuple[list[str | None], list[bool]]:
        """The file of each clip, and whether it is the clip's own, rather than that of its video."""
        whole = "\n".join(block.video)
        plain = whole.isascii() and "/" not in whole
        if plain and len(self._names) == 1:
            root, known = self._names[0]
            found = list(map(known.get, block.video))
            paths = {
                file: root + file if isinstance(file, str) else self.find([(video,)]) if file else None
                for file, video in dict(zip(found, block.video, strict=True)).items()
            }
            files = list(map(paths.get, found))
        else:
            of_video = {video: self.find([(video,)]) for video in dict.fromkeys(block.video)}
            files = [of_video[video] for video in block.video]
        own = [False] * len(files)
        for row, names in self._perhaps_cut(block, plain):
            if file := self.find(names):
                files[row], own[row] = file, True
        for row, given in enumerate(block.file or ()):
            if given is not None:
                files[row], own[row] = str(given.absolute()), False
        return files, own

    def _perhaps_cut(self, block: Block, plain: bool) -> Iterator[tuple[int, tuple[Name, ...]]]:
        """Rows that may have a file of their own, and its names."""
        if not isinstance(block.cut, Cut):
            yield from enumerate(block.cut)
            return
        mark, names = block.cut.mark, block.video if plain else [_last((video,))[0] for video in block.video]
        rows = [row for row, name in enumerate(names) if name in self._cut] if self._cut else []
        if mark:
            marked = [any(f"{mark}{name}" in known for _, known in self._names) for name in names]
            rows = sorted({*rows, *compress(range(len(names)), marked)})
        for row in rows:
            yield row, block.cut.names(block.video[row], block.start[row], block.end[row])

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
        known: dict[str | Name, str | tuple[str, ...]] = {}
        self._names.append((root, known))
        visited: set[tuple[int, int]] = set()  # a link may lead back up
        for parent, folders, names in os.walk(root, followlinks=True):
            status = os.stat(parent)
            if (status.st_dev, status.st_ino) in visited:
                folders.clear()
                continue
            visited.add((status.st_dev, status.st_ino))
            folders.sort()
            inside = os.path.join(parent, "").removeprefix(root)
            for name in names:
                stem, dot, suffix = name.rpartition(".")
                if name.startswith(".") or (dot + suffix).lower() not in self.suffixes:
                    continue
                file = inside + name
                self.count += 1
                for key in _names_of(stem):
                    if len(key) > 1:
                        self._cut.add(str(key[0]))
                    before = known.setdefault(key[0] if len(key) == 1 else key, file)  # type: ignore[arg-type]
                    if before is not file:
                        known[key[0] if len(key) == 1 else key] = (*_several(before), file)  # type: ignore[index]


def _several(files: str | Iterable[str]) -> Iterable[str]:
    return (files,) if isinstance(files, str) else files


class Repeats(Exception):
    """Some records are equal to earlier ones. `rows`: their numbers in the order of the records."""

    def __init__(self, rows: frozenset[int]) -> None:
        self.rows = rows


@dataclass
class Coverage:
    """What became of the records: `counts`: split -> state -> clips. `inside`: the manifest's folder, with a `/`."""

    inside: str = ""
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

    def add(self, splits: Iterable[str | None], state: str) -> None:
        for split, clips in Counter(splits).items():
            self.counts.setdefault(split or "-", Counter())[state] += clips

    def take(self, files: Sequence[str], block: Block, labels: Sequence[str | None]) -> None:
        self.add(block.split, "found")
        self.found += len(files)
        self.labelled += len(labels) - labels.count(None)
        self.told += sum(map(bool, block.captions))
        for (file, split), clips in Counter(zip(files, block.split, strict=True)).items():
            self.outside += 0 if file.startswith(self.inside) else clips
            before = self.files.setdefault(file, split)
            if before != split and not (block.narration and None in (before, split)):
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
    blocks: Iterable[Block],
    media: MediaIndex,
    coverage: Coverage,
    lose: Callable[[Block, Sequence[tuple[str, str]]], object],
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
        lose: is told of records without a usable file: the state of each, and why.
        trimmed: files named by the video alone are cut as well.
        durations: of all files, where they have been opened: see `files_of`.
        hold_out: this share of the training videos goes to the test split, always the same ones, with all their clips.
        repeats: numbers of records that are left out, as they are equal to earlier ones; None: it is not known.

    Raises:
        Repeats: at the end, when there are some and it was not known.
    """
    numbers, ends, owners = Numbers("q"), Numbers("d"), Numbers("q")
    early, dropped, row = set[int](), set[int](), 0
    with progress_bar(0, "listing", "clip") as bar:
        for block in blocks:
            count = len(block.video)
            if repeats is None:
                hashes = list(map(hash, block.rows()))
                numbers.extend(hashes)
                again = _again(hashes, early)
                dropped.update(row + place for place in again)
                if row < EARLY:
                    early.update(hashes)
            else:
                again = {place for place in range(count) if row + place in repeats}
            row += count
            bar.update(count)
            if again:
                coverage.repeated += len(again)
                block = block.of([place not in again for place in range(count)])
            if hold_out:
                block = block._replace(
                    split=[
                        "test" if split == "train" and _share_of(video) < hold_out else split
                        for video, split in zip(block.video, block.split, strict=True)
                    ]
                )
            reasons: dict[int, tuple[str, str]] = {place: ("bad rows", fault) for place, fault in faults(block)}
            files, own = media.of_block(block)
            starts, stops = list(block.start), list(block.end)
            for place in range(len(files)) if trimmed else compress(range(len(files)), own):
                starts[place], stops[place] = 0.0, None
            missing = [place for place, file in enumerate(files) if file is None] if None in files else []
            reasons = dict.fromkeys(missing, ("missing", "no file")) | reasons
            if durations is not None:
                for place, file in enumerate(files):
                    if file is not None and place not in reasons:
                        span = _span_in(durations[file], starts[place], stops[place], coverage)
                        if isinstance(span, str):
                            reasons[place] = "unreadable", span
                        else:
                            starts[place], stops[place] = span
            if reasons:
                lost = [reasons[place] for place in sorted(reasons)]
                wanted = [place not in reasons for place in range(len(files))]
                without = block.of([not found for found in wanted])
                lose(without, lost)
                for state in {state for state, _ in lost}:
                    coverage.add(compress(without.split, [one == state for one, _ in lost]), state)
                block = block.of(wanted)
                files = list(compress(files, wanted))
                starts, stops = list(compress(starts, wanted)), list(compress(stops, wanted))
            taken = cast(list[str], files)
            if durations is None:
                spans = [(stop, hash(file)) for stop, file in zip(stops, taken, strict=True) if stop is not None]
                ends.extend(stop for stop, _ in spans)
                owners.extend(owner for _, owner in spans)
            labels = [LABEL_SEPARATOR.join(named) or None for named in block.labels]
            coverage.take(taken, block, labels)
            yield from zip(taken, starts, stops, block.captions, labels, block.split, strict=True)
    if durations is not None:
        coverage.looked = len(durations)
    if repeats is None and len(numbers) > EARLY and (later := later_of_equals(numbers)) != dropped:
        raise Repeats(later)
    if durations is None:
        _glance(ends, owners, media, coverage)


def _again(hashes: Sequence[int], early: set[int]) -> set[int]:
    """Which of them stand among the earlier ones, or before among them."""
    new = set(hashes)
    if len(new) == len(hashes) and early.isdisjoint(new):
        return set()
    found, seen = set[int](), set[int]()
    for place, number in enumerate(hashes):
        if number in early or number in seen:
            found.add(place)
        seen.add(number)
    return found


def faults(block: Block) -> Iterator[tuple[int, str]]:
    """Places of records that no file could serve, and why."""
    start = np.array(block.start, float)
    end = np.array([math.nan if end is None else end for end in block.end] if None in block.end else block.end, float)
    names = "\n".join(block.video)
    if names.isascii() and "/" not in names and "" not in block.video:
        fine = (start >= 0) & (start < math.inf) & (start < end) & (end < math.inf)
        if None in block.end:
            fine |= (start >= 0) & (start < math.inf) & np.array([end is None for end in block.end])
        places = np.flatnonzero(~fine).tolist()
    else:
        places = list(range(len(start)))
    for place in places:
        fault = Record(block.video[place], block.start[place], block.end[place], narration=block.narration).fault
        if fault is not None:
            yield place, fault


def files_of(blocks: Iterable[Block], media: MediaIndex) -> set[str]:
    """The files of all records that have one."""
    found: set[str] = set()
    for block in blocks:
        wrong = {place for place, _ in faults(block)}
        files, _ = media.of_block(block)
        found.update(file for place, file in enumerate(files) if file is not None and place not in wrong)
    return found


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

    def add(self, block: Block, reasons: Sequence[tuple[str, str]]) -> None:
        """`reasons`: the state of each clip, and why."""
        if self._writer is None:
            temporary = self._held.enter_context(replacing(self._path))
            opened = open(temporary, "w", encoding="utf-8", errors="replace", newline="")  # noqa: SIM115
            self._writer = csv.writer(self._held.enter_context(opened), lineterminator="\n")
            self._writer.writerow(("video", "start", "end", "split", "label", "state", "reason"))
        labels = map(LABEL_SEPARATOR.join, block.labels)
        # The writer writes None as nothing.
        columns = zip(
            block.video, block.start, block.end, block.split, labels, *zip(*reasons, strict=True), strict=True
        )
        self._writer.writerows(columns)


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
    match = _NUMBERS.fullmatch(stem) if stem[-1:].isdigit() else None
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


def _distance(path: str, key: str) -> int:
    file = os.path.splitext(path)[0]
    return 0 if file == key else 1 if file.endswith(f"/{key}") else 2


def _kind(path: str) -> int:
    suffix = os.path.splitext(path)[1].lower()
    return 0 if suffix in VIDEO else 1 if suffix in AUDIO else 2
