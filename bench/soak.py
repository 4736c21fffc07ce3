"""Damaged files and many files: what the decoders do with them, in a process of their own that is watched from outside.

Fuzz: variants of a few clips, cut off at many places or with bytes changed. Each must end as frames or as a plain
reason, within its time limit. Soak: thousands of clips through the loader, some of them damaged. Memory and open files
must stay where they are.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from harness import cli
from harness import report as harness
from harness.pages import BLACK, BLUE, ORANGE, ReportPage, legend_below, number, table
from harness.report import Report, ReportError

import torch
from faults.damaged_files import LIMIT, SILENT, Child, fuzz, state, variants

from vatt.config.data import DataConfig
from vatt.config.presets import preset
from vatt.data.clip import Clip, Manifest
from vatt.data.datasets.training import ClipDataset
from vatt.data.manifest import read_manifest
from vatt.data.synthetic import build_corpus
from vatt.data.tokenizer import Tokenizer
from vatt.errors import DataError
from vatt.runtime.memory import return_freed_memory
from vatt.runtime.progress import progress_bar

NAME = "soak"
BATCH = 8
LEAST_BYTES = 4096  # of a clip to damage: in a smaller one almost every byte is a header
FLAT_BYTES = 16 << 20  # growth from the second to the last quarter of a soak that still counts as flat
EXAMPLES = """examples:
  python bench/soak.py                                 the built-in corpus, 3 x 200 variants and 2,000 clips
  python bench/soak.py --data clips.csv                your clips: the three smallest that decode are damaged
  python bench/soak.py --variants 1000 --seed 2        other damage
  python bench/soak.py --resume                        go on after a crash
  python bench/soak.py --quick                         a minute, to see it work

