"""A process for each clip to encode, ended when it takes too long."""

from __future__ import annotations

import json
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from multiprocessing import connection
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from ...runtime.faults import Fault
from ...runtime.files import WriteError, writing
from ...runtime.forms import printable
from ...runtime.progress import progress_bar
from ..decoding.container import BadClip
from ..decoding.memory_limit import memory_limit
from ..workers import fork_server
from .corpus import Corpus, Job
from .encode import Encoded, Encoding, encode_clip

GRACE = 2.0  # seconds: processes keep to the limit themselves, and say so, unless a decoder hangs


@dataclass
class _Running:
    job: Job
    process: Any  # of a forkserver context, which has a class of its own
    source: tuple[int, int]
    since: float


def encode_all(
    corpus: Corpus, jobs: Sequence[Job], log: IO[str], workers: int, time_limit: float, memory: float
) -> None:
    """Encode what is not done yet, `workers` clips at a time, each in `time_limit` seconds and `memory` gigabytes.

    Raises OSError when files cannot be written.
    """
    distinct = {job.key: job for job in jobs}
    waiting = deque(job for key, job in distinct.items() if key not in corpus.done)
    context = fork_server("vatt.data.transcode.encode")
    running: dict[connection.Connection, _Running] = {}
    with progress_bar(len(distinct), "transcoding", "clip", len(corpus.done)) as bar:
        try:
            while waiting or running:
                while waiting and len(running) < workers:
                    job = waiting.popleft()
                    stem = corpus.out / "clips" / job.key
                    stem.parent.mkdir(exist_ok=True)
                    ours, theirs = context.Pipe(duplex=False)
                    arguments = (theirs, job, stem, corpus.recipe, time_limit, memory)
                    process = context.Process(target=_work, args=arguments, daemon=True)
                    running[ours] = _Running(job, process, job.source(), time.monotonic())
                    process.start()
                    theirs.close()
                for ended, outcome in _outcomes(running, time_limit):
                    bar.update()
                    if isinstance(outcome, Encoded):
                        for remark in outcome.remarks:
                            tqdm.write(f"note: {ended.job.clip.name}: {remark}", file=sys.stderr)
                        corpus.done[ended.job.key] = outcome
                        entry = {"key": ended.job.key, "source": ended.source, "encoded": asdict(outcome)}
                        with writing(corpus.log, None, "finished clips are kept: --resume goes on"):
                            log.write(json.dumps(entry) + "\n")
                            log.flush()
                    else:
                        corpus.failed[ended.job.key] = outcome
                        tqdm.write(printable(f"left out: {ended.job.clip.name}: {outcome}"), file=sys.stderr)
        finally:
            for one in running.values():
                _end(one.process)


def _outcomes(running: dict[connection.Connection, _Running], time_limit: float) -> Iterator[tuple[_Running, Any]]:
    """Wait for a clip to end, well or not, or to use up its time; take it out of `running`."""
    last = time_limit + GRACE
    oldest = min(one.since for one in running.values())
    ready = connection.wait(list(running), timeout=max(0.0, oldest + last - time.monotonic()))
    for end, one in list(running.items()):
        overdue = time.monotonic() - one.since > last
        if end not in ready and not overdue:
            continue
        outcome: Any = f"took longer than {time_limit:g} s"
        if end in ready:
            try:
                outcome = end.recv()
            except EOFError:
                one.process.join()
                outcome = f"its decoder crashed (exit code {one.process.exitcode})"
        del running[end]
        end.close()
        _end(one.process, wait=end in ready)
        if isinstance(outcome, (OSError, Fault)):
            raise outcome
        yield one, outcome


def _end(process: Any, wait: bool = False) -> None:
    if process.pid is not None:
        process.join(1.0 if wait else 0.0)
        process.kill()
        process.join()
        process.close()


def _work(end: connection.Connection, job: Job, stem: Path, recipe: Encoding, time_limit: float, memory: float) -> None:
    """Run in a process of its own: send an `Encoded`, a reason, or the error that must stop the command."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process, which then ends this one
    outcome: Encoded | str | OSError | Fault
    try:
        with memory_limit(memory):
            outcome = encode_clip(job.clip, stem, recipe, time_limit)
    except BadClip as error:
        outcome = error.reason
    except (ValueError, MemoryError) as error:
        outcome = f"cannot be encoded ({type(error).__name__}: {error})"
    except OSError as error:
        outcome = error if isinstance(error, WriteError) else OSError(f"{stem.parent}: cannot be written ({error})")
    except Exception:
        outcome = Fault(f"at {job.clip.name}:\n{traceback.format_exc()}")
    end.send(outcome)
