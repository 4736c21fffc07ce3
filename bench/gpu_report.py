"""All that a GPU can say about this project, in one command: correctness, kernels beside their rivals, training steps.

What decides comes first, and takes 7 minutes at most: the ceilings, correctness in bfloat16, then the shapes and the
steps of the preset MBS, with and without dropout. Other shapes, presets and dtypes follow as far as the minutes reach.
Every unit of work runs in a process of its own, so that a kernel that hangs or breaks the device's context costs that
unit and nothing else; what is done is saved at once.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

from harness import cli
from harness import report as harness
from harness.pages import ReportPage
from harness.report import Report, ReportError

import torch
from pages import gpu as gpu_page
from tqdm import tqdm
from vatt_kernels.spec.cases import Case, smaller
from workloads import dali_decoding, gpu_measurements
from workloads.gpu_measurements import BY_NAME, Row
from workloads.sanitized_case import WATCHED, sanitizer

from vatt.runtime.progress import progress_bar

NAME = "gpu_report"
REPORT_PAGE = ReportPage(gpu_page.page, gpu_page.figure, gpu_page.readme_rows)
KINDS = ("correctness", "kernels", "training", "decode")
ORDER = ("attention", "project_voxels", "contrastive_loss", "project_waveform", "gather_tokens", "sample_keep")
MBS = (  # what a step of this preset spends its time on, of `spec_cases`
    ("attention", "Medium 224, 50% dropped"),
    ("attention", "Medium 224, 0% dropped"),
    ("attention", "Medium 224, 50% dropped, dropout 0.1"),
    ("attention", "Medium 224, 0% dropped, dropout 0.1"),
    ("project_voxels", "Medium 224, 50% dropped"),
    ("project_voxels", "Medium 224, 75% dropped"),
    ("contrastive_loss", "MIL-NCE, 2048 clips"),
    ("contrastive_loss", "NCE, 2048 clips"),
)
MBS_STEPS = ((0.0, 0.5, 64), (0.1, 0.5, 64), (0.0, 0.0, 32), (0.1, 0.0, 32))  # dropout, dropped, batch
REAL = 3  # shapes of each operation that correctness covers too, with few clips
UNIT_SECONDS = 150.0  # a unit that takes longer hangs
WORKERS = 6  # processes that check correctness at a time; most of it is compiling. Times are taken by one alone.
DROPS = (0.5, 0.0, 0.75, 0.25)
EXAMPLES = """examples:
  python bench/gpu_report.py                          everything that fits into 15 minutes, to reports/<gpu>/
  python bench/gpu_report.py --minutes 7              what decides: right in bfloat16, and how fast the preset MBS is
  python bench/gpu_report.py --resume                 go on: finished rows are kept, what was left out is measured
  python bench/gpu_report.py --only correctness       is everything right on this GPU?
  python bench/gpu_report.py --out results --minutes 25
  python bench/gpu_report.py --tables --minutes 25    then also the paper's Tables 5, 6 and 7, in reports of their own
  python bench/gpu_report.py --dry-run                no GPU: every path once with tiny shapes, in a minute

On a machine without a network install the project first with what is there:
  python -m pip install --no-deps --no-build-isolation -e .

