"""Training that is killed, interrupted and damaged for an hour, and must end as if nothing had happened.

A trial is a short run with settings of its own, twice: undisturbed in one process, and disturbed, a fault a process,
resumed with `--out DIR --resume` until it is done. Weights, losses, bad clips and scores of both must be the same to
the bit, and what a run does about each fault must be what it promises (faults.py).
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import random
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import cli
from harness import report as harness
from harness.pages import BLUE, ORANGE, ReportPage, table
from harness.report import Report, ReportError

from faults.damaged_files import variants
from faults.run_faults import (
    DAMAGES,
    KILLS,
    OF_RANKS,
    OF_WORKERS,
    REACH,
    REFUSED,
    Broken,
    Moment,
    Process,
    half_saves,
    last_step,
    mend,
    whole_checkpoints,
)

from vatt.data.synthetic import build_corpus
from vatt.runtime.progress import progress_bar
from vatt.training.metrics_log import read_metrics

NAME = "chaos"
CLIPS = 48
PRESETS = ("tiny", "tiny_ma")
SETTINGS = (
    "--batch-size=6",
    "--device=cpu",
    "--set=data.cache_gb=0",
    "--set=save_every=7",
    "--set=keep_checkpoints=3",
    "--set=eval_windows=1",
    "--set=optim.warmup=10",
)
RANKS = (1, 2)  # processes of a trial, in turn
LAUNCHER = (
    "-m",
    "torch.distributed.run",
    "--nnodes=1",
    "--rdzv-backend=c10d",
    "--rdzv-endpoint=127.0.0.1:0",
    "--local-addr=127.0.0.1",
)
MOST_FAULTS = 20  # of a trial; then it runs to its end
DAMAGED_AFTER = 0.5  # share of the processes after which a file is damaged as well
TIMES = re.compile(r".*_seconds|clips_per_second")  # of a record: these may differ
SMALL_DISK = (300_000, 9_000_000)  # bytes: the least and largest file a process may write when the disk is full
EXAMPLES = """examples:
  python bench/chaos.py                   an hour of disturbed training
  python bench/chaos.py --minutes 600 --seed 2
  python bench/chaos.py --ranks 2         on two processes under torchrun
  python bench/chaos.py --resume          go on after a crash: finished trials are kept
  python bench/chaos.py --quick           two trials, three minutes, to see it work

