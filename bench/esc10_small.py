"""ESC-10 from scratch with the settings for few clips: five folds, and what each share of dropped tokens costs.

The settings are those of `python -m vatt.finetune --task audio --preset small --init none`. They were chosen on fold 1.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from harness import cli
from harness import report as harness
from harness.pages import BLACK, BLUE, ReportPage, number, table
from harness.report import Report

import torch
from workloads import esc10_from_scratch
from workloads.esc10_from_scratch import FOLDS

from vatt.config.finetuning import FinetuneConfig
from vatt.runtime.progress import progress_bar

NAME = "esc10_small"
TUNING_FOLD = 1
RANDOM_FOREST = 72.7  # on MFCC, Piczak 2015
RATES = (0.5, 0.0, 0.75, 0.25)  # that of the preset first
TWICE_MORE = (0.5, 0.0)  # rates that three seeds are measured at
EXAMPLES = """examples:
  python bench/esc10_small.py --esc10 esc10/              all rates and seeds: four hours of two cores
  python bench/esc10_small.py --esc10 esc10/ --resume     go on after a pause or a crash: finished rows are kept
  python bench/esc10_small.py --esc10 esc10/ --drop-rates 0.5 --seeds 1     the five folds alone: half an hour
  python bench/esc10_small.py --esc10 esc10/ --quick      half a minute, to see it work

