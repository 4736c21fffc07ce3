"""Several processes on one machine: they leave what one leaves, also when one of them dies or meets a NaN.

That they compute what one computes is the sixth promise, in test_promises.py.
"""

import json
import signal
import subprocess

import numpy as np
import pytest
from helpers.forked import torchrun
from helpers.mixed_clips import write_mixed_clips
from helpers.processes import begin, launched, wait_until
from helpers.small_run import losses, same_run, saved_step, steps

from vatt import embed, evaluate, finetune, train
from vatt.training.metrics_log import read_metrics


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    write_mixed_clips(folder)
    return folder


STEPS = 6
FEW = [
    "--steps",
    STEPS,
    "--batch-size",
    8,
    "--set=save_every=2",
    "--set=data.workers=0",
    "--set=eval_windows=1",
    "--set=data.max_bad_share=1",
    "--set=model.video.size=32",
    "--device=cpu",
]


@pytest.fixture(scope="module")
def two(folder):
    """An undisturbed run of two processes."""
    done = torchrun(2, "-m", "vatt.train", "--data", folder / "clips.csv", "--out", folder / "two", *FEW)
    assert done.returncode == 0, done.stderr
    return folder / "two", done


def test_two_processes_leave_what_one_leaves(folder, two):
    out, done = two
    alone = folder / "one"
    assert train.main(["--data", str(folder / "clips.csv"), "--out", str(alone), *map(str, FEW)]) == 0
    assert losses(out) == pytest.approx(losses(alone), rel=1e-3)  # float32
    assert (out / "bad_clips.csv").read_bytes() == (alone / "bad_clips.csv").read_bytes()
    assert {p.name for p in out.iterdir()} == {p.name for p in alone.iterdir()}
    assert {record["world_size"] for record in read_metrics(out / "metrics.jsonl")} == {2}
    assert done.stdout.count("2 processes (ddp), 4 clips of each batch on each") == 1  # one of them speaks
    assert done.stderr.count("bad clip, replaced: broken.mp4") == 1


KILLED = """
import os, signal, sys
from vatt import train
step = train.train_step
def deadly(*arguments):
    if arguments[4] == 3 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return step(*arguments)
train.train_step = deadly
sys.exit(train.main(sys.argv[1:]))
"""


def test_a_sharded_run_with_a_killed_process_goes_on_as_one(folder, two, tmp_path):
    """Its losses are those of the whole one to rounding."""
    out = tmp_path / "run"
    (tmp_path / "killed.py").write_text(KILLED)
    died = torchrun(2, tmp_path / "killed.py", "--data", folder / "clips.csv", "--out", out, "--parallel=fsdp", *FEW)
    assert died.returncode != 0  # torchrun names the process that it saw end first, which may be the other one
    assert [p.name for p in (out / "checkpoints").glob("step-*")] == ["step-00000002"]
    assert (out / "checkpoints" / "step-00000002" / "shards").is_dir()
    assert train.main(["--out", str(out), "--resume"]) == 0
    assert losses(out) == pytest.approx(losses(two[0]), rel=1e-3)  # float32


