"""Published annotations that are plain tables: one declaration a format, and one reader for all of them.

A table may be CSV, TSV, JSON lines, a JSON list or Parquet (vatt.data.tables), whatever the set was published as. What
a set does not say in the form of rows and columns has a function of its own at the end of this file.
"""

from __future__ import annotations

import ast
import csv
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vatt.data.sources_captions import Narration, narrated
from vatt.data.sources_read import (
    AUDIO,
    IMAGE,
    VIDEO,
    Record,
    SourceError,
    captions,
    files_in,
    read_cells,
    read_json,
    seconds,
    span_names,
    split_of,
    start_names,
    stem,
)
from vatt.data.tables import MAX_CELL, Cell, TableError, cell_of, encoding_of, read_rows

Row = dict[str, Cell]


@dataclass(frozen=True)
class TableFormat:
    """What the columns of a published table are. A name may be followed by others that copies use in its place.

    Attributes:
        about: the set and its columns, for people; `files`: what an example of the command names.
        video: the column with the name of the file, or of the video, perhaps with a suffix.
        key: how that name is taken apart where it holds times, with the groups video, start and end.
        start, end: columns with times (seconds, or h:mm:ss); `scale` of the seconds that `key` finds.
        length: seconds of a clip where no end is said; `whole`: times are not those of the file.
        captions: columns with a caption each, or several in a list or between `caption_divider`.
        labels: columns with a label each, or several in a list or between `divider`, each made what it is by `tidy`; a
            text with braces puts columns together.
        split, fold: columns that say the split, or a fold, one of which is tested on.
        only: column and the one value of rows that are meant. `columns`: names, for a table without a line of them.
        grouped: rows of one clip are one record with all their captions and labels.
        media: suffixes that its files may have.
    """

    about: str
    files: str
    video: tuple[str, ...]
    key: str = ""
    start: tuple[str, ...] = ()
    end: tuple[str, ...] = ()
    scale: float = 1.0
    length: float | None = None
    whole: bool = False
    captions: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    caption_divider: str = ""
    divider: str = ""
    tidy: Callable[[str], str] = str.strip
    split: tuple[str, ...] = ("split",)
    fold: str = ""
    only: Mapping[str, str] = field(default_factory=dict)
    columns: tuple[str, ...] = ()
    grouped: bool = False
    media: frozenset[str] = VIDEO
    patterns: tuple[str, ...] = ("*.csv", "*.tsv", "*.json", "*.jsonl", "*.parquet")


def _first_word(text: str) -> str:
    return text.strip().partition(" ")[0]


def _without_brackets(text: str) -> str:
    return re.sub(r"\[([^\]]*)\]", r"\1", text).strip()


