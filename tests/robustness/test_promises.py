"""What a run promises to whoever lets it work for weeks, one test a promise.

The tenth, that every command of README works, is test_readme_commands.py. The fourth on one rank of several is in
test_distributed.py.
"""

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import chain, pairwise
from pathlib import Path

import pytest
import torch
from helpers.forked import torchrun
from helpers.mixed_clips import write_mixed_clips
from helpers.processes import children, wait_until
from helpers.small_run import losses, run, same_run, saved_step, start, start_anew, steps

from vatt.checkpoints.training_checkpoint import load
from vatt.config.presets import tiny
from vatt.data import loader as data_loader
from vatt.data.datasets.training import ClipDataset
from vatt.data.loader import make_loader
from vatt.data.manifest import read_manifest
from vatt.data.synthetic import build_corpus
from vatt.data.tokenizer import Tokenizer
from vatt.training import loop
from vatt.training.metrics_log import read_metrics

pytestmark = pytest.mark.usefixtures("cache")
ROOT = Path(__file__).resolve().parents[2]
STEPS = 10  # two epochs of the corpus
# A save that never ends, when all is written but the folder's name.
ENDLESS_SAVE = """
import sys, time
from vatt import train
from vatt.checkpoints import training_checkpoint
sync = training_checkpoint._sync
training_checkpoint._sync = lambda path: time.sleep(3600) if path.name == "checksums.json" else sync(path)
sys.exit(train.main(sys.argv[1:]))
"""
# kill -9 of one rank, {delay} seconds after it began a step.
KILLED = """
import os, signal, sys, threading
from vatt import train
step = train.train_step
def deadly(*arguments):
    if arguments[4] == {step} and os.environ.get("RANK", "0") == "{rank}":
        threading.Timer({delay}, os.kill, (os.getpid(), signal.SIGKILL)).start()
    return step(*arguments)
train.train_step = deadly
sys.exit(train.main(sys.argv[1:]))
"""


def undisturbed(folder, ranks):
    out = folder / "run"
    process = start("--out", out, "--steps", STEPS, "--fused", ranks=ranks)
    said = process.communicate()[0]
    assert process.returncode == 0, said
    return out


@pytest.fixture(scope="module")
def whole(tmp_path_factory, cache):
    return undisturbed(tmp_path_factory.mktemp("whole"), 1)


