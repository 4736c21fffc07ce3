"""What the two training commands share: flags, the folder of a run, and what result.json begins with."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar, get_args

import torch

from ..checkpoints import training_checkpoint
from ..checkpoints.model_folder import read_config, read_record, recorded_settings
from ..config.data import DataConfig
from ..config.finetuning import FinetuneConfig
from ..config.run import Dtype, Parallel, RunConfig
from ..config.serialization import apply_overrides, differences, require_resumable, settings_of, to_json
from ..config.validation import check
from ..data.bad_clips import BadClips
from ..data.clip import Manifest
from ..data.manifest import read_manifest, tell_notes
from ..data.shards.reading import absolute_source
from ..errors import ConfigError, RunError
from ..ops import OURS, REFERENCE, Ops, attention_dropout, choose
from ..runtime.cli import exit_code
from ..runtime.device import pick_device
from ..runtime.distributed import SINGLE_PROCESS, World, init_world
from ..runtime.files import first_free, write_atomically
from ..runtime.forms import parse_json
from ..runtime.lock import add_force_flag, owned
from ..runtime.provenance import code_identity, environment
from .metrics_log import read_metrics
from .profiler import ProfiledSteps, parse_profile
from .status import format_status, held_out_line, status

log = logging.getLogger(__name__)
C = TypeVar("C", bound=RunConfig)
# What each machine may have as it likes: where its files lie, and how it reads them.
OWN = ("data.source", "data.vocabulary", "data.workers", "data.prefetch", "init", "word_vectors")


@dataclass(frozen=True)
class OpenedRun(Generic[C]):
    """A run whose settings, folder and device are known.

    Args:
        resume: go on from the newest checkpoint in `out`.
        profiled: steps that are to be traced.
        world: the processes that run it together.
        ops: which operations it runs.
    """

    config: C
    out: Path
    device: torch.device
    resume: bool = False
    profiled: ProfiledSteps | None = None
    world: World = SINGLE_PROCESS
    ops: Ops = REFERENCE

    @property
    def environment(self) -> dict[str, Any]:
        """Where it runs, and with which operations."""
        return environment(self.device) | {"operations": self.ops.reason, "attention": self.ops.attention_by}


def add_run_flags(parser: argparse.ArgumentParser, *, folder: str, seed: str, example: str) -> None:
    """Add the flags that all training commands have.

    Args:
        folder: the default of --out.
        seed: what --seed is the seed of.
        example: of --set.
    """
    add = parser.add_argument
    add("--out", metavar="DIR", type=Path, help=f"folder of the run (default: the first free {folder}[-N])")
    add(
        "--columns",
        metavar="NAME=COLUMN,...",
        help="columns of --data that have other names, e.g. caption=title,path=filepath",
    )
    add("--seed", metavar="N", type=int, help=f"seed of {seed}, batches, augmentation and dropping (default 1)")
    add("--device", metavar="NAME", help="cpu, cuda, cuda:1, ... (default auto: a GPU if there is one)")
    words = ", ".join(get_args(Dtype))
    add("--dtype", metavar="TYPE", help=f"compute type: {words} (default auto: bfloat16 on GPUs, else float32)")
    add(
        "--parallel",
        choices=get_args(Parallel),
        help="under torchrun: ddp, a model on each GPU (default), or fsdp, a part of one",
    )
    add("--resume", action="store_true", help="continue the run in --out from its newest whole checkpoint")
    add(
        "--set",
        metavar="A.B=C",
        action="append",
        default=[],
        dest="overrides",
        help=f"change any setting, e.g. --set {example}; repeatable; --print-config lists them all",
    )
    add("--print-config", action="store_true", help="print the resolved settings as JSON and exit")
    add(
        "--compile",
        action="store_true",
        default=None,
        help="torch.compile of each layer: the first steps take minutes; meant for GPUs",
    )
    add(
        "--profile",
        metavar="START:COUNT",
        help="trace COUNT steps from step START with PyTorch's profiler into OUT/trace-RANK.json",
    )
    add_force_flag(parser)
    add("--status", metavar="DIR", type=Path, help="print the state of the run in DIR and exit")


def open_source(data: DataConfig) -> Manifest:
    """Return the clips of the run's source; say what in it is not read."""
    return tell_notes(read_manifest(data.source, data.columns, data.version))


def run_command(args: argparse.Namespace, run: Callable[[argparse.Namespace, World, ExitStack], None]) -> int:
    """Return the exit code of `run`, called by each process that torchrun started, or of --status.

    Args:
        run: is given a stack for what is to be held until it ends.
    """

    def action() -> None:
        if args.status:
            print(format_status(status(args.status)))
            return
        with init_world(args.device or "auto") as world, ExitStack() as held:
            run(args, world, held)

    return exit_code(action)


def settings_from_flags(config: C, args: argparse.Namespace, flags: dict[str, Any], saved: C | None = None) -> C:
    """Return `config` with flags and `--set` laid over it.

    Args:
        flags: values by dotted name, besides those of `add_run_flags`; None is a flag that was not given.
        saved: the settings with which a resumed run began.

    Raises:
        ConfigError: a setting is unknown or out of range, or a resumed run cannot change it.
    """
    flags = {
        **flags,
        "data.source": args.data,
        "data.columns": args.columns,
        "data.batch_size": args.batch_size,
        "model.drop.rate": args.drop_rate,
        "steps": args.steps,
        "seed": args.seed,
        "device": args.device,
        "dtype": args.dtype,
        "fused": args.fused,
        "compile": args.compile,
        "parallel": args.parallel,
    }
    given = [f"{name}={value}" for name, value in flags.items() if value is not None]
    config = apply_overrides(config, given + args.overrides)
    # A run may be resumed from another folder.
    words = str(Path(config.data.vocabulary).expanduser().absolute()) if config.data.vocabulary else ""
    source = absolute_source(config.data.source) if config.data.source else ""
    config = replace(config, data=replace(config.data, source=source, vocabulary=words))
    check(config)
    if saved is not None:
        require_resumable(saved, config)
    return config


