"""Decoders are compared on clips that carry their numbers: ours gives the right ones, what cannot run says why."""

from __future__ import annotations

from pathlib import Path

import decoders_differ


def test_decoders_are_compared_on_clips_that_carry_their_numbers(tmp_path: Path) -> None:
    rows = decoders_differ.measured(tmp_path)
    ours = [row for row in rows if row["library"] == "pyav"]
    assert [row["wrong"] for row in ours] == [0] * len(decoders_differ.FILES)
    for row in rows:
        assert row["wrong"] is not None or row["note"]
