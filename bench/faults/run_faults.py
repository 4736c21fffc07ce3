"""What happens to a run in weeks, made to happen: kills, signals, lost workers, full disks, damaged files.

Each fault says what the run promises to do about it, and `Broken` is raised when it does something else.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from harness.report import ReportError

from vatt.checkpoints import training_checkpoint

LIMIT = 900.0  # seconds after which a process that should have ended hangs
LINGER = 90.0  # seconds after the end of a process within which all that it started has to end
STARTING = 6.0  # seconds within which a process is killed that is still starting
REACH = 12  # steps after the checkpoint it began with, within which a process meets its fault


class Broken(ReportError):
    """A promise that a run did not keep."""


class Process:
    """One process of training in folder `out`, or torchrun with `ranks` of them.

    A variable of its environment marks it, so that whatever it starts can be seen. `file_bytes`: the largest file it
    may write, as if the disk were full then.
    """

    def __init__(
        self, command: Sequence[str], out: Path, log: Path, file_bytes: int | None = None, ranks: int = 1
    ) -> None:
        self.command, self.out, self.log, self.ranks = list(command), out, log, ranks
        self.before = _inode(out / "metrics.jsonl")
        self._mark = f"VATT_CHAOS={uuid.uuid4().hex}"
        limit = None if file_bytes is None else functools.partial(_limit_files, file_bytes)
        with open(log, "wb") as file:
            self._process = subprocess.Popen(
                self.command,
                stdout=file,
                stderr=subprocess.STDOUT,
                # What it said last is not lost with it; machines without a network find each other by no name.
                env={
                    **os.environ,
                    "PYTHONUNBUFFERED": "1",
                    "GLOO_SOCKET_IFNAME": "lo",
                    **dict([self._mark.split("=")]),
                },
                start_new_session=True,
                preexec_fn=limit,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n")

    @property
    def in_steps(self) -> bool:
        """Whether its loop has begun: it writes a metrics.jsonl of its own."""
        return _inode(self.out / "metrics.jsonl") not in (None, self.before)

    @property
    def resumed_at(self) -> int | None:
        """The step it went on from, None if it did not get that far."""
        match = re.search(r"resuming after step (\d+)", self.said)
        if match:
            return int(match[1])
        return 0 if self.in_steps else None

    def wait(self, reached: Callable[[], bool]) -> bool:
        """Wait for `reached`; False when the process ended before. Raises `Broken` when it hangs."""
        deadline = time.monotonic() + LIMIT
        while not reached():
            if self._process.poll() is not None:
                return False
            if time.monotonic() > deadline:
                self.send(signal.SIGKILL)
                raise Broken(f"the run hung for {LIMIT:g} s")
            time.sleep(0.002)
        return True

    def wait_for_step(self, step: int) -> bool:
        return self.wait(lambda: self.in_steps and last_step(self.out) >= step)

    def send(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid, number)

    def trainers(self) -> list[int]:
        """Return the processes that train, in the order of their start."""
        if self.ranks == 1:
            return [self._process.pid]
        return sorted(pid for pid, parent in _family(self._mark).items() if parent == self._process.pid)

    def fork_servers(self) -> list[int]:
        """Return the processes that data workers come from."""
        parents, trainers = _family(self._mark), self.trainers()
        return [pid for pid, parent in parents.items() if parent in trainers and b"forkserver" in _command_of(pid)]

    def workers(self) -> list[int]:
        """Return the data workers: children of fork servers."""
        servers = self.fork_servers()
        return [pid for pid, parent in _family(self._mark).items() if parent in servers]

    def exit_codes(self, number: signal.Signals) -> tuple[int, ...]:
        """Return what it may end with when `number` was sent to it, and answered; torchrun has codes of its own."""
        return (128 + number,) if self.ranks == 1 else (1, 128 + number, -number)

    def end(self) -> int:
        """Return its exit code. Raises `Broken` when it hangs, or leaves processes behind."""
        self.wait(lambda: self._process.poll() is not None)
        deadline = time.monotonic() + LINGER
        while left := _family(self._mark):
            if time.monotonic() > deadline:
                for pid in left:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                raise Broken(f"{len(left)} processes were left behind")
            time.sleep(0.02)
        return self._process.wait()


def last_step(out: Path) -> int:
    """Return the step of the last whole line of metrics.jsonl, 0 without any."""
    try:
        lines = (out / "metrics.jsonl").read_bytes().split(b"\n")[:-1]
    except OSError:
        return 0
    for line in reversed(lines):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            return int(json.loads(line)["step"])
    return 0


def whole_checkpoints(out: Path) -> list[Path]:
    """Return the checkpoints, oldest first; damaged ones are left out."""
    return [path for path in sorted((out / "checkpoints").glob("step-*")) if _is_whole(path)]


def _is_whole(path: Path) -> bool:
    try:
        training_checkpoint.load(path)
    except training_checkpoint.DamagedCheckpoint:
        return False
    return True


def half_saves(out: Path) -> set[tuple[str, int]]:
    """Return the checkpoints that are being written, or were when the process was killed: name and inode."""
    return {(path.name, _inode(path) or 0) for path in (out / "checkpoints").glob(".writing-*")}


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None


def _limit_files(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def _family(mark: str) -> dict[int, int]:
    """Return the living processes with `mark` in their environment, each with its parent (Linux)."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark.encode() in entry.read_bytes().split(b"\0"):
                state, parent = (entry.parent / "stat").read_text().rpartition(")")[2].split()[:2]
                if state != "Z":
                    parents[int(entry.parent.name)] = int(parent)
    return parents


