"""The predict command as its users meet it: files, folders, lists, over time, zero-shot, and wrong input."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers.media import steady, write_clip
from helpers.small_model import small_config, write_model

import vatt
from vatt import predict
from vatt.checkpoints.model_folder import write_model_folder
from vatt.data.manifest import read_manifest


@pytest.fixture(scope="module")
def folder(tmp_path_factory, corpus: Path) -> Path:
    """A fine-tuned model of videos with two classes."""
    torch.manual_seed(3)
    made = vatt.Classifier(small_config().model, "video", 2)
    saved = {
        "modality": "video",
        "classes": 2,
        "labels": ["cat, small", "dog"],
        "task": "video",
        "loss": "softmax",
        "windows": 2,
        "crops": 1,
    }
    folder = tmp_path_factory.mktemp("classifier")
    write_model_folder(folder, made.state_dict(), small_config(), {"classifier": saved}, None)
    return folder


@pytest.fixture
def clips(corpus: Path, tmp_path: Path) -> Path:
    """A folder with two clips below it, and a file that is none."""
    for number, clip in enumerate(read_manifest(corpus)[:2]):
        (tmp_path / "clips" / "deep").mkdir(parents=True, exist_ok=True)
        shutil.copy(clip.path, tmp_path / "clips" / "deep" / f"{number}.mp4")
    (tmp_path / "clips" / "notes.txt").write_text("no media")
    return tmp_path / "clips"


def run(*arguments: object) -> int:
    return predict.main([str(argument) for argument in arguments])


def test_a_folder_as_json(folder, clips, capsys) -> None:
    assert run(folder, clips, "--format=json", "--device=cpu") == 0
    first, second = json.loads(capsys.readouterr().out)
    assert first["path"] == str(clips / "deep" / "0.mp4")
    expected = vatt.load(folder).predict(first["path"])
    assert [(one["class"], pytest.approx(one["probability"])) for one in first["classes"]] == expected
    assert second["start"] is None


def test_a_list_on_standard_input_as_csv(folder, clips, capsys, monkeypatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{clips / 'deep' / '1.mp4'}\n\n"))
    assert run(folder, "-", "--format=csv", "--top=1") == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert row["path"] == str(clips / "deep" / "1.mp4")
    assert row["class"] in ("cat, small", "dog")
    assert 0.5 <= float(row["probability"]) <= 1


def test_over_time(folder, tmp_path, capsys) -> None:
    write_clip(tmp_path / "long.mp4", steady(5.0, 10.0))
    assert run(folder, tmp_path / "long.mp4", "--every=2", "--format=json") == 0
    entries = json.loads(capsys.readouterr().out)
    assert [entry["start"] for entry in entries] == [0, 2, 4]
    expected = vatt.load(folder).predict(tmp_path / "long.mp4", windows=1, start=2.0)
    assert entries[1]["classes"][0]["class"] == expected[0][0]
    assert entries[1]["classes"][0]["probability"] == pytest.approx(expected[0][1])
    assert run(folder, tmp_path / "long.mp4", "--every=2") == 0
    assert "2.00 s" in capsys.readouterr().out


def test_zero_shot(corpus, clips, tmp_path, capsys) -> None:
    model = write_model(tmp_path / "run", corpus)
    texts = ("red square", "blue ring")
    assert run(model, clips / "deep/0.mp4", "--zero-shot", *texts, "--template", "a {}", "--format=json") == 0
    ((entry),) = json.loads(capsys.readouterr().out)
    prompts = {text: [f"a {text}"] for text in texts}
    expected = vatt.load(model).rank_texts(clips / "deep/0.mp4", prompts)
    assert [(one["class"], pytest.approx(one["cosine"])) for one in entry["classes"]] == expected
    assert run(model, clips) == 2
    assert "--zero-shot" in capsys.readouterr().err


def test_one_bad_file_does_not_stop_the_others(folder, clips, tmp_path, capsys) -> None:
    (tmp_path / "broken.mp4").write_text("no video")
    assert run(folder, tmp_path / "broken.mp4", clips / "deep/0.mp4") == 1
    out, err = capsys.readouterr()
    assert str(clips / "deep/0.mp4") in out
    assert err.count("\n") == 1
    assert "broken.mp4: not a video" in err


def test_wrong_input_is_one_sentence(folder, tmp_path, capsys, monkeypatch) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    for arguments, code, message in (
        ((folder, "-"), 2, "list on standard input is empty"),
        ((folder, tmp_path / "empty"), 2, "holds no video, picture or sound"),
        ((tmp_path, tmp_path / "a.mp4"), 1, "holds no run"),
        ((folder, tmp_path / "gone.mp4"), 1, "gone.mp4: missing"),
        ((folder, tmp_path / "a.mp4", "--zero-shot", "a dog"), 2, "classes of its own"),
    ):
        assert run(*arguments) == code
        err = capsys.readouterr().err
        assert message in err
        assert err.count("\n") == 1
    for flags in (("--every=0",), ("--every=2", "--windows=3"), ("--template=x",), ("--top=0",)):
        with pytest.raises(SystemExit) as stop:
            run(folder, "a.mp4", *flags)
        assert stop.value.code == 2
