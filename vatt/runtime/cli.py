"""What every command has: its lines of output, and a message and an exit code for every error a user can cause."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator

from tqdm import tqdm

from ..errors import RankFinished, RemoteError, VattError
from .faults import report
from .forms import printable


class _Printer(logging.Handler):
    """Print what is logged: warnings on standard error, everything else on standard output."""

    def emit(self, record: logging.LogRecord) -> None:
        # Both streams are looked up now: other ranks have theirs redirected, and so have tests. tqdm prints above a
        # progress bar instead of through it.
        stream = sys.stderr if record.levelno >= logging.WARNING else sys.stdout
        try:
            tqdm.write(self.format(record), file=stream)
        except OSError:
            self.handleError(record)


@contextlib.contextmanager
def printed_log() -> Iterator[None]:
    """Print what `vatt` logs inside, as its commands do; without it, `logging` of the calling program decides."""
    logger = logging.getLogger("vatt")
    level, printer = logger.level, _Printer()
    if any(isinstance(handler, _Printer) for handler in logger.handlers):
        yield
        return
    logger.addHandler(printer)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(printer)
        logger.setLevel(level)


def exit_code(action: Callable[[], int | None], interrupted: str = "interrupted") -> int:
    """Run `action` and return the exit code: 1 failed, 2 wrong usage or settings, 130 interrupted.

    Without an error it is what `action` returns, None for 0. What `vatt` logs meanwhile is printed. A message says what
    failed, and in which process. Any other error is the program's own, whatever was being done, and leaves with its
    traceback.
    """
    try:
        with printed_log():
            return action() or 0
    except RankFinished:
        return 0
    except RemoteError as error:
        return error.exit_code
    except VattError as error:
        return _report(error, error.exit_code)
    except OSError as error:
        return _report(error, 1)
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return 130
    except Exception:
        report()
        raise


def _report(error: BaseException, code: int) -> int:
    rank = os.environ.get("RANK", "0")
    text = printable(str(error))
    print(f"error: {text}" if rank == "0" else f"error (process {rank}): {text}", file=sys.stderr)
    return code
