"""Archives of 10^4, 10^5 and 10^6 moments: build, add, warm queries and memory, beside features in memory and NumPy.

Rows are embeddings of real moments, and copies of them moved at random. Each contender answers in a process of its own,
and they take turns of 250 queries, so that what else the machine does meets all of them alike.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from harness import cli
from harness import report as harness
from harness.pages import BLUE, GREEN, ORANGE, ReportPage, number, table
from harness.report import Report

import numpy as np
from numpy.typing import NDArray

from vatt.errors import VattError
from vatt.inference.features_file import Features, read_features
from vatt.inference.search.archive import Archive, KnownFile, create_archive, moment_id, open_archive, shown
from vatt.inference.search.index import build_index, rank

NAME = "archive"
SPACE, TOP, MOMENTS = "video_to_text", 10, 600  # of a file
SIZES, QUICK = (10_000, 100_000, 1_000_000), (2_000,)
# Queries of a turn, its first part, which is told apart, and seconds before it. At its beginning the processor's caches
# hold other contenders' data, and a virtual machine may have lent out memory that lay idle for seconds (2 us a page to
# have it again, 0.2 s of a first query); threads of a BLAS wait for the next product on a core that another one needs.
TURN, FIRST, PAUSE = 250, 0.2, 0.1
SPREAD = (0.1, 0.7)  # length of a move, as a share of the vector's
CONTENDERS = ("archive", "features in memory", "numpy")
COLOURS = dict(zip(CONTENDERS, (BLUE, ORANGE, GREEN), strict=True))
AGAINST = ("p50 against the archive's", "memory against the archive's")
EXAMPLES = """examples:
  python -m vatt.embed --model runs/mbs --data clips/ --every 0.25 --out moments.npz
  python bench/archive.py --features moments.npz            about 25 minutes, 3 GB of disk and 5 GB of memory
  python bench/archive.py --features moments.npz --quick    2,000 rows: to see it work

