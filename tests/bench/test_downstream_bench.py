"""Benchmarks of downstream tasks: rows survive crashes, scores land in the right cell, pages come from the JSON."""

import csv
import json
import statistics
from pathlib import Path

from harness import report as harness
from harness.report import ReportError

import draw_reports
import esc10_official
import figure2
import figure4
import numpy as np
import pytest
import real_clips

from vatt.runtime import provenance

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(autouse=True)
def one_program(monkeypatch):
    """Files that someone edits while the tests run do not make it another program."""
    monkeypatch.setattr(harness, "_sources", lambda: "one")


def line(step: int, loss: float) -> str:
    """A line of metrics.jsonl."""
    times = {"step_seconds": 1.0, "wait_seconds": 0.0, "clips_per_second": 4.0}
    return json.dumps({"step": step, "loss": loss, "updated": True, **times}) + "\n"


def value(command: list[str], flag: str) -> str:
    return command[command.index(flag) + 1]


def top1(init: str, fold: int) -> float:
    return (0.1 if init == "scratch" else 0.2) + fold / 100


class Commands:
    """Stands for the project's commands: leaves the files that each would leave. `fails_at`: the call that crashes."""

    def __init__(self, fails_at: int = -1):
        self.calls: list[list[str]] = []
        self.fails_at = fails_at

    def __call__(self, command: list[str], log: Path) -> None:
        self.calls.append(command)
        if len(self.calls) - 1 == self.fails_at:
            raise ReportError("the power is gone")
        if command[0] == "vatt.data.sources":
            return
        out = Path(value(command, "--out"))
        result: dict = {"final_loss": 1.0, "train_seconds": 2.0, "test_seconds": 1.0, "bad_clips": 0}
        if command[0] == "vatt.train":
            (out / "model").mkdir(parents=True)
            result["retrieval"] = {"text_to_video": {"R@10": 0.5}, "audio_to_video": {"R@10": 0.25}}
        elif command[0] == "vatt.finetune":
            init = "scratch" if value(command, "--init") == "none" else "pretrained"
            fold = int(Path(value(command, "--data")).stem[-1])
            result["test"] = {"scores": {"top1": top1(init, fold)}, "labelled": 80}
            out.mkdir(parents=True)
            (out / "metrics.jsonl").write_text("".join(line(i + 1, 100 - i) for i in range(100)))
        else:
            stems = [Path(name).stem for name in command if name.endswith(".csv")]
            result["probe"] = {"audio": {"folds": {stem: {"top1": 0.3, "tested": 80} for stem in stems}}}
            out.mkdir(parents=True)
        (out / "result.json").write_text(json.dumps(result))


def esc10(tmp_path, *arguments) -> int:
    return esc10_official.main(
        ["--data", str(tmp_path), "--out", str(tmp_path / "reports"), "--work", str(tmp_path / "work"), *arguments]
    )


def test_esc10_goes_on_after_a_crash(tmp_path, monkeypatch, capsys):
    """Each finished piece is made once; scores of both starts land in their folds; the settings are in the commands."""
    whole, crash = Commands(), Commands(fails_at=12)
    monkeypatch.setattr(esc10_official, "run", crash)
    assert esc10(tmp_path) == 1
    assert "power" in capsys.readouterr().err
    monkeypatch.setattr(esc10_official, "run", whole)
    assert esc10(tmp_path, "--resume", "--steps", "7") == 1
    assert "steps: " in capsys.readouterr().err
    assert esc10(tmp_path, "--resume") == 0
    made = [call for call in [*crash.calls[:12], *whole.calls] if call[0] != "vatt.data.sources"]
    outs = [value(call, "--out") for call in made]
    assert len(outs) == len(set(outs)) == 2 + 2 + 10
    report = harness.load(next((tmp_path / "reports").glob("*/esc10_official.json")))
    assert report.finished
    for init in ("scratch", "pretrained"):
        found = esc10_official.scores_of(report, "fine-tuning", init)
        assert found == pytest.approx({fold: 100 * top1(init, fold) for fold in (1, 2, 3, 4, 5)})
    assert esc10_official.paired_difference(report) == pytest.approx([10.0] * 5)
    lines = esc10_official.page(report).splitlines()
    cells = next(line for line in lines if "| fine-tuned" in line).split(" | ")
    assert cells[1:6] == ["21.0", "22.0", "23.0", "24.0", "25.0"]
    assert cells[6] == f"23.0 ± {statistics.stdev([21, 22, 23, 24, 25]):.1f}"
    assert cells[7].startswith("23.5 ± ")  # without the fold that chose the settings
    tuned = [call for call in made if call[0] == "vatt.finetune"]
    assert all(value(call, "--steps") == str(report.settings["steps"]) for call in tuned)
    rows = [row for row in report.rows if row["kind"] == "fine-tuning"]
    assert rows[0]["curve"][0] > rows[0]["curve"][-1]
    assert next((tmp_path / "reports").glob("*/esc10_official.png")).read_bytes().startswith(PNG)
    assert str(tmp_path / "work") not in json.dumps(report.rows) + json.dumps(report.settings)


