"""What a run promises about whatever it shares with others: memory, a folder, the other ranks, files from elsewhere.

Promises 11 to 14, one test a promise at least; the first ten are in test_promises.py. That no file makes a traceback is
held for each kind of file in test_foreign_files.py; here is what a user would see.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.forked import torchrun
from helpers.processes import begin, environment, finished, launched, wait_until
from helpers.small_run import SMALL, losses, run, same_run, saved_step, start, start_anew, steps

from vatt import card, finetune, train
from vatt.training.metrics_log import read_metrics

pytestmark = pytest.mark.usefixtures("cache")
SOON = 120.0  # seconds; what is promised at once takes less on the slowest machine, and for ever if it is not kept

# Decoding does not come back from the third batch on.
HANGING = """
import contextlib, sys, time
from vatt.data.decoding import watchdog
decoding, clips = watchdog.Watch.decoding, []
@contextlib.contextmanager
def hanging(self, clip, *more):
    with decoding(self, clip, *more):
        clips.append(clip.index)
        if len(clips) > 12:
            time.sleep(3600)
        yield
watchdog.Watch.decoding = hanging
if __name__ == "__main__":
    from vatt import train
    sys.exit(train.main(sys.argv[1:]))
"""


def test_11_sigterm_while_a_batch_is_waited_for_saves_at_once(tmp_path):
    """No wait without a bound: whoever asks a run to end is not kept waiting by a clip."""
    (tmp_path / "hanging.py").write_text(HANGING)
    out = tmp_path / "run"
    settings = (
        "--steps",
        10,
        "--fused",
        "--set=data.decode_seconds=3000",
        "--set=data.workers=1",
        "--set=data.prefetch=1",
    )
    process = start_anew("--out", out, *settings, program=(str(tmp_path / "hanging.py"),))
    wait_until(process, lambda: steps(out) >= 1)
    time.sleep(2)  # it waits by now; if it does not, SIGTERM ends a step as ever
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=SOON)[0]
    assert process.returncode == 143, said
    assert f"saved after step {steps(out)}" in said
    assert saved_step(out) == steps(out) >= 1
    assert run("--out", out, "--resume", "--set=data.workers=0", "--set=data.decode_seconds=30") == 0
    assert run("--out", tmp_path / "whole", "--steps", 10, "--fused") == 0
    assert same_run(out, tmp_path / "whole")


def test_11_a_full_dev_shm_does_not_matter(tmp_path):
    """A container has 64 MB of it, and clips of full size fill that with a few batches."""
    mount = [
        "unshare",
        "--map-root-user",
        "--mount",
        "bash",
        "-c",
        'mount -t tmpfs -o size=100k none /dev/shm && exec "$@"',
        "-",
    ]
    try:
        possible = subprocess.run([*mount, "true"], capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        possible = False
    if not possible:
        pytest.skip("a mount of one's own needs user namespaces (unshare)")
    command = [
        *mount,
        sys.executable,
        "-m",
        "vatt.train",
        *SMALL,
        "--out",
        str(tmp_path / "run"),
        "--steps=10",
        "--fused",
    ]
    done = finished([*command, "--set=data.workers=2"])
    assert done.returncode == 0, done.stderr
    assert run("--out", tmp_path / "whole", "--steps", 10, "--fused") == 0
    assert same_run(tmp_path / "run", tmp_path / "whole")


def test_12_a_running_training_is_not_resumed_beside_it(tmp_path, capsys):
    """One owner a folder: the second command says who the first is, and changes nothing."""
    out = tmp_path / "run"
    process = start("--out", out, "--steps", 40, "--fused")
    try:
        wait_until(process, lambda: steps(out) >= 3)
        for arguments, code in ((("--out", out, "--resume"), 1), (("--out", out, "--steps", 3), 1)):
            assert run(*arguments) == code
            said = capsys.readouterr().err
            assert f"error: {out} is being written by process {process.pid} on " in said
            assert "Traceback" not in said
        printed = process.communicate(timeout=300)[0]
    finally:
        process.kill()
    assert process.returncode == 0, printed
    assert [record["step"] for record in read_metrics(out / "metrics.jsonl")] == list(range(1, 41))
    result = json.loads((out / "result.json").read_text())
    assert result["final_loss"] == pytest.approx(sum(losses(out)[-20:]) / 20)
    assert not list(out.glob(".*"))


def test_12_two_runs_started_together_get_a_folder_each(tmp_path):
    """As in a job array: the folder is taken before a large manifest is read."""
    processes = [start("--steps", 2, "--fused", "--seed", seed, cwd=tmp_path) for seed in (1, 2)]
    for process in processes:
        said = process.communicate(timeout=300)[0]
        assert process.returncode == 0, said
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["tiny", "tiny-2"]
    seeds = [json.loads((path / "config.json").read_text())["config"]["seed"] for path in (tmp_path / "runs").iterdir()]
    assert sorted(seeds) == [1, 2]
    assert all(len(losses(path)) == 2 for path in (tmp_path / "runs").iterdir())


def test_12_a_killed_run_holds_its_folder_no_longer(tmp_path):
    out = tmp_path / "run"
    process = start("--out", out, "--steps", 10, "--fused")
    wait_until(process, lambda: steps(out) >= 4)
    process.kill()
    process.communicate()
    assert (out / ".lock").exists()
    assert run("--out", out, "--resume") == 0
    assert not (out / ".lock").exists()


ONE = """
import os, sys
from vatt import train
other = os.environ["OTHER"].split() if os.environ["RANK"] == "1" else []
sys.exit(train.main(sys.argv[1:] + other))
"""


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ("--seed 5", "the processes differ: seed is 1 for process 0 and 5 for process 1"),
        ("--set optim.rate=0.5", "the processes differ: optim.rate is"),
        ("--steps 7", "the processes differ: steps is 10 for process 0 and 7 for process 1"),
        ("--resume", "holds no run"),
    ],
)
def test_13_ranks_that_were_started_differently_do_not_start(other, said, tmp_path):
    """Ranks agree or end."""
    (tmp_path / "one.py").write_text(ONE)
    settings = (*SMALL, "--out", tmp_path / "run", "--steps=10", "--fused")
    done = torchrun(2, tmp_path / "one.py", *settings, env=environment(OTHER=other))
    assert done.returncode != 0
    assert said in done.stderr
    assert not (tmp_path / "run").exists()


def test_13_trainers_do_not_outlive_a_killed_torchrun(tmp_path):
    out = tmp_path / "run"
    command = launched(2, "-m", "vatt.train", *SMALL, "--out", out, "--steps", 5000, "--fused")
    process = begin(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    wait_until(process, lambda: steps(out) >= 3)
    trainers = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    assert len(trainers) == 2
    process.kill()
    deadline = time.monotonic() + SOON
    try:
        while any(alive(pid) for pid in trainers):
            assert time.monotonic() < deadline, "a trainer outlived its torchrun"
            time.sleep(0.1)
    finally:
        for pid in filter(alive, trainers):
            os.kill(pid, signal.SIGKILL)
        process.communicate()
    assert saved_step(out) == steps(out) >= 3  # they were asked to end, and saved


@pytest.mark.parametrize("name", ["config.json", "result.json", "metrics.jsonl", "bad_clips.csv", "checkpoints"])
@pytest.mark.parametrize("content", [b"", b"[]", b"{" * 10**5, b"\x1b[2J\xff", b'{"config": {"steps": []}}\n', None])
def test_14_no_file_makes_a_traceback(name, content, tmp_path, capsys):
    """Whatever lies in a run's folder, a command ends with values or with one sentence."""
    out = tmp_path / "run"
    settings = {"config": {"steps": 3, "preset": "tiny"}}
    out.mkdir()
    (out / "config.json").write_text(json.dumps(settings))
    if content is None:
        (out / name).unlink(missing_ok=True)
        (out / name / "step-1e9").mkdir(parents=True)  # a folder where a file should be
    else:
        (out / name).write_bytes(content)
    for command in (train.main, finetune.main, card.main):
        arguments = [str(out)] if command is card.main else ["--status", str(out)]
        code = command(arguments)
        said = capsys.readouterr()
        assert code in (0, 1, 2)
        assert "Traceback" not in said.err
        assert "\x1b" not in said.out + said.err
        assert code == 0 or (said.err.startswith("error: ") and said.err.count("\n") == 1)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
