"""Table 6 of the paper: clip length, resolution and DropToken of the video model. GFLOPs of both accountings for
ViT-Medium beside the printed ones; throughput and memory of the preset that fits the device.

Position tables are native to each grid, as in the paper's rows: nothing is resampled. DropToken runs in training. An
evaluation reads all tokens, so inference is timed with all of them, and with fewer in rows marked `drop_in_eval`.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness import cli
from harness import report as harness
from harness.pages import BLACK, BLUE, GREEN, ORANGE, PINK, ReportPage, number, table
from harness.report import Report

from accounting.flops import backbone_flops
from accounting.paper_flops import video_paper_flops
from workloads import model_steps
from workloads.model_steps import StepCase

from vatt.config.model import DropConfig, ModelConfig, kept_tokens
from vatt.config.presets import PRESETS, preset
from vatt.config.serialization import to_dict

NAME = "resolution_sweep"
RATES = (0.0, 0.25, 0.5, 0.75)
CLIPS = ("32x224", "64x224", "32x320")
# Table 6, ViT-Medium fine-tuned on Kinetics-400: (clip, drop rate) -> GFLOPs, top-1 in percent.
PAPER = {
    ("32x224", 0.0): (548.1, 79.9),
    ("64x224", 0.0): (1222.1, 80.8),
    ("32x320", 0.75): (279.8, 79.3),
    ("32x320", 0.5): (572.5, 80.2),
    ("32x320", 0.25): (898.9, 80.7),
    ("32x320", 0.0): (1252.3, 81.1),
}
STYLES = [(BLUE, "o"), (GREEN, "s"), (ORANGE, "^")]
EXAMPLES = """examples:
  python bench/resolution_sweep.py                     on a CPU the Small video model, about 10 minutes on two cores;
                                                       on a GPU the paper's Medium
  python bench/resolution_sweep.py --resume            go on after a crash: finished rows and rounds are kept
  python bench/resolution_sweep.py --quick             small clips, two layers: a minute, to see it work
  python bench/resolution_sweep.py --preset bbs --clips 32x224 32x320 --drop-rates 0 0.5 --repeats 3
  python bench/resolution_sweep.py --device cuda --preset lbs --batch 16 --dropout 0.1

