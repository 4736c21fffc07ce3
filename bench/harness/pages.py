"""Pages, figures, tables and the index drawn from the JSON of reports."""

from __future__ import annotations

import itertools
import shlex
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vatt.runtime import files

from .clocks import describe_clocks
from .report import Report, ReportError, load

POINTS = 40  # of a loss curve


def spans(losses: list[float]) -> list[float]:
    """Return means over at most `POINTS` equal spans of steps."""
    points = min(POINTS, len(losses))
    edges = [len(losses) * i // points for i in range(points + 1)]
    return [statistics.fmean(losses[a:b]) for a, b in itertools.pairwise(edges)]


# Okabe-Ito: told apart with any colour vision, and by lightness in print.
BLUE, ORANGE, GREEN, PINK, BLACK, SKY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#000000", "#56b4e9"


FRONT_BEGIN, FRONT_END = "<!-- measured: drawn by make reports -->", "<!-- end of measured -->"


class Result(NamedTuple):
    """A line of what was measured: the report it is from, what it is, and the result as text."""

    report: str
    label: str
    result: str
    page: str  # of the report, below the folder of reports
    machine: str
    source: str


class ReportPage(NamedTuple):
    """What a benchmark brings along to have its report drawn."""

    page: Callable[[Report], str]  # Markdown below the heading
    figure: Callable[[Report, Any], Any] | None  # with matplotlib.pyplot -> a figure; None where tables say it all
    readme_rows: Callable[[Report], list[tuple[str, str]]]  # (what, result) lines of docs/results.md
    csv: Callable[[Path], object] | None = None  # writes the rows beside the JSON in this path, as a table


def render(path: Path, report_page: ReportPage) -> None:
    """Draws the page and the figure beside the JSON in `path`, from nothing but that JSON."""
    report = load(path)
    if report_page.figure is None:
        path.with_suffix(".png").unlink(missing_ok=True)
    else:
        plt = pyplot()
        figure = report_page.figure(report, plt)
        figure.suptitle(f"{report.title}\n{report.machine}, {report.source}", fontsize=11)
        figure.savefig(path.with_suffix(".png"), dpi=120)
        plt.close(figure)
    path.with_suffix(".md").write_text(write_page(report, report_page), encoding="utf-8")
    if report_page.csv is not None:
        report_page.csv(path)


def write_page(report: Report, report_page: ReportPage) -> str:
    """Return the whole page of a report."""
    environment = report.environment
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items() if version)
    notes = []
    if report.quick:
        notes.append("**A quick run: it shows that the program works and measures little.**")
    if not report.finished:
        notes.append("**Unfinished: rows or repeats are missing; `--resume` goes on.**")
    if report.gate["green"] is False:
        notes.append("**Some numerics are red: nothing is compared with what is wrong.**")
    facts = {
        "machine": f"{environment['cpu']}, {environment['cores']} cores, {environment['threads']} threads, "
        f"OMP_WAIT_POLICY={environment['omp_wait_policy']}, load average "
        f"{environment['load_average']:.2f} at the start",
        "device": environment["device"],
        **({"clocks": describe_clocks(environment["clocks"])} if "clocks" in environment else {}),
        "commit": f"{environment['commit']}{' with changed files' if environment['dirty'] else ''}",
        "date": report.date,
        "command": f"`python {shlex.join(environment['argv'])}`",
        "versions": f"Python {environment['python']}, {versions}",
        **{key.replace("_", " "): value for key, value in report.method.items()},
    }
    lines = [
        f"# {report.title}",
        "",
        *notes,
        *([""] if notes else []),
        *([] if report_page.figure is None else [f"![{report.title}]({report.name}.png)", ""]),
        report_page.page(report).strip(),
        "",
        "## Where this comes from",
        "",
        *(f"- {key}: {value}" for key, value in facts.items()),
        "",
    ]
    return "\n".join([*lines, f"Drawn from [{report.name}.json]({report.name}.json) by `make reports`.", ""])


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """Return a Markdown table, the first `left` columns to the left, the rest to the right."""
    ruler = ["---"] * left + ["---:"] * (len(columns) - left)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [columns, ruler, *rows])


def legend_below(axes: Any, columns: int) -> None:
    """Put the legend of `axes` below its own axis label, where nothing is drawn."""
    axes.legend(fontsize=8, ncols=columns, loc="upper center", bbox_to_anchor=(0.5, -0.16), frameon=False)


def number(value: float | None, digits: int = 2, unit: str = "") -> str:
    return "–" if value is None else f"{value:.{digits}f}{unit}"


def pyplot() -> Any:
    """Return matplotlib without a display. Raises `ReportError` where it is not installed."""
    try:
        return files.pyplot()
    except ImportError as error:
        raise ReportError("figures need matplotlib: pip install -e '.[bench]' in the project's folder") from error


def report_paths(root: Path) -> list[Path]:
    return sorted(root.glob("*/*.json"))


def index(root: Path) -> str:
    """Return the page that lists all reports under `root`, made from their JSONs."""
    rows = []
    for path in report_paths(root):
        report = load(path)
        page = path.relative_to(root).with_suffix(".md").as_posix()
        state = "quick run" if report.quick else "" if report.finished else "unfinished"
        gate = {True: "green", False: "RED", None: "not checked"}[report.gate["green"]]
        rows.append(
            [
                f"[{report.name}]({page})",
                report.title,
                report.machine,
                report.date[:10],
                report.source,
                ", ".join(filter(None, [gate, state])),
            ]
        )
    head = (
        "# Reports\n\nWhat was measured, where, and by which commit. Each page and figure is drawn from the JSON "
        "of the same name; `make reports` redraws them and this index. Experiments, failed ones too, are in "
        "[LOG.md](LOG.md).\n\n"
    )
    columns = ["report", "what", "machine", "date", "commit", "numerics"]
    return head + (table(columns, rows, left=len(columns)) if rows else "None yet.") + "\n"


def results(root: Path, report_pages: Mapping[str, ReportPage]) -> list[Result]:
    """Return all lines of the finished reports under `root`; quick runs are left out."""
    lines = []
    for path in report_paths(root):
        report = load(path)
        if report.quick or not report.finished:
            continue
        page = path.relative_to(root).with_suffix(".md").as_posix()
        lines += [
            Result(report.name, label, result, page, report.machine, report.source)
            for label, result in report_pages[report.name].readme_rows(report)
        ]
    return lines


def results_table(lines: Sequence[Result], reports: str) -> str:
    """Return `lines` as a Markdown table for a page from which the folder of reports is `reports`."""
    rows = [[line.label, line.result, f"[{line.machine}]({reports}/{line.page})", line.source] for line in lines]
    return table(["what", "measured", "where", "commit"], rows, left=4) if rows else "Nothing yet."


def chosen_results(lines: Sequence[Result], chosen: Sequence[tuple[str, str]]) -> list[Result]:
    """Return the lines that `chosen` names by report and beginning, in its order; what was not measured is left out."""
    return [line for name, start in chosen for line in lines if line.report == name and line.label.startswith(start)]


def write_front_table(page: Path, text: str) -> None:
    """Replace what stands between the two markers in `page`. Raises `ReportError` without them."""
    before, begin, rest = page.read_text(encoding="utf-8").partition(FRONT_BEGIN)
    _, end, after = rest.partition(FRONT_END)
    if not begin or not end:
        raise ReportError(f"{page}: the lines {FRONT_BEGIN} and {FRONT_END} are missing")
    page.write_text(f"{before}{FRONT_BEGIN}\n{text}\n{FRONT_END}{after}", encoding="utf-8")
