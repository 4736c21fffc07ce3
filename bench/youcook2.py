"""Learning from real pictures with real captions: frames of YouCook2 training videos, held-out text-to-frame retrieval.

A frame is a clip of one picture (repeated to one row of voxels), a caption the step that is shown. The tiny preset is
trained from scratch on nine tenths of the videos; captions of the other videos then rank all frames of these. A
thousand pictures are very few, so this says whether the path from real files to learning works, not how good VATT is.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import cli
from harness import report as harness
from harness.commands import run
from harness.pages import ReportPage, number, table
from harness.report import Report

from vatt.data.manifest import read_manifest
from vatt.runtime.progress import progress_bar

NAME = "youcook2"
HELD_OUT = 0.1  # share of the videos
SETTINGS = ("model.video.frames=4", "model.video.size=96", "model.text.captions=1", "model.text.freeze_embedding=false")
DIRECTION = "text_to_video"
EXAMPLES = """examples:
  python bench/youcook2.py --data youcook2_frames/             three seeds, a shorter run: 10 minutes on two cores
  python bench/youcook2.py --data youcook2_frames/ --resume    go on after a crash: finished runs are kept
  python bench/youcook2.py --data youcook2_frames/ --quick     one minute, to see it work

--data: a folder with captions.csv (file, youtube_id, ..., caption) and the frames it lists.
exit codes: 0 done, 1 failed, 2 wrong usage."""


def train(manifest: Path, work: Path, steps: int, seed: int) -> dict[str, Any]:
    """Trains from scratch and returns the scores on the held-out videos."""
    out = work / f"steps-{steps}-seed-{seed}"
    shutil.rmtree(out, ignore_errors=True)
    command = [
        "vatt.train",
        "--fused",
        "--preset",
        "tiny",
        "--data",
        str(manifest),
        "--steps",
        str(steps),
        "--seed",
        str(seed),
        "--out",
        str(out),
    ]
    for setting in SETTINGS:
        command += ["--set", setting]
    run(command, work / f"{out.name}.log")
    result = json.loads((out / "result.json").read_text())
    return {
        "scores": result["retrieval"][DIRECTION],
        "final_loss": result["final_loss"],
        "train_seconds": result["train_seconds"],
        "bad_clips": result["bad_clips"],
    }


def page(report: Report) -> str:
    lines = [
        [
            str(row["steps"]),
            str(row["seed"]),
            *(number(100 * row["scores"][f"R@{n}"], 1) for n in (1, 5, 10)),
            number(row["scores"]["median_rank"], 1),
            number(row["final_loss"], 2),
            number(row["train_seconds"], 0),
        ]
        for row in report.rows
        if "scores" in row
    ]
    chance = chances(report)
    lines.append(["chance", "", *(number(100 * chance[n], 1) for n in (1, 5, 10)), number(chance["MedR"], 1), "", ""])
    s = report.settings
    return "\n\n".join(
        [
            f"{s['frames']} frames of {s['videos']} videos; {s['held_out']} frames of a tenth "
            "of the videos are held out. "
            "Each of their captions ranks all of them; other captions may fit a frame as well and count as wrong.",
            table(["steps", "seed", "R@1 %", "R@5 %", "R@10 %", "median rank", "training loss", "training s"], lines),
        ]
    )


def chances(report: Report) -> dict[Any, float]:
    clips = report.settings["held_out"]
    return {**{n: min(1.0, n / clips) for n in (1, 5, 10)}, "MedR": (clips + 1) / 2}


def readme_rows(report: Report) -> list[tuple[str, str]]:
    steps = report.settings["steps"][0]
    recalls = [100 * row["scores"]["R@10"] for row in report.rows if row["steps"] == steps]
    spread = f" ± {statistics.stdev(recalls):.1f}, {len(recalls)} seeds" if len(recalls) > 1 else ""
    held_out = report.settings["held_out"]
    return [
        (
            f"`tiny` from scratch on {report.settings['frames'] - held_out} captioned YouCook2 frames, text to frame "
            f"R@10 among {held_out} of other videos",
            f"{statistics.fmean(recalls):.1f} %{spread} (chance {100 * chances(report)[10]:.1f} %)",
        )
    ]


REPORT_PAGE = ReportPage(page, None, readme_rows)


def measure(args: argparse.Namespace) -> Path:
    args.work.mkdir(parents=True, exist_ok=True)
    manifest = args.work / "manifest.csv"
    run(
        [
            "vatt.data.sources",
            "youcook2-frames",
            str(args.data / "captions.csv"),
            "--media",
            str(args.data),
            "--hold-out",
            str(HELD_OUT),
            "--out",
            str(manifest),
        ],
        args.work / "sources.log",
    )
    counts = json.loads(manifest.with_suffix(".report.json").read_text())["splits"]
    frames = {split: count["found"] for split, count in counts.items()}
    videos = len({clip.path.stem.rsplit("_", 1)[0] for clip in read_manifest(manifest)})
    first, *longer = args.steps
    runs = [(first, seed) for seed in args.seeds] + [(steps, args.seeds[0]) for steps in longer]
    report, path = harness.open_report(
        NAME,
        "Text-to-frame retrieval on YouCook2 frames, tiny preset from scratch",
        settings={
            "steps": args.steps,
            "seeds": args.seeds,
            "frames": sum(frames.values()),
            "videos": videos,
            "held_out": frames["test"],
            "changes": list(SETTINGS),
        },
        method={
            "training": f"python -m vatt.train --fused --preset tiny --set {' --set '.join(SETTINGS)}",
            "scores": "of the last step; no step, seed or setting was chosen by them",
        },
        out=cli.output_folder(args),
        resume=args.resume,
        quick=args.quick,
    )
    done = {(row["steps"], row["seed"]) for row in report.rows}
    with progress_bar(sum(steps for steps, _ in runs), NAME, "step", sum(steps for steps, _ in done)) as bar:
        for steps, seed in runs:
            if (steps, seed) not in done:
                report.rows.append({"steps": steps, "seed": seed, **train(manifest, args.work, steps, seed)})
                report.save(path)
                bar.update(steps)
    report.finished = True
    report.save(path)
    return path


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.make_parser(
        "youcook2", "Train the tiny preset on captioned YouCook2 frames and retrieve held-out frames by text.", EXAMPLES
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, metavar="DIR", help="folder with captions.csv and the frames")
    add(
        "--steps",
        type=int,
        nargs="+",
        metavar="N",
        help="length of the runs; the first with every seed, the others "
        "with the first seed (default 600 200; with --quick 20)",
    )
    add("--seeds", type=int, nargs="+", default=[1, 2, 3], metavar="S", help="default 1 2 3 (with --quick the first)")
    add("--work", type=Path, default=harness.ROOT / "runs" / NAME, metavar="DIR", help="folder of the runs")
    cli.add_common_flags(parser)
    args = parser.parse_args(argv)
    args.steps = args.steps or ([20] if args.quick else [600, 200])
    args.seeds = args.seeds[:1] if args.quick else args.seeds
    return cli.run_benchmark(lambda: measure(args), REPORT_PAGE, args)


if __name__ == "__main__":
    sys.exit(main())
