"""Published annotations in the form they have, invented rows: the records that each format reads from them."""

from __future__ import annotations

import json
import unicodedata
import wave
from pathlib import Path
from typing import Any

import pytest

from vatt.data.manifest import read_manifest
from vatt.data.sources.__main__ import formats_table, main
from vatt.data.sources.other import OTHERS
from vatt.data.sources.tables import TABLES

# format, name of the file, its content, files that are there, and the rows of the manifest: file, start, end, captions,
# labels, split
CASES: list[tuple[str, str, Any, str, list[tuple[Any, ...]]]] = [
    (
        "path-label",
        "train.txt",
        "boats/abcdefghi01_000012_000022.mp4 0\nboats/x y.mp4 1\n",
        "boats/abcdefghi01_000012_000022.mp4 boats/x%y.mp4",
        [
            ("boats/abcdefghi01_000012_000022.mp4", 0, None, (), "0", "train"),
            ("boats/x y.mp4", 0, None, (), "1", "train"),
        ],
    ),
    (
        "path-label",
        "val.csv",
        "/data/boats/abcdefghi01.mp4 0\n",
        "abcdefghi01.mp4",
        [("abcdefghi01.mp4", 0, None, (), "0", "val")],
    ),
    (
        "path-label",
        "test.csv",
        "abseiling/abc.mp4,3\n",
        "abseiling/abc.mp4",
        [("abseiling/abc.mp4", 0, None, (), "3", "test")],
    ),
    (
        "something-something-v2",
        "train.json",
        [
            {
                "id": "78687",
                "label": "pushing blue cup so that it falls",
                "template": "Pushing [something] so that it falls",
                "placeholders": ["blue cup"],
            }
        ],
        "78687.webm",
        [
            (
                "78687.webm",
                0,
                None,
                ("pushing blue cup so that it falls",),
                "Pushing something so that it falls",
                "train",
            )
        ],
    ),
    (
        "msrvtt",
        "msrvtt_train_9k.json",
        [{"video_id": "video7010", "video": "video7010.mp4", "caption": ["a boat", "a red boat"], "category": 1}],
        "video7010.mp4",
        [("video7010.mp4", 0, None, ("a boat", "a red boat"), None, "train")],
    ),
    (
        "msrvtt",
        "msrvtt_test_1k.json",
        [{"video_id": "video7010", "video": "video7010.mp4", "caption": "a boat"}],
        "video7010.mp4",
        [("video7010.mp4", 0, None, ("a boat",), None, "test")],
    ),
    (
        "vatex",
        "vatex_training_v1.0.json",
        [
            {"videoID": "abcdefghi01_000012_000022", "enCap": ["a red boat", "a boat"], "chCap": ["x"]},
            {"videoID": "a_c_efghi02_000002_000012", "enCap": ["a knot"]},
        ],
        "abcdefghi01.mp4 a_c_efghi02_000002_000012.mp4",
        [
            ("abcdefghi01.mp4", 12, 22, ("a red boat", "a boat"), None, "train"),
            ("a_c_efghi02_000002_000012.mp4", 0, None, ("a knot",), None, "train"),
        ],
    ),
    (
        "activitynet-captions",
        "val_1.json",
        {
            "v_abcdefghi01": {
                "duration": 82.7,
                "timestamps": [[0.83, 19.86], [17.37, 60.81]],
                "sentences": ["A boat floats.", " It sinks."],
            }
        },
        "v_abcdefghi01.mp4",
        [
            ("v_abcdefghi01.mp4", 0.83, 19.86, ("A boat floats.",), None, "val"),
            ("v_abcdefghi01.mp4", 17.37, 60.81, ("It sinks.",), None, "val"),
        ],
    ),
    (
        "activitynet-paragraphs",
        "train.json",
        {
            "v_abcdefghi01": {
                "duration": 82.7,
                "timestamps": [[0.83, 19.86], [17.37, 60.81]],
                "sentences": ["A boat floats.", " It sinks."],
            }
        },
        "v_abcdefghi01.mp4",
        [("v_abcdefghi01.mp4", 0, None, ("A boat floats. It sinks.",), None, "train")],
    ),
    (
        "audiocaps",
        "test.csv",
        "audiocap_id,youtube_id,start_time,caption\n1,abcdefghi01,20,a dog barks\n2,abcdefghi01,20,a dog is barking\n"
        '3,abcdefghi02,30,"a cat, loud"\n',
        "abcdefghi01.m4a abcdefghi02_30.wav",
        [
            ("abcdefghi01.m4a", 20, 30, ("a dog barks", "a dog is barking"), None, "test"),
            ("abcdefghi02_30.wav", 0, None, ("a cat, loud",), None, "test"),
        ],
    ),
    (
        "clotho",
        "clotho_captions_evaluation.csv",
        "file_name,caption_1,caption_2,caption_3,caption_4,caption_5\n"
        'Distorted AM Radio noise.wav,"a, b",b c,c d,d e,e f\n',
        "Distorted%AM%Radio%noise.wav",
        [("Distorted AM Radio noise.wav", 0, None, ("a, b", "b c", "c d", "d e", "e f"), None, "test")],
    ),
    (
        "fsd50k",
        "dev.csv",
        'fname,labels,mids,split\n64760,"Electric_guitar,Guitar,Music","/m/02sgy,/m/0342h",val\n',
        "64760.wav",
        [("64760.wav", 0, None, (), "Electric_guitar | Guitar | Music", "val")],
    ),
    (
        "fsd50k",
        "eval.csv",
        'fname,labels,mids\n37199,"Electric_guitar","/m/02sgy"\n',
        "37199.wav",
        [("37199.wav", 0, None, (), "Electric_guitar", "test")],
    ),
    (
        "internvid",
        "InternVid.jsonl",
        [
            {
                "YoutubeID": "abcdefghi01",
                "Start_timestamp": "00:00:19.734",
                "End_timestamp": "00:00:24.858",
                "Caption": "a boat",
                "Aesthetic_Score": 4.3,
                "UMT_Score": 0.4,
            }
        ],
        "abcdefghi01.mp4",
        [("abcdefghi01.mp4", 19.734, 24.858, ("a boat",), None, "train")],
    ),
    (
        "panda70m",
        "panda70m_validation.csv",
        "videoID,url,timestamp,caption,matching_score\nabcdefghi01,https://example.org/abcdefghi01,\"[['0:00:20.854', "
        "'0:00:26.793'], ['0:00:30.100', '0:00:41.000']]\",\"['a red boat on a lake', 'a person ties a knot']\","
        '"[0.44, 0.41]"\n',
        "abcdefghi01.mp4",
        [
            ("abcdefghi01.mp4", 20.854, 26.793, ("a red boat on a lake",), None, "val"),
            ("abcdefghi01.mp4", 30.1, 41.0, ("a person ties a knot",), None, "val"),
        ],
    ),
    (
        "epic-kitchens",
        "EPIC_100_train.csv",
        "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,stop_frame,"
        "narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes\n"
        "P01_01_0,P01,P01_01,00:00:01.089,00:00:00.14,00:00:03.37,8,202,open door,open,3,door,3,['door'],[3]\n",
        "P01_01.MP4",
        [("P01_01.MP4", 0.14, 3.37, ("open door",), "open door", "train")],
    ),
    (
        "epic-sounds",
        "EPIC_Sounds_validation.csv",
        "annotation_id,participant_id,video_id,start_timestamp,stop_timestamp,start_sample,stop_sample,description,class,"
        "class_id\nP01_01_0,P01,P01_01,00:00:02.466,00:00:05.315,59184,127560,paper rustling,rustle,4\n",
        "P01_01.wav",
        [("P01_01.wav", 2.466, 5.315, ("paper rustling",), "rustle", "val")],
    ),
    (
        "charades",
        "Charades_v1_train.csv",
        "id,subject,scene,quality,relevance,verified,script,objects,descriptions,actions,length\n46GP8,HR43,Kitchen,6,7,Yes,"
        "A person cooks on a stove.,food;stove,A person cooks.;A person is cooking.,"
        "c092 11.90 21.20;c147 0.00 12.60;c092 1 2,"
        "24.83\nN11GT,0KZ7,Stairs,6,7,Yes,,stairs,,,18.25\n",
        "46GP8.mp4 N11GT.mp4",
        [
            (
                "46GP8.mp4",
                0,
                None,
                ("A person cooks on a stove.", "A person cooks.", "A person is cooking."),
                "c092 | c147",
                "train",
            ),
            ("N11GT.mp4", 0, None, (), None, "train"),
        ],
    ),
    (
        "didemo",
        "val_data.json",
        [
            {
                "annotation_id": i,
                "description": text,
                "num_segments": 6,
                "reference_description": "n/a",
                "times": [[0, 0]],
                "video": "12345@N00_123_abc.mp4",
                "dl_link": "x",
                "context": [],
            }
            for i, text in enumerate(("a cat jumps", "it runs"))
        ],
        "12345@N00_123_abc.avi",
        [("12345@N00_123_abc.avi", 0, None, ("a cat jumps", "it runs"), None, "val")],
    ),
    (
        "msvd",
        "MSR Video Description Corpus.csv",
        "VideoID,Start,End,WorkerID,Source,AnnotationTime,Language,Description\n"
        "abcdefghi01,33,37,1,clean,10,English,A man "
        "ties a knot.\nabcdefghi01,33,37,2,clean,11,English,Someone ties it.\n"
        "abcdefghi01,33,37,3,clean,9,German,Ein Knoten\n",
        "abcdefghi01_33_37.avi",
        [("abcdefghi01_33_37.avi", 0, None, ("A man ties a knot.", "Someone ties it."), None, "train")],
    ),
    (
        "lsmdc",
        "LSMDC16_annos_test.csv",
        "1004_Juno_00.00.32.165-00.00.32.736\t00:00:32.165\t00:00:32.736\t00:00:32.136\t00:00:32.7\t"
        'SOMEONE says "yes.\n',
        "1004_Juno/1004_Juno_00.00.32.165-00.00.32.736.avi",
        [("1004_Juno/1004_Juno_00.00.32.165-00.00.32.736.avi", 0, None, ('SOMEONE says "yes.',), None, "test")],
    ),
    (
        "audioset-strong",
        "audioset_eval_strong.tsv",
        "segment_id\tstart_time_seconds\tend_time_seconds\tlabel\nabcdefghi01_30000\t0.000\t1.7\t/m/09x0r\n"
        "abcdefghi01_30000\t2.000\t3.7\t/m/0342h\nabc_efghi02_500\t0.0\t1.0\t/m/09x0r\n",
        "abcdefghi01_30000.wav abc_efghi02.mp4",
        [
            ("abcdefghi01_30000.wav", 0, None, (), "/m/09x0r | /m/0342h", "test"),
            ("abc_efghi02.mp4", 0.5, 10.5, (), "/m/09x0r", "test"),
        ],
    ),
    (
        "wavcaps",
        "as_final.json",
        {
            "num_captions_per_audio": 1,
            "data": [
                {"id": "Yabcdefghi01.wav", "caption": "a dog", "audio": "wav_path", "duration": 10.0},
                {"id": "180913", "caption": None},
            ],
        },
        "Yabcdefghi01.flac 180913.flac",
        [("Yabcdefghi01.flac", 0, None, ("a dog",), None, "train"), ("180913.flac", 0, None, (), None, "train")],
    ),
    (
        "urbansound8k",
        "UrbanSound8K.csv",
        "slice_file_name,fsID,start,end,salience,fold,classID,class\n100032-3-0-0.wav,100032,5.0,9.317551,1,5,3,dog_bark\n"
        "100263-2-0-117.wav,100263,58.5,62.5,1,1,2,children_playing\n",
        "fold5/100032-3-0-0.wav fold1/100263-2-0-117.wav",
        [
            ("fold5/100032-3-0-0.wav", 0, None, (), "dog_bark", "train"),
            ("fold1/100263-2-0-117.wav", 0, None, (), "children_playing", "test"),
        ],
    ),
    (
        "vggsounder",
        "vggsounder.csv",
        "video_id,label,modality,background_music,static_image,voice_over\n"
        "---g-f_I2yQ_000001,people marching,AV,False,False,False\n"
        "---g-f_I2yQ_000001,drum,A,False,False,False\n",
        "---g-f_I2yQ.mp4",
        [("---g-f_I2yQ.mp4", 1, 11, (), "people marching | drum", "train")],
    ),
    (
        "multi-moments",
        "multi_moments_validationSet.txt",
        "flying/clip-1_31.mp4,98,11\n",
        "flying/clip-1_31.mp4",
        [("flying/clip-1_31.mp4", 0, None, (), "98 | 11", "val")],
    ),
    (
        "ego4d",
        "narration.json",
        {
            "abc": {
                "status": "complete",
                "narration_pass_1": {
                    "narrations": [
                        {"timestamp_sec": 10.0, "narration_text": "#C C walks"},
                        {"timestamp_sec": 20.0, "narration_text": "#O A man X sits"},
                    ]
                },
            }
        },
        "abc.mp4",
        [
            ("abc.mp4", 8.4, 11.6, ("C walks", "A man X sits"), None, "train"),
            ("abc.mp4", 18.4, 21.6, ("A man X sits", "C walks"), None, "train"),
        ],
    ),
    (
        "webvid",
        "videos.csv",
        "videoid,name,page_dir\n7,It&#39;s a dog&amp;cat | x,000_1\n8,\"['a', 'b']\",\n",
        "000_1/7.mp4 8.mp4",
        [("000_1/7.mp4", 0, None, ("It's a dog&cat x",), None, "train"), ("8.mp4", 0, None, ("a", "b"), None, "train")],
    ),
    (
        "webvid",
        "videos.jsonl",
        [
            {"video_id": "7", "caption": None, "start": 1, "end": "0:03.5"},
            {"video_id": "8", "caption": ["a", "b", None]},
        ],
        "7.mp4 8.mp4",
        [("7.mp4", 1, 3.5, (), None, "train"), ("8.mp4", 0, None, ("a", "b"), None, "train")],
    ),
]


