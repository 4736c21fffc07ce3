"""Figure 2 of the paper, small: where three vision towers put the held-out clips of the built-in corpus (t-SNE).

Two are pre-trained without labels, modality-specific and modality-agnostic; the third is trained from scratch with the
labels. All have the same size, see the same clips, and train as many steps. The corpus is generated and its classes are
five shapes, so the figure shows that the path works and what a tower this small keeps, nothing of real videos.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import cli
from harness import report as harness
from harness.commands import run
from harness.pages import ReportPage, number, table
from harness.report import Report, ReportError

import numpy as np

from vatt.data.synthetic import COLOURS, build_corpus, plan
from vatt.figures.tsne import neighbour_share
from vatt.runtime.files import MARKERS
from vatt.runtime.progress import progress_bar

NAME = "figure2"
PANELS = {"tiny": "modality-specific", "tiny_ma": "modality-agnostic", "scratch": "from scratch, with labels"}
CLIPS = 800  # of the built-in corpus, 100 of them held out
EXAMPLES = """examples:
  python bench/figure2.py             trains three models of the tiny preset: half an hour of one core
  python bench/figure2.py --resume    go on after a crash: finished models are kept
  python bench/figure2.py --quick     a minute, to see it work

exit codes: 0 done, 1 failed, 2 wrong usage. Needs pip install -e '.[figures]'."""


def train(name: str, args: argparse.Namespace, corpus: Path) -> dict[str, Any]:
    """Train one of `PANELS` in WORK/NAME, anew; return its scores on the held-out clips."""
    out = args.work / name
    shutil.rmtree(out, ignore_errors=True)
    if name == "scratch":
        command = [
            "vatt.finetune",
            "--task",
            "video",
            "--data",
            str(corpus),
            "--init",
            "none",
            "--model",
            "tiny",
            "--rate",
            str(args.rate),
            "--set",
            "data.cache_gb=1",
            "--set",
            "data.workers=1",
        ]
    else:
        command = ["vatt.train", "--preset", name]
    run([*command, "--fused", "--steps", str(args.steps), "--out", str(out)], out.with_suffix(".log"))
    result = json.loads((out / "result.json").read_text())
    scores = result["test"]["scores"] if name == "scratch" else result["retrieval"]["text_to_video"]
    return {"scores": scores, "final_loss": result["final_loss"], "train_seconds": result["train_seconds"]}


def embed(args: argparse.Namespace, corpus: Path) -> list[dict[str, Any]]:
    """Return of each model the points of the held-out clips, their labels, and the share of nearest neighbours of a
    class.
    """
    out = args.work / "tsne.png"
    for path in (out, out.with_suffix(".npz")):
        path.unlink(missing_ok=True)
    run(
        [
            "vatt.figures",
            "tsne",
            "--model",
            *(str(args.work / name) for name in PANELS),
            "--data",
            str(corpus),
            "--split",
            "test",
            "--out",
            str(out),
        ],
        args.work / "tsne.log",
    )
    with np.load(out.with_suffix(".npz")) as arrays:
        shares = [neighbour_share(arrays[f"features_{i}"], arrays["label"]) for i in range(len(PANELS))]
        return [
            {
                "same_class": share,
                "chance": chance,
                "labels": arrays["label"].tolist(),
                "points": np.round(points.astype(float), 3).tolist(),
            }
            for (share, chance), points in zip(shares, arrays["points"], strict=True)
        ]


def shown_colours(report: Report) -> list[str]:
    """The colour of what each held-out clip shows, in the order of the points."""
    return [recipe.colour for recipe in plan(report.settings["clips"], 0) if recipe.split == "test"]


def same_colour(report: Report, row: dict[str, Any]) -> float:
    """Share of the clips whose nearest other in the picture shows the same colour, which is no class here."""
    colours, points = np.array(shown_colours(report)), np.array(row["points"])
    apart = np.linalg.norm(points[:, None] - points, axis=-1)
    np.fill_diagonal(apart, np.inf)
    return float((colours[apart.argmin(1)] == colours).mean())


def said(row: dict[str, Any]) -> str:
    """Return the score of a model on the held-out clips, for people."""
    scores = row["scores"]
    if row["model"] == "scratch":
        return f"top-1 {100 * scores['top1']:.0f} %"
    return f"text to video R@10 {100 * scores['R@10']:.0f} %"


def page(report: Report) -> str:
    s = report.settings
    lines = [
        [
            PANELS[row["model"]],
            said(row),
            number(100 * row["same_class"], 0),
            number(100 * row["chance"], 0),
            number(100 * same_colour(report, row), 0),
            number(row["final_loss"], 2),
            number(row["train_seconds"], 0),
        ]
        for row in report.rows
        if "points" in row
    ]
    return "\n\n".join(
        [
            f"Pooled features of the vision tower for the {len(report.rows[0]['labels'])} "
            "held-out clips of the built-in "
            "corpus, whose combinations of shape, colour and motion no model has trained on. "
            "A sign is a clip, its colour the one it shows, its form "
            f"the shape in it, which is the class. Each model has trained {s['steps']} steps; "
            "the first two never saw a "
            "label, the third had nothing else.",
            table(
                [
                    "model",
                    "score on held-out clips",
                    "nearest clip is of the same class %",
                    "chance %",
                    "nearest in the picture has its colour %",
                    "training loss",
                    "training s",
                ],
                lines,
            ),
            "To see: whether signs of one shape lie together. The share of nearest clips of a class is counted in all "
            "dimensions. The groups of the pre-trained towers are the corpus's eight "
            "colours, which captions and sounds "
            "name as they name shapes and which are learned first. Not to see: distances "
            "between groups and their sizes, "
            "which t-SNE makes up.",
        ]
    )


def figure(report: Report, plt: Any) -> Any:
    """The clips of each tower: a sign's colour is that shown in the clip, which the towers tell apart; its form, the
    shape, which is the class."""
    rows = [row for row in report.rows if "points" in row]
    drawn, panels = plt.subplots(1, len(rows), figsize=(4.6 * len(rows), 5.4), layout="constrained", squeeze=False)
    shown, labels = shown_colours(report), rows[0]["labels"]
    for panel, row in zip(panels[0], rows, strict=True):
        for sign, shape in zip(MARKERS, sorted(set(labels)), strict=False):
            own = [i for i, label in enumerate(labels) if label == shape]
            colours = [[level / 255 for level in COLOURS[shown[i]]] for i in own]
            x, y = zip(*(row["points"][i] for i in own), strict=True)
            panel.scatter(x, y, 42, colours, marker=sign, linewidths=0.5, edgecolors="black", label=shape)
        panel.set(xlabel="t-SNE 1", ylabel="t-SNE 2", xticks=[], yticks=[])
        panel.set_title(
            f"{PANELS[row['model']]}\nnearest in the picture shows its colour: {same_colour(report, row):.0%}\n"
            f"nearest clip of its shape: {row['same_class']:.0%} (chance {row['chance']:.0%})",
            fontsize=10,
        )
    signs, names = panels[0][0].get_legend_handles_labels()
    forms = drawn.legend(signs, names, loc="outside lower center", ncols=len(names), fontsize=8, title="form: shape")
    for sign in forms.legend_handles:
        sign.set_facecolor("none")
    return drawn


def readme_rows(report: Report) -> list[tuple[str, str]]:
    shares = ", ".join(f"{PANELS[row['model']]} {100 * row['same_class']:.0f} %" for row in report.rows)
    return [
        (
            f"vision tower of `tiny` after {report.settings['steps']} steps, nearest held-out clip shows the same "
            f"shape (chance {100 * report.rows[0]['chance']:.0f} %)",
            shares,
        )
    ]


REPORT_PAGE = ReportPage(page, figure, readme_rows)


def measure(args: argparse.Namespace) -> Path:
    args.work.mkdir(parents=True, exist_ok=True)
    corpus = build_corpus(clips=CLIPS)
    report, path = harness.open_report(
        NAME,
        "Features of three vision towers, held-out clips of the built-in corpus (Figure 2, small)",
        settings={"steps": args.steps, "rate": args.rate, "clips": CLIPS},
        method={
            "pre-training": "python -m vatt.train --fused --preset tiny, and tiny_ma",
            "from scratch": f"python -m vatt.finetune --fused --task video --init none --model tiny --rate {args.rate}",
            "figure": "python -m vatt.figures tsne on the test split, seed 0",
        },
        out=cli.output_folder(args),
        resume=args.resume,
        quick=args.quick,
    )
    done = {row["model"]: row for row in report.rows}
    with progress_bar(len(PANELS), NAME, "model") as bar:
        for name in PANELS:
            if name not in done:
                report.rows.append({"model": name, **train(name, args, corpus)})
                report.save(path)
            elif not (args.work / name / "model").is_dir():
                raise ReportError(f"{args.work / name}, which a row is about, is gone; start over without --resume")
            bar.update()
    for row, embedded in zip(report.rows, embed(args, corpus), strict=True):
        row.update(embedded)
    report.finished = True
    report.save(path)
    return path


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.make_parser(
        "figure2",
        "Train three small models on the built-in corpus and draw what their vision towers see (t-SNE).",
        EXAMPLES,
    )
    add = parser.add_argument
    add("--steps", type=int, metavar="N", help="of each model (default 600; with --quick 3)")
    add("--rate", type=float, default=0.004, metavar="R", help="of training with labels (default %(default)s)")
    add("--work", type=Path, default=harness.ROOT / "runs" / NAME, metavar="DIR", help="folder of the models")
    cli.add_common_flags(parser)
    args = parser.parse_args(argv)
    args.steps = args.steps or (3 if args.quick else 600)
    return cli.run_benchmark(lambda: measure(args), REPORT_PAGE, args)


if __name__ == "__main__":
    sys.exit(main())
