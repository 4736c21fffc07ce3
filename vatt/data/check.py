"""What a corpus is, and what is wrong with it: `python -m vatt.data.check manifest.csv`, without training.

Training prints the same before its first step, of a few files: how many clips there are, with captions, labels, video
and sound, how long they are, which splits there are, and files that lie in several of them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from ..config.data import DataConfig
from ..runtime.cli import exit_code
from ..runtime.progress import progress_bar
from .clip import Clip, Manifest
from .look import SECONDS, Look, look_at
from .manifest import read_manifest
from .rows.survey import Survey, survey

GLANCES = 32  # files that training looks at before its first step
SLACK = 1.0  # seconds that a span may end after its file: annotations are rounded

EXAMPLES = """examples:
  python -m vatt.data.check clips.csv
  python -m vatt.data.check clips/ --sample 1000                     a thousand files of a large folder
  python -m vatt.data.check videos.csv --columns caption=title,path=filepath

Only headers of files are read. exit codes: 0 no problem, 1 problems, each on a line, 2 wrong usage or no such table."""


def glance(clips: Manifest, count: int) -> list[Path]:
    """`count` files of `clips`, evenly spaced, or all there are."""
    if clips.rows is not None and count < len(clips):
        places = (i * len(clips) // count for i in range(count))
        return list(dict.fromkeys(clips[place].path for place in places))
    paths = list(dict.fromkeys(clip.path for clip in clips))
    return paths if len(paths) <= count else [paths[i * len(paths) // count] for i in range(count)]


def survey_of(clips: Manifest) -> Survey:
    """Counts of `clips`; of a large table those of the whole of it, made when it was first opened."""
    return survey(clips) if clips.rows is None else Survey(**clips.rows.survey)


def described(clips: Manifest, counted: Survey, looks: Mapping[Path, Look]) -> Iterator[str]:
    """Say in a few lines what `clips` are.

    Args:
        counted: of them.
        looks: what is known of some or all of their files.
    """
    splits = ", ".join(f"{name} {count:,}" for name, count in sorted(counted.splits.items()))
    yield f"{counted.clips:,} clips of {counted.files:,} files; splits: {splits}"
    yield (
        f"{counted.told:,} clips with captions ({counted.captions:,}), {counted.labelled:,} with a label of "
        f"{len(clips.labels):,} classes"
    )
    if looks:
        good = [look for look in looks.values() if not look.fault]
        line = (
            f"of {len(looks):,} files looked at, {sum(look.video for look in good):,} have video, "
            f"{sum(look.audio for look in good):,} sound, {len(looks) - len(good):,} cannot be read"
        )
        lengths = [length for clip in clips.of_files(looks) if (length := _length(clip, looks)) is not None]
        if lengths:
            middle = statistics.median(lengths)
            line += f"; clips last {min(lengths):.3g} to {max(lengths):.3g} s, {middle:.3g} s in the median"
        yield line


def _length(clip: Clip, looks: Mapping[Path, Look]) -> float | None:
    look = looks.get(clip.path)
    if look is None or look.fault:
        return None
    return max(0.0, look.seconds - clip.start if clip.end is None else min(clip.end, look.seconds) - clip.start)


def doubts(clips: Manifest, counted: Survey, split_unspaced: bool = False) -> Iterator[str]:
    """Say what is odd about the rows of `clips`, without opening a file.

    Args:
        counted: of them.
        split_unspaced: as in `DataConfig`.
    """
    yield from clips.notes
    if counted.shared:
        names = " and ".join(counted.shared_by)
        first = clips[counted.first_shared].path if clips.rows is None else clips.at(counted.first_shared).path
        yield f"{counted.shared:,} files are in several splits, the first is {first} in {names}"
    if counted.repeated:
        yield (
            f"{counted.repeated:,} rows are of a span that an earlier row of their split has; for retrieval they are "
            "one clip"
        )
    if counted.empty:
        yield f"{counted.empty:,} captions say no more than None, nan or null"
    if not split_unspaced and counted.unspaced:
        yield (
            f"{counted.unspaced:,} captions are in a script without spaces, where a sentence would be one word; "
            "--set data.split_unspaced=true makes each of its characters a word"
        )
    if 0 < counted.labelled < counted.clips:
        yield f"{counted.clips - counted.labelled:,} clips have no label, though others have"
    if counted.untrained:
        yield f"{len(counted.untrained):,} classes have no training clip, the first is {counted.untrained[0]!r}"


def faults(clips: Manifest, looks: Mapping[Path, Look]) -> Iterator[str]:
    """Name each clip whose file is missing, cannot be read or does not hold its span."""
    told: set[Path] = set()
    for clip in clips.of_files(looks):
        look = looks[clip.path]
        if look.fault and clip.path not in told:
            told.add(clip.path)
            yield f"{clip.name}: {look.fault}"
        elif not look.fault and clip.start and clip.start >= look.seconds:
            yield f"{clip.name}: starts at {clip.start:g} s, the file ends at {look.seconds:.2f} s"
        elif not look.fault and clip.end is not None and clip.end > look.seconds + SLACK:
            yield f"{clip.name}: ends at {clip.end:g} s, the file at {look.seconds:.2f} s"


def corpus_notes(clips: Manifest, held_out: Manifest, data: DataConfig) -> Iterator[str]:
    """Yield lines on what the data of a training are; a few files are looked at, none decoded."""
    rows = (*clips, *held_out) if clips.rows is None else clips.rows
    both = Manifest(rows, clips.root, clips.labels)
    counted = survey_of(both)
    looks = look_at([*glance(clips, GLANCES), *glance(held_out, GLANCES)], min(data.workers, 1))
    for line in described(both, counted, looks):
        yield f"  {line}"
    for line in doubts(both, counted, data.split_unspaced):
        yield f"  note: {line}"
    bad = list(faults(both, looks))
    if bad:
        first = f"{len(bad)} problems with these files, the first: {bad[0]}"
        yield f"  note: {first}; python -m vatt.data.check names all"


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m vatt.data.check",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Say what a corpus is and name every problem of it, without training.",
    )
    add = parser.add_argument
    add("source", metavar="PATH", help="manifest CSV or another table, folder of clips, or tar shards")
    add("--columns", metavar="NAME=COLUMN,...", default="", help="columns that have other names, e.g. caption=title")
    add("--sample", type=int, metavar="N", help="look at N files only (default: all)")
    add("--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="files at a time (default: cores)")
    add("--time-limit", type=float, default=SECONDS, metavar="SECONDS", help="for a file (default 30)")
    args = parser.parse_args(argv)
    for option, least in (("sample", 1), ("workers", 1), ("time_limit", 1e-3)):
        value = getattr(args, option)
        if value is not None and not value >= least:
            parser.error(f"--{option.replace('_', '-')} is at least {least:g}, got {value:g}")
    return args


def check_source(args: argparse.Namespace) -> int:
    """Print what the corpus is and what is wrong with it; return 1 if anything is, else 0."""
    clips = read_manifest(args.source, args.columns)
    paths = glance(clips, args.sample or len(clips))
    with progress_bar(len(paths), "looking", "file") as bar:
        looks = look_at(paths, args.workers, args.time_limit, bar.update)
    counted = survey_of(clips)
    for line in described(clips, counted, looks):
        print(line)
    problems = [*doubts(clips, counted), *faults(clips, looks)]
    for line in problems:
        print(f"problem: {line}")
    print(f"{len(problems) or 'no'} problems" if len(problems) != 1 else "1 problem")
    return 1 if problems else 0


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    return exit_code(lambda: check_source(args))


if __name__ == "__main__":
    sys.exit(main())
