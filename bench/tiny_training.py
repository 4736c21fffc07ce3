"""The tiny preset trained on the built-in corpus from several seeds: held-out retrieval, loss curves, wall times.

Each seed is one `python -m vatt.train --fused` in a process of its own, as a newcomer would start it. The corpus goes
to a new cache, so the first run writes it and its wall time is that of a first run on a new machine.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import cli
from harness import report as harness
from harness.pages import BLACK, BLUE, GREEN, ORANGE, PINK, ReportPage, legend_below, number, table
from harness.report import Report, ReportError

from tqdm import tqdm

from vatt.config.presets import preset
from vatt.runtime.progress import progress_bar
from vatt.training.metrics_log import read_metrics

NAME = "tiny_training"
DIRECTIONS = {"text_to_video": "text to video", "audio_to_video": "audio to video"}
GOALS = {"text_to_video": 0.80, "audio_to_video": 0.75}  # R@10 among 100 clips, where chance is 0.1
SEED_STYLES = [(BLUE, "-"), (ORANGE, "--"), (GREEN, "-."), (PINK, ":")]
CURVE_POINTS = 90
EXAMPLES = """examples:
  python bench/tiny_training.py                        seeds 1, 2, 3: about 15 minutes on two cores
  python bench/tiny_training.py --resume               go on after a crash: finished seeds are kept
  python bench/tiny_training.py --seeds 1 2 3 4 5 --set model.drop.rate=0.75 --out runs/reports
  python bench/tiny_training.py --quick                three short runs, two minutes, to see it work

exit codes: 0 done, 1 a run failed or lost a step, 2 wrong usage."""


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = cli.make_parser(
        "tiny_training",
        "Train the tiny preset from several seeds and report held-out retrieval, mean and spread.",
        EXAMPLES,
    )
    add = parser.add_argument
    add("--seeds", type=int, nargs="+", default=[1, 2, 3], metavar="N", help="one run each (default 1 2 3)")
    add("--steps", type=int, metavar="N", help="updates a run (default: the preset's; with --quick 20)")
    add(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="A.B=C",
        help="any setting of vatt.train, for all runs; repeatable",
    )
    add(
        "--work",
        type=Path,
        default=harness.ROOT / "runs" / NAME,
        metavar="DIR",
        help="runs go to DIR/seed-N and the corpus to DIR/corpus, which are cleared first unless --resume (default "
        "runs/tiny_training, with --quick runs/tiny_training-quick)",
    )
    cli.add_common_flags(parser)
    args = parser.parse_args(argv)
    if len(set(args.seeds)) < len(args.seeds):
        parser.error("--seeds names a seed twice")
    args.steps = args.steps or (20 if args.quick else preset("tiny").steps)
    if args.quick:
        if args.work == parser.get_default("work"):
            args.work = args.work.with_name(f"{NAME}-quick")
        args.overrides = ["data.builtin_clips=120", *args.overrides]
    args.work = args.work.absolute()
    return args


def clear(work: Path) -> None:
    """Removes what an earlier benchmark left in `work`. Raises `ReportError`, and removes nothing, if more is there."""
    entries = list(work.iterdir()) if work.exists() else []
    strangers = [path.name for path in entries if not re.fullmatch(r"corpus|seed-\d+(\.log)?", path.name)]
    if strangers:
        raise ReportError(f"{work} holds {strangers[0]}, which is not of this benchmark; name another --work")
    for path in entries:
        path.unlink() if path.is_file() else shutil.rmtree(path)


def run_seed(args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Trains one seed from scratch and returns its row. Raises `ReportError` when the run fails."""
    run = args.work / f"seed-{seed}"
    shutil.rmtree(run, ignore_errors=True)  # what an interrupted benchmark left: half a run has no wall time
    cache = args.work / "corpus"
    cold = not any(cache.glob("*/corpus.json"))  # part of a finished corpus only
    command = [
        sys.executable,
        "-m",
        "vatt.train",
        "--fused",
        "--preset",
        "tiny",
        "--seed",
        str(seed),
        "--steps",
        str(args.steps),
        "--out",
        str(run),
    ]
    for override in args.overrides:
        command += ["--set", override]
    tqdm.write(f"seed {seed}: tail -f {args.work / f'seed-{seed}.log'} shows its steps", file=sys.stderr)
    tick = time.perf_counter()
    with open(args.work / f"seed-{seed}.log", "w", encoding="utf-8") as log:
        code = subprocess.run(
            command, env={**os.environ, "VATT_CACHE": str(cache)}, stdout=log, stderr=subprocess.STDOUT
        ).returncode
    wall = time.perf_counter() - tick
    if code:
        last = Path(log.name).read_text(encoding="utf-8").strip().splitlines()[-1:]
        raise ReportError(
            f"the run of seed {seed} ended with exit code {code}: {''.join(last)} (all of it: {log.name})"
        )
    result = json.loads((run / "result.json").read_text())
    records = read_metrics(run / "metrics.jsonl")
    return {
        "seed": seed,
        "cold_cache": cold,
        "operations": result["environment"]["operations"],
        "wall_seconds": wall,
        "train_seconds": result["train_seconds"],
        "evaluate_seconds": result["evaluate_seconds"],
        "other_seconds": wall - result["train_seconds"] - result["evaluate_seconds"],
        "wait_share": result["wait_share"],
        "steps_without_update": sum(not record["updated"] for record in records),
        "bad_clips": result["bad_clips"],
        "final_loss": result["final_loss"],
        "retrieval": result["retrieval"],
        "curve": curve(records),
    }


