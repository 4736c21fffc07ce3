"""The record of clips that could not be used: counted, named once, written to a CSV; too many of them stop a run."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..runtime.files import write_csv
from .clip import Clip, Manifest
from .datasets.batch import Batch

COLUMNS = ("path", "row", "reason", "first_step", "count")
LEAST_TRIED = 32  # a share of fewer clips says nothing, unless there are no more


def bad_share(bad: int, tried: int, clips: int) -> float:
    """Return `bad` over the clips tried so far, these taken as at least 32 or, if that is fewer, as all `clips`."""
    return bad / max(tried, min(LEAST_TRIED, clips), 1)


def check_share(bad: int, clips: int, max_share: float) -> None:
    """Raise DataError when a larger share than `max_share` of `clips` held-out clips is bad."""
    if bad_share(bad, clips, clips) > max_share:
        raise DataError(
            f"{bad} of {clips} held-out clips could not be used, more than data.max_bad_share = {max_share:g} allows"
        )


def read_counts(path: Path) -> list[int]:
    """Return how often each clip of the CSV was met, also of one that a spreadsheet has saved.

    Raises ValueError when it is no such table, FileNotFoundError when it is not there.
    """
    text = path.read_bytes().decode("utf-8-sig", errors="replace").replace("\0", "")
    first = text.partition("\n")[0]
    delimiter = next((one for one in ",;\t" if one in first), ",")
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        return [int(float(row["count"])) for row in rows if any(row.values())]
    except KeyError as error:
        raise ValueError(f"it has no column {error}") from error
    except (TypeError, ValueError, OverflowError, csv.Error) as error:
        raise ValueError(f"line {rows.line_num}: {error}") from error


@dataclass
class _Record:
    reason: str
    first_step: int
    count: int


class BadClips:
    """Kept by the main process. `path`: the CSV (`row` is the manifest index); `max_share` as in `DataConfig`.

    The records are of the whole run and survive a resume. The share is of the clips that this process tried: whoever
    mends the files of a run that stopped, and resumes it, is not held to what they were before. `writes`: False for a
    process that keeps the same record as another one, which writes the CSV.
    """

    def __init__(self, path: str | Path, clips: Manifest, max_share: float, *, writes: bool = True) -> None:
        self.path, self.max_share, self.writes = Path(path), max_share, writes
        self._clips = clips
        self._records: dict[int, _Record] = {}
        self._tried: set[int] = set()
        self._bad: set[int] = set()  # of those tried

    def __len__(self) -> int:
        """Count the distinct bad clips of the whole run."""
        return len(self._records)

    @property
    def events(self) -> int:
        return sum(record.count for record in self._records.values())

    @property
    def tried(self) -> int:
        """Distinct clips tried by this process."""
        return len(self._tried)

    @property
    def share(self) -> float:
        """`bad_share` of the distinct clips that this process tried."""
        return bad_share(len(self._bad), self.tried, len(self._clips))

    def add(self, step: int, batch: Batch) -> list[tuple[Clip, str]]:
        """Take a batch's record, write the CSV if any clip is bad, and return those seen to be bad for the first
        time.
        """
        self._tried.update(batch.tried)
        new = []
        for index, reason in batch.bad:
            self._bad.add(index)
            record = self._records.get(index)
            if record is None:
                self._records[index] = _Record(reason, step, 1)
                new.append((self._clips.at(index), reason))
            else:
                record.count += 1
        if new:
            self.write()
        return new

    def check(self) -> None:
        """Raise DataError when more than `max_share` of the clips tried are bad."""
        if self.share > self.max_share:
            raise DataError(
                f"{len(self._bad)} of {self.tried} clips tried could not be used, more than data.max_bad_share = "
                f"{self.max_share:g} allows; the reasons are in {self.path}"
            )

    def write(self) -> None:
        """Write the CSV atomically, in the order of the manifest, and remove one that nothing belongs in any more."""
        if not self.writes:
            return
        if not self._records:
            self.path.unlink(missing_ok=True)
            return
        rows = [
            (self._clips.at(index).path, index, record.reason, record.first_step, record.count)
            for index, record in sorted(self._records.items())
        ]
        write_csv(self.path, COLUMNS, rows)

    def state_dict(self) -> dict[str, Any]:
        """Return plain values, so that `torch.load(weights_only=True)` takes it back."""
        records = [[index, r.reason, r.first_step, r.count] for index, r in sorted(self._records.items())]
        return {"size": len(self._clips), "records": records}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the records back and make the CSV say the same: it may hold clips of steps that are done again."""
        if state["size"] != len(self._clips):
            raise DataError(f"the saved record is of {state['size']} clips, the manifest now has {len(self._clips)}")
        self._records = {index: _Record(reason, step, count) for index, reason, step, count in state["records"]}
        self.write()
