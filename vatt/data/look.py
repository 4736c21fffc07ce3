"""What the headers of media files say, asked in processes of their own: a file that hangs or crashes a decoder costs
one answer.

`python -m vatt.data.look` is such a process: a path in JSON on each line of its input, an answer on each of its output.
"""

from __future__ import annotations

import json
import os
import queue
import select
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from .decoding.container import BadClip, probe

READY = b"\n"  # the first line of such a process
SECONDS = 30.0  # that a file may take


@dataclass(frozen=True)
class Look:
    """Seconds of a file (0 for a picture), and whether it has video and sound; or `fault`: why it cannot be read."""

    seconds: float = 0.0
    video: bool = False
    audio: bool = False
    fault: str = ""


def look(path: Path, limit: float = SECONDS) -> Look:
    """Read the headers of one file, in this process."""
    try:
        info = probe(path, time_limit=limit, needs=())
    except BadClip as error:
        return Look(fault=error.reason)
    return Look(info.duration, info.has_video, info.has_audio)


def look_at(
    paths: Iterable[Path], processes: int, limit: float = SECONDS, progress: Callable[[], object] = lambda: None
) -> dict[Path, Look]:
    """Read the headers of files.

    Args:
        processes: how many to ask at a time; 0 asks this one, which a bad decoder may then hang or end.
        limit: seconds for each file.
        progress: called after each.

    Raises:
        OSError: such a process cannot be started.
    """
    unique = list(dict.fromkeys(paths))
    looks: dict[Path, Look] = {}
    if processes == 0:
        for path in unique:
            looks[path] = look(path, limit)
            progress()
        return looks
    waiting: queue.SimpleQueue[Path] = queue.SimpleQueue()
    for path in unique:
        waiting.put(path)

    problems: list[OSError] = []

    def work() -> None:
        with _Helper(limit) as helper:
            while True:
                try:
                    path = waiting.get_nowait()
                except queue.Empty:
                    return
                try:
                    looks[path] = helper.ask(path)
                except OSError as error:
                    problems.append(error)
                    return
                progress()

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(processes, len(unique)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if problems:
        raise problems[0]
    return {path: looks[path] for path in unique}


class _Helper:
    """One such process, started anew after a file that hung or crashed it."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> _Helper:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def ask(self, path: Path) -> Look:
        if self.process is None:
            root = str(Path(__file__).parents[2])  # a package that is not installed is found there
            self.process = subprocess.Popen(
                [sys.executable, "-m", "vatt.data.look", str(self.limit)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))},
            )
            if self._answer(2 * SECONDS) != READY:
                self._end()
                raise OSError("a process to look at files cannot be started: python -m vatt.data.look")
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(str(path)).encode() + b"\n")
            self.process.stdin.flush()
            line = self._answer(2 * self.limit)
        except OSError:
            line = b""
        if line is None:
            self._end()
            return Look(fault=f"its decoder hung for {2 * self.limit:g} s and was ended")
        if not line.endswith(b"\n"):
            self._end()
            return Look(fault="its decoder crashed")
        return Look(**json.loads(line))

    def _answer(self, seconds: float) -> bytes | None:
        assert self.process is not None
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        return self.process.stdout.readline() if ready else None

    def _end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


def main(argv: Sequence[str]) -> int:
    print(flush=True)
    for line in sys.stdin:
        print(json.dumps(asdict(look(Path(json.loads(line)), float(argv[0])))), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
