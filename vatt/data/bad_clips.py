"""The record of clips that could not be used: counted, named once, written to a CSV; too many of them stop a run."""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vatt.data.loader import Batch, DataError
from vatt.data.manifest import Clip, Manifest

COLUMNS = ("path", "row", "reason", "first_step", "count")
LEAST_TRIED = 32  # a share of fewer clips says nothing


@dataclass
class _Record:
    reason: str
    first_step: int
    count: int


class BadClips:
    """Kept by the main process. `path`: the CSV (`row` is the manifest index); `max_share` as in `DataConfig`."""

    def __init__(self, path: str | Path, clips: Manifest, max_share: float) -> None:
        self.path, self.max_share = Path(path), max_share
        self._clips = {clip.index: clip for clip in clips}
        self._size = max(self._clips, default=-1) + 1
        self._tried = np.zeros(self._size, bool)
        self._records: dict[int, _Record] = {}

    def __len__(self) -> int:
        """Distinct bad clips."""
        return len(self._records)

    @property
    def events(self) -> int:
        return sum(record.count for record in self._records.values())

    @property
    def tried(self) -> int:
        """Distinct clips tried."""
        return int(self._tried.sum())

    @property
    def share(self) -> float:
        """Distinct bad clips over distinct clips tried, these taken as at least 32."""
        return len(self._records) / max(self.tried, LEAST_TRIED)

    def add(self, step: int, batch: Batch) -> list[tuple[Clip, str]]:
        """Takes a batch's record; returns the clips seen to be bad for the first time, and writes the CSV if any."""
        self._tried[batch.tried] = True
        new = []
        for index, reason in batch.bad:
            record = self._records.get(index)
            if record is None:
                self._records[index] = _Record(reason, step, 1)
                new.append((self._clips[index], reason))
            else:
                record.count += 1
        if new:
            self.write()
        return new

    def check(self) -> None:
        """Raises DataError when more than `max_share` of the clips tried are bad."""
        if self.share > self.max_share:
            raise DataError(
                f"{len(self)} of {self.tried} clips tried could not be used, more than data.max_bad_share = "
                f"{self.max_share:g} allows; the reasons are in {self.path}"
            )

    def write(self) -> None:
        """Writes the CSV atomically, in the order of the manifest."""
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        with open(temporary, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            for index in sorted(self._records):
                record = self._records[index]
                writer.writerow([self._clips[index].path, index, record.reason, record.first_step, record.count])
        os.replace(temporary, self.path)

    def state_dict(self) -> dict[str, Any]:
        """Plain values and one tensor (a bit for each clip), so that `torch.load(weights_only=True)` takes it back."""
        records = [[index, r.reason, r.first_step, r.count] for index, r in sorted(self._records.items())]
        return {"tried": torch.from_numpy(np.packbits(self._tried)), "size": self._size, "records": records}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["size"] != self._size:
            raise DataError(f"the saved record is of {state['size']} clips, the manifest now has {self._size}")
        self._tried = np.unpackbits(state["tried"].numpy(), count=self._size).astype(bool)
        self._records = {index: _Record(reason, step, count) for index, reason, step, count in state["records"]}
