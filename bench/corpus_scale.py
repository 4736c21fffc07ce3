"""What a corpus of many rows costs: memory and time of importing it and of opening its manifest, to 10^7 rows.

Each measurement is a process of its own. With `--before` a checkout of an earlier commit is measured beside this one,
in turn. What 10^8 rows cost is extrapolated, and said so.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import cycle, islice
from pathlib import Path
from random import Random
from typing import Any

from harness import cli
from harness import report as harness
from harness.pages import BLUE, ORANGE, ReportPage, number, table
from harness.report import REPORTS, ROOT, Report

NAME = "corpus_scale"
NARRATIONS = 110  # a video, as HowTo100M has them
WORDS = ("cut", "the", "rope", "then", "pull", "it", "tight", "over", "a", "red", "boat", "and", "tie", "slowly")
MOST_BEFORE = 10**6  # rows that the earlier commit is given
CORPORA = (10**6, 10**7, 136 * 10**6)
OPEN = """
import json, re, sys, time
root, table = sys.argv[1:3]
sys.path.insert(0, root)
try:
    from vatt.checkpoints.fingerprints import fingerprint
    from vatt.config.presets import preset
    from vatt.data.datasets.training import ClipDataset
    from vatt.data.tokenizer import Tokenizer
except ImportError:
    from vatt.data.loader import ClipDataset
    from vatt.data.text import Tokenizer
    from vatt.presets import preset
    from vatt.run import fingerprint
from vatt.data.manifest import read_manifest

def memory():
    text = open("/proc/self/smaps_rollup").read()
    kept = {name: 1024 * int(size) for name, size in re.findall(r"^(\\w+): +(\\d+) kB", text, re.MULTILINE)}
    return kept["Private_Clean"] + kept["Private_Dirty"], kept["Rss"]

before, began = memory(), time.perf_counter()
manifest = read_manifest(table)
config, clips = preset("tiny"), manifest.split("train")
size = config.model.text.vocabulary
if getattr(clips, "rows", None) is not None:
    words = Tokenizer.of_ranked(clips.rows.words(), size)
else:
    words = Tokenizer.build([text for clip in clips for text in clip.captions], size)
fingerprint(manifest)
dataset = ClipDataset(clips, config.data, config.model, words, 1)
batch = [clips[dataset.planned(0, slot)] for slot in range(dataset.batch_size)]
seconds, after = time.perf_counter() - began, memory()
print(json.dumps({"seconds": seconds, "uss": after[0] - before[0], "rss": after[1] - before[1], "rows": len(manifest)}))
"""
IMPORT = """
import contextlib, json, io, re, sys, time
sys.path.insert(0, sys.argv[1])
try:
    from vatt.data.sources.__main__ import main
except ImportError:
    from vatt.data.sources import main
began, spent = time.perf_counter(), time.process_time()
with contextlib.redirect_stdout(io.StringIO()):
    code = main(sys.argv[2:])
seconds, spent = time.perf_counter() - began, time.process_time() - spent
# Not ru_maxrss, which begins with what the process had before it became this program: its parent's.
peak = 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
if code:
    sys.exit(code)
print(json.dumps({"seconds": seconds, "cpu": spent, "peak": peak}))
"""
KINDS = {  # format and file, that each corpus has
    "csv": ("howto100m", "told.csv", "CSV of narrations"),
    "json": ("howto100m", "caption.json", "caption.json"),
    "list": ("webvid", "list.csv", "list of clips (WebVid)"),
    "kinetics": ("kinetics", "kinetics_train.csv", "list of clips (Kinetics)"),
    "audioset": ("audioset", "balanced_train_segments.csv", "list of clips (AudioSet)"),
}
LARGEST = ("csv", "json", "list")  # those that are imported at more than MOST_BEFORE rows
EXAMPLES = """examples:
  python bench/corpus_scale.py --quick                                10^3 and 10^4 rows, a minute
  python bench/corpus_scale.py --before ../earlier-checkout           beside an earlier commit, about 20 minutes

