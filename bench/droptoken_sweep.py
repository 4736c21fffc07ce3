"""DropToken (Table 5 of the paper): what dropping 75, 50, 25 or no tokens saves, and what it costs in accuracy.

Times and memory are those of a preset. Accuracy is that of models trained here at each rate, the tiny preset on the
built-in corpus (probe and retrieval of held-out clips) and a raw-waveform transformer on ESC-10, and that of models of
yours, such as a converted official checkpoint, on any manifest. Evaluation always reads all tokens.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness import cli
from harness import report as harness
from harness.report import Report

from accounting.flops import backbone_flops, vatt_flops
from accounting.paper_flops import vatt_paper_flops
from pages.droptoken import KINDS, NAME, PAPER_GFLOPS, REPORT_PAGE, TUNING_FOLD
from workloads import esc10_from_scratch, model_steps
from workloads.model_steps import StepCase

from vatt.checkpoints.model_folder import load_config
from vatt.config.model import ModelConfig
from vatt.config.presets import PRESETS, preset
from vatt.config.serialization import to_dict
from vatt.runtime.progress import progress_bar

EXAMPLES = """examples:
  python bench/droptoken_sweep.py --esc10 esc10/              everything: about 90 minutes on two cores
  python bench/droptoken_sweep.py --esc10 esc10/ --resume     go on after a crash: finished rows are kept
  python bench/droptoken_sweep.py --only timing --preset mbs --device cuda
  python bench/droptoken_sweep.py --only esc10 --esc10 esc10/ --seeds 1 2 3 --resume      more rows for the same report
  python bench/droptoken_sweep.py --only data --data hmdb51-1.csv ucf101-1.csv esc50.csv youcook2.csv msrvtt.csv \\
                                  --init vatt-mbs             the paper's own columns from a converted checkpoint
  python bench/droptoken_sweep.py --quick --esc10 esc10/      two minutes, to see it work

A manifest of --data has the columns path and label and split (probe: "train" and "test", or folds by any other names,
each tested on once) and/or caption (retrieval among "test", or among all clips). Sound files are probed by sound.
exit codes: 0 done, 1 failed or wrong numerics, 2 wrong usage, 130 interrupted (go on with --resume)."""


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = cli.make_parser(
        "droptoken_sweep",
        "FLOPs, speed, memory and accuracy of VATT for each share of tokens that DropToken drops.",
        EXAMPLES,
    )
    add = parser.add_argument
    add(
        "--only",
        nargs="+",
        choices=KINDS,
        metavar="PART",
        help="%(choices)s (default: timing, corpus, and esc10 and data where they are given)",
    )
    add(
        "--drop-rates",
        type=float,
        nargs="+",
        metavar="R",
        help="shares of tokens dropped, 0 among them (default 0.75 0.5 0.25 0; with --quick 0.5 0)",
    )
    add(
        "--preset",
        metavar="NAME",
        choices=sorted(PRESETS),
        help="whose time and memory: %(choices)s (default mbs on a GPU, sss on a CPU, tiny with --quick)",
    )
    model_steps.add_step_flags(parser)
    add("--seeds", type=int, nargs="+", default=[1], metavar="N", help="of the trainings, one each (default 1)")
    add(
        "--steps", type=int, metavar="N", help="updates on the built-in corpus (default: the preset's; with --quick 20)"
    )
    add("--esc10", type=Path, metavar="DIR", help="folder of ESC-10: esc10.csv and the clips it lists")
    add(
        "--folds",
        type=int,
        nargs="+",
        choices=esc10_from_scratch.FOLDS,
        metavar="N",
        help="ESC-10 folds (default all; with --quick 1)",
    )
    add(
        "--data", nargs="+", default=[], metavar="PATH", help="manifests of your own; their file names name the columns"
    )
    add(
        "--init",
        type=Path,
        nargs="+",
        default=[],
        metavar="DIR",
        help="models scored on --data, converted or trained; each in the row of its own drop rate",
    )
    add(
        "--work",
        type=Path,
        default=harness.ROOT / "runs" / NAME,
        metavar="DIR",
        help="runs and features go to a folder in it that is named by a digest of the program (default "
        "runs/droptoken_sweep, with --quick runs/droptoken_sweep-quick)",
    )
    cli.add_common_flags(parser)
    args = parser.parse_args(argv)
    given = {"esc10": args.esc10, "data": args.data and args.init}
    args.only = args.only or [kind for kind in KINDS if given.get(kind, True)]
    if bool(args.data) != bool(args.init):
        parser.error("--data needs --init, the models to score on it, and --init needs --data")
    for kind in ("esc10", "data"):
        if kind in args.only and not given[kind]:
            parser.error(f"--only {kind} needs --{kind}{' and --init' if kind == 'data' else ''}")
    args.drop_rates = sorted(
        set(args.drop_rates or ([0.5, 0.0] if args.quick else [0.75, 0.5, 0.25, 0.0])), reverse=True
    )
    if 0.0 not in args.drop_rates or not all(0 <= rate < 1 for rate in args.drop_rates):
        parser.error("--drop-rates are shares, 0 <= R < 1, and 0 is among them: gains and losses are relative to it")
    args.steps = args.steps or (20 if args.quick else preset("tiny").steps)
    args.clips = 120 if args.quick else preset("tiny").data.builtin_clips
    args.recipe = esc10_from_scratch.recipe(quick=args.quick)
    args.folds = args.folds or ([1] if args.quick else list(esc10_from_scratch.FOLDS))
    if args.quick and args.work == parser.get_default("work"):
        args.work = args.work.with_name(f"{NAME}-quick")
    args.work = args.work.absolute()
    return args


def dropping(model: ModelConfig, rate: float) -> ModelConfig:
    return replace(model, drop=replace(model.drop, rate=rate))


# FLOPs and timing


def flops_rows() -> list[dict[str, Any]]:
    """Return table 5's column of FLOPs, always of VATT-MBS, one caption a clip."""
    model = preset("mbs").model
    rows = []
    for rate, printed in PAPER_GFLOPS.items():
        dropped = dropping(replace(model, text=replace(model.text, captions=1)), rate)
        case = StepCase(dropped, training=False, whole=True, drop_in_eval=True)
        rows.append(
            {
                "kind": "flops",
                "drop_rate": rate,
                "tokens": case.tokens,
                "printed": printed,
                "paper_count": vatt_paper_flops(dropped).total() / 1e9,
                "true": case.flops / 1e9,
            }
        )
    return rows


