"""Fused (portable) against reference operations on a CPU: a training step of the video backbone for each drop rate.

Ideally a step gets cheaper by the ratio of FLOPs that DropToken leaves. How much of that ratio each implementation
reaches, in time and in memory, is what this measures, after it has shown that both compute the same.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness import cli, timing
from harness import report as harness
from harness.memory import peak_memory
from harness.pages import BLACK, BLUE, ORANGE, ReportPage, number, table
from harness.report import Report

import torch
from accounting.flops import video_flops
from torch import Tensor

from vatt.config.model import DropConfig, ModelConfig, kept_tokens
from vatt.config.presets import PRESETS, preset
from vatt.config.serialization import to_dict
from vatt.model.vatt import Backbone
from vatt.ops import choose
from vatt.runtime.progress import progress_bar

NAME = "fused_vs_reference"
IMPLEMENTATIONS = ("reference", "fused")
GATE_LAYERS = 2  # deep enough for rounding to pass through attention twice, shallow enough for float64
GATE_FACTOR = 2.0  # fused may be this much further from float64 than the literal float32 model
COLOURS = {"reference": ORANGE, "fused": BLUE}
EXAMPLES = """examples:
  python bench/fused_vs_reference.py                       VATT-Base, 32x224x224, 10 to 15 minutes on two cores
  python bench/fused_vs_reference.py --resume              go on after a crash: finished rows and rounds are kept
  python bench/fused_vs_reference.py --dropout 0 0.1       also with the release's dropout (twice the time)
  python bench/fused_vs_reference.py --quick               one minute, to see it work
  python bench/fused_vs_reference.py --preset sss --drop-rates 0 0.9

exit codes: 0 done, 1 failed or the two implementations disagree, 2 wrong usage."""


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = cli.make_parser(
        "fused_vs_reference",
        "Step time and peak memory of the video backbone, fused against reference, side by side.",
        EXAMPLES,
    )
    choices = sorted(name for name, make in PRESETS.items() if make().model.kind == "specific")
    add = parser.add_argument
    add(
        "--preset",
        default="bbs",
        choices=choices,
        metavar="NAME",
        help="whose video model: %(choices)s (default bbs, VATT-Base)",
    )
    add("--layers", type=int, metavar="N", help="cut the encoder to N layers (default: all; with --quick 2)")
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
        nargs="+",
        default=[0.0],
        metavar="P",
        help="dropout rates to measure (default 0; the release trains with 0.1, where the portable attention computes "
        "probabilities block by block)",
    )
    add("--batch", type=int, default=1, metavar="N", help="clips a step (default 1)")
    add("--repeats", type=int, metavar="N", help="timed rounds (default 5; with --quick 2)")
    cli.add_common_flags(parser)
    args = parser.parse_args(argv)
    args.layers = args.layers or (2 if args.quick else preset(args.preset).model.video_encoder.layers)
    args.drop_rates = sorted(set(args.drop_rates or ([0.0, 0.5] if args.quick else [0.0, 0.25, 0.5, 0.75])))
    args.repeats = args.repeats or (2 if args.quick else 5)
    if 0.0 not in args.drop_rates:
        parser.error("--drop-rates needs 0 among them: speed-ups are relative to it")
    if not all(0 <= rate < 1 for rate in (*args.drop_rates, *args.dropout)):
        parser.error("rates are shares, 0 <= R < 1")
    if min(args.batch, args.repeats, args.layers) < 1:
        parser.error("--batch, --repeats and --layers are at least 1")
    return args


def model_config(name: str, layers: int, dropout: float, rate: float) -> ModelConfig:
    model = preset(name).model
    return replace(
        model, video_encoder=replace(model.video_encoder, layers=layers, dropout=dropout), drop=DropConfig(rate=rate)
    )


def build(config: ModelConfig, implementation: str) -> Backbone:
    """Return the video backbone in training mode; the same weights whatever the implementation and the drop rate."""
    torch.manual_seed(1)
    return Backbone(config, choose(implementation == "fused", "cpu"), ("video",)).train()


def clip_and_direction(config: ModelConfig, batch: int) -> tuple[Tensor, Tensor]:
    """Return noise frames [B,T,H,W,3] uint8, and the gradient [B,D] that comes back to the pooled feature."""
    generator = torch.Generator().manual_seed(2)
    video = config.video
    shape = (batch, video.frames, video.size, video.size, 3)
    frames = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return frames, torch.randn(batch, config.video_encoder.width, generator=generator)


def run_step(model: Backbone, frames: Tensor, direction: Tensor) -> Tensor:
    """Forward and backward, DropToken's draw included. Returns the features [B,N,D]."""
    torch.manual_seed(3)  # element-wise dropout: the same masks for both implementations
    model.zero_grad(set_to_none=True)
    features = model.features("video", frames, seed=4)
    features[:, 0].backward(direction)
    return features.detach()


