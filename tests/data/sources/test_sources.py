"""Native annotations become a manifest: what is listed, which files serve it, what is told of the rest."""

from __future__ import annotations

import csv
import json
import re
import wave
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from helpers.media import steady, tone_burst, write_clip

from vatt.data.clip import Manifest
from vatt.data.manifest import read_manifest
from vatt.data.rows.narrations import Narration, around, nearest
from vatt.data.sources import blocks, captions, records, tables
from vatt.data.sources.__main__ import EXAMPLES, main, parse_arguments
from vatt.data.sources.blocks import Block
from vatt.data.sources.blocks import records as each
from vatt.data.sources.captions import (
    howto100m,
    msrvtt,
    narrated,
    read_subtitles,
    told,
    youcook2,
    youcook2_frames,
)
from vatt.data.sources.classification import audioset, esc50, hmdb51, kinetics, moments, ucf101, vggsound
from vatt.data.sources.other import webvid
from vatt.data.sources.records import Record, SourceError


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        write(folder / name, b"x")
    return folder


def by_split(listing: Iterable[Record | Block]) -> dict[str | None, int]:
    return dict(Counter(record.split for record in each(listing)))


def listed(listing: Iterable[Record | Block]) -> list[Record]:
    return list(each(listing))


def labels(listing: Iterable[Record | Block]) -> set[str]:
    return {label for record in each(listing) for label in record.labels}


def imported(tmp_path: Path, *argv: object) -> Manifest:
    assert main([*map(str, argv), "--out", str(tmp_path / "out/m.csv")]) == 0
    return read_manifest(tmp_path / "out/m.csv")


@pytest.fixture
def annotations(shared: Path) -> Path:
    return shared / "data/annotations"


# The real lists. What is expected is counted again from the bare text, and equals what their publishers say.


def test_kinetics_lists(annotations: Path) -> None:
    val = listed(kinetics([annotations / "kinetics400/kinetics-400_val.csv"]))
    assert by_split(val) == {"val": 19_906}
    names = (annotations / "kinetics400/label_map_k400.txt").read_text().split("\n")
    assert labels(val) == set(filter(None, names))
    assert all(record.end == record.start + 10 and record.fault is None for record in val)
    test = listed(kinetics([annotations / "kinetics400/kinetics-400_test.csv"]))
    assert by_split(test) == {"test": 38_685}
    assert labels(test) == set()


def test_ucf101_lists(annotations: Path) -> None:
    for fold, counts in ((1, (9_537, 3_783)), (2, (9_586, 3_734)), (3, (9_624, 3_696))):
        records = listed(ucf101([annotations / "ucf101"], fold))
        texts = [annotations / f"ucf101/{name}list0{fold}.txt" for name in ("train", "test")]
        assert tuple(text.read_text().count(".avi") for text in texts) == counts
        assert by_split(records) == dict(zip(("train", "test"), counts, strict=True))
        assert len({record.video for record in records}) == 13_320
        assert labels(records) == set(re.findall(r"\d+ (\w+)", (annotations / "ucf101/classInd.txt").read_text()))


def test_hmdb51_list(annotations: Path) -> None:
    lines = (annotations / "hmdb51/hmdb51.csv").read_text().split()
    for fold in (1, 2, 3):
        records = listed(hmdb51([annotations / "hmdb51/hmdb51.csv"], fold))
        marks = Counter(line.split(",")[fold + 1] for line in lines[1:])
        assert by_split(records) == {"train": 3_570, "test": 1_530} == {"train": marks["1"], "test": marks["2"]}
        assert labels(records) == set((annotations / "hmdb51/label_map.txt").read_text().split())


