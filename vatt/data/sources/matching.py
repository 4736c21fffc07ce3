"""Clips that an annotation lists, matched with the media files there are; what is missing is counted and told."""

from __future__ import annotations

import os
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from ...runtime.files import write_csv
from ...runtime.progress import progress_bar
from ..clip import CAPTION_SEPARATOR, Clip
from ..decoding.audio import read_sound
from ..decoding.container import BadClip, probe
from ..media_types import AUDIO
from ..media_types import MEDIA_SUFFIXES as VIDEO
from .records import Name, Record, last_part

LABEL_SEPARATOR = CAPTION_SEPARATOR
SECONDS = 30.0  # for a file to open
GLANCES = 8  # files that are opened without being asked, to see whether spans lie inside of them
SLACK = 1.0  # seconds that a span may end after its file: annotations are rounded, and end with the last sound
SOUND_RATE = 8_000  # enough to see that it decodes
STATES = ("found", "missing", "unreadable", "bad rows")
_NUMBERS = re.compile(r"(?P<video>.+?)_(?P<first>\d+(?:\.\d+)?)(?:_(?P<second>\d+(?:\.\d+)?))?")


@dataclass(frozen=True)
class Media:
    """A file below one of the media folders; `key`: its path from there, without suffix."""

    path: Path
    key: str


class MediaIndex:
    """All files of some kinds in some folders, by name. Names are looked up without their folders and suffixes."""

    def __init__(self, folders: Sequence[Path], suffixes: frozenset[str]) -> None:
        self.folders, self.suffixes = folders, suffixes
        self._names: dict[Name, list[Media]] = {}
        self.count = 0
        for folder in folders:
            self._add(Path(os.path.abspath(folder)))

    def find(self, names: Iterable[Name]) -> Media | None:
        """The file of the first name there is; of several files that in the folder the name says, then a video."""
        for name in names:
            files = self._names.get(_last(name))
            if files:
                key = str(name[0])
                return min(files, key=lambda file: (_distance(file.key, key), _kind(file.path), str(file.path)))
        return None

    def examples(self, count: int = 3) -> list[str]:
        """Names of some files that are there."""
        files = (files[0].path.name for name, files in self._names.items() if len(name) == 1)
        return [name for name, _ in zip(files, range(count), strict=False)]

    def _add(self, root: Path) -> None:
        visited: set[tuple[int, int]] = set()  # a link may lead back up
        for folder, folders, names in os.walk(root, followlinks=True):
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in visited:
                folders.clear()
                continue
            visited.add((status.st_dev, status.st_ino))
            folders.sort()
            for name in names:
                if name.startswith(".") or os.path.splitext(name)[1].lower() not in self.suffixes:
                    continue
                path = Path(folder) / name
                self.count += 1
                media = Media(path, path.relative_to(root).with_suffix("").as_posix())
                for key in _names_of(path.stem):
                    self._names.setdefault(key, []).append(media)