exit codes: 0 done (what did not fit is listed), 1 something is red or failed, 2 wrong usage or no GPU,
130 interrupted."""


class Unit(NamedTuple):
    """One piece of work: `work(*arguments)` gives rows, and `about` says what they are about if it fails."""

    kind: str
    about: dict[str, Any]
    work: Callable[..., list[Row]]
    arguments: tuple[Any, ...]

    @property
    def key(self) -> str:
        return ", ".join([self.kind, *map(str, self.about.values())])


class Stage(NamedTuple):
    """Units that are done before those of the next stage; `kind`, one of KINDS or "", is what --only selects."""

    name: str
    kind: str
    units: list[Unit]
    workers: int = 1


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = cli.make_parser(
        "gpu_report", "Correctness, kernel times beside rivals, and training steps on this machine's GPU.", EXAMPLES
    )
    add = parser.add_argument
    add(
        "--out",
        type=Path,
        metavar="DIR",
        help="reports go to DIR/<machine>/ (default: reports/ here; with --dry-run runs/reports/)",
    )
    add("--minutes", type=float, default=15.0, metavar="M", help="time for all of it (default 15)")
    add("--only", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND", help="some of: %(choices)s")
    add("--rounds", type=int, default=25, metavar="N", help="timed calls of each provider (default 25)")
    add("--resume", action="store_true", help="keep the rows of an earlier run and go on")
    add(
        "--tables",
        action="store_true",
        help="afterwards also Table 5 (times and memory), Table 6 and Table 7: bench/droptoken_sweep.py and its like",
    )
    add(
        "--dry-run",
        action="store_true",
        help="tiny shapes on the CPU, to see that everything works; its numbers mean nothing",
    )
    args = parser.parse_args(argv)
    args.out = args.out or (harness.ROOT / "runs" / "reports" if args.dry_run else harness.REPORTS)
    if args.minutes <= 0 or args.rounds < 1:
        parser.error("--minutes is positive and --rounds at least 1")
    if args.dry_run and args.out.resolve() == harness.REPORTS:
        parser.error("a dry run is never published: choose another --out")
    if not args.dry_run and not torch.cuda.is_available():
        parser.error("PyTorch sees no GPU here; --dry-run shows what the program does without one")
    args.device = "cpu" if args.dry_run else "cuda"
    return args


# what there is to do


def plan(args: argparse.Namespace) -> list[Stage]:
    """All stages, most important first."""
    dry, device = args.dry_run, args.device
    rounds = 2 if dry else args.rounds

    def kernel(operation: str, case: Case, compiled: bool = False) -> Unit:
        about = {
            "operation": operation,
            "case": case.name,
            "dtype": "bfloat16",
            "provider": "ours",
            "compiled": compiled,
        }
        return Unit("kernel", about, gpu_measurements.kernels, (operation, case, "bfloat16", device, rounds, compiled))

    def step(preset: str, part: str, dropout: float, drop: float, batch: int = 32) -> Unit:
        batch = 2 if dry else batch
        about = {
            "preset": preset,
            "part": part,
            "dropout": dropout,
            "drop_rate": drop,
            "batch": batch,
            "implementation": "fused",
        }
        return Unit(
            "training", about, gpu_measurements.training, (preset, part, dropout, drop, batch, device, min(rounds, 10))
        )

    first_steps: list[tuple[Any, ...]]
    steps: list[tuple[Any, ...]]
    if dry:
        first, rest = [(name, BY_NAME[name].cases()[0]) for name in ORDER], []
        first_steps, steps = [("tiny", "video", 0.0, 0.0)], [("tiny", "full", 0.1, 0.5)]
    else:
        every = {(name, case.name): case for name in ORDER for case in BY_NAME[name].shapes()}
        first = [(name, every.pop((name, case))) for name, case in MBS]
        rest = [(name, case) for (name, _), case in every.items()]
        first_steps = [("mbs", "full", *setting) for setting in MBS_STEPS]
        steps = [
            *(("mbs", "video", 0.0, drop) for drop in DROPS),
            *(("bbs", "video", 0.0, drop) for drop in DROPS),
            *(("mbs", "video", 0.1, drop) for drop in DROPS),
            *(("bbs", "full", 0.1, drop) for drop in DROPS[:2]),
        ]
    checks = correctness_units(dry, device)
    low = [unit for unit in checks if unit.about["dtype"] == "bfloat16"]
    workers = 1 if dry else WORKERS
    stages = [
        Stage("ceilings", "", [Unit("ceilings", {}, gpu_measurements.ceilings, (device,))]),
        Stage("correctness, bfloat16", "correctness", low, workers),
        Stage("sanitizer", "correctness", sanitizer_units(device), workers),
        Stage("kernels", "kernels", [kernel(*case) for case in first]),
        Stage("training", "training", [step(*case) for case in first_steps]),
        Stage("more kernels", "kernels", [kernel(*case) for case in rest]),
        Stage("more training", "training", [step(*case) for case in steps]),
        Stage("decode", "decode", decode_units(device)),
        Stage("compiled rivals", "kernels", [kernel(*case, compiled=True) for case in first]),
        Stage("correctness, other dtypes", "correctness", [unit for unit in checks if unit not in low], workers),
    ]
    return [stage for stage in stages if not stage.kind or stage.kind in args.only]


def correctness_units(dry: bool, device: str) -> list[Unit]:
    units = []
    for dtype in ("bfloat16", "float16", "float32"):
        for name, spec in BY_NAME.items():
            if name == "sample_keep" and dtype != "bfloat16":
                continue  # integers
            real = () if dry else spec.shapes()[:REAL]
            for case in (*spec.cases(), *(smaller(case) for case in real)):
                about = {"operation": name, "case": case.name, "dtype": dtype}
                units.append(Unit("correctness", about, gpu_measurements.correctness, (name, case, dtype, device)))
    return units


def decode_units(device: str) -> list[Unit]:
    """DALI, where it is installed: its frames beside those of PyAV, then its rates."""
    units = [
        Unit("decode", {"source": source.name}, dali_decoding.frames_of, (source.name, device))
        for source in dali_decoding.SOURCES
    ]
    return [*units, Unit("decode", {"source": "H.264, rates"}, dali_decoding.rates, (device,))]


def sanitizer_units(device: str) -> list[Unit]:
    return [
        Unit(
            "sanitizer",
            {"operation": operation, "case": case, "dtype": "bfloat16", "variant": variant},
            sanitizer,
            (operation, case, variant, device),
        )
        for operation, case, variant in WATCHED
    ]


# doing it


def attempt(unit: Unit) -> list[Row]:
    """The unit's rows, or one that says how it failed."""
    try:
        return unit.work(*unit.arguments)
    except Exception as error:  # whatever a kernel, its compiler or the device raises: the rest is still worth knowing
        return [failed(unit, f"{type(error).__name__}: {' '.join(str(error).split())[:2000]}")]