def _command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


# What happens to a process. Each function waits for its moment, strikes, and returns the exit code once the promise
# is known to be kept. A fault that finds the last step done already may come too late to be noticed.


class Moment(NamedTuple):
    step: int  # strike when this step is done
    steps: int  # of the whole run
    media: Path  # folder of the clips
    draw: random.Random


def kill_starting(process: Process, moment: Moment) -> int:
    began, after = time.monotonic(), moment.draw.uniform(0, STARTING)
    process.wait(lambda: time.monotonic() - began > after)
    return _kill(process)


def kill_in_a_step(process: Process, moment: Moment) -> int:
    if process.wait_for_step(moment.step):
        time.sleep(moment.draw.uniform(0, 0.3))
    return _kill(process)


def kill_in_a_save(process: Process, moment: Moment) -> int:
    before = half_saves(process.out)
    if process.wait(lambda: bool(half_saves(process.out) - before)):
        time.sleep(moment.draw.uniform(0, 0.1))
    return _kill(process)


def kill_while_finishing(process: Process, moment: Moment) -> int:
    if process.wait_for_step(moment.steps):
        time.sleep(moment.draw.uniform(0, 2))
    return _kill(process)


def kill_a_rank(process: Process, moment: Moment) -> int:
    """Kill one of several ranks; torchrun then ends the others."""
    if process.wait_for_step(moment.step):
        for pid in moment.draw.sample(process.trainers(), 1):
            _signal(pid, signal.SIGKILL)
    code = process.end()
    _expect(code != 0 or last_step(process.out) == moment.steps, code, "the end of all ranks")
    return code


def kill_a_fork_server(process: Process, moment: Moment) -> int:
    """Kill the process itself; what it started goes on. Then ask the run to end."""
    if process.wait_for_step(moment.step):
        for pid in process.fork_servers():
            _signal(pid, signal.SIGKILL)
        process.wait(lambda: last_step(process.out) > moment.step)
    return _stop(process, moment, signal.SIGTERM)


def start_a_second(process: Process, moment: Moment) -> int:
    """Resume the running run from another process, which is refused and changes nothing; then ask the first to end."""
    if process.wait_for_step(moment.step):
        command = [sys.executable, "-m", "vatt.train", "--out", str(process.out), "--resume"]
        second = Process(command, process.out, process.log.with_suffix(".second.log"))
        code = second.end()
        refused = code == 1 and "is being written by process" in second.said and "Traceback" not in second.said
        over = last_step(process.out) == moment.steps  # the first may have ended meanwhile
        _expect(refused or over, code, f"a refusal of the second process: {second.said[-500:]}")
    return _stop(process, moment, signal.SIGTERM)


