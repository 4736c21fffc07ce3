"""The bench room: what is measured is saved, continued, drawn and indexed; what is wrong is not printed."""

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

from harness import cli, timing
from harness import report as harness
from harness.memory import peak_memory
from harness.pages import FRONT_BEGIN, FRONT_END, chosen_results, index, pyplot, report_paths, results, write_page
from harness.report import Report, ReportError

import decode
import draw_reports
import fused_vs_reference
import pytest
import soak
import tiny_training
from helpers.media import steady, tone_burst, write_clip
from workloads import video_decoders

from vatt.runtime import provenance

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--preset", "tiny", "--layers", "1", "--drop-rates", "0", "0.5", "--repeats", "2"]


@pytest.fixture(scope="module", autouse=True)
def one_program():
    """Files that someone edits while the tests run do not make it another program."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(harness, "_sources", lambda: "one")
        yield


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A finished report of fused_vs_reference for a very small model: the path of its JSON."""
    out = tmp_path_factory.mktemp("reports")
    assert fused_vs_reference.main([*SMALL, "--out", str(out)]) == 0
    return next(out.glob("*/fused_vs_reference.json"))


def new_report(out, **settings) -> tuple[Report, Path]:
    return harness.open_report("any", "Any", settings=settings, method={}, out=out, resume=True, quick=False)


def training_report(seeds=(1, 2, 3), **changes) -> Report:
    """What tiny_training would have saved."""
    score = {"R@1": 0.5, "R@5": 0.8, "R@10": 0.9, "median_rank": 1.0, "candidates": 100, "chance_R@10": 0.1}
    rows = [
        {
            "seed": seed,
            "cold_cache": seed == 1,
            "operations": "operations: some",
            "wall_seconds": 100.0,
            "train_seconds": 80.0,
            "evaluate_seconds": 10.0,
            "other_seconds": 10.0,
            "wait_share": 0.05,
            "steps_without_update": 0,
            "bad_clips": 0,
            "final_loss": 0.5 + seed,
            "retrieval": {"text_to_video": score | {"R@10": 0.8 + seed / 100}, "audio_to_video": score},
            "curve": [{"step": step, "loss": 5.0 / step, "video_text": 1.0, "video_audio": 1.0} for step in (1, 2, 3)],
        }
        for seed in seeds
    ]
    where = provenance.environment() | {"dirty": False, "load_average": 0.0}
    return Report(
        "tiny_training",
        "Training",
        {"steps": 900},
        {},
        where,
        "0",
        finished=True,
        rows=rows,
        gate={"green": True, "checks": []},
        **changes,
    )


def test_the_benchmark_suite_is_not_empty():
    # --benchmark-only passes with nothing to run, so an empty suite would go unnoticed.
    command = [sys.executable, "-m", "pytest", "--benchmark-only", "--collect-only", "bench"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}  # of xdist
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    found = [line for line in done.stdout.splitlines() if line.startswith("bench/") and "::" in line]
    assert done.returncode == 0, done.stdout
    for job in ("projection", "attention", "loss", "tiny_training_step"):
        for impl in ("reference", "portable"):
            assert f"bench/bench_model.py::test_{job}[{impl}]" in found


def test_rows_hold_time_memory_and_their_ratios(measured):
    report = harness.load(measured)
    assert report.finished
    assert report.gate["green"] is True
    assert len(report.gate["checks"]) == 2
    rows = {(r["drop_rate"], r["implementation"]): r for r in report.rows}
    assert set(rows) == {(rate, name) for rate in (0.0, 0.5) for name in ("reference", "fused")}
    for (rate, name), row in rows.items():
        assert len(row["seconds"]) == 2
        assert row["p20"] <= row["p50"] <= row["p80"]
        assert 0 < row["step_bytes"] <= row["peak_bytes"]
        assert row["speedup"] == pytest.approx(rows[0.0, name]["p50"] / row["p50"])
        assert row["speedup_of_ideal"] == pytest.approx(row["speedup"] / row["flop_ratio"])
        assert row["reference_time"] == pytest.approx(rows[rate, "reference"]["p50"] / row["p50"])
    assert rows[0.5, "fused"]["tokens"] == 33
    assert rows[0.5, "fused"]["gflops"] < rows[0.5, "reference"]["gflops"]
    none, half = rows[0.0, "fused"], rows[0.5, "fused"]
    assert none["gflops"] / half["gflops"] == pytest.approx(half["flop_ratio"])


