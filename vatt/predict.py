"""What is in these files? `python -m vatt.predict MODEL FILE...` prints the most likely classes of each.

MODEL is the folder of a fine-tuned model; or of a pre-trained one with --zero-shot, which ranks class names by how well
they fit what a video shows. Files are read as `vatt evaluate` reads test clips, so the classes are those scored there.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from .checkpoints.loading import load, operations
from .checkpoints.model_folder import load_config
from .data.media_types import AUDIO, IMAGE, MEDIA_SUFFIXES
from .errors import ConfigError, DataError, MissingPackage
from .inference.bfloat16 import choose_dtype, inference_form
from .inference.one_file import class_embeddings, rank_classes, starts_every
from .inference.prompts import class_prompts, read_prompts
from .inference.strip import draw_strip
from .model.vatt import VATT, Classifier
from .ops import OURS, add_attention_flag
from .runtime.cli import exit_code
from .runtime.device import pick_device
from .runtime.files import pyplot
from .runtime.forms import printable

Ranked = list[tuple[str, float]]
EXAMPLES = """examples:
  python -m vatt.predict runs/finetune-video dog.mov holiday/
  python -m vatt.predict runs/finetune-video dog.mov --every 2 --strip dog.png
  python -m vatt.predict runs/finetune-audio recording.wav --every 2 --format csv
  find clips -name '*.mp4' | python -m vatt.predict runs/finetune-video - --format json
  python -m vatt.predict runs/mbs dog.mov --zero-shot "a dog barks" "rain on a window"

A folder stands for all media files in it. A file that cannot be read is named on standard error, and the others are
still classified; the exit code is then 1.
exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m vatt.predict",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Classify videos, pictures and sounds.",
    )
    add = parser.add_argument
    add("model", type=Path, metavar="MODEL", help="folder of a fine-tuned model, or any model with --zero-shot")
    add("files", nargs="+", metavar="FILE", help="files or folders; - reads names from standard input, a line each")
    add("--top", type=int, default=5, metavar="N", help="classes to print of each file (default 5)")
    add("--every", type=float, metavar="SECONDS", help="classify one window every so many seconds of a file")
    add("--windows", type=int, metavar="N", help="temporal windows a file (default: as the model is tested)")
    add(
        "--zero-shot",
        nargs="+",
        metavar="TEXT",
        help="rank these texts instead of the model's classes; the model is a pre-trained one",
    )
    add("--prompts", type=Path, metavar="FILE", help="instead of --zero-shot: a class a line, its sentences behind it")
    add("--template", nargs="+", metavar="TEXT", help='zero-shot: around each text, e.g. "a video of {}"; their mean')
    add("--strip", type=Path, metavar="FILE.png", help="draw key frames and classes of one file over time")
    add("--format", choices=("table", "csv", "json"), default="table", help="what to print (default table)")
    add("--device", default="auto", metavar="NAME", help="cpu, cuda, ... (default auto: a GPU if there is one)")
    add(
        "--dtype",
        default="auto",
        choices=("auto", "float32", "bfloat16"),
        help="compute type (default auto: bfloat16 on GPUs, and on CPUs that have it for models as wide as Small)",
    )
    add_attention_flag(parser)
    args = parser.parse_args(argv)
    for name, least in (("top", 1), ("windows", 1), ("every", 1e-3)):
        value = getattr(args, name)
        if value is not None and not value >= least:  # so that NaN is refused
            parser.error(f"--{name} is at least {least:g}, got {value:g}")
    if args.every and args.windows:
        parser.error("--every classifies one window at a time; leave --windows out")
    if args.prompts and args.zero_shot:
        parser.error("--prompts names the classes in place of --zero-shot")
    if args.template and not (args.zero_shot or args.prompts):
        parser.error("--template belongs to --zero-shot or --prompts")
    if args.strip and not args.every:
        parser.error("--strip draws classes over time; say how often with --every SECONDS")
    if args.strip and (args.strip.suffix.lower() != ".png" or not args.strip.absolute().parent.is_dir()):
        parser.error(f"--strip names a file that ends in .png, in a folder that exists, got {args.strip}")
    return args


def media_files(names: list[str]) -> list[Path]:
    """Return the files that `names` stand for. Raises `ConfigError` for an empty list or a folder without media."""
    listed = [line for name in names for line in (sys.stdin.read().splitlines() if name == "-" else [name]) if line]
    files: list[Path] = []
    for path in map(Path, listed):
        if path.is_dir():
            suffixes = MEDIA_SUFFIXES | IMAGE | AUDIO
            files_below = sorted(p for p in path.rglob("*") if p.suffix.lower() in suffixes and p.is_file())
            if not files_below:
                raise ConfigError(f"{path} holds no video, picture or sound")
            files += files_below
        else:
            files.append(path)
    if not files:
        raise ConfigError("no files to classify: the list on standard input is empty")
    return files


