"""Makes a corpus fit for training: `python -m vatt.data.transcode manifest.csv --out DIR`.

Every clip is encoded anew by a process of its own (encode.py), so that a decoder that crashes or hangs costs its
clip only. What is finished is written down in DIR/finished.jsonl, one line a clip; a resumed run takes from it what is
still there, whole, and made of the same source.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from ...errors import ConfigError, DataError
from ...runtime.cli import exit_code
from ...runtime.files import write_atomically
from ...runtime.lock import add_force_flag, owned
from ..clip import Manifest
from ..manifest import read_manifest, tell_notes, write_manifest
from ..shards.writing import write_shards
from .corpus import jobs_of, new_clips, open_corpus, report_of, take_finished, write_left_out
from .encode import CODECS, Encoding
from .workers import encode_all

CODEC_HELP = "\n".join(f"  {name:6} {codec.about}" for name, codec in CODECS.items())
EPILOG = f"""codecs, and who decodes them where:
{CODEC_HELP}

examples:
  python -m vatt.data.transcode manifest.csv --out small/
  python -m vatt.data.transcode manifest.csv --out small/ --resume
  python -m vatt.data.transcode clips/ --out small/ --size 320 --codec hevc --shards 1000
  python -m vatt.train --data small/manifest.csv        # or small/shards: the folder of tars

written to DIR:
  manifest.csv     the clips that could be read, with their captions, labels and splits
  clips/           of each just its span, at --fps and --size, with mono 48 kHz sound; sounds as .m4a; images as they
                   are, or as smaller JPEG files
  shards/          with --shards: the same clips in tars (KEY.mp4, KEY.json: webdataset's layout); clips/ can then go
  left_out.csv     clips that could not be read, and why
  report.json      seconds, bytes before and after, frames/s of decoding before and after, versions and machine
exit codes: 0 done (clips that could not be read are left out), 1 none is left or files cannot be written, 2 wrong usage
or manifest, 130 interrupted"""


def transcode(args: argparse.Namespace) -> None:
    """Run the whole command. Raises `DataError` if no clip can be read."""
    began = time.monotonic()
    manifest: Manifest = tell_notes(read_manifest(args.manifest, args.columns))
    out = args.out.expanduser().absolute()
    jobs = jobs_of(manifest)
    recipe = Encoding(args.codec, args.size, args.fps, args.gop)
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is no folder; choose another --out")
    with contextlib.ExitStack() as held:
        held.enter_context(owned(out, folder=True, force=args.force))
        corpus, log = open_corpus(out, recipe, args.resume)
        held.enter_context(log)
        take_finished(corpus, jobs, log)
        resumed = len(corpus.done)
        encode_all(corpus, jobs, log, args.workers, args.time_limit, args.memory_limit)
        clips = new_clips(corpus, jobs)
        write_left_out(out / "left_out.csv", corpus, jobs)
        if not clips:
            raise DataError(f"none of {len(jobs)} clips can be read; see {out / 'left_out.csv'}")
        write_manifest(out / "manifest.csv", clips)
        report = report_of(corpus, jobs, resumed, time.monotonic() - began)
        if args.shards:
            report["shards"] = len(write_shards(clips, out / "shards", args.shards))
        write_atomically(out / "report.json", (json.dumps(report, indent=2) + "\n").encode())
    print(summary(report))
    for remark, count in report["remarks"].items():
        print(f"note: {count} clip{'s' if count != 1 else ''}: {remark}")
    if corpus.failed:
        print(f"clips left out, and why: {out / 'left_out.csv'}")
    print(f"done: {out / 'manifest.csv'}: {len(clips)} clips")


def summary(report: dict[str, Any]) -> str:
    size, decode = report["bytes"], report["decode"]
    text = f"{size['before'] / 1e6:.1f} MB in {size['source_files']} files -> {size['after'] / 1e6:.1f} MB"
    if decode["frames"] and decode["frames_per_second_before"]:
        before, after = decode["frames_per_second_before"], decode["frames_per_second_after"]
        text += f"; decoding {before:.0f} -> {after:.0f} frames/s a process"
    return text


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m vatt.data.transcode",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Make a corpus fit for training: small frames, short groups of pictures, mono 48 kHz sound.",
    )
    add = parser.add_argument
    add("manifest", metavar="PATH", help="manifest CSV, folder of clips, or tar shards")
    add(
        "--columns",
        metavar="NAME=COLUMN,...",
        default="",
        help="columns of the manifest that have other names, e.g. caption=title,path=filepath",
    )
    add("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    add("--resume", action="store_true", help="go on with what is in DIR; clips that failed are tried again")
    add_force_flag(parser)
    add("--codec", choices=tuple(CODECS), default="h264", help="of the video, see below (default h264)")
    add("--size", type=int, default=256, metavar="N", help="short side in pixels; never enlarged (default 256)")
    add("--fps", type=float, default=10.0, metavar="R", help="frames a second (default 10, the model's)")
    add(
        "--gop",
        type=int,
        default=10,
        metavar="N",
        help="frames from one key frame to the next: up to N - 1 are decoded before a window (default 10)",
    )
    add("--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="clips at a time (default: cores)")
    add(
        "--time-limit",
        type=float,
        default=600.0,
        metavar="SECONDS",
        help="a clip that takes longer is left out (default 600)",
    )
    add(
        "--memory-limit",
        type=float,
        default=8.0,
        metavar="GB",
        help="a clip that takes more memory is left out; 0: no limit (default 8)",
    )
    add("--shards", type=int, default=0, metavar="N", help="also pack tars of N clips each (default: none)")
    args = parser.parse_args(argv)
    for name, least in (("size", 16), ("gop", 1), ("workers", 1), ("shards", 0)):
        if getattr(args, name) < least:
            parser.error(f"--{name} is at least {least}, got {getattr(args, name)}")
    for name, most in (("fps", 240.0), ("time_limit", 1e6)):
        if not 0.1 <= getattr(args, name) <= most:  # so that NaN is refused
            parser.error(f"--{name.replace('_', '-')} is from 0.1 to {most:g}, got {getattr(args, name):g}")
    if not 0 <= args.memory_limit < float("inf"):
        parser.error(f"--memory-limit is a number of gigabytes, or 0, got {args.memory_limit:g}")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    return exit_code(lambda: transcode(args), "interrupted; finished clips are kept: --resume goes on")


if __name__ == "__main__":
    sys.exit(main())