def lone_step(config: ModelConfig, implementation: str, batch: int, threads: int) -> Callable[[], object]:
    """Return a step for `harness.peak_memory`, which calls this in a process of its own."""
    torch.set_num_threads(threads)
    model = build(config, implementation)
    frames, direction = clip_and_direction(config, batch)
    return lambda: run_step(model, frames, direction)


def numerics(config: ModelConfig) -> dict[str, Any]:
    """Return output and every gradient of both implementations against the literal model in float64, few layers deep.

    Error of a tensor: |x - exact| / |exact|, Frobenius norms. Fused passes where no tensor is more than GATE_FACTOR
    times as wrong as in the literal float32 model (or than float32's own spacing, where that model is exact by luck).
    """
    layers = min(config.video_encoder.layers, GATE_LAYERS)
    config = replace(config, video_encoder=replace(config.video_encoder, layers=layers))
    frames, direction = clip_and_direction(config, 1)

    def tensors(implementation: str, dtype: torch.dtype) -> dict[str, Tensor]:
        model = build(config, implementation).to(dtype)
        features = run_step(model, frames, direction.to(dtype))
        return {"features": features, **{name: p.grad for name, p in model.named_parameters() if p.grad is not None}}

    exact = tensors("reference", torch.float64)
    literal, fused = (tensors(name, torch.float32) for name in IMPLEMENTATIONS)
    worst, ratio = {"tensor": "", "literal": 0.0, "fused": 0.0}, -1.0
    for name, value in exact.items():
        errors = [((x[name].double() - value).norm() / value.norm()).item() for x in (literal, fused)]
        this = errors[1] / max(errors[0], torch.finfo(torch.float32).eps)
        if this > ratio or not math.isfinite(this):
            worst, ratio = {"tensor": name, "literal": errors[0], "fused": errors[1]}, this
        if not math.isfinite(this):
            break
    green = exact.keys() == literal.keys() == fused.keys() and ratio <= GATE_FACTOR
    return {
        "drop_rate": config.drop.rate,
        "dropout": config.video_encoder.dropout,
        "layers": layers,
        "tensors": len(exact),
        **worst,
        "ratio": ratio,
        "green": green,
    }


def new_rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for dropout in args.dropout:
        for rate in args.drop_rates:
            config = model_config(args.preset, args.layers, dropout, rate)
            kept = kept_tokens(config.video.tokens, rate)
            ideal = (
                video_flops(config.video_encoder, config.video, project_all=False).step
                / video_flops(config.video_encoder, config.video, kept, project_all=False).step
            )
            for name in IMPLEMENTATIONS:
                flops = video_flops(config.video_encoder, config.video, kept, project_all=name == "reference")
                rows.append(
                    {
                        "dropout": dropout,
                        "drop_rate": rate,
                        "implementation": name,
                        "tokens": kept + 1,
                        "gflops": args.batch * flops.step / 1e9,
                        "flop_ratio": ideal,
                        "seconds": [],
                    }
                )
    return rows


def derive(report: Report) -> None:
    """Add quantiles, and as long as the numerics are green the ratios: to the own 0 % row, to FLOPs, to the
    reference.
    """
    rows = {(r["dropout"], r["drop_rate"], r["implementation"]): r for r in report.rows}
    for (dropout, rate, _), row in rows.items():
        row.update(timing.quantiles(row["seconds"]))
        for measure, of, to in (("p50", "speedup", "reference_time"), ("step_bytes", "saving", "reference_memory")):
            value = row.get(measure) if report.gate["green"] else None
            own = rows[dropout, 0.0, row["implementation"]].get(measure)
            reference = rows[dropout, rate, "reference"].get(measure)
            row[of] = own / value if own and value else None
            row[f"{of}_of_ideal"] = row[of] and row[of] / row["flop_ratio"]
            row[to] = reference / value if reference and value else None


