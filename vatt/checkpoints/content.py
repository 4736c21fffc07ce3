"""What the files of a run's clips hold, written down when it begins, so that a resumed run can say that they changed.

The manifest's fingerprint is of names, spans and captions: it stops a run whose table changed. Content is kept beside
it, in OUT/content.json, and stops nothing: somebody may have mended a clip on purpose.

It must not keep anybody waiting: of more than `MOST_FILES` files, that many evenly spread over the manifest are looked
at, and of a file larger than `WHOLE` its size and three pieces. So a corpus made anew is noticed, and any change of a
small corpus; a single file among many thousands, or a changed byte inside of a long video, may not be.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..data.clip import Manifest
from ..data.decoding.version import DECODING, DECODING_CHANGES
from ..data.shards.index import tar_of
from ..runtime.distributed import World
from ..runtime.files import write_atomically
from ..runtime.forms import read_json

log = logging.getLogger(__name__)
MOST_FILES = 1000
WHOLE = 2**20  # bytes of a file that is read whole
PIECE = 2**16  # bytes at the beginning, in the middle and at the end of larger ones
NAME = "content.json"
DECODING_NAME = "decoding.json"


def content_of(path: Path) -> str:
    """Return a digest of the file's size and bytes, those of `WHOLE` and `PIECE`; "" for one that cannot be read."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            digest = hashlib.sha256(str(size).encode())
            if size <= WHOLE:
                digest.update(file.read())
            else:
                for offset in (0, (size - PIECE) // 2, size - PIECE):
                    file.seek(offset)
                    digest.update(file.read(PIECE))
    except (OSError, ValueError):
        return ""
    return digest.hexdigest()[:32]


def contents(manifest: Manifest) -> dict[str, str]:
    """Return `content_of` up to `MOST_FILES` files of a manifest, by the name of the first clip in each."""
    files: dict[Path, str] = {}
    step = max(1, len(manifest) // MOST_FILES)
    for clip in manifest[::step][:MOST_FILES]:
        files.setdefault(tar_of(clip.path) or clip.path, clip.name)
    regular = [(path, name) for path, name in files.items() if path.is_file()]  # a pipe would wait for ever
    with ThreadPoolExecutor(16) as pool:
        digests = dict(zip((name for _, name in regular), pool.map(content_of, [p for p, _ in regular]), strict=True))
    return {name: digests.get(name, "") for name in files.values()}


def note_contents(out: Path, manifest: Manifest, done: int, world: World) -> None:
    """Write OUT/content.json for a run that begins; tell how it compares for one that goes on after `done` steps.

    OUT/decoding.json holds the version of decoding; a run that began with an earlier one says so once.

    All ranks of `world` call it; the first one does it. Raises OSError.
    """

    def note() -> None:
        if not done:
            write_atomically(out / NAME, (json.dumps(contents(manifest)) + "\n").encode())
        elif difference := compare_contents(out, manifest):
            log.info("%s", difference)
        if done and (difference := older_decoding(out)):
            log.info("%s", difference)
        write_atomically(out / DECODING_NAME, (json.dumps({"version": DECODING}) + "\n").encode())

    world.on_main(note)


def older_decoding(out: Path) -> str:
    """Return what a run in `out` that goes on should say of how its clips were decoded when it began, if not as now."""
    try:
        before = read_json(out / DECODING_NAME, {"version": int})["version"]
    except (OSError, ValueError):
        before = 1  # runs of then wrote no record
    if before >= DECODING:
        return ""
    return (
        f"note: {out} was trained so far with clips decoded by an earlier version, {before}; it goes on with version "
        f"{DECODING}, which decodes some of them rightly where {before} did not ({DECODING_CHANGES})"
    )


def compare_contents(out: Path, manifest: Manifest) -> str:
    """Return what a run in `out` that goes on should say of its clips; nothing where they are as they were."""
    try:
        before = read_json(out / NAME)
        changed = [name for name, content in contents(manifest).items() if before.get(name, content) != content]
    except (OSError, ValueError):
        return "content not recorded: whether clips changed since the run began cannot be told"
    if not changed:
        return ""
    return (
        f"warning: the content of {len(changed)} of {len(before)} files looked at changed since the run began, "
        f"the first is {changed[0]}; it goes on, but not as it would have with the files as they were"
    )
