"""The loop of every training: batches in step order, a record a step, checkpoints, bad clips, signals, resume.

What a step computes is the caller's; here is what happens around it, so that pre-training and fine-tuning fail, stop
and go on in the same way.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from ..config.run import RunConfig
from ..data.datasets.batch import Batch
from ..data.loader import BatchSource, Interrupted, make_loader
from ..data.remarks import Remarks
from ..errors import ConfigError, DataError, RemoteError, RunError
from ..runtime.distributed import World
from ..runtime.forms import printable
from ..runtime.progress import progress_bar
from .metrics_log import MetricsLog
from .profiler import ProfiledSteps, profiling
from .session import Session
from .signals import termination

logger = logging.getLogger(__name__)


class _Part(NamedTuple):
    """What the other ranks hear of one's part of a batch."""

    clips: list[int]
    tried: list[int]
    bad: list[tuple[int, str]]
    remarks: list[tuple[int, str]]
    error: str = ""
    interrupted: bool = False


def _together(batches: Iterator[Batch], world: World) -> Batch:
    """Return this rank's part of the next batch, with the clips of all ranks: those used, tried and bad.

    Raises `DataError`, or `Interrupted`, on all ranks when one of them has it.
    """
    if world.size == 1:
        return next(batches)
    batch: Batch | None = None
    try:
        batch = next(batches)
        part = _Part(batch.clips, batch.tried, batch.bad, batch.remarks)
    except DataError as error:
        part = _Part([], [], [], [], str(error))
    except Interrupted:
        part = _Part([], [], [], [], interrupted=True)
    parts = world.all_gather_object(part)
    for part in parts:
        if part.error:
            raise DataError(part.error)
    if any(part.interrupted for part in parts):
        raise Interrupted
    assert batch is not None
    return replace(
        batch,
        clips=[row for part in parts for row in part.clips],
        tried=[row for part in parts for row in part.tried],
        bad=[entry for part in parts for entry in part.bad],
        remarks=[entry for part in parts for entry in part.remarks],
    )


def run_steps(
    session: Session,
    config: RunConfig,
    dataset: BatchSource,
    start: int,
    log: MetricsLog | None,
    update: Callable[[Batch, int], dict[str, Any]],
    advice: str,
    load: Callable[..., Generator[Batch, None, None]] | None = None,
    profiled: ProfiledSteps | None = None,
) -> float:
    """Run steps `start` to `config.steps`. All ranks of `session.world` call this together.

    SIGTERM and SIGINT end the step in progress, save, and exit with 128 + signal.

    Args:
        update: makes one step and returns its line of metrics, with "loss" and "updated" (False: not finite, nothing
            changed).
        log: of the first rank, None on the others.
        advice: what to try when no step is finite any more.
        load: what loads the batches in place of `make_loader`.
        profiled: steps to trace into OUT/trace-RANK.json.

    Returns:
        The seconds that the steps took.

    Raises:
        ConfigError: some of the `profiled` steps are done already.
        DataError: the data cannot be gone on with; what was learned is saved.
    """
    began, skipped = time.perf_counter(), 0
    out, bad, manifest, world = session.out, session.bad, session.manifest, session.world
    remarks = Remarks(manifest)
    for label, (value, _) in session.identity.items():
        world.require_same(label, value)
    boards: list[Any] = []
    if config.tensorboard:
        world.on_main(lambda: boards.append(tensorboard(out)))
    session.model.train()
    bar = progress_bar(config.steps, "training", "step", start)
    with (
        termination(together=2.0 if world.size > 1 else 0.0) as signals,
        contextlib.closing(
            (load or make_loader)(
                dataset, start, config.steps - start, config.data.workers, config.data.prefetch, lambda: signals
            )
        ) as batches,
        bar,
        profiling(profiled, out / f"trace-{world.rank}.json", start) as step_done,
    ):

        def save(step: int, bad_clips: dict[str, Any] | None = None) -> None:
            if log is not None:
                log.sync()
            session.save(step, config.keep_checkpoints, bad_clips)

        def sent() -> list[int]:
            """Return the signals that any rank was sent."""
            return [number for numbers in world.all_gather_object(list(signals)) for number in numbers]

        def leave(step: int, received: list[int]) -> NoReturn:
            logger.warning("saved after step %d; continue with: --out %s --resume", step, out)
            sys.exit(128 + received[0])

        for step in range(start, config.steps):
            tick, talked = time.perf_counter(), world.seconds
            before = bad.state_dict()
            try:
                batch = _together(batches, world)
                remarks.add(batch.remarks if world.is_first else [])
                for clip, reason in bad.add(step, batch):
                    logger.warning("%s", printable(f"bad clip, replaced: {clip.name}: {reason}"))
                bad.check()
            except DataError as error:
                save(step, before)  # --resume goes on once the data is mended
                if not world.is_first:
                    raise RemoteError(error) from error
                raise
            except Interrupted:
                save(step, before)
                leave(step, sent())
            waited = time.perf_counter() - tick
            record = {"step": step + 1, **update(batch, step)}
            seconds = time.perf_counter() - tick
            skipped = 0 if record["updated"] else skipped + 1
            if skipped:
                record["clips"] = [manifest[i].name for i in batch.clips]
                names = printable(", ".join(record["clips"]))
                logger.warning("step %d: loss or gradient not finite, no update; clips: %s", step + 1, names)
            record |= {
                "clips_per_second": len(batch.clips) / seconds,
                "step_seconds": seconds,
                "wait_seconds": waited,
                "build_seconds": batch.seconds,
                "decode_seconds": batch.decode_seconds,
                "communication_seconds": world.seconds - talked,
                "world_size": world.size,
                "replaced": len(batch.bad),
                "bad_clips": len(bad),
            }
            if log:
                log.write(record)
            for board in boards:
                for key, value in record.items():
                    if isinstance(value, float):
                        board.add_scalar(key, value, step + 1)
            bar.update()
            step_done()
            if (step + 1) % config.log_every == 0 or step + 1 == config.steps:
                bar.set_postfix(
                    loss=f"{record['loss']:.3f}",
                    clips=f"{record['clips_per_second']:.0f}/s",
                    wait=f"{waited / seconds:.0%}",
                )
            received = sent()
            stop = bool(received) or skipped >= config.max_nonfinite
            if stop or (step + 1) % config.save_every == 0 or step + 1 == config.steps:
                save(step + 1)
            if skipped >= config.max_nonfinite:
                raise RunError(
                    f"{skipped} steps in a row without a finite loss, the last is step {step + 1}; "
                    f"metrics.jsonl names their clips; {advice}"
                )
            if received:
                leave(step + 1, received)
    remarks.tell()
    return time.perf_counter() - began


def tensorboard(out: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError("tensorboard=true needs TensorBoard: pip install -e '.[tensorboard]'") from error
    return SummaryWriter(str(out / "tensorboard"))
