"""Arrays in .npz files: whole or not there, readable without pickle, refused when damaged or packed."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..runtime.files import replacing

Arrays = dict[str, NDArray[Any]]
# What numpy and zipfile raise, from headers alone: a claim of petabytes is a MemoryError, a password a RuntimeError.
DAMAGED = (
    *(OSError, ValueError, LookupError, ArithmeticError, EOFError, TypeError, AttributeError, RuntimeError),
    *(MemoryError, SyntaxError, struct.error, zipfile.BadZipFile),
)


def write_npz(path: Path, arrays: Iterable[tuple[str, NDArray[Any]]]) -> None:
    """Write named arrays to `path`, which has its old content or all of the new one at any moment.

    Args:
        path: file to write.
        arrays: names and arrays; each is taken when it is written, so that an iterator need not hold all of them.
    """
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, array in arrays:
            # np.savez would want all arrays at once: a corpus of features need not be in memory.
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)


def read_npz(path: Path, names: Iterable[str] | None = None) -> Arrays:
    """Return the arrays `names` of `path`, None: all of them.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, packed or no .npz; says why in a few words.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            # Packed members let a small file claim gigabytes; ours are stored as they are.
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.zip.infolist()):
                raise ValueError("it is packed, so a small file may hold gigabytes")
            return {name: archive[name] for name in (archive.files if names is None else names)}
    except FileNotFoundError:
        raise
    except DAMAGED as error:
        raise ValueError(str(error)) from error
