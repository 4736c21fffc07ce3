"""Native annotations of classification sets: one function a format, from its files to `Record`s."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from .blocks import Block, Cut, columns_of, ones, seconds_of, splits_of
from .records import (
    Name,
    Record,
    SourceError,
    files_in,
    read_cell_blocks,
    read_columns,
    read_json,
    read_lines,
    read_table,
    span_names,
    split_called,
    split_of,
    start_names,
    stem,
)

AUDIOSET_SECONDS = VGGSOUND_SECONDS = 10.0


def kinetics(paths: Sequence[Path]) -> Iterator[Block]:
    """Kinetics-400, 600 and 700: `label,youtube_id,time_start,time_end,split`; test lists have no label."""
    columns = {
        "video": ("youtube_id", "video_id"),
        "start": ("time_start", "start_time"),
        "end": ("time_end", "end_time"),
    }
    for path in files_in(paths, "*.csv"):
        for of in read_columns(path, columns, ("label", "label_name", "split")):
            labels = of.get("label") or of.get("label_name") or [""] * len(of["video"])
            if "" in labels and "label_name" in of:
                labels = [one or other for one, other in zip(labels, of["label_name"], strict=True)]
            yield Block(
                of["video"],
                seconds_of(of["start"]),
                seconds_of(of["end"]),
                ones(labels),
                [()] * len(labels),
                splits_of(of.get("split", [""] * len(labels)), path),
                Cut(span_names),
            )


def moments(paths: Sequence[Path]) -> Iterator[Block]:
    """Moments in Time, trainingSet.csv and validationSet.csv: `label/file.mp4,label,votes,votes`, no column names.

    A label's `+` is a space.
    """
    for path in files_in(paths, "*Set.csv"):
        for rows in read_cell_blocks(path):
            if one := next((row for row in rows if len(row) < 2), None):
                name = one[0].strip()
                raise SourceError(f"{path}: a row of one cell, {name!r}; rows are: label/file.mp4,label,votes,votes")
            files, named, *_ = columns_of(rows)
            yield whole(list(map(stem, files)), ones([name.replace("+", " ") for name in named]), split_of("", path))


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


def imagenet(paths: Sequence[Path]) -> Iterator[Block]:
    """ImageNet (ILSVRC 2012), LOC_train_solution.csv and LOC_val_solution.csv: `ImageId,PredictionString`.

    The string names a class (a WordNet id) for each box; the first is the picture's.
    """
    for path in files_in(paths, "LOC_*_solution.csv"):
        for of in read_columns(path, {"image": ("imageid",), "boxes": ("predictionstring",)}, ()):
            yield whole(of["image"], [tuple(boxes.split()[:1]) for boxes in of["boxes"]], split_of("", path))


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


def audioset(paths: Sequence[Path], classes: Path | None = None) -> Iterator[Block]:
    """AudioSet: `id, start, end, "mid,mid"` under comments, or JSON with `data: [{video_id, wav, labels}]`.

    `classes`: class_labels_indices.csv (default: the one beside the annotation, if any), which turns mids into names.
    eval_segments.csv is the test split.
    """
    for path in files_in(paths, "*segments*.csv", "*.json"):
        names = _audioset_names(path, classes)
        for video, start, end, labels in _audioset_json(path) if path.suffix == ".json" else _audioset_csv(path):
            if names:
                for row, mids in enumerate(labels):
                    if unknown := [mid for mid in mids if mid not in names]:
                        raise SourceError(
                            f"{path}: class {unknown[0]} of {video[row]} is not in the class list; give its --classes"
                        )
                labels = [tuple(map(names.__getitem__, mids)) for mids in labels]
            n = len(video)
            yield Block(video, start, end, labels, [()] * n, [split_of("", path)] * n, Cut(_audioset_cuts, "Y"))


def _audioset_cuts(video: str, start: float, end: float | None) -> tuple[Name, ...]:
    return (*span_names(video, start, end), *start_names(video, start))


def vggsound(paths: Sequence[Path]) -> Iterator[Block]:
    """VGGSound: `id,start,label,split`, or its train.csv and test.csv, `id_000030.mp4,label`; 10 s each."""
    for path in files_in(paths, "vggsound.csv", "train.csv", "test.csv"):
        known = {"": split_of("", path)}
        for rows in read_cell_blocks(path):
            if not {2, 4} >= set(map(len, rows)):
                one = next(row for row in rows if len(row) not in (2, 4))
                raise SourceError(
                    f"{path}: a row of {len(one)} cells, {','.join(map(str.strip, one))!r}; rows are: "
                    "id,start,label,split or: id_000030.mp4,label"
                )
            for i, row in enumerate(rows):
                if len(row) == 2:
                    video, _, begin = stem(row[0].strip()).rpartition("_")
                    rows[i] = [video, begin, row[1], ""]
            videos, begins, labels, splits = columns_of(rows)
            for name in set(splits) - known.keys():
                known[name] = split_called(name) or split_of("", path)
            starts = seconds_of(begins)
            yield Block(
                videos,
                starts,
                [start + VGGSOUND_SECONDS for start in starts],
                ones(labels),
                [()] * len(rows),
                [known[name] for name in splits],
                Cut(_vggsound_cuts),
            )


def _vggsound_cuts(video: str, start: float, end: float | None) -> tuple[Name, ...]:
    return (*start_names(video, start), *span_names(video, start, end))


_Rows = tuple[Sequence[str], Sequence[float], Sequence[float], list[tuple[str, ...]]]  # video, start, end, labels


def _audioset_csv(path: Path) -> Iterator[_Rows]:
    for rows in read_cell_blocks(path):
        if short := next((row for row in rows if len(row) < 4), None):
            cells = ",".join(map(str.strip, short))
            raise SourceError(f"{path}: a row of {len(short)} cells, {cells!r}; rows are: id, start, end, labels")
        video, start, end = columns_of([row[:3] for row in rows])
        # Copies exist that quote each label alone, some twice, and pad the rows with commas.
        labels = [
            tuple([mid for cell in row[3:] for label in cell.strip().split(",") if (mid := label.strip(' "'))])
            for row in rows
        ]
        yield video, seconds_of(start), seconds_of(end), labels


def _audioset_json(path: Path) -> Iterator[_Rows]:
    data = read_json(path)
    try:
        rows = [(row["video_id"], stem(row["wav"]).rpartition("_")[2], row["labels"]) for row in data["data"]]
        labels = [tuple(mids.split(",")) for *_, mids in rows]
    except (KeyError, TypeError, AttributeError) as error:
        raise SourceError(f'{path}: expected {{"data": [{{"video_id", "wav", "labels"}}]}} ({error!r})') from error
    starts = seconds_of([start for _, start, _ in rows])
    yield [video for video, *_ in rows], starts, [start + AUDIOSET_SECONDS for start in starts], labels


def _audioset_names(path: Path, classes: Path | None) -> dict[str, str]:
    beside = path.parent / "class_labels_indices.csv"
    if classes is None and not beside.is_file():
        return {}
    columns = {"mid": ("mid",), "name": ("display_name",)}
    return {row["mid"]: row["name"] for row in read_table(classes or beside, columns)}


def whole(videos: Sequence[str], labels: Sequence[tuple[str, ...]], split: str) -> Block:
    """Videos that are clips as they are."""
    n = len(videos)
    return Block(videos, [0.0] * n, [None] * n, labels, [()] * n, [split] * n)
