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

import contextlib
import fcntl
import hashlib
import io
import json
import math
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import IO, Any

from vatt.config import ConfigError
from vatt.data.manifest import CAPTION_SEPARATOR, DEFAULT_SPLIT, MAX_TEXT, Clip, ManifestError
from vatt.data.sources_read import AUDIO, IMAGE, VIDEO
from vatt.files import replacing
from vatt.progress import progress_bar

MAX_CLIP = 2**31  # bytes of one clip, which is read into memory
MAX_ENTRIES = 2**20  # of a tar: their names are kept in memory
REMOTE = re.compile(r"[a-z][a-z0-9+.-]+:", re.IGNORECASE)
BLOCK = 2**20

Index = dict[str, tuple[int, int]]  # name of a clip or text in a tar -> offset, size


class Member(io.BytesIO):
    """A clip that was read from a tar; `name` is its own."""

    def __init__(self, data: bytes, name: str) -> None:
        super().__init__(data)
        self.name = name


def is_shards(source: str | Path) -> bool:
    """Whether `source` names tars: a tar, a pattern of tars, an address, or a folder with tars and no clips in it."""
    text = str(source)
    if REMOTE.match(text) or text.endswith(".tar"):
        return True
    folder = Path(text).expanduser()
    if not folder.is_dir() or not _tars_in(folder):
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


def open_clip(path: Path) -> Path | Member:
    """`path` itself, or the bytes of the clip if it names one in a tar.

    Raises:
        OSError: no such clip in the tar, or the tar cannot be read.
        ManifestError: a tar that is damaged or refused.
    """
    tar = tar_of(path)
    if tar is None:
        return path
    name = path.relative_to(tar).as_posix()
    status = tar.stat()
    place = _index(tar, status.st_size, status.st_mtime_ns).get(name)
    if place is None:
        raise FileNotFoundError(f"no {name} in {tar}")
    return Member(_read(tar, *place), path.name)


def tar_of(path: Path) -> Path | None:
    """The tar that a clip's path leads into; None for ordinary files."""
    if ".tar/" not in path.as_posix():
        return None
    return next((parent for parent in path.parents if parent.suffix == ".tar" and parent.is_file()), None)


def write_shards(clips: Sequence[Clip], folder: Path, per_shard: int) -> list[Path]:
    """Writes tars of `per_shard` clips each, 000000.tar and so on, in the order given; replaces those of before.

    The bytes depend on the clips alone. Raises OSError, and `ManifestError` for a clip of more than `MAX_CLIP` bytes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    with progress_bar(len(clips), "packing", "clip") as bar:
        for first in range(0, len(clips), per_shard):
            written.append(folder / f"{len(written):06d}.tar")
            with _whole(written[-1]) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                for number, clip in enumerate(clips[first : first + per_shard], first):
                    _add(tar, f"{number:08d}{clip.path.suffix.lower()}", _bytes_of(clip))
                    _add(tar, f"{number:08d}.json", _text_of(clip))
                    bar.update()
    for old in set(_tars_in(folder)) - set(written):
        old.unlink()
    return written


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[IO[bytes]]:
    """A new file that gets its name when it is whole and on the disk."""
    with replacing(path) as partial, open(partial, "wb") as file:
        yield file


def _bytes_of(clip: Clip) -> bytes:
    source = open_clip(clip.path)
    data = source.read_bytes() if isinstance(source, Path) else source.getvalue()
    if len(data) > MAX_CLIP:
        raise ManifestError(f"{clip.path}: {len(data):,} bytes are too many for a shard; cut the clip with start, end")
    return data


def _text_of(clip: Clip) -> bytes:
    said: dict[str, Any] = {"captions": list(clip.captions), "label": clip.label, "split": clip.split}
    if clip.start or clip.end is not None:
        said |= {"start": clip.start, "end": clip.end}
    return json.dumps(said, ensure_ascii=False).encode()


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), 0o644
    archive.addfile(entry, io.BytesIO(data))


def _tars_in(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("*.tar") if file.is_file() and not file.name.startswith("."))


def _find(source: str) -> list[Path]:
    """The local tars that a source names."""
    if not REMOTE.match(source):
        path = Path(absolute_source(source))
        if path.is_dir():
            return _tars_in(path)
        if path.is_file():
            return [path]
        if "{" not in source:
            raise ManifestError(f"{path}: no such tar; a pattern of several is written with braces: {{000..010}}.tar")
    urls = _webdataset().shardlists.expand_urls(source)
    if REMOTE.match(source):
        return [fetch(url) for url in urls]
    tars = [Path(absolute_source(url)) for url in urls]
    absent = [str(tar) for tar in tars if not tar.is_file()]
    if absent:
        raise ManifestError(f"{source}: {len(absent)} of {len(tars)} tars are not there, the first one {absent[0]}")
    return tars


def cache_root() -> Path:
    """$VATT_CACHE, else $XDG_CACHE_HOME/vatt, else ~/.cache/vatt."""
    root = os.environ.get("VATT_CACHE")
    return Path(root) if root else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vatt"


def fetch(url: str) -> Path:
    """The local copy of a remote tar, downloaded if it is not there yet: under its name only when it is whole.

    Processes that want the same tar wait for the first one. All addresses but http(s) make the library run a shell
    command, and an address may come from a stranger's config.json: they need VATT_ALLOW_COMMANDS=1. Raises
    `ManifestError` when it cannot be had, `ConfigError` when it may not.
    """
    if not url.lower().startswith(("http:", "https:")) and os.environ.get("VATT_ALLOW_COMMANDS") != "1":
        raise ConfigError(f"{url}: reading it runs a command in a shell; if you trust it, set VATT_ALLOW_COMMANDS=1")
    digest = hashlib.sha256(url.encode()).hexdigest()[:16]
    last = re.sub(r"[^A-Za-z0-9_.-]+", "_", url.split("?")[0].rsplit("/", 1)[-1]).removesuffix(".tar")[-60:]
    tar = cache_root().absolute() / "shards" / f"{last}-{digest}.tar"
    if tar.is_file():
        return tar
    tar.parent.mkdir(parents=True, exist_ok=True)
    with open(tar.with_name(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not tar.is_file():
            _download(url, tar)
    return tar


def _download(url: str, tar: Path) -> None:
    try:
        with _whole(tar) as file:
            with _webdataset().gopen(url, "rb") as stream, progress_bar(0, f"downloading {tar.name}", "B") as bar:
                bar.unit_scale = True
                while block := stream.read(BLOCK):
                    file.write(block)
                    bar.update(len(block))
            file.flush()
            for _ in _entries(Path(file.name)):
                pass
    except (OSError, ValueError) as error:
        raise ManifestError(f"{url}: cannot be downloaded ({error})") from error


def _webdataset() -> Any:
    try:
        import webdataset
    except ImportError as error:
        raise ConfigError(
            "addresses and patterns of tars need webdataset: pip install -e '.[webdataset]' in the project's folder; "
            "a tar or a folder of tars works without"
        ) from error
    return webdataset


class _Headers(io.FileIO):
    """A tar whose headers are read: refuses to take more into memory than a header can be."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= MAX_TEXT:  # long names and their like
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size) or b""


