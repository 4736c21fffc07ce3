"""Decoding: how fast clips are opened, sought and turned into frames, ours beside others; and whether training waits.

Every decoder gets the same clips on one thread, in turn. A decoder whose frames are not those of ours is named and not
timed. The second part feeds a training step from the loader and tells the share of its time that the step waits.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from harness import cli, timing
from harness import report as harness
from harness.memory import peak_memory
from harness.pages import ReportPage
from harness.report import Report, ReportError

import numpy as np
import torch
from pages.decoding import figure, page, readme_rows
from workloads.video_decoders import (
    DECODERS,
    FPS,
    FRAMES,
    OURS,
    RATE,
    SEQUENCE,
    Decoder,
    OtherCheckout,
    Unavailable,
    long_clip,
    made_clips,
    once_through,
)

from vatt.config.presets import PRESETS, preset
from vatt.data.clip import Clip, Manifest
from vatt.data.datasets.training import ClipDataset
from vatt.data.decoding.container import BadClip, opened, probe
from vatt.data.decoding.grid import Span
from vatt.data.decoding.h264 import PictureOrder, Unusual
from vatt.data.decoding.span import decode_span, decode_spans
from vatt.data.decoding.video import read_spans
from vatt.data.loader import make_loader
from vatt.data.manifest import read_manifest
from vatt.data.tokenizer import Tokenizer
from vatt.model.losses import pretraining_loss
from vatt.model.vatt import VATT
from vatt.ops import choose
from vatt.runtime.progress import progress_bar
from vatt.training.optimizers import Adam

NAME = "decode"
SIDE = 336  # pixels of the shorter side, as training reads frames
COUNTED = 300  # packets that tell whether a clip has pictures that nothing builds on
SAME = 3.0  # mean difference of two decoders' frames, of 255, that is still the colour conversion
EXAMPLES = """examples:
  python bench/decode.py                                  three clips made here: H.264, VP9, MJPEG
  python bench/decode.py --data clips.csv --rounds 10     your clips, those that our decoder takes
  python bench/decode.py --workers 0 1 2 4 --preset sss   the loader before another model's step
  python bench/decode.py --beside ../old                  beside the decoder of another checkout of this project
  python bench/decode.py --resume                         go on after a crash
  python bench/decode.py --quick                          a minute, to see it work

exit codes: 0 done, 1 failed or nothing to compare, 2 wrong usage."""


def whole_clips(clips: Manifest | Sequence[Path], most: int) -> list[Path]:
    """Return the first `most` clips long enough for a window that our decoder takes."""
    long_enough = []
    for clip in clips:
        path = clip.path if isinstance(clip, Clip) else clip
        try:
            if probe(path).duration >= FRAMES / FPS + 1 and path not in long_enough:
                for job in jobs(path).values():
                    DECODERS[OURS]()(path, *job)
                long_enough.append(path)
        except BadClip:
            continue
        if len(long_enough) == most:
            break
    if not long_enough:
        raise ReportError(f"no clip of {FRAMES / FPS + 1:g} s or more decodes; --data names others")
    return long_enough


def jobs(path: Path) -> dict[str, tuple[float, float, int]]:
    """Return (start, fps, frames) of what is measured on a clip.

    Times lie in the middle of frames: on their edges, decoders may round to either side.
    """
    info = probe(path)
    middle = (math.floor((info.duration - FRAMES / FPS) / 2 * info.fps) + 0.5) / info.fps
    frames = min(SEQUENCE, int(info.duration * info.fps) - 1)
    return {"window": (middle, FPS, FRAMES), "sequence": (0.5 / info.fps, info.fps, frames)}


def difference(name: str, path: Path) -> float:
    """Return mean difference of a decoder's frames to ours, of 255; the larger one of the window and the sequence."""
    worst = 0.0
    for job in jobs(path).values():
        ours, theirs = DECODERS[OURS]()(path, *job), DECODERS[name]()(path, *job)
        if ours.shape != theirs.shape:
            raise Unavailable(f"gives {theirs.shape}, ours is {ours.shape}")
        worst = max(worst, float(np.abs(ours.astype(np.int16) - theirs).mean()))
    return worst


def windows_of(name: str, paths: list[Path]) -> Callable[[], object]:
    """Return a window of each clip, for `harness.peak_memory`."""
    decode: Decoder = DECODERS[name]()
    return lambda: [len(decode(path, *jobs(path)["window"])) for path in paths]