def test_a_report_can_be_traced_to_what_made_it(measured):
    where = json.loads(measured.read_text())["environment"]
    assert {"argv", "commit", "dirty", "versions", "device", "cpu", "cores", "threads", "load_average"} <= set(where)
    page = measured.with_suffix(".md").read_text()
    assert where["cpu"] in page
    assert f"torch {where['versions']['torch']}" in page


def test_pages_and_figures_come_from_the_json_alone(measured, tmp_path):
    copy = tmp_path / "cpu-2core" / measured.name
    copy.parent.mkdir()
    copy.write_bytes(measured.read_bytes())
    assert draw_reports.main(["--reports", str(tmp_path)]) == 0
    assert copy.with_suffix(".md").read_text() == measured.with_suffix(".md").read_text()
    assert copy.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    assert "fused_vs_reference" in (tmp_path / "README.md").read_text()


def test_resume_measures_only_what_is_missing(measured, tmp_path):
    report = harness.load(measured)
    begun = tmp_path / report.machine / measured.name
    report.finished = False
    report.rows[-1]["seconds"].pop()
    del report.rows[0]["peak_bytes"]
    report.save(begun)
    assert fused_vs_reference.main([*SMALL, "--out", str(tmp_path), "--resume"]) == 0
    again = harness.load(begun)
    assert again.finished
    for before, after in zip(report.rows, again.rows, strict=True):
        assert after["seconds"][: len(before["seconds"])] == before["seconds"]
        assert len(after["seconds"]) == 2
    assert "peak_bytes" in again.rows[0]
    assert again.rows[1]["peak_bytes"] == report.rows[1]["peak_bytes"]
    assert again.gate == report.gate


def test_rows_of_other_settings_or_programs_never_mix(measured, tmp_path, capsys):
    report = harness.load(measured)
    begun = tmp_path / report.machine / measured.name
    report.save(begun)
    assert fused_vs_reference.main([*SMALL, "--out", str(tmp_path), "--resume", "--batch", "3"]) == 1
    assert "batch: 1 -> 3" in capsys.readouterr().err
    report.sources = "another"
    report.save(begun)
    assert fused_vs_reference.main([*SMALL, "--out", str(tmp_path), "--resume"]) == 1
    error = capsys.readouterr().err
    assert str(begun) in error
    assert "without --resume" in error


def test_no_speed_up_is_printed_when_the_numerics_are_red(measured, tmp_path, monkeypatch, capsys):
    def wrong(config):
        return {
            "drop_rate": config.drop.rate,
            "dropout": 0.0,
            "layers": 1,
            "tensors": 1,
            "tensor": "weight",
            "literal": 1e-7,
            "fused": 1e-2,
            "ratio": 1e5,
            "green": False,
        }

    monkeypatch.setattr(fused_vs_reference, "numerics", wrong)
    assert fused_vs_reference.main([*SMALL, "--out", str(tmp_path)]) == 1
    assert "disagree" in capsys.readouterr().err
    report = harness.load(next(tmp_path.glob("*/fused_vs_reference.json")))
    assert not report.finished
    measured_rows = harness.load(measured)
    measured_rows.gate["green"] = False
    fused_vs_reference.derive(measured_rows)
    ratios = ("speedup", "speedup_of_ideal", "reference_time", "saving", "saving_of_ideal", "reference_memory")
    assert all(row[key] is None for row in measured_rows.rows for key in ratios)
    assert "RED" in (tmp_path / "README.md").read_text()


def test_the_gate_notices_a_wrong_gradient(monkeypatch):
    config = fused_vs_reference.model_config("tiny", 1, 0.0, 0.5)
    assert fused_vs_reference.numerics(config)["green"]
    step = fused_vs_reference.run_step

    def scaled(model, frames, direction):
        features = step(model, frames, direction)
        if model.tokens["video"].ops.impl == "portable":
            model.tokens["video"].weight.grad *= 1 + 1e-5
        return features

    monkeypatch.setattr(fused_vs_reference, "run_step", scaled)
    check = fused_vs_reference.numerics(config)
    assert not check["green"]
    assert check["tensor"] == "tokens.video.weight"