def test_audioset_lists(annotations: Path) -> None:
    records = listed(audioset([annotations / "audioset/eval_segments.csv"]))
    text = (annotations / "audioset/eval_segments.csv").read_text()
    assert by_split(records) == {"test": 20_371}
    assert sum(len(record.labels) for record in records) == len(re.findall(r"/[mtg]/\w+", text))
    assert len(labels(records)) == 527
    first = records[0]
    assert (first.video, first.start, first.end) == ("--4gqARaEJE", 0.0, 10.0)
    assert first.labels == ("Domestic animals, pets", "Squeak", "Dog", "Animal")  # one of them holds a comma
    sample = listed(audioset([annotations / "audioset/ast_sample_eval_data.json"]))
    assert [(r.video, r.start, r.labels) for r in sample] == [(r.video, r.start, r.labels) for r in records[:5]]


def test_vggsound_list(annotations: Path) -> None:
    records = listed(vggsound([annotations / "vggsound/test.csv"]))
    assert by_split(records) == {"test": 15_446}
    known = {row[0] for row in csv.reader((annotations / "vggsound/stat.csv").open(encoding="utf-8"))}
    assert len(known) == 309
    assert labels(records) == known
    assert (records[0].video, records[0].start, records[0].end) == ("glLQrEijrKg", 300.0, 310.0)


def test_msrvtt_lists(annotations: Path) -> None:
    folder = annotations / "msrvtt"
    test = listed(msrvtt([folder / "msrvtt_test_1kA.csv"]))
    assert by_split(test) == {"test": 1_000}
    assert test[0].captions == ("a person is connecting something to system",)
    both = listed(msrvtt([folder / "MSRVTT_train.9k.csv", folder / "msrvtt_test_1kA.csv"]))
    assert by_split(both) == {"train": 9_000, "test": 1_000}
    assert len({record.video for record in both}) == 10_000
    assert by_split(msrvtt([folder / "MSRVTT_train.7k.csv"])) == {"train": 7_010}
    assert by_split(msrvtt([folder / f"full_split_{name}_videos.txt" for name in ("train", "test")])) == {
        "train": 7_010,
        "test": 2_990,
    }


def test_youcook2_and_its_frames(shared: Path) -> None:
    records = listed(youcook2([shared / "data/annotations/youcook2/validation_youcook.csv"]))
    assert by_split(records) == {"val": 3_350}
    assert len({record.video for record in records}) == 436
    assert all(record.fault is None and record.captions for record in records)
    assert (records[0].start, records[0].end, records[0].captions) == (47, 60, ("pick the ends off the verdalago",))
    frames = listed(youcook2_frames([shared / "data/youcook2_frames/captions.csv"]))
    assert by_split(frames) == {"train": 1_350}
    assert len({record.video for record in frames}) == 450