_IN_NAME = r"(?P<video>.+)_(?P<start>\d+(?:\.\d+)?)"
TABLES: dict[str, TableFormat] = {
    "audiocaps": TableFormat(
        "AudioCaps: audiocap_id,youtube_id,start_time,caption; clips of 10 s",
        "train.csv val.csv test.csv",
        ("youtube_id",),
        start=("start_time",),
        length=10.0,
        captions=("caption",),
        grouped=True,
        media=VIDEO | AUDIO,
    ),
    "audioset-strong": TableFormat(
        "AudioSet, labels in time: segment_id,start_time_seconds,end_time_seconds,label; a clip of 10 s has them all",
        "audioset_eval_strong.tsv",
        ("segment_id",),
        key=_IN_NAME,
        scale=1e-3,
        length=10.0,
        labels=("label",),
        grouped=True,
        media=VIDEO | AUDIO,
    ),
    "charades": TableFormat(
        "Charades: id,script,descriptions,actions,...; whole videos, classes c000 to c156",
        "Charades_v1_train.csv",
        ("id",),
        captions=("script", "descriptions"),
        caption_divider=";",
        labels=("actions",),
        divider=";",
        tidy=_first_word,
        patterns=("Charades*.csv",),
    ),
    "clotho": TableFormat(
        "Clotho: file_name,caption_1,...,caption_5",
        "clotho_captions_development.csv",
        ("file_name",),
        captions=tuple(f"caption_{i}" for i in range(1, 6)),
        media=AUDIO,
    ),
    "didemo": TableFormat(
        "DiDeMo: video,description,...; whole videos with all their descriptions",
        "train_data.json",
        ("video",),
        captions=("description",),
        grouped=True,
    ),
    "epic-kitchens": TableFormat(
        "EPIC-Kitchens-100: video_id,start_timestamp,stop_timestamp,narration,verb,noun,...; labels are `verb noun`",
        "EPIC_100_train.csv",
        ("video_id",),
        start=("start_timestamp",),
        end=("stop_timestamp",),
        captions=("narration",),
        labels=("{verb} {noun}",),
    ),
    "epic-sounds": TableFormat(
        "EPIC-Sounds: video_id,start_timestamp,stop_timestamp,description,class",
        "EPIC_Sounds_train.csv",
        ("video_id",),
        start=("start_timestamp",),
        end=("stop_timestamp",),
        captions=("description",),
        labels=("class",),
        media=VIDEO | AUDIO,
    ),
    "fsd50k": TableFormat(
        "FSD50K: fname,labels,mids,split; eval.csv is the test split",
        "dev.csv eval.csv",
        ("fname",),
        labels=("labels",),
        divider=",",
        media=AUDIO,
    ),
    "internvid": TableFormat(
        "InternVid: YoutubeID,Start_timestamp,End_timestamp,Caption",
        "InternVid-10M-flt.jsonl",
        ("youtubeid",),
        start=("start_timestamp",),
        end=("end_timestamp",),
        captions=("caption",),
    ),
    "lsmdc": TableFormat(
        "LSMDC: name, four times and a sentence, tabs between them and no names of columns; clips of their own",
        "LSMDC16_annos_training.csv",
        ("name",),
        whole=True,
        captions=("sentence",),
        columns=("name", "start_aligned", "end_aligned", "start_extracted", "end_extracted", "sentence"),
    ),
    "msvd": TableFormat(
        "MSVD: VideoID,Start,End,...,Language,Description; a clip with all its English captions",
        "MSR_Video_Description_Corpus.csv",
        ("videoid",),
        start=("start",),
        end=("end",),
        captions=("description",),
        only={"language": "english"},
        grouped=True,
    ),
    "something-something-v2": TableFormat(
        "Something-Something V2: id,label,template,...; the template is the class, the label the caption",
        "train.json validation.json",
        ("id",),
        captions=("label",),
        labels=("template",),
        tidy=_without_brackets,
        patterns=("*train*.json", "*validation*.json"),
    ),
    "urbansound8k": TableFormat(
        "UrbanSound8K: slice_file_name,fold,class,...; one of ten folds is the test split",
        "UrbanSound8K.csv",
        ("slice_file_name",),
        whole=True,
        labels=("class",),
        fold="fold",
        media=AUDIO,
    ),
    "vatex": TableFormat(
        "VATEX: videoID (with its seconds), enCap",
        "vatex_training_v1.0.json",
        ("videoid",),
        key=_IN_NAME + r"_(?P<end>\d+)",
        captions=("encap",),
    ),
    "vggsounder": TableFormat(
        "VGGSounder: video_id (with its second),label,modality,...; several labels a clip of 10 s",
        "vggsounder.csv",
        ("video_id",),
        key=_IN_NAME,
        length=10.0,
        labels=("label",),
        grouped=True,
        media=VIDEO | AUDIO,
    ),
}


def read_format(
    form: TableFormat, paths: Sequence[Path], *, fold: int = 1, labels: str = "", paragraph: bool = False
) -> Iterator[Record]:
    """Read the clips that tables of the format `form` list.

    Args:
        fold: the one to test on, where there are folds.
        labels: columns to take the labels from in place of the format's.
        paragraph: the captions of a clip are joined to one.
    """
    for path in files_in(paths, *form.patterns):
        records: Iterable[Record] = (
            _record(form, row, path, fold, (labels,) if labels else form.labels)
            for row in rows_of(path, form)
            if all(str(row.get(column, "")).lower() == value for column, value in form.only.items())
        )
        for record in _grouped(records) if form.grouped else records:
            yield joined(record) if paragraph else record


