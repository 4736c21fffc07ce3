"""Disks that are full, folders that cannot be or must not be written, clocks that jump: clear errors, nothing lost."""

import contextlib
import os
import resource
import shutil
import signal
from pathlib import Path

import pytest
from helpers.processes import wait_until
from helpers.small_run import losses, run, same_run, saved_step, start, start_anew, steps

from vatt.checkpoints.training_checkpoint import load

pytestmark = pytest.mark.usefixtures("cache")
NEWEST = "step-00000010"


@pytest.fixture(scope="module")
def whole(tmp_path_factory, cache):
    """An undisturbed run of 10 steps."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert run("--out", out, "--steps", 10, "--fused") == 0
    return out


@pytest.fixture
def begun(whole, tmp_path):
    """The same run after a kill at step 8: its checkpoint is of step 6."""
    out = tmp_path / "run"
    shutil.copytree(whole, out, ignore=shutil.ignore_patterns("model", "result.json", "loss.png", NEWEST, "*09"))
    lines = (whole / "metrics.jsonl").read_text().splitlines(keepends=True)
    (out / "metrics.jsonl").write_text("".join(lines[:8]))
    return out


@contextlib.contextmanager
def largest_file(size: int):
    """No file can grow beyond `size` bytes, as on a disk that is full then."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("file", ["config.json", "metrics.jsonl", "model.safetensors", "state.pt"])
def test_a_full_disk_costs_no_more_than_the_steps_since_the_last_checkpoint(file, whole, begun, capsys):
    checkpoint = whole / "checkpoints" / NEWEST
    place = checkpoint / file if (checkpoint / file).exists() else begun / file
    before = sorted(begun.rglob("*"))
    with largest_file(place.stat().st_size - 1):
        assert run("--out", begun, "--resume") == 1
    said = capsys.readouterr().err.splitlines()[-1]
    named = begun / "checkpoints" / "step-00000009" if place.parent == checkpoint else place
    assert said.startswith(f"error: {named} cannot be written: ")
    assert "File too large" in said
    assert "are free on its disk" in said
    assert {"config.json": "the config.json of before is whole", "metrics.jsonl": "newest checkpoint"}.get(
        file, "step-00000006 is as it was, and --resume goes on with it"
    ) in said
    assert saved_step(begun) == 6
    assert sorted(begun.rglob("*")) == before  # and no halves of files
    assert run("--out", begun, "--resume") == 0
    assert same_run(begun, whole)


@pytest.mark.parametrize("place", ["file", "file/run", "/proc/run"])
def test_a_folder_that_cannot_be_made(place, tmp_path, capsys):
    (tmp_path / "file").write_text("precious")
    assert run("--out", tmp_path / place, "--steps", 1) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert place.removesuffix("/run") in said
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.parametrize("damage", ["", "config.json is gone"])
def test_the_folder_of_another_run_is_refused(damage, whole, tmp_path, capsys):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    if damage:
        (out / "config.json").unlink()
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert run("--out", out, "--steps", 3) == 2
    assert "--resume" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert run("--out", out, "--resume") == 0
    assert same_run(out, whole)


def test_other_files_in_the_folder_stay(tmp_path):
    (tmp_path / "notes.txt").write_text("precious")
    assert run("--out", tmp_path, "--steps", 1) == 0
    assert (tmp_path / "notes.txt").read_text() == "precious"


SLOW_CLIPS = """
import contextlib, sys, time
from vatt.data.decoding import watchdog as watch
decoding = watch.Watch.decoding
@contextlib.contextmanager
def slow(self, clip, *more):
    with decoding(self, clip, *more):
        time.sleep(0.2)
        yield
watch.Watch.decoding = slow
if __name__ == "__main__":
    from vatt import train
    sys.exit(train.main(sys.argv[1:]))
"""


def test_sigterm_to_all_processes_of_a_run_blames_no_clip(tmp_path):
    """Launchers and service managers send it to data workers, too, which are at some clip."""
    (tmp_path / "slow.py").write_text(SLOW_CLIPS)
    out, program = tmp_path / "run", (str(tmp_path / "slow.py"),)
    settings = ("--steps", 10, "--fused", "--set=data.cache_gb=0")
    process = start_anew("--out", out, *settings, "--set=data.workers=1", program=program, start_new_session=True)
    wait_until(process, lambda: steps(out) >= 3)
    os.killpg(process.pid, signal.SIGTERM)
    said = process.communicate()[0]
    assert process.returncode == 143, said
    assert "bad clip" not in said
    assert run("--out", out, "--resume", "--set=data.workers=0") == 0
    assert run("--out", tmp_path / "whole", *settings) == 0
    assert same_run(out, tmp_path / "whole")


JUMPING = """
import itertools, sys, time
jumps = itertools.cycle((0.0, 86400.0, -86400.0 * 365, 3600.0, -1.0))
now = time.time
time.time = lambda: now() + next(jumps)
from vatt import train
sys.exit(train.main(sys.argv[1:]))
"""


def test_a_clock_that_jumps_changes_nothing(whole, tmp_path):
    out = tmp_path / "run"
    process = start("--out", out, "--steps", 10, "--fused", program=("-c", JUMPING))
    said = process.communicate()[0]
    assert process.returncode == 0, said
    assert "Traceback" not in said
    assert same_run(out, whole)


def test_the_newest_checkpoint_is_that_of_the_highest_step(begun, whole):
    for age, path in enumerate(sorted((whole / "checkpoints").iterdir())):
        shutil.copytree(path, begun / "checkpoints" / path.name, dirs_exist_ok=True)
        os.utime(begun / "checkpoints" / path.name, (10**9 - age, 10**9 - age))
    assert saved_step(begun) == 10
    (begun / "checkpoints" / NEWEST / "checksums.json").unlink()
    assert saved_step(begun) == 9


def test_noise_at_the_end_of_the_metrics_is_dropped(begun, whole):
    with open(begun / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 9, "lo' + bytes(range(128, 256)) + bytes(100))
    assert run("--out", begun, "--resume") == 0
    assert steps(begun) == 10
    assert same_run(begun, whole)
    assert load(begun / "checkpoints" / NEWEST).step == len(losses(begun))
    assert not list(Path(begun).glob(".*.tmp"))
