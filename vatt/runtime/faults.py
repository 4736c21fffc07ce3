"""Errors that are the program's own, as against those of a clip, of settings or of the machine."""

from __future__ import annotations

import platform
import sys
from importlib import metadata

PACKAGES = ("vatt", "torch", "numpy", "av")


class Fault(RuntimeError):
    """An error of the program in another process; the message is its traceback."""


def report() -> None:
    """Say on stderr, above the traceback that ends the program, that the error is its own and how to report it."""
    versions = [f"Python {platform.python_version()}"]
    for name in PACKAGES:
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    print(
        "error: this is a fault of the program and of no clip; please report it with the command, the traceback below "
        f"and: {', '.join(versions)}",
        file=sys.stderr,
    )
