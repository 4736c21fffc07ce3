"""A resumed run says whether the files of its clips are what they were, and whose fault an error is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from helpers.media import steady, write_clip
from helpers.small_run import run, same_run

from vatt.checkpoints import content
from vatt.data.decoding import span
from vatt.data.manifest import read_manifest
from vatt.data.transcode import encode
from vatt.data.transcode import workers as transcode_workers
from vatt.data.transcode.corpus import jobs_of
from vatt.data.transcode.workers import _work
from vatt.runtime import faults


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for i in range(4):
        write_clip(folder / f"{i}.mp4", steady(1.6 + i / 10, 10))
        (folder / f"{i}.txt").write_text(f"clip {i}\n")
    return folder


def test_a_resumed_run_says_that_clips_changed(clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = tmp_path / "data", tmp_path / "run"
    shutil.copytree(clips, data)
    assert run("--data", data, "--out", out, "--steps", 3) == 0
    shutil.copytree(out, tmp_path / "old")
    assert run("--out", out, "--resume", "--steps", 4) == 0
    assert "content" not in capsys.readouterr().out.replace("content.json", "")
    shutil.copy(data / "0.mp4", data / "1.mp4")
    assert run("--out", out, "--resume", "--steps", 5) == 0
    said = capsys.readouterr().out
    assert "the content of 1 of 4 files looked at changed since the run began, the first is 1.mp4" in said
    assert "decoded by an earlier version" not in said
    (tmp_path / "old" / content.DECODING_NAME).unlink()
    (tmp_path / "old" / content.NAME).unlink()
    assert run("--out", tmp_path / "old", "--resume", "--steps", 5) == 0
    said = capsys.readouterr().out
    assert "content not recorded" in said
    assert said.count("decoded by an earlier version") == 1
    assert run("--out", tmp_path / "old", "--resume", "--steps", 6) == 0
    assert "decoded by an earlier version" not in capsys.readouterr().out


def test_large_files_and_many_are_looked_at_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytearray(content.WHOLE + 1)
    digests = []
    for place in (None, 0, len(data) // 2, len(data) - 1):
        if place is not None:
            data[place] ^= 1
        (tmp_path / "a.mp4").write_bytes(data)
        digests.append(content.content_of(tmp_path / "a.mp4"))
    assert len(set(digests)) == 4
    assert content.content_of(tmp_path / "gone.mp4") == ""
    monkeypatch.setattr(content, "MOST_FILES", 3)
    for i in range(10):
        (tmp_path / f"{i}.mp4").write_bytes(bytes([i]))
    assert len(content.contents(read_manifest(tmp_path))) == 3


@pytest.mark.parametrize("error", [TypeError, AttributeError, ImportError])
def test_an_error_of_the_program_is_no_clips(
    error: type[Exception],
    clips: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise error("ours")

    monkeypatch.setattr(span, "read_video", broken)
    with pytest.raises(error, match="ours"):
        run("--data", clips, "--out", tmp_path / "run", "--steps", 2)
    assert "please report it" in capsys.readouterr().err
    assert not (tmp_path / "run" / "bad_clips.csv").exists()


def test_an_error_of_the_program_ends_transcoding(clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[object] = []

    class End:
        def send(self, outcome: object) -> None:
            sent.append(outcome)

    def broken(*_: object) -> None:
        raise TypeError("ours")

    monkeypatch.setattr(transcode_workers, "encode_clip", broken)
    monkeypatch.setattr(transcode_workers.signal, "signal", lambda *_: None)
    job = jobs_of(read_manifest(clips))[0]
    _work(End(), job, tmp_path / "a", encode.Encoding(), 10.0, 0.0)  # type: ignore[arg-type]
    (fault,) = sent
    assert isinstance(fault, faults.Fault)
    assert "Traceback" in str(fault)
    assert "TypeError: ours" in str(fault)


def test_a_run_without_a_record_has_the_built_in_corpus_of_format_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from vatt.data.synthetic import build_corpus

    monkeypatch.setenv("VATT_CACHE", str(tmp_path / "cache"))
    build_corpus(clips=24, progress=False, version=1)
    out, whole = tmp_path / "run", tmp_path / "whole"
    assert run("--out", out, "--steps", 2) == 0
    assert json.loads((out / "config.json").read_text())["corpus_format"] == 2
    said = json.loads((out / "config.json").read_text())
    del said["corpus_format"]
    for folder in (out, whole):
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(said))
        assert run("--out", folder, "--resume", "--steps", 3) == 0
        assert "shapes-v1-" in capsys.readouterr().out
    assert same_run(out, whole)
    shutil.rmtree(tmp_path / "cache" / "shapes-v1-24clips-seed0")
    assert run("--out", out, "--resume", "--steps", 4) == 2
    assert "--format 1" in capsys.readouterr().err
