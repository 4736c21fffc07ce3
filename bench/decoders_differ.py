"""Where decoders differ on valid clips: frames that are not those which a player shows, by library and kind of file."""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from importlib import metadata
from pathlib import Path
from typing import Any

from harness import cli
from harness import report as harness
from harness.pages import BLUE, ReportPage, table
from harness.report import Report

import av
import numpy as np
from workloads.video_decoders import DECODERS, Unavailable

NAME = "decoders_differ"
LIBRARIES = {"pyav": "av", "torchcodec": "torchcodec", "decord": "decord", "dali cpu": "nvidia-dali-cuda120"}
STARTS, FRAMES, FPS, BITS = (0.0, 1.96, 3.5, 4.9), 8, 10.0, 8
# Name of the file, encoder, its options, B-frames; the first frame's time in frames.
FILES: tuple[tuple[str, str, dict[str, str], int, int], ...] = (
    ("H.264.mp4", "libx264", {"crf": "18"}, 3, 0),
    ("H.264, late start.mp4", "libx264", {"crf": "18"}, 3, 50),
    ("H.264, open groups.mkv", "libx264", {"crf": "18", "x264-params": "open-gop=1"}, 3, 0),
    ("H.264.ts", "libx264", {"crf": "18"}, 3, 0),
    ("H.264.avi", "libx264", {"crf": "18"}, 3, 0),
    ("MPEG-4 with B-frames.avi", "mpeg4", {"qmin": "3", "qmax": "3"}, 2, 0),
    ("H.264, raw.h264", "libx264", {"crf": "18"}, 2, 0),
    ("VP9.webm", "libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"}, 0, 0),
    ("MJPEG.avi", "mjpeg", {"qmin": "3"}, 0, 0),
)
EXAMPLES = """examples:
  python bench/decoders_differ.py                   a minute; writes .json, .md and .png of the report

exit codes: 0 done, 1 failed, 2 wrong usage."""


def numbered(number: int) -> np.ndarray:
    row = np.repeat(np.array([number >> bit & 1 for bit in range(BITS)], np.uint8) * 255, 16)
    return np.broadcast_to(row[None, :, None], (96, 16 * BITS, 3)).copy()


def write(path: Path, codec: str, options: dict[str, str], b_frames: int, first: int) -> Path:
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height = 16 * BITS, 96
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.max_b_frames, stream.codec_context.gop_size = b_frames, 50
        for i in range(200):
            frame = av.VideoFrame.from_ndarray(numbered(i), "rgb24")
            frame.pts, frame.time_base = i + first, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def measured(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for library, package in LIBRARIES.items():
        try:
            decode, version = DECODERS[library](), metadata.version(package)
        except (Unavailable, metadata.PackageNotFoundError) as error:
            rows.append({"library": library, "version": "", "file": "", "wrong": None, "note": str(error)})
            continue
        for name, codec, options, b_frames, first in FILES:
            path, note = write(folder / name, codec, options, b_frames, first), ""
            wrong: int | None = 0
            for start in STARTS:
                try:
                    video = decode(path, start, FPS, FRAMES)
                except Unavailable as error:
                    wrong, note = None, re.sub(r"\S*/|\[[^]]*\] ?", "", str(error))
                    break
                bits = video[:, 48, 8::16, 0][:, :BITS] > 127
                shown = (bits << np.arange(BITS)).sum(1)
                right = np.floor((start + np.arange(FRAMES) / FPS) * 25 + 1e-6).astype(int)
                wrong = (wrong or 0) + int((shown != right).sum())
            rows.append({"library": library, "version": version, "file": name, "wrong": wrong, "note": note})
    return rows


def page(report: Report) -> str:
    files = [file[0] for file in FILES]
    cells, notes = [], []
    for library in LIBRARIES:
        rows = {row["file"]: row for row in report.rows if row["library"] == library}
        if "" in rows:
            notes.append(f"{library} did not run: {rows['']['note']}.")
            continue
        version = next(iter(rows.values()))["version"]
        cells.append(
            [f"{library} {version}", *("-" if rows[f]["wrong"] is None else str(rows[f]["wrong"]) for f in files)]
        )
        notes += [f"{library}, {f}: {rows[f]['note']}." for f in files if rows[f]["note"]]
    return "\n\n".join(
        [
            f"Frames of {len(STARTS) * FRAMES} that are not those which the file's times show then, in clips that are "
            'valid; "-": it does not decode the file. PyAV is read through this project\'s decoding.',
            table(["library", *files], cells),
            *notes,
        ]
    )


def readme_rows(report: Report) -> list[tuple[str, str]]:
    return []


def figure(report: Report, plt: Any) -> Any:
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    names = [library for library in LIBRARIES if any(r["library"] == library and r["file"] for r in report.rows)]
    axes.bar(names, [sum(r["wrong"] or 0 for r in report.rows if r["library"] == name) for name in names], color=BLUE)
    axes.set(ylabel="wrong frames of all files")
    return figure


REPORT_PAGE = ReportPage(page, figure, readme_rows)


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = cli.make_parser(
        NAME,
        "Count the frames that decoders give in place of those which a player shows.",
        EXAMPLES,
    )
    cli.add_common_flags(parser)
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> Path:
    """Measure what is missing of the report, and return the path of its JSON."""
    report, path = harness.open_report(
        NAME,
        "Where decoders differ on valid clips",
        settings={"starts": list(STARTS), "frames": FRAMES, "fps": FPS},
        method={"count": "frames that carry their number, against the times written into the file"},
        out=cli.output_folder(args),
        resume=args.resume,
        quick=args.quick,
    )
    with tempfile.TemporaryDirectory() as folder:
        report.rows = measured(Path(folder))
    report.finished = True
    report.save(path)
    return path


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(None if argv is None else list(argv))
    return cli.run_benchmark(lambda: run(args), REPORT_PAGE, args)


if __name__ == "__main__":
    sys.exit(main())