def measure_decoders(args: argparse.Namespace, paths: list[Path], report: Report, path: Path) -> None:
    """Measure which decoders can take part, then memory, then time; saved after every one of them."""
    if not report.gate["checks"]:
        for name in DECODERS:
            report.gate["checks"].append(check(name, paths))
            report.save(path)
    report.gate["green"] = True
    usable = {c["decoder"]: [p for p in paths if p.name in c["clips"]] for c in report.gate["checks"] if c["clips"]}
    rows = {(row["decoder"], row["clip"], row["job"]): row for row in report.rows if row["kind"] == "decoder"}
    for name, clips in usable.items():
        for clip in clips:
            for job, (_, _, frames) in jobs(clip).items():
                if (name, clip.name, job) not in rows:
                    row = {
                        "kind": "decoder",
                        "decoder": name,
                        "clip": clip.name,
                        "job": job,
                        "frames": frames,
                        "seconds": [],
                    }
                    rows[name, clip.name, job] = row
                    report.rows.append(row)
    done = sum(min(len(row["seconds"]), args.rounds) for row in rows.values())
    with progress_bar(len(rows) * args.rounds + len(usable), NAME, "measurement", done) as bar:
        for name, clips in usable.items():
            if not any(row["kind"] == "memory" and row["decoder"] == name for row in report.rows):
                used = peak_memory(windows_of, name, clips)
                report.rows.append({"kind": "memory", "decoder": name, "clips": len(clips), **used})
                report.save(path)
            bar.update()
        for clip in paths:
            for job, arguments in jobs(clip).items():
                steps = {name: partial(DECODERS[name](), clip, *arguments) for name in usable if clip in usable[name]}
                so_far = {name: len(rows[name, clip.name, job]["seconds"]) for name in steps}
                for name, seconds in timing.time_interleaved(steps, args.rounds, done=so_far):
                    if seconds is not None:
                        row = rows[name, clip.name, job]
                        row["seconds"].append(seconds)
                        row.update(timing.quantiles(row["seconds"]))
                        bar.update()
                report.save(path)


class _Counted(Span):
    """A span whose frames are decoded and not converted."""

    def show(self, frame: Any, count: int, convert: Any) -> None:
        self.count = max(self.count, count)


def moments(path: Path, every: float) -> None:
    """Decode a window with its sound every so many seconds of a whole clip."""
    count = max(1, math.ceil((probe(path).duration - 0.1) / every))
    spans = [(i * every, i * every + FRAMES / FPS) for i in range(count)]
    for span in decode_spans(path, spans, fps=FPS, frames=FRAMES, rate=RATE, short_side=SIDE):
        if isinstance(span, BadClip):
            raise ReportError(f"{path}: {span.reason}")


def unneeded(path: Path) -> float:
    """The share of a clip's first packets of video whose pictures no other one builds on, as our decoder tells."""
    with opened(path, 30.0, ("video",)) as reader:
        stream = reader.video
        assert stream is not None
        if stream.codec_context.name != "h264":
            return 0.0
        try:
            order = PictureOrder(stream.codec_context.extradata)
        except Unusual:
            return 0.0
        said = [order.follow(packet) for packet in islice(reader.packets(stream), COUNTED)]
    return sum(said) / len(said) if said and order.usual else 0.0


def stages(path: Path, other: OtherCheckout | None) -> dict[str, Callable[[], object]]:
    """What a window costs up to each stage; the overlapping windows of a clip beside those that follow each other."""
    job = jobs(path)["window"]
    start, fps, frames = job

    def open_() -> None:
        with opened(path, 30.0, ("video",)):
            pass

    def decode() -> None:
        with opened(path, 30.0, ("video",)) as reader:
            next(read_spans(reader, [_Counted(start, fps, frames)], None))

    steps: dict[str, Callable[[], object]] = {
        "open": open_,
        "decode": decode,
        "window": lambda: decode_span(path, start=start, fps=fps, frames=frames, rate=RATE, read=("video",)),
        "through": lambda: moments(path, FRAMES / FPS),
        "every second": lambda: moments(path, 1.0),
    }
    return steps if other is None else {**steps, "other": lambda: other(path, *job)}