def write(path: Path, content: Any) -> None:
    text = content
    if path.suffix == ".jsonl":
        text = "".join(json.dumps(row) + "\n" for row in content)
    elif not isinstance(content, str):
        text = json.dumps(content)
    path.write_text(text)


def imported(folder: Path, form: str, name: str, content: Any, there: str, *flags: str) -> list[tuple[Any, ...]]:
    """The rows of the manifest that the command writes; `there`: files that exist, % for a space in their names."""
    for file in there.split():
        path = folder / file.replace("%", " ")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    write(folder / name, content)
    assert main([form, str(folder / name), "--media", str(folder), "--out", str(folder / "out.csv"), *flags]) == 0
    return [
        (clip.name, clip.start, clip.end, clip.captions, clip.label, clip.split)
        for clip in read_manifest(folder / "out.csv")
    ]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[1].partition('.')[0]}")
def test_formats(case: tuple[str, str, Any, str, list[tuple[Any, ...]]], tmp_path: Path) -> None:
    form, name, content, there, rows = case
    assert imported(tmp_path, form, name, content, there) == rows


def test_the_document_lists_every_format() -> None:
    text = (Path(__file__).resolve().parents[3] / "docs" / "formats.md").read_text(encoding="utf-8")
    assert formats_table() in text


def test_every_declared_format_has_a_case() -> None:
    assert {*TABLES, *OTHERS} - {case[0] for case in CASES} == {"video2dataset"}


