"""Flags, output and publication that every benchmark shares."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from vatt.errors import VattError

from .pages import ReportPage, index, render
from .report import REPORTS, ROOT, ReportError, load


def make_parser(name: str, description: str, examples: str) -> argparse.ArgumentParser:
    """Return the parser of `python bench/NAME.py`.

    `examples` and exit codes stand below its flags as they are written.
    """
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
    """Draw the finished report in `path` and the index of all of them, and say where they are."""
    render(path, report_page)
    (root / "README.md").write_text(index(root), encoding="utf-8")
    print(f"{path} (.md{', .png' if report_page.figure else ''} beside it)", file=sys.stderr)


def run_benchmark(
    measure: Callable[[], Path], report_page: ReportPage, args: argparse.Namespace, red: str = "the numerics are red"
) -> int:
    """Measure, publish and print the page of a benchmark.

    Args:
        measure: returns the path of the report's JSON.
        args: with the flags of `add_common_flags`.
        red: what to say of a gate that is not green.

    Returns:
        The exit code: 1 for an error and for a red gate, 2 for wrong settings, 130 when it was interrupted.
    """
    try:
        path = measure()
        publish(path, report_page, output_folder(args))
    except (ReportError, VattError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code if isinstance(error, VattError) else 1
    except KeyboardInterrupt:
        print("interrupted; finished rows are kept: --resume goes on", file=sys.stderr)
        return 130
    report = load(path)
    print(report_page.page(report))
    if report.gate["green"] is False:
        print(f"error: {red}", file=sys.stderr)
        return 1
    return 0
