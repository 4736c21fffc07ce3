"""The listing of a tar and the byte ranges of its clips, refused where it is damaged or hostile."""

from __future__ import annotations

import io
import tarfile
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path, PurePosixPath

from ..clip import MAX_TEXT, ManifestError
from .remote import BLOCK as PIECE
from .remote import RemoteFile, address_of, fetched, kept_index, read_bytes, size_of

MAX_CLIP = 2**31  # bytes of one clip, which is read into memory
MAX_ENTRIES = 2**20  # of a tar: their names are kept in memory
BLOCK = 2**20


Index = dict[str, tuple[int, int]]  # name of a clip or text in a tar -> offset, size


class Member(io.BytesIO):
    """A clip that was read from a tar; `name` is its own."""

    def __init__(self, data: bytes, name: str) -> None:
        super().__init__(data)
        self.name = name


def open_clip(path: Path) -> Path | Member:
    """Return `path` itself, or the bytes of the clip if it names one in a tar.

    Raises:
        OSError: no such clip in the tar, or the tar cannot be read.
        ManifestError: a tar that is damaged or refused.
    """
    if address := address_of(path):
        name = address.partition(".tar/")[2]
        if not name:
            return fetched(address)
        return _member(path.parents[name.count("/")], name)
    tar = tar_of(path)
    if tar is None:
        return stored(path)
    return _member(tar, path.relative_to(tar).as_posix())


def _member(tar: Path, name: str) -> Member:
    byte_range = index_of(tar, *state_of(tar)).get(name)
    if byte_range is None:
        raise FileNotFoundError(f"no {name} in {tar}")
    return Member(read_range(tar, *byte_range), name.rpartition("/")[2])


@lru_cache(maxsize=4096)
def _remote_size(address: str) -> int:
    return size_of(address)


def state_of(tar: Path) -> tuple[int, int]:
    """Size and time of change of a tar; the latter is not asked of a server. Raises OSError."""
    if address := address_of(tar):
        return _remote_size(address), 0
    status = tar.stat()
    return status.st_size, status.st_mtime_ns


def stored(path: Path) -> Path:
    """Return `path`, or the file whose name has the same letters in the other form of Unicode: file systems differ in
    it.
    """
    if str(path).isascii() or path.exists():
        return path
    forms = (Path(unicodedata.normalize(form, str(path))) for form in ("NFC", "NFD"))
    return next((other for other in forms if other.exists()), path)


def tar_of(path: Path) -> Path | None:
    """Return the tar that a clip's path leads into; None for ordinary files."""
    if ".tar/" not in path.as_posix():
        return None
    return next((parent for parent in path.parents if parent.suffix == ".tar" and parent.is_file()), None)


def tars_in(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("*.tar") if file.is_file() and not file.name.startswith("."))


class _Limited:
    """Refuses to take more of a tar into memory than a header can be."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= MAX_TEXT:  # long names and their like
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size) or b""  # type: ignore[misc]


class _Headers(_Limited, io.FileIO):
    """A tar whose headers are read."""


class _RemoteHeaders(_Limited, RemoteFile):
    """One that lies elsewhere."""


def tar_entries(tar: Path) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size of every file in a tar. Raises `ManifestError`."""
    try:
        size, _ = state_of(tar)
        address = address_of(tar)
        with (
            _RemoteHeaders(address) if address else _Headers(tar) as file,
            tarfile.open(fileobj=file, mode="r:") as archive,
        ):
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
def index_of(tar: Path, size: int, modified: int) -> Index:
    """Where everything is. `size` and `modified` make a tar that was replaced another one."""
    address = address_of(tar)
    return kept_index(address, size, lambda: _index(tar)) if address else _index(tar)


def _index(tar: Path) -> Index:
    index: Index = {}
    for name, offset, length in tar_entries(tar):
        if name in index:
            raise ManifestError(f"{tar}: two entries {name!r}; this shard is refused: pack it anew")
        index[name] = offset, length
    return index


def read_range(tar: Path, offset: int, size: int) -> bytes:
    if address := address_of(tar):
        return b"".join(
            read_bytes(address, start, min(PIECE, offset + size - start))
            for start in range(offset, offset + size, PIECE)
        )
    with open(tar, "rb") as file:
        file.seek(offset)
        data = file.read(size)
    if len(data) < size:
        raise OSError(f"{tar} is shorter than it was")
    return data
