"""Files that are whole or not there: what every writer of the project goes through."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from .lock import owned

# Okabe and Ito's colours, which colour-blind people tell apart; with 7 signs, 56 pairs before the first comes again.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7", "#f0e442", "#000000")
MARKERS = "os^Dv*P"


class WriteError(OSError):
    """A file that cannot be written. The message names it, why, and what is whole all the same."""


@contextlib.contextmanager
def writing(
    path: Path, size: int | None = None, kept: str = "", also: tuple[type[BaseException], ...] = ()
) -> Iterator[None]:
    """Turn errors of the disk, of what writes `path` inside, into a `WriteError`.

    Args:
        size: bytes that are needed, as far as known.
        kept: what the message says of the older state.
        also: errors of libraries that write, and name no file.
    """
    errors: tuple[type[BaseException], ...] = (OSError, *also)
    try:
        yield
    except WriteError:
        raise
    except errors as error:
        number = error.errno if isinstance(error, OSError) else None
        silent = not number or isinstance(error, ConnectionError | TimeoutError)
        elsewhere = isinstance(error, OSError) and path.name not in str(error.filename)
        if elsewhere and (silent or (isinstance(error, OSError) and error.filename)):
            raise  # of something that was read meanwhile
        reason = os.strerror(number) if number else str(error).strip().split("\n")[0]
        needed = "" if size is None else f"; {size:,} bytes are needed"
        free = _free(path)
        room = "" if free is None else f"{' and' if needed else ';'} {free:,} are free on its disk"
        failure = WriteError(f"{path} cannot be written: {reason}{needed}{room}{f'; {kept}' if kept else ''}")
        failure.errno = number
        raise failure from error


def _free(path: Path) -> int | None:
    """Return bytes that this process may still write beside `path`."""
    for folder in path.absolute().parents:
        with contextlib.suppress(OSError):
            return shutil.disk_usage(folder).free
    return None


def write_atomically(path: Path, data: bytes) -> None:
    """Write `path` so that a reader sees the old content or the new one, never a part. Raises `WriteError`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path, len(data), f"the {path.name} of before is whole" if path.exists() else ""):
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`, renamed to it when the block ends well and the file is on the disk.

    Raises `WriteError`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path, None, f"the {path.name} of before is whole" if path.exists() else ""):
        try:
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_csv(
    path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]], errors: str = "surrogateescape"
) -> None:
    """Write a CSV file, whole or not at all.

    Args:
        errors: what becomes of text that is no UTF-8. A file name need not be; by default its bytes come out as they
            are on the disk.

    Raises:
        WriteError: see `write_atomically`.
    """
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", errors=errors, newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def pyplot() -> Any:
    """Return matplotlib.pyplot, drawing into files alone. Raises ImportError without matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def write_figure(figure: Any, path: Path) -> None:
    """Write a figure of matplotlib as PNG, whole or not at all, and close it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    pyplot().close(figure)
    write_atomically(path, buffer.getvalue())


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a new file for writing that gets its name when it is whole and on the disk."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        yield file


def first_free(name: str, held: contextlib.ExitStack) -> Path:
    """Make runs/NAME, or runs/NAME-2, -3, ... if that exists; it is this command's own until `held` is closed."""
    folder, number = Path("runs") / name, 1
    while True:
        with contextlib.suppress(FileExistsError):
            held.enter_context(owned(folder, folder=True, new=True))
            return folder
        number += 1
        folder = Path("runs") / f"{name}-{number}"


def cache_root() -> Path:
    """$VATT_CACHE, else $XDG_CACHE_HOME/vatt, else ~/.cache/vatt."""
    root = os.environ.get("VATT_CACHE")
    return Path(root) if root else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vatt"
