"""Progress bars: live in a terminal, a line now and then in a log file."""

from __future__ import annotations

import sys

from tqdm import tqdm

LOG_SECONDS = 15.0  # between lines when nobody is watching


def progress_bar(total: int, label: str, unit: str, start: int = 0) -> tqdm:
    """Return a tqdm bar on standard error with rate and time left; `start` of `total` units are done already."""
    interval = 0.1 if sys.stderr.isatty() else LOG_SECONDS
    return tqdm(
        total=total,
        initial=start,
        desc=label,
        unit=unit,
        dynamic_ncols=True,
        mininterval=interval,
        maxinterval=max(interval, 10.0),
        smoothing=0.1,
    )
