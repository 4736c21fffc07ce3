"""Figure 4 of the paper, small: what the MLPs of a shared encoder give for video, sound and text of the same clips.

The model is the modality-agnostic one that `bench/figure2.py` trains, or any folder with a model.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import cli
from harness import report as harness
from harness.commands import run
from harness.pages import ReportPage, number, table
from harness.report import Report

import numpy as np

from vatt.data.synthetic import build_corpus
from vatt.figures.activations import activations_figure

NAME = "figure4"
EXAMPLES = """examples:
  python bench/figure4.py --model runs/figure2/tiny_ma    the model of bench/figure2.py, a held-out generated clip
  python bench/figure4.py --model DIR --data clips.csv --clips 64

exit codes: 0 done, 1 failed, 2 wrong usage."""


def measure(args: argparse.Namespace) -> Path:
    """Return mean activations by vatt.figures, a row a modality."""
    args.work.mkdir(parents=True, exist_ok=True)
    data = args.data or build_corpus()
    out = args.work / "activations.png"
    for path in (out, out.with_suffix(".npz")):
        path.unlink(missing_ok=True)
    run(
        [
            "vatt.figures",
            "activations",
            "--model",
            str(args.model),
            "--data",
            str(data),
            "--split",
            args.split,
            "--clips",
            str(args.clips),
            "--out",
            str(out),
        ],
        args.work / "activations.log",
    )
    with np.load(out.with_suffix(".npz")) as arrays:
        metadata = json.loads(str(arrays["metadata"]))
        means = {
            name: np.round(arrays[name].astype(float), 6).tolist()
            for name in ("video", "audio", "text")
            if name in arrays
        }
        clips = len(arrays["row"])
    try:
        trained = json.loads((args.model / "result.json").read_text())
        steps, scores = trained["steps"], {name: one["R@10"] for name, one in trained["retrieval"].items()}
    except (OSError, ValueError, KeyError):
        steps, scores = None, {}  # a model alone does not tell
    report, path = harness.open_report(
        NAME,
        "MLP outputs of a shared encoder by layer and node (Figure 4, small)",
        settings={
            "model": args.model.name,
            "kind": metadata["kind"],
            "weights_sha256": metadata["weights_sha256"],
            "steps": steps,
            "scores": scores,
            "data": args.data.name if args.data else "built-in corpus",
            "split": args.split,
            "clips": clips,
        },
        method={
            "figure": "python -m vatt.figures activations: output of each MLP before the residual, mean over a "
            "clip's tokens, then over clips"
        },
        out=cli.output_folder(args),
        resume=False,
        quick=args.quick,
    )
    report.rows = [{"modality": name, "activations": mean} for name, mean in means.items()]
    report.finished = True
    report.save(path)
    return path


def maps(report: Report) -> dict[str, Any]:
    return {row["modality"]: np.array(row["activations"]) for row in report.rows}


def alike(report: Report) -> list[tuple[str, str, list[float]]]:
    """Return pairs of modalities and, a layer each, the correlation of their maps over the nodes."""
    by_name = maps(report)
    names = [*by_name]
    return [
        (a, b, [float(np.corrcoef(x, y)[0, 1]) for x, y in zip(by_name[a], by_name[b], strict=True)])
        for i, a in enumerate(names)
        for b in names[i + 1 :]
        if by_name[a].shape == by_name[b].shape
    ]


def page(report: Report) -> str:
    s, layers = report.settings, len(report.rows[0]["activations"])
    sizes = [[name, *(number(value, 3) for value in np.abs(mean).mean(1))] for name, mean in maps(report).items()]
    pairs = [[f"{a}, {b}", *(number(value, 2) for value in values)] for a, b, values in alike(report)]
    scores = ", ".join(f"{name.replace('_', ' ')} {100 * value:.0f} %" for name, value in s["scores"].items())
    columns = [f"layer {i + 1}" for i in range(layers)]
    clips = "one clip" if s["clips"] == 1 else f"{s['clips']} clips"
    parts = [
        f"Mean output of every MLP node before the residual is added, for {clips} of {s['data']} (split {s['split']}) "
        f"through `{s['model']}` ({s['kind']}, {s['steps']} steps of pre-training; R@10 on held-out clips: {scores}).",
        "Mean size by layer:\n\n" + table(["", *columns], sizes),
    ]
    if pairs:
        parts.append(
            "Correlation over the nodes of a layer, 1 where two modalities use the same nodes alike:\n\n"
            + table(["", *columns], pairs)
        )
    parts.append(
        "To see: which nodes of the encoder answer to which modality, and from which layer on. Not to see: what a node "
        "means, or how a model of the paper's size does it. This one has few layers and generated clips, and "
        "positions, the same for every clip of a modality, are part of what is averaged."
    )
    return "\n\n".join(parts)


def figure(report: Report, plt: Any) -> Any:
    return activations_figure(maps(report), report.title)


def readme_rows(report: Report) -> list[tuple[str, str]]:
    last = ", ".join(f"{a} and {b} {values[-1]:.2f}" for a, b, values in alike(report))
    label = f"MLP outputs of `{report.settings['model']}`, correlation of two modalities over the last layer's nodes"
    return [(label, last)] if last else []


REPORT_PAGE = ReportPage(page, figure, readme_rows)


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.make_parser("figure4", "Draw what the MLPs of a model give for video, sound and text.", EXAMPLES)
    add = parser.add_argument
    add("--model", type=Path, required=True, metavar="DIR", help="folder of a run or a model")
    add("--data", type=Path, metavar="PATH", help="manifest or folder of clips (default: the built-in corpus)")
    add("--split", default="test", metavar="NAME", help="rows of the manifest (default test)")
    add("--clips", type=int, default=1, metavar="N", help="clips to average over (default 1, as the paper)")
    add("--work", type=Path, default=harness.ROOT / "runs" / NAME, metavar="DIR", help="folder of the arrays")
    cli.add_common_flags(parser)
    args = parser.parse_args(argv)
    return cli.run_benchmark(lambda: measure(args), REPORT_PAGE, args)


if __name__ == "__main__":
    sys.exit(main())
