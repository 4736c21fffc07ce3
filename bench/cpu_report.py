"""What this machine's CPU does best: dtype of features, time beside VideoMAE-Base, steps with dropout, loader workers.

Each part alternates what it compares in one process. The last line says which dtype, threads and workers to use here.
Features in float32 are what `vatt embed` computed before it knew bfloat16, on the same clips with all tokens; with
`--before` those of that commit stand beside.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from harness import cli, timing
from harness import report as harness
from harness.checkouts import OtherCode, checkout
from harness.pages import BLUE, ORANGE, ReportPage, number, table
from harness.report import Report, ReportError

import torch
from accounting.flops import backbone_flops
from torch.nn import functional as F
from workloads import dropped_step, model_steps, tower_floors
from workloads.model_steps import StepCase
from workloads.videomae_step import fast_bfloat16, rival, rival_step, video_model

from vatt.config.model import ModelConfig
from vatt.config.presets import preset
from vatt.data.datasets.training import ClipDataset
from vatt.data.loader import make_loader
from vatt.data.manifest import read_manifest
from vatt.data.synthetic import build_corpus
from vatt.data.tokenizer import Tokenizer
from vatt.errors import ConfigError
from vatt.inference.bfloat16 import choose_dtype, use_bfloat16
from vatt.model.vatt import VATT
from vatt.ops import choose
from vatt.runtime.device import require_bfloat16
from vatt.runtime.progress import progress_bar

NAME = "cpu_report"
CPU = torch.device("cpu")
HERE = "here"
WINDOWS = 4  # as a part of a large batch: `vatt embed` takes 32 at once
EXAMPLES = """examples:
  python bench/cpu_report.py                        all of it, about 15 minutes on two quiet cores
  python bench/cpu_report.py --parts features       one part
  python bench/cpu_report.py --before 20a74a7       features and training beside that commit's, too: 10 minutes more
  python bench/cpu_report.py --quick                two layers, two rounds: to see it work

exit codes: 0 done, 1 failed, 2 wrong usage."""

Row = dict[str, Any]


def compared(part: str, what: str, candidates: Mapping[str, Callable[[], object]], rounds: int, base: str) -> list[Row]:
    """Time `candidates` in turn and return a row each, with how many times as fast as `base` it is."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for name, took in timing.time_interleaved(candidates, rounds):
        if took is not None:
            seconds[name].append(took)
    against = median(seconds[base])
    return [
        {"part": part, "what": what, "candidate": name, **timing.quantiles(took)}
        | {"base": base, "times_as_fast": against / median(took)}
        for name, took in seconds.items()
    ]


def towers(layers: int | None) -> tuple[ModelConfig, dict[str, VATT], dict[str, torch.Tensor]]:
    """Return settings of `bbs`, it in float32 and in the form for CPUs with bfloat16, and windows of each modality."""
    require_bfloat16(CPU)
    config = preset("bbs").model
    encoder = config.video_encoder if layers is None else replace(config.video_encoder, layers=layers)
    config = replace(config, video_encoder=encoder, audio_encoder=encoder)
    torch.manual_seed(0)
    exact = VATT(config, choose(True, CPU)).eval()
    light = copy.deepcopy(exact)
    use_bfloat16(light)
    draw = torch.Generator().manual_seed(1)
    size = config.video.size
    clips = torch.randint(0, 256, (WINDOWS, config.video.frames, size, size, 3), generator=draw, dtype=torch.uint8)
    inputs = {"video": clips, "audio": torch.rand(WINDOWS, config.audio.samples, generator=draw) * 2 - 1}
    return config, {"float32": exact, "bfloat16": light}, inputs


@torch.inference_mode()
def pooled(model: VATT, modality: str, x: torch.Tensor) -> torch.Tensor:
    return model.backbone.features(modality, x)[:, 0]


@contextmanager
def other_towers(
    commit: str, layers: int | None, inputs: Mapping[str, torch.Tensor]
) -> Iterator[Callable[..., list[list[float]]]]:
    """The towers of `bbs` by the code of `commit`, in a process.

    What comes is a function from a modality and a number of windows to their pooled features, told only if asked for.
    """
    with tempfile.TemporaryDirectory() as folder:
        tree, program = Path(folder), Path(__file__).with_name("workloads") / "other_towers.py"
        checkout(commit, tree)
        torch.save(inputs, tree / "inputs.pt")
        other = OtherCode(
            program, "bbs", layers or 0, tree / "inputs.pt", env={**os.environ, "PYTHONPATH": folder}, cwd=tree
        )
        try:
            yield lambda modality, windows, values=False: other.ask(modality=modality, windows=windows, values=values)
        finally:
            other.close()