def test_sigterm_to_torchrun_saves_and_resuming_repeats_the_run(folder, tmp_path):
    """From three processes on the sum of their gradients depends on its order."""
    out, whole = tmp_path / "run", tmp_path / "whole"
    first = ("-m", "vatt.train", "--data", folder / "clips.csv", *FEW, "--batch-size", 6)
    command = launched(3, *first, "--out", out)
    process = begin(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    wait_until(process, lambda: steps(out) >= 3)
    process.send_signal(signal.SIGTERM)
    said = process.communicate()[0]
    assert process.returncode != 0
    assert f"saved after step {saved_step(out)}; continue with" in said
    assert 3 <= saved_step(out) == steps(out) < STEPS
    for arguments in (("-m", "vatt.train", "--out", out, "--resume"), (*first, "--out", whole)):
        done = torchrun(3, *arguments)
        assert done.returncode == 0, done.stderr
    assert same_run(out, whole)


@pytest.mark.parametrize(
    ("task", "parallel", "more"), [("video", "fsdp", ()), ("audio", "ddp", ("--pretrain-steps", 2))]
)
def test_fine_tuning_on_two_processes_is_that_of_one(task, parallel, more, folder, two, tmp_path):
    """Video without dropout, which draws anew; sound with mixup across processes and classes counted in all of them,
    behind steps that look at no labels."""
    few = (
        "--task",
        task,
        "--data",
        folder / "corpus" / "manifest.csv",
        "--init",
        two[0] / "model",
        "--steps",
        4,
        "--batch-size",
        4,
        "--set=data.workers=0",
        "--set=head_dropout=0",
        "--device=cpu",
        *more,
    )
    done = torchrun(2, "-m", "vatt.finetune", *few, "--out", tmp_path / "two", "--parallel", parallel)
    assert done.returncode == 0, done.stderr
    assert finetune.main([*map(str, few), "--out", str(tmp_path / "one")]) == 0
    ours, theirs = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("two", "one"))
    assert len(ours) == 4
    for key in ("loss", "gradient_norm", "head_gradient_norm"):
        assert [r[key] for r in ours] == pytest.approx([r[key] for r in theirs], rel=1e-3)  # float32


def test_features_and_scores_of_two_processes_are_those_of_one(folder, two, tmp_path):
    model, data = two[0] / "model", folder / "clips.csv"
    embedding = ("--model", model, "--data", data, "--windows", 1, "--workers", 0, "--max-bad-share", 1)
    scoring = ("--model", model, "--data", data, "--split", "train", "--workers", 0, "--max-bad-share", 1)
    for command, arguments in (("embed", embedding), ("evaluate", scoring)):
        suffix = ".npz" if command == "embed" else ""
        done = torchrun(2, "-m", f"vatt.{command}", *arguments, "--out", tmp_path / f"{command}2{suffix}")
        assert done.returncode == 0, done.stderr
        run = {"embed": embed, "evaluate": evaluate}[command]
        assert run.main([*map(str, arguments), "--out", str(tmp_path / f"{command}1{suffix}")]) == 0
    ours, theirs = (np.load(tmp_path / f"embed{ranks}.npz") for ranks in (2, 1))
    assert len(theirs["row"]) == 27
    for name in set(theirs.files) - {"metadata"}:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
    scores = [json.loads((tmp_path / f"evaluate{ranks}" / "result.json").read_text()) for ranks in (2, 1)]
    assert scores[0]["retrieval"] == scores[1]["retrieval"]
    assert scores[0]["bad_clips"] == scores[1]["bad_clips"]


BROKEN = """
import os, sys
from vatt import train
from vatt.training import pretraining_step as step
loss, calls = step.pretraining_loss, []
def broken(*arguments, **options):
    calls.append(1)
    losses = loss(*arguments, **options)
    nan = len(calls) == 2 and os.environ["RANK"] == "1"
    return losses._replace(total=losses.total * float("nan")) if nan else losses
step.pretraining_loss = broken
sys.exit(train.main(sys.argv[1:]))
"""


def test_a_loss_that_is_not_finite_on_one_rank_updates_none(folder, two, tmp_path):
    out = tmp_path / "run"
    (tmp_path / "broken.py").write_text(BROKEN)
    done = torchrun(2, tmp_path / "broken.py", "--data", folder / "clips.csv", "--out", out, *FEW)
    assert done.returncode == 0, done.stderr
    records, whole = read_metrics(out / "metrics.jsonl"), read_metrics(two[0] / "metrics.jsonl")
    assert [record["updated"] for record in records] == [True, False, True, True, True, True]
    assert records[1]["loss"] is None
    assert len(records[1]["clips"]) == 8  # those of both ranks
    assert records[0]["loss"] == whole[0]["loss"]
    assert all(record["loss"] is not None for record in records[2:])  # no rank took the NaN in


def test_a_batch_that_cannot_be_divided_is_refused_once(folder, tmp_path):
    done = torchrun(2, "-m", "vatt.train", "--out", tmp_path / "run", "--batch-size", 5)
    assert "a batch of 5 clips cannot be divided among 2 processes; choose a multiple of 2" in done.stderr
    assert not (tmp_path / "run").exists()