exit codes: 0 every promise was kept, 1 one was broken (the page says which), 2 wrong usage."""


def damaged_corpus(corpus: Path, folder: Path, draw: random.Random) -> Path:
    """Return a copy of the corpus in which one training clip in eight is damaged or gone; the path of its manifest."""
    shutil.copytree(corpus, folder)
    with open(folder / "manifest.csv", newline="", encoding="utf-8") as file:
        clips = [folder / row["path"] for row in csv.DictReader(file) if row["split"] == "train"]
    for index, clip in enumerate(sorted(draw.sample(clips, len(clips) // 8))):
        _, damaged = draw.choice(list(variants(clip.read_bytes(), 12, draw.randrange(1 << 30))))
        if index == 0:
            clip.unlink()
        else:
            clip.write_bytes(b"" if index == 1 else damaged)
    return folder / "manifest.csv"


class Trial:
    """Run `number` twice in `folder`; `row` is what the report keeps of it."""

    def __init__(self, number: int, seed: int, steps: int, corpus: Path, folder: Path, ranks: int) -> None:
        self.draw = random.Random(f"{seed}, {number}")
        self.folder, self.steps = folder, steps
        shutil.rmtree(folder, ignore_errors=True)  # what an interrupted benchmark left
        folder.mkdir(parents=True)
        self.data = damaged_corpus(corpus, folder / "data", self.draw)
        preset = PRESETS[number % len(PRESETS)]
        self.ranks = ranks
        self.row: dict[str, Any] = {
            "trial": number,
            "preset": preset,
            "seed": seed + number,
            "steps": steps,
            "ranks": ranks,
            "half_saves": 0,
            "processes": [],
            "broken": [],
        }
        self.first = [
            "--fused",
            "--preset",
            preset,
            "--data",
            str(self.data),
            "--seed",
            str(seed + number),
            "--steps",
            str(steps),
            *SETTINGS,
        ]

    def start(self, out: Path, arguments: Sequence[str], workers: int, file_bytes: int | None = None) -> Process:
        log = self.folder / f"{out.name}-{len(list(self.folder.glob('*.log')))}.log"
        launcher = [] if self.ranks == 1 else [*LAUNCHER, f"--nproc-per-node={self.ranks}"]
        command = [
            sys.executable,
            *launcher,
            "-m",
            "vatt.train",
            *arguments,
            "--out",
            str(out),
            f"--set=data.workers={workers}",
        ]
        return Process(command, out, log, file_bytes, self.ranks)

    def run(self) -> None:
        whole, disturbed = self.folder / "undisturbed", self.folder / "disturbed"
        tick = time.perf_counter()
        process = self.start(whole, self.first, 1)
        code = process.end()
        self.row["undisturbed_seconds"] = time.perf_counter() - tick
        if code:
            raise ReportError(f"the undisturbed run ended with exit code {code}, see {process.log}")
        words = (whole / "vocabulary.txt").read_bytes()
        tick = time.perf_counter()
        self.disturb(disturbed, words)
        self.row["seconds"] = time.perf_counter() - tick
        self.row["same"] = compare(whole, disturbed)
        self.row["bad_clips"] = len(_lines(whole / "bad_clips.csv")) - 1

    def disturb(self, out: Path, words: bytes) -> None:
        """Run one process after the other, until one gets to the end. A broken promise is noted, and ends the trial."""
        damage, promised, output = "", "", ""
        code = -1
        while code:
            fault = self.choose(out) if len(self.row["processes"]) < MOST_FAULTS else ""
            before = last_step(out)
            process = self.prepare(out, fault)
            try:
                code = KILLS[fault](process, self.moment(out)) if fault else process.end()
                self.row["half_saves"] += bool(half_saves(out)) and code < 0
                output += process.said
                resumed = process.resumed_at
                self.row["processes"].append(
                    {
                        "fault": fault if code else "",
                        "damage_before": damage,
                        "exit": code,
                        "before": before,
                        "from": resumed,
                        "to": last_step(out),
                    }
                )
                if promised and resumed is not None:
                    if not re.search(promised, output):
                        raise Broken(f"expected after {damage}: {promised!r}")
                    promised = ""
                if not fault and code:
                    raise Broken(f"expected: exit 0 from a process without a fault; got exit {code}")
                damage = ""
                if code and not promised and whole_checkpoints(out) and self.draw.random() < DAMAGED_AFTER:
                    damage = self.draw.choice(list(DAMAGES))
                    promised, output = DAMAGES[damage](out, self.draw), ""
                    if promised in REFUSED:
                        self.refuse(out, promised, words)
                        promised = ""
            except Broken as broken:
                self.note(broken, process, fault, damage)
                return

    def refuse(self, out: Path, promised: str, words: bytes) -> None:
        """Damage what a run cannot go on with: it says so, and is mended as it says."""
        process = self.start(out, ["--resume"], 0)
        code = process.end()
        plain = self.ranks > 1 or "Traceback" not in process.said  # torchrun prints its own
        if code != 1 or promised not in process.said or not plain:
            raise Broken(f"expected: exit 1 and {promised!r}; got exit {code}: {process.said[-2000:]}")
        mend(out, promised, words)

    def choose(self, out: Path) -> str:
        """Return a fault that can happen in what is left of the run; at its end also none, so that it ends."""
        left = self.steps - self.saved(out)
        if not left:
            return self.draw.choice(("", "kill -9 while starting", "kill -9 while finishing", "disk full"))
        kinds = [kind for kind in KILLS if kind not in OF_RANKS or self.ranks > 1]
        if left < 2 * REACH:
            kinds.remove("clips gone")  # so late that no training clip might be missed
        if left > REACH:
            kinds.remove("kill -9 while finishing")
        return self.draw.choice(kinds)

    def prepare(self, out: Path, fault: str) -> Process:
        """Return the next process; one that died before it had settings is not resumed but started again."""
        arguments = ["--resume"] if (out / "config.json").exists() else self.first
        workers = self.draw.choice((1, 2) if fault in OF_WORKERS else (0, 1, 2))
        return self.start(out, arguments, workers, self.draw.randrange(*SMALL_DISK) if fault == "disk full" else None)

    def moment(self, out: Path) -> Moment:
        saved = self.saved(out)
        step = self.draw.randint(min(saved + 1, self.steps), min(saved + REACH, self.steps))
        return Moment(step, self.steps, self.data.parent / "clips", self.draw)

    def saved(self, out: Path) -> int:
        whole = whole_checkpoints(out)
        return int(whole[-1].name.removeprefix("step-")) if whole else 0

    def note(self, broken: Broken, process: Process, fault: str, damage: str) -> None:
        root = str(harness.ROOT)
        self.row["broken"].append(
            {
                "what": str(broken),
                "fault": fault,
                "damage": damage,
                "log": process.log.name,
                "command": ["python", *(part.replace(root, ".") for part in process.command[1:])],
                "said": process.said.replace(root, ".").splitlines()[-25:],
            }
        )


def compare(a: Path, b: Path) -> dict[str, bool]:
    """Return what of two finished runs is the same to the bit."""
    pairs: dict[str, tuple[Any, Any]] = {
        "weights": (_sha256(a / "model" / "model.safetensors"), _sha256(b / "model" / "model.safetensors")),
        "losses": (_records(a), _records(b)),
        "bad clips": (_lines(a / "bad_clips.csv"), _lines(b / "bad_clips.csv")),
        "scores": (_scores(a), _scores(b)),
    }
    return {name: bool(first) and first == second for name, (first, second) in pairs.items()}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""


def _records(run: Path) -> list[dict[str, Any]]:
    try:
        records = read_metrics(run / "metrics.jsonl")
    except (OSError, ValueError):
        return []
    return [{key: value for key, value in record.items() if not TIMES.fullmatch(key)} for record in records]


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def _scores(run: Path) -> Any:
    return json.loads((run / "result.json").read_text())["retrieval"] if (run / "result.json").exists() else None


def redone(row: dict[str, Any]) -> int:
    """Return steps that were lost with a process and made again."""
    return sum(max(p["before"] - p["from"], 0) for p in row["processes"] if p["from"] is not None)


def counts(rows: Sequence[dict[str, Any]]) -> Counter[str]:
    """Return faults and damages by kind."""
    processes = [process for row in rows for process in row["processes"]]
    return Counter(name for p in processes for name in (p["fault"], p["damage_before"]) if name)


def is_green(row: dict[str, Any]) -> bool:
    return not row["broken"] and all(row["same"].values())


def measure(args: argparse.Namespace, report: Report, path: Path) -> None:
    """Make trials until the time is used up; the report is saved after each."""
    args.work.mkdir(parents=True, exist_ok=True)
    corpus = args.work / "corpus"
    build_corpus(corpus, clips=CLIPS)
    seconds = sum(row["seconds"] for row in report.rows)
    with progress_bar(round(60 * args.minutes), NAME, "s", round(seconds)) as bar:
        while seconds < 60 * args.minutes or len(report.rows) < len(PRESETS):
            number = len(report.rows)
            folder = args.work / f"trial-{number}"
            ranks = args.ranks or RANKS[number // len(PRESETS) % len(RANKS)]
            trial = Trial(number, args.seed, args.steps, corpus, folder, ranks)
            trial.run()
            report.rows.append(trial.row)
            report.gate["checks"] = [{"trial": row["trial"], "green": is_green(row)} for row in report.rows]
            report.gate["green"] = all(check["green"] for check in report.gate["checks"])
            report.save(path)
            if is_green(trial.row):
                shutil.rmtree(folder)
            else:
                print(f"trial {number} is red; its files are in {folder}", file=sys.stderr)
            seconds += trial.row["seconds"]
            bar.update(round(trial.row["seconds"]))
    report.finished = True
    report.save(path)


def page(report: Report) -> str:
    rows = report.rows
    total, minutes = counts(rows), sum(row["seconds"] for row in rows) / 60
    same = sum(is_green(row) for row in rows)
    intro = (
        f"{len(rows)} runs of {report.settings['steps']} steps were disturbed for {minutes:.0f} minutes by "
        f"{sum(total.values())} faults in {sum(len(row['processes']) for row in rows)} processes. {same} of them "
        "ended with the weights, losses, bad clips and scores of an undisturbed run, to the bit. "
        f"{sum(map(redone, rows))} steps were lost with a process and made again; "
        f"{sum(row['half_saves'] for row in rows)} kills left half a checkpoint behind."
    )
    codes = {
        kind: Counter(str(p["exit"]) for row in rows for p in row["processes"] if p["fault"] == kind) for kind in KILLS
    }
    faults = [
        [kind, str(total[kind]), ", ".join(f"{code} ({n}x)" for code, n in sorted(codes[kind].items()))]
        for kind in KILLS
        if total[kind]
    ]
    damages = [[kind, str(total[kind])] for kind in DAMAGES if total[kind]]
    ranked = any("ranks" in row for row in rows)
    runs = [
        [
            f"{row['trial']}, {row['preset']}, seed {row['seed']}",
            *([str(row["ranks"])] if ranked else []),
            str(len(row["processes"])),
            str(sum(counts([row]).values())),
            str(redone(row)),
            str(row["bad_clips"]),
            f"{row['undisturbed_seconds']:.0f}",
            f"{row['seconds']:.0f}",
            "the same" if is_green(row) else "DIFFERENT",
        ]
        for row in rows
    ]
    parts = [
        intro,
        "## Faults of processes",
        table(["fault", "count", "exit codes"], faults, left=1),
        "A negative code is a signal. Clips gone: the folder of clips is away while the process runs. Disk full: "
        "no file may grow beyond a size.",
        "## Damage between processes",
        table(["damage", "count"], damages),
        "## Runs",
        table(
            [
                "trial",
                *(["ranks"] if ranked else []),
                "processes",
                "faults",
                "steps redone",
                "bad clips",
                "undisturbed s",
                "disturbed s",
                "end",
            ],
            runs,
        ),
    ]
    for row in rows:
        for name, kept in row["same"].items():
            if not kept:
                parts.append(f"- FAILED: trial {row['trial']}: other {name}")
        for broken in row["broken"]:
            output = "\n".join(broken["said"])
            parts.append(
                f"- FAILED: trial {row['trial']}, {broken['fault'] or broken['damage']}: {broken['what']}\n\n"
                f"```\n{' '.join(broken['command'])}\n{output}\n```"
            )
    return "\n\n".join(parts)


def readme_rows(report: Report) -> list[tuple[str, str]]:
    rows = report.rows
    minutes = sum(row["seconds"] for row in rows) / 60
    return [
        (
            f"`tiny` and `tiny_ma` disturbed for {minutes:.0f} minutes by {sum(counts(rows).values())} faults (kills, "
            "signals, lost workers, full disk, damaged files): runs that ended as undisturbed, to the bit",
            f"{sum(map(is_green, rows))} of {len(rows)}",
        )
    ]


def figure(report: Report, plt: Any) -> Any:
    """Draw faults by kind, and the way of one run through its processes."""
    figure, (bars, way) = plt.subplots(1, 2, figsize=(12, 5), layout="constrained")
    total = counts(report.rows)
    for kinds, label, colour, hatch in (
        (list(DAMAGES), "between processes", ORANGE, "//"),
        (list(KILLS), "in a process", BLUE, ""),
    ):
        kinds = [kind for kind in kinds if total[kind]]  # one that came later was not among those of this report
        drawn = bars.barh(
            kinds[::-1],
            [total[kind] for kind in kinds[::-1]],
            label=label,
            color=colour,
            hatch=hatch,
            edgecolor="white",
        )
        bars.bar_label(drawn, padding=2, fontsize=8)
    bars.set(xlabel="count", title="Faults")
    row = max(report.rows, key=lambda row: len(row["processes"]))
    for index, process in enumerate(row["processes"]):
        if process["from"] is not None:
            way.plot([index, index + 0.8], [process["from"], process["to"]], color=BLUE, marker=".")
            if process["before"] > process["from"]:
                way.plot([index - 0.2, index], [process["before"], process["from"]], color=ORANGE, ls=":")
    way.set(xlabel="process", ylabel="step", title=f"Trial {row['trial']}: steps of each process, dotted: made again")
    for axes in (bars, way):
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
    bars.legend()
    return figure


REPORT_PAGE = ReportPage(page, figure, readme_rows)


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = cli.make_parser(
        "chaos", "Kill, interrupt and damage training runs; they must end as undisturbed ones do.", EXAMPLES
    )
    add = parser.add_argument
    add("--minutes", type=float, metavar="M", help="of disturbed training (default 60; with --quick two short trials)")
    add("--steps", type=int, metavar="N", help="of a trial (default 60; with --quick 24)")
    add("--ranks", type=int, metavar="N", help="processes of every trial, under torchrun (default 1 and 2 in turn)")
    add("--seed", type=int, default=1, metavar="N", help="seed of faults, damage and runs (default 1)")
    add(
        "--work",
        type=Path,
        default=harness.ROOT / "runs" / NAME,
        metavar="DIR",
        help="runs go to DIR/trial-N; those that end as they should are removed (default runs/chaos)",
    )
    cli.add_common_flags(parser)
    args = parser.parse_args(argv)
    args.minutes = args.minutes or (0.1 if args.quick else 60.0)
    args.steps = args.steps or (24 if args.quick else 60)
    args.work = args.work.absolute()
    if args.minutes <= 0 or args.steps < 1:
        parser.error("--minutes and --steps are above 0")
    if args.ranks is not None and args.ranks not in (1, 2, 3, 6):
        parser.error("--ranks divides a batch of 6 clips: 1, 2, 3 or 6")
    return args


def run(args: argparse.Namespace) -> Path:
    """Measure what is missing of the report, and return the path of its JSON."""
    settings = {
        "minutes": args.minutes,
        "steps": args.steps,
        "seed": args.seed,
        "clips": CLIPS,
        "ranks": [args.ranks] if args.ranks else list(RANKS),
        "arguments": SETTINGS,
    }
    method = {
        "runs": f"python -m vatt.train --fused with {' '.join(SETTINGS)}, 0, 1 or 2 data workers drawn for each "
        f"process; one training clip in eight is damaged from the beginning in both runs",
        "a process": "draws one fault and its moment; after half of them a file of the run is damaged as well",
        "the same": "SHA-256 of the weights, every line of metrics.jsonl but for times, bad_clips.csv, retrieval",
    }
    report, path = harness.open_report(
        NAME,
        "Training under faults",
        settings=settings,
        method=method,
        out=cli.output_folder(args),
        resume=args.resume,
        quick=args.quick,
    )
    measure(args, report, path)
    return path


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(None if argv is None else list(argv))
    return cli.run_benchmark(lambda: run(args), REPORT_PAGE, args)


if __name__ == "__main__":
    sys.exit(main())
