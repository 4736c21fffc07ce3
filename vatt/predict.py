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

from .checkpoints.loading import load, operations
from .checkpoints.model_folder import load_config
from .data.media_types import AUDIO, IMAGE, MEDIA_SUFFIXES
from .errors import ConfigError, DataError
from .inference.one_file import starts_every
from .model.vatt import VATT, Classifier
from .ops import OURS, add_attention_flag
from .runtime.cli import exit_code
from .runtime.device import pick_device
from .runtime.forms import printable

Ranked = list[tuple[str, float]]
EXAMPLES = """examples:
  python -m vatt.predict runs/finetune-video dog.mov holiday/
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
    add("--template", metavar="TEXT", help='zero-shot: around each text, e.g. "a video of {}"')
    add("--format", choices=("table", "csv", "json"), default="table", help="what to print (default table)")
    add("--device", default="auto", metavar="NAME", help="cpu, cuda, ... (default auto: a GPU if there is one)")
    add_attention_flag(parser)
    args = parser.parse_args(argv)
    for name, least in (("top", 1), ("windows", 1), ("every", 1e-3)):
        value = getattr(args, name)
        if value is not None and not value >= least:  # so that NaN is refused
            parser.error(f"--{name} is at least {least:g}, got {value:g}")
    if args.every and args.windows:
        parser.error("--every classifies one window at a time; leave --windows out")
    if args.template and "{}" not in args.template:
        parser.error(f'--template holds {{}} where the text goes, e.g. "a video of {{}}", got {args.template!r}')
    if args.template and not args.zero_shot:
        parser.error("--template belongs to --zero-shot")
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
    if isinstance(model, Classifier):
        if args.zero_shot:
            raise ConfigError(f"{args.model} is a fine-tuned model with classes of its own; leave --zero-shot out")
        return lambda path, **span: model.predict(path, top=args.top, **span)
    if not args.zero_shot:
        raise ConfigError(
            f"{args.model} is a pre-trained model without classes; name some with --zero-shot, or give a fine-tuned one"
        )
    texts = {text: [args.template.format(text) if args.template else text] for text in args.zero_shot}
    return lambda path, **span: model.rank_texts(path, texts, **span)[: args.top]


def predictions(
    args: argparse.Namespace, model: VATT | Classifier, files: list[Path], bad: list[str]
) -> Iterator[dict[str, Any]]:
    """Yield path, start and classes of each file, or of each window with --every; append what is wrong to `bad`."""
    rank = classes_of(args, model)
    for path in files:
        try:
            starts = starts_every(model.settings, path, args.every) if args.every else [None]
            for start in starts:
                span = {"windows": args.windows} if start is None else {"windows": 1, "start": start}
                yield {"path": str(path), "start": start, "classes": rank(path, **span)}
        except DataError as error:
            bad.append(str(error))
            print(printable(f"error: {error}"), file=sys.stderr)


def write_table(entries: Iterator[dict[str, Any]]) -> None:
    last = None
    for entry in entries:
        if entry["path"] != last:
            print(printable(entry["path"]))
            last = entry["path"]
        classes = "   ".join(f"{score:.3f} {name}" for name, score in entry["classes"])
        print(printable(f"  {classes}" if entry["start"] is None else f"  {entry['start']:7.2f} s   {classes}"))


def write_csv(entries: Iterator[dict[str, Any]], score: str) -> None:
    print(f"path,start,rank,class,{score}")
    for entry in entries:
        start = "" if entry["start"] is None else f"{entry['start']:g}"
        for rank, (name, value) in enumerate(entry["classes"], 1):
            text = io.StringIO()
            csv.writer(text, lineterminator="").writerow([entry["path"], start, rank, name, f"{value:.6g}"])
            print(text.getvalue())


def write_json(entries: Iterator[dict[str, Any]], score: str) -> None:
    listed = [
        {**entry, "classes": [{"class": name, score: value} for name, value in entry["classes"]]} for entry in entries
    ]
    print(json.dumps(listed, indent=2, ensure_ascii=False))


def predict(args: argparse.Namespace) -> int:
    """Print the classes of all files; return 1 when one of them could not be read."""
    files = media_files(args.files)
    device = pick_device(args.device)
    model = load(args.model, device=device, attention=args.attention)
    ops = operations(load_config(args.model), device, None, args.attention)
    if ops.attention_by != OURS:
        print(ops.reason, file=sys.stderr)
    classes_of(args, model)  # wrong flags are told before a table begins
    bad: list[str] = []
    entries = predictions(args, model, files, bad)
    score = "cosine" if args.zero_shot else "probability"
    try:
        if args.format == "table":
            write_table(entries)
        elif args.format == "csv":
            write_csv(entries, score)
        else:
            write_json(entries, score)
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
