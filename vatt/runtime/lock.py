"""One owner for each folder and file that a command writes.

The owner holds the system's lock (flock) on a small file, `.lock` in a folder or `.NAME.lock` beside a file, in which
stands who it is. The system drops the lock with its process, so what a killed one leaves is taken over. On a network
file system that holds for processes of one machine only: whether an owner on another one still lives cannot be known,
and then the lock is its until somebody says otherwise (`--force`).
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import fcntl
import json
import logging
import os
import re
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ..errors import VattError

log = logging.getLogger(__name__)

LOCAL = {
    "apfs",
    "aufs",
    "bcachefs",
    "btrfs",
    "exfat",
    "ext2",
    "ext3",
    "ext4",
    "f2fs",
    "hfs",
    "jfs",
    "ntfs",
    "ntfs3",
    "overlay",
    "ramfs",
    "reiserfs",
    "tmpfs",
    "vfat",
    "xfs",
    "zfs",
}
UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
TEMPORARY = re.compile(r"\..+\.\d+\.tmp")  # what write_atomically and its like have not renamed yet
LONGEST = 4096  # bytes of a lock file


def add_force_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--force",
        action="store_true",
        help="write although another process holds the lock of what is written: only if you know that it has ended",
    )


class OwnedError(VattError, OSError):
    """Another process writes there. The message says which, and since when."""


class Owner(NamedTuple):
    """Who holds a lock. `boot`: which start of which kernel; `began`: when the process started, by that kernel."""

    pid: int
    host: str
    since: float  # seconds since the epoch
    boot: str
    began: str
    command: str

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"process {self.pid} on {self.host} since {since} ({self.command})"


def this_process() -> Owner:
    command = shlex.join(sys.orig_argv)[:500]
    return Owner(os.getpid(), socket.gethostname(), time.time(), _boot(), _began(os.getpid()) or "", command)


@contextlib.contextmanager
def owned(path: Path, *, folder: bool = False, new: bool = False, force: bool = False) -> Iterator[None]:
    """Keep other processes of ours from writing the file `path`, or the folder, which is made, while inside.

    What an owner that died left half written is removed. A folder that was made and holds nothing in the end goes.

    Args:
        folder: `path` is a folder, not a file.
        new: the folder must not exist; FileExistsError if it does.
        force: take it from an owner that may still be at work.

    Raises:
        OwnedError: another process is its owner, or may be.
        OSError: the lock cannot be written.
    """
    made = _make(path if folder else path.parent, new)
    lock = path / ".lock" if folder else path.with_name(f".{path.name}.lock")
    try:
        descriptor = _acquire(lock, path, force)
        try:
            _sweep(path, folder)
            yield
        finally:
            _release(lock, descriptor)
    finally:
        for one in made:
            with contextlib.suppress(OSError):  # it holds something
                one.rmdir()


def is_owned(folder: Path) -> bool | None:
    """Tell whether a process owns `folder`; None where that cannot be known, of an owner on another machine."""
    try:
        descriptor = os.open(folder / ".lock", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        owner, ours = _read(descriptor), this_process()
    finally:
        os.close(descriptor)
    if owner is None:
        return True  # it has just made it
    if (owner.host, owner.boot) != (ours.host, ours.boot):
        return None
    return _lives(owner.pid) and _began(owner.pid) in (None, owner.began)


def _make(folder: Path, new: bool) -> list[Path]:
    """Make `folder`; return what was made, the innermost first."""
    missing = [folder, *folder.parents]
    missing = missing[: next((i for i, one in enumerate(missing) if one.exists()), 0)]
    folder.mkdir(parents=True, exist_ok=not new)
    return missing


def _acquire(lock: Path, path: Path, force: bool) -> int:
    for _ in range(100):  # each time that its owner has just removed it
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            locked = _flock(descriptor)
            owner = _read(descriptor)
            if not _is(lock, descriptor):
                os.close(descriptor)
                continue
            if force and (locked is False or owner is not None):
                log.warning("note: %s is taken from %s, as --force says", path, owner or "another process")
            if locked is False:
                if not force:
                    raise OwnedError(
                        f"{path} is being written by {owner or 'another process'}; wait for it, or choose another --out"
                    )
                lock.unlink(missing_ok=True)
                os.close(descriptor)
                continue
            if owner is not None and not force:
                _take_over(owner, path, locked)
            text = json.dumps(this_process()._asdict()).encode()
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, text, 0)
            return descriptor
        except BaseException:
            with contextlib.suppress(OSError):
                os.close(descriptor)
            raise
    raise OwnedError(f"{path}: its lock {lock.name} changes owners all the time; wait, or choose another --out")


def _flock(descriptor: int) -> bool | None:
    """Return whether the system's lock is ours; None where the file system has none."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in UNSUPPORTED:
            return None
        raise
    return True


def _take_over(owner: Owner, path: Path, locked: bool | None) -> None:
    """Raise `OwnedError` if `owner`, whose lock this process got or could not ask for, may still be at work."""
    ours = this_process()
    same_kernel = owner.boot == ours.boot if owner.boot and ours.boot else owner.host == ours.host
    if locked and (same_kernel or is_local(path)):
        return
    if same_kernel and owner.host == ours.host:
        if _began(owner.pid) in (None, owner.began):
            if not _lives(owner.pid):
                return
            raise OwnedError(f"{path} is being written by {owner}; wait for it, or choose another --out")
        return  # another process has its number now
    raise OwnedError(
        f"{path} was being written by {owner}; whether that still runs cannot be known from "
        f"{ours.host}: if it does not, --force takes over"
    )


def is_local(path: Path) -> bool:
    """Return whether the file system of `path` is this machine's own, so that locks on it mean something for all
    users.
    """
    try:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return sys.platform != "linux"
    real, kind, longest = str(path.resolve()), "", -1
    for line in lines:
        fields, _, rest = line.partition(" - ")
        mount = re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), fields.split()[4])
        inside = real == mount or real.startswith(mount.rstrip("/") + "/")
        if inside and len(mount) >= longest:
            kind, longest = rest.split()[0], len(mount)
    return kind in LOCAL


def _read(descriptor: int) -> Owner | None:
    """Return what a lock file says of its owner; None for an empty file: its owner has just made it."""
    try:
        text = os.pread(descriptor, LONGEST, 0)
        return Owner(**json.loads(text)) if text.strip() else None
    except (ValueError, TypeError, RecursionError):
        return Owner(0, "a machine that is not on record", 0.0, "?", "?", "unknown command")


def _release(lock: Path, descriptor: int) -> None:
    if _is(lock, descriptor):
        lock.unlink(missing_ok=True)
    os.close(descriptor)


def _is(lock: Path, descriptor: int) -> bool:
    """Return whether the open file still lies under its name."""
    try:
        return os.path.samestat(os.stat(lock), os.fstat(descriptor))
    except OSError:
        return False


def _sweep(path: Path, folder: bool) -> None:
    """Remove files that a process was writing when it was killed."""
    for file in path.iterdir() if folder else path.parent.glob(f".{_escaped(path.name)}.*.tmp"):
        if TEMPORARY.fullmatch(file.name) and file.is_file():
            file.unlink(missing_ok=True)


def _escaped(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _began(pid: int) -> str | None:
    """Return when a process of this machine started, in ticks of its kernel; None if that cannot be said."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
