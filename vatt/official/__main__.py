"""Commands for the official TensorFlow checkpoints; no TensorFlow needed.

python -m vatt.official inspect PREFIX                 what a checkpoint holds
python -m vatt.official convert PREFIX --out DIR       a PyTorch model of it
python -m vatt.official verify DIR [--fused]           our model against recorded outputs of the official one
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from ..errors import UsageError
from ..ops import choose
from ..runtime.cli import exit_code
from ..runtime.forms import FormError, read_json
from ..runtime.lock import add_force_flag, owned
from .convert import (
    Mapped,
    build,
    map_checkpoint,
    preset_name,
    read_moments,
    read_step,
    read_weights,
    slots,
    write_folder,
)
from .tensorflow_checkpoint import TFCheckpoint
from .verify.checks import HEADER, format_row, verify_folder

CONFIG_HELP = """
--config FILE is a JSON object of sections with the release's own names; only what keys and shapes cannot tell is
needed, anything else given has to agree with the checkpoint:
  {"video": {"d_kv": 64, "num_heads": 12}, "audio": {"d_kv": 64, "num_heads": 12},
   "text": {"d_kv": 64, "num_heads": 8, "max_relative_distance": 64},
   "unified": {"d_kv": 64, "num_heads": 16}, "text_len": 16}
A fine-tuned checkpoint reads the section of its modality, the modality-agnostic pre-training model "unified".
"""


class SettingsError(UsageError, ValueError):
    """The file of --config cannot be used."""


def read_settings(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        settings: dict[str, Any] = read_json(path)
    except (OSError, FormError) as error:
        raise SettingsError(f"--config {path} must hold a JSON object of sections, see --help: {error}") from error
    return settings


def print_summary(checkpoint: TFCheckpoint, mapped: Mapped) -> None:
    """Print kind, sizes, step, counts and what had to be assumed."""
    description, preset = mapped.description, preset_name(mapped.description)
    print(f"{description}{'' if preset == 'official' else f'; preset {preset}'}")
    for line in description.sizes():
        print(f"  {line}")
    step, moments = read_step(checkpoint), ", ".join(slots(checkpoint))
    print(f"step {'unknown' if step is None else step}; optimiser moments: {moments or 'none'}")
    with torch.device("meta"):
        module = build(description)
    frozen = sum(p.numel() for p in module.parameters() if not p.requires_grad)
    statistics = sum(t.numel() for name, t in mapped.tensors.items() if ".running_" in name)
    trainable = mapped.numbers - frozen - statistics
    print(
        f"{mapped.numbers:,} parameters in {len(mapped.places)} variables: {trainable:,} trainable, "
        f"{frozen:,} of a frozen word table, {statistics:,} moving statistics"
    )
    for line in description.assumed:
        print(f"assumed: {line}")
    if description.unread:
        print(f"not read from --config: {', '.join(description.unread)}")


def inspect(prefix: Path, settings: dict[str, Any]) -> int:
    with TFCheckpoint(prefix) as checkpoint:
        print_summary(checkpoint, map_checkpoint(checkpoint, settings, need_heads=False))
    return 0


def convert(prefix: Path, out: Path, settings: dict[str, Any], with_optimizer: bool, force: bool) -> int:
    with owned(out.absolute(), force=force):  # beside it: the folder must be empty
        return _convert(prefix, out, settings, with_optimizer)


def _convert(prefix: Path, out: Path, settings: dict[str, Any], with_optimizer: bool) -> int:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} exists and is not an empty folder; choose another --out")
    with TFCheckpoint(prefix) as checkpoint:
        mapped = map_checkpoint(checkpoint, settings)
        print_lines(mapped.coverage())
        print_summary(checkpoint, mapped)
        weights = read_weights(checkpoint, mapped)
        moments = read_moments(checkpoint, mapped) if with_optimizer else None
        record = {"step": read_step(checkpoint), "source": prefix.name, "assumed": mapped.description.assumed}
    write_folder(out, mapped.description, weights, moments, {"official": record})
    print(f"{len(mapped.places)} of {len(mapped.places)} model variables converted, none is left over: {out}")
    return 0


def print_lines(lines: Iterable[str]) -> None:
    for line in lines:
        print(line)


def verify(folder: Path, fused: bool) -> int:
    ops = choose(fused, "cpu")
    print(ops.reason)
    print(HEADER)
    count = failed = 0
    for rows in verify_folder(folder, ops):
        print_lines(format_row(row) for row in rows)
        count += len(rows)
        failed += sum(not row.passed for row in rows)
    print(f"{count - failed} of {count} arrays passed" + (f", {failed} FAILED" if failed else ""))
    return 1 if failed else 0


def main(argv: list[str] | None = None) -> int:
    """Exit status 0: done; 1: a checkpoint, folder or comparison failed; 2: wrong arguments; 130: interrupted."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m vatt.official", description=__doc__, formatter_class=raw)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    prefix_help = "PREFIX of PREFIX.index and PREFIX.data-*, or the folder that holds them"
    for name, text in (
        ("inspect", "print kind, sizes, step and parameter counts"),
        ("convert", "write safetensors + config.json"),
    ):
        command = commands.add_parser(name, help=text, description=text, epilog=CONFIG_HELP, formatter_class=raw)
        command.add_argument("prefix", type=Path, metavar="PREFIX", help=prefix_help)
        command.add_argument("--config", type=Path, metavar="FILE", help="sizes that keys and shapes cannot tell")
        if name == "convert":
            command.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write, new or empty")
            add_force_flag(command)
            command.add_argument("--with-optimizer", action="store_true", help="also write the optimiser's moments")
    text = "compare our model with recorded arrays of the official one, one row an array"
    command = commands.add_parser("verify", help=text, description=text)
    command.add_argument("folder", type=Path, metavar="DIR", help="holds config.json, ckpt_*/ and *.npz")
    command.add_argument("--fused", action="store_true", help="run the fused operations")
    args = parser.parse_args(argv)

    def action() -> int:
        if args.command == "verify":
            return verify(args.folder, args.fused)
        settings = read_settings(args.config)
        if args.command == "inspect":
            return inspect(args.prefix, settings)
        return convert(args.prefix, args.out, settings, args.with_optimizer, args.force)

    return exit_code(action)


if __name__ == "__main__":
    sys.exit(main())
