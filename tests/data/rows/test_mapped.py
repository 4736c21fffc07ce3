"""Large tables: rows in an Arrow file that processes map, the same clips and the same batches as from memory."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from helpers.loader_corpus import DATA, MODEL, same, training, words_of, write_corpus
from pyarrow import parquet

from vatt.checkpoints.fingerprints import fingerprint
from vatt.data import manifest as reading
from vatt.data import tables
from vatt.data.check import check_source, doubts, parse_arguments, survey_of
from vatt.data.clip import Manifest, ManifestError
from vatt.data.datasets.training import ClipDataset
from vatt.data.loader import make_loader
from vatt.data.manifest import read_manifest
from vatt.data.rows import mapped
from vatt.data.rows.survey import survey
from vatt.data.sources.__main__ import main as import_source
from vatt.data.tokenizer import Tokenizer
from vatt.errors import DataError

TABLE = """path,start,end,caption,label,split
a.mp4,0.5,4,"one, two | Three one",run | jump,train
b.mp4,,,,walk,test
a.mp4,4,6,one,,test
sub/c.mp4,,,NaN,run,
b.mp4,,,"['a', 'b']",walk,test
"""
Large = Callable[[], None]


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> Large:
    """Call it, and every table is taken for a large one. Batches of the Arrow file are of two rows."""

    def set_least() -> None:
        monkeypatch.setattr(reading, "MAPPED_BYTES", 1)
        monkeypatch.setattr(mapped, "BATCH", 2)

    return set_least


def test_all_that_is_asked_of_a_manifest(tmp_path: Path, large: Large) -> None:
    (tmp_path / "m.csv").write_text(TABLE)
    memory = read_manifest(tmp_path / "m.csv")
    large()
    rows = read_manifest(tmp_path / "m.csv")
    assert rows.rows is not None
    assert memory.rows is None
    for name in (None, "train", "test", "nowhere"):
        one, other = (m if name is None else m.split(name) for m in (memory, rows))
        assert tuple(one) == tuple(other)
        assert (len(one), one.splits, one.labels, one.notes) == (len(other), other.splits, other.labels, other.notes)
        assert one[1:4] == other[1:4]
        assert fingerprint(one) == fingerprint(other)
        assert one.file_count == other.file_count
        assert [one.at(clip.index) for clip in one] == [other.at(clip.index) for clip in one]
        places = np.arange(len(one))
        numbers = one.file_numbers(places), other.file_numbers(places)
        assert (numbers[0][:, None] == numbers[0]).tolist() == (numbers[1][:, None] == numbers[1]).tolist()
        assert list(one.of_files([tmp_path / "a.mp4"])) == list(other.of_files([tmp_path / "a.mp4"]))
        assert tuple(one.one_clip_a_span()) == tuple(other.one_clip_a_span())
        words = Tokenizer.build((caption for clip in one for caption in clip.captions), 20)
        assert other.rows is not None
        assert Tokenizer.of_ranked(other.rows.words(), 20).words == words.words
    assert rows[-1] == memory[-1]
    assert asdict(survey_of(rows)) == asdict(survey(memory))
    assert list(doubts(rows, survey_of(rows))) == list(doubts(memory, survey_of(memory)))


def test_counts_of_what_is_odd(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text(TABLE)
    counted = survey(read_manifest(tmp_path / "m.csv"))
    assert (counted.clips, counted.files, counted.splits) == (5, 3, {"train": 1, "test": 3, "none": 1})
    assert (counted.told, counted.captions, counted.labelled, counted.empty) == (4, 5, 4, 1)
    assert (counted.shared, counted.first_shared, counted.shared_by) == (1, 0, ["test", "train"])
    assert (counted.repeated, counted.same_span, counted.untrained) == (1, 1, ["walk"])


def test_the_second_opening_reads_no_table_and_workers_get_a_path(
    tmp_path: Path, large: Large, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m.csv").write_text(TABLE)
    large()
    first = read_manifest(tmp_path / "m.csv")
    monkeypatch.setattr(reading, "read_rows", None)
    again = read_manifest(tmp_path / "m.csv")
    assert tuple(first) == tuple(again)
    sent = pickle.dumps(again.split("test").clips)
    assert len(sent) < 1000
    assert tuple(pickle.loads(sent)) == tuple(again.split("test"))
    os.rename(tmp_path, tmp_path.with_name("elsewhere"))  # the folder moves with all that is in it
    moved = read_manifest(tmp_path.with_name("elsewhere") / "m.csv")
    assert [clip.name for clip in moved] == [clip.name for clip in first]


def test_an_index_of_another_state_is_made_anew(tmp_path: Path, large: Large) -> None:
    table = tmp_path / "m.csv"
    table.write_text(TABLE)
    large()
    before = read_manifest(table)
    sent = pickle.dumps(before.clips)
    table.write_text(TABLE.replace("sub/c.mp4,,,NaN,run,\n", ""))  # rows that vanish while a run lasts
    after = read_manifest(table)
    assert (len(before), len(after)) == (5, 4)
    assert len(tuple(before)) == 5  # a process that has it goes on with what it had
    with pytest.raises(DataError, match="changed while it was in use"):
        pickle.loads(sent)
    arrow = tmp_path / "m.csv.index" / "rows.arrow"
    arrow.write_bytes(arrow.read_bytes()[:-100])
    assert tuple(read_manifest(table)) == tuple(after)
    assert len(read_manifest(table, "label=")) == 4  # other columns are another index
    assert sorted(path.name.endswith(".index") for path in tmp_path.iterdir()) == [False, True, True]


def test_where_nothing_can_be_written_the_index_lies_in_the_cache(
    tmp_path: Path, large: Large, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VATT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    (tmp_path / "data/m.csv").write_text(TABLE)
    large()
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert len(read_manifest(tmp_path / "data/m.csv")) == 5
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["m.csv"]
    assert list((tmp_path / "cache/manifests").glob("*-m.csv.index"))


def test_a_row_that_is_wrong_leaves_no_index(tmp_path: Path, large: Large) -> None:
    (tmp_path / "m.csv").write_text(TABLE + "d.mp4,4,2,,,\n")
    large()
    with pytest.raises(ManifestError, match=r"m\.csv:7: end 2 s is not after start 4 s"):
        read_manifest(tmp_path / "m.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["m.csv"]


def test_an_index_does_not_lead_out_of_its_folder(tmp_path: Path, large: Large) -> None:
    for name, file in (("good", "a.mp4"), ("evil", "../secret.mp4")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "m.csv").write_text(f"path\n{file}\n")
    large()
    with pytest.raises(ManifestError, match="leads out of"):
        read_manifest(tmp_path / "evil/m.csv")
    good = read_manifest(tmp_path / "good/m.csv")
    assert isinstance(good.rows, mapped.MappedRows)
    table = pyarrow.ipc.open_file(str(good.rows.folder / "rows.arrow")).read_all()
    changed = table.set_column(0, "name", pyarrow.array(["../secret.mp4"]))
    with pyarrow.ipc.new_file(str(good.rows.folder / "rows.arrow"), changed.schema) as writer:
        writer.write_table(changed)
    about = good.rows.folder / "about.json"
    size = (good.rows.folder / "rows.arrow").stat().st_size
    about.write_text(
        about.read_text().replace(f'"rows.arrow": {good.rows.about["sizes"]["rows.arrow"]}', f'"rows.arrow": {size}')
    )
    with pytest.raises(ManifestError, match="leads out of"):
        read_manifest(tmp_path / "good/m.csv")[0]


def test_without_pyarrow_rows_stay_in_memory_and_it_is_said(
    tmp_path: Path, large: Large, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m.csv").write_text(TABLE)
    large()
    monkeypatch.setattr(reading, "find_spec", lambda name: None)
    manifest = read_manifest(tmp_path / "m.csv")
    assert manifest.rows is None
    assert any(r"pip install -e '.[features]'" in note for note in manifest.notes)


def part(file: Path, /, **columns: object) -> None:
    file.parent.mkdir(exist_ok=True)
    parquet.write_table(pyarrow.table(columns), file)


def test_a_folder_of_parts_is_one_table(tmp_path: Path, large: Large) -> None:
    part(tmp_path / "rows/0.parquet", path=["a.mp4", "b.mp4"], caption=["one", None])
    part(tmp_path / "rows/1.parquet", caption=[None], path=["a.mp4"])  # a column of nulls, and another order
    (tmp_path / "rows/_SUCCESS").touch()
    one = read_manifest(tmp_path / "rows")
    assert [(clip.index, clip.path, clip.captions) for clip in one] == [
        (0, tmp_path / "a.mp4", ("one",)),
        (1, tmp_path / "b.mp4", ()),
        (2, tmp_path / "a.mp4", ()),
    ]
    assert survey(one).repeated == 1  # the same row in two parts
    assert check_source(parse_arguments([str(tmp_path / "rows"), "--workers=1"])) == 1
    large()
    assert tuple(read_manifest(tmp_path / "rows")) == tuple(one)
    part(tmp_path / "rows/2.parquet", path=["c.mp4"], caption=["x"])
    assert len(read_manifest(tmp_path / "rows")) == 4


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (
            {"path": ["b.mp4"], "title": ["x"]},
            r"1\.parquet: its columns are path, title, those of 0\.parquet path, cap",
        ),
        ({"path": ["b.mp4"], "caption": [1.5]}, r"1\.parquet: its column caption is of numbers \(double\)"),
        ({"path": [b"b.mp4"], "caption": ["x"]}, r"1\.parquet: its column path is of no text \(binary\)"),
        ({"path": [""], "caption": ["x"]}, r"rows/1\.parquet:1: no path"),
    ],
)
def test_parts_that_do_not_fit(tmp_path: Path, columns: dict[str, list[object]], words: str) -> None:
    part(tmp_path / "rows/0.parquet", path=["a.mp4"], caption=["one"])
    part(tmp_path / "rows/1.parquet", **columns)
    with pytest.raises(ManifestError, match=words):
        read_manifest(tmp_path / "rows")


def test_columns_of_no_use_and_truncated_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part(tmp_path / "numbers.parquet", path=[1, 2])
    with pytest.raises(ManifestError, match="its column path holds numbers"):
        read_manifest(tmp_path / "numbers.parquet")
    part(tmp_path / "rows/0.parquet", path=["a.mp4"] * 1000)
    part(tmp_path / "rows/1.parquet", path=[f"{i}.mp4" for i in range(1000)])
    whole = (tmp_path / "rows/1.parquet").read_bytes()
    (tmp_path / "rows/1.parquet").write_bytes(whole[: len(whole) // 2])
    monkeypatch.setattr(tables, "cell_of", None)  # before any row is read
    with pytest.raises(ManifestError, match=r"1\.parquet: not a Parquet table"):
        read_manifest(tmp_path / "rows")


def narrations(folder: Path) -> None:
    (folder / "media").mkdir()
    lines = ["video_id,start,end,text"]
    for video in ("v1", "v2"):
        (folder / f"media/{video}.mp4").touch()
        lines += [f"{video},{3 * i + i % 2},{3 * i + 1 + i % 5},{video} says {i}" for i in range(9)]
    (folder / "told.csv").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("every", [1, 4])
def test_candidates_of_narrations_are_looked_for_when_they_are_read(tmp_path: Path, large: Large, every: int) -> None:
    narrations(tmp_path)
    command = ["howto100m", str(tmp_path / "told.csv"), "--media", str(tmp_path / "media"), f"--every={every}"]
    for name in ("m.csv", "m.parquet"):
        assert import_source([*command, "--out", str(tmp_path / name)]) == 0
    wanted = [replace(clip, index=0) for clip in read_manifest(tmp_path / "m.csv")]
    assert len(wanted[0].captions) == 5
    memory = read_manifest(tmp_path / "m.parquet")
    large()
    rows = read_manifest(tmp_path / "m.parquet")
    for manifest in (memory, rows):
        assert [replace(clip, index=0) for clip in manifest.split("train")] == wanted
    assert tuple(memory) == tuple(rows)
    assert fingerprint(memory) == fingerprint(rows)
    assert rows.rows is not None
    assert parquet.read_table(tmp_path / "m.parquet").column_names[3] == "narration"


@pytest.mark.parametrize("rows", ["a,3,4,x\na,1,2,y\n", "a,1,2,x\nb,1,2,y\na,3,4,z\n"])
def test_narrations_of_a_file_stand_together_in_order(tmp_path: Path, large: Large, rows: str) -> None:
    (tmp_path / "m.csv").write_text("path,start,end,narration\n" + rows)
    for _ in range(2):
        with pytest.raises(ManifestError, match="stand together, in order of their start"):
            read_manifest(tmp_path / "m.csv")
        large()


def test_batches_are_those_of_a_manifest_in_memory(tmp_path: Path, large: Large) -> None:
    folder = write_corpus(tmp_path).root
    lines = (folder / "manifest.csv").read_text().splitlines()
    (folder / "rows.csv").write_text("\n".join([*lines[:11], *lines[1:6]]) + "\n")  # five files have two rows
    memory = read_manifest(folder / "rows.csv")
    large()
    rows: Manifest = read_manifest(folder / "rows.csv")
    one, other = (training(manifest, words_of(memory)) for manifest in (memory, rows))
    assert sum(map(other.repeats, range(9))) > 0
    batches = list(make_loader(other, 0, 3, 1))
    assert all(same(one[step], batch) for step, batch in enumerate(batches))
    old = replace(DATA, order=1)
    assert ClipDataset(rows, old, MODEL, words_of(memory), 7).planned(1, 2) == ClipDataset(
        memory, old, MODEL, words_of(memory), 7
    ).planned(1, 2)
