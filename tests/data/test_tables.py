"""Tables and folders as people have them: each becomes the clips it lists, or is refused with the true reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import small_run

from vatt import finetune
from vatt.data.clip import Clip, Manifest, ManifestError
from vatt.data.manifest import read_manifest, write_manifest
from vatt.data.tables import MAX_CELL, parse_seconds
from vatt.errors import ConfigError


def read(folder: Path, text: str, name: str = "m.csv", columns: str = "", encoding: str = "utf-8") -> Manifest:
    (folder / name).write_bytes(text.encode(encoding))
    return read_manifest(folder / name, columns)


def rows(manifest: Manifest) -> list[tuple[Any, ...]]:
    return [(clip.name, clip.start, clip.end, clip.captions, clip.label, clip.split) for clip in manifest]


PLAIN = [("a, b.mp4", 62.5, 3723.0, ("one; two", "three"), "x", "test"), ("c.mp4", 0.0, None, (), None, "train")]


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (",", "utf-8"),
        (";", "utf-8-sig"),
        ("\t", "utf-8"),
        ("\t", "utf-16"),
        (";", "utf-16"),
    ],
)
def test_marks_and_encodings(mark: str, encoding: str, tmp_path: Path) -> None:
    lines = [
        ["path", "start", "end", "caption", "label", "split"],
        ['"a, b.mp4"', "1:02.5", "01:02:03", '"one; two | three"', "x", "test"],
        ["c.mp4", "", "", "", "", "train"],
    ]
    found = read(tmp_path, "\r\n".join(mark.join(line) for line in lines) + "\r\n", encoding=encoding)
    assert rows(found) == PLAIN
    assert found.notes == ()


def test_rows_of_json_and_parquet(tmp_path: Path) -> None:
    data = [
        {
            "path": "a, b.mp4",
            "start": 62.5,
            "end": "1:02:03",
            "caption": ["one; two", None, " three | "],
            "label": "x",
            "split": "test",
        },
        {"path": "c.mp4", "caption": None, "label": None, "split": "train", "start": None, "end": float("nan")},
    ]
    assert rows(read(tmp_path, "\n".join(map(json.dumps, data)) + "\n", "m.jsonl")) == PLAIN
    assert rows(read(tmp_path, json.dumps(data), "m.json")) == PLAIN
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = {name: [row.get(name) for row in data] for name in data[0]}
    columns["end"] = [3723.0, float("nan")]
    parquet.write_table(arrow.table(columns), tmp_path / "m.parquet")
    assert rows(read_manifest(tmp_path / "m.parquet")) == PLAIN
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no table")
    for name, text in (("no.jsonl", "{\n"), ("no.json", '{"a": 1}'), ("list.jsonl", "[1]\n"), ("empty.jsonl", "\n")):
        with pytest.raises(ManifestError, match=name):
            read(tmp_path, text, name)
    with pytest.raises(ManifestError, match=r"broken\.parquet: not a Parquet table"):
        read_manifest(tmp_path / "broken.parquet")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("boats/a_000012.mp4 0\nboats/x y.mp4 1\n", [("boats/a_000012.mp4", "0"), ("boats/x y.mp4", "1")]),
        ("x y.mp4,red car\nz.webm,boat\n", [("x y.mp4", "red car"), ("z.webm", "boat")]),
        ("a.mp4\t3\n", [("a.mp4", "3")]),
        ("a b.mp4 163 7\nc.mp4 20 8\n", [("a b.mp4", "7"), ("c.mp4", "8")]),
        ("a b.mp4\n\nc.wav\n", [("a b.mp4", None), ("c.wav", None)]),
    ],
)
def test_lists_without_a_line_of_names(text: str, expected: list[tuple[str, str | None]], tmp_path: Path) -> None:
    found = read(tmp_path, text, "list.txt")
    assert [(clip.name, clip.label) for clip in found] == expected
    assert "names no columns" in found.notes[0]


def test_lists_that_change_their_form_are_refused(tmp_path: Path) -> None:
    cases = {
        "a.mp4 0\nb.mp4\n": r":2: 'b\.mp4' is not a file and its label",
        "a.mp4,x,3\n": "3 cells and no names",
        "frames/a 163 7\n": "no column `path`",
    }
    for text, reason in cases.items():
        with pytest.raises(ManifestError, match=reason):
            read(tmp_path, text, "list.txt")


def test_columns_of_near_names_are_told_and_can_be_meant(tmp_path: Path) -> None:
    text = "path,title,class\na.mp4,a red car,boat\n"
    found = read(tmp_path, text)
    assert rows(found) == [("a.mp4", 0.0, None, (), None, "train")]
    assert ["--columns caption=title reads it" in found.notes[0], "`class`" in found.notes[1]] == [True, True]
    meant = read(tmp_path, text, columns="caption=title, label=")
    assert (meant[0].captions, meant[0].label, meant.notes) == (("a red car",), None, ())
    with pytest.raises(ManifestError, match=r"no column `path` .*--columns path=filepath takes that one"):
        read(tmp_path, "filepath;caption\na.mp4;b\n")
    assert read(tmp_path, "filepath;caption\na.mp4;b\n", columns="path=filepath")[0].captions == ("b",)
    with pytest.raises(ConfigError, match=r"--columns caption=words, but the columns are path, title"):
        read(tmp_path, "path,title\na.mp4,b\n", columns="caption=words")
    for wrong in ("caption", "colour=a", "path="):
        with pytest.raises(ConfigError, match="--columns takes"):
            read(tmp_path, text, columns=wrong)
    lists = read(tmp_path, "path,caption\na.mp4,\"['red', 'blue']\"\n")
    assert "1 captions look like lists" in lists.notes[0]


def test_long_captions_are_read_and_too_long_ones_refused(tmp_path: Path) -> None:
    text = " ".join(f"word{i % 500}" for i in range(20_000))
    found = read(tmp_path, f'path,caption\na.mp4,"{text}"\nb.mp4,short\n')
    assert found[0].captions == (text,)
    write_manifest(tmp_path / "again.csv", found)
    assert read_manifest(tmp_path / "again.csv")[0].captions == (text,)
    with pytest.raises(ManifestError, match=r"m\.csv:2: a cell of more than 1,048,576 characters"):
        read(tmp_path, f"path,caption\na.mp4,{'x' * (MAX_CELL + 1)}\n")
    with pytest.raises(ManifestError, match=r"a\.mp4: captions of 1,048,577 characters"):
        write_manifest(tmp_path / "long.csv", [Clip(0, tmp_path / "a.mp4", "a.mp4", captions=("x" * (MAX_CELL + 1),))])


def test_other_encodings_are_named(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"not UTF-8 text .*iconv"):
        read(tmp_path, "path,caption\na.mp4,Ã©tÃ© \xe9\n", encoding="latin1")


def test_times(tmp_path: Path) -> None:
    assert [parse_seconds(text) for text in ("83.5", "83,5", "1:23.5", "0:01:23.500", "00:00:32,165")] == [
        83.5,
        83.5,
        83.5,
        83.5,
        32.165,
    ]
    for wrong in ("1:2:3:4", "soon", "1h", ":20", ""):
        with pytest.raises(ValueError, match="is no time"):
            parse_seconds(wrong)


def layout(folder: Path, *names: str) -> Manifest:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return read_manifest(folder)


def test_folders_name_splits_and_classes(tmp_path: Path) -> None:
    found = layout(tmp_path / "a", "train/boat/1.mp4", "train/car/2.mp4", "test/boat/3.mp4", "validation/car/4.mp4")
    assert [(clip.label, clip.split) for clip in found] == [
        ("boat", "test"),
        ("boat", "train"),
        ("car", "train"),
        ("car", "val"),
    ]
    assert found.labels == ("boat", "car")
    inside = layout(tmp_path / "b", "boat/train/1.mp4", "car/test/2.mp4")
    assert [(clip.label, clip.split) for clip in inside] == [("boat", "train"), ("car", "test")]
    classes = layout(tmp_path / "c", "boat/1.mp4", "car/2.mp4")
    assert [(clip.label, clip.split) for clip in classes] == [("boat", "train"), ("car", "train")]
    for number, names in enumerate((["1.mp4", "boat/2.mp4"], ["clips/1.mp4", "clips/2.mp4"], ["a/b/1.mp4", "c/2.mp4"])):
        assert {clip.label for clip in layout(tmp_path / f"no{number}", *names)} == {None}
    old = read_manifest(tmp_path / "a", version=1)
    assert {(clip.label, clip.split) for clip in old} == {(None, "train")}
    assert [clip.name for clip in old] == [clip.name for clip in found]


def test_folders_of_sounds_and_pictures(tmp_path: Path) -> None:
    sounds = layout(tmp_path / "sounds", "dog/1.wav", "cat/2.flac")
    assert [(clip.name, clip.label) for clip in sounds] == [("cat/2.flac", "cat"), ("dog/1.wav", "dog")]
    assert [clip.name for clip in layout(tmp_path / "pictures", "a.jpg", "b.png", ".hidden.png")] == ["a.jpg", "b.png"]
    mixed = layout(tmp_path / "mixed", "a.mp4", "a.wav", "b.wav", "poster.jpg")
    assert [clip.name for clip in mixed] == ["a.mp4"]
    assert "2 sounds and 1 pictures beside them are not read" in mixed.notes[0]


def test_commands_say_what_is_not_read(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clips = sorted(cache.rglob("*.mp4"))[:4]
    (tmp_path / "m.csv").write_text("path,title\n" + "".join(f"{clip},thing {i}\n" for i, clip in enumerate(clips)))
    arguments = ("--data", tmp_path / "m.csv", "--steps", 1)
    assert small_run.run(*arguments, "--out", tmp_path / "without") == 0
    said = capsys.readouterr()
    assert "no column `caption`, and `title` is not read" in said.err
    assert "2 words" in said.out
    assert small_run.run(*arguments, "--columns", "caption=title", "--out", tmp_path / "with") == 0
    said = capsys.readouterr()
    assert "note: no column" not in said.err
    assert "7 words" in said.out
    assert small_run.run("--out", tmp_path / "with", "--resume", "--steps", 2) == 0
    assert finetune.main(["--task", "video", "--init", "none", "--data", str(tmp_path / "m.csv")]) == 2
