"""Damage to files, and what the decoders make of it, in a process of their own that is watched from outside."""

from __future__ import annotations

import multiprocessing
import os
import random
import re
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

# Little is imported here: a process that dies is started anew.
from harness.memory import resident

from vatt.data.decoding.container import BadClip, probe
from vatt.data.decoding.span import decode_span

LIMIT = 5.0  # seconds for one opening of a file; an attempt opens it four times
SILENT = 8 * LIMIT  # seconds after which a process hangs


def variants(data: bytes, count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Yield `count` damaged versions of a file, each with a name that says how; the same ones for the same seed.

    One in three is cut off, evenly over the file; of the others half have 1 to 100 bytes changed anywhere, half have
    them changed in the first or last 2 KiB, where containers keep their headers.
    """
    draw = random.Random(seed)
    for i in range(count):
        if i % 3 == 0:
            size = (i + 1) * len(data) // (count + 1)
            yield f"cut at {size}", data[:size]
            continue
        changed, bytes_changed = bytearray(data), draw.choice((1, 10, 100))
        low, high = 0, len(data)
        if i % 3 == 1:
            low = draw.choice((0, max(0, len(data) - 2048)))
            high = min(len(data), low + 2048)
        for _ in range(bytes_changed):
            changed[draw.randrange(low, high)] = draw.randrange(256)
        yield f"{bytes_changed} bytes from {low} to {high} changed, variant {i}", bytes(changed)


def attempt(path: Path) -> str:
    """Return "good", or why the clip is bad: its headers, its beginning, a second from the middle on, its sound
    alone.
    """
    try:
        info = probe(path, time_limit=LIMIT, needs=())
        for start in (0.0, min(info.duration / 2, 1e6)):
            decode_span(path, start=start, fps=10.0, frames=10, rate=16_000, short_side=64, time_limit=LIMIT, needs=())
        if info.has_audio:
            decode_span(path, start=0.0, fps=10.0, frames=10, rate=16_000, time_limit=LIMIT, read=("audio",), needs=())
    except BadClip as bad:
        return bad.reason
    return "good"


def state() -> dict[str, int]:
    """Return resident and largest resident memory of this process in bytes, and the files it has open (Linux)."""
    return {"rss": resident("VmRSS"), "peak": resident("VmHWM"), "files": len(os.listdir("/proc/self/fd"))}


class Child:
    """A process that decodes what it is told, so that its death or its silence can be seen. Use with `with`.

    `silent`: seconds without an answer after which it is killed.
    """

    def __init__(self, silent: float = SILENT) -> None:
        self.silent = silent
        self._start()

    @property
    def pid(self) -> int:
        return self._process.pid or 0

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def try_clip(self, path: Path) -> tuple[str, dict[str, int] | None]:
        """Return what `attempt` says and the `state` after it.

        "hung", "died" or "raised ..." are failures (state None).
        """
        try:
            self._pipe.send(path)
            if self._pipe.poll(self.silent):
                outcome: tuple[str, dict[str, int] | None] = self._pipe.recv()
                return outcome
            message = f"hung for {self.silent:g} s"
        except (EOFError, BrokenPipeError, ConnectionResetError):
            self._process.join()
            message = f"died with exit code {self._process.exitcode}"
        self._end()
        self._start()
        return message, None

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other,), daemon=True)
        self._process.start()
        other.close()

    def _end(self) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()


def _serve(pipe: Connection) -> None:
    while True:
        path = pipe.recv()
        try:
            outcome = attempt(path)
        except Exception as error:  # whatever it is, it is what we are looking for
            pipe.send((f"raised {type(error).__name__}: {error}", None))
        else:
            pipe.send((outcome, state()))


def fuzz(child: Child, clip: Path, count: int, seed: int) -> dict[str, Any]:
    """Return the row of one clip: outcomes of `count` variants, the slowest one, failures by name."""
    good, slowest, peak, failures = 0, 0.0, 0, []
    reasons: Counter[str] = Counter()
    before = child.try_clip(clip)[1]
    after = before
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"variant{clip.suffix}"
        for name, data in variants(clip.read_bytes(), count, seed):
            path.write_bytes(data)
            tick = time.perf_counter()
            outcome, after = child.try_clip(path)
            slowest = max(slowest, time.perf_counter() - tick)
            if after is None:
                failures.append({"variant": name, "outcome": outcome})
                before = child.try_clip(clip)[1]
                continue
            peak = max(peak, after["peak"])
            good += outcome == "good"
            reasons[re.sub(r"\d+(\.\d+)?", "...", outcome.split(" (")[0])] += 1
    left_open = after["files"] - before["files"] if before and after else None
    return {
        "kind": "fuzz",
        "clip": clip.name,
        "bytes": clip.stat().st_size,
        "variants": count,
        "good": good,
        "bad": count - good - len(failures),
        "slowest_seconds": slowest,
        "peak_bytes": peak,
        "files_left_open": left_open,
        "failures": failures,
        "reasons": dict(reasons.most_common(6)),
    }
