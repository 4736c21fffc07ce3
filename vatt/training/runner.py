"""What pre-training and fine-tuning have in common: a `Task` becomes a run, from weights to result.json."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import nn
from torch.optim import Optimizer

from ..checkpoints.content import note_contents
from ..checkpoints.fingerprints import fingerprint
from ..checkpoints.model_folder import settings_record, write_model_folder
from ..checkpoints.sharded import full_state_dict, is_sharded
from ..config.run import RunConfig
from ..data.bad_clips import BadClips
from ..data.clip import Manifest
from ..data.datasets.batch import Batch
from ..data.loader import BatchSource
from ..data.tokenizer import Tokenizer
from ..errors import ConfigError, VattError
from ..model.vatt import count_parameters
from ..runtime.device import autocast_for, compute_dtype
from ..runtime.distributed import World
from .launch import OpenedRun, summarise, write_result
from .loop import run_steps
from .metrics_log import MetricsLog
from .parallel import parallelize
from .session import Session

log = logging.getLogger(__name__)
M = TypeVar("M", bound=nn.Module)
C = TypeVar("C", bound=RunConfig)


@dataclass(frozen=True)
class Task(Generic[M]):
    """What one kind of training gives to `run_training`.

    Args:
        title: what the first line of output calls it.
        build: returns the model on the CPU, its weights drawn.
        modules: the parts of a model that `step` calls, each once; they come back wrapped for several processes.
        optimizer: of a model.
        dataset, train_clips: batches of this rank, and how many clips the whole dataset draws from.
        step: one update, of (model, its optimizer, `modules` as they came back, this rank's part of the batch, number
            of the step from 0, autocast); returns the line of metrics.jsonl, with "loss" and "updated".
        finish: what is to be done with the trained model, on the first rank alone; returns what result.json shall say
            of it, and an error with which the command ends once that is written. The model's folder, the curves and
            the training's own part of result.json are made before.
        draw: loss curves from the lines of metrics.jsonl.
        advice: what to try when losses are not finite.
        notes: lines of output on the data.
        initialize: puts other weights into the model of a run without checkpoint; returns lines of output.
        environment, record: what the folder of the model and checkpoints say besides: of the machine, and of the model.
        tokenizer: words of the model, None for one without text.
        loader: builds the batches, `data.loader.make_loader` by default.
    """

    title: str
    build: Callable[[], M]
    modules: Callable[[M], Sequence[nn.Module]]
    optimizer: Callable[[M], Optimizer]
    dataset: BatchSource
    train_clips: int
    step: Callable[[M, Any, Sequence[nn.Module], Batch, int, torch.autocast], dict[str, Any]]
    finish: Callable[[M], tuple[dict[str, Any], VattError | None]]
    draw: Callable[[list[dict[str, Any]], Path], None]
    advice: str
    notes: Sequence[str] = ()
    initialize: Callable[[M], Sequence[str]] | None = None
    environment: dict[str, Any] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)
    tokenizer: Tokenizer | None = None
    loader: Callable[..., Generator[Batch, None, None]] | None = None


def run_training(run: OpenedRun[C], manifest: Manifest, task: Task[M]) -> None:
    """Train `task` on clips of `manifest` in the folder of `run`, from its newest checkpoint if it is resumed.

    All ranks call it. It ends with OUT/model and OUT/result.json, which the first rank writes after the others left.

    Raises:
        RankFinished: on every rank but the first.
        VattError: see `run_steps` and `Session.restore`.
    """
    config, out, device, world = run.config, run.out, run.device, run.world
    dtype = compute_dtype(config.dtype, device)
    if config.residual == "bfloat16" and dtype != torch.bfloat16:
        raise ConfigError(f"residual=bfloat16: this run computes in {dtype}; add --dtype bfloat16, or leave it out")
    torch.manual_seed(config.seed)
    # Weights are drawn on the CPU so that a seed means the same model on every device.
    model = task.build()
    # A run that has a checkpoint does not need what it started from any more.
    restored = run.resume and any((out / "checkpoints").glob("step-*"))
    origin = task.initialize(model) if task.initialize is not None and not restored else ()
    model = model.to(device)
    parameters = count_parameters(model)
    wrapped = parallelize(
        model,
        task.modules(model),
        world,
        config.parallel,
        recompute=config.recompute,
        compiled=config.compile,
        narrow=config.residual == "bfloat16",
    )
    optimizer = task.optimizer(model)
    bad = BadClips(out / "bad_clips.csv", manifest, config.data.max_bad_share, writes=world.is_first)
    machine = run.environment | task.environment
    identity = {"manifest": (fingerprint(manifest), manifest.root)}
    if task.tokenizer is not None:
        identity["words"] = (fingerprint(task.tokenizer.words), out / "vocabulary.txt")
    record = {"environment": machine, **task.record}
    session = Session(
        out, manifest, model, optimizer, bad, identity, json.dumps({**settings_record(config), **record}), world
    )
    start = session.restore(config.steps) if run.resume else 0
    log.info("run %s: %s, %.1f M parameters, %s, %s", out, task.title, parameters / 1e6, device, dtype)
    if world.size > 1:
        share = config.data.batch_size // world.size
        log.info("%d processes (%s), %d clips of each batch on each", world.size, config.parallel, share)
    for line in (run.ops.reason, *origin, *task.notes):
        log.info("%s", line)
    if run.resume:
        log.info("%s", f"resuming after step {start}" if start else "no checkpoint yet: starting over")
    note_contents(out, manifest, start, world)
    metrics = MetricsLog(out / "metrics.jsonl", resume_step=start if run.resume else None) if world.is_first else None
    autocast = autocast_for(device, dtype)

    def update(batch: Batch, step: int) -> dict[str, Any]:
        line = task.step(model, optimizer, wrapped, batch.to(device), step, autocast)
        return line | {"operations": run.ops.name}

    seconds = run_steps(session, config, task.dataset, start, metrics, update, task.advice, task.loader, run.profiled)
    state = full_state_dict(model) if is_sharded(model) else None
    _leave(world, wrapped)
    assert metrics is not None  # the first rank's, which alone is still here
    metrics.close()
    if state is not None:
        model = task.build().to(device)
        model.load_state_dict(state)
    write_model_folder(out / "model", model.state_dict(), config, record, task.tokenizer)
    result = summarise(out, task.draw, machine, config, seconds, bad, task.train_clips) | settings_record(config)
    scores, error = task.finish(model)
    write_result(out, result | scores)
    if error is not None:
        raise error


def _leave(world: World, wrapped: list[nn.Module]) -> None:
    """Let the other ranks go. What DDP wrapped must be gone before its process group is: see `World.leave`."""
    wrapped.clear()
    world.leave()
