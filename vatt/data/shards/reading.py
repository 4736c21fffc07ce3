"""Clips in tar files, in the layout of the `webdataset` library: KEY.mp4 with KEY.json, or KEY.txt, beside it.

A clip in `shards/000.tar` has the path `shards/000.tar/KEY.mp4`. A tar's headers are read once in a process; its clips
are then byte ranges that are read on their own, in any order. So shards are shuffled, sharded over ranks and resumed
exactly as files are. Remote tars are downloaded whole, once, to a folder below the cache.

Nothing is ever unpacked. Tars with absolute names, `..`, links, devices, sparse files or sizes that cannot be true are
refused, as are damaged and cut-off ones: half a corpus would train without a word.

KEY.json or KEY.info.json: `captions` (list) or `caption`, `label` or `labels`, `split`, `start`, `end`. KEY.txt: a
caption a line; KEY.cls: a label a line. KEY may have dots; where it has, a text of the key that ends at the first dot,
as the library divides names, serves too. What else is in a tar is counted and told.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...config.data import DATA_VERSION
from ...runtime.progress import progress_bar
from ..clip import CAPTION_SEPARATOR, DEFAULT_SPLIT, MAX_TEXT, Clip, ManifestError
from ..media_types import AUDIO, IMAGE
from ..media_types import MEDIA_SUFFIXES as VIDEO
from .download import REMOTE, fetch, import_webdataset
from .index import Index, index_of, read_range, state_of, tars_in
from .remote import STREAM, is_streamed

READ = frozenset((".json", ".info.json", ".txt", ".cls"))
TEXTS = READ | {".srt", ".vtt", ".csv", ".tsv", ".xml", ".md", ".caption", ".jsonl"}


def is_shards(source: str | Path) -> bool:
    """Return whether `source` names tars: a tar, a pattern of tars, an address, or a folder with tars and no clips in
    it.
    """
    text = str(source)
    if REMOTE.match(text) or text.endswith(".tar"):
        return True
    folder = Path(text).expanduser()
    if not folder.is_dir() or not tars_in(folder):
        return False
    return not any(file.suffix.lower() in VIDEO for file in folder.iterdir())


def absolute_source(source: str) -> str:
    """Return `source` as it can be named from any folder; an address is left as it is."""
    return source if REMOTE.match(source) else os.path.abspath(os.path.expanduser(source))


def read_shards(source: str | Path, version: int = DATA_VERSION, notes: list[str] | None = None) -> list[Clip]:
    """Return all clips of a tar, of a folder of tars (sorted), or of a pattern such as `shards/{000..010}.tar`.

    `notes` receives which entries are not read, and why. `version` is that of the rules, `DataConfig.version`; in 1
    names with a dot in their key are no clips, and of texts only KEY.json and KEY.txt are read.

    Addresses (https://..., with braces too) are downloaded first; for pipe:COMMAND and other schemes see `fetch`.
    Patterns and addresses need the `webdataset` library.

    Raises:
        ManifestError: a tar that is missing, damaged or refused; no clips; captions that are no text.
        ConfigError: the library is needed and not installed.
    """
    clips: list[Clip] = []
    unread: Counter[str] = Counter()
    tars = _find(str(source))
    with progress_bar(len(tars), "listing", "shard") as bar:
        for tar in tars:
            clips.extend(_clips(tar, len(clips), version, unread))
            bar.update()
    left_out = [f"{source}: {count} entries are not read: {why}" for why, count in sorted(unread.items()) if count]
    if not clips:
        known = " ".join(sorted(VIDEO | AUDIO | IMAGE))
        raise ManifestError(
            f"{source}: no clips in {len(tars)} tars; entries with these suffixes are taken: {known}"
            + "".join(f" ({note})" for note in left_out)
        )
    if notes is not None:
        notes.extend(left_out)
    return clips


def _find(source: str) -> list[Path]:
    """Return the local tars that a source names."""
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
        return [Path(url.removeprefix(STREAM)) if is_streamed(url) else fetch(url) for url in urls]
    tars = [Path(absolute_source(url)) for url in urls]
    absent = [str(tar) for tar in tars if not tar.is_file()]
    if absent:
        raise ManifestError(f"{source}: {len(absent)} of {len(tars)} tars are not there, the first one {absent[0]}")
    return tars


def _clips(tar: Path, first: int, version: int, unread: Counter[str]) -> Iterator[Clip]:
    """The clips of one tar, in its order, numbered from `first` on; `unread` counts by reason what is part of none."""
    index = index_of(tar, *state_of(tar))
    if version == 1:
        yield from _first_clips(tar, first, index, unread)
        return
    samples: dict[str, dict[str, str]] = {}  # key -> suffix -> name, in the order of the tar
    for name in index:
        folder, _, last = name.rpartition("/")
        suffix = _suffix(last)
        if last.startswith("."):
            unread["their names begin with a dot, as those of hidden files"] += 1
        elif suffix not in VIDEO | AUDIO | IMAGE | TEXTS:
            unread[f"a suffix that is neither media nor text, {suffix or 'none'}"] += 1
        else:
            samples.setdefault(f"{folder}/{last[: -len(suffix)]}", {})[suffix] = name
    used: set[str] = set()
    for key, files in samples.items():
        kinds = [[suffix for suffix in files if suffix in kind] for kind in (VIDEO, AUDIO, IMAGE)]
        media = [suffix for kind in kinds for suffix in kind]
        if media:
            folder, _, last = key.rpartition("/")
            texts = {
                suffix: name
                for suffix, name in samples.get(f"{folder}/{last.partition('.')[0]}", {}).items()
                if suffix in TEXTS
            } | {suffix: files[suffix] for suffix in files if suffix in TEXTS}
            used |= {name for suffix, name in texts.items() if suffix in READ}
            unread[f"beside a clip of the same name, {media[0]}"] += len(media) - 1
            yield Clip(
                first,
                tar / files[media[0]],
                f"{tar.name}/{files[media[0]]}",
                **_description(tar, index, texts, version),
            )
            first += 1
    for files in samples.values():
        for suffix, name in files.items():
            if suffix in TEXTS and name not in used:
                known = suffix in READ
                unread["texts without a clip of their name" if known else f"texts of another kind, {suffix}"] += 1


def _suffix(name: str) -> str:
    """Return the suffix of an entry, lower case: what is behind its last dot, but .info.json together."""
    stem, dot, suffix = name.lower().rpartition(".")
    return ".info.json" if suffix == "json" and stem.endswith(".info") else dot + suffix if dot else ""


def _first_clips(tar: Path, first: int, index: Index, unread: Counter[str]) -> Iterator[Clip]:
    """Yield the clips as runs of version 1 have them."""
    samples: dict[str, dict[str, str]] = {}
    for name in index:
        folder, _, last = name.rpartition("/")
        stem, _, suffix = last.partition(".")
        if stem:  # names that begin with a dot are no clips
            samples.setdefault(f"{folder}/{stem}", {})[f".{suffix.lower()}"] = name
    for files in samples.values():
        media = next((files[suffix] for kind in (VIDEO, AUDIO, IMAGE) for suffix in files if suffix in kind), None)
        if media is not None:
            texts: dict[str, str] = {suffix: files[suffix] for suffix in (".json", ".txt") if suffix in files}
            yield Clip(first, tar / media, f"{tar.name}/{media}", **_description(tar, index, texts, 1))
            first += 1
        else:
            unread["no clips by the rules that this run began with (data.version=1)"] += len(files)


def _description(tar: Path, index: Index, files: Mapping[str, str], version: int) -> dict[str, Any]:
    """Return the fields of a clip that its texts hold, by their suffixes."""
    about = next((suffix for suffix in (".json", ".info.json") if suffix in files), None)
    description: Any = {}
    if about is not None:
        try:
            description = json.loads(_text(tar, files[about], index))
        except (ValueError, RecursionError) as error:
            raise ManifestError(f"{tar}: {files[about]} is not JSON ({str(error)[:200]}); pack it anew") from error
        if not isinstance(description, dict):
            raise ManifestError(f"{tar}: {files[about]} is no JSON object; pack it anew")
    captions = _texts(description.get("captions") or description.get("caption"), version)
    if not captions and ".txt" in files:
        captions = _texts(_text(tar, files[".txt"], index).splitlines(), version)
    labels = description.get("labels") or description.get("label")
    if labels is None and ".cls" in files:
        labels = _text(tar, files[".cls"], index).splitlines()
    split = description.get("split", DEFAULT_SPLIT)
    return {
        "start": _seconds(description.get("start"), f"{tar}: {files[about]}: start") or 0.0 if about else 0.0,
        "end": _seconds(description.get("end"), f"{tar}: {files[about]}: end") if about else None,
        "captions": captions,
        "label": CAPTION_SEPARATOR.join(_texts(labels, version)) or None,
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


def _texts(value: Any, version: int) -> tuple[str, ...]:
    """Return a text, a number or a list of them, as a cell of a manifest would hold it; null and NaN are nothing."""
    values = value if isinstance(value, list) else [] if value is None else [value]
    if version >= 2:
        values = [one for one in values if one is not None and one == one]
    parts = CAPTION_SEPARATOR.join(" ".join(str(one).split()) for one in values).split(CAPTION_SEPARATOR)
    return tuple(part.strip() for part in parts if part.strip())


def _seconds(value: Any, source: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not (math.isfinite(value) and value >= 0):
        raise ManifestError(f"{source} is no time: {value!r}")
    return float(value)
