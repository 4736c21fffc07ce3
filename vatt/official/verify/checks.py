"""`verify`: every recording of a folder against our model, one row an array."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from ...ops import Ops
from . import encoders, losses_and_optimizers, models
from .recording import Fixtures, Recording, Row, VerifyError

CHECKS: dict[str, Callable[[Recording], None]] = {
    "video_vit": encoders.video_vit,
    "audio_wat": encoders.audio_wat,
    "text_t5": encoders.text_t5,
    "unified": encoders.unified,
    "relative_buckets": encoders.buckets,
    "spline": encoders.spline,
    "tx_fac_full": models.tx_fac_full,
    "ut_fac_full": models.ut_fac_full,
    "fac_head": models.fac_head,
    "finetune_video": models.finetune,
    "finetune_audio": models.finetune,
    "finetune_video_from_agnostic": models.finetune,
    "nce_losses": losses_and_optimizers.nce_losses,
    "schedules": losses_and_optimizers.schedules,
    "optimizers": losses_and_optimizers.optimizers,
    "metrics": losses_and_optimizers.metrics,
}


def verify_file(name: str, fixtures: Fixtures) -> list[Row]:
    """Return rows of NAME.npz. Raises `VerifyError` when the file cannot be read or lacks an input."""
    path = fixtures.folder / f"{name}.npz"
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except FileNotFoundError as error:
        raise VerifyError(f"{path} is missing") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise VerifyError(f"{path} cannot be read: {error}") from error
    recording = Recording(name, arrays, fixtures)
    CHECKS[name](recording)
    return recording.finish()


def verify_folder(folder: Path, ops: Ops) -> Iterator[list[Row]]:
    """Yield rows of one file after the other; a missing or unknown file is a failed row."""
    fixtures = Fixtures(folder, ops)
    for name in CHECKS:
        try:
            yield verify_file(name, fixtures)
        except (ValueError, RuntimeError, LookupError, OSError) as error:  # VerifyError, and what torch raises
            yield [Row(name, "", np.nan, np.nan, "", False, str(error))]
    for path in sorted(folder.glob("*.npz")):
        if path.stem not in CHECKS:
            yield [Row(path.stem, "", np.nan, np.nan, "", False, "no check knows this file")]


HEADER = f"{'file':<30}{'max abs':>9}{'max rel':>9}  {'tolerance':<23}{'':6}array"


def format_row(row: Row) -> str:
    array = re.sub(r"model/layer_with_weights-0/", "", row.array)
    note = f"  ({row.note})" if row.note else ""
    numbers = f"{row.absolute:>9.1e}{row.relative:>9.1e}"
    return f"{row.file:<30}{numbers}  {row.tolerance:<23}{'pass' if row.passed else 'FAIL':6}{array}{note}"