def test_esc10_does_not_mix_two_pretrainings(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(esc10_official, "run", Commands(fails_at=7))
    assert esc10(tmp_path) == 1
    (tmp_path / "work/pretrained/model").rmdir()
    assert esc10(tmp_path, "--resume") == 1
    assert "is gone" in capsys.readouterr().err


def figure2_report() -> harness.Report:
    rng = np.random.default_rng(0)
    labels = [f"shape {i % 5}" for i in range(20)]
    rows = [
        {
            "model": name,
            "scores": {"top1": 0.5, "R@10": 0.75},
            "final_loss": 1.0,
            "train_seconds": 2.0,
            "same_class": 0.6,
            "chance": 0.2,
            "labels": labels,
            "points": rng.normal(size=(20, 2)).tolist(),
        }
        for name in figure2.PANELS
    ]
    where = provenance.environment() | {"dirty": False, "load_average": 0.0}
    return harness.Report(
        "figure2", "Features", {"steps": 9, "rate": 1, "clips": 160}, {}, where, "0", finished=True, rows=rows
    )


def figure4_report() -> harness.Report:
    maps = np.random.default_rng(0).normal(size=(2, 4, 16))
    rows = [
        {"modality": name, "activations": found.tolist()}
        for name, found in zip(("video", "audio", "text"), [maps[0], maps[0], maps[1]], strict=True)
    ]
    settings = {
        "model": "tiny_ma",
        "kind": "agnostic",
        "steps": 9,
        "scores": {"text_to_video": 0.5},
        "clips": 1,
        "data": "built-in corpus",
        "split": "test",
    }
    return harness.Report(
        "figure4", "Activations", settings, {}, figure2_report().environment, "0", finished=True, rows=rows
    )


def test_figures_and_pages_come_from_the_json_alone(tmp_path):
    for report in (figure2_report(), figure4_report()):
        report.save(tmp_path / "cpu" / f"{report.name}.json")
    assert draw_reports.main(["--reports", str(tmp_path)]) == 0
    for name in ("figure2", "figure4"):
        assert (tmp_path / "cpu" / f"{name}.png").read_bytes().startswith(PNG)
    assert "text to video R@10 75 % | 60 | 20" in (tmp_path / "cpu/figure2.md").read_text()
    page = (tmp_path / "cpu/figure4.md").read_text()
    assert "| video, audio | 1.00 | 1.00 | 1.00 | 1.00 |" in page  # the same maps
    assert "| video, text | 1.00" not in page
    assert figure4.readme_rows(figure4_report())[0][1].startswith("video and audio 1.00")


def test_real_clips_are_red_when_the_commands_differ(tmp_path, monkeypatch, capsys):
    data, best = tmp_path / "clips", {"vatt.finetune": "wave 0.9 | ride 0.1", "vatt.evaluate": "wave 0.8 | ride 0.2"}
    data.mkdir()
    listed = [
        ("a.avi", "wave", "ok"),
        ("b.avi", "ride", "ok"),
        ("bbaf2n.mpg", "", "ok"),
        ("d.avi", "wave", "ERROR"),
        ("e.avi", "", "ok"),
    ]
    with open(data / "manifest.csv", "w", newline="") as file:
        csv.writer(file).writerows([("file", "label", "decode"), *listed])

    def fake(command: list[str], log: Path) -> None:
        out = Path(value(command, "--out"))
        out.mkdir(parents=True)
        table = [
            ("path", "label", "best"),
            ("a.avi", "wave", best[command[0]]),
            ("b.avi", "ride", "ride 1 | wave 0"),
            ("bbaf2n.mpg", "speaking", "wave 1 | speaking 0"),
        ]
        with open(out / "predictions.csv", "w", newline="") as file:
            csv.writer(file).writerows(table)
        result = {
            "test": {"scores": {"top1": 0.5}, "bad_clips": 0},
            "final_loss": 1.0,
            "train_seconds": 1.0,
            "bad_clips": 0,
        }
        (out / "result.json").write_text(json.dumps(result))
        (out / "metrics.jsonl").write_text(line(1, 2.0) + line(2, 1.0))

    monkeypatch.setattr(real_clips, "run", fake)
    command = ["--data", str(data), "--out", str(tmp_path / "reports"), "--work", str(tmp_path / "work")]
    assert real_clips.main(command) == 0
    page = capsys.readouterr().out
    assert "3 real clips of 3 classes" in page
    assert "2 of 3" in page
    assert "| bbaf2n.mpg | speaking | no |" in page
    best["vatt.evaluate"] = "ride 0.6 | wave 0.4"
    assert real_clips.main(command) == 1
    assert "OTHER" in capsys.readouterr().out
