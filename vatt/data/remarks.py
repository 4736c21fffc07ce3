"""What is odd about clips that are used: counted, and named once for each kind of oddness."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tqdm import tqdm

from .clip import Manifest


class Remarks:
    """Kept by the main process: the clips of each remark, by manifest index."""

    def __init__(self, clips: Manifest) -> None:
        self._manifest = clips
        self._clips: dict[str, set[int]] = {}

    def add(self, remarks: Sequence[tuple[int, str]]) -> None:
        """Take (manifest index, remark) of a batch; print the first clip of each remark."""
        for index, remark in remarks:
            if remark not in self._clips:
                tqdm.write(
                    f"note: {self._manifest.at(index).name}: {remark} (said once; counted at the end)", file=sys.stderr
                )
            self._clips.setdefault(remark, set()).add(index)

    def counts(self) -> dict[str, int]:
        """Return the number of clips of each remark."""
        return {remark: len(clips) for remark, clips in sorted(self._clips.items())}

    def tell(self) -> None:
        """Print how many clips there were of each remark."""
        for remark, count in self.counts().items():
            tqdm.write(f"note: {count} clip{'s' if count != 1 else ''}: {remark}", file=sys.stderr)