@dataclass
class Coverage:
    """`counts`: split -> state -> clips; `lost`: (record, state, reason) of every clip that is not in the manifest."""

    clips: list[Clip] = field(default_factory=list)
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    lost: list[tuple[Record, str, str]] = field(default_factory=list)
    repeated: int = 0
    beyond: int = 0  # clips of those found whose span ends after their file
    looked: int = 0  # files that were opened to know
    cut: int = 0  # of these spans, those that are as long as their file, which is taken whole

    def add(self, record: Record, state: str, reason: str = "") -> None:
        self.counts.setdefault(record.split or "-", Counter())[state] += 1
        if state != "found":
            self.lost.append((record, state, reason))

    @property
    def leaks(self) -> int:
        """Files that have clips in several splits."""
        splits: dict[Path, set[str | None]] = {}
        for clip in self.clips:
            splits.setdefault(clip.path, set()).add(clip.split)
        return sum(len(names) > 1 for names in splits.values())

    def table(self) -> str:
        rows: list[tuple[str, ...]] = [("split", "listed", *STATES)]
        for split, counts in [*sorted(self.counts.items()), ("all", sum(self.counts.values(), Counter()))]:
            rows.append((split, str(counts.total()), *(str(counts[state]) for state in STATES)))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [[cell.rjust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
        return "\n".join("  ".join([row[0].ljust(widths[0]), *line[1:]]) for row, line in zip(rows, lines, strict=True))


def match(
    records: Iterable[Record], media: MediaIndex, trimmed: bool = False, check: int = 0, hold_out: float = 0.0
) -> Coverage:
    """Clips for all records that have a file. A clip's own file is used whole, that of the whole video by its span.

    `trimmed`: files named by the video alone are cut as well. `check`: opens every file, in so many threads.
    `hold_out`: this share of the training videos goes to the test split, always the same ones, with all their clips.
    """
    coverage = Coverage()
    matched: list[tuple[Record, Media, bool]] = []
    distinct: set[Record] = set()
    with progress_bar(0, "listing", "clip") as bar:
        for record in records:
            bar.update()
            if record in distinct:
                coverage.repeated += 1
                continue
            distinct.add(record)
            if record.split == "train" and _share_of(record.video) < hold_out:
                record = replace(record, split="test")
            if record.fault is not None:
                coverage.add(record, "bad rows", record.fault)
            elif record.file is not None:
                matched.append((record, Media(record.file.absolute(), record.video), trimmed))
            elif own := media.find(record.cut):
                matched.append((record, own, True))
            elif whole := media.find([(record.video,)]):
                matched.append((record, whole, trimmed))
            else:
                coverage.add(record, "missing", "no file")
    sound_alone = bool(media.suffixes & AUDIO)
    spans = [file.path for record, file, is_cut in matched if record.end is not None and not is_cut]
    paths = {file.path for _, file, _ in matched} if check else {*spans[:: max(1, len(spans) // GLANCES)][:GLANCES]}
    durations = check_files(paths, check or GLANCES, sound_alone) if paths else {}
    coverage.looked = len(durations)
    for record, file, is_cut in matched:
        start, end = (0.0, None) if is_cut else (record.start, record.end)
        duration = durations.get(file.path, float("inf"))
        if isinstance(duration, str):
            if check:
                coverage.add(record, "unreadable", duration)
                continue
            duration = float("inf")
        late = end is not None and end > duration + SLACK
        coverage.beyond += late
        if check and late and end is not None and abs(duration - (end - start)) < SLACK:
            # It lasts as long as the clip, which it cannot hold as a part: it was cut out already.
            start, end = 0.0, None
            coverage.cut += 1
        if check and start and start >= duration:
            coverage.add(record, "unreadable", f"starts at {start:g} s, the file ends at {duration:.2f} s (--trimmed?)")
        else:
            coverage.add(record, "found")
            label = LABEL_SEPARATOR.join(record.labels) or None
            coverage.clips.append(
                Clip(len(coverage.clips), file.path, file.key, start, end, record.captions, label, record.split)
            )
    return coverage


def check_files(files: Iterable[Path], threads: int, sound_alone: bool) -> Mapping[Path, float | str]:
    """Seconds that each file lasts, or why it cannot be read. `sound_alone`: files without pictures will do."""
    paths = sorted(files)
    check = _check_sound_or_video if sound_alone else _check_video
    with ThreadPoolExecutor(threads) as pool, progress_bar(len(paths), "opening", "file") as bar:
        results: dict[Path, float | str] = {}
        for path, result in zip(paths, pool.map(check, paths), strict=True):
            results[path] = result
            bar.update()
    return results


def write_lost(path: Path, coverage: Coverage) -> None:
    """Writes a CSV of every clip that is not in the manifest, and why; removes an older one if there is none."""
    if not coverage.lost:
        path.unlink(missing_ok=True)
        return
    rows = [
        (
            record.video,
            record.start,
            "" if record.end is None else record.end,
            record.split or "",
            LABEL_SEPARATOR.join(record.labels),
            state,
            reason,
        )
        for record, state, reason in coverage.lost
    ]
    write_csv(path, ("video", "start", "end", "split", "label", "state", "reason"), rows, errors="replace")


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


def _kind(path: Path) -> int:
    suffix = path.suffix.lower()
    return 0 if suffix in VIDEO else 1 if suffix in AUDIO else 2
