"""Writing tar shards."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...runtime.files import new_file
from ...runtime.progress import progress_bar
from ..clip import Clip, ManifestError
from .index import MAX_CLIP, open_clip, tars_in


def write_shards(clips: Sequence[Clip], folder: Path, per_shard: int) -> list[Path]:
    """Write tars of `per_shard` clips each, 000000.tar and so on, in the order given; replaces those of before.

    The bytes depend on the clips alone. Raises OSError, and `ManifestError` for a clip of more than `MAX_CLIP` bytes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    with progress_bar(len(clips), "packing", "clip") as bar:
        for first in range(0, len(clips), per_shard):
            written.append(folder / f"{len(written):06d}.tar")
            with (
                new_file(written[-1]) as file,
                tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar,
            ):
                for number, clip in enumerate(clips[first : first + per_shard], first):
                    _add(tar, f"{number:08d}{clip.path.suffix.lower()}", _bytes_of(clip))
                    _add(tar, f"{number:08d}.json", _text_of(clip))
                    bar.update()
    for old in set(tars_in(folder)) - set(written):
        old.unlink()
    return written


def _bytes_of(clip: Clip) -> bytes:
    source = open_clip(clip.path)
    data = source.read_bytes() if isinstance(source, Path) else source.getvalue()
    if len(data) > MAX_CLIP:
        raise ManifestError(f"{clip.path}: {len(data):,} bytes are too many for a shard; cut the clip with start, end")
    return data


def _text_of(clip: Clip) -> bytes:
    description: dict[str, Any] = {"captions": list(clip.captions), "label": clip.label, "split": clip.split}
    if clip.start or clip.end is not None:
        description |= {"start": clip.start, "end": clip.end}
    return json.dumps(description, ensure_ascii=False).encode()


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), 0o644
    archive.addfile(entry, io.BytesIO(data))