def test_training_report_is_drawn_with_mean_and_spread(tmp_path):
    path = tmp_path / "cpu-2core" / "tiny_training.json"
    training_report().save(path)
    cli.publish(path, tiny_training.REPORT_PAGE, tmp_path)
    page = path.with_suffix(".md").read_text()
    assert "0.820 ± 0.010" in page
    assert path.with_suffix(".png").stat().st_size > 10_000


def test_curves_keep_every_step_in_a_mean():
    zero = {"video_text": 0.0, "video_audio": 0.0}
    records = [{"step": n + 1, "loss": float(n), "updated": True, **zero} for n in range(905)]
    lost = {"step": 906, "loss": None, "updated": False, "video_text": None, "video_audio": None}
    points = tiny_training.curve([*records, lost])
    assert len(points) <= tiny_training.CURVE_POINTS
    assert all(b["step"] > a["step"] for a, b in pairwise(points))
    assert points[0]["loss"] == points[0]["step"] - 1


def test_training_clears_nothing_but_its_own_runs(tmp_path, capsys):
    work = tmp_path / "work"
    (work / "seed-1").mkdir(parents=True)
    (work / "precious").touch()
    assert tiny_training.main(["--quick", "--work", str(work), "--out", str(tmp_path)]) == 1
    assert "precious" in capsys.readouterr().err
    assert {path.name for path in work.iterdir()} == {"seed-1", "precious"}
    (work / "precious").unlink()
    tiny_training.clear(work)
    assert not list(work.iterdir())


def test_reports_round_trip_through_json(tmp_path):
    report, path = new_report(tmp_path, pair=(1, 2))
    report.rows.append({"p50": 0.25})
    report.save(path)
    assert harness.load(path) == report
    assert new_report(tmp_path, pair=(1, 2))[0].rows == report.rows


def test_a_damaged_report_is_named(tmp_path):
    path = tmp_path / "cpu-2core" / "any.json"
    path.parent.mkdir()
    path.write_text('{"name": "any"')
    with pytest.raises(ReportError, match=r"any\.json is not a report"):
        index(tmp_path)


def test_the_index_names_machine_commit_and_state(tmp_path):
    training_report().save(tmp_path / "cpu-2core" / "tiny_training.json")
    other = training_report(quick=True)
    other.environment |= {"device": "NVIDIA H200", "commit": "0123456789abcdef", "dirty": True}
    other.save(tmp_path / "nvidia-h200" / "tiny_training.json")
    lines = index(tmp_path).splitlines()
    first = next(line for line in lines if "(cpu-" in line)
    second = next(line for line in lines if "(nvidia-h200/tiny_training.md)" in line)
    assert "changed files" not in first
    assert "012345678, changed files" in second
    assert "quick run" in second


def test_committed_pages_and_readme_say_what_the_json_says():
    for path in report_paths(harness.REPORTS):
        report_page = draw_reports.report_page(path)
        drawn = write_page(harness.load(path), report_page)
        assert path.with_suffix(".md").read_text() == drawn, f"{path}: `make reports` has not run"
        assert path.with_suffix(".png").exists() == (report_page.figure is not None)
    if report_paths(harness.REPORTS):
        assert (harness.REPORTS / "README.md").read_text() == index(harness.REPORTS)
        for page, table in draw_reports.tables().items():
            assert f"{FRONT_BEGIN}\n{table}\n{FRONT_END}" in page.read_text(), f"{page}: `make reports` has not run"


def test_readme_shows_ten_results_of_all():
    lines = results(harness.REPORTS, draw_reports.REPORT_PAGES)
    for chosen in draw_reports.README_RESULTS:
        machines = [line.machine for line in chosen_results(lines, [chosen])]
        assert not lines or machines, f"no result begins as {chosen} says"
        assert len(machines) == len(set(machines)), f"{chosen} means several lines"
    assert len(draw_reports.README_RESULTS) == 10


def test_without_matplotlib_the_way_out_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ReportError, match=r"pip install -e '\.\[bench\]'"):
        pyplot()


def test_candidates_alternate_and_keep_what_they_have():
    calls: list[str] = []
    candidates = {name: lambda name=name: calls.append(name) for name in "ab"}
    timed = [name for name, seconds in timing.time_interleaved(candidates, 3) if seconds is not None]
    assert calls == list("ab" + "ab" + "ba" + "ab")
    assert timed == calls[2:]
    calls.clear()
    assert len(list(timing.time_interleaved(candidates, 3, done={"a": 3, "b": 2}))) == 2
    assert calls == ["b", "b"]