--esc10: a folder with esc10.csv (file, fold, label, category, ...) and the clips it lists.
exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted (go on with --resume)."""


def pieces(args: argparse.Namespace) -> list[dict[str, Any]]:
    """What is measured, in its order: the five folds of a rate and a seed one after the other."""
    return [
        {"drop_rate": rate, "seed": seed, "fold": fold}
        for seed in args.seeds
        for rate in args.drop_rates
        if seed == args.seeds[0] or rate in TWICE_MORE
        for fold in args.folds
    ]


def scores_of(report: Report, rate: float, *, without: int = 0) -> dict[int, float]:
    """Seed -> mean top-1 in per cent over its folds, of seeds with all of them."""
    folds = [fold for fold in report.settings["folds"] if fold != without]
    rows = {(r["seed"], r["fold"]): 100 * r["top1"] for r in report.rows if r["drop_rate"] == rate}
    seeds = sorted({seed for seed, _ in rows})
    return {
        seed: statistics.fmean(rows[seed, fold] for fold in folds)
        for seed in seeds
        if folds and all((seed, fold) in rows for fold in folds)
    }


def mean(scores: dict[int, float]) -> str:
    spread = f" ± {statistics.stdev(scores.values()):.1f}" if len(scores) > 1 else ""
    return f"{statistics.fmean(scores.values()):.1f}{spread}" if scores else "–"


def rates_of(report: Report) -> list[float]:
    return sorted({row["drop_rate"] for row in report.rows}, reverse=True)


def page(report: Report) -> str:
    facts, folds = report.settings["esc10"], report.settings["folds"]
    cells = []
    for rate in rates_of(report):
        for seed in sorted({row["seed"] for row in report.rows if row["drop_rate"] == rate}):
            rows = {r["fold"]: r for r in report.rows if (r["drop_rate"], r["seed"]) == (rate, seed)}
            top1 = [number(100 * rows[fold]["top1"] if fold in rows else None, 1) for fold in folds]
            means = [number(scores_of(report, rate, without=fold).get(seed), 1) for fold in (0, TUNING_FOLD)]
            seconds = number(statistics.fmean(r["train_seconds"] for r in rows.values()), 0)
            cells.append([f"{rate:.0%}", str(seed), *top1, *means, seconds])
    columns = ["dropped", "seed", *(f"fold {fold}" for fold in folds), "mean", f"without fold {TUNING_FOLD}"]
    whole = [
        [f"{rate:.0%}", mean(scores_of(report, rate)), mean(scores_of(report, rate, without=TUNING_FOLD))]
        for rate in rates_of(report)
    ]
    encoder, clips = facts["encoder"], report.rows[0]["clips"]
    unlabelled = facts["finetune"].get("pretrain_steps", 0)
    before = f", of which the first {unlabelled} look at no labels" if unlabelled else ""
    return "\n\n".join(
        [
            f"A raw-waveform transformer of {encoder['layers']} layers and width {encoder['width']}, from scratch on "
            f"four folds for {facts['steps']} steps{before}, tested on the fifth: {facts['samples'] / facts['rate']:g} "
            f"s at {facts['rate'] // 1000} kHz in patches of {facts['patch']}. A clip is heard {facts['views']} times "
            f"with all tokens, turned by a part of its length each time. Top-1 in per cent; a fold is {clips} clips, "
            f"one clip {100 / clips:.2f} points. Settings were chosen on fold {TUNING_FOLD}. Chance is 10; published "
            f"(Piczak 2015): random forest on MFCC {RANDOM_FOREST}, people 95.7.",
            table([*columns, "training s a fold"], cells, left=2),
            "Means over folds, ± the standard deviation of seeds where there are several:",
            table(["dropped in training", "five folds", f"without fold {TUNING_FOLD}"], whole),
        ]
    )


def figure(report: Report, plt: Any) -> Any:
    drawn, axis = plt.subplots(figsize=(6.4, 4.2))
    for row in report.rows:
        axis.plot(100 * row["drop_rate"], 100 * row["top1"], "o", color=BLUE, alpha=0.35)
    for rate in rates_of(report):
        if scores := scores_of(report, rate):
            middle = statistics.fmean(scores.values())
            axis.plot([100 * rate - 4, 100 * rate + 4], [middle, middle], color=BLUE, lw=2)
            axis.annotate(f"{middle:.1f}", (100 * rate + 4.5, middle), va="center", fontsize=9)
    axis.axhline(RANDOM_FOREST, color=BLACK, ls=":", lw=1, label="random forest on MFCC (Piczak 2015)")
    axis.set(xlabel="tokens dropped in training, %", ylabel="top-1 %, a sign a fold, a line the mean", xlim=(-8, 90))
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    drawn.tight_layout(rect=(0, 0, 1, 0.92))
    return drawn


def readme_rows(report: Report) -> list[tuple[str, str]]:
    said = [f"{rate:.0%} dropped {mean(scores_of(report, rate))} %" for rate in rates_of(report)]
    return [("ESC-10 top-1 over five folds from scratch, `--preset small` (random forest 72.7 %)", "; ".join(said))]


REPORT_PAGE = ReportPage(page, figure, readme_rows)


_clips: list[esc10_from_scratch.Esc10Clips] = []  # of this process


def begin_worker(folder: Path, rate: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process ends the others
    torch.set_num_threads(1)
    _clips[:] = [esc10_from_scratch.read_clips(folder, rate)]


def measure_piece(job: tuple[dict[str, Any], FinetuneConfig]) -> dict[str, Any]:
    piece, config = job
    return piece | esc10_from_scratch.train_fold(_clips[0], piece["fold"], piece["drop_rate"], piece["seed"], config)


def measure(args: argparse.Namespace) -> Path:
    config = esc10_from_scratch.recipe(quick=args.quick)
    report, path = harness.open_report(
        NAME,
        "ESC-10 from scratch with the settings for few clips",
        settings={"esc10": esc10_from_scratch.facts(config), "folds": args.folds},
        method={
            "training": "as python -m vatt.finetune --task audio --preset small --init none, with the clips in memory",
            "scores": f"of the last step; settings were chosen on fold {TUNING_FOLD}",
        },
        out=cli.output_folder(args),
        resume=args.resume,
        quick=args.quick,
    )
    left = [piece for piece in pieces(args) if not any(piece.items() <= row.items() for row in report.rows)]
    rate, jobs = config.model.audio.rate, [(piece, config) for piece in left]
    _clips[:] = [esc10_from_scratch.read_clips(args.esc10, rate)]  # says what is wrong with it, in time
    with ExitStack() as held:
        bar = held.enter_context(progress_bar(len(left), NAME, "fold"))
        run: Callable[..., Iterable[dict[str, Any]]] = map
        if args.processes > 1:
            spawn = multiprocessing.get_context("spawn")
            run = held.enter_context(spawn.Pool(args.processes, begin_worker, (args.esc10, rate))).imap
        for row in run(measure_piece, jobs):
            report.rows.append(row)
            report.save(path)
            bar.update()
    report.finished = True
    report.save(path)
    return path


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.make_parser(NAME, "Train a small raw-waveform transformer on ESC-10 from scratch.", EXAMPLES)
    add = parser.add_argument
    add("--esc10", type=Path, required=True, metavar="DIR", help="folder with esc10.csv and the clips")
    add("--drop-rates", type=float, nargs="+", metavar="R", help="shares of tokens dropped (default all of Table 5)")
    add(
        "--seeds",
        type=int,
        nargs="+",
        metavar="N",
        help="the first at all rates, the others at 0.5 and 0 (default 1 2 3)",
    )
    add("--folds", type=int, nargs="+", choices=FOLDS, metavar="N", help="default all (with --quick 1)")
    add("--processes", type=int, metavar="N", help="folds trained at once, a thread each (default: one a core)")
    cli.add_common_flags(parser)
    args = parser.parse_args(argv)
    args.drop_rates = args.drop_rates or ([0.5] if args.quick else list(RATES))
    if not all(0 <= rate < 1 for rate in args.drop_rates):
        parser.error("--drop-rates are shares, 0 <= R < 1")
    args.seeds = args.seeds or ([1] if args.quick else [1, 2, 3])
    args.processes = args.processes or os.cpu_count() or 1
    args.folds = args.folds or ([1] if args.quick else list(FOLDS))
    try:
        return cli.run_benchmark(lambda: measure(args), REPORT_PAGE, args)
    except KeyboardInterrupt:
        print("interrupted; finished rows are kept: --resume goes on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
