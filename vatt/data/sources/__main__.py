"""Native annotations to a manifest: `python -m vatt.data.sources FORMAT FILES --media DIR --out manifest.csv`.

A format (classification.py, captions.py) lists clips; matching.py looks for their
files below `--media`. Clips that have vanished are counted and listed in MANIFEST.missing.csv, and never fatal.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path

from ...errors import DataError
from ...runtime.cli import exit_code
from ...runtime.files import write_atomically
from ...runtime.lock import add_force_flag, owned
from ..clip import ManifestError
from ..manifest import Row, write_rows
from ..media_types import AUDIO, IMAGE
from ..media_types import MEDIA_SUFFIXES as VIDEO
from .blocks import Block, in_blocks
from .captions import folder, howto100m, msrvtt, youcook2, youcook2_frames
from .classification import audioset, esc50, hmdb51, imagenet, kinetics, moments, ucf101, vggsound
from .matching import STATES, Coverage, LostFile, MediaIndex, Repeats, check_files, expected, files_of, matched
from .other import OTHERS, OtherFormat, webvid
from .records import Record, SourceError
from .tables import TABLES, TableFormat, read_format

NOTES = """FILES may be folders: of these the files that usually hold the annotations are taken.

files of clips (any suffix FFmpeg reads, folders do not matter; without --media they lie beside the annotation):
  ID_START_END.*   cut from its video, in seconds or milliseconds, with any zeros in front: used whole
  ID.*             the whole video: the manifest gets the span; --trimmed says that it is cut already
  ID_START.*       audioset and vggsound, also YID.* for audioset: used whole