def test_quantiles_interpolate():
    assert timing.quantiles([4.0, 1.0, 3.0, 2.0, 5.0, 6.0]) == {"p20": 2.0, "p50": 3.5, "p80": 5.0}
    assert timing.quantiles([]) == {"p20": None, "p50": None, "p80": None}


def hold(megabytes):
    held = bytearray(megabytes << 20)

    def step():
        return bytearray(2 * megabytes << 20)

    step.held = held
    return step


def test_peak_memory_tells_what_setup_and_step_take():
    memory = peak_memory(hold, 40)
    assert memory["peak_bytes"] == pytest.approx(120 << 20, rel=0.1)
    assert memory["step_bytes"] == pytest.approx(80 << 20, rel=0.1)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for i in range(2):
        write_clip(folder / f"{i}.mp4", steady(5.0, 12), tone_burst(5.0, 1.0 + i, 16_000), 16_000, size=96)
    (folder / "broken.mp4").write_text("no video " * 50)
    return folder


def test_decoders_side_by_side(clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "--data",
        str(clips),
        "--quick",
        "--rounds",
        "1",
        "--steps",
        "1",
        "--batch",
        "2",
        "--workers",
        "0",
        "--out",
        str(tmp_path),
        "--beside",
        str(Path(__file__).parents[2]),
    ]
    assert decode.main(command) == 0
    path = next(tmp_path.glob("*/decode.json"))
    report = harness.load(path)
    assert report.finished
    assert report.settings["clips"] == ["0.mp4", "1.mp4"]  # the broken one is no part of it
    timed = {(row["decoder"], row["job"], len(row["seconds"])) for row in report.rows if row["kind"] == "decoder"}
    assert {("pyav", "window", 1), ("pyav", "sequence", 1), ("pyav, training", "window", 1)} <= timed
    for check in report.gate["checks"]:  # each one takes part, or there is a reason why not
        assert check["clips"] or check["refused"]
    stages = [row for row in report.rows if row["kind"] == "stages"]
    assert [(row["clip"], row["same"]) for row in stages] == [("0.mp4", True), ("1.mp4", True)]
    assert all(row["unneeded"] > 0 for row in stages)  # libx264 makes B-frames
    (loader,) = (row for row in report.rows if row["kind"] == "loader")
    assert 0 < loader["wait_share"] < 1
    (long,) = (row for row in report.rows if row["kind"] == "long")
    assert {name: len(seconds) for name, seconds in long["seconds"].items()} == {
        "frames alone": 1,
        "through": 1,
        "every second": 1,
    }
    assert path.with_suffix(".md").exists()
    assert path.with_suffix(".png").exists()
    before = json.loads(path.read_text())["rows"]
    assert decode.main([*command, "--resume"]) == 0
    assert json.loads(path.read_text())["rows"] == before
    assert "Decoders" in capsys.readouterr().out


def test_a_decoder_with_other_frames_is_not_timed(clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = video_decoders.DECODERS["pyav"]()
    monkeypatch.setitem(video_decoders.DECODERS, "wrong", lambda: lambda path, *job: 255 - honest(path, *job))
    check = decode.check("wrong", [clips / "0.mp4"])
    assert check["clips"] == []
    assert "other frames than ours" in check["refused"][0]


def test_soak(clips: Path, tmp_path: Path) -> None:
    """In a process of its own, whose memory is watched: what other tests leave behind is none of its growth."""
    command = f"soak.py --data {clips} --quick --variants 6 --clips 32 --clips-damaged 1 --out {tmp_path}".split()
    done = subprocess.run([sys.executable, *command], cwd=ROOT / "bench", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = harness.load(next(tmp_path.glob("*/soak.json")))
    assert report.gate["green"]
    assert [row["kind"] for row in report.rows] == ["fuzz", "soak"]
    assert report.rows[1]["clips"] == 32
    assert report.rows[1]["files_left_open"] == 0
    assert not soak.is_green({**report.rows[1], "growth_bytes": soak.FLAT_BYTES + 1})
    assert not soak.is_green({**report.rows[0], "failures": [{"variant": "cut at 3", "outcome": "died"}]})
