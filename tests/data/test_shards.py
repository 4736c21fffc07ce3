"""Tar shards: what is packed reads back clip by clip, in any order; what is hostile or broken is refused."""

import gzip
import io
import json
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.media import numbered_frame, numbers, steady, tone_burst, write_clip
from helpers.media_alone import write_image

from vatt.data.clip import Clip, ManifestError
from vatt.data.decoding.container import BadClip
from vatt.data.decoding.span import decode_span
from vatt.data.manifest import read_manifest
from vatt.data.shards import index as shards_index
from vatt.data.shards.index import open_clip
from vatt.data.shards.reading import read_shards
from vatt.data.shards.writing import write_shards
from vatt.errors import ConfigError


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Clip]:
    folder = tmp_path_factory.mktemp("clips")
    for i in range(5):
        write_clip(folder / f"{i}.mp4", [at + 0.1 * i for at in steady(1.0, 10)], tone_burst(1.0, 0.1 * i, 48_000))
    captions: list[tuple[str, ...]] = [("a dog", "ein Hündchen"), (), ("one",), ("two",), ("three",)]
    splits = ["train", "test", None, "train", "train"]
    labels = ["a | b", None, "c", "c", "c"]
    return [
        Clip(i, folder / f"{i}.mp4", f"{i}.mp4", captions=captions[i], label=labels[i], split=splits[i])
        for i in range(5)
    ]


def test_round_trip(tmp_path: Path, clips: list[Clip]) -> None:
    (tmp_path / "000007.tar").write_bytes(b"of an earlier, larger corpus")
    tars = write_shards(clips, tmp_path, 2)
    assert [tar.name for tar in tars] == ["000000.tar", "000001.tar", "000002.tar"]
    assert sorted(tmp_path.iterdir()) == tars
    packed = [tar.read_bytes() for tar in tars]
    assert [tar.read_bytes() for tar in write_shards(clips, tmp_path, 2)] == packed  # nothing depends on the clock
    found = read_manifest(tmp_path)
    assert found.labels == ("a", "b", "c")
    for ours, packed_clip in reversed(list(zip(clips, found, strict=True))):
        assert replace(packed_clip, path=ours.path, name=ours.name) == ours
        a, b = (decode_span(c.path, start=0.2, fps=10, frames=5, rate=48_000) for c in (ours, packed_clip))
        assert np.array_equal(a.video, b.video)  # type: ignore[arg-type]
        assert np.array_equal(a.audio, b.audio)  # type: ignore[arg-type]
    assert [clip.index for clip in read_shards(tars[1])] == [0, 1]
    assert open_clip(clips[0].path) == clips[0].path
    with pytest.raises(BadClip, match="missing"):
        decode_span(tars[0] / "gone.mp4", start=0, fps=10, frames=1, rate=48_000)


def test_a_shard_that_is_replaced_is_read_anew(tmp_path: Path, clips: list[Clip]) -> None:
    tar = write_shards(clips[:2], tmp_path, 2)[0]
    before = open_clip(tar / "00000000.mp4")
    write_shards(clips[3:], tmp_path, 2)
    after = open_clip(tar / "00000000.mp4")
    assert isinstance(before, io.BytesIO)
    assert isinstance(after, io.BytesIO)
    assert before.getvalue() == clips[0].path.read_bytes()
    assert after.getvalue() == clips[3].path.read_bytes()


