"""Published annotations that say what they say in another way than rows and columns: one function a format.

Tables with lists of spans in their cells, or with columns that have another name in each copy, are here too.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..media_types import AUDIO, IMAGE
from ..media_types import MEDIA_SUFFIXES as VIDEO
from ..rows.narrations import Narration
from ..tables import TableError, read_rows
from .blocks import Block, Cut, captions_of, seconds_of, splits_of
from .captions import narrated, told
from .records import (
    Record,
    SourceError,
    captions,
    files_in,
    listed,
    read_cells,
    read_json,
    seconds,
    span_names,
    split_of,
    stem,
)
from .tables import Row, TableFormat, columns_in, first_column, first_of, rows_of

_CAPTIONED = TableFormat("", "", ("videoid", "video_id", "id", "file", "path", "filename"))
_TEXTS = ("name", "caption", "text", "sentence", "captions", "title")


def webvid(paths: Sequence[Path]) -> Iterator[Block]:
    """WebVid, `videoid,name,page_dir,...`, and tables like it: an id or file name and a caption; perhaps a split, and
    columns start and end."""
    for path in files_in(paths, "*.csv", "*.tsv", "*.jsonl", "*.parquet"):
        for of in columns_in(path, _CAPTIONED):
            said = next((name for name in _TEXTS if name in of), None)
            if said is None:
                raise SourceError(f"{path}:1: no column {' or '.join(_TEXTS[:4])}; found: {', '.join(of)}")
            if spans := sorted({"timestamp", "timestamps"} & of.keys()):
                raise SourceError(f"{path}: its column {spans[0]} holds spans, which WebVid has not; panda70m reads it")
            videos = list(map(stem, first_column(of, _CAPTIONED.video)))
            n = len(videos)
            if "page_dir" in of:
                folders = first_column(of, ("page_dir",))
                videos = [f"{one}/{name}" if one and name else name for one, name in zip(folders, videos, strict=True)]
            starts, ends = first_column(of, ("start", "start_time")), first_column(of, ("end", "end_time"))
            yield Block(
                videos,
                seconds_of([start or "0" for start in starts]),
                [seconds(end) if end else None for end in ends] if "" in ends else seconds_of(ends),
                [()] * n,
                captions_of(of[said]),
                splits_of(first_column(of, ("split",)), path),
                Cut(span_names),
            )


@dataclass(frozen=True)
class OtherFormat:
    """A set that is no plain table: `read` makes its records; `about`, `files` and `media` as in `TableFormat`."""

    about: str
    files: str
    read: Callable[[Sequence[Path]], Iterator[Record] | Iterator[Block]]
    media: frozenset[str] = VIDEO


def activitynet_captions(paths: Sequence[Path]) -> Iterator[Record]:
    """ActivityNet Captions, train.json, val_1.json, val_2.json: `{video: {timestamps: [[start, end]], sentences}}`."""
    for path in files_in(paths, "train.json", "val_*.json"):
        try:
            for video, about in read_json(path).items():
                for (start, end), sentence in zip(about["timestamps"], about["sentences"], strict=True):
                    start, end = float(start), float(end)
                    cut = span_names(video, start, end)
                    yield Record(video, start, end, (), captions(sentence), split_of("", path), cut)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            expected = '{video: {"timestamps": [[start, end]], "sentences": []}}'
            raise SourceError(f"{path}: expected {expected} ({error!r})") from error


def activitynet_paragraphs(paths: Sequence[Path]) -> Iterator[Record]:
    """The same for retrieval: a clip a video, whole, with all its sentences joined."""
    for path in files_in(paths, "train.json", "val_*.json"):
        sentences: dict[str, list[str]] = {}
        for record in activitynet_captions([path]):
            sentences.setdefault(record.video, []).extend(record.captions)
        yield from (
            Record(video, 0.0, None, (), captions(" ".join(texts)), split_of("", path))
            for video, texts in sentences.items()
        )


def multi_moments(paths: Sequence[Path]) -> Iterator[Record]:
    """Multi-Moments in Time: `label/file.mp4,number,number,...`, no column names."""
    for path in files_in(paths, "*Set.csv", "*Set.txt"):
        for row in read_cells(path):
            if len(row) < 2:
                raise SourceError(f"{path}: a row of one cell, {row[0]!r}; rows are: label/file.mp4,number,number,...")
            yield Record(stem(row[0]), labels=tuple(dict.fromkeys(filter(None, row[1:]))), split=split_of("", path))


def panda70m(paths: Sequence[Path]) -> Iterator[Record]:
    """Panda-70M: `videoID,url,timestamp,caption,matching_score`, lists of spans and captions in cells."""
    form = TableFormat("", "", ("videoid",), start=("timestamp", "timestamps"), captions=("caption",))
    for path in files_in(paths, "*.csv", "*.jsonl", "*.parquet"):
        for row in rows_of(path, form):
            video = first_of(row, form.video)
            try:
                spans = [[seconds(time) for time in span] for span in _spans(row)]
                pairs = list(zip(spans, listed(row["caption"]), strict=True))
                for (start, end), text in pairs:
                    yield Record(
                        video, start, end, (), captions(text), split_of("", path), span_names(video, start, end)
                    )
            except ValueError as error:
                raise SourceError(
                    f"{path}: {video}: as many captions as spans [start, end] are expected ({error})"
                ) from error


def _spans(row: Row) -> list[tuple[str, ...]]:
    cell = next((row[name] for name in ("timestamp", "timestamps") if name in row), "")
    try:
        spans = [ast.literal_eval(span) if isinstance(span, str) else span for span in listed(cell)]
        return [tuple(map(str, span)) for span in spans]
    except (SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError(f"{str(cell)[:40]!r} is no list of spans") from error


def path_label(paths: Sequence[Path]) -> Iterator[Record]:
    """Lists of SlowFast, VideoMAE and MMAction2: `path label` or `path,label`; the last space divides."""
    for path in files_in(paths, "*.txt", "*.csv"):
        try:
            table = read_rows(path, (), VIDEO | AUDIO | IMAGE)
            rows = [cells for _, cells in table.rows]
        except TableError as error:
            raise SourceError(str(error)) from error
        if not table.bare:
            raise SourceError(f"{path}: no list of media files; a line is: path label")
        for cells in rows:
            name, label = str(cells[0]).strip(), "".join(map(str, cells[1:])).strip()
            yield Record(stem(name), labels=(label,) if label else (), split=split_of("", path))


def wavcaps(paths: Sequence[Path]) -> Iterator[Record]:
    """WavCaps: `{data: [{id, caption, ...}]}`, whole files."""
    for path in files_in(paths, "*.json"):
        try:
            for row in read_json(path)["data"]:
                texts = row["caption"] if isinstance(row["caption"], list) else [row["caption"]]
                yield Record(stem(str(row["id"])), captions=captions(*texts), split=split_of("", path))
        except (KeyError, TypeError) as error:
            raise SourceError(f'{path}: expected {{"data": [{{"id", "caption"}}]}} ({error!r})') from error


def ego4d(paths: Sequence[Path]) -> Iterator[Block]:
    """Ego4D narrations: `{video: {narration_pass_1: {narrations: [{timestamp_sec, narration_text}]}}}`, a clip each."""
    for path in files_in(paths, "*.json"):
        data = read_json(path)
        try:
            for video, about in (data.get("videos") or data).items():
                passes = (part for name, part in about.items() if name.startswith("narration_pass") and part)
                narrations = [_narration(one) for part in passes for one in part["narrations"]]
                yield from narrated([told(video, narrations)] if narrations else [])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            expected = '{video: {"narration_pass_1": {"narrations": [{"timestamp_sec", "narration_text"}]}}}'
            raise SourceError(f"{path}: expected {expected} ({error!r})") from error


def _narration(one: Mapping[str, Any]) -> Narration:
    at = float(one["timestamp_sec"])
    return Narration(at, at, _without_marks(one["narration_text"]))


def _without_marks(text: str) -> str:
    """`#C C walks` -> `C walks`."""
    return " ".join(captions(re.sub(r"#\w+\s*", "", text)))


def video2dataset(paths: Sequence[Path]) -> Iterator[Record]:
    """What video2dataset writes as files: KEY.mp4 with KEY.json (`caption`, `status`, ...) beside it."""
    for root in paths:
        for path in sorted(root.rglob("*.json")):
            media = next(
                (file for suffix in sorted(VIDEO | AUDIO) if (file := path.with_suffix(suffix)).is_file()), None
            )
            about = read_json(path)
            if isinstance(about, dict) and "key" in about and (media or about.get("status") == "success"):
                texts = captions(about.get("caption"))
                yield Record(path.relative_to(root).with_suffix("").as_posix(), captions=texts, file=media)


OTHERS: dict[str, OtherFormat] = {
    "activitynet-captions": OtherFormat(
        "ActivityNet Captions: {video: {timestamps, sentences}}; a clip a sentence",
        "train.json val_1.json",
        activitynet_captions,
    ),
    "activitynet-paragraphs": OtherFormat(
        "the same for retrieval: whole videos, their sentences joined", "train.json val_1.json", activitynet_paragraphs
    ),
    "ego4d": OtherFormat("Ego4D narrations: a clip around each, and its nearest as captions", "narration.json", ego4d),
    "multi-moments": OtherFormat(
        "Multi-Moments in Time: label/file.mp4,number,number,...", "multi_moments_trainingSet.txt", multi_moments
    ),
    "panda70m": OtherFormat("Panda-70M: videoID,timestamp,caption, lists in cells", "panda70m_train.csv", panda70m),
    "path-label": OtherFormat(
        "lists of SlowFast, VideoMAE, MMAction2: path label", "train.csv val.csv", path_label, VIDEO | AUDIO | IMAGE
    ),
    "video2dataset": OtherFormat(
        "what video2dataset wrote as files: KEY.json beside KEY.mp4", "out/", video2dataset, VIDEO | AUDIO
    ),
    "wavcaps": OtherFormat("WavCaps: {data: [{id, caption}]}", "as_final.json", wavcaps, VIDEO | AUDIO),
}