def measure_stages(args: argparse.Namespace, paths: list[Path], report: Report, path: Path) -> None:
    """A row for each clip: the seconds of every stage, in turn; whether the other checkout's frames are the same."""
    other = OtherCheckout(args.beside) if args.beside else None
    for clip in paths:
        if any(row["kind"] == "stages" and row["clip"] == clip.name for row in report.rows):
            continue
        steps = stages(clip, other)
        row: dict[str, Any] = {"kind": "stages", "clip": clip.name, "seconds": {name: [] for name in steps}}
        if other is not None:
            job = jobs(clip)["window"]
            ours: Any = DECODERS[OURS]()(clip, *job)
            row["unneeded"] = unneeded(clip)
            row["same"] = hashlib.sha256(ours).hexdigest() == other(clip, *job, digest=True)
        for name, seconds in timing.time_interleaved(steps, args.rounds):
            if seconds is not None:
                row["seconds"][name].append(seconds)
        report.rows.append(row)
        report.save(path)
    if other is not None:
        other.close()


def measure_long(args: argparse.Namespace, folder: Path, report: Report, path: Path) -> None:
    """A row: seconds of all frames of a long clip decoded by PyAV alone, of windows that follow each other, and of one
    every second, in turn.
    """
    if any(row["kind"] == "long" for row in report.rows):
        return
    clip = long_clip(folder, args.minutes)
    steps: dict[str, Callable[[], object]] = {
        "frames alone": lambda: once_through(clip),
        "through": lambda: moments(clip, FRAMES / FPS),
        "every second": lambda: moments(clip, 1.0),
    }
    row: dict[str, Any] = {"kind": "long", "minutes": args.minutes, "seconds": {name: [] for name in steps}}
    for name, seconds in timing.time_interleaved(steps, min(args.rounds, 3), warmup=0):
        if seconds is not None:
            row["seconds"][name].append(seconds)
    report.rows.append(row)
    report.save(path)


def check(name: str, paths: list[Path]) -> dict[str, Any]:
    """Return whether a decoder is there, and the clips on which its frames are ours."""
    clips, worst, refused = [], 0.0, []
    for path in paths:
        try:
            # The training path scales and is not compared: it is ours by construction.
            far = 0.0 if name.startswith(OURS) else difference(name, path)
        except Unavailable as error:
            refused.append(f"{path.name}: {error}")
            continue
        if far > SAME:
            refused.append(f"{path.name}: other frames than ours, {far:.1f} of 255 away")
            continue
        worst = max(worst, far)
        clips.append(path.name)
    try:
        DECODERS[name]()
    except Unavailable as error:
        refused = [f"not here: {error}"]
    return {"decoder": name, "clips": clips, "worst": worst, "refused": refused, "green": True}


def measure_loader(args: argparse.Namespace, paths: list[Path], report: Report, path: Path) -> None:
    """Measure a row for each number of workers: the seconds of every step and how long each of them waited."""
    config = preset(args.preset)
    clips = Manifest(
        tuple(Clip(i, p, p.name, captions=(f"clip {i}",)) for i, p in enumerate(paths * args.batch)),
        paths[0].parent,
        (),
    )
    words = Tokenizer.build(["clip"], config.model.text.vocabulary)
    for workers in args.workers:
        if any(row["kind"] == "loader" and row["workers"] == workers for row in report.rows):
            continue
        torch.manual_seed(1)
        ops = choose(True, "cpu")
        model = VATT(config.model, ops).train()
        optimizer = Adam(model.parameters(), config.optim)
        data = replace(config.data, batch_size=args.batch, workers=workers, cache_gb=0.0)
        dataset = ClipDataset(clips, data, config.model, words, 1)
        row: dict[str, Any] = {
            "kind": "loader",
            "workers": workers,
            "step_seconds": [],
            "wait_seconds": [],
            "build_seconds": [],
            "decode_seconds": [],
            "bad": 0,
        }
        batches = make_loader(dataset, 0, args.steps + 1, workers, data.prefetch)
        with progress_bar(args.steps + 1, f"{workers} workers", "step") as bar:
            for step in range(args.steps + 1):
                tick = time.perf_counter()
                batch = next(batches)
                waited = time.perf_counter() - tick
                optimizer.zero_grad(set_to_none=True)
                embeddings = model(batch.video, batch.audio, batch.text, seed=step)
                losses = pretraining_loss(
                    embeddings, batch.audio_mask, batch.text_mask, config.loss, ops, video_mask=batch.video_mask
                )
                losses.total.backward()
                optimizer.step()
                bar.update()
                if step:  # the first one waits for the workers to start
                    row["step_seconds"].append(time.perf_counter() - tick)
                    row["wait_seconds"].append(waited)
                    row["build_seconds"].append(batch.seconds)
                    row["decode_seconds"].append(batch.decode_seconds)
                    row["bad"] += len(batch.bad)
        batches.close()
        row["wait_share"] = sum(row["wait_seconds"]) / sum(row["step_seconds"])
        row["clips_per_second"] = args.batch * args.steps / sum(row["step_seconds"])
        report.rows.append(row)
        report.save(path)


