"""The corpus that transcoding writes: its jobs, finished clips, manifest and report."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from ...errors import ConfigError
from ...runtime.files import write_atomically, write_csv
from ...runtime.forms import FormError, read_json
from ..clip import CAPTION_SEPARATOR, Clip
from ..decoding.version import DECODING_CHANGES
from ..shards.index import tar_of
from .encode import FORMAT, Encoded, Encoding

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """One file to write: `key` below clips/, without suffix. Rows of the same span of the same file share it."""

    key: str
    clip: Clip

    def source(self) -> tuple[int, int]:
        """Return bytes and modification time (ns) of the file it is made of; zeros where there is none."""
        try:
            status = os.stat(tar_of(self.clip.path) or self.clip.path)
        except (OSError, ValueError):
            return 0, 0
        return status.st_size, status.st_mtime_ns


@dataclass
class Corpus:
    """Where a run writes, and what it has so far: `done` and `failed` (reasons) by key."""

    out: Path
    recipe: Encoding
    done: dict[str, Encoded] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def path(self, key: str) -> Path:
        return (self.out / "clips" / key).with_name(self.done[key].name)

    @property
    def log(self) -> Path:
        return self.out / "finished.jsonl"


def jobs_of(clips: Sequence[Clip]) -> list[Job]:
    """Return one job a row.

    Names tell the source and do not change when rows are added to the manifest or moved in it.
    """
    jobs = []
    for clip in clips:
        identity = f"{clip.path}\0{clip.start!r}\0{clip.end!r}".encode(errors="surrogateescape")
        digest = hashlib.sha256(identity).hexdigest()[:16]
        stem = re.sub(r"[^A-Za-z0-9_-]+", "_", clip.path.stem)[:60]
        jobs.append(Job(f"{digest[:2]}/{stem}-{digest}", clip))
    return jobs


def open_corpus(out: Path, recipe: Encoding, resume: bool) -> tuple[Corpus, IO[str]]:
    """Return the folder and its log; the folder is this process's own.

    Raises `ConfigError` rather than overwrite or mix.
    """
    settings = out / "settings.json"
    if any(not file.name.startswith(".") for file in out.iterdir()):
        if not resume:
            raise ConfigError(f"{out} exists; go on with --resume, delete it or choose another --out")
        try:
            saved = read_json(settings)
        except (OSError, FormError) as error:
            raise ConfigError(f"{settings}: cannot be read ({error}); {out} was not begun by this command") from error
        if saved.get("format") in range(1, FORMAT):
            recipe = replace(recipe, format=saved["format"])  # goes on as it began
            logger.info(
                "note: %s was begun by an earlier version; clips from now on are decoded rightly where it did not (%s)",
                out,
                DECODING_CHANGES,
            )
        if saved != asdict(recipe):
            raise ConfigError(
                f"{out} was begun with {saved}, not {asdict(recipe)}; repeat those, or choose another --out"
            )
    corpus = Corpus(out, recipe)
    (out / "clips").mkdir(parents=True, exist_ok=True)
    log = open(corpus.log, "a+", encoding="utf-8")  # noqa: SIM115 (kept open)
    write_atomically(settings, (json.dumps(asdict(recipe)) + "\n").encode())
    for torn in (out / "clips").glob("*/.*.tmp"):  # of processes that were killed
        torn.unlink(missing_ok=True)
    return corpus, log


def take_finished(corpus: Corpus, jobs: Sequence[Job], log: IO[str]) -> None:
    """Take from the log what is still there in full, of a source that did not change since."""
    by_key = {job.key: job for job in jobs}
    log.seek(0)
    lines = log.read().split("\n")
    if lines[-1]:  # cut off by a crash: the next line must not continue it
        log.write("\n")
    for line in lines:
        try:
            entry = json.loads(line)
            key, source, encoded = entry["key"], tuple(entry["source"]), Encoded(**entry["encoded"])
        except (ValueError, KeyError, TypeError):
            continue
        job = by_key.get(key)
        if job is None or source != job.source():
            continue
        file = (corpus.out / "clips" / key).with_name(encoded.name)
        if file.is_file() and file.stat().st_size == encoded.bytes:
            corpus.done[key] = encoded


def new_clips(corpus: Corpus, jobs: Sequence[Job]) -> list[Clip]:
    """Return the rows that could be read, in their order; their files hold just the span."""
    kept = [job for job in jobs if job.key in corpus.done]
    return [
        replace(job.clip, index=i, path=corpus.path(job.key), start=0.0, end=None, captions=_cells(job.clip.captions))
        for i, job in enumerate(kept)
    ]


def _cells(captions: Sequence[str]) -> tuple[str, ...]:
    """Return captions as a manifest can hold them: a line of a .txt may have its separator in it."""
    parts = (part.strip().strip("|").strip() for text in captions for part in text.split(CAPTION_SEPARATOR))
    return tuple(part for part in parts if part)


def write_left_out(path: Path, corpus: Corpus, jobs: Sequence[Job]) -> None:
    failed = [(job.clip, corpus.failed[job.key]) for job in jobs if job.key in corpus.failed]
    rows = [(clip.path, clip.index, clip.start, "" if clip.end is None else clip.end, why) for clip, why in failed]
    write_csv(path, ("path", "row", "start", "end", "reason"), rows)


def report_of(corpus: Corpus, jobs: Sequence[Job], resumed: int, seconds: float) -> dict[str, Any]:
    """Return what it cost and what it brings. Rates are those of decoding in one process while others are at work."""
    from ...runtime.provenance import environment  # imports torch, which no process of a clip needs

    kept = {job.key: job for job in jobs if job.key in corpus.done}
    encoded = [corpus.done[key] for key in kept]
    sources = {tar_of(job.clip.path) or job.clip.path: job.source()[0] for job in kept.values()}
    videos = [one for one in encoded if one.kind == "video"]
    frames = sum(one.frames for one in videos)
    read, check = (sum(getattr(one, name) for one in videos) for name in ("read_seconds", "check_seconds"))
    return {
        "recipe": asdict(corpus.recipe),
        "rows": {
            "listed": len(jobs),
            "written": sum(job.key in corpus.done for job in jobs),
            "left_out": sum(job.key in corpus.failed for job in jobs),
        },
        "files": {
            "written": len(encoded),
            "of_them_before_this_run": resumed,
            **Counter(f"{one.kind}s" for one in encoded),
        },
        "media_seconds": round(sum(one.media_seconds for one in encoded), 3),
        "seconds": round(seconds, 3),
        "bytes": {
            "before": sum(sources.values()),
            "source_files": len(sources),
            "after": sum(one.bytes for one in encoded),
        },
        "decode": {
            "what": "frames at the corpus's rate, with their sound, whole clips in a row; one process a clip, "
            "timed while transcoding, other processes at work",
            "frames": frames,
            "frames_per_second_before": round(frames / read, 1) if read else None,
            "frames_per_second_after": round(frames / check, 1) if check else None,
        },
        "remarks": dict(sorted(Counter(remark for one in encoded for remark in one.remarks).items())),
        "environment": environment(),
    }
