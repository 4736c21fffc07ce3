"""The video path on real clips of several formats: fine-tune, evaluate, and see that it can learn them by heart.

Nine labelled clips (Kinetics, HMDB51, UCF101 and the like) and six of the GRID corpus, which share the class
"speaking", are trained on and tested on. So few clips say nothing about how good a model is: this shows that decoding,
training, its files and `vatt.evaluate` work on them, and that the loss can be driven down.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import cli
from harness import report as harness
from harness.commands import run
from harness.pages import BLUE, ReportPage, number, spans, table
from harness.report import Report, ReportError

from vatt.data.clip import Clip
from vatt.data.manifest import write_manifest
from vatt.training.metrics_log import read_metrics

NAME = "real_clips"
GRID = re.compile(r"[blps][bgrw][abiw][a-z][0-9z][anps]\.mpg")  # a GRID sentence: command, colour, preposition, ...
SPEAKING = "speaking"
SETTINGS = ("data.cache_gb=1", "data.workers=0", "head_dropout=0", "smoothing=0", "crop.style=vgg")
EXAMPLES = """examples:
  python bench/real_clips.py --data clips/                             from scratch: three minutes of one core
  python bench/real_clips.py --data clips/ --init runs/figure2/tiny    from the model of bench/figure2.py
  python bench/real_clips.py --data clips/ --quick                     half a minute, to see it work

