"""Makes a corpus fit for training: `python -m vatt.data.transcode manifest.csv --out DIR`.

Every clip is encoded anew by a process of its own (vatt.data.encode), so that a decoder that crashes or hangs costs its
clip only. What is finished is written down in DIR/finished.jsonl, one line a clip; a resumed run takes from it what is
still there, whole, and made of the same source.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import hashlib
import io
import json
import multiprocessing
import os
import re
import signal
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from multiprocessing import connection
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from vatt.config import ConfigError
from vatt.data.encode import CODECS, Encoded, Recipe, encode_clip
from vatt.data.limits import memory_limit
from vatt.data.manifest import CAPTION_SEPARATOR, Clip, Manifest, ManifestError, read_manifest, write_manifest
from vatt.data.reader import BadClip
from vatt.data.shards import tar_of, write_shards
from vatt.files import WriteError, write_atomically, writing
from vatt.progress import progress_bar
from vatt.runtime.forms import printable
from vatt.runtime.lock import add_force_flag, owned

FORMAT = 1  # raise it with every change of what is written of the same clip and recipe
GRACE = 2.0  # seconds: processes keep to the limit themselves, and say so, unless a decoder hangs
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


@dataclass(frozen=True)
class Job:
    """One file to write: `key` below clips/, without suffix. Rows of the same span of the same file share it."""

    key: str
    clip: Clip

    def source(self) -> tuple[int, int]:
        """Bytes and modification time (ns) of the file it is made of; zeros where there is none."""
        try:
            status = os.stat(tar_of(self.clip.path) or self.clip.path)
        except (OSError, ValueError):
            return 0, 0
        return status.st_size, status.st_mtime_ns


@dataclass
class Corpus:
    """Where a run writes, and what it has so far: `done` and `failed` (reasons) by key."""

    out: Path
    recipe: Recipe
    done: dict[str, Encoded] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def path(self, key: str) -> Path:
        return (self.out / "clips" / key).with_name(self.done[key].name)

    @property
    def log(self) -> Path:
        return self.out / "finished.jsonl"


def jobs_of(clips: Sequence[Clip]) -> list[Job]:
    """One job a row. Names tell the source and do not change when rows are added to the manifest or moved in it."""
    jobs = []
    for clip in clips:
        said = f"{clip.path}\0{clip.start!r}\0{clip.end!r}".encode(errors="surrogateescape")
        digest = hashlib.sha256(said).hexdigest()[:16]
        stem = re.sub(r"[^A-Za-z0-9_-]+", "_", clip.path.stem)[:60]
        jobs.append(Job(f"{digest[:2]}/{stem}-{digest}", clip))
    return jobs


def open_corpus(out: Path, recipe: Recipe, resume: bool) -> tuple[Corpus, IO[str]]:
    """The folder and its log; the folder is this process's own. Raises `ConfigError` rather than overwrite or mix."""
    corpus = Corpus(out, recipe)
    settings = out / "settings.json"
    stamp = {"format": FORMAT, **asdict(recipe)}
    if any(not file.name.startswith(".") for file in out.iterdir()):
        if not resume:
            raise ConfigError(f"{out} exists; go on with --resume, delete it or choose another --out")
        try:
            begun = json.loads(settings.read_text())
        except (OSError, ValueError) as error:
            raise ConfigError(f"{settings}: cannot be read ({error}); {out} was not begun by this command") from error
        if begun != stamp:
            raise ConfigError(f"{out} was begun with {begun}, not {stamp}; repeat those, or choose another --out")
    (out / "clips").mkdir(parents=True, exist_ok=True)
    log = open(corpus.log, "a+", encoding="utf-8")  # noqa: SIM115 (kept open)
    write_atomically(settings, (json.dumps(stamp) + "\n").encode())
    for torn in (out / "clips").glob("*/.*.tmp"):  # of processes that were killed
        torn.unlink(missing_ok=True)
    return corpus, log


def take_finished(corpus: Corpus, jobs: Sequence[Job], log: IO[str]) -> None:
    """Takes from the log what is still there in full, of a source that did not change since."""
    wanted = {job.key: job for job in jobs}
    log.seek(0)
    lines = log.read().split("\n")
    if lines[-1]:  # cut off by a crash: the next line must not continue it
        log.write("\n")
    for line in lines:
        try:
            said = json.loads(line)
            key, source, encoded = said["key"], tuple(said["source"]), Encoded(**said["encoded"])
        except (ValueError, KeyError, TypeError):
            continue
        job = wanted.get(key)
        if job is None or source != job.source():
            continue
        file = (corpus.out / "clips" / key).with_name(encoded.name)
        if file.is_file() and file.stat().st_size == encoded.bytes:
            corpus.done[key] = encoded