def stop_while_waiting(process: Process, moment: Moment) -> int:
    """Stop the data workers, so that the run waits for a batch when it is asked to end."""
    if process.wait_for_step(moment.step):
        for pid in process.workers():
            _signal(pid, signal.SIGSTOP)
        time.sleep(moment.draw.uniform(0.5, 2.0))
    return _stop(process, moment, signal.SIGTERM)


def kill_the_launcher(process: Process, moment: Moment) -> int:
    """Kill torchrun (SIGKILL): its trainers save and end all the same."""
    if process.wait_for_step(moment.step):
        process.send(signal.SIGKILL)
    code = process.end()  # which waits for all that it started
    _expect(code != 0 or last_step(process.out) == moment.steps, code, "killed")
    if code and last_step(process.out) < moment.steps:
        _expect_saved(process, code)
    return code


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _kill(process: Process) -> int:
    """Kill the process (SIGKILL), or the first of several: torchrun ends the others."""
    for pid in process.trainers()[:1] or [process.pid]:
        _signal(pid, signal.SIGKILL)
    code = process.end()
    _expect(code in (-signal.SIGKILL, 0) or process.ranks > 1, code, "killed")
    return code


def terminate(process: Process, moment: Moment) -> int:
    return _stop(process, moment, signal.SIGTERM)


def interrupt(process: Process, moment: Moment) -> int:
    return _stop(process, moment, signal.SIGINT)


def terminate_twice(process: Process, moment: Moment) -> int:
    if process.wait_for_step(moment.step):
        process.send(signal.SIGTERM)
        time.sleep(moment.draw.uniform(0.01, 0.2))
        process.send(signal.SIGTERM)
    code = process.end()
    # The second may meet a process that has saved and is on its way out; to a shell both are 143.
    ended = code in (*process.exit_codes(signal.SIGTERM), -signal.SIGTERM)
    _expect(ended or (code == 0 and last_step(process.out) == moment.steps), code, "exit 143")
    return code


def _stop(process: Process, moment: Moment, number: signal.Signals) -> int:
    if process.wait_for_step(moment.step):
        process.send(number)
    code = process.end()
    if last_step(process.out) == moment.steps and code in (0, -number, *process.exit_codes(number)):
        return code  # after the last step there is nothing to save
    _expect(code in process.exit_codes(number) and "--resume" in process.said, code, f"exit {128 + number}")
    _expect_saved(process, code)
    return code


def kill_a_worker(process: Process, moment: Moment) -> int:
    if process.wait_for_step(moment.step) and (workers := process.workers()):
        with contextlib.suppress(ProcessLookupError):
            os.kill(moment.draw.choice(workers), signal.SIGKILL)
    code = process.end()
    if code == 0 and last_step(process.out) == moment.steps:
        return code  # it had all batches by then
    _expect(code == 1 and "a data worker stopped" in process.said, code, "exit 1, naming the worker")
    _expect_saved(process, code)
    return code


def fill_the_disk(process: Process, moment: Moment) -> int:
    """Wait for a full disk: the process was started with a small `file_bytes`."""
    finished = last_step(process.out) == moment.steps
    code = process.end()
    if code == 0 and finished:
        return code  # all that was left to write, the model, is smaller than a checkpoint and had room
    plain = "error" in process.said and ("Traceback" not in process.said or process.ranks > 1)  # torchrun's own
    _expect(code == 1 and plain, code, "exit 1 with a plain error")
    return code


def take_the_clips(process: Process, moment: Moment) -> int:
    """Take the folder of clips away, as a network disk may be; it is back once the run has ended."""
    away = moment.media.with_name("away")
    if process.wait_for_step(moment.step):
        moment.media.rename(away)
    try:
        code = process.end()
    finally:
        if away.exists():
            away.rename(moment.media)
    _expect(code == 1 and "could not be used" in process.said, code, "exit 1, naming a clip")
    _expect_saved(process, code)
    return code


def _expect(kept: bool, code: int, expectation: str) -> None:
    if not kept:
        raise Broken(f"expected: {expectation}; got exit {code}")


def _expect_saved(process: Process, code: int) -> None:
    saved = [path.name for path in whole_checkpoints(process.out)][-1:]
    expected = f"step-{last_step(process.out):08d}"
    _expect(saved == [expected], code, f"checkpoint {expected}, saved before it ended")