exit codes: 0 done, 1 failed, 2 wrong usage."""


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = cli.make_parser(NAME, "Measure archives in .lance beside features in memory and NumPy.", EXAMPLES)
    parser.add_argument("--features", type=Path, required=True, metavar="FILE", help="real moments, from vatt embed")
    parser.add_argument("--sizes", type=int, nargs="+", metavar="N", help=f"rows (default: {SIZES})")
    parser.add_argument("--queries", type=int, default=100, metavar="N", help="of each size (default 100)")
    cli.add_common_flags(parser)
    return parser.parse_args(argv)


def moved(real: NDArray[np.float32], first: int, count: int, seed: int) -> NDArray[np.float32]:
    """Return rows `first` and following: each real moment in turn, as it is the first time and then moved.

    A move is a random direction of `SPREAD` times the vector's length, drawn evenly for each row.
    """
    numbers = np.arange(first, first + count)
    rows = real[numbers % len(real)]
    rng = np.random.default_rng([seed, first])
    step = rng.standard_normal(rows.shape, np.float32)
    step *= rng.uniform(*SPREAD, (count, 1)) / np.linalg.norm(step, axis=1, keepdims=True)
    step *= np.linalg.norm(rows, axis=1, keepdims=True)
    step[numbers < len(real)] = 0
    return (rows + step).astype(np.float32)


def place(row: int) -> tuple[str, float]:
    """The file and the second of a row."""
    return f"/archive/{row // MOMENTS:06d}.mp4", float(row % MOMENTS)


def build(folder: Path, vectors: NDArray[np.float32]) -> tuple[Archive, dict[str, float], list[str]]:
    """Write an archive of `vectors`; return it, the seconds it took, and what it told of its index."""
    import pyarrow as pa

    width, since = vectors.shape[1], time.perf_counter()
    widths = {"video_to_text": width, "video_to_audio": 512, "audio_embedding": 512}
    record = {"model": "bench", "weights_sha256": "bench", "windows": 1, "every": 1.0, "window": 1.0}
    archive = create_archive(folder / "bench.lance", record, widths)
    schema = archive.table.schema

    def batches() -> Iterator[Any]:
        for first in range(0, len(vectors), 10_000):
            rows = np.arange(first, min(first + 10_000, len(vectors)))
            paths, starts = zip(*(place(int(row)) for row in rows), strict=True)
            values = {
                "id": [moment_id(path, start, start + 1) for path, start in zip(paths, starts, strict=True)],
                "path": list(paths),
                "start": list(starts),
                "end": [start + 1 for start in starts],
                "label": [f"label{row % 50}" for row in rows],
                "shown": [
                    shown({"path": path, "start": start, "end": start + 1, "label": f"label{row % 50}"})
                    for path, start, row in zip(paths, starts, rows, strict=True)
                ],
                SPACE: pa.FixedSizeListArray.from_arrays(pa.array(vectors[rows].ravel()), width),
            }
            columns = [values.get(f.name, pa.nulls(len(rows), f.type)) for f in schema]
            typed = zip(columns, schema, strict=True)
            yield pa.record_batch([pa.array(c, f.type) if isinstance(c, list) else c for c, f in typed], schema=schema)

    archive.table.add(pa.RecordBatchReader.from_batches(schema, batches()), on_bad_vectors="null")
    written = time.perf_counter()
    told = archive.settle()
    return archive, {"write_s": written - since, "index_s": time.perf_counter() - written}, told


def private_bytes() -> int:
    """Memory of this process that no other one shares (USS)."""
    text = Path("/proc/self/smaps_rollup").read_text()
    return 1024 * sum(int(kilobytes) for kilobytes in re.findall(r"^Private_\w+:\s+(\d+) kB", text, re.MULTILINE))


def opened(name: str, folder: Path) -> Callable[[NDArray[np.float32]], list[int]]:
    """Return a function from a query to the ten nearest rows, by one contender."""
    if name == "archive":
        archive = open_archive(folder / "bench.lance")

        def ask(query: NDArray[np.float32]) -> list[int]:
            hits = archive.nearest(SPACE, query, TOP)
            return [int(hit["path"][9:15]) * MOMENTS + int(hit["start"]) for hit in hits]

        return ask
    vectors = np.load(folder / "vectors.npy")
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    if name == "numpy":

        def search(query: NDArray[np.float32]) -> list[int]:
            cosine = vectors @ (query / np.linalg.norm(query))
            nearest = np.argpartition(-cosine, TOP)[:TOP]
            return nearest[np.argsort(-cosine[nearest])].tolist()

        return search
    files = [as_features(vectors)]  # stay in memory, as those of the command at commit 20a74a7 did
    index = build_index(files, {SPACE})

    def rank(query: NDArray[np.float32]) -> list[int]:
        assert files
        return [int(hit["path"][9:15]) * MOMENTS + int(hit["start"]) for hit in index.nearest(SPACE, query, TOP)]

    return rank


def as_features(vectors: NDArray[np.float32]) -> Features:
    """What reading a file of features with these rows gives."""
    count = len(vectors)
    paths, starts = zip(*(place(row) for row in range(count)), strict=True)
    start = np.array(starts)
    arrays: dict[str, NDArray[Any]] = {"path": np.array(paths), "start": start, "end": start + 1, SPACE: vectors}
    arrays |= {"label": np.full(count, ""), "video_clip": np.arange(count), "caption": np.array([], str)}
    return Features(Path("rows"), {**arrays, "text_clip": np.array([], int)}, {"windows": 1})


def answer(name: str, folder: Path, pipe: Any) -> None:
    """A contender's process: says when it is ready, answers queries that come by `pipe` with rows and seconds, and None
    with its memory."""
    before = private_bytes()
    ask = opened(name, folder)
    pipe.send(None)
    while (query := pipe.recv()) is not None:
        since = time.perf_counter()
        rows = ask(query)
        pipe.send((rows, time.perf_counter() - since))
    pipe.send(private_bytes() - before)


def contest(folder: Path, queries: NDArray[np.float32]) -> list[dict[str, Any]]:
    """Let the contenders answer in turns; return a row for each."""
    context = multiprocessing.get_context("spawn")
    pipes = {}
    for name in CONTENDERS:
        pipes[name], theirs = context.Pipe()
        context.Process(target=answer, args=(name, folder, theirs), daemon=True).start()
    for pipe in pipes.values():
        pipe.recv()  # nobody answers while another one still reads its data
    found: dict[str, list[tuple[list[int], float]]] = {name: [] for name in CONTENDERS}
    for first in range(0, len(queries), TURN):
        for turn in range(len(CONTENDERS)):
            name = CONTENDERS[(first // TURN + turn) % len(CONTENDERS)]
            time.sleep(PAUSE)
            for query in queries[first : first + TURN]:
                pipes[name].send(query)
                found[name].append(pipes[name].recv())
    rows = []
    first = math.ceil(FIRST * min(TURN, len(queries)))
    for name, answers in found.items():
        pipes[name].send(None)
        warm = [seconds for number, (_, seconds) in enumerate(answers) if number % TURN >= first]
        cold = [seconds for number, (_, seconds) in enumerate(answers) if number % TURN < first]
        recall = [len(set(a[0]) & set(b[0])) / TOP for a, b in zip(answers, found["numpy"], strict=True)]
        p50, p95 = (float(np.quantile(warm, share)) for share in (0.5, 0.95))
        row = {"contender": name, "p50": p50, "p95": p95, "recall": float(np.mean(recall))}
        row["p50_first"] = float(np.median(cold))
        rows.append({**row, "uss_bytes": pipes[name].recv()})
    return rows


def neighbours(vectors: NDArray[np.float32], sample: NDArray[np.int64]) -> list[float]:
    """Return the deciles 1, 5 and 9 of the cosine distance to the nearest other row, over `sample`."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosine = unit[sample] @ unit.T
    cosine[np.arange(len(sample)), sample] = -1
    return [float(x) for x in np.quantile(1 - cosine.max(axis=1), (0.1, 0.5, 0.9))]


