"""The predict command as its users meet it: files, folders, lists, over time, zero-shot, and wrong input."""

from __future__ import annotations

import csv
import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.bfloat16 import skip_without_bfloat16
from helpers.media import steady, tone_burst, write_clip
from helpers.media_alone import write_sound
from helpers.small_model import small_config, write_model

import vatt
from vatt import evaluate, predict
from vatt.checkpoints.model_folder import write_model_folder
from vatt.data.manifest import read_manifest
from vatt.inference.strip import draw_strip, key_frames


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
    assert second["dtype"] == "float32"  # it is narrow


def test_bfloat16_is_said_and_recorded(folder, clips, capsys) -> None:
    skip_without_bfloat16()
    assert run(folder, clips, "--format=csv", "--device=cpu", "--dtype=bfloat16") == 0
    out, err = capsys.readouterr()
    assert err == "computed in bfloat16 (as --dtype says)\n"
    rows = list(csv.DictReader(io.StringIO(out)))
    assert {row["dtype"] for row in rows} == {"bfloat16"}
    expected = dict(vatt.load(folder).predict(rows[0]["path"]))
    got = {row["class"]: float(row["probability"]) for row in rows[:2]}
    assert got == pytest.approx(expected, abs=0.01)
    assert got != pytest.approx(expected, abs=1e-6)  # it is in use


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


def test_a_strip_shows_frames_and_classes_over_time(folder, tmp_path, monkeypatch) -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    write_clip(tmp_path / "long.mp4", steady(5.0, 10.0))
    drawn = []
    monkeypatch.setattr("vatt.inference.strip.write_figure", lambda figure, path: drawn.append((figure, path)))
    assert run(folder, tmp_path / "long.mp4", "--every=0.5", "--top=1", "--strip", tmp_path / "s.png") == 0
    ((figure, path),) = drawn
    assert path == tmp_path / "s.png"
    pictures, lines = figure.axes
    # Every second window of ten has its frame, the same that is read there, above its time.
    centres = [sum(image.get_extent()[:2]) / 2 for image in pictures.images]
    assert centres == pytest.approx([0, 1, 2, 3, 4])
    first, fourth = (np.asarray(pictures.images[i].get_array()) for i in (0, 3))
    assert np.array_equal(fourth, key_frames(tmp_path / "long.mp4", small_config(), [3.0])[0])
    assert not np.array_equal(first, fourth)
    model = vatt.load(folder)
    for line in lines.lines:  # all classes, whatever --top
        expected = dict(model.predict(tmp_path / "long.mp4", windows=1, start=2.5))[line.get_label()]
        assert dict(zip(line.get_xdata(), line.get_ydata(), strict=True))[2.5] == pytest.approx(expected)
    assert len({(line.get_color(), line.get_marker()) for line in lines.lines}) == len(lines.lines) == 2
    pyplot.close(figure)


def test_a_sound_has_a_strip_without_frames(tmp_path) -> None:
    pytest.importorskip("matplotlib")
    write_sound(tmp_path / "a.wav", tone_burst(1.5, 0.2, 16_000, 1.0), 16_000)
    scores = {"low": 0.9, "high": 0.1}
    draw_strip(tmp_path / "s.png", tmp_path / "a.wav", small_config(), [(0.0, scores)], "probability")
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory, corpus: Path) -> Path:
    return write_model(tmp_path_factory.mktemp("pretrained") / "run", corpus)


def test_a_file_of_prompts_and_several_templates(pretrained, clips, tmp_path, capsys) -> None:
    (tmp_path / "p.tsv").write_text("square\ta red square\ta blue square\nring\n")
    templates = ("we see {}", "{}")
    assert run(pretrained, clips / "deep/0.mp4", "--prompts", tmp_path / "p.tsv", "--template", *templates) == 0
    prompts = {
        "square": ["we see a red square", "a red square", "we see a blue square", "a blue square"],
        "ring": ["we see ring", "ring"],
    }
    expected = vatt.load(pretrained).rank_texts(clips / "deep/0.mp4", prompts)
    assert "   ".join(f"{value:.3f} {name}" for name, value in expected) in capsys.readouterr().out


def test_zero_shot(pretrained, clips, capsys) -> None:
    model = pretrained
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


def test_a_missing_extra_is_named(folder, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run(folder, tmp_path / "a.mp4", "--every=1", "--strip", tmp_path / "s.png") == 1
    assert capsys.readouterr().err == "error: --strip needs matplotlib: pip install -e '.[figures]'\n"


def test_wrong_input_is_one_sentence(folder, pretrained, tmp_path, capsys, monkeypatch) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "none.txt").touch()
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    for arguments, code, message in (
        ((folder, "-"), 2, "list on standard input is empty"),
        ((folder, tmp_path / "empty"), 2, "holds no video, picture or sound"),
        ((tmp_path, tmp_path / "a.mp4"), 1, "holds no run"),
        ((folder, tmp_path / "gone.mp4"), 1, "gone.mp4: missing"),
        ((folder, tmp_path / "a.mp4", "--zero-shot", "a dog"), 2, "classes of its own"),
        ((pretrained, tmp_path / "a.mp4"), 2, "without classes; name some with --zero-shot"),
        ((pretrained, tmp_path / "a.mp4", "--zero-shot", "xyzzy"), 2, "'xyzzy' has no word that the model knows"),
        ((pretrained, tmp_path / "a.mp4", "--zero-shot", "a ring", "a ring"), 2, "named twice"),
        ((pretrained, tmp_path / "a.mp4", "--zero-shot", "a", "--template", "x"), 2, "a template holds {}"),
        ((pretrained, tmp_path / "a.mp4", "--prompts", tmp_path / "none.txt"), 2, "none.txt: no classes in this file"),
        ((folder, "a.mp4", "b.mp4", "--every=1", "--strip", tmp_path / "s.png"), 2, "draws one file, and 2 are given"),
        ((folder, tmp_path / "a.mp4", "--device=gpu"), 2, "device 'gpu' cannot be used here"),
        ((evaluate, "--task=classify", "--run", pretrained), 1, "a pre-trained model without classes; fine-tune it"),
        ((evaluate, "--task=zero-shot", "--run", folder), 1, "a fine-tuned model without common spaces"),
    ):
        if arguments[0] is evaluate:
            assert evaluate.main([str(word) for word in arguments[1:]]) == code
            assert message in capsys.readouterr().err
            continue
        assert run(*arguments) == code
        err = capsys.readouterr().err
        assert message in err
        assert err.count("\n") == 1
    for flags in (
        ("--every=0",),
        ("--every=2", "--windows=3"),
        ("--template=x",),
        ("--top=0",),
        ("--strip=s.png",),
        ("--every=1", "--strip=s.jpg"),
        ("--every=1", "--strip=nowhere/s.png"),
        ("--prompts=p.txt", "--zero-shot", "a"),
    ):
        with pytest.raises(SystemExit) as stop:
            run(folder, "a.mp4", *flags)
        assert stop.value.code == 2