@dataclass
class _Running:
    job: Job
    process: Any  # of a forkserver context, which has a class of its own
    source: tuple[int, int]
    since: float


def encode_all(corpus: Corpus, jobs: Sequence[Job], log: IO[str], workers: int, time_limit: float,
               memory: float) -> None:  # fmt: skip
    """Encodes what is not done yet, `workers` clips at a time, each in `time_limit` seconds and `memory` gigabytes.

    Raises OSError when files cannot be written.
    """
    distinct = {job.key: job for job in jobs}
    waiting = deque(job for key, job in distinct.items() if key not in corpus.done)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["vatt.data.encode"])
    running: dict[connection.Connection, _Running] = {}
    with progress_bar(len(distinct), "transcoding", "clip", len(corpus.done)) as bar:
        try:
            while waiting or running:
                while waiting and len(running) < workers:
                    job = waiting.popleft()
                    stem = corpus.out / "clips" / job.key
                    stem.parent.mkdir(exist_ok=True)
                    ours, theirs = context.Pipe(duplex=False)
                    arguments = (theirs, job, stem, corpus.recipe, time_limit, memory)
                    process = context.Process(target=_work, args=arguments, daemon=True)
                    running[ours] = _Running(job, process, job.source(), time.monotonic())
                    process.start()
                    theirs.close()
                for ended, outcome in _outcomes(running, time_limit):
                    bar.update()
                    if isinstance(outcome, Encoded):
                        corpus.done[ended.job.key] = outcome
                        said = {"key": ended.job.key, "source": ended.source, "encoded": asdict(outcome)}
                        with writing(corpus.log, None, "finished clips are kept: --resume goes on"):
                            log.write(json.dumps(said) + "\n")
                            log.flush()
                    else:
                        corpus.failed[ended.job.key] = outcome
                        tqdm.write(printable(f"left out: {ended.job.clip.name}: {outcome}"), file=sys.stderr)
        finally:
            for one in running.values():
                _end(one.process)


def _outcomes(running: dict[connection.Connection, _Running], time_limit: float) -> Iterator[tuple[_Running, Any]]:
    """Waits for a clip to end, well or not, or to use up its time; takes it out of `running`."""
    last = time_limit + GRACE
    oldest = min(one.since for one in running.values())
    ready = connection.wait(list(running), timeout=max(0.0, oldest + last - time.monotonic()))
    for end, one in list(running.items()):
        overdue = time.monotonic() - one.since > last
        if end not in ready and not overdue:
            continue
        outcome: Any = f"took longer than {time_limit:g} s"
        if end in ready:
            try:
                outcome = end.recv()
            except EOFError:
                one.process.join()
                outcome = f"its decoder crashed (exit code {one.process.exitcode})"
        del running[end]
        end.close()
        _end(one.process, wait=end in ready)
        if isinstance(outcome, OSError):
            raise outcome
        yield one, outcome


def _end(process: Any, wait: bool = False) -> None:
    if process.pid is not None:
        process.join(1.0 if wait else 0.0)
        process.kill()
        process.join()
        process.close()


