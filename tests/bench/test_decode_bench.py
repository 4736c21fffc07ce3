"""The benchmarks of decoding: that they run, resume and say what they left out. No figure is asserted."""

import json
from pathlib import Path

from harness import report as harness

import decode
import pytest
import soak
from helpers.media import steady, tone_burst, write_clip
from workloads import video_decoders


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for i in range(2):
        write_clip(folder / f"{i}.mp4", steady(5.0, 12), tone_burst(5.0, 1.0 + i, 16_000), 16_000, size=96)
    (folder / "broken.mp4").write_text("no video " * 50)
    return folder


def test_decoders_side_by_side(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--data", str(folder), "--quick", "--rounds", "1", "--steps", "1", "--batch", "2", "--workers", "0",
               "--out", str(tmp_path)]  # fmt: skip
    assert decode.main(command) == 0
    path = next(tmp_path.glob("*/decode.json"))
    report = harness.load(path)
    assert report.finished
    assert report.settings["clips"] == ["0.mp4", "1.mp4"]  # the broken one is no part of it
    timed = {(row["decoder"], row["job"], len(row["seconds"])) for row in report.rows if row["kind"] == "decoder"}
    assert {("pyav", "window", 1), ("pyav", "sequence", 1), ("pyav, training", "window", 1)} <= timed
    for check in report.gate["checks"]:  # each one takes part, or there is a reason why not
        assert check["clips"] or check["refused"]
    (loader,) = (row for row in report.rows if row["kind"] == "loader")
    assert 0 < loader["wait_share"] < 1
    assert path.with_suffix(".md").exists()
    assert path.with_suffix(".png").exists()
    before = json.loads(path.read_text())["rows"]
    assert decode.main([*command, "--resume"]) == 0
    assert json.loads(path.read_text())["rows"] == before
    assert "Decoders" in capsys.readouterr().out


def test_a_decoder_with_other_frames_is_not_timed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = video_decoders.DECODERS["pyav"]()
    monkeypatch.setitem(video_decoders.DECODERS, "wrong", lambda: lambda path, *job: 255 - honest(path, *job))
    check = decode.check("wrong", [folder / "0.mp4"])
    assert check["clips"] == []
    assert "other frames than ours" in check["refused"][0]


def test_soak(folder: Path, tmp_path: Path) -> None:
    command = ["--data", str(folder), "--quick", "--variants", "6", "--clips", "32", "--clips-damaged", "1",
               "--out", str(tmp_path)]  # fmt: skip
    assert soak.main(command) == 0
    report = harness.load(next(tmp_path.glob("*/soak.json")))
    assert report.gate["green"]
    assert [row["kind"] for row in report.rows] == ["fuzz", "soak"]
    assert report.rows[1]["clips"] == 32
    assert report.rows[1]["files_left_open"] == 0
    assert not soak.is_green({**report.rows[1], "growth_bytes": soak.FLAT_BYTES + 1})
    assert not soak.is_green({**report.rows[0], "failures": [{"variant": "cut at 3", "outcome": "died"}]})