written beside MANIFEST.csv: MANIFEST.missing.csv (each clip without a usable file, and why), MANIFEST.report.json.
Several labels of a clip and several captions are separated by " | ".
exit codes: 0 done (whatever is missing), 1 no clip found or files cannot be written, 2 wrong usage or annotation,
130 interrupted"""
FORMS: dict[str, TableFormat | OtherFormat] = {**TABLES, **OTHERS}
EXAMPLES = {
    "kinetics": ("kinetics-400_val.csv", "Kinetics-400/600/700: label,youtube_id,time_start,time_end,split"),
    "moments-in-time": ("trainingSet.csv validationSet.csv", "Moments in Time: label/file.mp4,label,votes,votes"),
    "ucf101": ("ucfTrainTestlist --fold 1", "UCF101: trainlist01.txt and testlist01.txt, or all three in a folder"),
    "hmdb51": ("hmdb51.csv --fold 2", "HMDB51: a CSV of its three splits, or a folder of LABEL_test_splitN.txt"),
    "esc50": ("meta/esc50.csv --fold 5", "ESC-50: esc50.csv; one of five folds is the test split"),
    "esc10": ("esc10.csv", "ESC-10: esc50.csv, of which its rows are taken, or a table of them alone"),
    "imagenet": ("LOC_train_solution.csv LOC_val_solution.csv", "ImageNet: pictures, a class each (WordNet ids)"),
    "audioset": ("eval_segments.csv --classes class_labels_indices.csv", "AudioSet: id, start, end, labels; or JSON"),
    "vggsound": ("vggsound.csv", "VGGSound: vggsound.csv, or train.csv and test.csv"),
    "msrvtt": (
        "train_val_videodatainfo.json MSRVTT_train.9k.csv MSRVTT_JSFUSION_test.csv",
        "MSR-VTT: captions (JSON), with lists of ids and the 1k-A test whatever these name",
    ),
    "youcook2": ("youcookii_annotations_trainval.json", "YouCook2: that JSON, or end,start,task,text,video_id"),
    "youcook2-frames": ("captions.csv --hold-out 0.1", "frames of YouCook2: file,youtube_id,...,caption"),
    "howto100m": ("captions/ --every 4", "HowTo100M: caption.json, or a CSV start,end,text for each video"),
    "webvid": ("results_2M_train.csv", "WebVid and the like: an id or file name and a caption in each row"),
    **{name: (form.files, form.about) for name, form in sorted(FORMS.items())},
    "folder": ("clips/", "any folder of clips, with .txt, .srt or .vtt beside them; splits and classes by folders"),
}


def listing_of(args: argparse.Namespace) -> Iterator[Record] | Iterator[Block]:
    """What the annotations list."""
    match args.format:
        case "kinetics":
            return kinetics(args.files)
        case "moments-in-time":
            return moments(args.files)
        case "ucf101":
            return ucf101(args.files, args.fold)
        case "hmdb51":
            return hmdb51(args.files, args.fold)
        case "esc50" | "esc10":
            return esc50(args.files, args.fold, only_ten=args.format == "esc10")
        case "imagenet":
            return imagenet(args.files)
        case "audioset":
            return audioset(args.files, args.classes)
        case "vggsound":
            return vggsound(args.files)
        case "msrvtt":
            return msrvtt(args.files)
        case "youcook2":
            return youcook2(args.files)
        case "youcook2-frames":
            return youcook2_frames(args.files)
        case "howto100m":
            return howto100m(args.files, args.every, plain(args))
        case "webvid":
            return webvid(args.files)
        case name if name in OTHERS:
            return OTHERS[name].read(args.files)
        case name if name in TABLES:
            return read_format(
                TABLES[name],
                args.files,
                fold=getattr(args, "fold", 1),
                labels=args.labels or "",
                paragraph=args.paragraph,
            )
    return folder(args.files[0], VIDEO | AUDIO, args.every)


def suffixes_of(name: str) -> frozenset[str]:
    """Which files may be its clips: a picture beside a video that has vanished is not the video."""
    if name in FORMS:
        return FORMS[name].media
    if name in ("imagenet", "youcook2-frames"):
        return IMAGE
    if name in ("esc50", "esc10"):
        return AUDIO
    return VIDEO | AUDIO if name in ("audioset", "vggsound", "folder") else VIDEO


def import_source(args: argparse.Namespace) -> None:
    """The whole command. Raises `SourceError` for annotations that cannot be read, `DataError` if no clip is found."""
    blocks = in_blocks(listing_of(args))
    first_block = next(blocks, None)
    if first_block is None:
        raise SourceError(f"{', '.join(map(str, args.files))}: lists no clips of the format {args.format}")
    places = args.media or [path if path.is_dir() else path.parent for path in args.files]
    absent = [str(folder) for folder in places if not folder.is_dir()]
    if absent:
        raise SourceError(f"{absent[0]}: no such folder of media files; name it with --media")
    media = MediaIndex(list(dict.fromkeys(places)), suffixes_of(args.format))
    lost, report = (args.out.with_suffix(suffix) for suffix in (".missing.csv", ".report.json"))
    listed: Iterable[Block] = chain([first_block], blocks)
    durations = None
    if args.check:
        durations = check_files(files_of(listed, media), args.workers, bool(media.suffixes & AUDIO))
        listed = in_blocks(listing_of(args))
    repeats = None
    while True:
        coverage = Coverage(os.path.join(args.out.parent.absolute(), ""))
        if args.split is not None:
            listed = (block._replace(split=[args.split] * len(block.video)) for block in listed)
        try:
            with ExitStack() as held:
                rows = matched(
                    listed,
                    media,
                    coverage,
                    LostFile(lost, held).add,
                    trimmed=args.trimmed,
                    durations=durations,
                    hold_out=args.hold_out,
                    repeats=repeats,
                )
                _write(args.out, rows, coverage, narrations=plain(args))
            break
        except Repeats as found:  # few annotations have any, and those that have are read once more
            repeats, listed = found.rows, in_blocks(listing_of(args))
    if not coverage.lost:
        lost.unlink(missing_ok=True)
    write_report(report, args, media, coverage)
    print(coverage.table())
    for line in remarks(coverage, media):
        print(line)
    if coverage.outside:
        print(f"{coverage.outside} clips lie outside of {args.out.parent.absolute()}: their rows hold absolute paths")
    if coverage.lost:
        print(f"clips left out, and why: {lost}")
    if not coverage.found:
        raise DataError(f"{nothing_found(next(first_block.records()), media, coverage, lost)}; no manifest written")
    print(f"done: {args.out}: {coverage.found} clips")


class _NoClips(Exception):
    pass


def _write(out: Path, rows: Iterator[Row], coverage: Coverage, narrations: bool) -> None:
    """Write the manifest, or none where there are no clips. Raises `DataError`."""

    def some() -> Iterator[Row]:
        yield from rows
        if not coverage.found:
            raise _NoClips

    try:
        write_rows(out, some(), narrations=narrations)
    except _NoClips:
        pass
    except (ManifestError, UnicodeEncodeError) as error:  # of the files' names; the annotation is not to blame
        raise DataError(f"{out} cannot be written: {error}") from error


def plain(args: argparse.Namespace) -> bool:
    """Whether narrations are written as they are, and their candidates looked for when the manifest is read."""
    return bool(args.format == "howto100m" and args.out.suffix.lower() == ".parquet")


def remarks(coverage: Coverage, media: MediaIndex) -> Iterator[str]:
    """What the table does not say."""
    yield (
        f"{len(coverage.files)} of {media.count} media files used; {coverage.labelled} clips with a label, "
        f"{coverage.told} with captions"
    )
    if coverage.repeated:
        yield f"{coverage.repeated} rows repeat another and are left out"
    if coverage.beyond:
        taken = f"{coverage.cut} of these files are as long as the clip and are taken whole; " * bool(coverage.cut)
        yield (
            f"careful: {coverage.beyond} spans end after their file, of {coverage.looked} files looked at: are these "
            f"cut already? {taken}--trimmed takes all of them whole"
        )
    if coverage.leaks:
        yield f"careful: {coverage.leaks} files have clips in several splits"


def nothing_found(first: Record, media: MediaIndex, coverage: Coverage, lost: Path) -> str:
    """Where was looked, what for, and what is there."""
    folders = ", ".join(map(str, media.folders))
    if any(counts["unreadable"] for counts in coverage.counts.values()):
        return f"none of the files found in {folders} can be used; {lost} says why of each"
    there = (
        f"{media.count} media files there, such as {', '.join(media.examples())}"
        if media.count
        else (f"nothing there has one of the suffixes {' '.join(sorted(media.suffixes))}")
    )
    return f"no clip found in {folders} (folders below included); looked for {' or '.join(expected(first))}; {there}"


def write_report(path: Path, args: argparse.Namespace, media: MediaIndex, coverage: Coverage) -> None:
    report = {
        "argv": sys.orig_argv[1:],
        "format": args.format,
        "annotations": [str(file.absolute()) for file in args.files],
        "media": [str(folder.absolute()) for folder in media.folders],
        "media_files": media.count,
        "opened": args.check,
        "splits": {
            split: {"listed": counts.total(), **{state: counts[state] for state in STATES if counts[state]}}
            for split, counts in sorted(coverage.counts.items())
        },
        "repeated_rows": coverage.repeated,
        "files_in_several_splits": coverage.leaks,
    }
    write_atomically(path, (json.dumps(report, indent=2) + "\n").encode())


def formats_table() -> str:
    """All formats as a Markdown table, which docs/formats.md holds."""
    rows = ["| format | set and its columns | files, for example |", "| --- | --- | --- |"]
    return "\n".join(rows + [f"| `{name}` | {about} | `{files}` |" for name, (files, about) in EXAMPLES.items()])


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    lines = [
        f"  python -m vatt.data.sources {name} {files}{'' if name == 'folder' else ' --media clips/'} --out m.csv"
        for name, (files, _) in EXAMPLES.items()
    ]
    parser = argparse.ArgumentParser(
        prog="python -m vatt.data.sources",
        formatter_class=raw,
        epilog="\n".join(["examples:", *lines, "", NOTES]),
        description="Make a manifest of the clips that native annotations list and that are there.",
    )
    formats = parser.add_subparsers(dest="format", required=True, metavar="FORMAT", title="formats")
    for (name, (_, about)), line in zip(EXAMPLES.items(), lines, strict=True):
        one = formats.add_parser(
            name, help=about, description=about, formatter_class=raw, epilog=f"example:\n{line}\n\n{NOTES}"
        )
        add = one.add_argument
        add("files", type=Path, nargs=1 if name == "folder" else "+", metavar="FILES")
        add("--media", type=Path, nargs="+", metavar="DIR", help="folders with the clips (default: beside FILES)")
        add(
            "--out",
            type=Path,
            required=True,
            metavar="MANIFEST.csv",
            help="manifest to write, .csv or .parquet; replaces an older one",
        )
        add_force_flag(one)
        add("--split", metavar="NAME", help="put all clips in this split (default: what the annotation says)")
        add(
            "--hold-out",
            type=float,
            default=0.0,
            metavar="R",
            help="move this share of the training videos to the test split, always the same ones",
        )
        add("--trimmed", action="store_true", help="files that are named by the video alone hold just the clip")
        add("--check", action="store_true", help="open every file; those that are no media do not count as found")
        add("--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="threads of --check (default: cores)")
        if name in ("ucf101", "hmdb51"):
            add("--fold", type=int, default=1, choices=(1, 2, 3), help="which of the three official splits (default 1)")
        elif name in ("esc50", "esc10"):
            add("--fold", type=int, default=1, choices=range(1, 6), help="the fold to test on (default 1)")
        elif name in TABLES:
            add("--labels", metavar="COLUMN", help="the column with the labels, in place of the set's own")
            add(
                "--paragraph",
                action="store_true",
                help="join the captions of a clip to one, as for paragraph retrieval",
            )
            if TABLES[name].fold:
                add("--fold", type=int, default=1, choices=range(1, 11), help="the fold to test on (default 1)")
        elif name == "audioset":
            add(
                "--classes",
                type=Path,
                metavar="FILE",
                help="class_labels_indices.csv, for names (default: the one beside FILES, if any)",
            )
        elif name in ("howto100m", "folder"):
            add(
                "--every",
                type=int,
                default=1,
                metavar="N",
                help="a clip for every Nth narration only; the others stay candidates for its captions",
            )
    args = parser.parse_args(argv)
    if not 0.0 <= args.hold_out < 1.0:
        parser.error(f"--hold-out is a share from 0 to 1, got {args.hold_out:g}")
    for option in ("workers", "every"):
        if getattr(args, option, 1) < 1:
            parser.error(f"--{option} is at least 1, got {getattr(args, option)}")
    if args.out.is_dir() or args.out.absolute() in [file.absolute() for file in args.files]:
        parser.error(f"--out {args.out} would overwrite what is read; name a new .csv file")
    return args


@contextmanager
def no_collections() -> Iterator[None]:
    """Rows make no cycles: looking for some among them takes a sixth of the time."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)

    def action() -> None:
        with owned(args.out, force=args.force), no_collections():
            import_source(args)

    return exit_code(action, "interrupted; nothing was written")


if __name__ == "__main__":
    sys.exit(main())
