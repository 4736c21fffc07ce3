"""The video model beside Hugging Face's VideoMAE-Base: the same width, depth, heads and number of patches.

Both are bound by the same matrix products. VideoMAE cuts 16 frames into 2 x 16 x 16 voxels, VATT 32 frames into
4 x 16 x 16: 1568 patches each; VATT has an AGG token more. VideoMAE gets its faster attention (SDPA) and frames that
are normalised floats already, VATT bytes. Dropping half the patches is DropToken here and `bool_masked_pos` there.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import cli, timing
from harness import report as harness
from harness.pages import BLUE, ORANGE, ReportPage, number, table
from harness.report import Report

from workloads import model_steps
from workloads.model_steps import StepCase
from workloads.videomae_step import MODELS, MODES, fast_bfloat16, make, rival, video_model

from vatt.runtime import progress

NAME = "videomae"
NO_BFLOAT16 = "Bfloat16 was left out: this CPU has no instructions for it, and emulated it is several times slower."
COLOURS = {"vatt": BLUE, "videomae": ORANGE}
EXAMPLES = """examples:
  python bench/videomae.py              VATT-Base and VideoMAE-Base, 8 to 12 minutes on two cores
  python bench/videomae.py --resume     go on after a crash: finished rounds are kept
  python bench/videomae.py --quick      two layers, two rounds: to see it work

exit codes: 0 done, 1 failed (transformers is not installed: pip install transformers), 2 wrong usage."""


def cells(dtypes: Sequence[str], rates: Sequence[float]) -> list[dict[str, Any]]:
    """Return what is measured, a row each."""
    return [
        {"model": model, "dtype": dtype, "drop_rate": rate, "mode": mode, "seconds": []}
        for dtype, rate, mode, model in itertools.product(dtypes, rates, MODES, MODELS)
    ]


def derive(report: Report) -> None:
    """Add medians, ours against the rival's, and what dropping gains against the ratio of FLOPs."""
    rows = {(row["model"], row["dtype"], row["drop_rate"], row["mode"]): row for row in report.rows}
    for row in report.rows:
        row.update(timing.quantiles(row["seconds"]))
    for (_, dtype, rate, mode), row in rows.items():
        other = rows["videomae", dtype, rate, mode]
        whole = rows[row["model"], dtype, 0.0, mode]
        if row["p50"] and other["p50"] and whole["p50"]:
            row["faster_than_videomae"] = other["p50"] / row["p50"]
            row["gained"] = whole["p50"] / row["p50"]
            row["gained_of_flop_ratio"] = row["gained"] / row["flop_ratio"]


def page(report: Report) -> str:
    lines = [
        [
            row["mode"],
            row["dtype"],
            f"{row['drop_rate']:.0%}",
            row["model"],
            number(row.get("p20"), 3),
            number(row.get("p50"), 3),
            number(row.get("p80"), 3),
            number(row.get("faster_than_videomae")),
            number(row.get("gained")),
            number(row["flop_ratio"]),
            number(row.get("gained_of_flop_ratio")),
        ]
        for row in report.rows
    ]
    columns = [
        "step",
        "dtype",
        "dropped",
        "model",
        "p20 s",
        "p50 s",
        "p80 s",
        "VideoMAE / this",
        "gained by dropping",
        "FLOP ratio",
        "gained / FLOP ratio",
    ]
    return "\n\n".join(
        [
            "The two models compute different functions of different clips with random weights; what they share is the "
            "work. VATT's numerics are gated below, against the literal model in float64.",
            *([] if "bfloat16" in report.settings["dtypes"] else [NO_BFLOAT16]),
            table(columns, lines, left=4),
            "## Numerics",
            model_steps.checks_table(report),
        ]
    )


def figure(report: Report, plt: Any) -> Any:
    pairs = [(row["mode"], row["dtype"], row["drop_rate"]) for row in report.rows if row["model"] == "vatt"]
    drawn, axis = plt.subplots(figsize=(10, 4.6))
    for offset, model in zip((-0.2, 0.2), MODELS, strict=True):
        rows = [row for row in report.rows if row["model"] == model]
        bars = axis.bar(
            [index + offset for index in range(len(pairs))],
            [row.get("p50") or 0 for row in rows],
            0.4,
            color=COLOURS[model],
            label="VATT, fused" if model == "vatt" else "VideoMAE",
        )
        axis.bar_label(bars, fmt="%.2f", fontsize=8)
    labels = [f"{mode}\n{dtype}\n{rate:.0%} dropped" for mode, dtype, rate in pairs]
    axis.set_xticks(range(len(pairs)), labels, fontsize=7)
    axis.set_ylabel("seconds a step, median")
    axis.legend()
    drawn.tight_layout(rect=(0, 0, 1, 0.92))
    return drawn