def test_options_of_table_formats(tmp_path: Path) -> None:
    epic = next(case for case in CASES if case[0] == "epic-kitchens")
    assert imported(tmp_path, *epic[:4], "--labels", "verb")[0][4] == "open"
    didemo = next(case for case in CASES if case[0] == "didemo")
    assert imported(tmp_path, *didemo[:4], "--paragraph")[0][3] == ("a cat jumps it runs",)
    sounds = next(case for case in CASES if case[0] == "urbansound8k")
    assert [row[5] for row in imported(tmp_path, *sounds[:4], "--fold", "5")] == ["test", "train"]


def test_panda_as_json_lines(tmp_path: Path) -> None:
    spans = [["0:00:01.5", "0:00:03"], [4, 5.5]]
    row = {"videoID": "abcdefghi01", "timestamp": spans, "caption": ["a boat", "a knot"]}
    found = imported(tmp_path, "panda70m", "panda.jsonl", [row], "abcdefghi01.mp4")
    assert [(row[1], row[2], row[3]) for row in found] == [(1.5, 3.0, ("a boat",)), (4.0, 5.5, ("a knot",))]


def test_files_of_video2dataset(tmp_path: Path) -> None:
    folder = tmp_path / "out" / "00000"
    folder.mkdir(parents=True)
    (folder / "000000001.mp4").touch()
    write(folder / "000000001.json", {"url": "x", "caption": "a boat", "key": "000000001", "status": "success"})
    write(
        folder / "000000002.json", {"url": "x", "caption": "gone", "key": "000000002", "status": "failed_to_download"}
    )
    write(tmp_path / "out" / "00000_stats.json", {"count": 2, "successes": 1})
    assert main(["video2dataset", str(tmp_path / "out"), "--out", str(tmp_path / "m.csv")]) == 0
    (clip,) = read_manifest(tmp_path / "m.csv")
    assert (clip.name, clip.captions) == ("out/00000/000000001.mp4", ("a boat",))