def saved_settings(out: Path, kind: type[C]) -> C:
    """Return the settings of the run in `out`: from config.json, or from its newest checkpoint when that is damaged.

    Raises:
        RunError: there is no run, or none of this kind.
    """
    try:
        config = read_config(out)
    except RunError as error:
        checkpoint = training_checkpoint.load_latest(out / "checkpoints")
        if checkpoint is None:
            raise
        log.info("%s; using the settings in %s", error, checkpoint.path)
        config = recorded_settings(parse_json(str(checkpoint.state.get("record"))))
    if not isinstance(config, kind):
        command = "vatt.finetune" if isinstance(config, FinetuneConfig) else "vatt.train"
        raise RunError(f"{out} holds a run of {command}; resume it with that command")
    return config


def open_run(
    args: argparse.Namespace,
    world: World,
    kind: type[C],
    resolve_config: Callable[[argparse.Namespace, C | None], C],
    name: Callable[[C], str],
    held: ExitStack,
) -> OpenedRun[C] | None:
    """Return settings, folder and device of a new or resumed run, None after --print-config; nothing is written.

    Args:
        kind: of the settings.
        resolve_config: lays the flags over the settings with which a resumed run began.
        name: what a new folder is called.
        held: until it is closed the folder is this run's own.

    Raises:
        ConfigError: settings that cannot be, or a new run would meet another.
    """
    saved = None
    if args.resume:
        if not args.out:
            raise ConfigError("--resume continues the run in --out; name its folder")
        saved = saved_settings(args.out, kind)
    config = resolve_config(args, saved)
    profiled = parse_profile(args.profile, config.steps) if args.profile else None
    if args.print_config:
        print(to_json(config), end="")
        return None
    if world.size > 1:
        common = {name: value for name, value in settings_of(config).items() if name not in OWN}
        world.require_equal({**code_identity(), **common, "--resume": args.resume, "--profile": args.profile})
    world.batch_slice(config.data.batch_size)

    def choose_folder() -> Path:
        out: Path = args.out or first_free(name(config), held)
        if args.out:
            held.enter_context(owned(out, folder=True, force=args.force))
        if saved is None and holds_run(out):
            raise ConfigError(f"{out} already holds a run; continue it with --resume, or choose another --out")
        return out

    out = world.on_main(choose_folder)
    for difference in differences(saved, config) if saved is not None else []:
        log.info("changed since the run began: %s", difference)
    device = pick_device(config.device, world.local_rank if world.size > 1 else None)
    # What "auto" was when a run began, it stays; a run without a record had the operations of its device throughout.
    began = read_record(out).get("environment") if saved is not None else None
    before = str(began.get("attention", OURS)) if isinstance(began, dict) else OURS
    ops = choose(
        config.fused,
        device,
        config.attention,
        dropout=attention_dropout(config.model),
        recorded=before if saved is not None and saved.attention == "auto" else None,
    ).of_run(config)
    world.require_equal({"the operations": ops.name})
    return OpenedRun(config, out, device, args.resume, profiled, world, ops)


def summarise(
    out: Path,
    draw: Callable[[list[dict[str, Any]], Path], None],
    environment: dict[str, Any],
    config: RunConfig,
    seconds: float,
    bad: BadClips,
    train_clips: int,
) -> dict[str, Any]:
    """Draw OUT/loss.png, and return what result.json says of the training itself.

    Args:
        draw: the curves, from the lines of metrics.jsonl.
        environment: what `runtime.provenance.environment` returned.
        seconds: of this process; a resumed run counts from its resume.
    """
    records = read_metrics(out / "metrics.jsonl")
    try:
        draw(records, out / "loss.png")
    except ImportError:
        log.info("no loss.png: matplotlib is missing, pip install -e '.[bench]' brings it")
    last = [r["loss"] for r in records[-20:] if r["updated"] and r["loss"] is not None]
    result = {
        "environment": environment,
        "steps": config.steps,
        "final_loss": sum(last) / len(last) if last else None,
        "train_seconds": seconds,
        "bad_clips": len(bad),
        "train_clips": train_clips,
    }
    if records:
        result["same_file"] = sum(r.get("same_file", 0) for r in records)
    took = sum(r["step_seconds"] for r in records)
    if took:  # nothing when a finished run is evaluated again and its metrics.jsonl is gone
        result["wait_share"] = sum(r["wait_seconds"] for r in records) / took
    return result


def write_result(out: Path, result: dict[str, Any]) -> None:
    """Write OUT/result.json, the last file of a run. Raises OSError."""
    write_atomically(out / "result.json", (json.dumps(result, indent=2) + "\n").encode())
    counts = [f"{result['bad_clips']} bad clips", held_out_line(result)]
    if result.get("same_file"):
        counts.append(f"{result['same_file']:,} times a second row of a file gave way to another clip")
    files = f"{out}/result.json, {out}/model (weights), {out}/metrics.jsonl"
    log.info("done: %s; %s", files, ", ".join(filter(None, counts)))


def holds_run(folder: Path) -> bool:
    """Tell whether a new run in `folder` would overwrite another: its settings may be lost, its checkpoints are not."""
    return (folder / "config.json").exists() or any((folder / "checkpoints").glob("step-*"))