def curve(records: list[dict[str, Any]]) -> list[dict[str, float]]:
    """At most CURVE_POINTS means over as many stretches of steps, with the middle step of each.

    Steps without an update have no loss to speak of and are left out; the gate counts them.
    """
    records = [record for record in records if record["updated"]]
    size = math.ceil(len(records) / CURVE_POINTS)
    points = []
    for begin in range(0, len(records), size):
        part = records[begin : begin + size]
        means = {key: statistics.fmean(r[key] for r in part) for key in ("loss", "video_text", "video_audio")}
        points.append({"step": statistics.fmean(r["step"] for r in part), **means})
    return points


def measure(args: argparse.Namespace, report: Report, path: Path) -> None:
    """Runs the missing seeds; the report is saved after each."""
    known = {row["seed"] for row in report.rows}
    if not args.resume:
        clear(args.work)
    args.work.mkdir(parents=True, exist_ok=True)
    with progress_bar(len(args.seeds), NAME, "run", len(known)) as bar:
        for seed in args.seeds:
            if seed in known:
                continue
            report.rows.append(run_seed(args, seed))
            report.gate["checks"] = [
                {
                    "seed": r["seed"],
                    "steps_without_update": r["steps_without_update"],
                    "green": not r["steps_without_update"],
                }
                for r in report.rows
            ]
            report.gate["green"] = all(check["green"] for check in report.gate["checks"])
            report.save(path)
            bar.update()
    report.finished = True
    report.save(path)


def scores(report: Report, direction: str, key: str) -> list[float]:
    return [row["retrieval"][direction][key] for row in report.rows]


def mean_and_spread(values: Sequence[float], digits: int = 3) -> str:
    """Mean, and the standard deviation of the sample where there are two values or more."""
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{spread}"


def page(report: Report) -> str:
    s = report.settings
    candidates = report.rows[0]["retrieval"]["text_to_video"]["candidates"]
    chance = report.rows[0]["retrieval"]["text_to_video"]["chance_R@10"]
    intro = (
        f"{s['steps']} steps of the tiny preset on the built-in corpus, one run a seed. Held-out retrieval among "
        f"{candidates} clips whose attribute combinations are not in the training split; chance of R@10 is "
        f"{chance:.2g}."
    )
    if not report.quick:
        intro += f" Goal: R@10 of at least {GOALS['text_to_video']} from text and {GOALS['audio_to_video']} from audio."
    rows = []
    for direction, name in DIRECTIONS.items():
        digits = {"R@1": 3, "R@5": 3, "R@10": 3, "median_rank": 1}
        rows += [
            [f"{name}, seed {r['seed']}", *(number(r["retrieval"][direction][k], n) for k, n in digits.items())]
            for r in report.rows
        ]
        rows.append(
            [
                f"**{name}, mean ± deviation**",
                *(mean_and_spread(scores(report, direction, k), n) for k, n in digits.items()),
            ]
        )
    parts = [intro, "## Retrieval", table(["query", "R@1", "R@5", "R@10", "median rank"], rows)]
    rows = [
        [
            str(r["seed"]),
            number(r["final_loss"], 3),
            "written" if r["cold_cache"] else "found",
            *(number(r[f"{k}_seconds"], 1) for k in ("wall", "train", "evaluate", "other")),
            f"{r['wait_share']:.1%}",
            str(r["bad_clips"]),
        ]
        for r in report.rows
    ]
    columns = [
        "seed",
        "final loss",
        "corpus",
        "wall s",
        "training s",
        "evaluation s",
        "other s",
        "waiting for data",
        "bad clips",
    ]
    parts += [
        "## Time",
        table(columns, rows),
        "Wall: the whole process. Other: imports, writing the corpus where it was not there, exporting the "
        "model, drawing. Waiting: share of the steps' time in which no batch was ready. "
        "Final loss: mean of the last 20 steps.",
    ]
    lost = sum(r["steps_without_update"] for r in report.rows)
    parts += [
        "## Numerics",
        f"Steps without an update, because loss or gradient was not finite: {lost}. "
        f"In every run, {report.rows[0]['operations']}.",
    ]
    return "\n\n".join(parts)