@pytest.mark.parametrize(
    ("form", "name", "content", "reason"),
    [
        (
            "webvid",
            "panda.csv",
            "videoID,timestamp,caption\na,\"[['0:01', '0:02']]\",\"['x']\"\n",
            "timestamp holds spans",
        ),
        (
            "panda70m",
            "p.csv",
            "videoID,timestamp,caption\na,\"[['0:01', '0:02']]\",\"['x', 'y']\"\n",
            "as many captions as spans",
        ),
        ("vatex", "v.json", [{"videoID": "abc", "enCap": []}], "holds no times"),
        ("clotho", "c.csv", "file_name,caption\na.wav,b\n", "no column caption_1; found: file_name, caption"),
        ("clotho", "c.csv", "file_name,caption_1\na.wav,b, c\n", "more cells than the 2 columns"),
        ("lsmdc", "l.csv", "a\tb\n", "2 cells; a row is: name, start_aligned"),
        ("activitynet-captions", "a.json", [1], "expected"),
        ("path-label", "l.csv", "video,label\na,b\n", "no list of media files"),
        ("wavcaps", "w.json", {"data": [{"id": 1}]}, "expected"),
    ],
)
def test_other_forms_are_refused(
    form: str, name: str, content: Any, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / name, content)
    assert main([form, str(tmp_path / name), "--media", str(tmp_path), "--out", str(tmp_path / "out.csv")]) == 2
    assert reason in capsys.readouterr().err