exit codes: 0 done, 1 failed: a crash, a hang, memory that grows or files left open; 2 wrong usage."""


def soak(clips: Manifest, count: int, pipe: Connection) -> None:
    """Read `count` clips in batches in this process, set up as the loader's workers are, and send (clips, bad, `state`)
    after each batch.
    """
    torch.set_num_threads(1)
    return_freed_memory()
    config = preset("tiny")
    words = Tokenizer.build([text for clip in clips for text in clip.captions], config.model.text.vocabulary)
    data = replace(config.data, cache_gb=0.0, workers=0, decode_seconds=LIMIT)
    dataset = ClipDataset(clips, data, config.model, words, 1, BATCH, needs=())
    try:
        for step in range(-(-count // BATCH)):
            batch = dataset[step]
            pipe.send(((step + 1) * BATCH, len(batch.bad), state()))
    except DataError as error:
        pipe.send(str(error))
    pipe.close()


def run_soak(clips: Manifest, count: int) -> dict[str, Any]:
    """Return the row of the soak. Raises `ReportError` when it stops before its end."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=soak, args=(clips, count, theirs), daemon=True)
    process.start()
    theirs.close()
    began, bad, curve = time.perf_counter(), 0, []
    with progress_bar(count, "soak", "clip") as bar:
        while True:
            try:
                message = ours.recv()
            except EOFError:
                break
            if isinstance(message, str):
                raise ReportError(f"the soak stopped: {message}")
            done, replaced, memory = message
            bad += replaced
            curve.append({"clips": done, **memory})
            bar.update(BATCH)
    process.join()
    if process.exitcode or not curve or curve[-1]["clips"] < count:
        raise ReportError(f"the soak ended after {len(curve) * BATCH} of {count} clips, exit code {process.exitcode}")
    quarter = max(1, len(curve) // 4)
    early, late = curve[quarter : 2 * quarter] or curve, curve[-quarter:]
    growth = max(point["rss"] for point in late) - max(point["rss"] for point in early)
    return {
        "kind": "soak",
        "clips": curve[-1]["clips"],
        "bad": bad,
        "seconds": time.perf_counter() - began,
        "growth_bytes": growth,
        "files_left_open": late[-1]["files"] - early[0]["files"],
        "curve": curve[:: max(1, len(curve) // 200)],
    }


def decodable(clips: Manifest, count: int) -> list[Path]:
    """Return the `count` smallest files of `LEAST_BYTES` or more that can be decoded."""
    sizes = {clip.path: clip.path.stat().st_size for clip in clips if clip.path.is_file()}
    files = sorted((path for path, size in sizes.items() if size >= LEAST_BYTES), key=lambda path: sizes[path])
    with Child() as child:
        good: list[Path] = []
        for path in files:
            if len(good) < count and child.try_clip(path)[0] == "good":
                good.append(path)
    if len(good) < count:
        raise ReportError(
            f"{clips.root} has {len(good)} clips of {LEAST_BYTES:,} bytes or more that decode; {count} are needed"
        )
    return good


def with_damaged(clips: Manifest, damaged: Sequence[Path], folder: Path, seed: int) -> Manifest:
    """Return `clips`, and as many damaged ones as are a tenth of them, so that a soak meets both."""
    rows = list(clips)
    for source in damaged:
        count = -(-len(clips) // (10 * len(damaged)))
        for variant, (_, data) in enumerate(variants(source.read_bytes(), count, seed)):
            path = folder / f"{variant}-{source.name}"
            path.write_bytes(data)
            rows.append(Clip(0, path, path.name))
    return Manifest(tuple(replace(clip, index=i) for i, clip in enumerate(rows)), clips.root, clips.labels)


def measure(args: argparse.Namespace, clips: Manifest, report: Report, path: Path) -> None:
    """Measure what is missing of the report, which is saved after every row."""
    chosen = decodable(clips, args.clips_damaged)
    known = {row.get("clip") for row in report.rows}
    with Child() as child, progress_bar(len(chosen), "fuzz", "clip", len(known)) as bar:
        for clip in chosen:
            if clip.name not in known:
                report.rows.append(fuzz(child, clip, args.variants, args.seed))
                report.save(path)
                bar.update()
    if not any(row["kind"] == "soak" for row in report.rows):
        with tempfile.TemporaryDirectory() as folder:
            mixed = with_damaged(clips, chosen, Path(folder), args.seed)
            report.rows.append(run_soak(mixed, args.clips))
    checks = [{"what": row.get("clip", "soak"), "green": is_green(row)} for row in report.rows]
    report.gate = {"green": all(check["green"] for check in checks), "checks": checks}
    report.finished = True
    report.save(path)


def is_green(row: dict[str, Any]) -> bool:
    if row["kind"] == "fuzz":
        return not row["failures"] and row["files_left_open"] == 0
    return bool(row["growth_bytes"] <= FLAT_BYTES and row["files_left_open"] <= 0)


def page(report: Report) -> str:
    fuzzed = [row for row in report.rows if row["kind"] == "fuzz"]
    rows = [
        [
            row["clip"],
            f"{row['bytes']:,}",
            str(row["variants"]),
            str(row["good"]),
            str(row["bad"]),
            str(len(row["failures"])),
            number(row["slowest_seconds"], 2),
            number(row["peak_bytes"] / 2**20, 0),
            str(row["files_left_open"]),
        ]
        for row in fuzzed
    ]
    columns = ["clip", "bytes", "variants", "decode", "refused", "failures", "slowest s", "peak MiB", "files left open"]
    parts = [
        "Each variant is opened four times (headers, beginning, middle, sound alone) in a process that is watched "
        "from outside. A failure is a crash, a hang, or any exception but a plain reason.",
        "## Damaged files",
        table(columns, rows),
    ]
    for row in fuzzed:
        reasons = ", ".join(f"{reason} {count}" for reason, count in row["reasons"].items())
        parts.append(f"{row['clip']}: {reasons}.")
        parts += [f"- FAILED: {failure['variant']}: {failure['outcome']}" for failure in row["failures"]]
    for row in report.rows:
        if row["kind"] == "soak":
            first, last = row["curve"][len(row["curve"]) // 4], row["curve"][-1]
            parts += [
                "## Many files",
                f"{row['clips']:,} clips in batches of {BATCH}, {row['bad']} of them bad and "
                f"replaced, {row['seconds']:.0f} s in one process. Memory after a quarter: "
                f"{first['rss'] / 2**20:.0f} MiB; at the end: {last['rss'] / 2**20:.0f} MiB; the highest of the "
                f"last quarter less that of the second: {row['growth_bytes'] / 2**20:+.1f} MiB (flat: at most "
                f"{FLAT_BYTES / 2**20:.0f}). Files left open: {row['files_left_open']}.",
            ]
    return "\n\n".join(parts)


def readme_rows(report: Report) -> list[tuple[str, str]]:
    fuzzed = [row for row in report.rows if row["kind"] == "fuzz"]
    lost = sum(len(row["failures"]) for row in fuzzed)
    lines = [
        (
            f"{sum(row['variants'] for row in fuzzed):,} damaged variants of {len(fuzzed)} clips, crashes or hangs",
            str(lost),
        )
    ]
    for row in report.rows:
        if row["kind"] == "soak":
            label = f"memory over {row['clips']:,} clips in one process, second to last quarter"
            lines.append((label, f"{row['growth_bytes'] / 2**20:+.1f} MiB"))
    return lines


def figure(report: Report, plt: Any) -> Any:
    """Draw outcomes of the variants as bars, and the memory of the soak."""
    figure, (bars, memory) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    fuzzed = [row for row in report.rows if row["kind"] == "fuzz"]
    names = [row["clip"] if len(row["clip"]) < 16 else f"{row['clip'][:12]}..." for row in fuzzed]
    left = [0] * len(fuzzed)
    for key, label, colour, hatch in (
        ("good", "decode", BLUE, ""),
        ("bad", "refused", ORANGE, "//"),
        ("failures", "failures", BLACK, "xx"),
    ):
        counts = [len(row[key]) if key == "failures" else row[key] for row in fuzzed]
        bars.barh(names, counts, left=left, label=label, color=colour, hatch=hatch, edgecolor="white")
        left = [a + b for a, b in zip(left, counts, strict=True)]
    bars.set(xlabel="variants", title="Damaged files")
    for row in report.rows:
        if row["kind"] == "soak":
            memory.plot(
                [p["clips"] for p in row["curve"]],
                [p["rss"] / 2**20 for p in row["curve"]],
                color=BLUE,
                label="resident",
            )
    top = max((p["rss"] / 2**20 for row in report.rows for p in row.get("curve", ())), default=1.0)
    memory.set(xlabel="clips decoded", ylabel="MiB", ylim=(0, 1.15 * top), title="Memory of one process")
    for axes in (bars, memory):
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
        legend_below(axes, 3)
    return figure


REPORT_PAGE = ReportPage(page, figure, readme_rows)


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = cli.make_parser("soak", "Damage clips and decode many: nothing may crash, hang or grow.", EXAMPLES)
    add = parser.add_argument
    add("--data", metavar="PATH", help="manifest CSV or folder of clips (default: the built-in corpus)")
    add("--variants", type=int, metavar="N", help="damaged versions of each clip (default 200; with --quick 20)")
    add("--clips-damaged", type=int, default=3, metavar="N", help="clips to damage, the smallest (default 3)")
    add("--clips", type=int, metavar="N", help="clips of the soak (default 2000; with --quick 160)")
    add("--seed", type=int, default=1, metavar="N", help="seed of the damage (default 1)")
    cli.add_common_flags(parser)
    args = parser.parse_args(argv)
    args.variants = args.variants or (20 if args.quick else 200)
    args.clips = args.clips or (160 if args.quick else 2000)
    if min(args.variants, args.clips, args.clips_damaged) < 1:
        parser.error("--variants, --clips and --clips-damaged are at least 1")
    return args


def run(args: argparse.Namespace) -> Path:
    """Measure what is missing of the report, and return the path of its JSON."""
    clips = read_manifest(args.data or build_corpus(clips=DataConfig().builtin_clips))
    settings = {
        "data": str(args.data or "built-in"),
        "clips_in_it": len(clips),
        "variants": args.variants,
        "clips_damaged": args.clips_damaged,
        "clips": args.clips,
        "seed": args.seed,
    }
    method = {
        "limits": f"{LIMIT:g} s for each opening of a file; a process that is silent for {SILENT:g} s "
        "hangs and is killed",
        "memory": "VmRSS and VmHWM of the decoding process, which is set up as a worker of the loader is",
    }
    report, path = harness.open_report(
        NAME,
        "Damaged clips, and many of them",
        settings=settings,
        method=method,
        out=cli.output_folder(args),
        resume=args.resume,
        quick=args.quick,
    )
    measure(args, clips, report, path)
    return path


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(None if argv is None else list(argv))
    return cli.run_benchmark(lambda: run(args), REPORT_PAGE, args)


if __name__ == "__main__":
    sys.exit(main())
