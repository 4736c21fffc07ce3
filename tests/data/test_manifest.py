"""The manifest: what users write in a CSV or put in a folder, and what they are told when it is wrong."""

from pathlib import Path

import pytest

from vatt.data.clip import Clip, ManifestError
from vatt.data.manifest import read_manifest, write_manifest


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def test_all_columns(tmp_path: Path) -> None:
    source = write(
        tmp_path / "m.csv",
        'path,start,end,caption,label,split\na.mp4,1.5,4,"one, two | three",run,train\nsub/b.mkv,,,,walk,test\n',
    )
    manifest = read_manifest(source)
    first, second = manifest
    assert (first.path, first.name, first.start, first.end) == (tmp_path / "a.mp4", "a.mp4", 1.5, 4.0)
    assert first.captions == ("one, two", "three")
    assert (second.path, second.start, second.end, second.captions) == (tmp_path / "sub/b.mkv", 0.0, None, ())
    assert manifest.labels == ("run", "walk")
    assert manifest.root == tmp_path


def test_split_keeps_indices_and_class_ids(tmp_path: Path) -> None:
    manifest = read_manifest(write(tmp_path / "m.csv", "path,label,split\na,z,train\nb,y,test\nc,z,test\nd,,\n"))
    assert manifest.splits == ("test", "train")
    test = manifest.split("test")
    assert [clip.index for clip in test] == [1, 2]
    assert test.label_ids == manifest.label_ids == {"y": 0, "z": 1}
    assert len(manifest.split("train")) == 1  # an empty cell is in no split
    assert len(manifest.split("validation")) == 0


def test_without_split_column_every_clip_is_train(tmp_path: Path) -> None:
    manifest = read_manifest(write(tmp_path / "m.csv", "path\na\nb\n"))
    assert len(manifest.split("train")) == 2


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_spreadsheet_habits(tmp_path: Path, encoding: str, newline: str) -> None:
    lines = [" File , Caption ,duration,notes", "a.mp4, ein Café ,3.2,x", "", ",,,", "b.mp4,,,"]
    manifest = read_manifest(write(tmp_path / "m.csv", newline.join(lines), encoding))
    assert [clip.name for clip in manifest] == ["a.mp4", "b.mp4"]
    assert manifest[0].captions == ("ein Café",)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("video,caption\na.mp4,x\n", ["m.csv:1", "path", "video, caption"]),
        ("path,start,end\na,0,1\nb,3,2\n", ["m.csv:3", "end 2 s", "start 3 s"]),
        ("path,end\na,0\n", ["m.csv:2", "end"]),
        ("path,start\na,soon\n", ["m.csv:2", "start", "'soon'"]),
        ("path,start\na,-1\n", ["m.csv:2", "start"]),
        ("path,start\na,nan\n", ["m.csv:2", "start"]),
        ("path,label\n,x\n", ["m.csv:2", "path"]),
        ("path,caption\na,one, two\n", ["m.csv:2", "quotes"]),
        ("path\n", ["m.csv", "no clips"]),
        ('path,caption\na,x\nb,"a dog\n' + "c,a cat\n" * 1000, ["m.csv:3", "quote"]),
        ('path,caption\na,"x\ny"\nb,"a dog\nc,"a cat"\n', ["m.csv:4", "quote"]),
        ('path,caption\na,"x\ny"\nb,a dog, a cat\n', ["m.csv:4", "quotes"]),
        ("path,caption, Caption\na,x,y\n", ["m.csv:1", "two columns `caption`"]),
        ("", ["m.csv", "empty"]),
    ],
)
def test_errors_name_the_place(tmp_path: Path, text: str, words: list[str]) -> None:
    with pytest.raises(ManifestError) as error:
        read_manifest(write(tmp_path / "m.csv", text))
    for word in words:
        assert word in str(error.value)


def test_quoted_quotes_and_line_ends_and_foreign_columns_of_one_name_are_read(tmp_path: Path) -> None:
    text = 'path,note,caption,note\na,1,"a ""red""\ncar, parked",2\nb,,c,\n'
    manifest = read_manifest(write(tmp_path / "m.csv", text))
    assert [clip.captions for clip in manifest] == [('a "red"\ncar, parked',), ("c",)]


def test_binary_file_and_missing_file(tmp_path: Path) -> None:
    binary = tmp_path / "clip.mp4"
    binary.write_bytes(bytes(range(256)) * 10)
    with pytest.raises(ManifestError, match="give a CSV, or a folder of clips"):
        read_manifest(binary)
    with pytest.raises(ManifestError, match="no such file or folder"):
        read_manifest(tmp_path / "nothing.csv")


def test_folder(tmp_path: Path) -> None:
    for name in ("b.MP4", "a/z.webm", "a/z.jpg", "._b.mp4", "readme.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    write(tmp_path / "a/z.txt", "\ufeffa cat\r\n\r\n a dog | in a bag \r\n")
    manifest = read_manifest(tmp_path)
    assert [clip.name for clip in manifest] == ["a/z.webm", "b.MP4"]
    assert manifest[0].captions == ("a cat", "a dog | in a bag")
    assert [clip.split for clip in manifest] == ["train", "train"]


def test_folder_without_clips(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ManifestError, match=r"no clips.*\.mp4"):
        read_manifest(tmp_path)


def test_write_gives_back_what_was_read(tmp_path: Path) -> None:
    clips = [
        Clip(0, tmp_path / "in/a.mp4", "a", 0.1, 3.3, ('says "hi", loudly', "two\nlines"), "x", "train"),
        Clip(1, Path("/elsewhere/b.mp4"), "b", split="test"),
        Clip(2, tmp_path / "c.mp4", "c", split=None),
    ]
    write_manifest(tmp_path / "m.csv", clips)
    back = read_manifest(tmp_path / "m.csv")
    for old, new in zip(clips, back, strict=True):
        assert (new.path, new.start, new.end) == (old.path, old.start, old.end)
        assert (new.captions, new.label, new.split) == (old.captions, old.label, old.split)
    assert [clip.name for clip in back] == ["in/a.mp4", "/elsewhere/b.mp4", "c.mp4"]
    assert [path.name for path in tmp_path.iterdir()] == ["m.csv"]


def test_a_caption_that_would_come_back_as_two_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="hold"):
        write_manifest(tmp_path / "m.csv", [Clip(0, tmp_path / "a", "a", captions=("left | right",))])
    assert not list(tmp_path.iterdir())


def test_real_manifest(shared: Path) -> None:
    manifest = read_manifest(shared / "data/clips/manifest.csv")
    assert len(manifest) == 50
    assert all(clip.path.exists() for clip in manifest)
    assert max(len(clip.captions) for clip in manifest) == 2
