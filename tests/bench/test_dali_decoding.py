"""DALI beside PyAV: what is compared, and that what is missing is a reason. The GPU itself is not here."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pages.gpu import decode_table
from workloads import dali_decoding
from workloads.dali_decoding import SOURCES, compare, frames_of, picture, rates, write

from vatt.data.decoding.span import decode_span


def test_frames_in_another_order_or_of_other_colours_are_red() -> None:
    frames = np.stack([picture(i) for i in range(8)])
    near = np.clip(frames.astype(int) + 2, 0, 255).astype(np.uint8)
    good = compare(near, frames)
    assert (good["green"], good["in_order"], good["first_right"]) == (True, True, True)
    assert 1.5 < good["levels"] <= 2
    swapped = compare(frames[[1, 0, *range(2, 8)]], frames)
    assert (swapped["green"], swapped["first_right"]) == (False, False)
    assert swapped["red"] == "frames are others: [1, 0, 2, 3, 4, 5, 6, 7]"
    late = compare(frames[[0, 1, 2, 3, 4, 5, 6, 6]], frames)
    assert (late["green"], late["first_right"]) == (False, True)
    assert "levels apart" in compare(np.clip(frames.astype(int) + 20, 0, 255).astype(np.uint8), frames)["red"]


@pytest.mark.parametrize("name", [source.name for source in SOURCES if source.encoder == "libx264"])
def test_clips_hold_what_their_names_say(name: str, tmp_path: Path) -> None:
    """Mirrored and BT.709 clips show the same pictures as the plain one."""
    source = next(source for source in SOURCES if source.name == name)
    video = decode_span(write(tmp_path / "a.mp4", source, 30), start=0.4, fps=25.0, frames=8, rate=16_000).video
    assert video is not None
    expected = np.stack([picture(10 + i) for i in range(8)])
    found = compare(video, expected[:, :, ::-1] if source.mirrored else expected)
    assert found["green"], found


def test_what_is_missing_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    assert frames_of("H.264", "cpu") == [{"kind": "decode", "source": "H.264", "skipped": "no GPU"}]
    assert rates("cpu")[0]["skipped"] == "no GPU"
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "no CUDA GPU here" in frames_of("AV1", "cuda")[0]["skipped"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    assert "DALI cannot be imported" in frames_of("AV1", "cuda")[0]["skipped"]
    monkeypatch.setitem(sys.modules, "av", None)
    assert frames_of("AV1", "cuda")[0]["skipped"] == "PyAV is not installed"


def test_rows_of_a_machine_that_has_it_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """With PyAV in DALI's place: every row is there, and the page shows it."""
    from vatt.data.dali import loader

    def by_pyav(clips: Any, start: int, count: int, *rest: Any, **options: Any) -> Any:
        return (SimpleNamespace(video=clips[step].video) for step in range(start, start + count))

    monkeypatch.setattr(dali_decoding, "missing", lambda device: "")
    monkeypatch.setattr(loader, "make_dali_loader", by_pyav)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    rows = frames_of("H.264", "cpu")
    assert [(row["start"], row["levels"], row["green"]) for row in rows] == [(0.0, 0.0, True), (1.52, 0.0, True)]
    clock = itertools.count()
    monkeypatch.setattr(dali_decoding, "time", SimpleNamespace(perf_counter=lambda: float(next(clock))))
    clips = [SimpleNamespace(video=None)] * 99
    assert dali_decoding.timed(clips, 2, "cpu", None) == (2.0 * dali_decoding.RATE_STEPS + 1, dali_decoding.RATE_STEPS)
    rows.append({"source": "H.264, rates", "pipelines": 3, "frames_per_second": 20_000.0, "waiting": 0.025})
    text = decode_table([*rows, {"source": "AV1", "skipped": "no GPU"}, {"source": "VP9", "skipped": "no GPU"}])
    assert "Skipped, no GPU: AV1, VP9." in text
    assert "| H.264 | 1.52 | 0.00 | 0 | yes | yes |" in text
    assert "| 3 | 20000 | 2.5% |" in text