def measure(args: argparse.Namespace, report: Report, path: Path) -> None:
    """Measure numerics, then memory, then time; the report is saved after every one of them. Red numerics end it."""
    report.rows = report.rows or new_rows(args)
    done = len(report.gate["checks"]) + sum("peak_bytes" in r for r in report.rows)
    done += sum(min(len(r["seconds"]), args.repeats) for r in report.rows)
    warm = sum(len(r["seconds"]) < args.repeats for r in report.rows)
    checks = [(p, rate) for p in args.dropout for rate in args.drop_rates]
    bar = progress_bar(len(checks) + len(report.rows) * (1 + args.repeats) + warm, NAME, "measurement", done)

    def record() -> None:
        derive(report)
        report.save(path)
        bar.update()

    with bar:
        for dropout, rate in checks[len(report.gate["checks"]) :]:
            report.gate["checks"].append(numerics(model_config(args.preset, args.layers, dropout, rate)))
            record()
        report.gate["green"] = all(check["green"] for check in report.gate["checks"])
        if not report.gate["green"]:
            report.save(path)
            return
        for row in report.rows:
            if "peak_bytes" not in row:
                config = model_config(args.preset, args.layers, row["dropout"], row["drop_rate"])
                row.update(peak_memory(lone_step, config, row["implementation"], args.batch, torch.get_num_threads()))
                record()
        steps: dict[str, Callable[[], object]] = {}
        shared = build(model_config(args.preset, args.layers, 0.0, 0.0), "reference").state_dict(keep_vars=True)
        frames, direction = clip_and_direction(model_config(args.preset, args.layers, 0.0, 0.0), args.batch)
        for number_, row in enumerate(report.rows):
            model = build(
                model_config(args.preset, args.layers, row["dropout"], row["drop_rate"]), row["implementation"]
            )
            model.load_state_dict(shared, assign=True)  # one set of weights in memory, not one a row
            steps[str(number_)] = lambda model=model: run_step(model, frames, direction)  # type: ignore[misc]
        counts = {str(i): len(row["seconds"]) for i, row in enumerate(report.rows)}
        for name, seconds in timing.time_interleaved(steps, args.repeats, done=counts):
            if seconds is None:
                bar.update()
            else:
                report.rows[int(name)]["seconds"].append(seconds)
                record()
    report.finished = True
    derive(report)
    report.save(path)


def page(report: Report) -> str:
    s, parts = report.settings, []
    video = s["video"]
    parts.append(
        f"A step is forward and backward of the video backbone in training mode, batch {s['batch']}, float32: "
        f"{video['frames']}x{video['size']}x{video['size']} uint8 frames, {s['encoder']['layers']} layers of width "
        f'{s["encoder"]["width"]}. "reference" projects all patches, then drops, and stores attention probabilities; '
        f'"fused" is the portable form of the fused operations. FLOPs are 2 x MAC of every product, forward and '
        f'backward; "FLOP ratio" is what a step would gain if dropped tokens cost nothing at all. More than '
        f"that is gained where time goes to what attention stores, which shrinks with the square of the tokens."
    )
    noise = max(((r["p80"] - r["p20"]) / r["p50"] for r in report.rows if r["p50"]), default=None)
    parts.append(f"Widest p20 to p80 range of a row: {number(noise and 100 * noise, 1, ' % of its median')}.")
    for dropout in sorted({r["dropout"] for r in report.rows}):
        rows = [r for r in report.rows if r["dropout"] == dropout]
        parts.append(f"## Time, dropout {dropout:g}")
        parts.append(
            table(
                [
                    "dropped",
                    "operations",
                    "tokens",
                    "GFLOPs",
                    "p20 s",
                    "p50 s",
                    "p80 s",
                    "GFLOP/s",
                    "speed-up over 0 %",
                    "FLOP ratio",
                    "speed-up / FLOP ratio",
                    "reference / this",
                ],
                [
                    [
                        f"{r['drop_rate']:.0%}",
                        r["implementation"],
                        str(r["tokens"]),
                        number(r["gflops"], 1),
                        *(number(r[q], 3) for q in ("p20", "p50", "p80")),
                        number(r["p50"] and r["gflops"] / r["p50"], 0),
                        number(r["speedup"]),
                        number(r["flop_ratio"]),
                        number(r["speedup_of_ideal"]),
                        number(r["reference_time"]),
                    ]
                    for r in rows
                ],
            )
        )
        parts.append(f"## Memory, dropout {dropout:g}")
        parts.append(
            table(
                [
                    "dropped",
                    "operations",
                    "peak GiB",
                    "of the step GiB",
                    "saving over 0 %",
                    "FLOP ratio",
                    "saving / FLOP ratio",
                    "reference / this",
                ],
                [
                    [
                        f"{r['drop_rate']:.0%}",
                        r["implementation"],
                        number(gib(r.get("peak_bytes"))),
                        number(gib(r.get("step_bytes"))),
                        number(r["saving"]),
                        number(r["flop_ratio"]),
                        number(r["saving_of_ideal"]),
                        number(r["reference_memory"]),
                    ]
                    for r in rows
                ],
            )
        )
    parts.append(
        "Peak: weights, input, gradients and all a step stores. Of the step: without weights and input; savings and "
        "ratios are of this. Gradients do not shrink with the tokens; stored probabilities shrink with their square."
        "\n\n"
        "## Numerics\n\nOutput and every gradient against the literal model in float64; the worst tensor of each row. "
        f"Green: fused is at most {GATE_FACTOR:g} times as far from float64 as the literal float32 model."
    )
    parts.append(
        table(
            ["dropped", "dropout", "tensors", "worst tensor", "literal error", "fused error", "ratio", "green"],
            [
                [
                    f"{c['drop_rate']:.0%}",
                    f"{c['dropout']:g}",
                    str(c["tensors"]),
                    f"`{c['tensor']}`",
                    f"{c['literal']:.1e}",
                    f"{c['fused']:.1e}",
                    number(c["ratio"]),
                    "yes" if c["green"] else "NO",
                ]
                for c in report.gate["checks"]
            ],
        )
    )
    return "\n\n".join(parts)


