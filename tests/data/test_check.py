"""What a corpus is and what is wrong with it: said before the first step, and by the command of its own."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from helpers import small_run
from helpers.media import steady, tone_burst, write_clip

from vatt import finetune
from vatt.data.check import main
from vatt.data.look import Look, look_at
from vatt.data.manifest import read_manifest


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two clips with sound, one without, of 2 s."""
    folder = tmp_path_factory.mktemp("clips")
    for i in range(3):
        write_clip(folder / f"{i}.mp4", steady(2.0, 10), tone_burst(2.0, 0.1, 16_000) if i < 2 else None, 16_000)
    return folder


def manifest(folder: Path, text: str) -> Path:
    path = folder / "m.csv"
    path.write_text(text)
    return path


def test_a_corpus_without_problems(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = manifest(folder, "path,caption,label,split\n0.mp4,a | b,x,train\n1.mp4,c,y,train\n2.mp4,,x,test\n")
    assert main([str(path), "--workers", "1"]) == 0
    said = capsys.readouterr().out
    assert "3 clips of 3 files; splits: test 1, train 2" in said
    assert "2 clips with captions (3), 3 with a label of 2 classes" in said
    assert "of 3 files looked at, 3 have video, 2 sound, 0 cannot be read; clips last 2 to 2 s" in said
    assert "no problems" in said


def test_every_problem_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "text.mp4").write_text("no video " * 50)
    rows = [
        "path,start,end,caption,class,label,split",
        "0.mp4,,,nan,,x,train",
        "0.mp4,,,again,,x,train",
        "0.mp4,,,b,,,test",
        "1.mp4,,9,走在湖边的红船,,x,train",
        "2.mp4,5,,c,,z,test",
        "gone.mp4,,,d,,x,train",
        "text.mp4,,,e,,x,train",
    ]
    assert main([str(manifest(folder, "\n".join(rows) + "\n")), "--workers", "2"]) == 1
    problems = [line.removeprefix("problem: ") for line in capsys.readouterr().out.splitlines() if "problem: " in line]
    for told in (
        f"1 files are in several splits, the first is {folder / '0.mp4'} in test and train",
        "1 rows are of a span that an earlier row of their split has; for retrieval they are one clip",
        "1 captions say no more than None, nan or null",
        "1 captions are in a script without spaces",
        "1 clips have no label, though others have",
        "1 classes have no training clip, the first is 'z'",
        "1.mp4: ends at 9 s, the file at 2.00 s",
        "2.mp4: starts at 5 s, the file ends at 2.00 s",
        "gone.mp4: missing",
        "text.mp4: not a video",
    ):
        assert sum(line.startswith(told) for line in problems) == 1, (told, problems)
    assert len(problems) == 10


def test_what_cannot_be_checked_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none.csv")]) == 2
    assert "no such file" in capsys.readouterr().err
    assert main([str(manifest(tmp_path, "path\na.mp4\n")), "--columns", "caption=words"]) == 2


def test_a_file_that_hangs_or_ends_its_process_costs_one_answer(folder: Path, tmp_path: Path) -> None:
    """A stand-in for the decoder, which a file can really hang or crash, in the place where the process imports it."""
    package = tmp_path / "sitecustomize.py"
    package.write_text(
        "import os, time, vatt.data.decoding.container as reader\n"
        "probe = reader.probe\n"
        "def odd(path, **options):\n"
        "    if path.name == 'crash.mp4': os.abort()\n"
        "    if path.name == 'hang.mp4': time.sleep(60)\n"
        "    return probe(path, **options)\n"
        "reader.probe = odd\n"
    )
    before = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(tmp_path), *sys.path])
    try:
        names = ["0.mp4", "crash.mp4", "1.mp4", "hang.mp4", "2.mp4"]
        looks = look_at([folder / name for name in names], 1, limit=1.0)
    finally:
        os.environ["PYTHONPATH"] = before
    assert [looks[folder / name].video for name in names] == [True, False, True, False, True]
    assert looks[folder / "crash.mp4"] == Look(fault="its decoder crashed")
    assert "hung for 2 s" in looks[folder / "hang.mp4"].fault
    assert looks[folder / "0.mp4"].audio
    assert not looks[folder / "2.mp4"].audio


def test_training_says_what_its_data_are(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clips = sorted(cache.rglob("*.mp4"))[:5]
    lines = [f"{clip},thing {i},{'even' if i % 2 == 0 else 'odd'},train" for i, clip in enumerate(clips)]
    lines += [f"{clips[0]},thing,even,test", f"{tmp_path}/gone.mp4,thing,odd,test"]
    path = manifest(tmp_path, "\n".join(["path,caption,label,split", *lines]) + "\n")
    assert small_run.run("--data", path, "--out", tmp_path / "run", "--steps", 1, "--set", "data.max_bad_share=1") == 0
    said, told = capsys.readouterr().out, "7 clips of 6 files; splits: test 2, train 5"
    assert said.index(told) < said.index("done")
    assert "7 clips with captions (7), 7 with a label of 2 classes" in said
    assert "of 6 files looked at, 5 have video" in said
    assert "1 problems with these files, the first: " in said
    assert "1 files are in several splits" in said
    arguments = [
        "--task",
        "video",
        "--init",
        "none",
        "--data",
        str(path),
        "--steps",
        "1",
        "--out",
        str(tmp_path / "tuned"),
    ]
    settings = [
        "data.workers=0",
        "data.batch_size=2",
        "model.video.size=32",
        "model.video.frames=8",
        "data.max_bad_share=1",
    ]
    assert finetune.main([*arguments, *(f"--set={setting}" for setting in settings)]) == 0
    assert told in capsys.readouterr().out


def test_clips_are_found_in_either_form_of_their_name(folder: Path, tmp_path: Path) -> None:
    import unicodedata

    stored, written = (unicodedata.normalize(form, "Café.mp4") for form in ("NFD", "NFC"))
    (tmp_path / stored).write_bytes((folder / "0.mp4").read_bytes())
    (tmp_path / "m.csv").write_text(f"path\n{written}\n", encoding="utf-8")
    (clip,) = read_manifest(tmp_path / "m.csv")
    assert look_at([clip.path], 0)[clip.path].video
