"""What the two training commands share: flags, the folder of a run, and what result.json begins with."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch

from ..config.data import DataConfig
from ..config.serialization import differences, settings_of, to_json
from ..data.bad_clips import BadClips
from ..data.clip import Manifest
from ..data.manifest import read_manifest, tell_notes
from ..errors import ConfigError
from ..runtime.cli import exit_code
from ..runtime.device import pick_device
from ..runtime.distributed import World, joined
from ..runtime.files import first_free, write_atomically
from ..runtime.lock import add_force_flag, owned
from ..runtime.provenance import code_identity
from . import loop
from .metrics_log import read_metrics
from .parallel import KINDS
from .profiler import Traced, parse_traced
from .status import format_status, held_out_line, status


class Settings(loop.Settings, Protocol):
    """What both kinds of settings have."""

    @property
    def device(self) -> str: ...


C = TypeVar("C", bound=Settings)
# What each machine may have as it likes: where its files lie, and how it reads them.
OWN = ("data.source", "data.vocabulary", "data.workers", "data.prefetch", "init")


@dataclass(frozen=True)
class Begun(Generic[C]):
    config: C
    out: Path
    device: torch.device
    traced: Traced | None


def add_run_flags(parser: argparse.ArgumentParser, *, folder: str, seed: str, example: str) -> None:
    """`folder`: the default of --out; `seed`: what it is the seed of; `example` of --set."""
    add = parser.add_argument
    add("--out", metavar="DIR", type=Path, help=f"folder of the run (default: the first free {folder}[-N])")
    add(
        "--columns",
        metavar="NAME=COLUMN,...",
        help="columns of --data that have other names, e.g. caption=title,path=filepath",
    )
    add("--seed", metavar="N", type=int, help=f"seed of {seed}, batches, augmentation and dropping (default 1)")
    add("--device", metavar="NAME", help="cpu, cuda, cuda:1, ... (default auto: a GPU if there is one)")
    add("--dtype", metavar="TYPE", help="compute type: float32 or bfloat16 (default auto: bfloat16 on GPUs)")
    add("--parallel", choices=KINDS, help="under torchrun: ddp, a model on each GPU (default), or fsdp, a part of one")
    add("--resume", action="store_true", help="continue the run in --out from its newest whole checkpoint")
    add("--set", metavar="A.B=C", action="append", default=[], dest="overrides",
        help=f"change any setting, e.g. --set {example}; repeatable; --print-config lists them all")  # fmt: skip
    add("--print-config", action="store_true", help="print the resolved settings as JSON and exit")
    add("--profile", metavar="START:COUNT",
        help="trace COUNT steps from step START with PyTorch's profiler into OUT/trace-RANK.json")  # fmt: skip
    add_force_flag(parser)
    add("--status", metavar="DIR", type=Path, help="print the state of the run in DIR and exit")


def open_source(data: DataConfig) -> Manifest:
    """The clips of the run's source; says what in it is not read."""
    return tell_notes(read_manifest(data.source, data.columns, data.version))


def run_command(args: argparse.Namespace, run: Callable[[argparse.Namespace, World, ExitStack], None]) -> int:
    """The exit code of `run`, called by each process that torchrun started, or of --status.

    `run` is given a stack for what is to be held until it ends.
    """

    def action() -> None:
        if args.status:
            print(format_status(status(args.status)))
            return
        with joined(args.device or "auto") as world, ExitStack() as held:
            run(args, world, held)

    return exit_code(action)


def begin(
    args: argparse.Namespace,
    world: World,
    saved_config: Callable[[Path], C],
    resolve_config: Callable[[argparse.Namespace, C | None], C],
    name: Callable[[C], str],
    held: ExitStack,
) -> Begun[C] | None:
    """Settings, folder and device of a new or resumed run. None after --print-config.

    The folder is this run's own until `held` is closed; nothing is written yet.

    Raises `ConfigError` for settings that cannot be, and when a new run would meet another.
    """
    saved = None
    if args.resume:
        if not args.out:
            raise ConfigError("--resume continues the run in --out; name its folder")
        saved = saved_config(args.out)
    config = resolve_config(args, saved)
    traced = parse_traced(args.profile, config.steps) if args.profile else None
    if args.print_config:
        print(to_json(config), end="")
        return None
    if world.size > 1:
        common = {name: value for name, value in settings_of(config).items() if name not in OWN}
        world.require_equal({**code_identity(), **common, "--resume": args.resume, "--profile": args.profile})
    world.slots(config.data.batch_size)

    def choose_folder() -> Path:
        out: Path = args.out or first_free(name(config), held)
        if args.out:
            held.enter_context(owned(out, folder=True, force=args.force))
        if saved is None and holds_run(out):
            raise ConfigError(f"{out} already holds a run; continue it with --resume, or choose another --out")
        return out

    out = world.first(choose_folder)
    for line in differences(saved, config) if saved else []:
        print(f"changed since the run began: {line}")
    return Begun(config, out, pick_device(config.device, world.local_rank if world.size > 1 else None), traced)


def summarise(out: Path, draw: Callable[[list[dict[str, Any]], Path], None], where: dict[str, Any], config: Settings,
              seconds: float, bad: BadClips, train_clips: int) -> dict[str, Any]:  # fmt: skip
    """What result.json says of the training itself. Draws OUT/loss.png.

    `seconds`: of this process; a resumed run counts from its resume.
    """
    records = read_metrics(out / "metrics.jsonl")
    try:
        draw(records, out / "loss.png")
    except ImportError:
        print("no loss.png: matplotlib is missing, pip install -e '.[bench]' brings it")
    last = [r["loss"] for r in records[-20:] if r["updated"] and r["loss"] is not None]
    result = {"environment": where, "steps": config.steps, "final_loss": sum(last) / len(last) if last else None,
              "train_seconds": seconds, "bad_clips": len(bad), "train_clips": train_clips}  # fmt: skip
    if records:
        result["same_file"] = sum(r.get("same_file", 0) for r in records)
    took = sum(r["step_seconds"] for r in records)
    if took:  # nothing when a finished run is evaluated again and its metrics.jsonl is gone
        result["wait_share"] = sum(r["wait_seconds"] for r in records) / took
    return result


def write_result(out: Path, result: dict[str, Any]) -> None:
    write_atomically(out / "result.json", (json.dumps(result, indent=2) + "\n").encode())
    told = [f"{result['bad_clips']} bad clips", held_out_line(result)]
    if result.get("same_file"):
        told.append(f"{result['same_file']:,} times a second row of a file gave way to another clip")
    print(f"done: {out}/result.json, {out}/model (weights), {out}/metrics.jsonl; {', '.join(filter(None, told))}")


def holds_run(folder: Path) -> bool:
    """Whether a new run in `folder` would overwrite another: its settings may be lost, its checkpoints are not."""
    return (folder / "config.json").exists() or any((folder / "checkpoints").glob("step-*"))