@pytest.mark.parametrize("ranks", [1, 2])
def test_1_killed_at_any_moment(ranks, request, tmp_path):
    """kill -9 at random steps, twice per epoch and during a save, 1 and 2 ranks: remaining losses bit-identical."""
    whole = request.getfixturevalue("whole") if ranks == 1 else undisturbed(tmp_path / "whole", ranks)
    out, draw = tmp_path / "run", random.Random(ranks)
    first = ("--out", out, "--steps", STEPS, "--fused")
    for step in (*sorted(draw.sample(range(1, STEPS // 2), 2)), draw.randrange(STEPS // 2, STEPS - 1)):
        arguments = first if not out.exists() else ("--out", out, "--resume")
        deadly = KILLED.format(step=step, rank=draw.randrange(ranks), delay=draw.uniform(0, 0.05))
        (tmp_path / "killed.py").write_text(deadly)
        process = start(*arguments, program=(str(tmp_path / "killed.py"),), ranks=ranks)
        said = process.communicate()[0]
        assert process.returncode != 0, said
        assert saved_step(out) <= steps(out)
    (tmp_path / "endless.py").write_text(ENDLESS_SAVE)
    process = start("--out", out, "--resume", program=(str(tmp_path / "endless.py"),), ranks=ranks)
    wait_until(process, lambda: any((out / "checkpoints").glob(".writing-*/checksums.json")))
    # The first rank saves; torchrun ends the others.
    os.kill(children(process.pid)[0] if ranks > 1 else process.pid, signal.SIGKILL)
    process.communicate()
    assert list((out / "checkpoints").glob(".writing-*"))
    process = start("--out", out, "--resume", ranks=ranks)
    said = process.communicate()[0]
    assert process.returncode == 0, said
    assert same_run(out, whole)
    assert not list((out / "checkpoints").glob(".writing-*"))


def test_2_damaged_checkpoints(whole, tmp_path, capsys):
    """A truncated or bit-flipped checkpoint is found by its checksum, the last good one used, both named."""
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    truncated, flipped = (out / "checkpoints" / name for name in ("step-00000010/state.pt", "step-00000009/state.pt"))
    data = bytearray(truncated.read_bytes())
    truncated.write_bytes(data[:-1])
    data = bytearray(flipped.read_bytes())
    data[len(data) // 2] ^= 1
    flipped.write_bytes(data)
    assert run("--out", out, "--resume") == 0
    said = capsys.readouterr().err
    for damaged in ("step-00000010/state.pt", "step-00000009/state.pt"):
        assert f"{damaged} does not match its checksum; using step-00000006 instead" in said
    assert same_run(out, whole)


def test_3_terminated(whole, tmp_path):
    """SIGTERM: step finished, saved, exit 143; a second one exits at once."""
    out = tmp_path / "run"
    process = start("--out", out, "--steps", STEPS, "--fused")
    wait_until(process, lambda: steps(out) >= 4)
    process.send_signal(signal.SIGTERM)
    said = process.communicate()[0]
    assert process.returncode == 143, said
    assert "--resume" in said
    assert saved_step(out) == steps(out) >= 4
    process = start("--out", out, "--resume", program=("-c", ENDLESS_SAVE))
    wait_until(process, lambda: any((out / "checkpoints").glob(".writing-*/checksums.json")))
    process.send_signal(signal.SIGTERM)
    wait_until(process, lambda: "saving after this step" in process.said())
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 143
    assert run("--out", out, "--resume") == 0
    assert same_run(out, whole)


def poison_batches(monkeypatch, poisoned):
    """Not-a-number in the sound of the batches of these steps."""
    real = data_loader.make_loader

    def loader(dataset, start, *rest):
        for step, batch in enumerate(real(dataset, start, *rest), start):
            yield replace(batch, audio=batch.audio * math.nan) if step in poisoned else batch

    monkeypatch.setattr(loop, "make_loader", loader)


def overflow_gradients(monkeypatch, poisoned):
    real, calls = torch.nn.utils.get_total_norm, iter(range(STEPS))

    def total_norm(gradients):
        norm = real(gradients)
        return norm * math.inf if next(calls) in poisoned else norm

    monkeypatch.setattr(torch.nn.utils, "get_total_norm", total_norm)


@pytest.mark.parametrize("break_steps", [poison_batches, overflow_gradients])
def test_4_losses_and_gradients_that_are_not_finite(break_steps, tmp_path, monkeypatch, capsys):
    """A non-finite loss or gradient: no update, step and sample ids recorded; skip up to a limit, then stop."""
    break_steps(monkeypatch, {1, 4, 5})
    out = tmp_path / "run"
    limit = ("--set=max_nonfinite=2", "--set=save_every=1", "--set=keep_checkpoints=9")
    assert run("--out", out, "--steps", STEPS, "--fused", *limit) == 1
    said = capsys.readouterr().err
    assert "2 steps in a row without a finite loss, the last is step 6" in said
    records = read_metrics(out / "metrics.jsonl")
    assert [record["updated"] for record in records] == [True, False, True, True, False, False]
    assert "step 2: loss or gradient not finite" in said
    assert len(records[1]["clips"]) == 4
    assert all(name in said for name in records[1]["clips"])
    saved = [load(out / "checkpoints" / f"step-0000000{n}") for n in (1, 2, 3)]
    same = [all(torch.equal(a.model[name], b.model[name]) for name in a.model) for a, b in pairwise(saved)]
    assert same == [True, False]
    moments = [checkpoint.state["optimizer"]["state"] for checkpoint in saved]
    assert all(torch.equal(a, moments[1][i][k]) for i, s in moments[0].items() for k, a in s.items() if a is not None)


def test_5_bad_clips(tmp_path, cache, capsys):
    """Bad clips: deterministic replacement, counted and named once, a cap on their share, no hang."""
    clips = sorted(cache.rglob("*.mp4"))[:8]
    (tmp_path / "cut.mp4").write_bytes(clips[0].read_bytes()[:200])
    (tmp_path / "empty.mp4").touch()
    os.mkfifo(tmp_path / "pipe.mp4")  # whoever opens it waits for a writer
    bad = ["cut.mp4", "empty.mp4", "pipe.mp4", "gone.mp4"]
    rows = "".join(f"{clip},a shape {i}\n" for i, clip in enumerate([*bad, *clips]))
    (tmp_path / "m.csv").write_text("path,caption\n" + rows)
    settings = ("--data", tmp_path / "m.csv", "--steps", 6)
    for name, workers in (("a", 0), ("b", 2)):
        chosen = (f"--set=data.workers={workers}", "--set=data.max_bad_share=0.5")
        assert run("--out", tmp_path / name, *settings, *chosen) == 0
        said = capsys.readouterr().err
        assert [said.count(f"replaced: {clip}") for clip in bad] == [1] * len(bad)
    tables = [(tmp_path / name / "bad_clips.csv").read_text() for name in "ab"]
    assert tables[0] == tables[1]
    assert len(tables[0].splitlines()) == 1 + len(bad)
    assert same_run(tmp_path / "a", tmp_path / "b")
    assert run("--out", tmp_path / "c", *settings, "--set=data.max_bad_share=0.2") == 1
    assert "data.max_bad_share = 0.2 allows" in capsys.readouterr().err


# Summation in another order: rounding of float64, times what ten steps of Adam make of it.
ROUNDING = 1e-9


def test_6_world_size(tmp_path):
    """The number of processes, their sharding and micro-batches change no batch, loss, gradient or weight."""
    write_mixed_clips(tmp_path, 12)
    jobs = {
        1: ("specific:ddp:0", "specific:ddp:3", "agnostic:ddp:0"),
        2: ("specific:ddp:0", "specific:ddp:1", "specific:fsdp:3", "agnostic:ddp:0", "agnostic:fsdp:0"),
        4: ("specific:ddp:0", "agnostic:ddp:0"),
    }
    for ranks, names in jobs.items():
        done = torchrun(ranks, ROOT / "tests" / "helpers" / "ranks.py", tmp_path, *names)
        assert done.returncode == 0, done.stderr
    runs = {}
    for path in sorted(tmp_path.glob("*-*-*.json")):
        runs[path.stem] = json.loads(path.read_text()), torch.load(path.with_suffix(".pt"), weights_only=True)
    assert len(runs) == sum(map(len, jobs.values()))
    for name, (told, weights) in runs.items():
        alone, expected = runs[f"{name.partition('-')[0]}-ddp-1-0"]
        assert told["seen"] == alone["seen"], name
        for ours, theirs in zip(told["records"], alone["records"], strict=True):
            assert ours == pytest.approx(theirs, rel=ROUNDING), name
        for key, value in expected.items():
            torch.testing.assert_close(weights[key], value, rtol=ROUNDING, atol=ROUNDING, msg=f"{name}: {key}")
    clips, bad, sound, captions = zip(*runs["specific-ddp-1-0"][0]["seen"], strict=True)
    assert any(bad)  # the broken clip was met, and replaced alike
    assert 0.0 in chain(*sound)
    assert 0.0 in chain(*captions)
    assert all(len(set(batch)) == 8 for batch in clips)


# Well-conditioned, so that 20 steps do not blow up rounding: Adam does not normalise gradients that are all noise, and
# batch norm sees 8 clips. Few tokens, as the interpreter takes a second a step.
MICRO = [
    *("--steps=20", "--batch-size=8", "--set=optim.eps=0.01", "--set=save_every=100", "--set=model.video.frames=4"),
    *("--set=model.video.size=16", "--set=model.video.patch=4,8,8", "--set=model.audio.samples=256"),
    *("--set=model.audio.patch=32", "--set=model.text.words=4", "--set=model.text.captions=1"),
    *(
        f"--set=model.{encoder}_encoder.{setting}"
        for encoder in ("video", "audio", "text")
        for setting in ("heads=1", "dropout=0")
    ),
]
QUICKENED = f"""
import sys
sys.path.append({str(ROOT / "tests")!r})
from helpers.interpreter.needs import quicken
from vatt import train
quicken()
sys.exit(train.main(sys.argv[1:]))
"""


def test_7_fused_is_reference(tmp_path):
    """The reference and the fused operations, portable and Triton in its interpreter, agree over 20 steps."""
    pytest.importorskip("triton")
    interpreter = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    process = start_anew("--out", tmp_path / "triton", "--fused", *MICRO, program=("-c", QUICKENED), env=interpreter)
    assert run("--out", tmp_path / "reference", *MICRO) == 0
    assert run("--out", tmp_path / "portable", "--fused", *MICRO) == 0
    said = process.communicate()[0]
    assert process.returncode == 0, said
    assert "operations: fused, Triton kernels in Triton's interpreter on cpu" in said
    literal = read_metrics(tmp_path / "reference" / "metrics.jsonl")
    # Beside the losses of the same batches without any update: it moved far from where all began, by two thousand times
    # what is allowed below. (How a loss compares with that of another batch says little about the model.)
    assert run("--out", tmp_path / "still", *MICRO, "--set=optim.rate=1e-12", "--set=optim.final_rate=1e-12") == 0
    still = read_metrics(tmp_path / "still" / "metrics.jsonl")
    assert max(abs(one["loss"] - two["loss"]) for one, two in zip(literal, still, strict=True)) > 0.2
    for name in ("portable", "triton"):
        records = read_metrics(tmp_path / name / "metrics.jsonl")
        assert [record["operations"] for record in records] == [name] * 20
        for key, tolerance in (("loss", 3e-5), ("gradient_norm", 3e-4)):  # ten times what rounding makes of it
            assert [r[key] for r in records] == pytest.approx([r[key] for r in literal], rel=tolerance)


def test_8_workers_prefetch_and_threads():
    """The number of workers, prefetch and threads change no batch."""
    clips, config = read_manifest(build_corpus(clips=24, progress=False)), tiny()
    words = Tokenizer.build([caption for clip in clips for caption in clip.captions], 200)
    dataset = ClipDataset(clips, config.data, config.model, words, 1, 4)
    before, found = torch.get_num_threads(), []
    try:
        for workers, prefetch, threads in ((0, 1, 1), (0, 1, 2), (1, 1, 2), (2, 4, 1)):
            torch.set_num_threads(threads)
            found.append(list(make_loader(dataset, 0, 6, workers, prefetch)))
    finally:
        torch.set_num_threads(before)
    for others in found[1:]:
        for ours, theirs in zip(found[0], others, strict=True):
            assert (ours.clips, ours.tried, ours.bad) == (theirs.clips, theirs.tried, theirs.bad)
            for name in ("video", "audio", "text", "video_mask", "audio_mask", "text_mask", "label", "labels"):
                assert torch.equal(getattr(ours, name), getattr(theirs, name)), name


def test_9_a_fresh_clone_trains(tmp_path):
    """A fresh clone trains: nothing that is not committed is needed."""
    if not (ROOT / ".git").exists():
        pytest.skip("this folder is no git repository")
    clone, packages = tmp_path / "clone", tmp_path / "packages"
    subprocess.run(["git", "clone", "-q", "--depth=1", ROOT.as_uri(), clone], check=True)
    packages.mkdir()
    for name, folder in (("vatt", "vatt"), ("vatt_kernels", "kernels")):  # as setup.py installs them
        (packages / name).symlink_to(clone / folder)
    environment = os.environ | {"PYTHONPATH": str(packages), "VATT_CACHE": str(tmp_path / "cache")}
    check = "from importlib.util import find_spec; print(*(find_spec(n).origin for n in ('vatt', 'vatt_kernels')))"
    found = subprocess.run([sys.executable, "-c", check], cwd=clone, env=environment, capture_output=True, text=True)
    assert found.stdout.count(str(tmp_path)) == 2, found.stdout + found.stderr
    process = start_anew("--fused", "--steps=3", cwd=clone, env=environment)
    said = process.communicate()[0]
    assert process.returncode == 0, said
    assert len(losses(clone / "runs" / "tiny")) == 3
    status = subprocess.run(["git", "status", "--porcelain"], cwd=clone, capture_output=True, text=True, check=True)
    assert status.stdout == ""  # what a run writes is ignored
