"""Flags, output and publication that every benchmark shares."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from .pages import ReportPage, index, render
from .report import REPORTS, ROOT, ReportError, load


def make_parser(name: str, description: str, examples: str) -> argparse.ArgumentParser:
    """Of `python bench/NAME.py`; `examples` and exit codes stand below its flags as they are written."""
    return argparse.ArgumentParser(
        prog=f"python bench/{name}.py",
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_common_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--out",
        type=Path,
        metavar="DIR",
        help="reports go to DIR/<machine>/ (default: reports/ here; with --quick runs/reports/)",
    )
    add("--resume", action="store_true", help="keep what an interrupted run has measured already and go on")
    add("--quick", action="store_true", help="a small run that shows the program works; its numbers mean little")


def output_folder(args: argparse.Namespace) -> Path:
    return args.out or (ROOT / "runs" / "reports" if args.quick else REPORTS)


def publish(path: Path, report_page: ReportPage, root: Path) -> None:
    """Draws the finished report in `path` and the index of all of them, and says where they are."""
    render(path, report_page)
    (root / "README.md").write_text(index(root), encoding="utf-8")
    print(f"{path} (.md{', .png' if report_page.figure else ''} beside it)", file=sys.stderr)


def run_benchmark(measure: Callable[[], Path], report_page: ReportPage, args: argparse.Namespace) -> int:
    """Measures, publishes and prints the page. Returns the exit code: 1 for an error and for a red gate."""
    try:
        path = measure()
        publish(path, report_page, output_folder(args))
    except (ReportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    report = load(path)
    print(report_page.page(report))
    return 1 if report.gate["green"] is False else 0