REPORT_PAGE = ReportPage(page, figure, readme_rows)


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = cli.make_parser(
        "decode",
        "Time our decoder beside torchcodec, decord and DALI, and the loader before a training step.",
        EXAMPLES,
    )
    add = parser.add_argument
    add("--data", metavar="PATH", help="manifest CSV or folder of clips (default: three clips that are made)")
    add("--most", type=int, metavar="N", help="clips to measure (default 24; with --quick 3)")
    add("--rounds", type=int, metavar="N", help="timed rounds of each (default 7; with --quick 2)")
    add("--beside", type=Path, metavar="FOLDER", help="another checkout of this project, to decode the same beside")
    add(
        "--preset",
        default="tiny",
        choices=sorted(PRESETS),
        metavar="NAME",
        help="whose training step the loader feeds: %(choices)s (default tiny)",
    )
    add("--minutes", type=float, metavar="N", help="of a made 720p clip cut into moments (default 1; --quick 0.1)")
    add("--batch", type=int, default=8, metavar="N", help="clips a step (default 8)")
    add("--steps", type=int, metavar="N", help="timed steps (default 20; with --quick 3)")
    add("--workers", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="loader processes (default 0 1 2)")
    cli.add_common_flags(parser)
    args = parser.parse_args(argv)
    args.most = args.most or (3 if args.quick else 24)
    args.rounds = args.rounds or (2 if args.quick else 7)
    args.steps = args.steps or (3 if args.quick else 20)
    args.minutes = args.minutes or (0.1 if args.quick else 1.0)
    if min(args.most, args.rounds, args.batch, args.steps) < 1 or min(args.workers) < 0 or args.minutes <= 0:
        parser.error("--most, --rounds, --batch and --steps are at least 1, --workers at least 0, --minutes above 0")
    return args


def run(args: argparse.Namespace) -> Path:
    """Measure what is missing of the report, and return the path of its JSON."""
    with tempfile.TemporaryDirectory() as folder:
        clips = read_manifest(args.data) if args.data else made_clips(Path(folder))
        paths = whole_clips(clips, args.most)
        settings = {
            "data": str(args.data or "made"),
            "beside": args.beside.resolve().name if args.beside else "",
            "clips": [path.name for path in paths],
            "frames": FRAMES,
            "fps": FPS,
            "preset": args.preset,
            "batch": args.batch,
            "steps": args.steps,
            "workers": args.workers,
            "minutes": args.minutes,
        }
        method = {
            "timing": f"decoders take turns on each clip, every second round backwards; 1 warm-up call each, "
            f"{args.rounds} rounds, time.perf_counter; sums of medians over clips",
            "memory": "a window of every clip in a fresh process: VmHWM less what it held after its imports",
            "files": "in the page cache after the warm-up: disks are not measured",
        }
        title = f"Decoding {len(paths)} clips on one thread, and the loader before a training step"
        out = cli.output_folder(args)
        report, path = harness.open_report(
            NAME, title, settings=settings, method=method, out=out, resume=args.resume, quick=args.quick
        )
        measure_decoders(args, paths, report, path)
        measure_stages(args, paths, report, path)
        measure_long(args, Path(folder), report, path)
        measure_loader(args, paths, report, path)
    report.finished = True
    report.save(path)
    return path


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(None if argv is None else list(argv))
    return cli.run_benchmark(lambda: run(args), REPORT_PAGE, args)


if __name__ == "__main__":
    sys.exit(main())
