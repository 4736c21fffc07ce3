"""How a command ends: a message and an exit code for every error a user can cause."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from ..errors import Elsewhere, Finished, VattError
from .faults import report
from .forms import printable


def exit_code(action: Callable[[], int | None], interrupted: str = "interrupted") -> int:
    """Run `action` and return the exit code: 1 failed, 2 wrong usage or settings, 130 interrupted.

    Without an error it is what `action` returns, None for 0. The message says which process failed.

    Any other error is the program's own, whatever was being done, and leaves with its traceback.
    """
    try:
        return action() or 0
    except Finished:
        return 0
    except Elsewhere as error:
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