A clip is FRAMESxPIXELS. exit codes: 0 done, 1 failed or the numerics are red, 2 wrong usage."""


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = cli.make_parser(
        "resolution_sweep",
        "GFLOPs, throughput and memory of the video model over clip length, resolution and drop rate.",
        EXAMPLES,
    )
    add = parser.add_argument
    choices = sorted(name for name, make in PRESETS.items() if make().model.kind == "specific")
    add(
        "--preset",
        choices=choices,
        metavar="NAME",
        help="whose video model is timed: %(choices)s (default: mbs, Medium, on GPUs; sss, Small, else)",
    )
    add("--layers", type=int, metavar="N", help="cut the encoder to N layers (default: all; with --quick 2)")
    add(
        "--clips",
        nargs="+",
        metavar="FxP",
        help=f"frames x pixels (default {' '.join(CLIPS)}; with --quick 16x96 16x128)",
    )
    add(
        "--drop-rates",
        type=float,
        nargs="+",
        metavar="R",
        help="shares of tokens dropped, 0 among them (default 0 0.25 0.5 0.75; with --quick 0 0.5)",
    )
    add(
        "--dropout",
        type=float,
        default=0.0,
        metavar="P",
        help="dropout in training (default 0; the release has 0.1, with which attention on a CPU computes "
        "probabilities block by block)",
    )
    model_steps.add_step_flags(parser)
    cli.add_common_flags(parser)
    args = parser.parse_args(argv)
    args.clips = list(dict.fromkeys(args.clips or (["16x96", "16x128"] if args.quick else CLIPS)))
    args.drop_rates = sorted(set(args.drop_rates or ([0.0, 0.5] if args.quick else RATES)))
    if not all(re.fullmatch(r"[1-9]\d*x[1-9]\d*", clip) for clip in args.clips):
        parser.error("--clips are FRAMESxPIXELS, e.g. 32x224")
    if 0.0 not in args.drop_rates or not all(0 <= rate < 1 for rate in (*args.drop_rates, args.dropout)):
        parser.error("rates are shares, 0 <= R < 1, and --drop-rates needs 0 among them: speed-ups are relative to it")
    if min(n for n in (args.batch, args.repeats, args.layers, 1) if n is not None) < 1:
        parser.error("--batch, --repeats and --layers are at least 1")
    return args


def model_config(model: ModelConfig, clip: str, rate: float) -> ModelConfig:
    frames, size = map(int, clip.split("x"))
    return replace(model, video=replace(model.video, frames=frames, size=size, tables=None), drop=DropConfig(rate))


def plan(args: argparse.Namespace, model: ModelConfig) -> tuple[list[StepCase], list[dict[str, Any]]]:
    """Return what is measured: each clip and rate in training; in inference with all tokens, and with fewer."""
    cases, rows = [], []
    for clip in args.clips:
        for training in (True, False):
            for rate in args.drop_rates:
                dropped_eval = not training and rate > 0
                case = StepCase(
                    model_config(model, clip, rate),
                    training,
                    drop_in_eval=dropped_eval,
                    batch=args.batch,
                    fused=not args.reference,
                    device=args.device,
                    dtype=args.dtype,
                )
                cases.append(case)
                none = replace(case, model=model_config(model, clip, 0.0), drop_in_eval=False)
                rows.append(
                    {
                        "kind": "measured",
                        "clip": clip,
                        "drop_rate": rate,
                        "training": training,
                        "drop_in_eval": dropped_eval,
                        "tokens": case.tokens["video"],
                        "paper_gflops": video_paper_flops(case.model).total() / 1e9,
                        "flop_ratio": none.ideal_flops / case.ideal_flops,
                        "seconds": [],
                    }
                )
    return cases, rows


def accounting() -> list[dict[str, Any]]:
    """Return the GFLOPs of ViT-Medium, forward, of one clip, beside the printed ones.

    Both as the paper counts them, and true.
    """
    rows = []
    for clip in CLIPS:
        for rate in RATES:
            model = model_config(preset("mbs").model, clip, rate)
            printed, top1 = PAPER.get((clip, rate), (None, None))
            ops = video_paper_flops(model)
            true = backbone_flops(model, "video", drop=True, project_all=True)
            rows.append(
                {
                    "kind": "accounting",
                    "clip": clip,
                    "drop_rate": rate,
                    "paper_printed": printed,
                    "paper_top1": top1,
                    "tokens": kept_tokens(model.video.tokens, rate) + 1,
                    "paper_gflops": ops.total() / 1e9,
                    "true_gflops": true.forward / 1e9,
                    "ops": {name: n / 1e9 for name, n in ops.items()},
                }
            )
    return rows


def derive(report: Report) -> None:
    """Add, as long as the numerics are green, the speed-up over the same clip and mode without dropping."""
    measured = of_kind(report, "measured")
    none = {(r["clip"], r["training"]): r for r in measured if r["drop_rate"] == 0}
    for row in measured:
        base = none[row["clip"], row["training"]]
        known = report.gate["green"] and base.get("p50") and row.get("p50")
        row["speedup"] = base["p50"] / row["p50"] if known else None
        row["speedup_of_ideal"] = row["speedup"] and row["speedup"] / row["flop_ratio"]


def of_kind(report: Report, kind: str) -> list[dict[str, Any]]:
    return [row for row in report.rows if row["kind"] == kind]


def per_cent(share: float) -> str:
    return f"{share:.0%}"


def clip_name(clip: str) -> str:
    frames, size = clip.split("x")
    return f"{frames}x{size}x{size}"


def accounting_page(report: Report) -> list[str]:
    rows = of_kind(report, "accounting")
    full = next(r for r in rows if r["clip"] == "32x320" and r["drop_rate"] == 0)
    missing, true = full["ops"]["P V"], full["true_gflops"]  # Q K^T is as large as P V
    others = full["paper_gflops"] - (true - missing)
    return [
        "## GFLOPs: the paper's and the true ones",
        'ViT-Medium, forward, one clip. "Printed": Table 6. "Accounted": the paper\'s rule, op by op, as '
        '`bench/accounting/paper_flops.py` states it; rows that drop tokens are training graphs. "True": 2 x MAC of '
        "every product, with all patches projected before the drop, as in the paper's model. Top-1 is the paper's, on "
        "Kinetics-400 after its pre-training; no accuracy was measured here.",
        table(
            [
                "clip",
                "dropped",
                "tokens",
                "printed",
                "accounted",
                "difference",
                "true",
                "accounted / true",
                "the paper's top-1",
            ],
            [
                [
                    clip_name(r["clip"]),
                    per_cent(r["drop_rate"]),
                    str(r["tokens"]),
                    number(r["paper_printed"], 1),
                    number(r["paper_gflops"], 3),
                    f"{r['paper_gflops'] / r['paper_printed'] - 1:+.4%}" if r["paper_printed"] else "–",
                    number(r["true_gflops"], 3),
                    number(r["paper_gflops"] / r["true_gflops"], 3),
                    number(r["paper_top1"], 1, " %"),
                ]
                for r in rows
            ],
        ),
        "**The paper's GFLOPs leave out Q K^T.** The profiler that counted them has no rule for the einsum that "
        f"computes it; P V, a plain product of the same size, is counted. At {clip_name(full['clip'])} without "
        f"dropping, {missing:.1f} of {true:.1f} GFLOPs are missing for that reason ({missing / true:.0%}); biases, "
        f"softmax, norms, GELU and the initialisers of the weights, none of which is a product, add {others:.1f}. "
        "What is missing grows with the square of the tokens, so the printed numbers understate what DropToken saves: "
        f"half of the tokens there divide the printed GFLOPs by {_gain(rows, 'paper_gflops'):.2f} and the true ones by "
        f"{_gain(rows, 'true_gflops'):.2f}.",
    ]


def _gain(rows: list[dict[str, Any]], key: str) -> float:
    values = {r["drop_rate"]: r[key] for r in rows if r["clip"] == "32x320"}
    return float(values[0.0] / values[0.5])


def measured_table(rows: list[dict[str, Any]], *, training: bool) -> str:
    """`drop_in_eval` is a column of inference only."""
    marks = [] if training else ["drop_in_eval"]
    columns = [
        "clip",
        "dropped",
        *marks,
        "tokens",
        "accounted",
        "true, of a step",
        "p20",
        "p50",
        "p80",
        "GFLOP/s",
        "peak GiB",
        "speed-up over 0 %",
        "FLOP ratio",
        "speed-up / FLOP ratio",
    ]
    return table(
        columns,
        [
            [
                clip_name(r["clip"]),
                per_cent(r["drop_rate"]),
                *("yes" if r[mark] else "no" for mark in marks),
                str(r["tokens"]),
                number(r["paper_gflops"], 1),
                number(r.get("gflops"), 1),
                *(number(r.get("clips_per_second", {}).get(q), 3) for q in ("p20", "p50", "p80")),
                number(r["gflops"] / r["p50"] if r.get("p50") else None, 0),
                number(gib(r.get("peak_bytes"))),
                number(r.get("speedup")),
                number(r["flop_ratio"]),
                number(r.get("speedup_of_ideal")),
            ]
            for r in rows
            if r["training"] == training
        ],
    )


def page(report: Report) -> str:
    s, encoder, rows = report.settings, report.settings["encoder"], of_kind(report, "measured")
    noise = max(((r["p80"] - r["p20"]) / r["p50"] for r in rows if r.get("p50")), default=None)
    parts = [
        *accounting_page(report),
        "## Measured: throughput and memory",
        f"**The video model of preset `{s['preset']}`: {encoder['layers']} layers of width {encoder['width']}, on "
        f"{report.environment['device']}**, batch {s['batch']}, {s['dtype']}, dropout {encoder['dropout']:g}, "
        f'{"fused" if s["fused"] else "literal"} operations. p20, p50, p80: clips per second. "Accounted": GFLOPs of '
        'this model and one clip, forward, by the paper\'s rule; "true": of the step that was timed, the whole batch. '
        '"FLOP ratio" is what a step would gain if dropped tokens cost nothing at all. Peak: weights, input, '
        "gradients and all a step stores.",
        f"Widest p20 to p80 range of a row: {number(noise and 100 * noise, 1, ' % of its median')}.",
        "### Training: forward and backward, DropToken on",
        measured_table(rows, training=True),
        "### Inference: forward",
        "An evaluation reads all tokens, whatever was dropped in training: its row is the one of each clip with "
        '`drop_in_eval` "no". The others time a dropped forward, whose accuracy no row here speaks of.',
        measured_table(rows, training=False),
        "## Numerics",
        model_steps.checks_table(report),
    ]
    return "\n\n".join(parts)


def readme_rows(report: Report) -> list[tuple[str, str]]:
    rows = of_kind(report, "accounting")
    full = next(r for r in rows if r["clip"] == "32x320" and r["drop_rate"] == 0)
    worst = max(abs(r["paper_gflops"] / r["paper_printed"] - 1) for r in rows if r["paper_printed"])
    lines = [
        (
            "GFLOPs of ViT-Medium at 32x320x320: printed in Table 6, by the paper's rule, true",
            f"{full['paper_printed']:.1f}, {full['paper_gflops']:.1f}, {full['true_gflops']:.1f} (Q K^T is not in the "
            f"paper's); all rows of Table 6 within {worst:.3%}",
        )
    ]
    for r in of_kind(report, "measured"):
        if r["training"] and r["drop_rate"] == 0.5:
            lines.append(
                (
                    f"training step of the `{report.settings['preset']}` video model on "
                    f"{report.environment['device']}, "
                    f"{clip_name(r['clip'])}, 50% dropped",
                    f"{r['speedup']:.2f}x as fast as without dropping (FLOP ratio {r['flop_ratio']:.2f}), "
                    f"{r['clips_per_second']['p50']:.2f} clips/s",
                )
            )
    return lines


def gib(value: float | None) -> float | None:
    return None if value is None else value / 2**30


def figure(report: Report, plt: Any) -> Any:
    """Draw both accountings over the tokens.

    Throughput and memory over the drop rate; speed-up over the FLOP ratio.
    """
    figure, ((flops, rate), (gain, memory)) = plt.subplots(2, 2, figsize=(13, 9), layout="constrained")
    draw_accounting(flops, of_kind(report, "accounting"))
    rows = of_kind(report, "measured")
    clips = list(dict.fromkeys(r["clip"] for r in rows))
    for index, clip in enumerate(clips):
        colour, marker = STYLES[index % len(STYLES)]
        for training in (True, False):
            known = [r for r in rows if r["clip"] == clip and r["training"] == training and r.get("p50")]
            style = {
                "color": colour,
                "marker": marker,
                "linestyle": "-" if training else ":",
                "markerfacecolor": colour if training else "white",
                "label": f"{clip_name(clip)}, {'training' if training else 'inference'}",
            }
            dropped = [100 * r["drop_rate"] for r in known]
            speeds = {q: [r["clips_per_second"][q] for r in known] for q in ("p20", "p50", "p80")}
            rate.plot(dropped, speeds["p50"], **style)
            rate.fill_between(dropped, speeds["p20"], speeds["p80"], color=colour, alpha=0.2, linewidth=0)
            gains = [r for r in known if r["speedup"]]
            gain.plot([r["flop_ratio"] for r in gains], [r["speedup"] for r in gains], **style)
            known = [r for r in rows if r["clip"] == clip and r["training"] == training and "peak_bytes" in r]
            memory.plot([100 * r["drop_rate"] for r in known], [gib(r["peak_bytes"]) for r in known], **style)
    most = max(r["flop_ratio"] for r in rows)
    gain.plot([1, most], [1, most], color=BLACK, linestyle="--", label="ideal")
    rate.set(ylabel="clips/s (median, p20 to p80)", title="Throughput (dropped inference: drop_in_eval)")
    if any(r.get("p50") for r in rows):  # a logarithmic axis cannot be empty
        rate.set_yscale("log")
        rate.yaxis.set_minor_locator(plt.LogLocator(subs=(2, 5)))
        rate.yaxis.set_major_formatter("{x:g}")
        rate.yaxis.set_minor_formatter("{x:g}")
    gain.set(xlabel="FLOP ratio", ylabel="speed-up over own 0 %", title="Gained by dropping tokens")
    memory.set(ylabel="GiB", title="Peak memory", ylim=(0, None))
    for axes in (rate, memory):
        axes.set(xlabel="tokens dropped (%)", xticks=sorted({100 * r["drop_rate"] for r in rows}))
    for axes in (flops, rate, gain, memory):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return figure


def draw_accounting(axes: Any, rows: list[dict[str, Any]]) -> None:
    """Draw the GFLOPs of ViT-Medium over encoder tokens.

    What lies between the two lines is Q K^T, less what is no product.
    """
    line = sorted((r for r in rows if r["clip"] == "32x320"), key=lambda r: r["tokens"])
    tokens = [r["tokens"] for r in line]
    axes.plot(tokens, [r["true_gflops"] for r in line], color=BLACK, marker=".", label="true, 32x320x320")
    axes.plot(
        tokens,
        [r["paper_gflops"] for r in line],
        color=PINK,
        linestyle="--",
        marker=".",
        label="the paper's rule, 32x320x320",
    )
    axes.fill_between(
        tokens, [r["paper_gflops"] for r in line], [r["true_gflops"] for r in line], color=PINK, alpha=0.2, linewidth=0
    )
    for index, clip in enumerate(CLIPS):
        colour, marker = STYLES[index]
        printed = [r for r in rows if r["clip"] == clip and r["paper_printed"]]
        axes.scatter(
            [r["tokens"] for r in printed],
            [r["paper_printed"] for r in printed],
            facecolors="none",
            edgecolors=colour,
            marker=marker,
            s=70,
            zorder=3,
            label=f"Table 6, {clip_name(clip)}",
        )
        if clip != "32x320":
            axes.scatter(
                [r["tokens"] for r in printed],
                [r["true_gflops"] for r in printed],
                color=colour,
                marker=marker,
                s=20,
                zorder=3,
                label=f"true, {clip_name(clip)}",
            )
    ends = line[-2:]  # the arrow points into the band between the last two points
    x = sum(r["tokens"] for r in ends) / 2
    y = sum(r["true_gflops"] + r["paper_gflops"] for r in ends) / 4
    axes.annotate(
        "Q K$^T$ is not\nin the paper's",
        (x, y),
        (0.97, 0.3),
        textcoords="axes fraction",
        ha="right",
        arrowprops={"arrowstyle": "->"},
    )
    axes.set(
        xlabel="tokens in the encoder",
        ylabel="GFLOPs, forward, one clip",
        title="ViT-Medium: both accountings",
        ylim=(0, None),
    )


def draw_csv(path: Path) -> None:
    """Write the CSV beside the JSON in `path`."""
    model_steps.write_csv(path.with_suffix(".csv"), harness.load(path).rows)


REPORT_PAGE = ReportPage(page, figure, readme_rows, draw_csv)


def run(args: argparse.Namespace) -> Path:
    """Measure what is missing of the report, and return the path of its JSON."""
    device = model_steps.resolve_step_flags(args, batch_on_gpu=8)
    name = args.preset or ("sss" if device.type == "cpu" else "mbs")
    model = preset(name).model
    encoder = model.video_encoder
    layers = args.layers or (2 if args.quick else encoder.layers)
    encoder = replace(encoder, layers=layers, dropout=args.dropout)
    model = replace(model, video_encoder=encoder)
    settings = {
        "preset": name,
        "encoder": to_dict(encoder),
        "clips": args.clips,
        "drop_rates": args.drop_rates,
        "batch": args.batch,
        "dtype": args.dtype,
        "fused": not args.reference,
    }
    title = f"Resolution and DropToken (Table 6): {name} video model, {layers} layers of width {encoder.width}"
    report, path = harness.open_report(
        NAME,
        title,
        settings=settings,
        method=model_steps.method(args),
        out=cli.output_folder(args),
        resume=args.resume,
        quick=args.quick,
        device=args.device,
    )
    cases, rows = plan(args, model)
    report.rows = report.rows or [*rows, *accounting()]
    checked = [(args.clips[0], 0.0), *((clip, max(args.drop_rates)) for clip in args.clips)]
    checks = [
        StepCase(model_config(model, clip, rate), True, fused=not args.reference, device=args.device, dtype=args.dtype)
        for clip, rate in checked
    ]
    model_steps.measure(report, path, cases, repeats=args.repeats, checks=checks, derive=derive)
    return path


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(None if argv is None else list(argv))
    return cli.run_benchmark(
        lambda: run(args),
        REPORT_PAGE,
        args,
        "the operations disagree with the literal model, see Numerics; nothing was timed",
    )


if __name__ == "__main__":
    sys.exit(main())
