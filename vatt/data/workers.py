"""Processes that build batches, each with a connection of its own to the process that uses them.

Arrays travel in anonymous shared memory that has no name and no limit of its own: nothing lies in /dev/shm, so a small
one (64 MB in a container) does not matter, and whatever is killed leaves nothing behind. Where such memory cannot be
had, they go through the connection. No lock is shared: a worker that dies closes its connection, and nothing else.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import multiprocessing
import multiprocessing.util
import os
import resource
import signal
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from multiprocessing import connection, reduction, resource_tracker
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import VattError
from ..runtime.memory import return_freed_memory

ALIGNMENT = 64  # bytes; of each array in a block
LOST = 255  # exit code that is told of a process whose fork server has died
STARTING = 12  # descriptors that the start of a worker and of the fork server takes for a while
ENDING = 5.0  # seconds that a killed worker is waited for
LONGEST_TMPDIR = 70  # bytes; /pymp-XXXXXXXX/listener-XXXXXXXX comes behind it, in at most 103 bytes on some systems
SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")


class Source(Protocol):
    """What workers call: `source[index]`."""

    def __getitem__(self, index: int) -> Any: ...


class Failure(NamedTuple):
    """An exception of a worker on its way: its class by name, and what it said."""

    kind: str
    text: str
    traceback: str


def anonymous_file(size: int) -> int:
    """Return the descriptor of memory (elsewhere than on Linux: of a file without a name) of `size` bytes.

    Raises OSError.
    """
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("vatt", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    try:
        os.ftruncate(descriptor, size)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


class SharedTable:
    """A float64 array [rows, columns] of zeros that processes share which get it as they are started."""

    def __init__(self, rows: int, columns: int, descriptor: int | None = None) -> None:
        self.shape = rows, columns
        self._descriptor = anonymous_file(8 * rows * columns) if descriptor is None else descriptor
        memory = mmap.mmap(self._descriptor, 8 * rows * columns)
        self.values: NDArray[np.float64] = np.frombuffer(memory, np.float64).reshape(self.shape)

    def __reduce__(self) -> tuple[Any, ...]:
        return _opened_table, (self.shape, reduction.DupFd(self._descriptor))

    def __del__(self) -> None:
        with contextlib.suppress(OSError, AttributeError):  # at the end of the interpreter both may be gone
            os.close(self._descriptor)


def _opened_table(shape: tuple[int, int], handle: Any) -> SharedTable:
    return SharedTable(*shape, handle.detach())


class _Pickler(reduction.ForkingPickler):
    """What multiprocessing sends with, but that it hands out the memory of arrays and CPU tensors."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return torch.from_numpy, (value.contiguous().numpy(),)
        return NotImplemented


def send(end: connection.Connection, value: Any) -> None:
    """Send `value` through `end`, its arrays in shared memory or, where that cannot be had, beside it."""
    stream, buffers = BytesIO(), list[Any]()
    _Pickler(stream, 5, True, buffers.append).dump(value)
    parts = [stream.getbuffer(), *(buffer.raw() for buffer in buffers)]
    sizes = [part.nbytes for part in parts]
    try:
        descriptor = _stored(parts)
    except OSError as error:
        end.send((sizes, str(error)))
        for part in parts:
            end.send_bytes(part)
        return
    try:
        end.send((sizes, None))
        reduction.send_handle(end, descriptor, 0)  # a descriptor goes to whoever reads
    except OSError as error:
        raise ConnectionError(str(error)) from error  # what is sent from here on would not be understood
    finally:
        os.close(descriptor)


def receive(end: connection.Connection) -> tuple[Any, str | None]:
    """Return what `send` sent; and why it did not come in shared memory, None where it did.

    Raises EOFError or ConnectionError when the other process is gone, OSError when this one has no descriptor or no
    memory left.
    """
    sizes, error = end.recv()
    if error is not None:
        parts: list[Any] = [bytearray(end.recv_bytes()) for _ in sizes]
    else:
        try:
            descriptor = reduction.recv_handle(end)
        except RuntimeError as no_room:
            raise OSError(errno.EMFILE, f"{os.strerror(errno.EMFILE)}; see ulimit -n") from no_room
        try:
            memory = memoryview(mmap.mmap(descriptor, _starts(sizes)[-1]))
        finally:
            os.close(descriptor)
        parts = [memory[start : start + size] for start, size in zip(_starts(sizes), sizes, strict=False)]
    return _Pickler.loads(parts[0], buffers=parts[1:]), error