def failed(unit: Unit, reason: str) -> Row:
    return {"kind": unit.kind, **unit.about, "green": False, "error": reason}


def serve(connection: Connection, device: str) -> None:
    """A child process: says None when it begins a unit, then (rows, whether the device can still be used)."""
    while True:
        try:
            unit = connection.recv()
        except EOFError:
            return
        connection.send(None)
        rows = attempt(unit)
        try:
            torch.zeros(1, device=device).item()
            if device == "cuda":
                torch.cuda.empty_cache()
            usable = True
        except RuntimeError:
            usable = False
        connection.send((rows, usable))
        if not usable:
            return


class Child:
    """A process that does one unit after another, until one of them breaks it."""

    def __init__(self, device: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, device), daemon=True)
        self.process.start()
        theirs.close()

    def begin(self, unit: Unit) -> None:
        self.unit, self.began = unit, math.inf  # until the process has started
        self.connection.send(unit)

    def end(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.join()


def in_processes(units: Sequence[Unit], workers: int, device: str, deadline: float) -> Iterator[tuple[Unit, list[Row]]]:
    """(unit, rows) as they are done, until `deadline` (time.monotonic); what is not done then is not yielded."""
    waiting, busy, idle = deque(units), list[Child](), list[Child]()
    try:
        while waiting or busy:
            while waiting and len(busy) < workers and time.monotonic() < deadline:
                child = idle.pop() if idle else Child(device)
                child.begin(waiting.popleft())
                busy.append(child)
            if not busy or time.monotonic() >= deadline:
                return
            ready = wait([child.connection for child in busy], timeout=1.0)
            for child in list(busy):
                rows, usable = None, False
                if child.connection in ready:
                    try:
                        answer = child.connection.recv()
                        if answer is None:
                            child.began = time.monotonic()
                            continue
                        rows, usable = answer
                    except (EOFError, OSError):
                        child.process.join()
                        rows = [failed(child.unit, f"its process ended with exit code {child.process.exitcode}")]
                elif time.monotonic() - child.began > UNIT_SECONDS:
                    rows = [failed(child.unit, f"took longer than {UNIT_SECONDS:.0f} s")]
                if rows is not None:
                    busy.remove(child)
                    idle.append(child) if usable else child.end()
                    yield child.unit, rows
    finally:
        for child in (*busy, *idle):
            child.end()


def here(units: Sequence[Unit], workers: int, device: str, deadline: float) -> Iterator[tuple[Unit, list[Row]]]:
    """The same within this process, for the dry run."""
    for unit in units:
        if time.monotonic() >= deadline:
            return
        yield unit, attempt(unit)


def measure(args: argparse.Namespace, report: Report, path: Path) -> None:
    """Runs all stages; the report is saved after every unit."""
    deadline = time.monotonic() + 60 * args.minutes
    stages = plan(args)
    done = {row["key"] for row in report.rows}
    total = sum(len(stage.units) for stage in stages)
    bar = progress_bar(total, NAME, "unit", sum(u.key in done for stage in stages for u in stage.units))
    execute = here if args.dry_run else in_processes
    with bar:
        for stage in stages:
            bar.set_description(stage.name)
            units = [unit for unit in stage.units if unit.key not in done]
            for unit, rows in execute(units, stage.workers, args.device, deadline):
                report.rows += [{"key": unit.key, **row} for row in rows]
                done.add(unit.key)
                for row in rows:
                    if not row.get("green", True):
                        tqdm.write(f"RED {unit.key}: {gpu_page.trouble(row)[:300]}", file=sys.stderr)
                save(report, path)
                bar.update()
    report.method["left_out"] = [unit.key for stage in stages for unit in stage.units if unit.key not in done]
    report.finished = not report.method["left_out"] and set(args.only) == set(KINDS)
    save(report, path)


def paper_tables(args: argparse.Namespace) -> list[str]:
    """Runs the commands of Tables 5, 6 and 7, which write reports of their own; names those that failed."""
    more = ["--out", str(args.out), "--device", args.device, *(["--quick"] if args.dry_run else [])]
    more += ["--resume"] if args.resume else []
    commands = [
        ["model_sizes.py", *more[:2]],
        ["droptoken_sweep.py", "--only", "timing", *more],
        ["resolution_sweep.py", *more],
    ]
    failed = []
    for command in commands:
        print(f"python bench/{' '.join(command)}", file=sys.stderr)
        done = subprocess.run([sys.executable, *command], cwd=Path(__file__).parent, check=False)
        failed += [command[0]] if done.returncode else []
    return failed


def save(report: Report, path: Path) -> None:
    gpu_page.derive(report)
    report.save(path)


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(argv)
    settings = {"dry_run": args.dry_run, "rounds": args.rounds, "seed": gpu_measurements.SEED}
    method = {
        "timing": f"providers of a case alternate within one process, every second round backwards; warm-up calls, "
        f"{args.rounds} rounds (at most 10 of training steps, fewer where a provider is slow: see `seconds` "
        "in the JSON); p20, p50, p80. Device events around one call after "
        f"{gpu_measurements.FLUSH_BYTES >> 30} GiB were written, which empties the L2 cache and keeps the "
        "device busy while the host launches the call",
        "backward": "of a graph made anew in each round, the gradient of every differentiable input",
        "inputs": "random; q, k, v side by side as one product makes them; uint8 frames, float32 to bfloat16 waveforms",
        "numerics": "a provider is timed only after its output and gradients were within the budget on the same case, "
        "or with fewer clips (numerics_of in the JSON) where float64 does not fit into memory",
        "left_out": [],
    }
    title = "Kernels and training steps" + (" (DRY RUN, tiny shapes on a CPU)" if args.dry_run else "")
    try:
        report, path = harness.open_report(
            NAME,
            title,
            settings=settings,
            method=method,
            out=args.out,
            resume=args.resume,
            quick=args.dry_run,
            device=args.device,
        )
        measure(args, report, path)
        cli.publish(path, REPORT_PAGE, args.out)
        failed_tables = paper_tables(args) if args.tables else []
    except (ReportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; --resume goes on", file=sys.stderr)
        return 130
    wrong = [*gpu_page.failures(report), *(f"bench/{name} failed, see above" for name in failed_tables)]
    if report.method["left_out"]:
        print(f"left out, --resume goes on: {'; '.join(report.method['left_out'])}")
    print(f"{path}\n")
    for line in wrong:
        print(f"RED {line[:400]}")
    print(gpu_page.correctness_table(report) + "\n\n" + gpu_page.summary(report))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
