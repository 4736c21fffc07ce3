"""Clock speeds in reports: read where the machine tells, None where not, and pages draw with and without them."""

from __future__ import annotations

from pathlib import Path

from harness import clocks
from harness import report as harness
from harness.pages import ReportPage, write_page

import pytest

GPU = "NVIDIA H200, 1980, 3201, 1980, 700.00, 41\nNVIDIA H200, [N/A], 3201, 1980, [N/A], 40\n"


def nvidia_smi(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_clocks_are_what_the_machine_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\ncpu MHz\t\t: 2250.5\nprocessor\t: 1\ncpu MHz\t\t: 3100.0\n")
    (tmp_path / "governor").write_text("performance\n")
    monkeypatch.setattr(clocks, "CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(clocks, "GOVERNOR", tmp_path / "governor")
    nvidia_smi(tmp_path, f"printf '{GPU}'", monkeypatch)
    found = clocks.clocks(gpus=True)
    assert (found["cpu_mhz"], found["governor"]) == ([2250.5, 3100.0], "performance")
    first, second = found["gpus"]
    assert first == {
        "name": "NVIDIA H200",
        "sm_mhz": 1980.0,
        "memory_mhz": 3201.0,
        "max_sm_mhz": 1980.0,
        "power_limit_w": 700.0,
        "celsius": 41.0,
    }
    assert (second["sm_mhz"], second["power_limit_w"]) == (None, None)
    assert "SM 1980 of 1980 MHz, memory 3201 MHz, limit 700 W, 41 °C" in clocks.describe_clocks({"start": found})


@pytest.mark.parametrize("script", ["exit 9", "exec sleep 60"])
def test_what_is_not_told_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    monkeypatch.setattr(clocks, "CPU_INFO", tmp_path / "none")
    monkeypatch.setattr(clocks, "GOVERNOR", tmp_path / "none")
    monkeypatch.setattr(clocks, "SECONDS", 0.5)
    nvidia_smi(tmp_path, script, monkeypatch)
    found = clocks.clocks(gpus=True)
    assert found == {"cpu_mhz": None, "governor": None, "gpus": None}
    assert clocks.describe_clocks({"start": found}) == "start: CPU unknown; governor unknown"


def test_reports_have_them_at_start_and_end(tmp_path: Path) -> None:
    report, path = harness.open_report("any", "Any", settings={}, method={}, out=tmp_path, resume=False, quick=False)
    report.save(path)
    assert set(harness.load(path).environment["clocks"]) == {"start"}
    report.finished = True
    report.save(path)
    drawn = harness.load(path)
    assert set(drawn.environment["clocks"]) == {"start", "end"}
    report_page = ReportPage(lambda report: "", lambda report, plt: None, lambda report: [])
    assert "- clocks: start: CPU" in write_page(drawn, report_page)
    del drawn.environment["clocks"]  # a report of an earlier program
    assert "- clocks:" not in write_page(drawn, report_page)
    drawn.save(path)
    assert "clocks" not in harness.load(path).environment
