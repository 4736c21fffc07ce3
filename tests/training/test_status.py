"""What a run says of itself: documented metrics, its state read from the folder, a profiler's trace of some steps."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import small_run

from vatt import finetune, train
from vatt.data.synthetic import build_corpus
from vatt.errors import ConfigError, RunError
from vatt.runtime.lock import Owner, this_process
from vatt.training.metrics_log import METRICS, read_metrics
from vatt.training.profiler import ProfiledSteps, parse_profile, profiling
from vatt.training.status import format_status, status


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    out = tmp_path_factory.mktemp("trained") / "run"
    assert small_run.run("--out", out, "--steps", 2, "--fused") == 0
    return out


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    out = tmp_path_factory.mktemp("tuned") / "run"
    data = build_corpus(clips=24, progress=False)
    settings = ["--set=data.workers=0", "--set=model.audio.samples=3200", "--set=optim.warmup=1"]
    assert (
        finetune.main(
            [
                "--task=audio",
                "--data",
                str(data),
                "--init=none",
                "--model=tiny",
                "--batch-size=4",
                "--steps=2",
                "--fused",
                "--out",
                str(out),
                *settings,
            ]
        )
        == 0
    )
    return out


@pytest.mark.parametrize("kind", ["pre-training", "fine-tuning"])
def test_every_metric_is_documented_and_written(kind: str, request: pytest.FixtureRequest) -> None:
    out: Path = request.getfixturevalue("trained" if kind == "pre-training" else "tuned")
    documented = {metric.key for metric in METRICS if metric.lines in ("all", kind)}
    for record in read_metrics(out / "metrics.jsonl"):
        assert set(record) == documented


def test_the_page_of_metrics_is_the_table_of_the_code() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert rows == [f"| `{key}` | {unit} | {meaning} | {lines} |" for key, unit, meaning, lines in METRICS]


def test_finished_runs_say_so(trained: Path, tuned: Path) -> None:
    found = status(trained)
    assert (found.state, found.step, found.steps, found.checkpoint_step) == ("done", 2, 2, 2)
    records = read_metrics(trained / "metrics.jsonl")
    assert found.loss == pytest.approx((records[0]["loss"] + records[1]["loss"]) / 2)
    assert found.clips_per_second == pytest.approx(8 / sum(r["step_seconds"] for r in records))
    assert "pre-training, tiny" in format_status(found)
    assert status(tuned).state == "done"
    assert "fine-tuning, audio" in format_status(status(tuned))


def folder(out: Path, steps: int = 1000, lines: int = 50, **changes: Any) -> Path:
    """A run at step `lines`, a step of 8 clips in 2 s, every fifth of it waiting; its loss falls from 100 by 1."""
    out.mkdir(exist_ok=True)
    (out / "config.json").write_text(json.dumps({"config": {"steps": steps, "preset": "mbs"}}))
    line = {
        "step_seconds": 2.0,
        "wait_seconds": 0.4,
        "communication_seconds": 0.2,
        "world_size": 2,
        "clips_per_second": 4.0,
        "updated": True,
        **changes,
    }
    text = "".join(json.dumps({"step": i, "loss": 100.0 - i, **line}) + "\n" for i in range(1, lines + 1))
    (out / "metrics.jsonl").write_text(text + '{"step": 51, "lo')  # half a line
    own(out, this_process())
    return out


def own(out: Path, owner: Owner) -> None:
    (out / ".lock").write_text(json.dumps(owner._asdict()))


def silent_for(path: Path, seconds: float) -> None:
    os.utime(path, (time.time() - seconds,) * 2)


def test_a_run_at_work(tmp_path: Path) -> None:
    out = folder(tmp_path / "run")
    (out / "bad_clips.csv").write_text("path,row,reason,first_step,count\na.mp4,0,cut,3,2\nb.mp4,1,empty file,4,1\n")
    for step in (20, 40):
        (out / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
    (out / "checkpoints" / ".writing-step-00000050").mkdir()
    silent_for(out / "checkpoints" / "step-00000040", 600)
    silent_for(out / "metrics.jsonl", 3)
    found = status(out)
    assert (found.state, found.step, found.steps) == ("running", 50, 1000)
    assert found.loss == pytest.approx(100 - 40.5)  # steps 31 to 50
    assert found.step_seconds == pytest.approx(2)
    assert found.clips_per_second == pytest.approx(4)
    assert found.seconds_left == pytest.approx(950 * 2)
    assert found.wait_share == pytest.approx(0.2)
    assert found.communication_share == pytest.approx(0.1)
    assert (found.bad_clips, found.replaced, found.checkpoint_step) == (2, 3, 40)
    text = format_status(found)
    for part in (
        "50 of 1,000 (5.0%), last one 3 s ago, 2 s a step",
        "59.5000",
        "4.0 clips/s, 20% of the time waiting",
        "10% for the other processes (2 in all)",
        "31 min 40 s",
        "replaced 3 times",
        "step 40, 10 min 0 s ago",
    ):
        assert part in text
    silent_for(out / "metrics.jsonl", 121)
    assert "stopped or stuck" in format_status(status(out))


def test_other_states(tmp_path: Path) -> None:
    new = folder(tmp_path / "new", lines=0)
    assert (status(new).state, status(new).loss, status(new).checkpoint_step) == ("starting", None, None)
    assert "no step yet" in format_status(status(new))
    (new / "metrics.jsonl").unlink()
    assert status(new).state == "starting"
    assert status(folder(tmp_path / "last", steps=50)).state == "evaluating"
    lost = status(folder(tmp_path / "lost", updated=False))
    assert (lost.loss, lost.skipped) == (None, 20)
    assert "not finite; 20 of them without update" in format_status(lost)
    more = folder(tmp_path / "more")
    (more / "result.json").write_text('{"steps": 50}')  # of the time before it was given more steps
    assert status(more).state == "running"


def test_a_run_whose_process_has_ended_says_how_to_go_on(tmp_path: Path) -> None:
    out, ours = folder(tmp_path / "a run"), this_process()
    own(out, ours._replace(pid=2**22 + 1))  # was killed
    assert status(out).state == "interrupted"
    own(out, ours._replace(began="1"))  # another process has its number now
    assert status(out).state == "interrupted"
    own(out, ours._replace(host="elsewhere"))
    assert status(out).state == "running"  # as far as can be known from here
    (out / ".lock").unlink()  # ended by itself, as after Ctrl-C
    said = format_status(status(out))
    assert f"interrupted; go on with: python -m vatt.train --out '{out}' --resume" in said
    assert "time left" not in said
    (out / "config.json").write_text(json.dumps({"finetune": {"steps": 1000, "task": "audio"}}))
    assert "python -m vatt.finetune --out" in format_status(status(out))


def test_what_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"holds no run: .*config\.json is missing"):
        status(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text('{"config": ')
    with pytest.raises(RunError, match=r"config\.json is not a run's config.*--resume"):
        status(tmp_path)
    folder(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("\0\0\0\n")
    with pytest.raises(RunError, match=r"metrics\.jsonl is damaged"):
        status(tmp_path)


def steps(path: Path, profiled: ProfiledSteps | None, start: int = 0) -> list[float]:
    """A little training with dropout, steps `start` + 1 to 8; its losses."""
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1))
    optimizer, losses = torch.optim.Adam(model.parameters()), []
    with profiling(profiled, path, start) as step_done:
        for _ in range(start, 8):
            optimizer.zero_grad()
            loss = model(torch.ones(2, 4)).square().sum()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            step_done()
    return losses


@pytest.mark.parametrize(
    ("profiled", "start"), [(ProfiledSteps(3, 2), 0), (ProfiledSteps(1, 1), 0), (ProfiledSteps(8, 1), 5)]
)
def test_a_trace_holds_the_steps_and_changes_nothing(tmp_path: Path, profiled: ProfiledSteps, start: int) -> None:
    path = tmp_path / "trace-0.json"
    assert steps(path, profiled, start) == steps(path, None, start)
    events = json.loads(path.read_text())["traceEvents"]
    assert len({event["name"] for event in events if event["name"].startswith("ProfilerStep#")}) == profiled.length
    updates = [event for event in events if event["name"].startswith("Optimizer.step") and event["ph"] == "X"]
    assert len({event["ts"] for event in updates}) == profiled.length
    assert [p.name for p in tmp_path.iterdir()] == ["trace-0.json"]


def test_a_traced_run_computes_the_same(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert small_run.run("--out", out, "--steps", 2, "--fused", "--profile", "2:1") == 0
    assert small_run.same_run(out, trained)
    assert (out / "trace-0.json").stat().st_size > 10_000
    assert small_run.run("--out", tmp_path / "late", "--steps", 2, "--profile", "2:2") == 2
    assert not (tmp_path / "late").exists()


def test_the_command_shows_the_state(trained: Path, tuned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["--status", str(trained)]) == 0
    assert finetune.main(["--status", str(tuned)]) == 0
    shown = capsys.readouterr().out
    assert f"{trained}: pre-training, tiny" in shown
    assert f"{tuned}: fine-tuning, audio" in shown
    assert train.main(["--status", str(trained / "nothing")]) == 1
    assert "holds no run" in capsys.readouterr().err


@pytest.mark.parametrize("damaged", [False, True])
def test_each_command_resumes_its_own_runs(
    damaged: bool, trained: Path, tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for out, other, own in ((tuned, train, "vatt.finetune"), (trained, finetune, "vatt.train")):
        run = shutil.copytree(out, tmp_path / own)
        if damaged:
            (run / "config.json").write_text("{")
        assert other.main(["--out", str(run), "--resume"]) == 1
        err = capsys.readouterr().err
        assert f"{run} holds a run of {own}; resume it with that command" in err
        assert err.count("\n") == 1


def test_traces_that_cannot_be_are_refused(tmp_path: Path) -> None:
    assert parse_profile("20:5", 24) == ProfiledSteps(20, 5)
    for text in ("20", "0:5", "5:0", "a:b", "-1:2", "1:2:3"):
        with pytest.raises(ConfigError, match="START:COUNT"):
            parse_profile(text, 100)
    with pytest.raises(ConfigError, match="step 24 of 23"):
        parse_profile("20:5", 23)
    with pytest.raises(ConfigError, match="3 steps are done already"):
        steps(tmp_path / "trace-0.json", ProfiledSteps(3, 1), 3)
