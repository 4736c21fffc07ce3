"""Published annotations that are plain tables: one declaration a format, and one reader for all of them.

A table may be CSV, TSV, JSON lines, a JSON list or Parquet (vatt.data.tables), whatever the set was published as. What
a set does not say in the form of rows and columns has a function of its own (vatt.data.sources.other).
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..media_types import AUDIO
from ..media_types import MEDIA_SUFFIXES as VIDEO
from ..tables import MAX_CELL, Cell, TableError, encoding_of, read_rows
from .records import (
    BLOCK,
    Record,
    SourceError,
    captions,
    files_in,
    listed,
    seconds,
    span_names,
    split_of,
    start_names,
    stem,
    transposed,
)

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
    form = replace(form, labels=(labels,)) if labels else form
    for path in files_in(paths, *form.patterns):
        records: Iterable[Record] = (
            _record(form, row, path, fold)
            for row in rows_of(path, form)
            if all(str(row.get(column, "")).lower() == value for column, value in form.only.items())
        )
        for record in _grouped(records) if form.grouped else records:
            yield joined(record) if paragraph else record


def joined(record: Record) -> Record:
    """`record` with its captions as one paragraph."""
    return record._replace(captions=captions(" ".join(record.captions)))


def rows_of(path: Path, form: TableFormat) -> Iterator[Row]:
    """Rows of a table by the names of its columns, lower case with `_`; raises `SourceError` where needed ones lack."""
    if form.columns:
        yield from _rows_without_names(path, form.columns)
        return
    for columns in columns_in(path, form):
        for cells in zip(*columns.values(), strict=True):
            yield dict(zip(columns, cells, strict=True))


def columns_in(path: Path, form: TableFormat) -> Iterator[dict[str, list[Cell]]]:
    """The same by columns, thousands of rows at a time; what stands before a fault is given before it is raised."""
    kept: list[list[Cell]] = []
    names: list[str] = []

    def packed() -> Iterator[dict[str, list[Cell]]]:
        if kept:
            columns: list[tuple[Cell, ...]] = transposed(kept)
            columns += [("",) * len(kept)] * (len(names) - len(columns))
            yield {name: list(column) for name, column in zip(names, columns, strict=False)}
            kept.clear()

    try:
        table = read_rows(path, form.video, frozenset())
        names += [name.replace("-", "_").replace(" ", "_") for name in table.columns]
        needed: list[tuple[str, ...]] = [
            form.video,
            form.start,
            form.end,
            *((name,) for name in (*form.captions[:1], *form.labels) if "{" not in name),
        ]
        for columns in needed:
            if columns and not set(columns) & set(names):
                raise SourceError(f"{path}: no column {' or '.join(columns)}; found: {', '.join(names) or 'nothing'}")
        for number, cells in table.rows:
            if len(cells) > len(names) and any(cells[len(names) :]):
                raise SourceError(f"{path}:{number}: more cells than the {len(names)} columns; put commas in quotes")
            if any(cells):
                kept.append(cells)
                if len(kept) == BLOCK:
                    yield from packed()
    except (TableError, SourceError) as error:
        yield from packed()
        raise SourceError(str(error)) from error
    yield from packed()


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
                    row: Row = {}
                    row.update(zip(columns, cells, strict=True))
                    yield row
    except (UnicodeDecodeError, csv.Error) as error:
        raise SourceError(f"{path}: cannot be read as a table ({error})") from error


def _record(form: TableFormat, row: Row, path: Path, fold: int) -> Record:
    name = stem(first_of(row, form.video))
    start, end = first_of(row, form.start), first_of(row, form.end)
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
    split = split_of(first_of(row, form.split), path)
    if form.fold:
        split = "test" if first_of(row, (form.fold,)) == str(fold) else "train"
    texts = captions(*_pieces(row, form.captions, form.caption_divider))
    named = dict.fromkeys(filter(None, map(form.tidy, _pieces(row, form.labels, form.divider))))
    return Record(video, begin, stop, tuple(named), texts, split, cut)


def first_column(of: Mapping[str, Sequence[Cell]], columns: Sequence[str]) -> list[str]:
    """`first_of` each row."""
    for column in columns:
        if column in of:
            return [cell if isinstance(cell, str) else " ".join(cell) for cell in of[column]]
    return [""] * len(next(iter(of.values())))


def first_of(row: Row, columns: Sequence[str]) -> str:
    for column in columns:
        cell = row.get(column)
        if cell is not None:
            return cell if isinstance(cell, str) else " ".join(cell)
    return ""


def _pieces(row: Row, columns: Sequence[str], divider: str) -> Iterator[str]:
    """The texts of `columns`, those of lists and between dividers apart."""
    for column in columns:
        if "{" in column:
            yield column.format_map({name: first_of(row, (name,)) for name in row})
            continue
        for text in listed(row.get(column, "")):
            yield from text.split(divider) if divider else [text]


def _grouped(records: Iterable[Record]) -> Iterator[Record]:
    """Records of one clip as one, in the order of the first."""
    clips: dict[tuple[object, ...], list[Record]] = {}
    for record in records:
        clips.setdefault((record.video, record.start, record.end, record.split), []).append(record)
    for same in clips.values():
        labels = dict.fromkeys(label for record in same for label in record.labels)
        told = dict.fromkeys(text for record in same for text in record.captions)
        yield same[0]._replace(labels=tuple(labels), captions=tuple(told))
