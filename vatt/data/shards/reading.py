"""Clips in tar files, in the layout of the `webdataset` library: KEY.mp4 with KEY.json, or KEY.txt, beside it.

A clip in `shards/000.tar` has the path `shards/000.tar/KEY.mp4`. A tar's headers are read once in a process; its clips
are then byte ranges that are read on their own, in any order. So shards are shuffled, sharded over ranks and resumed
exactly as files are. Remote tars are downloaded whole, once, to a folder below the cache.

Nothing is ever unpacked. Tars with absolute names, `..`, links, devices, sparse files or sizes that cannot be true are
refused, as are damaged and cut-off ones: half a corpus would train without a word.

KEY.json: `captions` (list) or `caption`, `label` or `labels`, `split`, `start`, `end`; other entries are ignored.
KEY.txt: a caption a line. Key and suffix are divided by the first dot of the name, as the library does.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...runtime.progress import progress_bar
from ..clip import CAPTION_SEPARATOR, DEFAULT_SPLIT, MAX_TEXT, Clip, ManifestError
from ..media_types import AUDIO, IMAGE
from ..media_types import MEDIA_SUFFIXES as VIDEO
from .download import REMOTE, fetch, import_webdataset
from .index import Index, index_of, read_range, tars_in


def is_shards(source: str | Path) -> bool:
    """Whether `source` names tars: a tar, a pattern of tars, an address, or a folder with tars and no clips in it."""
    text = str(source)
    if REMOTE.match(text) or text.endswith(".tar"):
        return True
    folder = Path(text).expanduser()
    if not folder.is_dir() or not tars_in(folder):
        return False
    return not any(file.suffix.lower() in VIDEO for file in folder.iterdir())


def absolute_source(source: str) -> str:
    """`source` as it can be named from any folder; an address is left as it is."""
    return source if REMOTE.match(source) else os.path.abspath(os.path.expanduser(source))


def read_shards(source: str | Path) -> list[Clip]:
    """All clips of a tar, of a folder of tars (sorted), or of a pattern such as `shards/{000..010}.tar`.

    Addresses (https://..., with braces too) are downloaded first; for pipe:COMMAND and other schemes see `fetch`.
    Patterns and addresses need the `webdataset` library.

    Raises:
        ManifestError: a tar that is missing, damaged or refused; no clips; captions that are no text.
        ConfigError: the library is needed and not installed.
    """
    clips: list[Clip] = []
    tars = _find(str(source))
    with progress_bar(len(tars), "listing", "shard") as bar:
        for tar in tars:
            clips.extend(_clips(tar, len(clips)))
            bar.update()
    if not clips:
        known = " ".join(sorted(VIDEO | AUDIO | IMAGE))
        raise ManifestError(f"{source}: no clips in {len(tars)} tars; entries with these suffixes are taken: {known}")
    return clips


def _find(source: str) -> list[Path]:
    """The local tars that a source names."""
    if not REMOTE.match(source):
        path = Path(absolute_source(source))
        if path.is_dir():
            return tars_in(path)
        if path.is_file():
            return [path]
        if "{" not in source:
            raise ManifestError(f"{path}: no such tar; a pattern of several is written with braces: {{000..010}}.tar")
    urls = import_webdataset().shardlists.expand_urls(source)
    if REMOTE.match(source):
        return [fetch(url) for url in urls]
    tars = [Path(absolute_source(url)) for url in urls]
    absent = [str(tar) for tar in tars if not tar.is_file()]
    if absent:
        raise ManifestError(f"{source}: {len(absent)} of {len(tars)} tars are not there, the first one {absent[0]}")
    return tars


def _clips(tar: Path, first: int) -> Iterator[Clip]:
    """The clips of one tar, in its order, numbered from `first` on."""
    status = tar.stat()
    index = index_of(tar, status.st_size, status.st_mtime_ns)
    samples: dict[str, dict[str, str]] = {}
    for name in index:
        folder, _, last = name.rpartition("/")
        stem, _, suffix = last.partition(".")
        if stem:  # names that begin with a dot are no clips
            samples.setdefault(f"{folder}/{stem}", {})[f".{suffix.lower()}"] = name
    for files in samples.values():
        media = next((files[suffix] for kind in (VIDEO, AUDIO, IMAGE) for suffix in files if suffix in kind), None)
        if media is not None:
            said = _said(tar, index, files)
            yield Clip(first, tar / media, f"{tar.name}/{media}", **said)
            first += 1


def _said(tar: Path, index: Index, files: dict[str, str]) -> dict[str, Any]:
    """The fields of a clip that its .json and .txt hold."""
    said: Any = {}
    if ".json" in files:
        try:
            said = json.loads(_text(tar, files[".json"], index))
        except (ValueError, RecursionError) as error:
            raise ManifestError(f"{tar}: {files['.json']} is not JSON ({str(error)[:200]}); pack it anew") from error
        if not isinstance(said, dict):
            raise ManifestError(f"{tar}: {files['.json']} is no JSON object; pack it anew")
    captions = _texts(said.get("captions") or said.get("caption"))
    if not captions and ".txt" in files:
        captions = _texts(_text(tar, files[".txt"], index).splitlines())
    split = said.get("split", DEFAULT_SPLIT)
    return {
        "start": _seconds(said.get("start"), f"{tar}: {files['.json']}: start") or 0.0 if said else 0.0,
        "end": _seconds(said.get("end"), f"{tar}: {files['.json']}: end") if said else None,
        "captions": captions,
        "label": CAPTION_SEPARATOR.join(_texts(said.get("labels") or said.get("label"))) or None,
        "split": None if split is None else str(split),
    }


def _text(tar: Path, name: str, index: Index) -> str:
    offset, size = index[name]
    if size > MAX_TEXT:
        raise ManifestError(f"{tar}: {name} has {size:,} bytes, too many for a text; pack it anew")
    try:
        return read_range(tar, offset, size).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ManifestError(f"{tar}: {name} is not UTF-8 text ({error}); pack it anew") from error


def _texts(value: Any) -> tuple[str, ...]:
    """A text, a number or a list of them, as a cell of a manifest would hold it."""
    values = value if isinstance(value, list) else [] if value is None else [value]
    parts = CAPTION_SEPARATOR.join(" ".join(str(one).split()) for one in values).split(CAPTION_SEPARATOR)
    return tuple(part.strip() for part in parts if part.strip())


def _seconds(value: Any, where: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not (math.isfinite(value) and value >= 0):
        raise ManifestError(f"{where} is no time: {value!r}")
    return float(value)
