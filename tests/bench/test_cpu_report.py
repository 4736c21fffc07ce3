"""The CPU report: it runs, small, and its page says what the JSON says."""

from harness.report import load

import cpu_report
import pytest
from helpers.bfloat16 import skip_without_bfloat16

from vatt.config.presets import tiny


def test_features_and_advice(tmp_path, monkeypatch, capsys):
    skip_without_bfloat16()
    monkeypatch.setattr(cpu_report, "preset", lambda name: tiny())
    assert cpu_report.main(["--quick", "--parts", "features", "floors", "--out", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("*/cpu_report.json")
    report = load(path)
    rows = {(row["what"], row["candidate"]): row for row in report.rows if row["part"] == "features"}
    assert len(rows) == 8
    floors = [row for row in report.rows if row["part"] == "floors"]
    for what in {row["what"] for row in floors}:
        parts = {row["candidate"]: row for row in floors if row["what"] == what}
        assert sum(row["share"] for row in parts.values()) == pytest.approx(1)
        for kind in ("products", "attention"):
            row = parts[kind]
            assert row["gflops"] * row["p50"] == pytest.approx(row["best_gflops"] * row["floor"])
    assert len(floors) == 4 * 4
    assert "bbs audio tower, bfloat16 | attention" in path.with_suffix(".md").read_text()
    counts = ("1 window", "4 windows")
    towers = [f"bbs {modality} tower, {count}" for modality in ("video", "audio") for count in counts]
    for what in towers:
        exact, light = rows[what, "float32"], rows[what, "bfloat16"]
        assert light["times_as_fast"] == exact["p50"] / light["p50"]
        assert light["cosine"] >= 0.9995
    said = capsys.readouterr().out
    assert said.startswith("Here: --dtype")
    assert f"{rows['bbs video tower, 1 window', 'bfloat16']['times_as_fast']:.2f}" in said
