"""Native annotations of classification sets: one function a format, from its files to `Record`s."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from .records import (
    Record,
    SourceError,
    files_in,
    read_cells,
    read_json,
    read_lines,
    read_table,
    seconds,
    span_names,
    split_called,
    split_of,
    start_names,
    stem,
)

AUDIOSET_SECONDS = VGGSOUND_SECONDS = 10.0


def kinetics(paths: Sequence[Path]) -> Iterator[Record]:
    """Kinetics-400, 600 and 700: `label,youtube_id,time_start,time_end,split`; test lists have no label."""
    columns = {
        "video": ("youtube_id", "video_id"),
        "start": ("time_start", "start_time"),
        "end": ("time_end", "end_time"),
    }
    for path in files_in(paths, "*.csv"):
        for row in read_table(path, columns):
            start, end = seconds(row["start"]), seconds(row["end"])
            label = row.get("label") or row.get("label_name")
            cut = span_names(row["video"], start, end)
            yield Record(row["video"], start, end, _one(label), (), split_of(row.get("split", ""), path), cut)


def moments(paths: Sequence[Path]) -> Iterator[Record]:
    """Moments in Time, trainingSet.csv and validationSet.csv: `label/file.mp4,label,votes,votes`, no column names.

    A label's `+` is a space.
    """
    for path in files_in(paths, "*Set.csv"):
        for row in read_cells(path):
            if len(row) < 2:
                raise SourceError(f"{path}: a row of one cell, {row[0]!r}; rows are: label/file.mp4,label,votes,votes")
            yield Record(stem(row[0]), labels=_one(row[1].replace("+", " ")), split=split_of("", path))


def ucf101(paths: Sequence[Path], fold: int) -> Iterator[Record]:
    """UCF101: trainlist0N.txt (`Label/file.avi 1`) and testlist0N.txt (no number); of a folder, those of one split."""
    for path in files_in(paths, f"*list0{fold}.txt"):
        for line in read_lines(path):
            name, _, number = line.partition(".avi")
            label = PurePosixPath(name).parent.name
            if not label or (number and not number.strip().isdigit()):
                raise SourceError(f"{path}: {line!r} is no line of a list; they are: Label/file.avi [number]")
            yield Record(name, labels=(label,), split=split_of("", path))


def hmdb51(paths: Sequence[Path], fold: int) -> Iterator[Record]:
    """HMDB51, one of three splits; its unused videos are left out.

    Either the official LABEL_test_splitN.txt (`file.avi 1`) or one CSV, `video_id,label,split1,split2,split3`, in which
    labels may carry the `_test` of those names. 1 is train, 2 test, 0 unused.
    """
    splits = {"1": "train", "2": "test"}
    for path in files_in(paths, f"*_test_split{fold}.txt", "*.csv"):
        if path.suffix == ".csv":
            rows = [
                (row["video"], row["label"], row["use"])
                for row in read_table(path, {"video": ("video_id",), "label": ("label",), "use": (f"split{fold}",)})
            ]
        else:
            rows = [(name, path.stem, use) for name, _, use in (line.rpartition(" ") for line in read_lines(path))]
        for name, label, use in rows:
            if use not in ("0", "1", "2"):
                raise SourceError(f"{path}: {name!r} is marked {use!r}; 1 is train, 2 test, 0 unused")
            if use != "0":
                label = label.removesuffix(f"_test_split{fold}").removesuffix("_test")
                yield Record(stem(name), labels=(label,), split=splits[use])


def imagenet(paths: Sequence[Path]) -> Iterator[Record]:
    """ImageNet (ILSVRC 2012), LOC_train_solution.csv and LOC_val_solution.csv: `ImageId,PredictionString`.

    The string names a class (a WordNet id) for each box; the first is the picture's.
    """
    for path in files_in(paths, "LOC_*_solution.csv"):
        for row in read_table(path, {"image": ("imageid",), "boxes": ("predictionstring",)}):
            yield Record(row["image"], labels=tuple(row["boxes"].split()[:1]), split=split_of("", path))


def esc50(paths: Sequence[Path], fold: int, only_ten: bool = False) -> Iterator[Record]:
    """ESC-50: `filename,fold,target,category,esc10,...`; one of five folds is the test split. `only_ten`: ESC-10.

    A table without an `esc10` column is taken to hold the wanted clips only.
    """
    for path in files_in(paths, "esc*.csv"):
        columns = {"file": ("filename", "file"), "fold": ("fold",), "label": ("category",)}
        for row in read_table(path, columns):
            if only_ten and row.get("esc10", "true").lower() not in ("true", "1"):
                continue
            yield Record(
                stem(row["file"]), labels=(row["label"],), split="test" if row["fold"] == str(fold) else "train"
            )


def audioset(paths: Sequence[Path], classes: Path | None = None) -> Iterator[Record]:
    """AudioSet: `id, start, end, "mid,mid"` under comments, or JSON with `data: [{video_id, wav, labels}]`.

    `classes`: class_labels_indices.csv (default: the one beside the annotation, if any), which turns mids into names.
    eval_segments.csv is the test split.
    """
    for path in files_in(paths, "*segments*.csv", "*.json"):
        names = _audioset_names(path, classes)
        for video, start, end, labels in _audioset_json(path) if path.suffix == ".json" else _audioset_csv(path):
            unknown = [label for label in labels if names and label not in names]
            if unknown:
                raise SourceError(f"{path}: class {unknown[0]} of {video} is not in the class list; give its --classes")
            cut = (*span_names(video, start, end), *start_names(video, start), (f"Y{video}",))
            yield Record(video, start, end, tuple(names.get(i, i) for i in labels), (), split_of("", path), cut)


def vggsound(paths: Sequence[Path]) -> Iterator[Record]:
    """VGGSound: `id,start,label,split`, or its train.csv and test.csv, `id_000030.mp4,label`; 10 s each."""
    for path in files_in(paths, "vggsound.csv", "train.csv", "test.csv"):
        for row in read_cells(path):
            if len(row) == 4:
                video, begin, label, split = row
            elif len(row) == 2:
                (video, _, begin), label, split = stem(row[0]).rpartition("_"), row[1], ""
            else:
                raise SourceError(
                    f"{path}: a row of {len(row)} cells, {','.join(row)!r}; rows are: "
                    "id,start,label,split or: id_000030.mp4,label"
                )
            start = seconds(begin)
            end = start + VGGSOUND_SECONDS
            cut = (*start_names(video, start), *span_names(video, start, end))
            yield Record(video, start, end, _one(label), (), split_called(split) or split_of("", path), cut)


def _audioset_csv(path: Path) -> Iterator[tuple[str, float, float, list[str]]]:
    for row in read_cells(path):
        if len(row) < 4:
            raise SourceError(f"{path}: a row of {len(row)} cells, {','.join(row)!r}; rows are: id, start, end, labels")
        # Copies exist that quote each label alone, some twice, and pad the rows with commas.
        labels = [label.strip(' "') for cell in row[3:] for label in cell.split(",")]
        yield row[0], seconds(row[1]), seconds(row[2]), [label for label in labels if label]


def _audioset_json(path: Path) -> Iterator[tuple[str, float, float, list[str]]]:
    data = read_json(path)
    try:
        for row in data["data"]:
            start = seconds(stem(row["wav"]).rpartition("_")[2])
            yield row["video_id"], start, start + AUDIOSET_SECONDS, row["labels"].split(",")
    except (KeyError, TypeError, AttributeError) as error:
        raise SourceError(f'{path}: expected {{"data": [{{"video_id", "wav", "labels"}}]}} ({error!r})') from error


def _audioset_names(path: Path, classes: Path | None) -> dict[str, str]:
    beside = path.parent / "class_labels_indices.csv"
    if classes is None and not beside.is_file():
        return {}
    columns = {"mid": ("mid",), "name": ("display_name",)}
    return {row["mid"]: row["name"] for row in read_table(classes or beside, columns)}


def _one(label: str | None) -> tuple[str, ...]:
    return (label,) if label else ()