def measure(args: argparse.Namespace) -> Path:
    features = read_features(args.features, (SPACE, "path", "video_clip"))
    real = features.arrays[SPACE]
    sizes = args.sizes or (QUICK if args.quick else SIZES)
    report, path = harness.open_report(
        NAME,
        "Archives of moments",
        settings={"sizes": sizes, "queries": args.queries, "real_moments": len(real), "spread": SPREAD}
        | {"turn": TURN, "first": FIRST},
        method={
            "rows": f"{len(real)} embeddings of real moments ({SPACE}), and copies moved at random by {SPREAD[0]} to "
            f"{SPREAD[1]} of their length",
            "queries": "further copies, moved with another seed",
        },
        out=cli.output_folder(args),
        resume=args.resume,
        quick=args.quick,
    )
    done = {row["rows"] for row in report.rows}
    for size in (size for size in sizes if size not in done):
        with tempfile.TemporaryDirectory(dir=path.parent if path.parent.is_dir() else None) as name:
            report.rows += measure_size(Path(name), real, size, args.queries)
        report.save(path)
    report.finished = True
    report.save(path)
    return path


def measure_size(folder: Path, real: NDArray[np.float32], size: int, count: int) -> list[dict[str, Any]]:
    """Build an archive of `size` rows, ask all contenders, add to it; return a row for each contender."""
    vectors = np.concatenate([moved(real, n, min(50_000, size - n), 1) for n in range(0, size, 50_000)])
    np.save(folder / "vectors.npy", vectors)
    rng = np.random.default_rng(3)
    sample = rng.choice(size, min(200, size), replace=False)
    near = {"real": neighbours(real, np.arange(len(real))), "rows": neighbours(vectors, sample)}
    archive, seconds, told = build(folder, vectors)
    del vectors
    queries = moved(real, len(real) * 7, count, 2)
    os.sync()  # what was written takes no time of those who answer
    rows = contest(folder, queries)
    seconds["page_s"] = page_seconds(archive, queries)
    files = {"/archive/added.mp4": KnownFile(1, 1, "", "")}
    extra = moved(real, size, 1000, 4)
    more = [{"path": "/archive/added.mp4", "start": float(i), "end": i + 1.0, SPACE: v} for i, v in enumerate(extra)]
    since = time.perf_counter()
    archive.put(more, files)
    seconds["add_1000_s"] = time.perf_counter() - since
    disk = sum(file.stat().st_size for file in (folder / "bench.lance").rglob("*") if file.is_file())
    common = {"rows": size, **seconds, "disk_bytes": disk, "nearest": near}
    common["index"] = [line.rpartition("bench.lance: ")[2] for line in told]
    return [{**row, **common} for row in rows]


def page_seconds(archive: Archive, queries: NDArray[np.float32]) -> float:
    """The median time of what a page of twelve hits asks of an archive: them, and of each whether its file is in it."""
    seconds = []
    for query in queries:
        since = time.perf_counter()
        hits = rank([archive], SPACE, query, 12)
        assert all(archive.holds(hit["path"]) for hit in hits)
        seconds.append(time.perf_counter() - since)
    return float(np.median(seconds))


