"""What every benchmark shares: interleaved timing, peak memory, provenance, the JSON of a report and its drawings.

`reports/<machine>/<name>.json` is the truth: rows, and all that is needed to trace them (command, commit, versions,
machine, method). The page (.md) and the figure (.png) beside it are drawn from the JSON alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import multiprocessing
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from clocks import clocks, describe
from memory import resident

# vatt comes before torch everywhere in bench: it sets OMP_WAIT_POLICY, which OpenMP reads when torch is imported.
from vatt.files import write_atomically
from vatt.records import environment

ROOT = Path(__file__).resolve().parents[1]
REPORTS = ROOT / "reports"
# Okabe-Ito: told apart with any colour vision, and by lightness in print.
BLUE, ORANGE, GREEN, PINK, BLACK = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#000000"


FRONT_BEGIN, FRONT_END = "<!-- measured: drawn by make reports -->", "<!-- end of measured -->"


class ReportError(RuntimeError):
    """A report that cannot be read, continued or drawn; the message names the file and the way out."""


@dataclass
class Report:
    """One benchmark on one machine. Everything in it is plain JSON.

    settings: what the rows depend on; rows of other settings never mix. method: how they were measured.
    gate: {"green": bool | None, "checks": [...]}, whether the numerics were right; None while unchecked.
    sources: a digest of the program that ran, so that rows of two programs never mix either.
    """

    name: str
    title: str
    settings: dict[str, Any]
    method: dict[str, Any]
    environment: dict[str, Any]
    sources: str
    quick: bool = False
    finished: bool = False
    date: str = ""
    gate: dict[str, Any] = field(default_factory=lambda: {"green": None, "checks": []})
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def machine(self) -> str:
        return machine_name(self.environment)

    @property
    def source(self) -> str:
        """The commit, short, and whether files differed from it."""
        commit = (self.environment["commit"] or "no commit")[:9]
        return f"{commit}, changed files" if self.environment["dirty"] else commit

    def save(self, path: Path) -> None:
        self.date = datetime.now(UTC).isoformat(timespec="seconds")
        taken = self.environment.get("clocks")  # reports of earlier programs have none
        if self.finished and taken and "end" not in taken:
            taken["end"] = clocks(gpus=self.environment["device"] != "cpu")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, (json.dumps(dataclasses.asdict(self), indent=1) + "\n").encode())


def load(path: Path) -> Report:
    """The report in `path`. Raises `ReportError` when it is not one."""
    try:
        return Report(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ReportError(f"{path} is not a report: {error}; run its benchmark again") from error


def machine_name(where: Mapping[str, Any]) -> str:
    """Folder of a machine's reports: `cpu-2core`, or the name of the GPU, e.g. `nvidia-h200`."""
    if where["device"] == "cpu":
        return f"cpu-{where['cores']}core"
    return re.sub(r"[^a-z0-9]+", "-", where["device"].lower()).strip("-")


def open_report(name: str, title: str, *, settings: dict[str, Any], method: dict[str, Any], out: Path, resume: bool,
                quick: bool, device: str = "cpu") -> tuple[Report, Path]:  # fmt: skip
    """A new report, or with `resume` the one that was begun, and the path of its JSON.

    Raises `ReportError` when the rows there come from other settings or another program.
    """
    where = {**environment(device), "dirty": _dirty(), "load_average": os.getloadavg()[0],
             "clocks": {"start": clocks(gpus=device != "cpu")}}  # fmt: skip
    settings = json.loads(json.dumps(settings))  # tuples become lists, as in the file they are compared with
    fresh = Report(name, title, settings, method, where, _sources(), quick)
    path = out / fresh.machine / f"{name}.json"
    if not resume or not path.exists():
        return fresh, path
    begun = load(path)
    changed = [f"{key}: {begun.settings.get(key)} -> {value}" for key, value in settings.items()
               if begun.settings.get(key) != value]  # fmt: skip
    if begun.environment["threads"] != where["threads"]:
        changed.append(f"threads: {begun.environment['threads']} -> {where['threads']}")
    if begun.sources != fresh.sources:
        changed.append(f"program: {begun.source} -> {fresh.source}")
    if changed:
        raise ReportError(f"{path} cannot be continued, its rows were measured with something else "
                          f"({'; '.join(changed)}); start over without --resume")  # fmt: skip
    return dataclasses.replace(fresh, gate=begun.gate, rows=begun.rows), path