def test_esc10_from_list_to_manifest(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = imported(tmp_path, "esc10", shared / "data/esc10/esc10.csv", "--fold", 3)
    assert {name: len(manifest.split(name)) for name in manifest.splits} == {"test": 80, "train": 320}
    assert len(manifest.labels) == 10
    assert all(clip.path.is_file() for clip in manifest)
    assert "400 of 400 media files used" in capsys.readouterr().out


def test_frames_keep_the_videos_of_the_held_out_part_together(shared: Path, tmp_path: Path) -> None:
    manifest = imported(tmp_path, "youcook2-frames", shared / "data/youcook2_frames/captions.csv", "--hold-out", 0.2)
    videos = {name: {clip.path.name[:11] for clip in manifest.split(name)} for name in manifest.splits}
    assert not videos["train"] & videos["test"]
    assert len(videos["train"] | videos["test"]) == 450
    assert 60 < len(videos["test"]) < 120
    assert all(len(clip.captions) == 1 for clip in manifest)


# Small hand-made lists: forms that are not in the real ones, and their quirks.


def test_other_forms_of_label_lists(tmp_path: Path) -> None:
    text = (
        "\ufefflabel,youtube-id,time start,time_end,split\r\n\r\npetting animal (not cat),-a_0000001,7,17,validate\r\n"
    )
    (row,) = each(kinetics([write(tmp_path / "k.csv", text)]))
    assert (row.video, row.labels, row.split) == ("-a_0000001", ("petting animal (not cat)",), "val")
    (row,) = each(
        moments([write(tmp_path / "trainingSet.csv", "adult+male+singing/yt-x_1.mp4,adult+male+singing,3,0\n")])
    )
    assert (row.video, row.labels, row.split) == ("adult+male+singing/yt-x_1", ("adult male singing",), "train")
    write(tmp_path / "h/brush_hair_test_split2.txt", "a_1.avi 1 \nb!(.avi 2 \nc.avi 0 \n")
    assert [(r.video, *r.labels, r.split) for r in hmdb51([tmp_path / "h"], 2)] == [
        ("a_1", "brush_hair", "train"),
        ("b!(", "brush_hair", "test"),
    ]
    text = "filename,fold,target,category,esc10\n1-a-A-0.wav,1,0,dog,True\n1-b-A-1.wav,2,1,hen,False\n"
    esc = write(tmp_path / "esc50.csv", text)
    assert by_split(esc50([esc], 2)) == {"train": 1, "test": 1}
    assert labels(esc50([esc], 2, only_ten=True)) == {"dog"}
    text = '# Segments csv\n# YTID, start_seconds, end_seconds, positive_labels\n-0, 30.000, 40.000, "/m/a,/m/b"\n'
    (row,) = each(audioset([write(tmp_path / "balanced_train_segments.csv", text)]))
    assert (row.video, row.start, row.end, row.labels, row.split) == ("-0", 30, 40, ("/m/a", "/m/b"), "train")
    (row,) = each(vggsound([write(tmp_path / "vggsound.csv", '---g_,1,"people, marching",test\n')]))
    assert (row.video, row.start, row.end, row.labels, row.split) == ("---g_", 1, 11, ("people, marching",), "test")


def test_other_forms_of_caption_lists(tmp_path: Path) -> None:
    about = {
        "videos": [{"video_id": f"video{i}", "split": split} for i, split in enumerate(("train", "validate"))],
        "sentences": [{"video_id": "video0", "caption": text} for text in ("a | b", " ", "c\n d", "\ud83d e")],
    }
    info = write(tmp_path / "videodatainfo.json", json.dumps(about))
    assert [(r.video, r.captions, r.split) for r in msrvtt([info])] == [
        ("video0", ("a b", "c d", "e"), "train"),
        ("video1", (), "val"),
    ]
    chosen = listed(msrvtt([info, write(tmp_path / "train.9k.csv", "video_id\nvideo0\n")]))
    assert [(r.video, len(r.captions)) for r in chosen] == [("video0", 3)]
    steps = {"subset": "training", "annotations": [{"segment": [90, 102], "sentence": "spread margarine"}]}
    (row,) = each(youcook2([write(tmp_path / "y.json", json.dumps({"database": {"GLd3aX16zBg": steps}}))]))
    assert (row.start, row.end, row.captions, row.split) == (90, 102, ("spread margarine",), "train")
    text = 'videoid,contentUrl,duration,page_dir,name\n21,http://x/21.mp4,PT00H00M11S,000_050,"A ""red"" car, parked"\n'
    (row,) = each(webvid([write(tmp_path / "results_2M_val.csv", text)]))
    assert (row.video, row.captions, row.split) == ("000_050/21", ('A "red" car, parked',), "val")


def test_the_nearest_narrations() -> None:
    spans = [(0, 2), (4, 6), (7, 9), (10, 12), (12.5, 15), (30, 31)]

    def near(spans: list[tuple[float, float]], index: int, count: int = 5) -> list[int]:
        start, end = np.array(spans, float).T
        # As one video of several: what is near ends where the video does.
        first, last = nearest(*(np.tile(times, 3) for times in (start, end)), np.arange(4) * len(spans), count)
        return list(range(first[len(spans) + index] - len(spans), last[len(spans) + index] + 1 - len(spans)))

    assert near(spans, 3, 1) == [3]
    assert near(spans, 3, 2) == [3, 4]  # 5 s with either: the later one of equals
    assert near(spans, 2, 2) == [2, 3]  # 4 to 9 would be as long
    assert near(spans, 1, 2) == [1, 2]  # 4 to 9, against 0 to 6
    assert near(spans, 3, 3) == [2, 3, 4]
    assert near(spans, 3) == [0, 1, 2, 3, 4]
    assert near(spans, 0) == [0, 1, 2, 3, 4]  # at an edge the rest comes from the other side
    assert near(spans, 5) == [1, 2, 3, 4, 5]
    assert near(spans[:3], 1) == [0, 1, 2]  # there are no five
    assert near([(0, 2), (1, 3), (9, 9.5)], 1, 2) == [0, 1]
    early, *_, late = each(narrated([told("v", [Narration(*span, str(i)) for i, span in enumerate(spans)])]))
    assert (early.start, early.end) == (0.0, 3.2)  # too short for a window: time is added, but not before the start
    assert (late.start, late.end) == (28.9, 32.1)
    assert late.captions == ("5", "1", "2", "3", "4")


def test_times_of_many_narrations_are_rounded_as_numbers_are() -> None:
    numbers = np.array([0.0625, 2.6755, 1e300, 4.35 - 1.6, 0.0005, 7.0005, 2.0, 1234.5675])
    start, end, _ = around(numbers, numbers + 4, ["a"] * len(numbers), [0, len(numbers)])
    assert start == [round(number, 3) for number in numbers.tolist()]
    assert end == [round(number, 3) for number in (numbers + 4).tolist()]


def test_howto100m_forms_agree(tmp_path: Path) -> None:
    said = {"start": [7.63, 10.23, 12.15], "end": [12.15, 14.09, 18], "text": ["wasn't planning", "filming make", ""]}
    whole = write(tmp_path / "caption.json", json.dumps({"GGFB8lgpGlY": said}))
    lines = ["start,end,text", "10.23,14.09,filming make", "7.63,12.15,wasn't planning", "12.15,18,"]
    write(tmp_path / "csv/GGFB8lgpGlY.csv", "\n".join(lines))
    records = listed(howto100m([whole]))
    assert records == listed(howto100m([tmp_path / "csv"]))
    assert [(r.start, r.end, r.captions) for r in records] == [
        (7.63, 12.15, ("wasn't planning", "filming make")),
        (10.23, 14.09, ("filming make", "wasn't planning")),
    ]
    assert listed(howto100m([whole], every=2)) == records[:1]
    long = write(tmp_path / "all.csv", "video_id,start,end,text\na,0,5,x\nb,0,5,y\nb,5,10,z\n")
    assert [(r.video, r.captions) for r in each(howto100m([long]))] == [
        ("a", ("x",)),
        ("b", ("y", "z")),
        ("b", ("z", "y")),
    ]


def test_subtitles(tmp_path: Path) -> None:
    rolling = """WEBVTT\r\nKind: captions\r\n\r\nNOTE made by hand\r\n\r\n00:01.000 --> 00:03.500 align:start\r
<c>peel</c> the &amp; onion\r\n\r\n1:00:03.500 --> 1:00:06.000\r\npeel the & onion\r\nchop it\r\n\r\n"""
    assert read_subtitles(write(tmp_path / "a.vtt", rolling)) == [
        Narration(1.0, 3.5, "peel the & onion"),
        Narration(3603.5, 3606.0, "chop it"),
    ]
    srt = "1\n00:00:01,000 --> 00:00:02,250\n{\\an8}<i>one</i>\ntwo\n\n2\n00:00:05,000 --> 00:00:06,000\n\n"
    assert read_subtitles(write(tmp_path / "a.srt", srt)) == [Narration(1.0, 2.25, "one two")]
    with pytest.raises(SourceError, match=r"b\.srt.*soon"):
        read_subtitles(write(tmp_path / "b.srt", "1\nsoon --> later\nx\n"))


def test_folder(tmp_path: Path) -> None:
    clips = touch(tmp_path / "c", "a.mp4", "a.avi", "val/b.c.webm", "val/b.mkv", "d.wav", "d.jpg", "._e.mp4")
    write(clips / "a.txt", "\ufeffa cat\r\n\r\na dog | in a bag\r\n")
    write(clips / "val/b.c.en.vtt", "WEBVTT\n\n00:10.000 --> 00:14.000\nhello\n")
    manifest = imported(tmp_path, "folder", clips)
    found = {
        (clip.path.relative_to(clips).as_posix(), clip.start, clip.end, clip.captions, clip.split) for clip in manifest
    }
    assert found == {
        ("a.avi", 0, None, ("a cat", "a dog in a bag"), "train"),
        ("a.mp4", 0, None, ("a cat", "a dog in a bag"), "train"),
        ("d.wav", 0, None, (), "train"),
        ("val/b.c.webm", 10, 14, ("hello",), "val"),
        ("val/b.mkv", 0, None, (), "val"),
    }


def test_folder_with_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    clips = touch(tmp_path / "c", "a.mp4", b"\xff.mp4".decode(errors="surrogateescape"))
    assert [clip.path.name for clip in imported(tmp_path, "folder", clips)] == ["a.mp4"]
    assert "not UTF-8" in (tmp_path / "out/m.missing.csv").read_text()


# Matching with files.

KINETICS = "label,youtube_id,time_start,time_end,split\n"


def test_names_of_cut_and_whole_files(tmp_path: Path) -> None:
    rows = [
        "a/b c,id_1,7,17,train",
        "y,id_1,107,117,train",
        "y,whole,7,17,val",
        "y,gone,7,17,val",
        "y,ms,3,13,test",
        "y,bad,17,7,test",
        "y,,1,2,test",
        "y,whole,7,17,val",
        "y,thumbnail,1,11,val",
    ]
    source = write(tmp_path / "k.csv", KINETICS + "\n".join(rows))
    media = touch(
        tmp_path / "media",
        "a_b c/id_1_000007_000017.webm",
        "id_1_107_117.mp4",
        "deep/er/whole.MKV",
        "ms_3000_13000.mp4",
        "bad.mp4",
        "thumbnail.jpg",
        "gone_8_18.mp4",
        "whole.mkv.part",
    )
    manifest = imported(tmp_path, "kinetics", source, "--media", media)
    assert [(clip.path.name, clip.start, clip.end, clip.label, clip.split) for clip in manifest] == [
        ("id_1_000007_000017.webm", 0, None, "a/b c", "train"),
        ("id_1_107_117.mp4", 0, None, "y", "train"),
        ("whole.MKV", 7, 17, "y", "val"),
        ("ms_3000_13000.mp4", 0, None, "y", "test"),
    ]
    report = json.loads((tmp_path / "out/m.report.json").read_text())
    assert report["splits"] == {
        "test": {"listed": 3, "found": 1, "bad rows": 2},
        "train": {"listed": 2, "found": 2},
        "val": {"listed": 3, "found": 1, "missing": 2},
    }
    assert report["repeated_rows"] == 1
    lost = list(csv.DictReader((tmp_path / "out/m.missing.csv").open()))
    assert [(row["video"], row["state"]) for row in lost] == [
        ("gone", "missing"),
        ("bad", "bad rows"),
        ("", "bad rows"),
        ("thumbnail", "missing"),
    ]
    whole = imported(tmp_path, "kinetics", source, "--media", media, "--trimmed", "--split", "train").split("train")[2]
    assert (whole.path.name, whole.start, whole.end) == ("whole.MKV", 0, None)


def test_audio_names_and_several_labels(tmp_path: Path) -> None:
    write(tmp_path / "class_labels_indices.csv", 'index,mid,display_name\n0,/m/a,"Dog, bark"\n1,/m/b,Rain\n')
    rows = ['y1, 0.000, 10.000, "/m/a,/m/b"', 'y2, 30.000, 40.000, "/m/b"', 'y3, 20.000, 30.000, "/m/b"']
    source = write(tmp_path / "eval_segments.csv", "\n".join(rows))
    touch(tmp_path, "Yy1.wav", "y2_30.000.flac", "y3_20000_30000.m4a", "y3.jpg")
    manifest = imported(tmp_path, "audioset", source)
    assert [(clip.path.name, clip.start, clip.label) for clip in manifest] == [
        ("Yy1.wav", 0, "Dog, bark | Rain"),
        ("y2_30.000.flac", 0, "Rain"),
        ("y3_20000_30000.m4a", 0, "Rain"),
    ]


def test_of_files_with_one_name_that_in_the_listed_folder_is_taken(tmp_path: Path) -> None:
    source = write(tmp_path / "validationSet.csv", "run/x.mp4,run,3,0\nwalk/x.mp4,walk,3,0\n")
    media = touch(tmp_path / "media", "validation/walk/x.mp4", "validation/run/x.mp4")
    manifest = imported(tmp_path, "moments-in-time", source, "--media", media)
    assert [clip.path.parent.name for clip in manifest] == ["run", "walk"]


ODD = [
    "a b,twice_1,7,17,train",
    "\u00e9t\u00e9,\u540d,0:07,0:17,train",
    "",
    "# a remark,x,1,2,train",
    ' "quoted, label" , twice_1 ,1,2',
    ",none,7,17,train",
    "x,twice_1,7,17,validate",
    "a b,twice_1,7,17,train",
    "y,bad,soon,17,test",
    "y,,7,17,test",
    "x,own,3,13,test,more",
    "y,deep/own,3,13,test",
    "x,twice_1,17,7,train",
]


@pytest.mark.parametrize("format", ["kinetics", "howto100m", "webvid"])
def test_rows_mean_the_same_however_many_are_read_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    head = {
        "kinetics": KINETICS,
        "howto100m": "text,video_id,start,end,x\n",
        "webvid": "name,videoid,start,end,split,y\n",
    }
    source = write(tmp_path / "k.csv", head[format] + "\n".join([*ODD, *ODD[::-1]]))
    touch(tmp_path, "twice_1.mp4", "\u540d.mp4", "own_3_13.mp4", "own.mp4", "deep/own.mp4", "none_7_17.webm", "bad.mp4")
    told = []
    for rows in (1, 3, 4096):
        for module in (blocks, captions, records, tables):
            monkeypatch.setattr(module, "BLOCK", rows)
        imported(tmp_path, format, source, "--hold-out", 0.5)
        files = [(tmp_path / "out" / f"m.{suffix}").read_text() for suffix in ("csv", "missing.csv", "report.json")]
        told.append(files)
    assert told[0] == told[1] == told[2]
    assert len(told[0][0].splitlines()) > 5


def test_errors_of_a_line_name_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = "".join(f"x,id{i},7,17,train\n" for i in range(5000))
    long = write(tmp_path / "k.csv", KINETICS + rows + 'x,"id\n5",7,17,train\nx,"open,7,17,train\n' + rows)
    assert main(["kinetics", str(long), "--out", str(tmp_path / "m.csv")]) == 2
    assert f"{long}:5004: a quote" in capsys.readouterr().err
    given = kinetics([long])
    assert [len(next(given).video) for _ in range(2)] == [4095, 906]  # what stands before the fault
    with pytest.raises(SourceError, match="a quote"):
        next(given)
    short = write(tmp_path / "trainingSet.csv", "run/x.mp4,run,3,0\n" * 5000 + "run/y.mp4\n")
    assert main(["moments-in-time", str(short), "--out", str(tmp_path / "m.csv")]) == 2
    assert "a row of one cell, 'run/y.mp4'" in capsys.readouterr().err


def test_check_opens_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = ["x,good,0,1,train", "x,late,5,15,train", "x,junk,0,1,test"]
    source = write(tmp_path / "k.csv", KINETICS + "\n".join(rows))
    touch(tmp_path, "junk.mp4")
    for name in ("good", "late"):
        write_clip(tmp_path / f"{name}.mp4", steady(1.0, 10.0), tone_burst(1.0, 0.5, 8_000), rate=8_000)
    manifest = imported(tmp_path, "kinetics", source, "--check", "--workers", 2)
    assert [clip.path.name for clip in manifest] == ["good.mp4"]
    lost = list(csv.DictReader((tmp_path / "out/m.missing.csv").open()))
    assert [(row["video"], row["state"]) for row in lost] == [("late", "unreadable"), ("junk", "unreadable")]
    assert "--trimmed" in lost[0]["reason"]
    assert re.search(r"^all +3 +1 +0 +2 +0$", capsys.readouterr().out, re.MULTILINE)


def test_check_hears_sound_where_sound_will_do(tmp_path: Path) -> None:
    clips = touch(tmp_path / "c", "junk.wav")
    with wave.open(str(clips / "tone.wav"), "wb") as file:
        file.setparams((1, 2, 8_000, 0, "NONE", ""))
        file.writeframes(tone_burst(1.0, 0.2, 8_000).tobytes())
    assert [clip.path.name for clip in imported(tmp_path, "folder", clips, "--check")] == ["tone.wav"]


def test_nothing_found_says_where_and_what(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "k.csv", KINETICS + "x,abc,7,17,train\n")
    media = touch(tmp_path / "media", "other.mp4")
    assert main(["kinetics", str(source), "--media", str(media), "--out", str(tmp_path / "m.csv")]) == 1
    told = capsys.readouterr().err
    for words in (str(media), "abc_7_17.*", "abc.*", "other.mp4"):
        assert words in told
    assert not (tmp_path / "m.csv").exists()
    assert len((tmp_path / "m.missing.csv").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("format", "text", "words"),
    [
        ("kinetics", "name,when\nx,1\n", ["youtube_id", "name, when"]),
        ("kinetics", KINETICS, ["lists no clips"]),
        ("kinetics", b"label,youtube_id\n\xff\xfe\n", ["UTF-8"]),
        ("webvid", 'videoid,name\n1,"open\n' + "2,x\n" * 40, ["quote"]),
        ("ucf101", "v_x.avi 1\n", ["Label/file.avi"]),
        ("howto100m", '{"a": 1', ["not JSON"]),
        ("howto100m", '{"a": {"start": [1]}}', ["expected", "text"]),
        ("msrvtt", "a,b\nc,d\n", ["sentence"]),
    ],
)
def test_errors_name_file_and_way_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], format: str, text: str | bytes, words: list[str]
) -> None:
    source = write(tmp_path / ("a.json" if format == "howto100m" else "a.csv"), text)
    assert main([format, str(source), "--out", str(tmp_path / "m.csv")]) == 2
    told = capsys.readouterr().err
    for word in (source.name, *words):
        assert word in told


def test_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kinetics", str(tmp_path / "none.csv"), "--out", str(tmp_path / "m.csv")]) == 2
    source = write(tmp_path / "k.csv", KINETICS)
    for wrong in (["--out", str(source)], ["--out", "m.csv", "--hold-out", "nan"], ["--out", "m.csv", "--fold", "1"]):
        with pytest.raises(SystemExit) as usage:
            parse_arguments(["kinetics", str(source), *wrong])
        assert usage.value.code == 2
    with pytest.raises(SystemExit):
        parse_arguments(["--help"])
    told = capsys.readouterr().out
    for name in EXAMPLES:
        assert f"python -m vatt.data.sources {name} " in told