def readme_rows(report: Report) -> list[tuple[str, str]]:
    ratios = {(row["mode"], row["dtype"]): [] for row in report.rows}  # type: dict[tuple[str, str], list[float]]
    for row in report.rows:
        if row["model"] == "vatt" and "faster_than_videomae" in row:
            ratios[row["mode"], row["dtype"]].append(row["faster_than_videomae"])
    return [
        (
            f"Base video model beside VideoMAE-Base on a CPU, {mode}, {dtype}, 0 % and 50 % dropped",
            " and ".join(f"{ratio:.2f}x" for ratio in speeds) + " as fast",
        )
        for (mode, dtype), speeds in ratios.items()
        if speeds
    ]


REPORT_PAGE = ReportPage(page, figure, readme_rows)


def measure(args: argparse.Namespace) -> Path:
    report, path = harness.open_report(
        NAME,
        f"VATT-Base video beside VideoMAE-Base, {args.layers} layers, 1568 patches",
        settings={"layers": args.layers, "size": args.size, "repeats": args.repeats, "dtypes": args.dtypes},
        method={
            "timing": "all rows alternate in one process, every second round backwards; one warm-up, "
            f"{args.repeats} rounds, time.perf_counter; p20, p50, p80",
            "bfloat16": "autocast over float32 weights, for both",
            "rival": _version(),
        },
        out=cli.output_folder(args),
        resume=args.resume,
        quick=args.quick,
    )
    report.rows = report.rows or cells(args.dtypes, (0.0, 0.5))
    for row in report.rows:
        whole, this = (
            StepCase(
                video_model(args.layers, args.size, rate),
                row["mode"] != MODES[0],
                drop_in_eval=rate > 0 and row["mode"] == MODES[0],
            ).ideal_flops
            for rate in (0.0, row["drop_rate"])
        )
        row["flop_ratio"] = whole / this
    if report.gate["green"] is None:
        report.gate["checks"] = [
            model_steps.numerics(StepCase(video_model(args.layers, args.size, rate), True, dtype=dtype))
            for dtype in args.dtypes
            for rate in (0.0, 0.5)
        ]
        report.gate["green"] = all(check["green"] for check in report.gate["checks"])
        report.save(path)
    if report.gate["green"]:
        rows = {str(index): row for index, row in enumerate(report.rows)}
        candidates = {name: make(row, args.layers, args.size) for name, row in rows.items()}
        done = {name: len(row["seconds"]) for name, row in rows.items()}
        with progress.progress_bar(len(rows) * (args.repeats + 1), NAME, "step") as bar:
            for name, seconds in timing.time_interleaved(candidates, args.repeats, done=done):
                bar.update()
                if seconds is not None:
                    rows[name]["seconds"].append(seconds)
                    derive(report)
                    report.save(path)
        report.finished = True
        report.save(path)
    return path


def _version() -> str:
    rival(1, 32)
    import transformers

    return f"transformers {transformers.__version__}, VideoMAEModel, attn_implementation=sdpa"


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.make_parser("videomae", "The video model beside Hugging Face's VideoMAE-Base, on a CPU.", EXAMPLES)
    parser.add_argument("--repeats", type=int, metavar="N", help="timed rounds (default 5; with --quick 2)")
    parser.add_argument(
        "--dtypes",
        nargs="+",
        choices=("float32", "bfloat16"),
        help="default: float32, and bfloat16 where the CPU has instructions for it",
    )
    cli.add_common_flags(parser)
    args = parser.parse_args(argv)
    args.layers, args.size = (2, 112) if args.quick else (12, 224)
    args.dtypes = args.dtypes or ["float32", *(["bfloat16"] if fast_bfloat16() else [])]
    args.repeats = args.repeats or (2 if args.quick else 5)
    red = "the operations disagree with the literal model; nothing was timed"
    return cli.run_benchmark(lambda: measure(args), REPORT_PAGE, args, red)


if __name__ == "__main__":
    sys.exit(main())