def _entries(tar: Path) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size of every file in a tar. Raises `ManifestError`."""
    try:
        size = tar.stat().st_size
        with _Headers(tar) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for number, entry in enumerate(archive):
                # It would keep them all, each ten times as large as its name.
                archive.members.clear()  # type: ignore[attr-defined]
                if number == MAX_ENTRIES:
                    raise ManifestError(f"{tar}: more than {MAX_ENTRIES:,} entries; pack smaller shards")
                if entry.isdir():
                    continue
                name = entry.name.removeprefix("./")
                fault = _fault(entry, name, size)
                if fault:
                    raise ManifestError(f"{tar}: entry {name[:200]!r} {fault}; this shard is refused: pack it anew")
                yield name, entry.offset_data, entry.size
            file.seek(archive.offset)
            rest = file.read(tarfile.BLOCKSIZE)
        if len(rest) < tarfile.BLOCKSIZE or rest.strip(b"\0"):
            raise ManifestError(f"{tar}: damaged or cut off at byte {archive.offset:,}; copy or download it again")
    except (tarfile.TarError, OSError, ValueError, RecursionError, OverflowError) as error:
        if isinstance(error, ManifestError):
            raise
        raise ManifestError(f"{tar}: not a tar that can be read ({error}); compressed ones must be unpacked") from error


def _fault(entry: tarfile.TarInfo, name: str, size: int) -> str | None:
    if not entry.isreg() or entry.issparse():
        return "is a link, a device or sparse"
    if not name or name.startswith("/") or "\\" in name or ".." in PurePosixPath(name).parts or not name.isprintable():
        return "has no name for an entry of a shard"
    if not 0 <= entry.size <= MAX_CLIP:
        return f"claims {entry.size:,} bytes"
    if entry.offset_data + entry.size > size:
        return "goes on behind the end of the file, which was cut off"
    return None


@lru_cache(maxsize=4096)
def _index(tar: Path, size: int, modified: int) -> Index:
    """Where everything is. `size` and `modified` make a tar that was replaced another one."""
    index: Index = {}
    for name, offset, length in _entries(tar):
        if name in index:
            raise ManifestError(f"{tar}: two entries {name!r}; this shard is refused: pack it anew")
        index[name] = offset, length
    return index


def _read(tar: Path, offset: int, size: int) -> bytes:
    with open(tar, "rb") as file:
        file.seek(offset)
        data = file.read(size)
    if len(data) < size:
        raise OSError(f"{tar} is shorter than it was")
    return data


def _clips(tar: Path, first: int) -> Iterator[Clip]:
    """The clips of one tar, in its order, numbered from `first` on."""
    status = tar.stat()
    index = _index(tar, status.st_size, status.st_mtime_ns)
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
        return _read(tar, offset, size).decode("utf-8-sig")
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
