"""Redraws every page and figure under reports/ from its JSON, the index, docs/results.md and the table in README.

Nothing is measured: what a page says is what its JSON holds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from harness import report as harness
from harness.pages import (
    ReportPage,
    chosen_results,
    index,
    render,
    report_paths,
    results,
    results_table,
    write_front_table,
)
from harness.report import ReportError

import aot_table
import archive
import chaos
import corpus_scale
import cpu_report
import decode
import decoders_differ
import esc10_official
import esc10_small
import figure2
import figure4
import fused_vs_reference
import gpu_report
import model_sizes
import real_clips
import resolution_sweep
import soak
import step_launches
import tiny_training
import videomae
import youcook2
from pages import droptoken as droptoken_page
from pages import scaling as scaling_page

BENCHMARKS = (
    aot_table,
    archive,
    chaos,
    corpus_scale,
    cpu_report,
    decode,
    droptoken_page,
    esc10_official,
    esc10_small,
    figure2,
    figure4,
    fused_vs_reference,
    gpu_report,
    decoders_differ,
    model_sizes,
    real_clips,
    resolution_sweep,
    scaling_page,
    soak,
    step_launches,
    tiny_training,
    videomae,
    youcook2,
)
REPORT_PAGES: dict[str, ReportPage] = {module.NAME: module.REPORT_PAGE for module in BENCHMARKS}
# The ten lines that README shows: report, and how what was measured begins.
README_RESULTS = (
    ("tiny_training", "`tiny` on the built-in corpus, text to video"),
    ("tiny_training", "`tiny` on the built-in corpus, audio to video"),
    ("esc10_small", "ESC-10 top-1 over five folds"),
    ("resolution_sweep", "GFLOPs of ViT-Medium at 32x320x320"),
    ("droptoken_sweep", "DropToken, inference of `sss`, 50% dropped"),
    ("fused_vs_reference", "video step of `bbs` on a CPU, 50% dropped"),
    ("videomae", "Base video model beside VideoMAE-Base on a CPU, forward + backward"),
    ("cpu_report", "features in bfloat16"),
    ("aot_table", "kernels compiled ahead of time"),
    ("chaos", "`tiny` and `tiny_ma` disturbed"),
)


def tables() -> dict[Path, str]:
    """Return the text between the markers of README and of the page with all results, by file."""
    lines = results(harness.REPORTS, REPORT_PAGES)
    found = {
        harness.ROOT / "README.md": results_table(chosen_results(lines, README_RESULTS), "reports"),
        harness.ROOT / "docs" / "results.md": results_table(lines, "../reports"),
    }
    for path in sorted(harness.REPORTS.glob(f"*/{corpus_scale.NAME}.json"))[:1]:
        found[harness.ROOT / "docs" / "scale.md"] = corpus_scale.costs(harness.load(path))
    return found


def report_page(path: Path) -> ReportPage:
    """Return the page of the benchmark whose report lies in `path`. Raises `ReportError` when nobody does."""
    name = harness.load(path).name
    if name not in REPORT_PAGES:
        raise ReportError(
            f"{path}: no benchmark is called {name!r} (there are {', '.join(REPORT_PAGES)}); delete the file"
        )
    return REPORT_PAGES[name]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python bench/draw_reports.py",
        description="Draw the .md and .png of every report, and the index, from the JSON files.",
    )
    parser.add_argument(
        "--reports",
        type=Path,
        default=harness.REPORTS,
        metavar="DIR",
        help="folder of reports, <machine>/<name>.json in it (default: reports/ here)",
    )
    args = parser.parse_args(argv)
    try:
        paths = report_paths(args.reports)
        for path in paths:
            render(path, report_page(path))
            print(path.with_suffix(".md"))
        (args.reports / "README.md").write_text(index(args.reports), encoding="utf-8")
        if args.reports == harness.REPORTS:
            for page, text in tables().items():
                write_front_table(page, text)
    except (ReportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{args.reports / 'README.md'}: {len(paths)} reports")
    return 0


if __name__ == "__main__":
    sys.exit(main())
