"""How a command ends: a message and an exit code for every error a user can cause."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from .checkpoint import DamagedCheckpoint
from .config import ConfigError
from .data.batch import DataError
from .data.manifest import ManifestError
from .data.text import VocabularyError
from .distributed import Elsewhere, Finished
from .features import FeaturesError
from .official.convert import MapError
from .run import RunError
from .runtime.forms import FormError, printable
from .tf_checkpoint import CheckpointError

USAGE = (ConfigError, ManifestError, VocabularyError)
FAILURES = (RunError, FormError, DataError, CheckpointError, MapError, DamagedCheckpoint, FeaturesError, OSError)


def exit_code(action: Callable[[], None], interrupted: str = "interrupted") -> int:
    """Runs `action`: 0 done, 1 failed, 2 wrong usage or settings, 130 interrupted. Says which process failed."""
    try:
        action()
    except Finished:
        return 0
    except Elsewhere as error:
        return 2 if isinstance(error.cause, USAGE) else 1
    except USAGE as error:
        return _report(error, 2)
    except FAILURES as error:
        return _report(error, 1)
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return 130
    return 0


def _report(error: BaseException, code: int) -> int:
    rank = os.environ.get("RANK", "0")
    text = printable(str(error))
    print(f"error: {text}" if rank == "0" else f"error (process {rank}): {text}", file=sys.stderr)
    return code