def timing_cases(args: argparse.Namespace) -> list[tuple[dict[str, Any], StepCase]]:
    """Return pairs of what a row says of itself and what is measured.

    Inference drops too: that is what the paper's GFLOPs count.
    """
    made = []
    for rate in args.drop_rates:
        model = dropping(preset(args.preset).model, rate)
        for training in (False, True):
            case = StepCase(
                model,
                training,
                whole=True,
                drop_in_eval=not training and rate > 0,
                batch=args.batch,
                fused=not args.reference,
                device=args.device,
                dtype=args.dtype,
            )
            made.append(
                (
                    {
                        "kind": "timing",
                        "drop_rate": rate,
                        "mode": "training" if training else "inference",
                        "tokens": case.tokens,
                        "seconds": [],
                    },
                    case,
                )
            )
    return made


def derive(report: Report) -> None:
    """Add the speed-up over the row without dropping, beside the ratio of FLOPs, as long as the numerics are green."""
    rows = {(r["mode"], r["drop_rate"]): r for r in report.rows if r["kind"] == "timing"}
    for (mode, _), row in rows.items():
        whole, green = rows[mode, 0.0], report.gate["green"]
        row["ideal"] = whole["gflops"] / row["gflops"]
        row["speedup"] = whole["p50"] / row["p50"] if green and whole.get("p50") and row.get("p50") else None


def measure_timing(args: argparse.Namespace, report: Report, path: Path) -> bool:
    """Fill the timing rows, which come first in the report. Returns whether the numerics are green."""
    cases = [case for _, case in timing_cases(args)]
    checks = [case for case in cases if case.training]
    return model_steps.measure(report, path, cases, repeats=args.repeats, checks=checks, derive=derive)


# accuracy


def pieces(args: argparse.Namespace, kinds: Collection[str]) -> Iterator[dict[str, Any]]:
    """Yield what tells the accuracy rows apart, in the order they are made: all rates of a fold before the next
    fold.
    """
    for seed in args.seeds:
        if "corpus" in kinds:
            yield from ({"kind": "corpus", "drop_rate": rate, "seed": seed} for rate in args.drop_rates)
    for seed in args.seeds:
        if "esc10" in kinds:
            yield from (
                {"kind": "esc10", "drop_rate": rate, "seed": seed, "fold": fold}
                for fold in args.folds
                for rate in args.drop_rates
            )
    if "data" in kinds:
        yield from (
            {
                "kind": "data",
                "drop_rate": load_config(init).model.drop.rate,
                "data": str(Path(data).absolute()),
                "init": str(init.absolute()),
            }
            for init in args.init
            for data in args.data
        )


def missing(args: argparse.Namespace, report: Report, kinds: Collection[str]) -> list[dict[str, Any]]:
    return [piece for piece in pieces(args, kinds) if not any(piece.items() <= row.items() for row in report.rows)]


