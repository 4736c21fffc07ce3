"""The release's audio fine-tuning on ESC-10, scaled to a CPU: from scratch, and from pre-training on generated clips.

Everything goes through the project's commands: `vatt.train` on the built-in corpus (three notes a clip, no real sound),
`vatt.finetune --task audio` over the five official folds, and `vatt.evaluate --task probe` on frozen features, of the
pre-trained model and of one that has seen nothing. A fold is 80 clips, one clip 1.25 points, so a difference of a few
points says nothing.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import cli
from harness import report as harness
from harness.commands import run
from harness.pages import BLACK, BLUE, ORANGE, ReportPage, number, spans, table
from harness.report import Report, ReportError

from vatt.runtime.progress import progress_bar
from vatt.training.metrics_log import read_metrics

NAME = "esc10_official"
FOLDS = (1, 2, 3, 4, 5)
TUNING_FOLD = 1  # the settings below were chosen on it
CHANCE = 0.1
SIZES = ("model.audio.rate=16000", "model.audio.samples=25600", "model.audio.patch=256")  # 1.6 s, as the frames
TUNING = ("mixup=0", "data.cache_gb=1", "data.workers=0")
PIECES = tuple((what, init) for init in ("scratch", "pretrained") for what in ("probe", "fine-tuning"))
LABELS = {
    ("probe", "scratch"): "logistic regression on an untrained model",
    ("probe", "pretrained"): "logistic regression on the pre-trained model",
    ("fine-tuning", "scratch"): "trained from scratch",
    ("fine-tuning", "pretrained"): "fine-tuned",
}
LOOKS = {
    ("probe", "scratch"): (ORANGE, "s"),
    ("probe", "pretrained"): (BLUE, "s"),
    ("fine-tuning", "scratch"): (ORANGE, "o"),
    ("fine-tuning", "pretrained"): (BLUE, "o"),
}
EXAMPLES = """examples:
  python bench/esc10_official.py --data esc10/             five folds: half an hour of one core
  python bench/esc10_official.py --data esc10/ --resume    go on after a crash: finished rows are kept
  python bench/esc10_official.py --data esc10/ --quick     two minutes, to see it work

