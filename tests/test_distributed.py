"""Several processes on one machine: batches, losses and weights of one, and what happens when one dies."""

import csv
import json
import subprocess
import sys
from itertools import chain
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from vatt import embed, evaluate, train
from vatt.data.synthetic import build_corpus
from vatt.records import read_metrics

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
HERE = Path(__file__).parent
# Summation in another order: rounding of float64, times what twenty steps of Adam make of it.
ROUNDING = 1e-9


def launch(ranks, *arguments, timeout=240):
    command = [*TORCHRUN, f"--nproc-per-node={ranks}", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Clips of all kinds: with sound and captions, without captions, pictures without sound, one that is broken."""
    folder = tmp_path_factory.mktemp("ranks")
    with open(build_corpus(folder / "corpus", 24, 0, progress=False)) as file:
        corpus = [(f"corpus/{row['path']}", row["caption"], row["split"]) for row in csv.DictReader(file)]
    rows = [(path, "" if i % 4 == 1 else caption, split) for i, (path, caption, split) in enumerate(corpus)]
    for number in range(3):
        noise = np.random.default_rng(number).integers(0, 255, (48, 48, 3), dtype=np.uint8)
        with av.open(str(folder / f"still{number}.png"), "w", format="image2") as container:
            stream = container.add_stream("png", rate=1)
            stream.width = stream.height = 48
            stream.pix_fmt = "rgb24"
            for packet in [*stream.encode(av.VideoFrame.from_ndarray(noise)), *stream.encode()]:
                container.mux(packet)
        rows.append((f"still{number}.png", f"still number {number}", "train"))
    (folder / "broken.mp4").write_bytes((folder / corpus[0][0]).read_bytes()[:900])
    rows.append(("broken.mp4", "broken", "train"))
    with open(folder / "clips.csv", "w", newline="") as file:
        csv.writer(file).writerows([("path", "caption", "split"), *rows])
    return folder


@pytest.fixture(scope="module")
def runs(folder):
    """What each world, sharding and micro-batch saw in 20 steps and became."""
    jobs = {1: ("specific:ddp:0", "specific:ddp:3", "agnostic:ddp:0"),
            2: ("specific:ddp:0", "specific:ddp:1", "specific:fsdp:3", "agnostic:ddp:0", "agnostic:fsdp:0"),
            4: ("specific:ddp:0", "agnostic:ddp:0")}  # fmt: skip
    for ranks, names in jobs.items():
        done = launch(ranks, HERE / "ranks.py", folder, *names)
        assert done.returncode == 0, done.stderr
    found = {}
    for path in sorted(folder.glob("*-*-*.json")):
        found[path.stem] = json.loads(path.read_text()), torch.load(path.with_suffix(".pt"), weights_only=True)
    assert len(found) == sum(map(len, jobs.values()))
    return found


def test_no_number_of_processes_changes_a_batch(runs):
    for name, (told, _) in runs.items():
        assert told["seen"] == runs[f"{name.partition('-')[0]}-ddp-1-0"][0]["seen"], name
    clips, bad, sound, captions = zip(*runs["specific-ddp-1-0"][0]["seen"], strict=True)
    assert any(bad)  # the broken clip was met, and replaced alike
    assert 0.0 in chain(*sound)
    assert 0.0 in chain(*captions)
    assert all(len(set(batch)) == 8 for batch in clips)


def test_no_number_of_processes_changes_losses_gradients_or_weights(runs):
    for name, (told, weights) in runs.items():
        alone, expected = runs[f"{name.partition('-')[0]}-ddp-1-0"]
        for ours, theirs in zip(told["records"], alone["records"], strict=True):
            assert ours == pytest.approx(theirs, rel=ROUNDING), name
        for key, value in expected.items():
            torch.testing.assert_close(weights[key], value, rtol=ROUNDING, atol=ROUNDING, msg=f"{name}: {key}")


STEPS = 6
FEW = ["--steps", STEPS, "--batch-size", 8, "--set=save_every=2", "--set=data.workers=0", "--set=eval_windows=1",
       "--set=data.max_bad_share=1", "--set=model.video.size=32", "--device=cpu"]  # fmt: skip


def losses(out):
    return [record["loss"] for record in read_metrics(out / "metrics.jsonl")]


@pytest.fixture(scope="module")
def two(folder):
    """An undisturbed run of two processes."""
    done = launch(2, "-m", "vatt.train", "--data", folder / "clips.csv", "--out", folder / "two", *FEW)
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


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_killed_process_ends_the_run_and_resuming_repeats_it(folder, two, tmp_path, parallel):
    """The losses of a sharded run that goes on as one process are those of the whole one to rounding."""
    out = tmp_path / "run"
    (tmp_path / "killed.py").write_text(KILLED)
    arguments = ("--data", folder / "clips.csv", "--out", out, "--parallel", parallel, *FEW)
    died = launch(2, tmp_path / "killed.py", *arguments)
    assert died.returncode != 0
    assert "SIGKILL" in died.stderr  # torchrun names the process that began it, and ends the others
    assert [p.name for p in (out / "checkpoints").glob("step-*")] == ["step-00000002"]
    if parallel == "ddp":
        done = launch(2, "-m", "vatt.train", "--out", out, "--resume")
        assert done.returncode == 0, done.stderr
        assert losses(out) == losses(two[0])
    else:
        assert (out / "checkpoints" / "step-00000002" / "shards").is_dir()
        assert train.main(["--out", str(out), "--resume"]) == 0
        assert losses(out) == pytest.approx(losses(two[0]), rel=1e-3)  # float32


def test_features_and_scores_of_two_processes_are_those_of_one(folder, two, tmp_path):
    model, data = two[0] / "model", folder / "clips.csv"
    embedding = ("--model", model, "--data", data, "--windows", 1, "--workers", 0, "--max-bad-share", 1)
    scoring = ("--model", model, "--data", data, "--split", "train", "--workers", 0, "--max-bad-share", 1)
    for command, arguments in (("embed", embedding), ("evaluate", scoring)):
        suffix = ".npz" if command == "embed" else ""
        done = launch(2, "-m", f"vatt.{command}", *arguments, "--out", tmp_path / f"{command}2{suffix}")
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
from vatt import step, train
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
    done = launch(2, tmp_path / "broken.py", "--data", folder / "clips.csv", "--out", out, *FEW)
    assert done.returncode == 0, done.stderr
    records, whole = read_metrics(out / "metrics.jsonl"), read_metrics(two[0] / "metrics.jsonl")
    assert [record["updated"] for record in records] == [True, False, True, True, True, True]
    assert records[1]["loss"] is None
    assert len(records[1]["clips"]) == 8  # those of both ranks
    assert records[0]["loss"] == whole[0]["loss"]
    assert all(record["loss"] is not None for record in records[2:])  # no rank took the NaN in


def test_a_batch_that_cannot_be_divided_is_refused_once(folder, tmp_path):
    done = launch(2, "-m", "vatt.train", "--out", tmp_path / "run", "--batch-size", 5)
    assert "a batch of 5 clips cannot be divided among 2 processes; choose a multiple of 2" in done.stderr
    assert not (tmp_path / "run").exists()