def _sources() -> str:
    digest = hashlib.sha256()
    for folder in ("vatt", "kernels", "bench"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _dirty() -> bool | None:
    """Whether the tree differs from its commit. Reports do not count (one must not soil the next), new files do."""
    command = ["git", "status", "--porcelain", "--", ".", ":!reports"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return bool(done.stdout.strip()) if done.returncode == 0 else None


# measuring


def interleave(candidates: Mapping[str, Callable[[], object]], rounds: int, *, warmup: int = 1,
               done: Mapping[str, int] | None = None) -> Iterator[tuple[str, float | None]]:  # fmt: skip
    """Times candidates in turn, a call each a round, so that slow drifts of the machine meet all of them alike.

    Every second round goes backwards: no candidate always follows the same one. `done`: calls each has behind it from
    an earlier process. Yields (name, seconds) after every call, (name, None) for warm-up calls.
    """
    counts = {name: (done or {}).get(name, 0) for name in candidates}
    for name, step in candidates.items():
        for _ in range(warmup if counts[name] < rounds else 0):
            step()
            yield name, None
    for number in range(rounds):
        order = list(candidates) if number % 2 == 0 else list(candidates)[::-1]
        for name in order:
            if counts[name] > number:
                continue
            tick = time.perf_counter()
            candidates[name]()
            yield name, time.perf_counter() - tick


def quantiles(seconds: Sequence[float]) -> dict[str, float | None]:
    """p20, p50 and p80 (linear interpolation); None without samples."""
    ordered = sorted(seconds)

    def at(share: float) -> float | None:
        if not ordered:
            return None
        place = share * (len(ordered) - 1)
        low = int(place)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (place - low) * (ordered[high] - ordered[low])

    return {"p20": at(0.2), "p50": at(0.5), "p80": at(0.8)}


def peak_memory(setup: Callable[..., Callable[[], object]], *arguments: Any) -> dict[str, int]:
    """Bytes of main memory that `setup(*arguments)()` takes, measured in a fresh process (Linux).

    `peak_bytes`: the most the process held, less what it held after its imports: weights, input, gradients and
    everything stored in between. `step_bytes`: the same, less what `setup` left behind (weights and input).
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_peak_of, setup, arguments).result()


def _peak_of(setup: Callable[..., Callable[[], object]], arguments: tuple[Any, ...]) -> dict[str, int]:
    imported = resident("VmRSS")
    step = setup(*arguments)
    ready = resident("VmRSS")
    step()
    peak = resident("VmHWM")
    return {"peak_bytes": peak - imported, "step_bytes": peak - ready}


# flags


def make_parser(name: str, description: str, examples: str) -> argparse.ArgumentParser:
    """Of `python bench/NAME.py`; `examples` and exit codes stand below its flags as they are written."""
    return argparse.ArgumentParser(prog=f"python bench/{name}.py", description=description, epilog=examples,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip


def add_common_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--out", type=Path, metavar="DIR",
        help="reports go to DIR/<machine>/ (default: reports/ here; with --quick runs/reports/)")  # fmt: skip
    add("--resume", action="store_true", help="keep what an interrupted run has measured already and go on")
    add("--quick", action="store_true", help="a small run that shows the program works; its numbers mean little")


def output_folder(args: argparse.Namespace) -> Path:
    return args.out or (ROOT / "runs" / "reports" if args.quick else REPORTS)


# pages and figures


class Drawer(NamedTuple):
    """What a benchmark brings along to have its report drawn."""

    page: Callable[[Report], str]  # Markdown below the heading
    figure: Callable[[Report, Any], Any]  # with matplotlib.pyplot -> a matplotlib figure
    front: Callable[[Report], list[tuple[str, str]]]  # (what, result) lines of the project's README
    csv: Callable[[Path], object] | None = None  # writes the rows beside the JSON in this path, as a table


def render(path: Path, drawer: Drawer) -> None:
    """Draws the page and the figure beside the JSON in `path`, from nothing but that JSON."""
    report = load(path)
    plt = pyplot()
    figure = drawer.figure(report, plt)
    figure.suptitle(f"{report.title}\n{report.machine}, {report.source}", fontsize=11)
    figure.savefig(path.with_suffix(".png"), dpi=120)
    plt.close(figure)
    path.with_suffix(".md").write_text(write_page(report, drawer), encoding="utf-8")
    if drawer.csv is not None:
        drawer.csv(path)


def write_page(report: Report, drawer: Drawer) -> str:
    """The whole page of a report."""
    where = report.environment
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items() if version)
    notes = []
    if report.quick:
        notes.append("**A quick run: it shows that the program works and measures little.**")
    if not report.finished:
        notes.append("**Unfinished: rows or repeats are missing; `--resume` goes on.**")
    if report.gate["green"] is False:
        notes.append("**Some numerics are red: nothing is compared with what is wrong.**")
    facts = {
        "machine": f"{where['cpu']}, {where['cores']} cores, {where['threads']} threads, "
                   f"OMP_WAIT_POLICY={where['omp_wait_policy']}, load average {where['load_average']:.2f} at the start",
        "device": where["device"],
        **({"clocks": describe(where["clocks"])} if "clocks" in where else {}),
        "commit": f"{where['commit']}{' with changed files' if where['dirty'] else ''}",
        "date": report.date,
        "command": f"`python {shlex.join(where['argv'])}`",
        "versions": f"Python {where['python']}, {versions}",
        **{key.replace("_", " "): value for key, value in report.method.items()},
    }  # fmt: skip
    lines = [f"# {report.title}", "", *notes, *([""] if notes else []), f"![{report.title}]({report.name}.png)", "",
             drawer.page(report).strip(), "", "## Where this comes from", "",
             *(f"- {key}: {value}" for key, value in facts.items()), ""]  # fmt: skip
    return "\n".join([*lines, f"Drawn from [{report.name}.json]({report.name}.json) by `make reports`.", ""])


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """A Markdown table, the first `left` columns to the left, the rest to the right."""
    ruler = ["---"] * left + ["---:"] * (len(columns) - left)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [columns, ruler, *rows])


def number(value: float | None, digits: int = 2, unit: str = "") -> str:
    return "–" if value is None else f"{value:.{digits}f}{unit}"


def pyplot() -> Any:
    """matplotlib without a display. Raises `ReportError` where it is not installed."""
    try:
        import matplotlib
    except ImportError as error:
        raise ReportError("figures need matplotlib: pip install -e '.[bench]' in the project's folder") from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def report_paths(root: Path) -> list[Path]:
    return sorted(root.glob("*/*.json"))


def index(root: Path) -> str:
    """The page that lists all reports under `root`, made from their JSONs."""
    rows = []
    for path in report_paths(root):
        report = load(path)
        place = path.relative_to(root).with_suffix(".md").as_posix()
        state = "quick run" if report.quick else "" if report.finished else "unfinished"
        gate = {True: "green", False: "RED", None: "not checked"}[report.gate["green"]]
        rows.append([f"[{report.name}]({place})", report.title, report.machine, report.date[:10], report.source,
                     ", ".join(filter(None, [gate, state]))])  # fmt: skip
    head = ("# Reports\n\nWhat was measured, where, and by which commit. Each page and figure is drawn from the JSON "
            "of the same name; `make reports` redraws them and this index. Experiments, failed ones too, are in "
            "[LOG.md](LOG.md).\n\n")  # fmt: skip
    columns = ["report", "what", "machine", "date", "commit", "numerics"]
    return head + (table(columns, rows, left=len(columns)) if rows else "None yet.") + "\n"


def front_table(root: Path, drawers: Mapping[str, Drawer]) -> str:
    """What README says was measured, made from the JSONs under `root`; quick and unfinished runs are left out."""
    rows = []
    for path in report_paths(root):
        report = load(path)
        if report.quick or not report.finished:
            continue
        place = f"[{report.machine}](reports/{path.relative_to(root).with_suffix('.md').as_posix()})"
        rows += [[what, result, place, report.source] for what, result in drawers[report.name].front(report)]
    return table(["what", "measured", "where", "commit"], rows, left=4) if rows else "Nothing yet."


def write_front_table(readme: Path, text: str) -> None:
    """Replaces what stands between the two markers in `readme`. Raises `ReportError` without them."""
    before, begin, rest = readme.read_text(encoding="utf-8").partition(FRONT_BEGIN)
    _, end, after = rest.partition(FRONT_END)
    if not begin or not end:
        raise ReportError(f"{readme}: the lines {FRONT_BEGIN} and {FRONT_END} are missing")
    readme.write_text(f"{before}{FRONT_BEGIN}\n{text}\n{FRONT_END}{after}", encoding="utf-8")


def publish(path: Path, drawer: Drawer, root: Path) -> None:
    """Draws the finished report in `path` and the index of all of them, and says where they are."""
    render(path, drawer)
    (root / "README.md").write_text(index(root), encoding="utf-8")
    print(f"{path} (.md, .png beside it)", file=sys.stderr)


def deliver(measure: Callable[[], Path], drawer: Drawer, args: argparse.Namespace) -> int:
    """Measures, publishes and prints the page. Returns the exit code: 1 for an error and for a red gate."""
    try:
        path = measure()
        publish(path, drawer, output_folder(args))
    except (ReportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    report = load(path)
    print(drawer.page(report))
    return 1 if report.gate["green"] is False else 0