--data: a folder with esc10.csv (file, fold, label, category, ...) and the clips it lists.
exit codes: 0 done, 1 failed, 2 wrong usage."""


def changes(settings: Sequence[str]) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


def pretrain(out: Path, steps: int, *extra: str) -> dict[str, Any]:
    """Pre-train on the built-in corpus; OUT/model is what the other pieces start from."""
    shutil.rmtree(out, ignore_errors=True)
    run(
        [
            "vatt.train",
            "--fused",
            "--preset",
            "tiny",
            "--steps",
            str(steps),
            "--out",
            str(out),
            *changes(SIZES),
            *extra,
        ],
        out.with_suffix(".log"),
    )
    result = json.loads((out / "result.json").read_text())
    return {
        "final_loss": result["final_loss"],
        "train_seconds": result["train_seconds"],
        "retrieval": {name: scores["R@10"] for name, scores in result["retrieval"].items()},
    }


def finetune(args: argparse.Namespace, init: str, fold: int) -> dict[str, Any]:
    """Fine-tune on four folds and test on `fold`; return top-1, the loss curve and times."""
    out = args.work / f"{init}-fold-{fold}"
    shutil.rmtree(out, ignore_errors=True)
    source = ["none", "--model", "tiny"] if init == "scratch" else [str(args.work / "pretrained")]
    run(
        [
            "vatt.finetune",
            "--task",
            "audio",
            "--loss",
            "softmax",
            "--fused",
            "--data",
            str(manifest(args, fold)),
            "--init",
            *source,
            "--steps",
            str(args.steps),
            "--rate",
            str(args.rate),
            "--batch-size",
            str(args.batch_size),
            "--out",
            str(out),
            *changes(SIZES if init == "scratch" else ()),
            *changes(TUNING),
        ],
        out.with_suffix(".log"),
    )
    result = json.loads((out / "result.json").read_text())
    losses = [record["loss"] for record in read_metrics(out / "metrics.jsonl")]
    return {
        "top1": result["test"]["scores"]["top1"],
        "clips": result["test"]["labelled"],
        "curve": spans(losses),
        "final_loss": result["final_loss"],
        "train_seconds": result["train_seconds"],
        "test_seconds": result["test_seconds"],
        "bad_clips": result["bad_clips"],
    }


def probe(args: argparse.Namespace, init: str) -> list[dict[str, Any]]:
    """Score logistic regression on frozen features, a row for each fold."""
    out = args.work / f"probe-{init}"
    shutil.rmtree(out, ignore_errors=True)
    manifests = [str(manifest(args, fold)) for fold in args.folds]
    run(
        [
            "vatt.evaluate",
            "--task",
            "probe",
            "--probe",
            "lbfgs",
            "--modality",
            "audio",
            "--windows",
            "4",
            "--run",
            str(args.work / init),
            "--data",
            *manifests,
            "--out",
            str(out),
        ],
        out.with_suffix(".log"),
    )
    folds = json.loads((out / "result.json").read_text())["probe"]["audio"]["folds"]
    return [
        {"fold": fold, "top1": folds[f"fold-{fold}"]["top1"], "clips": folds[f"fold-{fold}"]["tested"]}
        for fold in args.folds
    ]


def manifest(args: argparse.Namespace, fold: int) -> Path:
    return args.work / f"fold-{fold}.csv"


def scores_of(report: Report, kind: str, init: str) -> dict[int, float]:
    """Return fold -> top-1 in per cent."""
    return {row["fold"]: 100 * row["top1"] for row in report.rows if (row["kind"], row.get("init")) == (kind, init)}


def spread(scores: Sequence[float]) -> str:
    return f"{statistics.fmean(scores):.1f}" + (f" ± {statistics.stdev(scores):.1f}" if len(scores) > 1 else "")


def page(report: Report) -> str:
    folds, s = report.settings["folds"], report.settings
    lines = []
    for kind, init in PIECES:
        scores = scores_of(report, kind, init)
        others = [top1 for fold, top1 in scores.items() if fold != TUNING_FOLD]
        if scores:
            each = [number(scores.get(fold), 1) for fold in folds]
            lines.append([LABELS[kind, init], *each, spread([*scores.values()]), spread(others) if others else "–"])
    lines.append(["chance", *("10.0" for _ in folds), "10.0", "10.0"])
    parts = [
        "Top-1 in per cent on each official fold, mean and standard deviation over the folds, and the same without "
        f"fold {TUNING_FOLD}, on which steps, rate, batch and mixup were chosen. Every test clip is read at four "
        "windows with all tokens. One clip is 1.25 points.",
        table(["", *(f"fold {fold}" for fold in folds), "mean ± std", f"without fold {TUNING_FOLD}"], lines),
    ]
    paired = paired_difference(report)
    if paired:
        parts.append(
            f"Fine-tuned less from scratch, fold by fold: {spread(paired)} points, from {min(paired):+.1f} to "
            f"{max(paired):+.1f}."
        )
    for row in report.rows:
        if row["kind"] == "pre-training" and row["init"] == "pretrained":
            scores = row["retrieval"]
            parts.append(
                f"Pre-training: {s['pretraining_steps']} steps on the built-in corpus, which has no real "
                f"sound, {row['train_seconds']:.0f} s; R@10 among its 100 held-out clips: sound to video "
                f"{scores['audio_to_video']:.2f}, text to video {scores['text_to_video']:.2f}."
            )
    parts.append(
        "What is the release's: SGD with momentum 0.9 and the rate inside the velocity, linear warm-up and cosine, the "
        "backbone's gradients clipped at 0.75, DropToken of one half in training, averaged logits of four windows, "
        "sound in [-1, 1] as it was recorded. What is scaled: sizes of the model, 1.6 s at 16 kHz, "
        f"{s['steps']} steps of {s['batch_size']} clips, rate {s['rate']}, softmax instead of sigmoid, no mixup."
    )
    return "\n\n".join(parts)


def paired_difference(report: Report) -> list[float]:
    """Return points by which fine-tuning beats training from scratch on each fold that has both."""
    scratch, tuned = (scores_of(report, "fine-tuning", init) for init in ("scratch", "pretrained"))
    return [tuned[fold] - scratch[fold] for fold in tuned if fold in scratch]


def figure(report: Report, plt: Any) -> Any:
    drawn, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.6))
    for position, piece in enumerate(PIECES):
        scores = [*scores_of(report, *piece).values()]
        colour, sign = LOOKS[piece]
        left.plot([position] * len(scores), scores, sign, color=colour, alpha=0.6)
        if scores:
            mean = statistics.fmean(scores)
            left.plot([position - 0.25, position + 0.25], [mean, mean], color=colour, lw=2)
            left.annotate(f"{mean:.1f}", (position + 0.28, mean), va="center", fontsize=9)
    left.axhline(100 * CHANCE, color=BLACK, ls=":", lw=1)
    left.annotate("chance", (-0.4, 100 * CHANCE), xytext=(0, 3), textcoords="offset points", fontsize=8)
    left.set_xticks(range(len(PIECES)), ["untrained,\nprobe", "from scratch", "pre-trained,\nprobe", "fine-tuned"])
    left.set(ylabel="top-1 %, a sign a fold, a line the mean", ylim=(0, None), xlim=(-0.5, len(PIECES) - 0.2))
    for init, colour in (("scratch", ORANGE), ("pretrained", BLUE)):
        rows = [row for row in report.rows if (row["kind"], row.get("init")) == ("fine-tuning", init)]
        for i, row in enumerate(rows):
            ends = [(j + 0.5) * report.settings["steps"] / len(row["curve"]) for j in range(len(row["curve"]))]
            right.plot(
                ends, row["curve"], color=colour, lw=1, alpha=0.7, label=LABELS["fine-tuning", init] if i == 0 else None
            )
    right.axhline(2.302585, color=BLACK, ls=":", lw=1, label="ln 10: nothing learned")
    right.set(xlabel="step", ylabel="training loss (nats), a line a fold")
    right.legend(fontsize=8)
    for axis in (left, right):
        axis.grid(alpha=0.3)
    drawn.tight_layout(rect=(0, 0, 1, 0.9))
    return drawn


def readme_rows(report: Report) -> list[tuple[str, str]]:
    results = [
        f"{LABELS[piece]} {spread([*scores_of(report, *piece).values()])} %"
        for piece in PIECES
        if scores_of(report, *piece)
    ]
    return [
        ("ESC-10 top-1 over five folds (chance 10 %), the official audio recipe scaled to a CPU", "; ".join(results))
    ]


REPORT_PAGE = ReportPage(page, figure, readme_rows)


def measure(args: argparse.Namespace) -> Path:
    args.work.mkdir(parents=True, exist_ok=True)
    report, path = harness.open_report(
        NAME,
        "ESC-10 with the official audio recipe scaled to a CPU",
        settings={
            "pretraining_steps": args.pretraining_steps,
            "steps": args.steps,
            "rate": args.rate,
            "batch_size": args.batch_size,
            "folds": args.folds,
            "sizes": list(SIZES),
            "tuning": list(TUNING),
        },
        method={
            "fine-tuning": "python -m vatt.finetune --task audio --loss softmax, from scratch and from a model "
            "pre-trained with python -m vatt.train --fused --preset tiny",
            "probe": "python -m vatt.evaluate --task probe --probe lbfgs on frozen features",
            "scores": f"of the last step; settings were chosen on fold {TUNING_FOLD}",
        },
        out=cli.output_folder(args),
        resume=args.resume,
        quick=args.quick,
    )
    for fold in args.folds:
        run(
            [
                "vatt.data.sources",
                "esc10",
                str(args.data / "esc10.csv"),
                "--media",
                str(args.data),
                "--fold",
                str(fold),
                "--out",
                str(manifest(args, fold)),
            ],
            args.work / "sources.log",
        )
    done = {(row["kind"], row["init"], row.get("fold")) for row in report.rows}

    def add(kind: str, init: str, rows: list[dict[str, Any]]) -> None:
        report.rows += [{"kind": kind, "init": init, **row} for row in rows]
        report.save(path)
        bar.update()

    with progress_bar(4 + 2 * len(args.folds), NAME, "piece") as bar:
        for init in ("scratch", "pretrained"):
            if ("pre-training", init, None) in done and (args.work / init / "model").is_dir():
                bar.update()
                continue
            # One step at a rate of 0 is a model that has learned nothing.
            steps, extra = (1, ("--set", "optim.warmup=1")) if init == "scratch" else (args.pretraining_steps, ())
            if ("pre-training", init, None) in done:
                raise ReportError(
                    f"{args.work / init}, from which finished rows came, is gone; start over without --resume"
                )
            add("pre-training", init, [pretrain(args.work / init, steps, *extra)])
        for init in ("scratch", "pretrained"):
            if ("probe", init, args.folds[0]) not in done:
                add("probe", init, probe(args, init))
            else:
                bar.update()
        for fold in args.folds:
            for init in ("scratch", "pretrained"):
                if ("fine-tuning", init, fold) not in done:
                    add("fine-tuning", init, [{"fold": fold, **finetune(args, init, fold)}])
                else:
                    bar.update()
    report.finished = True
    report.save(path)
    return path


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.make_parser(
        "esc10_official", "Fine-tune an audio transformer on ESC-10 as the release does, but small.", EXAMPLES
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, metavar="DIR", help="folder with esc10.csv and the clips")
    add("--pretraining-steps", type=int, metavar="N", help="default 600 (with --quick 5)")
    add("--steps", type=int, metavar="N", help="of fine-tuning (default 1000; with --quick 5)")
    add("--rate", type=float, default=0.004, metavar="R", help="of fine-tuning (default %(default)s; official 0.005)")
    add("--batch-size", type=int, default=8, metavar="N", help="of fine-tuning (default %(default)s)")
    add("--folds", type=int, nargs="+", choices=FOLDS, metavar="N", help="default all (with --quick 1)")
    add("--work", type=Path, default=harness.ROOT / "runs" / NAME, metavar="DIR", help="folder of the runs")
    cli.add_common_flags(parser)
    args = parser.parse_args(argv)
    args.pretraining_steps = args.pretraining_steps or (5 if args.quick else 600)
    args.steps = args.steps or (5 if args.quick else 1000)
    args.folds = args.folds or ([1] if args.quick else list(FOLDS))
    return cli.run_benchmark(lambda: measure(args), REPORT_PAGE, args)


if __name__ == "__main__":
    sys.exit(main())
