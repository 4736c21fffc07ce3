"""Zero-shot classification: sentences of classes, scores against their definition, going on after a crash."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.media import tone_burst
from helpers.media_alone import write_sound
from helpers.small_model import write_model

import vatt
from vatt import evaluate
from vatt.data.clip import Clip
from vatt.data.manifest import read_manifest, write_manifest
from vatt.errors import ConfigError
from vatt.inference import over_clips
from vatt.inference.prompts import class_prompts, read_prompts

PROMPTS = {"red": ["a red square", "a red ring"], "blue": ["a blue ring"], "green": ["a green square"]}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    return write_model(tmp_path_factory.mktemp("pretrained"), corpus)


@pytest.fixture
def clips(corpus: Path, tmp_path: Path) -> list[Clip]:
    """Five clips with labels, one without, and a sound; manifest m.csv."""
    labels = ("red", "blue", "green", "red", "blue", None)
    listed = [
        replace(clip, label=label, split="test") for clip, label in zip(read_manifest(corpus), labels, strict=False)
    ]
    write_sound(tmp_path / "a.wav", tone_burst(1.5, 0.2, 16_000, 1.0), 16_000)
    listed.append(replace(listed[0], path=tmp_path / "a.wav", label="green"))
    write_manifest(tmp_path / "m.csv", listed)
    (tmp_path / "prompts.tsv").write_text("".join("\t".join([name, *said]) + "\n" for name, said in PROMPTS.items()))
    return listed


def run(model: Path, folder: Path, *arguments: object) -> int:
    fixed = ("--task=zero-shot", "--run", model, "--data", folder / "m.csv", "--windows=2", "--max-bad-share=0.5")
    return evaluate.main([str(word) for word in (*fixed, *arguments)])


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_scores_are_those_of_the_cosines(
    model: Path, clips: list[Clip], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, template = tmp_path / "out", "we see {} xyzzy"
    assert run(model, tmp_path, "--prompts", tmp_path / "prompts.tsv", "--template", template, "{}", "--out", out) == 0
    said = capsys.readouterr()
    loaded = vatt.load(model)
    sentences = {name: [t.replace("{}", p) for p in said for t in (template, "{}")] for name, said in PROMPTS.items()}
    vectors = torch.stack([F.normalize(loaded.embed_text(s), dim=-1).mean(0) for s in sentences.values()])
    right, probabilities = [], []
    for clip in clips[:3]:
        seen = loaded.embed(clip.path, windows=2)["video_to_text"]
        logits = F.cosine_similarity(vectors, seen[None], dim=-1) / 0.07
        probabilities.append(logits.softmax(0))
        right.append([*PROMPTS][int(logits.argmax())] == clip.label)
    table = rows(out / "predictions.csv")
    for row, expected in zip(table[:3], probabilities, strict=True):
        found = {row[f"class_{i}"]: float(row[f"probability_{i}"]) for i in (1, 2, 3)}
        assert [found[name] for name in PROMPTS] == pytest.approx(expected.tolist(), rel=1e-2)
        assert row["predicted"] == max(found, key=found.__getitem__)
    assert [row["right"] == "1" for row in table[:3]] == right
    result = json.loads((out / "result.json").read_text())["zero_shot"]
    assert result["scores"]["top1"] == pytest.approx(np.mean([row["right"] == "1" for row in table[:5]]))
    assert result["scores"]["top5"] == 1.0
    assert result["chance"]["top1"] == pytest.approx(1 / 3)
    assert (result["clips"], result["labelled"], result["bad_clips"]) == (6, 5, 1)
    assert "no video" in table[6]["reason"]  # words are compared with what a video shows
    assert {row["class"] for row in rows(out / "per_class.csv")} == set(PROMPTS)
    assert "does not know 3 words of the classes: we, see, xyzzy" in said.out
    assert "(chance 0.3333)" in said.out
    assert not list(out.glob("*.parts"))


def test_it_goes_on_after_a_crash(
    model: Path, clips: list[Clip], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--prompts", tmp_path / "prompts.tsv", "--out", tmp_path / "out")
    monkeypatch.setattr(over_clips, "SHARD_CLIPS", 1)
    monkeypatch.setattr("vatt.evaluation.zero_shot.report", lambda *rest, **more: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(model, tmp_path, *flags)
    monkeypatch.undo()
    made = list((tmp_path / "out").glob("embeddings.parts/*.npz"))
    assert made
    monkeypatch.setattr(over_clips, "SHARD_CLIPS", 1)
    monkeypatch.setattr(over_clips, "make_loader", lambda *rest: iter(()))  # nothing is decoded again
    assert run(model, tmp_path, *flags) == 2
    (tmp_path / "prompts.tsv").write_text("red\na red square\nblue\ngreen\n")
    assert run(model, tmp_path, *flags, "--resume") in (1, 2)
    (tmp_path / "prompts.tsv").write_text("".join("\t".join([name, *said]) + "\n" for name, said in PROMPTS.items()))
    capsys.readouterr()
    assert run(model, tmp_path, *flags, "--resume") == 0
    first = capsys.readouterr().out.splitlines()[-2:]
    assert run(model, tmp_path, *flags, "--resume") == 0
    assert capsys.readouterr().out.splitlines()[-2:] == first


def test_several_labels_are_scored_as_tags(model: Path, clips: list[Clip], tmp_path: Path) -> None:
    several = [replace(clips[0], label="red | square"), replace(clips[1], label="ring"), replace(clips[2], label="red")]
    write_manifest(tmp_path / "m.csv", several)
    assert run(model, tmp_path, "--out", tmp_path / "out") == 0
    result = json.loads((tmp_path / "out" / "result.json").read_text())["zero_shot"]
    assert set(result["scores"]) == {"mAP", "AUC", "d-prime", "classes"}
    assert result["prompts"] == {"red": ["red"], "ring": ["ring"], "square": ["square"]}
    table = rows(tmp_path / "out" / "predictions.csv")
    assert sum(float(table[0][f"probability_{i}"]) for i in (1, 2, 3)) == pytest.approx(1, abs=1e-4)


def test_wrong_classes_are_one_sentence(
    model: Path, clips: list[Clip], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "few.txt").write_text("red\nblue\n")
    (tmp_path / "unknown.txt").write_text("red\nblue\ngreen\nxyzzy\n")
    (tmp_path / "one.txt").write_text("red\n")
    for flags, message in (
        (("--prompts", tmp_path / "few.txt"), "few.txt has no class 'green'"),
        (("--prompts", tmp_path / "unknown.txt"), "'xyzzy' has no word that the model knows"),
        (("--prompts", tmp_path / "one.txt"), "names a single class"),
        (("--prompts", tmp_path / "gone.txt"), "gone.txt: cannot be read"),
        (("--template", "a video"), "a template holds {}"),
        (("--score", "both"), "takes one --score"),
        (("--crops", "1"), "--crops belongs to --task classify"),
    ):
        assert run(model, tmp_path, *flags, "--out", tmp_path / "refused") == 2
        err = capsys.readouterr().err.splitlines()[-1]
        assert message in err
        assert not (tmp_path / "refused").exists()
    write_manifest(tmp_path / "m.csv", [replace(clips[0], label=None)])
    assert run(model, tmp_path) == 2
    assert "0 classes, at least 2 are needed; the column is `label`, or --prompts FILE" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.csv", 'dog,a dog barks,"barking, loud"\nrain\n'),
        ("p.tsv", "\ufeffdog\ta dog barks\tbarking, loud\n\nrain\n"),
        ("rows.tsv", "dog\ta dog barks\nrain\ndog\tbarking, loud\n"),
        ("p.json", '{"dog": ["a dog barks", "barking, loud"], "rain": "rain"}'),
    ],
)
def test_files_of_prompts(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_prompts(tmp_path / name) == {"dog": ["a dog barks", "barking, loud"], "rain": ["rain"]}


@pytest.mark.parametrize(
    ("name", "text"), [("p.json", "[1]"), ("p.json", '{"a": 3}'), ("p.txt", "\n"), ("p.json", "{")]
)
def test_files_that_hold_no_classes(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=rf"{name}: no classes"):
        read_prompts(tmp_path / name)


def test_names_become_sentences() -> None:
    found = class_prompts(["ApplyLipstick", "brush_hair", "iPhone", "Hula Hoop"], ["a video of {}"])
    assert [said for (said,) in found.values()] == [
        "a video of Apply Lipstick",
        "a video of brush hair",
        "a video of iPhone",
        "a video of Hula Hoop",
    ]
    for classes, message in (
        ([], "the list is empty"),
        (["a", "a"], "named twice"),
        ({"a": []}, "'a' has no sentence"),
    ):
        with pytest.raises(ConfigError, match=message):
            class_prompts(classes)