def classes_of(args: argparse.Namespace, model: VATT | Classifier) -> Callable[..., Ranked]:
    """Return the function of a path that ranks classes. Raises `ConfigError` where model and flags do not fit."""
    named = args.zero_shot or args.prompts
    if isinstance(model, Classifier):
        if named:
            raise ConfigError(f"{args.model} is a fine-tuned model with classes of its own; leave --zero-shot out")
        return lambda path, **span: model.predict(path, top=None, **span)
    if not named:
        raise ConfigError(
            f"{args.model} is a pre-trained model without classes; name some with --zero-shot, or give a fine-tuned one"
        )
    prompts = class_prompts(read_prompts(args.prompts) if args.prompts else args.zero_shot, args.template or ())
    names, vectors = class_embeddings(model, prompts)
    return lambda path, **span: rank_classes(model, path, names, vectors, **span)


def predictions(
    args: argparse.Namespace, model: VATT | Classifier, rank: Callable[..., Ranked], files: list[Path], bad: list[str]
) -> Iterator[dict[str, Any]]:
    """Yield path, start and the best classes of each file, or of each window with --every; draw --strip.

    What is wrong with a file is printed, and appended to `bad`.
    """
    for path in files:
        drawn: list[tuple[float, dict[str, float]]] = []
        try:
            starts = starts_every(model.settings, path, args.every) if args.every else [None]
            for start in starts:
                span = {"windows": args.windows} if start is None else {"windows": 1, "start": start}
                ranked = rank(path, **span)
                yield {"path": str(path), "start": start, "classes": ranked[: args.top]}
                drawn.append((start or 0.0, dict(ranked)))
            if args.strip:
                draw_strip(args.strip, path, model.settings, drawn, score_of(args))
        except DataError as error:
            bad.append(str(error))
            print(printable(f"error: {error}"), file=sys.stderr)


def score_of(args: argparse.Namespace) -> str:
    return "cosine" if args.zero_shot or args.prompts else "probability"


def write_table(entries: Iterator[dict[str, Any]]) -> None:
    last = None
    for entry in entries:
        if entry["path"] != last:
            print(printable(entry["path"]))
            last = entry["path"]
        classes = "   ".join(f"{score:.3f} {name}" for name, score in entry["classes"])
        print(printable(f"  {classes}" if entry["start"] is None else f"  {entry['start']:7.2f} s   {classes}"))


def write_csv(entries: Iterator[dict[str, Any]], score: str, dtype: str) -> None:
    print(f"path,start,rank,class,{score},dtype")
    for entry in entries:
        start = "" if entry["start"] is None else f"{entry['start']:g}"
        for rank, (name, value) in enumerate(entry["classes"], 1):
            text = io.StringIO()
            csv.writer(text, lineterminator="").writerow([entry["path"], start, rank, name, f"{value:.6g}", dtype])
            print(text.getvalue())


def write_json(entries: Iterator[dict[str, Any]], score: str, dtype: str) -> None:
    listed = [
        {**entry, "dtype": dtype, "classes": [{"class": name, score: value} for name, value in entry["classes"]]}
        for entry in entries
    ]
    print(json.dumps(listed, indent=2, ensure_ascii=False))


def predict(args: argparse.Namespace) -> int:
    """Print the classes of all files; return 1 when one of them could not be read."""
    files = media_files(args.files)
    if args.strip:
        if len(files) > 1:
            raise ConfigError(f"--strip draws one file, and {len(files)} are given")
        try:
            pyplot()
        except ImportError as error:
            raise MissingPackage("--strip needs matplotlib: pip install -e '.[figures]'") from error
    device = pick_device(args.device)
    model = load(args.model, device=device, attention=args.attention)
    ops = operations(load_config(args.model), device, None, args.attention)
    if ops.attention_by != OURS:
        print(ops.reason, file=sys.stderr)
    dtype, why = choose_dtype(args.dtype, device, model)
    name, score = str(dtype).removeprefix("torch."), score_of(args)
    if dtype != torch.float32:
        print(f"computed in {name} ({why})", file=sys.stderr)
    bad: list[str] = []
    try:
        with inference_form(model, device, dtype):
            entries = predictions(args, model, classes_of(args, model), files, bad)
            if args.format == "table":
                write_table(entries)
            elif args.format == "csv":
                write_csv(entries, score, name)
            else:
                write_json(entries, score, name)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has what it wants (`| head -1`). What is left in the buffer must not fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1 if bad else 0


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    return exit_code(lambda: predict(args))


if __name__ == "__main__":
    sys.exit(main())