def features(rounds: int, layers: int | None, before: str = "") -> Iterator[list[Row]]:
    """Video and audio towers of `bbs`, one window and several, all tokens: float32, and the form with bfloat16.

    With `before` also float32 with the code of that commit, which the others stand beside then.
    """
    _, models, inputs = towers(layers)
    with other_towers(before, layers, inputs) if before else nullcontext() as other:
        for modality, windows in inputs.items():
            for count, times in ((1, rounds), (WINDOWS, max(2, rounds // 3))):
                x = windows[:count]
                candidates: dict[str, Callable[[], Any]] = (
                    {} if other is None else {before: partial(other, modality, count)}
                )
                candidates |= {name: partial(pooled, model, modality, x) for name, model in models.items()}
                what = f"bbs {modality} tower, {count} window{'s' * (count > 1)}"
                rows = compared("features", what, candidates, times, next(iter(candidates)))
                exact = pooled(models["float32"], modality, x)
                rows[-1]["cosine"] = F.cosine_similarity(exact, pooled(models["bfloat16"], modality, x)).min().item()
                if other is not None:
                    same = torch.tensor(other(modality, count, True))
                    rows[0]["cosine"] = F.cosine_similarity(exact, same).min().item()
                yield rows


def floors(rounds: int, layers: int | None) -> Iterator[list[Row]]:
    """Where the time of these towers goes, and the floor of their products and attention."""
    config, models, inputs = towers(layers)
    for modality, x in inputs.items():
        flops = backbone_flops(config, modality, drop=False, project_all=False)
        tokens = (config.video.tokens if modality == "video" else config.audio.tokens) + 1
        for name, model in models.items():
            rate = tower_floors.best_rate(config.video_encoder, tokens, getattr(torch, name), rounds)
            run = partial(pooled, model, modality, x[:1])
            yield tower_floors.rows(f"bbs {modality} tower, {name}", run, flops, rate, rounds)


def beside_videomae(rounds: int, layers: int | None) -> Iterator[list[Row]]:
    """VATT-Base's video tower and VideoMAE-Base: features in bfloat16, as its users run it and with weights cast."""
    depth, size = layers or 12, 224
    model = video_model(depth, size, 0.0)
    for training in (False, True):
        ours = model_steps.make_step(StepCase(model, training))
        what = "forward + backward, float32" if training else "forward, float32"
        candidates = {"videomae": rival_step(depth, size, 0.0, "float32", training=training), "vatt": ours}
        yield compared("videomae", what, candidates, rounds, "videomae")
    if not fast_bfloat16():
        return
    light = VATT(replace(preset("bbs").model, video_encoder=model.video_encoder, video=model.video), choose(True, CPU))
    use_bfloat16(light)
    frames = torch.randint(0, 256, (1, model.video.frames, size, size, 3), dtype=torch.uint8)
    cast = copy.deepcopy(rival(depth, size)).bfloat16().eval()
    clip = torch.randn(1, 16, 3, size, size).bfloat16()

    @torch.inference_mode()
    def ours_light() -> None:
        light.backbone.features("video", frames)

    @torch.inference_mode()
    def rival_cast() -> None:
        cast(clip)

    candidates = {
        "videomae, autocast": rival_step(depth, size, 0.0, "bfloat16", training=False),
        "videomae, weights cast": rival_cast,
        "vatt": ours_light,
    }
    yield compared("videomae", "forward, bfloat16", candidates, rounds, "videomae, autocast")


def dropout(rounds: int, layers: int | None) -> Iterator[list[Row]]:
    """Steps of `sss` in float32 with attention's dropout of 0.1: today's form, and that of older runs."""
    for row in dropped_step.rows("sss", rounds=rounds, layers=layers):
        yield [
            row
            | {
                "part": "dropout",
                "what": f"sss, {row['drop_rate']:.0%} dropped",
                "candidate": f"version {row['version']}",
                "base": "version 1",
                "times_as_fast": row["over_version_1"],
            }
        ]


def loader(rounds: int, layers: int | None) -> Iterator[list[Row]]:
    """Clips a second that the loader gives from the built-in corpus without a cache, for each number of workers."""
    config = preset("tiny")
    with tempfile.TemporaryDirectory() as folder:
        manifest = read_manifest(build_corpus(Path(folder) / "corpus", clips=64, progress=False))
        tokenizer = Tokenizer([])  # words cost nothing
        for workers in (0, 1, 2):
            data = replace(config.data, cache_gb=0, workers=workers)
            dataset = ClipDataset(manifest, data, config.model, tokenizer, 0, 16)
            batches = make_loader(dataset, 0, 2 + 2 * rounds, workers)
            next(iter(batches))
            tick, clips = time.perf_counter(), 0
            for batch in batches:
                clips += len(batch.clips)
            took = time.perf_counter() - tick
            yield [
                {"part": "loader", "what": "tiny, no cache", "candidate": f"{workers} workers", "workers": workers}
                | {"p50": took, "clips_per_second": clips / took}
            ]


def training(rounds: int, layers: int | None, before: str = "") -> Iterator[list[Row]]:
    """Clips a second of `python -m vatt.train --fused` without a cache, in turn with and without the code of `before`.

    Of a run its first third is left out: processes start in it. Raises `ReportError` where a run fails.
    """
    quick = layers is not None
    steps, batch = (3, 4) if quick else (24, 32)
    found: dict[tuple[str, int], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        clips = build_corpus(Path(folder) / "corpus", clips=4 * batch, progress=False)
        trees = {name: Path(folder) / name for name in ([before] if before else []) + [HERE]}
        for name, tree in trees.items():
            tree.mkdir()
            checkout("" if name == HERE else name, tree)
        for turn in range(1 if quick else min(rounds, 5)):
            for workers in (1,) if quick else (0, 1, 2):
                for name, tree in trees.items():
                    out = tree / f"run{turn}-{workers}"
                    sizes = (f"data.workers={workers}", "data.cache_gb=0", f"data.batch_size={batch}")
                    settings = [part for size in sizes for part in ("--set", size)]
                    command = ["-m", "vatt.train", "--fused", "--data", str(clips), "--out", str(out), *settings]
                    command += ["--steps", str(steps)]
                    environment = {**os.environ, "PYTHONPATH": str(tree)}
                    done = subprocess.run([sys.executable, *command], cwd=tree, env=environment, capture_output=True)
                    if done.returncode:
                        last = (done.stderr.decode().strip().splitlines() or ["?"])[-1]
                        raise ReportError(f"training with the code of {name} failed: {last}")
                    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
                    seconds = [line["step_seconds"] for line in lines if line["step"] > steps // 3]
                    found.setdefault((name, workers), []).append(batch * len(seconds) / sum(seconds))
    rates = {key: median(values) for key, values in found.items()}
    base, most = max(
        ((key, rate) for key, rate in rates.items() if key[0] == (before or HERE)), key=lambda pair: pair[1]
    )
    for (name, workers), rate in rates.items():
        row = {
            "part": "training",
            "what": "tiny, no cache",
            "candidate": f"{name}, {workers} workers",
            "workers": workers,
        }
        row |= {"base": f"{base[0]}, {base[1]} workers", "clips_per_second": rate, "times_as_fast": rate / most}
        yield [row | {"runs": found[name, workers]}]


MEASURES: dict[str, Callable[..., Iterator[list[Row]]]] = {
    "features": features,
    "floors": floors,
    "videomae": beside_videomae,
    "dropout": dropout,
    "loader": loader,
    "training": training,
}


def advice(rows: Sequence[Row]) -> str:
    """Return the line that says what to use here."""
    torch.manual_seed(0)
    dtype, why = choose_dtype("auto", CPU, VATT(preset("sss").model))
    best = max((row for row in rows if row["part"] == "loader"), key=lambda row: row["clips_per_second"], default=None)
    workers = f", --set data.workers={best['workers']}" if best else ""
    return (
        f"Here: --dtype {str(dtype).removeprefix('torch.')} for features of Small and larger ({why}), "
        f"OMP_NUM_THREADS={torch.get_num_threads()} with OMP_WAIT_POLICY=passive{workers}."
    )


def page(report: Report) -> str:
    lines = [
        [
            row["part"],
            row["what"],
            row["candidate"],
            *(number(row.get(name), 3) for name in ("p20", "p50", "p80")),
            number(row.get("times_as_fast")),
            number(row.get("cosine"), 5),
            number(row.get("gain")),
            number(row.get("flop_ratio")),
            number(row.get("clips_per_second"), 1),
        ]
        for row in report.rows
        if row["part"] != "floors"
    ]
    columns = [
        *("part", "what", "candidate", "p20 s", "p50 s", "p80 s", "times as fast as the first", "cosine to float32"),
        *("gained by dropping tokens", "FLOP ratio", "clips/s"),
    ]
    floor_lines = [
        [row["what"], row["candidate"]]
        + [number(None if row.get(name) is None else 1000 * row[name], 1) for name in ("p20", "p50", "p80", "floor")]
        + [f"{row['share']:.0%}", number(row.get("gflops"), 0), number(row.get("best_gflops"), 0)]
        for row in report.rows
        if row["part"] == "floors"
    ]
    floor_columns = [
        "tower",
        "operations",
        "p20 ms",
        "p50 ms",
        "p80 ms",
        "floor ms",
        "share",
        "GFLOP/s",
        "best GFLOP/s",
    ]
    where = "Where a tower's time goes, one window; the floor is its FLOPs at the best rate of a product of its shapes."
    return "\n\n".join(
        [
            report.method["advice"],
            table(columns, lines, left=3),
            *([where, table(floor_columns, floor_lines, left=2)] if floor_lines else []),
            "Training is `python -m vatt.train --fused --set data.cache_gb=0`, clips a second are those of the "
            "last two thirds of its steps. Version 1 of dropout is the form that runs had before version 2, and "
            "is what they go on with. Models have random weights. Products of bfloat16 need AMX or AVX512-BF16; "
            "what is rounded is in docs/search.md.",
        ]
    )


def figure(report: Report, plt: Any) -> Any:
    rows = [row for row in report.rows if row.get("times_as_fast") and row["candidate"] != row["base"]]
    drawn, axis = plt.subplots(figsize=(9, 0.5 * len(rows) + 1.8))
    colours = [ORANGE if "videomae" in row["candidate"] else BLUE for row in rows]
    bars = axis.barh(
        [f"{row['what']}: {row['candidate']}" for row in rows], [r["times_as_fast"] for r in rows], color=colours
    )
    axis.bar_label(bars, fmt="%.2f", padding=3)
    axis.axvline(1, color="black", linewidth=0.8, zorder=0)
    axis.margins(x=0.1, y=0.02)
    axis.set_xlabel("times as fast as what it stands beside")
    axis.invert_yaxis()
    drawn.tight_layout(rect=(0, 0, 1, 0.9))
    return drawn


def readme_rows(report: Report) -> list[tuple[str, str]]:
    def told(part: str, candidate: str) -> list[Row]:
        return [row for row in report.rows if row["part"] == part and candidate in row["candidate"]]

    lines = []
    if light := told("features", "bfloat16"):
        base = light[0]["base"] if light[0]["base"] == "float32" else f"float32 of {light[0]['base']}"
        values = [f"{row['what']} {row['times_as_fast']:.2f}x (cosine {row['cosine']:.5f})" for row in light]
        lines.append((f"features in bfloat16 on a CPU that multiplies it, against {base}", ", ".join(values)))
    if steps := told("dropout", "version 2"):
        values = [f"{row['what'].split(', ')[1]} {row['times_as_fast']:.2f}x" for row in steps]
        lines.append(("step of `sss` with dropout 0.1 in float32, against the form of older runs", ", ".join(values)))
    if models := told("videomae", "vatt"):
        values = [f"{row['what']} {row['times_as_fast']:.2f}x" for row in models]
        lines.append(("Base video model beside VideoMAE-Base, all tokens", ", ".join(values)))
    ours = max(told("training", f"{HERE}, "), key=lambda row: row["clips_per_second"], default=None)
    if ours and not ours["base"].startswith(HERE):
        rate = f"{ours['clips_per_second']:.0f} clips/s, {ours['times_as_fast']:.2f}x"
        lines.append((f"training of `tiny` without a cache, against {ours['base'].split(', ')[0]}", rate))
    return lines


REPORT_PAGE = ReportPage(page, figure, readme_rows)


def measure(args: argparse.Namespace) -> Path:
    layers, rounds = (2, 2) if args.quick else (None, args.rounds)
    report, path = harness.open_report(
        NAME,
        "What a CPU does best",
        settings={"rounds": rounds, "layers": layers, "parts": args.parts, "before": args.before},
        method={"timing": f"candidates of a row alternate, one warm-up, {rounds} rounds; p20, p50, p80"},
        out=cli.output_folder(args),
        resume=args.resume,
        quick=args.quick,
    )
    done = {row["part"] for row in report.rows}
    missing = [part for part in args.parts if part not in done]
    measures = MEASURES | {part: partial(MEASURES[part], before=args.before) for part in ("features", "training")}
    with progress_bar(len(args.parts), NAME, "part", len(done)) as bar:
        for part in missing:
            try:
                report.rows += [row for rows in measures[part](rounds, layers) for row in rows]
            except (ReportError, ConfigError) as error:  # a rival that is not installed costs its part
                print(f"{part} is left out: {error}", file=sys.stderr)
            report.save(path)
            bar.update()
    report.method["advice"] = advice(report.rows)
    report.finished = True
    report.save(path)
    return path


def main(argv: list[str] | None = None) -> int:
    parser = cli.make_parser(NAME, "Measure which dtype, threads and workers suit this machine's CPU.", EXAMPLES)
    parser.add_argument(
        "--parts", nargs="+", choices=list(MEASURES), default=list(MEASURES), help="what to measure (default all)"
    )
    parser.add_argument(
        "--before",
        default="",
        metavar="COMMIT",
        help="measure features and training with this commit's code as well, in turn",
    )
    parser.add_argument("--rounds", type=int, default=9, metavar="N", help="timed rounds of each (default 9)")
    cli.add_common_flags(parser)
    args = parser.parse_args(argv)
    return cli.run_benchmark(lambda: measure(args), REPORT_PAGE, args)


if __name__ == "__main__":
    sys.exit(main())