def measure_accuracy(args: argparse.Namespace, report: Report, path: Path) -> None:
    """Make the missing rows; the report is saved after each."""
    command = shlex.join(sys.orig_argv[1:])
    left = missing(args, report, args.only)
    if not left:
        return
    from workloads import frozen_model  # reads clips with PyAV, which a machine that only measures may lack

    def keep(piece: dict[str, Any], scores: dict[str, Any]) -> None:
        report.rows.append({**piece, **scores, "command": command})
        report.save(path)

    trainings = [piece for piece in left if piece["kind"] == "esc10"]
    if trainings:
        clips = esc10_from_scratch.read_clips(args.esc10, args.recipe.model.audio.rate)
        clips = clips._replace(**{name: getattr(clips, name).to(args.device) for name in ("waves", "labels", "folds")})
        with progress_bar(len(trainings) * args.recipe.steps, "ESC-10", "step") as bar:
            for piece in trainings:
                rate, fold = piece["drop_rate"], piece["fold"]
                bar.set_postfix_str(f"fold {fold}, {rate:.0%} dropped")
                scores = esc10_from_scratch.train_fold(clips, fold, rate, piece["seed"], args.recipe, update=bar.update)
                model = esc10_from_scratch.at_drop_rate(args.recipe, rate).model
                flops = backbone_flops(model, "audio", drop=True, project_all=False).forward
                keep(piece, {**scores, "gflops": flops / 1e9})
    for piece in (piece for piece in left if piece["kind"] == "corpus"):
        rate, seed = piece["drop_rate"], piece["seed"]
        run = args.work / report.sources / f"drop-{rate:g}-seed-{seed}"
        print(f"built-in corpus: {rate:.0%} dropped, seed {seed}", file=sys.stderr)
        frozen_model.pretrain(
            run, rate, seed, steps=args.steps, clips=args.clips, device=args.device, resume=args.resume
        )
        scores = frozen_model.corpus_scores(run, args.clips, args.device)
        flops = vatt_flops(dropping(preset("tiny").model, rate), drop=True, project_all=False).forward
        keep(piece, {**scores, "gflops": flops / 1e9})
    for piece in (piece for piece in left if piece["kind"] == "data"):
        init, data = Path(piece["init"]), Path(piece["data"])
        print(f"{data} by {init}", file=sys.stderr)
        out = args.work / report.sources / f"{data.stem}-{re.sub('[^A-Za-z0-9]+', '-', str(init)).strip('-')}.npz"
        out.parent.mkdir(parents=True, exist_ok=True)
        scores = frozen_model.manifest_scores(init, str(data), out, args.device)
        flops = vatt_flops(load_config(init).model, drop=True, project_all=False).forward
        keep(piece, {**scores, "name": data.stem, "gflops": flops / 1e9})


def finished(args: argparse.Namespace, report: Report) -> bool:
    """Return whether every part that was asked for, now or by an earlier command, is complete."""
    times = [len(row["seconds"]) for row in report.rows if row["kind"] == "timing"]
    timed = min(times) >= args.repeats or not any(times)
    return timed and not missing(args, report, {row["kind"] for row in report.rows} | set(args.only))


def open_report(args: argparse.Namespace) -> tuple[Report, Path]:
    device = model_steps.resolve_step_flags(args, batch_on_gpu=8, batch_on_cpu=2)
    args.preset = args.preset or ("tiny" if args.quick else "sss" if device.type == "cpu" else "mbs")
    settings = {
        "drop_rates": args.drop_rates,
        "preset": args.preset,
        "model": to_dict(preset(args.preset).model),
        "batch": args.batch,
        "dtype": args.dtype,
        "reference": args.reference,
        "repeats": args.repeats,
        "corpus_steps": args.steps,
        "corpus_clips": args.clips,
        "esc10": esc10_from_scratch.facts(args.recipe),
    }
    method = {
        **model_steps.method(args),
        "probe": "multinomial logistic regression (L2, L-BFGS) on frozen, standardised, pooled features, mean over the "
        "model's windows; strength chosen on a fifth of the training clips",
        "built-in corpus": f"tiny preset, {args.steps} steps at each drop rate; probe fitted on the training clips and "
        "tested, like retrieval, on attribute combinations that are not among them",
        "ESC-10": f"{args.recipe.steps} steps from scratch on four folds, tested on the fifth; fold {TUNING_FOLD} was "
        "used to choose the settings",
    }
    return harness.open_report(
        NAME,
        "DropToken: what it saves and what it costs",
        settings=settings,
        method=method,
        out=cli.output_folder(args),
        resume=args.resume,
        quick=args.quick,
        device=str(device),
    )


def run(args: argparse.Namespace) -> Path:
    """Measure what is missing of the report, and return the path of its JSON."""
    report, path = open_report(args)
    # Rows to be timed come first, also where they are timed later or never: a row a case, in order.
    report.rows = report.rows or [*(row for row, _ in timing_cases(args)), *flops_rows()]
    green = measure_timing(args, report, path) if "timing" in args.only else True
    if green:
        report.finished = finished(args, report)
        report.save(path)
        measure_accuracy(args, report, path)
        report.finished = finished(args, report)
        report.save(path)
    return path


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(None if argv is None else list(argv))
    red = "the implementations disagree, see Numerics; no speed-up is printed"
    return cli.run_benchmark(lambda: run(args), REPORT_PAGE, args, red)


if __name__ == "__main__":
    sys.exit(main())