def joined(record: Record) -> Record:
    """`record` with its captions as one paragraph."""
    return replace(record, captions=captions(" ".join(record.captions)))


def rows_of(path: Path, form: TableFormat) -> Iterator[Row]:
    """Rows of a table by the names of its columns, lower case with `_`; raises `SourceError` where needed ones lack."""
    if form.columns:
        yield from _rows_without_names(path, form.columns)
        return
    try:
        table = read_rows(path, form.video, frozenset())
        names = [name.replace("-", "_").replace(" ", "_") for name in table.columns]
        needed = [
            form.video,
            form.start,
            form.end,
            *((name,) for name in (*form.captions[:1], *form.labels) if "{" not in name),
        ]
        for columns in needed:
            if columns and not set(columns) & set(names):
                raise SourceError(f"{path}: no column {' or '.join(columns)}; found: {', '.join(names) or 'nothing'}")
        for _, cells in table.rows:
            if any(cells):
                yield dict.fromkeys(names, "") | dict(zip(names, cells, strict=False))
    except TableError as error:
        raise SourceError(str(error)) from error


def _rows_without_names(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    csv.field_size_limit(max(csv.field_size_limit(), MAX_CELL))
    try:
        with open(path, encoding=encoding_of(path), newline="") as file:
            for number, cells in enumerate(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE), 1):
                if len(cells) != len(columns) and any(cells):
                    raise SourceError(
                        f"{path}:{number}: {len(cells)} cells; a row is: {', '.join(columns)}, tabs between"
                    )
                if any(cells):
                    yield dict(zip(columns, cells, strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise SourceError(f"{path}: cannot be read as a table ({error})") from error


def _record(form: TableFormat, row: Row, path: Path, fold: int, labels: Sequence[str]) -> Record:
    name = stem(_first(row, form.video))
    start, end = _first(row, form.start), _first(row, form.end)
    video, begin, stop = name, seconds(start) if form.start else 0.0, seconds(end) if form.end else None
    if form.key:
        match = re.fullmatch(form.key, name)
        if match is None:
            raise SourceError(f"{path}: {name!r} holds no times; they are expected behind a `_`")
        video, begin = match["video"], float(match["start"]) * form.scale
        stop = float(match["end"]) * form.scale if "end" in match.re.groupindex else None
    if stop is None and form.length is not None:
        stop = begin + form.length
    cut = () if form.whole or stop is None else (*span_names(video, begin, stop), *start_names(video, begin))
    if form.whole:
        begin, stop = 0.0, None
    elif form.key:
        cut = ((name,), *cut)
    split = split_of(_first(row, form.split), path)
    if form.fold:
        split = "test" if _first(row, (form.fold,)) == str(fold) else "train"
    told = captions(*_pieces(row, form.captions, form.caption_divider))
    named = dict.fromkeys(filter(None, map(form.tidy, _pieces(row, labels, form.divider))))
    return Record(video, begin, stop, tuple(named), told, split, cut)


def _first(row: Row, columns: Sequence[str]) -> str:
    cell = next((row[column] for column in columns if column in row), "")
    return cell if isinstance(cell, str) else " ".join(cell)


def _pieces(row: Row, columns: Sequence[str], divider: str) -> Iterator[str]:
    """The texts of `columns`, those of lists and between dividers apart."""
    for column in columns:
        if "{" in column:
            yield column.format_map({name: _first(row, (name,)) for name in row})
            continue
        for text in listed(row.get(column, "")):
            yield from text.split(divider) if divider else [text]


def listed(cell: Cell) -> tuple[str, ...]:
    """The texts of a cell; a list that was written into it as text is taken apart."""
    if not isinstance(cell, str):
        return cell
    if cell.startswith("[") and cell.endswith("]"):
        try:
            value = cell_of(ast.literal_eval(cell))
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return (cell,)
        return value if isinstance(value, tuple) else (cell,)
    return (cell,)


def _grouped(records: Iterable[Record]) -> Iterator[Record]:
    """Records of one clip as one, in the order of the first."""
    clips: dict[tuple[object, ...], list[Record]] = {}
    for record in records:
        clips.setdefault((record.video, record.start, record.end, record.split), []).append(record)
    for same in clips.values():
        labels = dict.fromkeys(label for record in same for label in record.labels)
        told = dict.fromkeys(text for record in same for text in record.captions)
        yield replace(same[0], labels=tuple(labels), captions=tuple(told))


_CAPTIONED = TableFormat("", "", ("videoid", "video_id", "id", "file", "path", "filename"))
_TEXTS = ("name", "caption", "text", "sentence", "captions", "title")


def webvid(paths: Sequence[Path]) -> Iterator[Record]:
    """WebVid, `videoid,name,page_dir,...`, and tables like it: an id or file name and a caption; perhaps a split, and
    columns start and end."""
    for path in files_in(paths, "*.csv", "*.tsv", "*.jsonl", "*.parquet"):
        for row in rows_of(path, _CAPTIONED):
            text = next((name for name in _TEXTS if name in row), None)
            if text is None:
                raise SourceError(f"{path}:1: no column {' or '.join(_TEXTS[:4])}; found: {', '.join(row)}")
            if spans := sorted({"timestamp", "timestamps"} & row.keys()):
                raise SourceError(f"{path}: its column {spans[0]} holds spans, which WebVid has not; panda70m reads it")
            video, place = stem(_first(row, _CAPTIONED.video)), _first(row, ("page_dir",))
            start, end = _first(row, ("start", "start_time")), _first(row, ("end", "end_time"))
            begin, stop = seconds(start) if start else 0.0, seconds(end) if end else None
            cut = span_names(video, begin, stop) if stop is not None else ()
            yield Record(
                f"{place}/{video}" if place and video else video,
                begin,
                stop,
                (),
                captions(*listed(row[text])),
                split_of(_first(row, ("split",)), path),
                cut,
            )


@dataclass(frozen=True)
class OtherFormat:
    """A set that is no plain table: `read` makes its records; `about`, `files` and `media` as in `TableFormat`."""

    about: str
    files: str
    read: Callable[[Sequence[Path]], Iterator[Record]]
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
        told: dict[str, list[str]] = {}
        for record in activitynet_captions([path]):
            told.setdefault(record.video, []).extend(record.captions)
        yield from (
            Record(video, 0.0, None, (), captions(" ".join(said)), split_of("", path)) for video, said in told.items()
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
    for path in files_in(paths, "*.csv", "*.parquet"):
        for row in rows_of(path, form):
            video = _first(row, form.video)
            try:
                spans = [[seconds(time) for time in listed(span)] for span in _spans(row)]
                pairs = list(zip(spans, listed(row["caption"]), strict=True))
                for (start, end), text in pairs:
                    yield Record(
                        video, start, end, (), captions(text), split_of("", path), span_names(video, start, end)
                    )
            except ValueError as error:
                raise SourceError(
                    f"{path}: {video}: as many captions as spans [start, end] are expected ({error})"
                ) from error


def _spans(row: Row) -> Sequence[Cell]:
    cell = next((row[name] for name in ("timestamp", "timestamps") if name in row), "")
    if not isinstance(cell, str):
        return cell
    try:
        return [tuple(map(str, span)) for span in ast.literal_eval(cell)]
    except (SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError(f"{cell[:40]!r} is no list of spans") from error


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
                told = row["caption"] if isinstance(row["caption"], list) else [row["caption"]]
                yield Record(stem(str(row["id"])), captions=captions(*told), split=split_of("", path))
        except (KeyError, TypeError) as error:
            raise SourceError(f'{path}: expected {{"data": [{{"id", "caption"}}]}} ({error!r})') from error


def ego4d(paths: Sequence[Path]) -> Iterator[Record]:
    """Ego4D narrations: `{video: {narration_pass_1: {narrations: [{timestamp_sec, narration_text}]}}}`, a clip each."""
    for path in files_in(paths, "*.json"):
        data = read_json(path)
        try:
            for video, about in (data.get("videos") or data).items():
                passes = (part for name, part in about.items() if name.startswith("narration_pass") and part)
                told = [_narration(one) for part in passes for one in part["narrations"]]
                yield from narrated(video, told)
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
                told = captions(about.get("caption"))
                yield Record(path.relative_to(root).with_suffix("").as_posix(), captions=told, file=media)


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