def ratio(report: Report, size: int, other: str, key: str) -> float:
    """How many times as much `other` takes as the archive."""
    rows = {row["contender"]: row for row in report.rows if row["rows"] == size}
    return float(rows[other][key] / rows["archive"][key])


def page(report: Report) -> str:
    columns = ["rows", "by", "p50, ms", "p95, ms", "first ones, ms", "recall@10", "memory (USS), MB", *AGAINST]
    cells = [
        [
            f"{row['rows']:,}",
            row["contender"],
            number(1000 * row["p50"], 2),
            number(1000 * row["p95"], 2),
            number(1000 * row["p50_first"], 2),
            f"{row['recall']:.3f}",
            number(row["uss_bytes"] / 1e6, 0),
            *(f"{ratio(report, row['rows'], row['contender'], key):.1f}x" for key in ("p50", "uss_bytes")),
        ]
        for row in report.rows
    ]
    sizes = {row["rows"]: row for row in report.rows}
    built = [
        [
            f"{size:,}",
            number(row["write_s"], 1),
            number(row["index_s"], 1),
            number(row["add_1000_s"], 2),
            number(1000 * row["page_s"], 1),
            number(row["disk_bytes"] / 1e6, 0),
            " / ".join(f"{x:.3f}" for x in row["nearest"]["rows"]),
        ]
        for size, row in sizes.items()
    ]
    real = " / ".join(f"{x:.3f}" for x in next(iter(sizes.values()))["nearest"]["real"])
    told = [f"- {line}" for row in sizes.values() for line in row["index"]]
    return "\n\n".join(
        [
            f"Rows: {report.method['rows']}. Queries: {report.method['queries']}. Contenders take turns of "
            f"{report.settings['turn']} queries, each in its own process. The first {report.settings['first']:.0%} of "
            "a turn find caches that others have filled and memory that lay idle: their median stands apart. "
            "Features in memory are what vatt search of commit 20a74a7 made of .npz files and ranked; NumPy "
            "multiplies and partitions the same matrix. Memory is what the process alone holds after all queries, "
            "less what it held before it opened anything; code of LanceDB is in it as far as it is written to.",
            table(columns, cells, left=2),
            "## Building",
            table(
                ["rows", "write, s", "index, s", "add 1,000 rows, s", "page, ms", "on the disk, MB", "nearest"],
                built,
            ),
            "A page of the search server asks for twelve hits, and whether their files are in the archive. Nearest: "
            "distances to the nearest other row, 1 - cosine, at deciles 1, 5 and 9; among the real moments alone "
            f"{real}.",
            "\n".join(told),
        ]
    )


def figure(report: Report, plt: Any) -> Any:
    """Time of a query and memory against the number of rows."""
    drawn, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for name in CONTENDERS:
        rows = [row for row in report.rows if row["contender"] == name]
        sizes = [row["rows"] for row in rows]
        left.plot(sizes, [1000 * row["p50"] for row in rows], "o-", color=COLOURS[name], label=name)
        left.fill_between(
            sizes, [1000 * r["p50"] for r in rows], [1000 * r["p95"] for r in rows], color=COLOURS[name], alpha=0.15
        )
        right.plot(sizes, [row["uss_bytes"] / 1e6 for row in rows], "o-", color=COLOURS[name], label=name)
    left.set(title="A warm query (median to p95)", ylabel="milliseconds")
    right.set(title="Memory of the process (USS)", ylabel="MB")
    for axes in (left, right):
        axes.set(xscale="log", yscale="log", xlabel="moments")
        axes.grid(alpha=0.3)
    drawn.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return drawn


def readme_rows(report: Report) -> list[tuple[str, str]]:
    largest = max(row["rows"] for row in report.rows)
    row = next(row for row in report.rows if row["rows"] == largest and row["contender"] == "archive")
    text = f"{1000 * row['p50']:.1f} ms at recall {row['recall']:.3f}"
    faster = ratio(report, largest, "features in memory", "p50")
    return [(f"search among {largest:,} moments in an archive", f"{text}, {faster:.0f}x as fast as in memory")]


REPORT_PAGE = ReportPage(page, figure, readme_rows)


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(None if argv is None else list(argv))
    try:
        return cli.run_benchmark(lambda: measure(args), REPORT_PAGE, args)
    except VattError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