def readme_rows(report: Report) -> list[tuple[str, str]]:
    candidates = report.rows[0]["retrieval"]["text_to_video"]["candidates"]
    chance = report.rows[0]["retrieval"]["text_to_video"]["chance_R@10"]
    lines = [
        (
            f"`tiny` on the built-in corpus, {name.lower()} R@10 among {candidates} held-out "
            f"clips (chance {chance:.2g})",
            f"{mean_and_spread(scores(report, direction, 'R@10'))}, {len(report.rows)} seeds",
        )
        for direction, name in DIRECTIONS.items()
    ]
    first = report.rows[0]
    made = ", corpus generation included" if first["cold_cache"] else ""
    return [*lines, (f"the whole of that run{made}", f"{first['wall_seconds']:.0f} s on {report.machine}")]


def figure(report: Report, plt: Any) -> Any:
    """Loss curves of all seeds, R@10 as bars with the chance line, and how the wall time splits."""
    figure, (losses, bars, times) = plt.subplots(1, 3, figsize=(14, 4.8), layout="constrained", width_ratios=(4, 3, 3))
    for index, row in enumerate(report.rows):
        colour, line = SEED_STYLES[index % len(SEED_STYLES)]
        losses.plot(
            [p["step"] for p in row["curve"]],
            [p["loss"] for p in row["curve"]],
            color=colour,
            linestyle=line,
            linewidth=1.3,
            label=f"seed {row['seed']}",
        )
    losses.set(xlabel="step", ylabel="loss (nats)", title="Training loss")
    width = 0.8 / len(report.rows)
    for index, row in enumerate(report.rows):
        places = [i + (index - (len(report.rows) - 1) / 2) * width for i in range(len(DIRECTIONS))]
        heights = [row["retrieval"][d]["R@10"] for d in DIRECTIONS]
        drawn = bars.bar(
            places, heights, width * 0.9, color=SEED_STYLES[index % len(SEED_STYLES)][0], label=f"seed {row['seed']}"
        )
        bars.bar_label(drawn, fmt="%.2f", fontsize=8)
    chance = report.rows[0]["retrieval"]["text_to_video"]["chance_R@10"]
    bars.axhline(chance, color=BLACK, linestyle="--", linewidth=1, label=f"chance {chance:.2g}")
    if not report.quick:
        for position, direction in enumerate(DIRECTIONS):
            bars.hlines(
                GOALS[direction],
                position - 0.45,
                position + 0.45,
                color=BLACK,
                linestyle=":",
                label="goal" if not position else None,
            )
    bars.set(
        xticks=range(len(DIRECTIONS)),
        xticklabels=DIRECTIONS.values(),
        ylabel="R@10",
        ylim=(0, 1.1),
        yticks=[0, 0.2, 0.4, 0.6, 0.8, 1],
        title="Held-out retrieval",
    )
    bottom = [0.0] * len(report.rows)
    labels = [f"seed {r['seed']}\n{'first run' if r['cold_cache'] else ''}" for r in report.rows]
    shares = (
        ("train", "training", BLUE, ""),
        ("evaluate", "evaluation", ORANGE, "//"),
        ("other", "corpus, start, export", GREEN, ".."),
    )
    for key, label, colour, hatch in shares:
        heights = [r[f"{key}_seconds"] for r in report.rows]
        times.bar(labels, heights, 0.7, bottom=bottom, label=label, color=colour, hatch=hatch, edgecolor="white")
        bottom = [b + h for b, h in zip(bottom, heights, strict=True)]
    times.set(ylabel="seconds", title="Wall time of a run", ylim=(0, 1.05 * max(bottom)))
    for axes in (losses, bars, times):
        axes.grid(alpha=0.3, axis="both" if axes is losses else "y")
        axes.set_axisbelow(True)
        legend_below(axes, 3)
    return figure


REPORT_PAGE = ReportPage(page, figure, readme_rows)


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(None if argv is None else list(argv))
    try:
        settings = {"preset": "tiny", "steps": args.steps, "seeds": args.seeds, "overrides": args.overrides}
        method = {
            "runs": "a process a seed, one after the other; the corpus is written to a new cache by the first",
            "wall time": "time.perf_counter around the process; training and evaluation as the run reports them",
            "spread": "standard deviation of the sample over seeds",
        }
        title = f"Tiny preset on the built-in corpus, {len(args.seeds)} seeds"
        root = cli.output_folder(args)
        report, path = harness.open_report(
            NAME, title, settings=settings, method=method, out=root, resume=args.resume, quick=args.quick
        )
        measure(args, report, path)
        cli.publish(path, REPORT_PAGE, root)
    except (ReportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(page(harness.load(path)))
    return 0 if report.gate["green"] else 1


if __name__ == "__main__":
    sys.exit(main())