--data: a folder with manifest.csv (file, label, decode, ...) and the clips it lists; GRID clips keep their names.
exit codes: 0 done, 1 failed or the two evaluations differ, 2 wrong usage."""


def read_labelled(folder: Path) -> list[tuple[Path, str]]:
    """Return clips that decode and have a label, and GRID clips. Raises `ReportError` for fewer than two classes."""
    path = folder / "manifest.csv"
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = [(row["file"], row["label"]) for row in csv.DictReader(file) if row["decode"] == "ok"]
    except (OSError, KeyError) as error:
        raise ReportError(f"{path} is no list of clips ({error}); --data names the folder that holds it") from error
    named = [(folder / name, SPEAKING if GRID.fullmatch(name) else label) for name, label in rows]
    labelled = [(clip, label) for clip, label in named if label]
    if len({label for _, label in labelled}) < 2:
        raise ReportError(f"{path} has {len(labelled)} labelled clips; at least two classes are needed")
    return labelled


def measure(args: argparse.Namespace) -> Path:
    args.work.mkdir(parents=True, exist_ok=True)
    clips = read_labelled(args.data)
    both = [(path, label, split) for split in ("train", "test") for path, label in clips]
    manifest, out, again = args.work / "manifest.csv", args.work / "run", args.work / "evaluated"
    write_manifest(
        manifest,
        [Clip(i, path.absolute(), path.name, label=label, split=split) for i, (path, label, split) in enumerate(both)],
    )
    source = ["none", "--model", "tiny"] if args.init is None else [str(args.init)]
    report, path = harness.open_report(
        NAME,
        "Fine-tuning and evaluation of the video path on a few real clips",
        settings={
            "steps": args.steps,
            "rate": args.rate,
            "batch_size": args.batch_size,
            "changes": list(SETTINGS),
            "init": args.init.name if args.init else "none",
            "clips": {p.name: label for p, label in clips},
        },
        method={
            "training": "python -m vatt.finetune --task video --fused, sizes of the tiny preset",
            "evaluation": "python -m vatt.evaluate --task classify, 4 windows x 3 crops, the clips it trained on",
        },
        out=cli.output_folder(args),
        resume=False,
        quick=args.quick,
    )
    for folder in (out, again):
        shutil.rmtree(folder, ignore_errors=True)
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    run(
        [
            "vatt.finetune",
            "--task",
            "video",
            "--fused",
            "--data",
            str(manifest),
            "--init",
            *source,
            "--steps",
            str(args.steps),
            "--rate",
            str(args.rate),
            "--batch-size",
            str(args.batch_size),
            "--drop-rate",
            "0",
            "--out",
            str(out),
            *settings,
        ],
        args.work / "finetune.log",
    )
    run(
        [
            "vatt.evaluate",
            "--task",
            "classify",
            "--run",
            str(out),
            "--data",
            str(manifest),
            "--split",
            "test",
            "--out",
            str(again),
        ],
        args.work / "evaluate.log",
    )
    trained = json.loads((out / "result.json").read_text())
    predicted = best_classes(again / "predictions.csv")
    right = {path.name: predicted.get(path.name) == label for path, label in clips}
    same = predicted == best_classes(out / "predictions.csv")
    report.gate = {"green": same, "checks": [{"name": "both commands find the same classes", "green": same}]}
    report.rows = [
        {
            "top1": trained["test"]["scores"]["top1"],
            "right": right,
            "final_loss": trained["final_loss"],
            "train_seconds": trained["train_seconds"],
            "bad_clips": trained["bad_clips"] + trained["test"]["bad_clips"],
            "curve": spans([record["loss"] for record in read_metrics(out / "metrics.jsonl")]),
        }
    ]
    report.finished = True
    report.save(path)
    return path


def best_classes(predictions: Path) -> dict[str, str]:
    """Clip -> the class a command has found for it."""
    with open(predictions, encoding="utf-8", newline="") as file:
        return {Path(row["path"]).name: row["best"].split(" | ")[0].rpartition(" ")[0] for row in csv.DictReader(file)}


def classes(report: Report) -> str:
    """Return a text such as `14 real clips of 7 classes`."""
    labels = report.settings["clips"]
    return f"{len(labels)} real clips of {len(set(labels.values()))} classes"


def share_right(report: Report) -> str:
    right = report.rows[0]["right"].values()
    return f"{sum(right)} of {len(right)}"


def page(report: Report) -> str:
    row, s = report.rows[0], report.settings
    lines = [[name, label, "yes" if row["right"][name] else "no"] for name, label in s["clips"].items()]
    return "\n\n".join(
        [
            f"{classes(report)}, {s['steps']} steps from {s['init']}, trained on and tested on: {share_right(report)} "
            f"right, {row['bad_clips']} could not be read; training loss {number(row['final_loss'], 2)} after "
            f"{number(row['train_seconds'], 0)} s. `vatt.evaluate` finds "
            f"{'the same' if report.gate['green'] else 'OTHER'} "
            "classes as the end of `vatt.finetune`.",
            "That is memory, not recognition: a test of the path from files of many formats to a score, nothing more.",
            table(["clip", "class", "right"], lines, left=3),
        ]
    )


def figure(report: Report, plt: Any) -> Any:
    row = report.rows[0]
    drawn, axis = plt.subplots(figsize=(6.5, 4.2))
    steps = [(i + 0.5) * report.settings["steps"] / len(row["curve"]) for i in range(len(row["curve"]))]
    axis.plot(steps, row["curve"], color=BLUE, label=classes(report))
    axis.set(xlabel="step", ylabel="training loss (nats)", ylim=(0, None))
    axis.legend(fontsize=8)
    axis.grid(alpha=0.3)
    drawn.tight_layout(rect=(0, 0, 1, 0.9))
    return drawn


def readme_rows(report: Report) -> list[tuple[str, str]]:
    return [
        (f"video path on {classes(report)}, learned by heart (nothing is held out)", f"{share_right(report)} right")
    ]


REPORT_PAGE = ReportPage(page, figure, readme_rows)


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.make_parser(
        "real_clips", "Fine-tune a small video classifier on a few real clips and evaluate it on them.", EXAMPLES
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, metavar="DIR", help="folder with manifest.csv and the clips")
    add("--init", type=Path, metavar="DIR", help="model to start from (default: from scratch)")
    add("--steps", type=int, metavar="N", help="default 300 (with --quick 3)")
    add("--rate", type=float, default=0.004, metavar="R", help="default %(default)s")
    add("--batch-size", type=int, default=7, metavar="N", help="default %(default)s")
    add("--work", type=Path, default=harness.ROOT / "runs" / NAME, metavar="DIR", help="folder of the runs")
    cli.add_common_flags(parser)
    args = parser.parse_args(argv)
    args.steps = args.steps or (3 if args.quick else 300)
    return cli.run_benchmark(lambda: measure(args), REPORT_PAGE, args)


if __name__ == "__main__":
    sys.exit(main())