def readme_rows(report: Report) -> list[tuple[str, str]]:
    dropout = min(r["dropout"] for r in report.rows)
    lines = []
    for r in report.rows:
        if r["implementation"] == "reference" or r["dropout"] != dropout:
            continue
        label = f"video step of `{report.settings['preset']}` on a CPU, {r['drop_rate']:.0%} dropped, fused (portable)"
        result = f"{r['reference_time']:.2f}x as fast as reference with 1/{r['reference_memory']:.2f} of its memory"
        if r["drop_rate"]:
            result += f"; {r['speedup']:.2f}x as fast as without dropping (FLOP ratio {r['flop_ratio']:.2f})"
        lines.append((label, result))
    return lines


def gib(value: float | None) -> float | None:
    return None if value is None else value / 2**30


def figure(report: Report, plt: Any) -> Any:
    """Time, the gain beside the FLOP ratio, memory, over the drop rate; rows of the smallest dropout only."""
    figure, (time, gain, memory) = plt.subplots(1, 3, figsize=(13, 4.2), layout="constrained")
    dropout = min(r["dropout"] for r in report.rows)
    for name, marker in zip(IMPLEMENTATIONS, "os", strict=True):
        rows = [r for r in report.rows if r["implementation"] == name and r["dropout"] == dropout]
        style = {"color": COLOURS[name], "marker": marker, "label": name}
        for axes, key, scale in ((time, "p50", 1), (gain, "speedup", 1), (memory, "peak_bytes", 2**-30)):
            known = [r for r in rows if r.get(key) is not None]
            axes.plot([100 * r["drop_rate"] for r in known], [r[key] * scale for r in known], **style)
        known = [r for r in rows if r["p50"] is not None]
        time.fill_between(
            [100 * r["drop_rate"] for r in known],
            [r["p20"] for r in known],
            [r["p80"] for r in known],
            color=COLOURS[name],
            alpha=0.2,
            linewidth=0,
        )
    ideal = [(100 * r["drop_rate"], r["flop_ratio"]) for r in rows]
    gain.plot(*zip(*ideal, strict=True), color=BLACK, linestyle="--", marker=".", label="FLOP ratio")
    time.set(ylabel="seconds a step (median, p20 to p80)", title="Forward + backward", ylim=(0, None))
    gain.set(ylabel="speed-up over own 0 %", title="Gained by dropping tokens", ylim=(0.8, None))
    memory.set(ylabel="GiB", title="Peak memory", ylim=(0, None))
    for axes in (time, gain, memory):
        axes.set(xlabel="tokens dropped (%)", xticks=sorted({100 * r["drop_rate"] for r in report.rows}))
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


REPORT_PAGE = ReportPage(page, figure, readme_rows)


def run(args: argparse.Namespace) -> Path:
    """Measure what is missing of the report, and return the path of its JSON."""
    config = model_config(args.preset, args.layers, args.dropout[0], 0.0)
    settings = {
        "preset": args.preset,
        "video": to_dict(config.video),
        "encoder": to_dict(config.video_encoder),
        "drop_rates": args.drop_rates,
        "dropout": args.dropout,
        "batch": args.batch,
        "dtype": "float32",
    }
    method = {
        "timing": f"candidates alternate within one process, every second round backwards; 1 warm-up step each, "
        f"{args.repeats} rounds, time.perf_counter; p20, p50, p80 of the rounds",
        "memory": "one step in a fresh process: VmHWM less what the process held after its imports",
        "dropout": "the release trains with 0.1; rows of dropout 0 are the main ones, since with dropout the "
        "portable attention computes probabilities block by block instead of in PyTorch's fused kernel",
    }
    video = config.video
    title = (
        f"Fused (portable) against reference: {args.preset} video model, {args.layers} layers of width "
        f"{config.video_encoder.width}, {video.frames}x{video.size}x{video.size}"
    )
    report, path = harness.open_report(
        NAME, title, settings=settings, method=method, out=cli.output_folder(args), resume=args.resume, quick=args.quick
    )
    measure(args, report, path)
    return path


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(None if argv is None else list(argv))
    return cli.run_benchmark(
        lambda: run(args), REPORT_PAGE, args, "the implementations disagree, see Numerics; no speed-up is printed"
    )


if __name__ == "__main__":
    sys.exit(main())