def _starts(sizes: Sequence[int]) -> list[int]:
    """Return where each part begins in a block, and its whole size."""
    rounded = [-(-size // ALIGNMENT) * ALIGNMENT for size in sizes]
    return np.cumsum([0, *rounded]).tolist()


def _stored(parts: Sequence[memoryview]) -> int:
    """Return the descriptor of a block that holds `parts`. Raises OSError."""
    starts = _starts([part.nbytes for part in parts])
    descriptor = anonymous_file(starts[-1])
    try:
        for start, part in zip(starts, parts, strict=False):
            done = 0
            while done < part.nbytes:
                done += os.pwrite(descriptor, part[done:], start + done)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def fork_server(preload: str) -> Any:
    """Return multiprocessing's fork server, which has imported the module `preload`, also where TMPDIR is long.

    The server listens on a socket in a folder below TMPDIR, and the name of a socket has at most 107 bytes.
    """
    before = tempfile.tempdir
    try:
        if len(os.fsencode(tempfile.gettempdir())) > LONGEST_TMPDIR:
            short = (folder for folder in SHORT_FOLDERS if os.access(folder, os.W_OK | os.X_OK))
            tempfile.tempdir = next(short, None)
        multiprocessing.util.get_temp_dir()  # made once, for all sockets of this process
    finally:
        tempfile.tempdir = before
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([preload])
    return context


class Lost(Exception):
    """A worker ended before its batch was there."""


class Workers:
    """`count` processes that build `source[index]` for `indices`, in turn, each up to `prefetch` ahead of their use.

    They come from a fork server, not from a fork of this process: a fork would copy its locks, its signal handlers and
    the state of its thread pools. `join` is called in each with its number before anything else.

    Raises:
        OSError, EOFError: a process cannot be started.
    """

    def __init__(
        self, source: Source, indices: range, count: int, prefetch: int, join: Callable[[Any, int], None]
    ) -> None:
        self._indices, self._prefetch, self._next = indices, prefetch, 0
        self._ends: list[connection.Connection] = []
        self.processes: list[Any] = []
        self.through_connections: str | None = None  # why batches did not come in shared memory
        _require_descriptors(2 * count + prefetch)
        context = fork_server("vatt.data.loader")
        try:
            with _signals_blocked():
                for number in range(min(count, len(indices))):
                    ours, theirs = context.Pipe()
                    self._ends.append(ours)
                    process = context.Process(target=_work, args=(theirs, source, number, join), daemon=True)
                    with theirs:
                        process.start()
                    self.processes.append(process)
            for request in range(min(prefetch * len(self._ends), len(indices))):
                self._ask(request)
        except BaseException:
            self.close()
            raise

    def _ask(self, request: int) -> None:
        with contextlib.suppress(OSError):  # one that is gone is met when its batch is due
            self._ends[request % len(self._ends)].send(self._indices[request])

    @property
    def due(self) -> int:
        """The number of the worker that builds the next batch."""
        return self._next % len(self._ends)

    def ready(self, seconds: float) -> bool:
        """Wait for the next batch. Raises `Lost` when its worker has ended."""
        end, sentinel = self._ends[self.due], self.processes[self.due].sentinel
        readable = connection.wait([end, sentinel], seconds)
        if end not in readable and readable:
            raise Lost
        return bool(readable)

    def take(self) -> Any:
        """Return the next batch, once it is `ready`, or a `Failure`. Raises `Lost` when its worker has ended."""
        try:
            value, why = receive(self._ends[self.due])
        except (EOFError, ConnectionError) as error:
            raise Lost from error
        self.through_connections = self.through_connections or why
        self._next += 1
        following = self._next - 1 + self._prefetch * len(self._ends)
        if following < len(self._indices):
            self._ask(following)
        return value

    def exits(self, seconds: float) -> dict[int, int | None]:
        """Exit codes by process id, None of those that live; waits so long for one that is about to end."""
        connection.wait([process.sentinel for process in self.processes], seconds)
        return {process.pid: process.exitcode for process in self.processes}

    def close(self) -> None:
        """End them now, also those that hang: SIGTERM does not reach them."""
        for end, process in zip(self._ends, self.processes, strict=False):
            if process.exitcode == LOST and _open(end):  # its fork server is gone, and cannot be asked
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
            process.kill()
        for end in self._ends:
            end.close()
        for process in self.processes:
            process.join(ENDING)
            with contextlib.suppress(ValueError):  # one that a dead disk does not let go
                process.close()
        self._ends, self.processes = [], []


def _open(end: connection.Connection) -> bool:
    """Return whether the other end still lives."""
    try:
        while end.poll():
            receive(end)
    except (EOFError, OSError):
        return False
    return True


def _require_descriptors(count: int) -> None:
    """Raise OSError unless this process may open so many files more: one that starts with too few says much."""
    try:
        used = len(os.listdir("/proc/self/fd"))
    except OSError:
        return
    if used + count + STARTING > resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= 0:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def describe_exit(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """Start processes inside that never see SIGTERM nor SIGINT.

    They are the main process's to answer, but launchers (torchrun, systemd) and terminals send them to all: decoders
    would seem to crash, and good clips would be replaced.
    """
    resource_tracker.ensure_running()  # whose start would let the signals through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(end: connection.Connection, source: Source, number: int, join: Callable[[Any, int], None]) -> None:
    """Build what is asked for, until the connection closes: what a worker does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # also if the fork server was started by somebody else
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    return_freed_memory()
    join(source, number)
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            index = end.recv()
            try:
                send(end, source[index])
            except ConnectionError:
                return
            except Exception as error:  # whatever it was: the one who waits must hear of it
                kind = "DataError" if isinstance(error, VattError) else type(error).__name__
                send(end, Failure(kind, str(error), traceback.format_exc()))


def _leave_with_parent() -> None:
    # A worker's parent by process id is the fork server, which outlives a killed main process as long as workers do.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