KILLS: dict[str, Callable[[Process, Moment], int]] = {
    "kill -9 while starting": kill_starting,
    "kill -9 in a step": kill_in_a_step,
    "kill -9 while saving": kill_in_a_save,
    "kill -9 while finishing": kill_while_finishing,
    "SIGTERM": terminate,
    "SIGTERM twice": terminate_twice,
    "SIGINT": interrupt,
    "data worker killed": kill_a_worker,
    "disk full": fill_the_disk,
    "clips gone": take_the_clips,
    "fork server killed": kill_a_fork_server,
    "second process": start_a_second,
    "SIGTERM while waiting": stop_while_waiting,
    "rank killed": kill_a_rank,
    "torchrun killed": kill_the_launcher,
}
OF_RANKS = ("rank killed", "torchrun killed")  # faults that only several processes have
OF_WORKERS = ("data worker killed", "fork server killed", "SIGTERM while waiting")  # and those of data workers


# What happens to files between two processes. Each function returns what the next process that resumes has to say.


def truncate(out: Path, draw: random.Random) -> str:
    file, promise = _newest_file(out, draw)
    data = file.read_bytes()
    file.write_bytes(data[: draw.randrange(len(data) - 1)])  # without its last line break a checksums.json is whole
    return promise


def flip(out: Path, draw: random.Random) -> str:
    file, promise = _newest_file(out, draw)
    data = bytearray(file.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    file.write_bytes(data)
    return promise


def remove(out: Path, draw: random.Random) -> str:
    file, promise = _newest_file(out, draw)
    file.unlink()
    return promise


def truncate_all(out: Path, draw: random.Random) -> str:
    for folder in whole_checkpoints(out):
        file = folder / draw.choice(("model.safetensors", "state.pt"))
        file.write_bytes(file.read_bytes()[:1000])
    return "no whole checkpoint in"


def cut_config(out: Path, draw: random.Random) -> str:
    data = (out / "config.json").read_bytes()
    (out / "config.json").write_bytes(data[: draw.randrange(len(data) - 2)])
    return "using the settings in"


def tail_of_metrics(out: Path, draw: random.Random) -> str:
    """Leave at the end of a file what a computer that loses power does: half a line, or noise."""
    with open(out / "metrics.jsonl", "ab") as file:
        file.write(draw.choice((b'{"step": 1, "lo', bytes(100), draw.randbytes(100) + b"\n")))
    return "resuming after step"


def change_words(out: Path, draw: random.Random) -> str:
    with open(out / "vocabulary.txt", "a", encoding="utf-8") as file:
        file.write("zebra\n")
    return "vocabulary.txt: the words changed"


def remove_words(out: Path, draw: random.Random) -> str:
    (out / "vocabulary.txt").unlink()
    return "resuming after step"


def _newest_file(out: Path, draw: random.Random) -> tuple[Path, str]:
    """Damage a file of the newest whole checkpoint. Returns what is promised once that is done."""
    *older, newest = whole_checkpoints(out)
    promise = f"{newest.name}/.*using {older[-1].name} instead" if older else "no whole checkpoint in"
    return newest / draw.choice(("model.safetensors", "state.pt", "checksums.json")), promise


DAMAGES: dict[str, Callable[[Path, random.Random], str]] = {
    "checkpoint truncated": truncate,
    "checkpoint bit flipped": flip,
    "checkpoint file removed": remove,
    "all checkpoints truncated": truncate_all,
    "config.json cut": cut_config,
    "metrics.jsonl with a broken end": tail_of_metrics,
    "vocabulary.txt changed": change_words,
    "vocabulary.txt removed": remove_words,
}
REFUSED = ("no whole checkpoint in", "vocabulary.txt: the words changed")  # what a run cannot go on with


def mend(out: Path, output: str, words: bytes) -> None:
    """Take the way out that a refusal names: `words` restored, or a new beginning from the first step."""
    if output.startswith("vocabulary"):
        (out / "vocabulary.txt").write_bytes(words)
    else:
        shutil.rmtree(out / "checkpoints")
