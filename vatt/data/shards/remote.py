"""Clips and shards that lie elsewhere, in object stores or behind http, read through fsspec.

A file is fetched block by block, each with a time limit and, where the connection is cut, stalls or refuses, some tries
more; what then cannot be had is an OSError, and so a bad clip. Whole files and the listings of shards are kept below
the cache, the least recently used go first when there are more than VATT_REMOTE_GB (20) of them. Of a shard only the
bytes of the clip are fetched. Workers fetch ahead of their use, as they decode ahead.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ...errors import ConfigError, MissingPackage
from ...runtime.files import cache_root, new_file, write_atomically

STREAM = "stream+"  # in front of an http(s) address of tars: read them so, and download none
STORES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "hf")
SCHEMES = ("http", "https", *STORES)
TRIES = 4
SECONDS = 10.0  # for a block to come
BACK_OFF = 0.5  # seconds before the second try, twice as many before each further one
BLOCK = 2**23
RESTING = 600.0  # seconds since its last use after which a file may go
_ADDRESS = re.compile(rf"({'|'.join(SCHEMES)}):/+(.+)", re.IGNORECASE)
T = TypeVar("T")


def address_of(path: Path) -> str | None:
    """The address that a clip's path is; None for ordinary paths, which begin with `/`."""
    if path.is_absolute():
        return None
    match = _ADDRESS.fullmatch(path.as_posix())  # pathlib makes one slash of the two
    return f"{match[1].lower()}://{match[2]}" if match else None


def is_address(name: str) -> bool:
    """Whether a row of a manifest, or --data, names such a file."""
    return _ADDRESS.match(name) is not None and "://" in name


def is_streamed(source: str) -> bool:
    """Whether shards at this address are read where they are: those of object stores, and where it says so."""
    scheme = source.partition(":")[0].lower()
    return source.startswith(STREAM) or (scheme in STORES and os.environ.get("VATT_ALLOW_COMMANDS") != "1")


def size_of(address: str) -> int:
    """Bytes of a file. Raises OSError."""
    system, path = _system(address)
    size = _tried(address, lambda: system.size(path))
    if size is None:
        raise OSError(f"{address}: its server does not tell its size")
    return int(size)


def read_bytes(address: str, start: int, size: int) -> bytes:
    """`size` bytes from `start` on. Raises OSError."""
    system, path = _system(address)

    def fetch() -> bytes:
        data: bytes = system.cat_file(path, start=start, end=start + size)
        if len(data) > size:  # a server that knows no ranges sends all
            data = data[start : start + size]
        if len(data) < size:
            raise OSError(f"{len(data):,} of {size:,} bytes came")
        return data

    return _tried(address, fetch)


def fetched(address: str) -> Path:
    """A local copy of a file, whole. Raises OSError."""
    copy = _kept(address, Path(address.partition("?")[0]).suffix)
    if copy.is_file():
        with contextlib.suppress(OSError):
            os.utime(copy)  # its last use
        return copy
    size = size_of(address)
    copy.parent.mkdir(parents=True, exist_ok=True)
    with new_file(copy) as file:
        for start in range(0, size, BLOCK):
            file.write(read_bytes(address, start, min(BLOCK, size - start)))
    _make_room(copy.parent)
    return copy


def kept_index(address: str, size: int, make: Callable[[], dict[str, tuple[int, int]]]) -> dict[str, tuple[int, int]]:
    """The listing of a shard of `size` bytes, made once."""
    path = _kept(f"{address} {size}", ".json")
    with contextlib.suppress(OSError, ValueError):
        return {name: (offset, length) for name, (offset, length) in json.loads(path.read_text("utf-8")).items()}
    index = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(index).encode())
    return index


class RemoteFile(io.RawIOBase):
    """A file that is read from here and there in small pieces. Raises OSError."""

    def __init__(self, address: str) -> None:
        self.address, self.size = address, size_of(address)
        self._position, self._start, self._block = 0, 0, b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = offset + (0, self._position, self.size)[whence]
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        wanted = max(0, self.size - self._position) if size is None or size < 0 else size
        wanted = min(wanted, max(0, self.size - self._position))
        inside = self._position - self._start
        if not 0 <= inside <= inside + wanted <= len(self._block):
            self._start, inside = self._position, 0
            self._block = read_bytes(self.address, self._start, min(max(wanted, 2**18), self.size - self._start))
        self._position += wanted
        return self._block[inside : inside + wanted]


def _system(address: str) -> tuple[Any, str]:
    """The file system of fsspec and the path in it. Raises `MissingPackage`, `ConfigError`."""
    try:
        import fsspec

        system, path = fsspec.core.url_to_fs(address)
    except ImportError as error:
        raise MissingPackage(
            f"{address}: {error}; http comes with pip install -e '.[remote]' in the project's folder, object stores "
            "with packages of their own (s3fs, gcsfs, adlfs)"
        ) from error
    except ValueError as error:
        raise ConfigError(f"{address}: fsspec cannot read it ({error})") from error
    return system, path


def _tried(address: str, action: Callable[[], T]) -> T:
    """What `action` returns, tried again where that may help. Raises OSError."""
    for number in range(TRIES):
        try:
            return _within(action)
        except FileNotFoundError:
            raise
        except Exception as error:  # libraries of stores and of http have many
            status = getattr(error, "status", None)
            final = isinstance(status, int) and 400 <= status < 500 and status not in (408, 429)
            if final or number == TRIES - 1:
                said = str(error).strip() or type(error).__name__
                raise OSError(f"{address}: {said}, after {number + 1} tries") from error
        time.sleep(BACK_OFF * 2**number)
    raise AssertionError


def _within(action: Callable[[], T]) -> T:
    """What `action` returns within `SECONDS`. A thread that hangs in a dead connection is left to itself."""
    results: list[Any] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(action())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(SECONDS)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(f"nothing came for {SECONDS:g} s")
    result: T = results[0]
    return result


def _kept(key: str, suffix: str) -> Path:
    name = hashlib.sha256(key.encode()).hexdigest()[:32] + suffix.lower()
    return cache_root().absolute() / "remote" / name


def _make_room(folder: Path) -> None:
    """Delete what was not used for longest, where there is too much; nothing that may be in use."""
    most = float(os.environ.get("VATT_REMOTE_GB", "20")) * 1e9
    found = []
    for file in folder.iterdir():
        with contextlib.suppress(OSError):
            status = file.stat()
            found.append((status.st_mtime, status.st_size, file))
    total = sum(size for _, size, _ in found)
    for used, size, file in sorted(found):
        if total <= most or time.time() - used < RESTING:
            return
        file.unlink(missing_ok=True)
        total -= size
