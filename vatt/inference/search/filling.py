"""What `vatt embed --out NAME.lance` does: which files an archive lacks, and their moments put into it file by file."""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ...checkpoints.content import content_of
from ...data.clip import Clip, Manifest
from ...data.shards.index import tar_of
from ..features_file import rows_of
from ..npz import Arrays
from .archive import SPACES, Archive, KnownFile, gone

ROWS, SECONDS = 1000, 60.0  # of finished files: so much is put at once; a crash loses what was not


class Lack(NamedTuple):
    """What there is to do: the rows of new and changed files, what those files are, and what is left alone."""

    clips: Manifest
    files: dict[str, KnownFile]
    changed: int  # of `files`
    unchanged: int
    vanished: list[str]  # listed or not, in the archive and not on the disk
    unnameable: list[str]


def compare(clips: Manifest, known: Mapping[str, KnownFile]) -> Lack:
    """Compare the files of a manifest with those of an archive.

    A file is as it was when its size and either its time or its content are (see `content_of`), and its rows in the
    manifest. One that is in the archive and not on the disk is never read again: only `--sync` removes its rows.
    """
    rows: dict[str, list[Clip]] = {}
    for clip in clips.one_clip_a_span():
        rows.setdefault(str(clip.path), []).append(clip)
    files: dict[str, KnownFile] = {}
    unnameable = [path for path in rows if not _is_text(path)]
    for path in rows.keys() - set(unnameable):
        now = _stamp(path, rows[path], known.get(path))
        if now != known.get(path) and not (path in known and now.size < 0):
            files[path] = now
    wanted = tuple(clip for path, own in rows.items() if path in files for clip in own)
    vanished = [path for path in known if gone(path)]
    unchanged = len((rows.keys() & known.keys()) - files.keys() - set(vanished))
    manifest = replace(clips, clips=tuple(replace(clip, index=number) for number, clip in enumerate(wanted)))
    return Lack(manifest, files, len(files.keys() & known.keys()), unchanged, vanished, unnameable)


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _stamp(path: str, rows: list[Clip], before: KnownFile | None) -> KnownFile:
    """What the file is now; `before` where nothing says that it changed. Size -1 where it is not there."""
    told = [(clip.start, clip.end, clip.captions, clip.label, clip.split) for clip in rows]
    digest = hashlib.sha256(repr(told).encode(errors="surrogateescape")).hexdigest()[:32]
    place = tar_of(Path(path)) or Path(path)
    try:
        status = os.stat(place)
    except OSError:
        return KnownFile(-1, 0, "", digest)
    same = before is not None and before.rows == digest and before.size == status.st_size
    if before is not None and same and (before.modified == status.st_mtime_ns or before.content == content_of(place)):
        return before
    return KnownFile(status.st_size, status.st_mtime_ns, content_of(place) if place.is_file() else "", digest)


def removable(vanished: list[str], root: Path) -> tuple[list[str], list[str]]:
    """Return the vanished files whose rows may go, and those of folders that are not there.

    A disk that is not mounted looks like files that were deleted. Below `root`, which holds clips, all may go.
    """
    away = [path for path in vanished if root not in Path(path).parents and not _folder(path).is_dir()]
    return sorted(set(vanished) - set(away)), away


def _folder(path: str) -> Path:
    return next((Path(path[: path.index(".tar/")]).parent for _ in range(".tar/" in path)), Path(path).parent)


class Filling:
    """Takes shards of embedded clips in their order, and puts files whose clips have all come into an archive."""

    def __init__(self, archive: Archive, clips: Manifest, files: Mapping[str, KnownFile]) -> None:
        self.archive, self.clips, self.files = archive, clips, files
        self.left = Counter(str(clip.path) for clip in clips)
        self.waiting: dict[str, list[dict[str, Any]]] = {}
        self.since = time.monotonic()

    def __call__(self, arrays: Arrays) -> None:
        for row in rows_of(arrays):
            clip = self.clips[row["row"]]
            path = str(clip.path)
            told = {"path": path, "start": clip.start, "end": clip.end, "split": clip.split, "label": clip.label}
            told |= {"captions": list(clip.captions), "reason": row.get("reason")}
            self.waiting.setdefault(path, []).append(told | {name: row.get(name) for name in SPACES})
            self.left[path] -= 1
        finished = [path for path in self.waiting if not self.left[path]]
        rows = sum(len(self.waiting[path]) for path in finished)
        if finished and (rows >= ROWS or time.monotonic() - self.since >= SECONDS or not +self.left):
            taken = {path: self.waiting.pop(path) for path in finished}
            self.archive.put([row for own in taken.values() for row in own], {path: self.files[path] for path in taken})
            self.since = time.monotonic()