def test_null_and_nan_are_no_captions(tmp_path: Path) -> None:
    howto = {
        "abcdefghi01": {
            "start": [9.36, 12.5, 20.0],
            "end": [12.2, 15.0, 25.0],
            "text": ["cut the rope", None, float("nan")],
        }
    }
    rows = imported(tmp_path, "howto100m", "caption.json", howto, "abcdefghi01.mp4")
    assert [row[3] for row in rows] == [("cut the rope",)]
    info = {
        "videos": [{"video_id": "video7", "split": "train"}],
        "sentences": [{"video_id": "video7", "caption": ["a", "b"]}, {"video_id": "video7", "caption": None}],
    }
    (row,) = imported(tmp_path, "msrvtt", "info.json", info, "video7.mp4")
    assert row[3] == ("a", "b")


def test_folders_give_splits_and_classes(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name in ("Archery", "Basketball"):
            (tmp_path / "subset" / split / name).mkdir(parents=True)
            (tmp_path / "subset" / split / name / "clip0.mp4").touch()
    assert main(["folder", str(tmp_path / "subset"), "--out", str(tmp_path / "m.csv")]) == 0
    found = {clip.name: (clip.label, clip.split) for clip in read_manifest(tmp_path / "m.csv")}
    assert found["subset/val/Archery/clip0.mp4"] == ("Archery", "val")
    assert {label for label, _ in found.values()} == {"Archery", "Basketball"}
    assert read_manifest(tmp_path / "subset").labels == ("Archery", "Basketball")


def sound(path: Path, seconds: float) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8_000)
        file.writeframes(bytes(int(16_000 * seconds)))