def _work(end: connection.Connection, job: Job, stem: Path, recipe: Recipe, time_limit: float, memory: float) -> None:
    """Runs in a process of its own: sends an `Encoded`, a reason, or the OSError that must stop the command."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process, which then ends this one
    outcome: Encoded | str | OSError
    try:
        with memory_limit(memory):
            outcome = encode_clip(job.clip, stem, recipe, time_limit)
    except BadClip as error:
        outcome = error.reason
    except (ValueError, MemoryError) as error:
        outcome = f"cannot be encoded ({type(error).__name__}: {error})"
    except OSError as error:
        outcome = error if isinstance(error, WriteError) else OSError(f"{stem.parent}: cannot be written ({error})")
    end.send(outcome)


def new_clips(corpus: Corpus, jobs: Sequence[Job]) -> list[Clip]:
    """The rows that could be read, in their order; their files hold just the span."""
    kept = [job for job in jobs if job.key in corpus.done]
    return [
        replace(job.clip, index=i, path=corpus.path(job.key), start=0.0, end=None, captions=_cells(job.clip.captions))
        for i, job in enumerate(kept)
    ]


def _cells(captions: Sequence[str]) -> tuple[str, ...]:
    """Captions as a manifest can hold them: a line of a .txt may have its separator in it."""
    parts = (part.strip().strip("|").strip() for text in captions for part in text.split(CAPTION_SEPARATOR))
    return tuple(part for part in parts if part)


def write_left_out(path: Path, corpus: Corpus, jobs: Sequence[Job]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("path", "row", "start", "end", "reason"))
    for job in jobs:
        if job.key in corpus.failed:
            clip = job.clip
            end = "" if clip.end is None else clip.end
            writer.writerow((clip.path, clip.index, clip.start, end, corpus.failed[job.key]))
    write_atomically(path, text.getvalue().encode(errors="surrogateescape"))


def report_of(corpus: Corpus, jobs: Sequence[Job], resumed: int, seconds: float) -> dict[str, Any]:
    """What it cost and what it brings. Rates are those of vatt.data.decode in one process while others are at work."""
    from vatt.records import environment  # imports torch, which no process of a clip needs

    kept = {job.key: job for job in jobs if job.key in corpus.done}
    encoded = [corpus.done[key] for key in kept]
    sources = {tar_of(job.clip.path) or job.clip.path: job.source()[0] for job in kept.values()}
    videos = [one for one in encoded if one.kind == "video"]
    frames = sum(one.frames for one in videos)
    read, check = (sum(getattr(one, name) for one in videos) for name in ("read_seconds", "check_seconds"))
    return {
        "recipe": {"format": FORMAT, **asdict(corpus.recipe)},
        "rows": {"listed": len(jobs), "written": sum(job.key in corpus.done for job in jobs),
                 "left_out": sum(job.key in corpus.failed for job in jobs)},
        "files": {"written": len(encoded), "of_them_before_this_run": resumed,
                  **Counter(f"{one.kind}s" for one in encoded)},
        "media_seconds": round(sum(one.media_seconds for one in encoded), 3),
        "seconds": round(seconds, 3),
        "bytes": {"before": sum(sources.values()), "source_files": len(sources),
                  "after": sum(one.bytes for one in encoded)},
        "decode": {
            "what": "frames at the corpus's rate, with their sound, whole clips in a row; one process a clip, "
                    "timed while transcoding, other processes at work",
            "frames": frames,
            "frames_per_second_before": round(frames / read, 1) if read else None,
            "frames_per_second_after": round(frames / check, 1) if check else None,
        },
        "environment": environment(),
    }  # fmt: skip


def transcode(args: argparse.Namespace) -> int:
    """The whole command; returns the exit code."""
    began = time.monotonic()
    manifest: Manifest = read_manifest(args.manifest)
    out = args.out.expanduser().absolute()
    jobs = jobs_of(manifest)
    recipe = Recipe(args.codec, args.size, args.fps, args.gop)
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
            print(f"error: none of {len(jobs)} clips can be read; see {out / 'left_out.csv'}", file=sys.stderr)
            return 1
        write_manifest(out / "manifest.csv", clips)
        report = report_of(corpus, jobs, resumed, time.monotonic() - began)
        if args.shards:
            report["shards"] = len(write_shards(clips, out / "shards", args.shards))
        write_atomically(out / "report.json", (json.dumps(report, indent=2) + "\n").encode())
    print(summary(report))
    if corpus.failed:
        print(f"clips left out, and why: {out / 'left_out.csv'}")
    print(f"done: {out / 'manifest.csv'}: {len(clips)} clips")
    return 0


def summary(report: dict[str, Any]) -> str:
    size, decode = report["bytes"], report["decode"]
    text = f"{size['before'] / 1e6:.1f} MB in {size['source_files']} files -> {size['after'] / 1e6:.1f} MB"
    if decode["frames"] and decode["frames_per_second_before"]:
        before, after = decode["frames_per_second_before"], decode["frames_per_second_after"]
        text += f"; decoding {before:.0f} -> {after:.0f} frames/s a process"
    return text


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m vatt.data.transcode", epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Make a corpus fit for training: small frames, short groups of pictures, mono 48 kHz sound.",
    )  # fmt: skip
    add = parser.add_argument
    add("manifest", metavar="PATH", help="manifest CSV, folder of clips, or tar shards")
    add("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    add("--resume", action="store_true", help="go on with what is in DIR; clips that failed are tried again")
    add_force_flag(parser)
    add("--codec", choices=tuple(CODECS), default="h264", help="of the video, see below (default h264)")
    add("--size", type=int, default=256, metavar="N", help="short side in pixels; never enlarged (default 256)")
    add("--fps", type=float, default=10.0, metavar="R", help="frames a second (default 10, the model's)")
    add("--gop", type=int, default=10, metavar="N",
        help="frames from one key frame to the next: up to N - 1 are decoded before a window (default 10)")  # fmt: skip
    add("--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="clips at a time (default: cores)")
    add("--time-limit", type=float, default=600.0, metavar="SECONDS",
        help="a clip that takes longer is left out (default 600)")  # fmt: skip
    add("--memory-limit", type=float, default=8.0, metavar="GB",
        help="a clip that takes more memory is left out; 0: no limit (default 8)")  # fmt: skip
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
    try:
        return transcode(args)
    except (ManifestError, ConfigError) as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; finished clips are kept: --resume goes on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
