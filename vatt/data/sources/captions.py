"""Native annotations of sets with text: one function a format, from its files to `Record`s."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, pairwise
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from ..folders import labels_and_splits
from ..rows.narrations import Narration, Told, around
from .blocks import Block, seconds_of, texts_of
from .records import (
    BLOCK,
    Record,
    SourceError,
    caption,
    captions,
    files_in,
    json_entries,
    read_cells,
    read_columns,
    read_json,
    read_lines,
    read_table,
    read_text,
    seconds,
    span_names,
    split_called,
    split_of,
    stem,
)

_CUE = re.compile(r"((?:\d+:)?\d+:\d+[.,]\d+)\s+-->\s+((?:\d+:)?\d+:\d+[.,]\d+)")
_TEXT = re.compile(r"(?P<name>.+?)(\.[a-z-]{2,12})?\.(txt|(?P<subtitles>srt|vtt))", re.IGNORECASE)
_MARKUP = re.compile(r"<[^>]*>|\{\\[^}]*\}")


def narrated(videos: Iterable[Told], every: int = 1, plain: bool = False) -> Iterator[Block]:
    """A clip around each narration, or each `every`-th: its own text first, then its nearest in order of time.

    `plain`: the narrations as they are, all but each `every`-th in no split: what is near is looked for by whoever
    reads the manifest.
    """
    pending: list[Told] = []
    count = 0
    for video in videos:
        pending.append(video)
        count += len(video.text)
        if count >= BLOCK:
            yield _clips(pending, every, plain)
            pending, count = [], 0
    if count:
        yield _clips(pending, every, plain)


def _clips(said: Sequence[Told], every: int, plain: bool) -> Block:
    """The clips of some videos; see `narrated`."""
    videos = [video.video for video in said for _ in video.text]
    start, end, text = (list(chain.from_iterable(columns)) for columns in list(zip(*said, strict=True))[1:])
    bounds = np.cumsum([0, *(len(video.text) for video in said)])
    place = np.arange(len(videos)) - np.repeat(bounds[:-1], np.diff(bounds))
    chosen = (place % every == 0).tolist()
    n = len(videos)
    if plain:
        splits = ["train" if one else None for one in chosen]
        return Block(videos, start, end, [()] * n, [(one,) for one in text], splits, narration=True)
    starts, ends, texts = around(np.array(start), np.array(end), text, bounds)
    block = Block(videos, starts, ends, [()] * n, texts, ["train"] * n)
    return block if every == 1 else block.of(chosen)


def told(video: str, narrations: Iterable[Narration]) -> Told:
    """What is said in a video, in order of time."""
    return Told.ordered(video, *map(list, zip(*narrations, strict=True)))


def howto100m(paths: Sequence[Path], every: int = 1, plain: bool = False) -> Iterator[Block]:
    """HowTo100M: caption.json, `{video: {start: [], end: [], text: []}}`; or CSVs `start,end,text`, one a video named
    after it, or any with a column `video_id` as well, rows of a video together. `plain` as in `narrated`."""
    files = files_in(paths, "*.json", "*.csv")
    videos = (video for path in files for video in (_told_json(path) if path.suffix == ".json" else _told_csv(path)))
    return narrated(videos, every, plain)


def youcook2(paths: Sequence[Path]) -> Iterator[Record]:
    """YouCook2: youcookii_annotations_trainval.json, or the CSV of MIL-NCE, `end,start,task,text,video_id`."""
    for path in files_in(paths, "*.json", "*.csv"):
        for row in _steps_json(path) if path.suffix == ".json" else _steps_csv(path):
            yield row._replace(cut=span_names(row.video, row.start, row.end or 0.0))


def youcook2_frames(paths: Sequence[Path]) -> Iterator[Record]:
    """Frames of YouCook2: `file,youtube_id,recipe_type,split,step,caption`, a picture a row."""
    for path in files_in(paths, "captions.csv"):
        for row in read_table(path, {"file": ("file",), "video": ("youtube_id",), "caption": ("caption",)}):
            split = split_of(row.get("split", ""), path)
            cut = ((stem(row["file"]),),)
            yield Record(row["video"], captions=captions(row["caption"]), split=split, cut=cut)


def msrvtt(paths: Sequence[Path]) -> Iterator[Record]:
    """MSR-VTT, from files that are told apart by what is in them.

    videodatainfo JSON (`videos`, `sentences`): captions and splits. The 1k-A test, `key,vid_key,video_id,sentence`: one
    caption each. A list of rows `{video_id, caption}`, as the hub has it: one clip a video, split by the file's name.
    Lists of ids (MSRVTT_train.9k.csv, full_split_train_videos.txt): which videos, and the split their
    name says, with captions from the JSON. With any list or test only what those name is taken.
    """
    sentences: dict[str, list[str]] = {}
    splits: dict[str, str] = {}
    chosen: list[Record] = []
    for path in files_in(paths, "*.json"):
        if path.suffix == ".json":
            data = read_json(path)
            if isinstance(data, list):
                chosen += _msrvtt_rows(data, path)
            else:
                _add_msrvtt(data, path, sentences, splits)
        elif path.suffix == ".csv" and "sentence" in next(read_cells(path), []):
            for row in read_table(path, {"video": ("video_id",), "text": ("sentence",)}):
                split = split_called(path.stem) or "test"
                chosen.append(Record(row["video"], captions=captions(row["text"]), split=split))
        else:
            names = [name for name in read_lines(path) if name != "video_id"]
            if any("," in name or " " in name for name in names):
                raise SourceError(f"{path}: neither a list of ids nor a table with a column `sentence`")
            chosen += [Record(stem(name), split=split_of("", path)) for name in names]
    if chosen:
        yield from (
            record if record.captions else record._replace(captions=captions(*sentences.get(record.video, ())))
            for record in chosen
        )
    else:
        yield from (Record(name, captions=captions(*sentences.get(name, ())), split=splits[name]) for name in splits)


def folder(root: Path, suffixes: frozenset[str], every: int = 1) -> Iterator[Record]:
    """Files with `suffixes` in a plain folder, with text beside them, of the same name.

    Subtitles (.srt, .vtt, also NAME.en.vtt) give a clip around each of their cues, as narrations; a .txt gives one clip
    of the whole file with a caption a line; with neither, a clip without captions. A folder below that is called
    train, val or test says the split, and one for each class the label (vatt.data.folders).
    """
    if not root.is_dir():
        raise SourceError(f"{root}: no such folder")
    files: list[tuple[Path, list[str]]] = []
    for parent, folders, names in os.walk(root):
        folders.sort()
        texts = _texts(names)
        for name in sorted(names):
            if Path(name).suffix.lower() in suffixes and not name.startswith("."):
                files.append((Path(parent) / name, texts.get(Path(name).stem, [])))
    inside = [file.relative_to(root) for file, _ in files]
    for (file, beside), path, label_and_split in zip(files, inside, labels_and_splits(inside), strict=True):
        yield from _in_folder(file, path, beside, every, *label_and_split)


def read_subtitles(path: Path) -> list[Narration]:
    """Cues of an .srt or .vtt without markup. Lines that roll on from the cue before are said once."""
    narrations: list[Narration] = []
    before: list[str] = []
    for block in re.split(r"\n\s*\n", read_text(path)):
        lines = block.split("\n")
        at = next((i for i, line in enumerate(lines) if "-->" in line), None)
        if at is None:
            continue  # WEBVTT, NOTE, STYLE
        times = _CUE.search(lines[at])
        if times is None:
            raise SourceError(f"{path}: {lines[at]!r} is no time of a cue; they are: 00:00:01.000 --> 00:00:02.500")
        spoken = [caption(_MARKUP.sub("", line)) for line in lines[at + 1 :]]
        spoken = [line for line in spoken if line]
        text = " ".join(line for line in spoken if line not in before)
        before = spoken
        if text:
            narrations.append(Narration(_clock(times[1]), _clock(times[2]), text))
    return narrations


def _texts(names: Sequence[str]) -> dict[str, list[str]]:
    """Text files by the name of what they belong to, NAME.srt before NAME.en.srt, one of perhaps many languages."""
    texts: dict[str, list[str]] = {}
    for name in sorted(names, key=lambda name: (len(name), name)):
        match = _TEXT.fullmatch(name)
        if match:
            owners = {Path(name).stem} | ({match["name"]} if match["subtitles"] else set())
            for owner in owners:
                texts.setdefault(owner, []).append(name)
    return texts


def _in_folder(
    file: Path, inside: PurePath, texts: Sequence[str], every: int, label: str | None, split: str | None
) -> Iterator[Record]:
    name = stem(inside.as_posix())
    labels = (label,) if label else ()
    if split is None:
        split = next((split_called(part) for part in inside.parts[:-1] if split_called(part) == part.lower()), "train")
    subtitles = [text for text in texts if not text.lower().endswith(".txt")]
    for text in subtitles[:1]:
        for block in narrated([told(name, read_subtitles(file.with_name(text)))], every):
            for record in block.records():
                yield record._replace(file=file, labels=labels, split=split)
    for text in texts:
        if text not in subtitles:
            sentences = captions(*read_lines(file.with_name(text)))
            yield Record(name, labels=labels, captions=sentences, split=split, file=file)
    if not texts:
        yield Record(name, labels=labels, split=split, file=file)


def _clock(text: str) -> float:
    parts = [float(part.replace(",", ".")) for part in text.split(":")]
    return sum(part * 60**i for i, part in enumerate(reversed(parts)))


def _told_json(path: Path) -> Iterator[Told]:
    try:
        for video, said in json_entries(path):
            start, end, texts = (said[name] for name in ("start", "end", "text"))
            if not len(start) == len(end) == len(texts):
                raise ValueError(f"{video} has {len(start)} starts, {len(end)} ends and {len(texts)} texts")
            plain = all(isinstance(one, str) for one in texts)
            said_texts = texts_of(texts) if plain else [" ".join(captions(one)) for one in texts]
            yield Told.ordered(video, list(map(float, start)), list(map(float, end)), said_texts)
    except SourceError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SourceError(f'{path}: expected {{video: {{"start": [], "end": [], "text": []}}}} ({error!r})') from error


def _told_csv(path: Path) -> Iterator[Told]:
    video = path.stem
    columns: tuple[list[float], list[float], list[str]] = [], [], []  # of a video that may go on in the next rows
    for of in read_columns(path, {name: (name,) for name in ("start", "end", "text")}, ["video_id"]):
        new = seconds_of(of["start"]), seconds_of(of["end"]), texts_of(of["text"])
        videos = of.get("video_id") or [video] * len(new[0])
        edges = (row for row, (one, other) in enumerate(pairwise(videos), 1) if one != other)
        for first, last in pairwise([0, *edges, len(videos)]):
            if videos[first] != video:
                yield Told.ordered(video, *columns)
                video, columns = videos[first], ([], [], [])
            starts, ends, texts = columns
            starts += new[0][first:last]
            ends += new[1][first:last]
            texts += new[2][first:last]
    yield Told.ordered(video, *columns)


def _steps_json(path: Path) -> Iterator[Record]:
    data = read_json(path)
    try:
        for video, about in data["database"].items():
            split = split_called(about["subset"]) or about["subset"]
            for step in about["annotations"]:
                start, end = map(float, step["segment"])
                yield Record(video, start, end, (), captions(step["sentence"]), split)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        expected = '{"database": {video: {"subset", "annotations": [{"segment": [start, end], "sentence"}]}}}'
        raise SourceError(f"{path}: expected {expected} ({error!r})") from error


def _steps_csv(path: Path) -> Iterator[Record]:
    columns = {name: (name,) for name in ("start", "end", "text", "video_id")}
    for row in read_table(path, columns):
        start, end = seconds(row["start"]), seconds(row["end"])
        yield Record(row["video_id"], start, end, (), captions(row["text"]), split_of("", path))


def _msrvtt_rows(rows: list[Any], path: Path) -> Iterator[Record]:
    sentences: dict[str, list[object]] = {}
    try:
        for row in rows:
            sentences.setdefault(row["video_id"], []).append(row["caption"])
    except (KeyError, TypeError) as error:
        raise SourceError(f'{path}: expected [{{"video_id", "caption"}}] ({error!r})') from error
    for video, texts in sentences.items():
        yield Record(video, captions=captions(*texts), split=split_called(path.stem) or "train")


def _add_msrvtt(data: Any, path: Path, sentences: dict[str, list[str]], splits: dict[str, str]) -> None:
    try:
        for video in data["videos"]:
            splits[video["video_id"]] = split_called(video["split"]) or video["split"]
        for sentence in data["sentences"]:
            sentences.setdefault(sentence["video_id"], []).append(sentence["caption"])
    except (KeyError, TypeError, AttributeError) as error:
        expected = '{"videos": [{"video_id", "split"}], "sentences": [{"video_id", "caption"}]}'
        raise SourceError(f"{path}: expected {expected} ({error!r})") from error