def test_spans_behind_the_end_of_their_file_are_doubted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """AudioSet clips that were cut to their 10 s and are named by the id alone."""
    for name in ("abcdefghi01", "abcdefghi02"):
        sound(tmp_path / f"{name}.wav", 10.0)
    sound(tmp_path / "abcdefghi03.wav", 60.0)
    text = "".join(f'abcdefghi0{i}, {start}, {start + 10}, "/m/09x0r"\n' for i, start in ((1, 30), (2, 5), (3, 40)))
    (tmp_path / "seg.csv").write_text(f"# YTID, start_seconds, end_seconds, positive_labels\n{text}")
    arguments = ["audioset", str(tmp_path / "seg.csv"), "--media", str(tmp_path), "--out", str(tmp_path / "m.csv")]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "careful: 2 spans end after their file, of 3 files looked at" in said
    assert len(read_manifest(tmp_path / "m.csv")) == 3
    assert "--trimmed" in said
    assert main([*arguments, "--check"]) == 0
    assert [(clip.name, clip.start, clip.end) for clip in read_manifest(tmp_path / "m.csv")] == [
        ("abcdefghi01.wav", 0.0, None),
        ("abcdefghi02.wav", 0.0, None),
        ("abcdefghi03.wav", 40.0, 50.0),
    ]
    assert "2 of these files are as long as the clip and are taken whole" in capsys.readouterr().out
    sound(tmp_path / "abcdefghi01.wav", 20.0)
    assert main([*arguments, "--check"]) == 0
    assert "starts at 30 s, the file ends at 20.00 s (--trimmed?)" in (tmp_path / "m.missing.csv").read_text()
    capsys.readouterr()
    assert main([*arguments, "--trimmed"]) == 0
    assert "careful" not in capsys.readouterr().out


def test_names_meet_whatever_their_accents_are(tmp_path: Path) -> None:
    there, listed = (unicodedata.normalize(form, "Café 01") for form in ("NFD", "NFC"))
    assert there != listed
    for folder, file, name in ((tmp_path / "a", there, listed), (tmp_path / "b", listed, there)):
        folder.mkdir()
        (folder / f"{file}.mp4").touch()
        (folder / "t.csv").write_text(f"videoid,name\n{name},a cup\n", encoding="utf-8")
        assert main(["webvid", str(folder / "t.csv"), "--media", str(folder), "--out", str(folder / "m.csv")]) == 0
        assert read_manifest(folder / "m.csv")[0].path.is_file()