exit codes: 0 done, 1 failed or a target was missed, 2 wrong usage."""


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = cli.make_parser(NAME, "Measure what manifests of many rows cost.", EXAMPLES)
    cli.add_common_flags(parser)
    parser.add_argument("--before", type=Path, metavar="DIR", help="a checkout of an earlier commit to measure beside")
    parser.add_argument("--rows", type=int, nargs="+", metavar="N", help="sizes (default: 10^4 to 10^7)")
    args = parser.parse_args(None if argv is None else list(argv))
    args.rows = args.rows or ([1000, 10_000] if args.quick else [10**4, 10**5, 10**6, 10**7])
    return args


def captions(count: int = 997) -> list[str]:
    random = Random(0)
    return [" ".join(random.choices(WORDS, k=random.randint(2, 6))) for _ in range(count)]


def narrations(rows: int) -> Iterator[tuple[str, float, float, str]]:
    """(video, start, end, text) of so many narrations."""
    for row, text in enumerate(islice(cycle(captions()), rows)):
        start = round(3.1 * (row % NARRATIONS), 2)
        yield f"v{row // NARRATIONS:010d}", start, round(start + 2.5 + row % 3, 2), text


def write_table(path: Path, rows: int) -> None:
    """A manifest of five captions a row; a hundredth of the videos is held out."""
    texts = captions()
    with open(path, "w", encoding="utf-8") as file:
        file.write("path,start,end,caption,label,split\n")
        for row, (video, start, end, text) in enumerate(narrations(rows)):
            near = " | ".join([text, *(texts[(row + i) % len(texts)] for i in range(1, 5))])
            file.write(f"{video}.mp4,{start},{end},{near},,{'test' if row // NARRATIONS % 100 == 0 else 'train'}\n")


def write_annotations(folder: Path, rows: int) -> None:
    """The files of `KINDS` of so many narrations, and empty files of their videos in media/."""
    (folder / "media").mkdir(parents=True)
    kept: dict[str, dict[str, list[Any]]] = {}
    with ExitStack() as held:
        told, annotation, listed, kinetics, audioset = (
            held.enter_context(open(folder / name, "w", encoding="utf-8")) for _, name, _ in KINDS.values()
        )
        told.write("video_id,start,end,text\n")
        listed.write("videoid,name,start,end\n")
        kinetics.write("label,youtube_id,time_start,time_end,split\n")
        annotation.write("{")
        for row, (video, start, end, text) in enumerate(narrations(rows)):
            told.write(f"{video},{start},{end},{text}\n")
            listed.write(f"{video},{text},{start},{end}\n")
            if rows <= MOST_BEFORE:
                kinetics.write(f"{WORDS[row % len(WORDS)]},{video},{start},{end},train\n")
                audioset.write(f'{video}, {start}, {end}, "/m/{row % 400:05d},/m/{row % 300:05d}"\n')
            if video not in kept:
                (folder / f"media/{video}.mp4").touch()
                _write_video(annotation, kept)
                kept = {video: {"start": [], "end": [], "text": []}}
            for name, value in (("start", start), ("end", end), ("text", text)):
                kept[video][name].append(value)
        _write_video(annotation, kept, last=True)
        annotation.write("}")


def _write_video(file: Any, kept: dict[str, Any], last: bool = False) -> None:
    for video, columns in kept.items():
        file.write(f"{json.dumps(video)}: {json.dumps(columns)}{'' if last else ', '}\n")


def call(program: str, *words: object) -> dict[str, Any]:
    """What a process prints as its last line. Raises `ReportError` when it fails."""
    done = subprocess.run([sys.executable, "-c", program, *map(str, words)], capture_output=True, text=True)
    if done.returncode:
        raise harness.ReportError(done.stderr[-2000:])
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(args: argparse.Namespace) -> Path:
    out = cli.output_folder(args)
    report, path = harness.open_report(
        NAME,
        "A corpus of many rows: importing, opening, memory",
        settings={"rows": args.rows, "narrations a video": NARRATIONS, "before": str(args.before or "")[-40:]},
        method={
            "opening": "a process each: read_manifest, split, word list, fingerprint, first planned batch, after its "
            "imports; USS and RSS by smaps_rollup, less what they were before",
            "importing": "a process each: vatt.data.sources of empty files, a CSV of narrations and caption.json "
            "(howto100m) and lists (webvid, kinetics, audioset) to a CSV; peak RSS of that process (VmHWM)",
        },
        out=out,
        resume=args.resume,
        quick=args.quick,
    )
    roots = {"now": ROOT, **({"before": args.before.absolute()} if args.before else {})}
    done = {(row["kind"], row["rows"], row["code"]) for row in report.rows}
    for rows in args.rows:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_table(folder / "rows.csv", rows)
            for code, root in reversed(roots.items()):
                if ("open", rows, code) in done or (code == "before" and rows > MOST_BEFORE):
                    continue
                found = {"kind": "open", "rows": rows, "code": code, "table": (folder / "rows.csv").stat().st_size}
                found["first"] = call(OPEN, root, folder / "rows.csv")
                found["later"] = call(OPEN, root, folder / "rows.csv") if code == "now" else found["first"]
                found["index"] = sum(file.stat().st_size for file in folder.glob("rows.csv.index/*"))
                report.rows.append(found)
                report.save(path)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            kinds = list(KINDS) if rows <= MOST_BEFORE else LARGEST
            if all((kind, rows, code) in done for kind in kinds for code in roots):
                continue
            write_annotations(folder / "set", rows)
            for kind in kinds:
                form, source, _ = KINDS[kind]
                for code, root in reversed(roots.items()):
                    if (kind, rows, code) in done or (code == "before" and rows > MOST_BEFORE):
                        continue
                    words = [form, folder / "set" / source, "--media", folder / "set/media"]
                    found = call(IMPORT, root, *words, "--out", folder / f"{code}.csv")
                    report.rows.append({"kind": kind, "rows": rows, "code": code, **found})
                    report.save(path)
            words = [
                "howto100m",
                folder / "set/told.csv",
                "--media",
                folder / "set/media",
                "--out",
                folder / "m.parquet",
            ]
            found = call(IMPORT, ROOT, *words) | {"bytes": (folder / "m.parquet").stat().st_size}
            report.rows.append({"kind": "parquet", "rows": rows, "code": "now", **found})
            report.save(path)
    report.gate["checks"] = checks(report)
    report.gate["green"] = all(check["green"] for check in report.gate["checks"])
    report.finished = True
    report.save(path)
    return path


def of(report: Report, kind: str, code: str = "now") -> dict[int, dict[str, Any]]:
    return {row["rows"]: row for row in report.rows if row["kind"] == kind and row["code"] == code}


def slope(report: Report) -> float | None:
    """Bytes of USS a row that a later opening costs, between the two largest sizes."""
    opened = of(report, "open")
    if len(opened) < 2:
        return None
    small, large = sorted(opened)[-2:]
    return float((opened[large]["later"]["uss"] - opened[small]["later"]["uss"]) / (large - small))


def checks(report: Report) -> list[dict[str, Any]]:
    """The targets, as far as the sizes were measured at which they hold."""
    opened, before = of(report, "open"), of(report, "open", "before")
    found: list[tuple[str, float, float, bool]] = []
    cost = slope(report)
    if cost is not None and max(opened) >= 10**7:
        found.append(("bytes of USS a row at most", cost, 16.0, cost <= 16))
        seconds = opened[10**7]["later"]["seconds"]
        found.append(("seconds of a later opening of 10^7 rows under", seconds, 10.0, seconds < 10))
    if 10**6 in opened and 10**6 in before:
        times = before[10**6]["first"]["seconds"] / opened[10**6]["later"]["seconds"]
        found.append(("times as fast as before at 10^6 rows at least", times, 20.0, times >= 20))
    for kind in KINDS:
        least = 1.0 if kind == "json" else 3.0
        now, then = of(report, kind), of(report, kind, "before")
        if max(now, default=0) >= 10**6:
            peak = max(row["peak"] for row in now.values()) / 1e6
            found.append((f"MB to import ({kind}) at most", peak, 200.0, peak <= 200))
            if both := set(now) & set(then):
                times = then[max(both)]["seconds"] / now[max(both)]["seconds"]
                found.append((f"times the rows a second of before ({kind}) at least", times, least, times >= least))
    return [{"what": what, "value": value, "target": target, "green": green} for what, value, target, green in found]


def page(report: Report) -> str:
    opened, lines = of(report, "open"), []
    for rows, row in opened.items():
        then = of(report, "open", "before").get(rows)
        lines.append(
            [
                f"{rows:,}",
                *(f"{row[size] / rows:.0f}" for size in ("table", "index")),
                *(number(row[when]["seconds"]) for when in ("first", "later")),
                *(number(row["later"][size] / 1e6, 1) for size in ("uss", "rss")),
                *([number(then["first"]["seconds"]), number(then["first"]["uss"] / 1e6, 1)] if then else ["–", "–"]),
            ]
        )
    head = ["rows", "table, bytes a row", "index, bytes a row", "first opening, s", "later, s", "USS, MB", "RSS, MB"]
    parts = [
        "Opening a manifest, to the first planned batch. USS is what a process has alone; RSS holds what it shares of "
        "the mapped file, too.",
        table([*head, "before, s", "before, USS MB"], lines),
        "## Importing",
        table(
            ["to a CSV, from", "rows", "rows a second", "peak, MB", "before, rows a second", "before, peak MB"],
            [
                [
                    about,
                    f"{rows:,}",
                    f"{rows / row['seconds']:,.0f}",
                    f"{row['peak'] / 1e6:.0f}",
                    *((f"{rows / then['seconds']:,.0f}", f"{then['peak'] / 1e6:.0f}") if then else ("–", "–")),
                ]
                for kind, (_, _, about) in KINDS.items()
                for rows, row in of(report, kind).items()
                for then in [of(report, kind, "before").get(rows)]
            ],
        ),
        "## Targets",
        table(
            ["what", "measured", "target", "met"],
            [
                [one["what"], number(one["value"]), number(one["target"], 0), "yes" if one["green"] else "**no**"]
                for one in report.gate["checks"]
            ],
        ),
        "## What larger corpora cost",
        costs(report),
    ]
    return "\n\n".join(parts)


def costs(report: Report) -> str:
    """Return what corpora of 1 M to 136 M clips cost, by what this report and that of decoding say, as a table."""
    opened, parquet = of(report, "open"), of(report, "parquet")
    most = max(opened)
    row, packed = opened[most], parquet[max(parquet)]["bytes"] / max(parquet)
    decoding = sorted(REPORTS.glob("cpu-*core/decode.json"))
    windows = [
        one["p50"]
        for path in decoding[:1]
        for one in json.loads(path.read_text(encoding="utf-8"))["rows"]
        if one["kind"] == "decoder" and one["decoder"] == "pyav" and one["job"] == "window"
    ]
    cpu = sum(windows) / len(windows) if windows else None
    per_row = {name: row[name] / most for name in ("table", "index")}
    first, uss = row["first"]["seconds"] / most, max(0.0, slope(report) or row["later"]["uss"] / most)
    lines = [
        ["manifest as CSV, five captions a row, GB", *(f"{n * per_row['table'] / 1e9:.2f}" for n in CORPORA)],
        ["manifest as Parquet, a narration a row, GB", *(f"{n * packed / 1e9:.3f}" for n in CORPORA)],
        ["index beside it, shared by all processes, GB", *(f"{n * per_row['index'] / 1e9:.2f}" for n in CORPORA)],
        ["memory of a rank or worker for its rows, MB", *(f"{n * uss / 1e6:.0f}" for n in CORPORA)],
        ["first opening, once, minutes", *(f"{n * first / 60:.1f}" for n in CORPORA)],
        [
            "clips of 0.5 MB each: storage, and what leaves it in an epoch, TB",
            *(f"{n * 5e5 / 1e12:.1f}" for n in CORPORA),
        ],
    ]
    if cpu:
        lines += [
            ["opens a second for an epoch in a day", *(f"{n / 86400:,.0f}" for n in CORPORA)],
            ["cores that decode so many windows", *(f"{n / 86400 * cpu:,.1f}" for n in CORPORA)],
        ]
    return "\n\n".join(
        [
            table(["", *(f"{n:,} clips" for n in CORPORA)], lines),
            f"Computed by `bench/corpus_scale.py` from what it measured at {most:,} rows ({report.source}; the rest is "
            "extrapolated by the row)"
            + (f", and from {cpu * 1e3:.0f} ms a window of 32 frames, the mean of `bench/decode.py`." if cpu else ".")
            + " The size of a clip is an assumption: ten seconds, short side 256.",
        ]
    )


def readme_rows(report: Report) -> list[tuple[str, str]]:
    cost, opened = slope(report), of(report, "open")
    most = max(opened)
    told = f"{opened[most]['later']['seconds']:.1f} s to the first planned batch, {cost or 0:.1f} bytes of USS a row"
    return [(f"manifest of {most:,} rows, mapped", told)]


def figure(report: Report, plt: Any) -> Any:
    """Memory and time over the number of rows, now and before."""
    figure, axes = plt.subplots(1, 3, figsize=(14, 4.5), layout="constrained")
    for code, colour in (("now", BLUE), ("before", ORANGE)):
        opened = of(report, "open", code)
        if opened:
            axes[0].loglog(
                list(opened), [row["later"]["seconds"] for row in opened.values()], "o-", color=colour, label=code
            )
            uss = [max(row["later"]["uss"], 1e5) / 1e6 for row in opened.values()]
            axes[1].loglog(list(opened), uss, "o-", color=colour, label=code)
        for kind, style in zip(LARGEST, ("o-", "s--", "^:"), strict=True):
            found = of(report, kind, code)
            peaks = [row["peak"] / 1e6 for row in found.values()]
            axes[2].loglog(list(found), peaks, style, color=colour, label=f"{kind}, {code}")
    opened = of(report, "open")
    axes[0].loglog(
        list(opened), [r["first"]["seconds"] for r in opened.values()], "x--", color=BLUE, label="first opening"
    )
    for axis, title in zip(axes, ("opening, s", "USS of the manifest, MB", "importing: peak RSS, MB"), strict=True):
        axis.set(xlabel="rows", title=title)
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[1]:
            axis.legend(fontsize=8)
    return figure


REPORT_PAGE = ReportPage(page, figure, readme_rows)


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(argv)
    return cli.run_benchmark(lambda: measure(args), REPORT_PAGE, args)


if __name__ == "__main__":
    sys.exit(main())