def test_the_library_reads_our_shards(tmp_path: Path, clips: list[Clip]) -> None:
    webdataset = pytest.importorskip("webdataset")
    tars = write_shards(clips, tmp_path, 3)
    samples = list(webdataset.WebDataset([str(tar) for tar in tars], shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [f"{i:08d}" for i in range(5)]
    assert [sample["mp4"] for sample in samples] == [clip.path.read_bytes() for clip in clips]
    assert json.loads(samples[0]["json"])["captions"] == ["a dog", "ein Hündchen"]


def test_patterns_and_addresses(tmp_path: Path, clips: list[Clip], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("webdataset")
    monkeypatch.setenv("VATT_CACHE", str(tmp_path / "cache"))
    write_shards(clips, tmp_path / "s", 2)
    pattern = f"{tmp_path}/s/{{000000..000002}}.tar"
    assert len(read_shards(pattern)) == 5
    with pytest.raises(ManifestError, match=r"1 of 4 tars are not there, the first one .*000003"):
        read_shards(pattern.replace("2}", "3}"))
    with pytest.raises(ConfigError, match="VATT_ALLOW_COMMANDS=1"):
        read_shards(f"pipe:touch {tmp_path}/ran")
    assert not (tmp_path / "ran").exists()
    monkeypatch.setenv("VATT_ALLOW_COMMANDS", "1")
    for bad in (f"pipe:head -c 2000 {tmp_path}/s/000000.tar", f"pipe:cat {tmp_path}/s/none.tar"):
        with pytest.raises(ManifestError, match="cannot be downloaded"):
            read_shards(bad)
    assert not list((tmp_path / "cache").rglob("*.t*"))  # no part of a tar is taken for a tar
    assert len(read_shards(f"pipe:cat {pattern}")) == 5
    for tar in (tmp_path / "s").iterdir():
        tar.unlink()
    again = read_shards(f"pipe:cat {pattern}")  # from the cache
    assert [clip.captions for clip in again] == [clip.captions for clip in clips]
    assert decode_span(again[4].path, start=0, fps=10, frames=2, rate=48_000).video is not None


def test_without_the_library(tmp_path: Path, clips: list[Clip], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "webdataset", None)
    write_shards(clips, tmp_path, 5)
    assert len(read_shards(tmp_path)) == len(read_shards(tmp_path / "000000.tar")) == 5
    with pytest.raises(ConfigError, match=r"\.\[webdataset\]"):
        read_shards("https://example.org/{000..010}.tar")


def entry(name: str, data: bytes = b"x", **fields: object) -> Callable[[tarfile.TarFile], None]:
    def add(tar: tarfile.TarFile) -> None:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        for key, value in fields.items():
            setattr(info, key, value)
        tar.addfile(info, io.BytesIO(data) if info.isreg() else None)

    return add


def pack(path: Path, *entries: Callable[[tarfile.TarFile], None]) -> Path:
    with tarfile.open(path, "w") as tar:
        for add in entries:
            add(tar)
    return path


def test_shards_of_others(tmp_path: Path) -> None:
    """Folders, `./` in front, captions in .txt or .json, one picture beside a video, files that are no clips."""
    tar = pack(
        tmp_path / "a.tar",
        entry("./", b"", type=tarfile.DIRTYPE),
        entry("./x/1.mp4"),
        entry("./x/1.txt", b"\xef\xbb\xbfa cat\r\n\r\na tom\n"),
        entry("./x/1.jpg"),
        entry("./x/1.json", json.dumps({"caption": "of | json", "labels": [3, "d"], "end": 2, "url": "-"}).encode()),
        entry("y/1.seg.mp4"),
        entry("2.flac"),
        entry("2.txt", b"bark"),
        entry("README"),
        entry(".hidden.mp4"),
    )
    first, dotted, second = read_shards(tar)
    assert dotted.name == "a.tar/y/1.seg.mp4"
    assert (first.path, first.captions, first.label) == (tar / "x/1.mp4", ("of", "json"), "3 | d")
    assert (first.start, first.end, first.split) == (0.0, 2.0, "train")
    assert (second.path.name, second.captions, second.label) == ("2.flac", ("bark",), None)


@pytest.mark.parametrize(
    ("add", "reason"),
    [
        (entry("/etc/1.mp4"), "has no name for"),
        (entry("a/../../1.mp4"), "has no name for"),
        (entry("a\\1.mp4"), "has no name for"),
        (entry("a\n1.mp4"), "has no name for"),
        (entry("1.mp4", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "is a link"),
        (entry("1.mp4", b"", type=tarfile.LNKTYPE, linkname="2.mp4"), "is a link"),
        (entry("1.mp4", b"", type=tarfile.FIFOTYPE), "is a link, a device"),
        (entry("1.json", b"[" * 100_000), "is not JSON"),
        (entry("1.json", b"[]"), "no JSON object"),
        (entry("1.json", b'{"start": NaN}'), "start is no time"),
        (entry("1.json", b'{"end": true}'), "end is no time"),
        (entry("1.json", b" " * (1 << 21)), "too many for a text"),
        (entry("1.txt", b"\xff\xff"), "is not UTF-8"),
        (entry("0.mp4"), "two entries"),
        (entry("s.mp4", type=tarfile.REGTYPE, pax_headers={"GNU.sparse.size": "9", "GNU.sparse.map": "0,9"}), "sparse"),
        (entry("p.mp4", pax_headers={"path": "../../out.mp4"}), "has no name for"),
        (entry("p.mp4", pax_headers={"size": "99999999999"}), "claims 99,999,999,999 bytes"),
    ],
)
def test_hostile_entries(tmp_path: Path, add: Callable[[tarfile.TarFile], None], reason: str) -> None:
    tar = pack(tmp_path / "a.tar", entry("0.mp4"), entry("1.mp4"), add)
    with pytest.raises(ManifestError, match=reason) as error:
        read_shards(tar)
    assert str(tar) in str(error.value)


def header(size: bytes, kind: bytes = b"0") -> bytes:
    """A tar header with a size field as it is given."""
    info = bytearray(tarfile.TarInfo("1.mp4").tobuf(tarfile.USTAR_FORMAT))
    info[124:136], info[156:157] = size.ljust(12, b"\0"), kind
    info[148:156] = b" " * 8
    info[148:156] = b"%06o\0 " % sum(info)
    return bytes(info)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: data[:700], "cut off"),
        (lambda data: data[:1024], "cut off"),
        (lambda data: data[:1024] + b"\x01" * 512 + data[1024:], "damaged or cut off at byte 1,024"),
        (lambda data: header(b"77777777777") + data, "claims 8,589,934,591 bytes"),
        (lambda data: header(b"10000") + data[:512], "cut off"),
        (lambda data: header(b"\xff" * 11 + b"\x00") + data, "claims -256 bytes"),
        (lambda data: header(b"77777777777", b"x") + data, "a header of"),
        (lambda data: header(b"\xff" * 10 + b"\xfe\x00", b"L") + data, "a header of -512"),
        (lambda data: header(b"\xff" * 11 + b"\x00", b"L") + data, "has no name"),
        (lambda data: header(b"0", b"L") * 3000 + data, "not a tar"),  # names of names of names
        (gzip.compress, "not a tar"),
        (lambda data: b"", "not a tar"),
        (lambda data: b"no tar at all" * 100, "not a tar"),
    ],
)
def test_damaged_tars(tmp_path: Path, damage: Callable[[bytes], bytes], reason: str) -> None:
    tar = pack(tmp_path / "a.tar", entry("0.mp4", b"y" * 500))
    tar.write_bytes(damage(tar.read_bytes()))
    with pytest.raises(ManifestError, match=reason) as error:
        read_shards(tar)
    assert str(tar) in str(error.value)


def test_the_name_of_a_picture_is_no_pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """libav would take it for numbered files, in the folder that the command runs in."""
    monkeypatch.chdir(tmp_path)
    write_image(tmp_path / "a1.png", numbered_frame(1))
    packed = write_image(tmp_path / "b.png", numbered_frame(90)).read_bytes()
    (clip,) = read_shards(pack(tmp_path / "a.tar", entry("a%d.png", packed)))
    found = decode_span(clip.path, start=0, fps=10, frames=1, rate=48_000).video
    assert found is not None
    assert numbers(found) == [90]


def test_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many entries are refused; tars within tars, and files that are no clips, are never opened."""
    inner = pack(tmp_path / "inner.tar", entry("1.mp4"))
    tar = pack(tmp_path / "a.tar", entry("1.tar", inner.read_bytes()), entry("2.zip"), entry("3.mp4"))
    assert [clip.path.name for clip in read_shards(tar)] == ["3.mp4"]
    with pytest.raises(BadClip, match="missing"):
        decode_span(tar / "1.tar" / "1.mp4", start=0, fps=10, frames=1, rate=48_000)
    monkeypatch.setattr(shards_index, "MAX_ENTRIES", 5)
    few, many = (pack(tmp_path / f"{n}.tar", *(entry(f"{i}.mp4") for i in range(n))) for n in (5, 6))
    assert len(read_shards(few)) == 5
    with pytest.raises(ManifestError, match=r"6\.tar: more than 5 entries; pack smaller shards"):
        read_shards(many)


def test_no_clips(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"no such tar"):
        read_shards(tmp_path / "none.tar")
    with pytest.raises(ManifestError, match=r"no clips in 1 tars"):
        read_shards(pack(tmp_path / "a.tar", entry("README")))


def test_every_entry_is_read_or_counted(tmp_path: Path, clips: list[Clip]) -> None:
    """Dots in keys, KEY.info.json and KEY.cls as webdataset has them, sound beside its video, and what nobody reads."""
    data = clips[0].path.read_bytes()
    about = json.dumps({"caption": "told by info", "labels": ["x", None, float("nan")]}).encode()
    tar = pack(
        tmp_path / "a.tar",
        entry("plain.mp4", data),
        entry("plain.txt", b"a caption"),
        entry("sub/v1.2_walk.mp4", data),
        entry("sub/v1.2_walk.txt", b"of a key with a dot"),
        entry("trip 2.0 (final).MP4", data),
        entry("trip 2.0 (final).info.json", about),
        entry("0.mp4", data),
        entry("0.cls", b"7"),
        entry("0.m4a", data),
        entry("0.jpg", b""),
        entry("cam.left.mp4", data),
        entry("cam.right.mp4", data),
        entry("cam.json", b'{"caption": null, "label": 0}'),
        entry("sound.m4a", data),
        entry("lone.txt", b"no clip"),
        entry("plain.en.vtt", b"WEBVTT"),
        entry("model.npy", b""),
        entry("README", b""),
        entry("._plain.mp4", b""),
    )
    found = read_manifest(tar)
    assert [(clip.name, clip.captions, clip.label) for clip in found] == [
        ("a.tar/plain.mp4", ("a caption",), None),
        ("a.tar/sub/v1.2_walk.mp4", ("of a key with a dot",), None),
        ("a.tar/trip 2.0 (final).MP4", ("told by info",), "x"),
        ("a.tar/0.mp4", (), "7"),
        ("a.tar/cam.left.mp4", (), "0"),
        ("a.tar/cam.right.mp4", (), "0"),
        ("a.tar/sound.m4a", (), None),
    ]
    counted = {note.removeprefix(f"{tar}: ") for note in found.notes}
    assert counted == {
        "2 entries are not read: beside a clip of the same name, .mp4",
        "1 entries are not read: texts without a clip of their name",
        "1 entries are not read: texts of another kind, .vtt",
        "1 entries are not read: a suffix that is neither media nor text, .npy",
        "1 entries are not read: a suffix that is neither media nor text, none",
        "1 entries are not read: their names begin with a dot, as those of hidden files",
    }
    for clip in found:
        member = open_clip(clip.path)
        assert isinstance(member, io.BytesIO)
        assert member.getvalue() == data


def test_runs_of_before_read_the_shards_as_they_did(tmp_path: Path, clips: list[Clip]) -> None:
    data = clips[0].path.read_bytes()
    tar = pack(
        tmp_path / "a.tar",
        entry("a.mp4", data),
        entry("a.json", b'{"captions": ["x", null]}'),
        entry("b.c.mp4", data),
        entry("0.mp4", data),
        entry("0.cls", b"7"),
        entry("1.mp4", data),
        entry("1.info.json", b'{"caption": "y"}'),
    )
    old = read_manifest(tar, version=1)
    assert [(clip.name, clip.captions, clip.label) for clip in old] == [
        ("a.tar/a.mp4", ("x", "None"), None),
        ("a.tar/0.mp4", (), None),
        ("a.tar/1.mp4", (), None),
    ]
    assert "1 entries are not read: no clips by the rules that this run began with" in old.notes[0]
    assert [clip.captions for clip in read_manifest(tar)] == [("x",), (), (), ("y",)]
