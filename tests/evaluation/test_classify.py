"""Classification of many clips: views, scores, what is written, going on after a crash."""

import csv
import json
import unicodedata
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.small_model import small_config

from vatt import evaluate
from vatt.checkpoints.model_folder import write_model_folder
from vatt.data.class_list import read_classes
from vatt.data.clip import Manifest
from vatt.data.datasets.batch import Batch
from vatt.data.datasets.classification import ViewDataset
from vatt.data.loader import make_loader
from vatt.data.manifest import read_manifest, write_manifest
from vatt.data.synthetic import build_corpus
from vatt.errors import ConfigError, DataError, RunError
from vatt.evaluation import classification
from vatt.evaluation.classification import (
    ClassifyConfig,
    check_labels,
    label_table,
    read_classifier,
    score,
    with_classes,
)
from vatt.evaluation.prediction_files import confusion_matrix, write_per_class
from vatt.inference import over_clips
from vatt.inference.logits import predict
from vatt.model.vatt import Classifier
from vatt.official.verify.recording import Fixtures, Recording
from vatt.ops import REFERENCE, choose
from vatt.runtime.device import autocast_for

CPU = torch.device("cpu")
FLOAT32 = autocast_for(CPU, torch.float32)
VIDEO = ClassifyConfig("video", "softmax", windows=2, crops=3)


@pytest.fixture(scope="module")
def clips(cache):
    return read_manifest(build_corpus(clips=24, progress=False))


@pytest.fixture(scope="module")
def model(clips):
    torch.manual_seed(1)
    return Classifier(small_config().model, "video", len(clips.labels), ops=choose(True, CPU))


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_logits_are_means_over_views(model, clips, tmp_path):
    config = small_config()
    some = clips.split("test")
    assert classification.classify(model, some, VIDEO, config.data, tmp_path, FLOAT32)["views"] == 6
    dataset = ViewDataset(some, config.data, config.model, "video", 2, 3, batch_size=1)
    views = dataset[0].video[0]
    assert views.shape == (6, 16, 64, 64, 3)
    with torch.no_grad():
        expected = model.eval()(views).mean(0)
    written = rows(tmp_path / "predictions.csv")
    assert [int(row["row"]) for row in written] == [clip.index for clip in some]
    best = expected.softmax(0).argmax()
    assert written[0]["best"].startswith(f"{clips.labels[best]} {expected.softmax(0)[best]:.4g} | ")
    assert written[0]["predicted"] == written[0]["class_1"] == clips.labels[best]
    ordered = expected.softmax(0).sort(descending=True)
    for number, (place, value) in enumerate(zip(ordered.indices.tolist(), ordered.values.tolist(), strict=True), 1):
        assert written[0][f"class_{number}"] == clips.labels[place]
        assert float(written[0][f"probability_{number}"]) == pytest.approx(value, rel=1e-4)
    assert list(written[0])[:6] == ["path", "start", "end", "label", "predicted", "right"]
    assert not (tmp_path / "predictions.parts").exists()


def test_all_logits_are_in_the_table(model, clips, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    some = clips.split("test")
    result = classification.classify(model, some, VIDEO, small_config().data, tmp_path, FLOAT32)
    table = parquet.read_table(tmp_path / "predictions.parquet")
    assert tuple(json.loads(table.schema.metadata[b"labels"])) == clips.labels
    logits = torch.tensor(table["logits"].to_pylist())
    target = label_table(some, table["row"].to_pylist())
    assert score(logits.double(), target, "softmax") == result["scores"]


def test_a_crash_loses_no_finished_shard(model, clips, tmp_path, monkeypatch, capsys):
    data = small_config().data
    monkeypatch.setattr(over_clips, "SHARD_CLIPS", 2)
    whole = classification.classify(model, clips, VIDEO, data, tmp_path / "whole", FLOAT32)
    real, asked = make_loader, []

    def breaking(dataset, start, count, *rest):
        asked.append(start)
        for number, batch in enumerate(real(dataset, start, count, *rest)):
            if len(asked) == 1 and number == 3:
                raise DataError("the disk went away")
            yield batch

    monkeypatch.setattr(over_clips, "make_loader", breaking)
    with pytest.raises(DataError):
        classification.classify(model, clips, VIDEO, data, tmp_path / "again", FLOAT32)
    shard = tmp_path / "again" / "predictions.parts" / "000001.npz"
    shard.write_bytes(shard.read_bytes()[:100])
    assert classification.classify(model, clips, VIDEO, data, tmp_path / "again", FLOAT32) == whole
    assert "000001.npz is damaged" in capsys.readouterr().err
    assert asked == [0, 1, 3]  # the damaged shard is made again, and what was missing
    for name in ("predictions.csv", "per_class.csv"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_bad_and_unlabelled_clips_are_told_apart(model, clips, tmp_path):
    some = clips.split("test")
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    lines = [f"{clip.path},{clip.label}" for clip in some] + [f"{some[0].path},", "broken.mp4,ring"]
    (tmp_path / "m.csv").write_text("\n".join(["path,label", *lines]) + "\n")
    mixed = with_classes(read_manifest(tmp_path / "m.csv"), clips.labels, 5)
    result = classification.classify(model, mixed, VIDEO, small_config().data, tmp_path, FLOAT32)
    assert (result["clips"], result["labelled"], result["bad_clips"]) == (4, 3, 1)
    written = rows(tmp_path / "predictions.csv")
    assert result["scores"]["top1"] == pytest.approx(np.mean([float(row["right"]) for row in written[:-2]]))
    assert [row["right"] for row in written[-2:]] == ["", ""]  # no label; could not be read
    assert written[-1]["predicted"] == ""
    assert written[-1]["reason"]
    assert not written[-1]["best"]
    assert written[-2]["best"]
    strict = replace(small_config().data, max_bad_share=0.1)
    with pytest.raises(DataError, match=r"1 of 5 clips tried.* 0\.1 that .*data\.max_bad_share.* allows"):
        classification.classify(model, mixed, VIDEO, strict, tmp_path, FLOAT32)


def test_a_finished_model_brings_its_classes(model, clips, tmp_path):
    config = small_config()
    saved = {
        "modality": "video",
        "classes": 5,
        "labels": clips.labels,
        "task": "video",
        "loss": "softmax",
        "windows": 2,
        "crops": 1,
    }
    write_model_folder(tmp_path / "model", model.state_dict(), config, {"classifier": saved}, None)
    again, how, labels = read_classifier(tmp_path, CPU)
    assert (how, labels) == (ClassifyConfig("video", "softmax", 2, 1), clips.labels)
    assert torch.equal(again.head.linear.weight, model.head.linear.weight)
    converted = {"modality": "video", "classes": 5}
    write_model_folder(tmp_path / "converted", model.state_dict(), config, {"classifier": converted}, None)
    assert read_classifier(tmp_path / "converted", CPU)[1:] == (ClassifyConfig("video", "softmax", 4, 3), None)
    write_model_folder(tmp_path / "wrong", model.state_dict(), config, {"classifier": saved | {"labels": ["a"]}}, None)
    with pytest.raises(RunError, match="1 labels for 5 classes"):
        read_classifier(tmp_path / "wrong", CPU)
    few = read_manifest(clips.root / "manifest.csv").split("test")
    with pytest.raises(ConfigError, match=r"5 outputs without names.*output 0: .*--classes FILE"):
        with_classes(few, None, 5)
    with pytest.raises(ConfigError, match="no class "):
        with_classes(few, ("circle", "something else"), 2)


def test_labels_meet_whatever_their_accents_are(tmp_path):
    model, listed = (tuple(unicodedata.normalize(form, name) for name in ("café", "thé")) for form in ("NFC", "NFD"))
    assert model != listed
    (tmp_path / "m.csv").write_text(f"path,label\na.mp4,{listed[1]} | {listed[0]}\nb.mp4,\n", encoding="utf-8")
    clips = with_classes(read_manifest(tmp_path / "m.csv"), model, 2)
    assert clips.labels == model
    assert clips[0].labels == (model[1], model[0])
    assert clips[1].label is None


def test_labels_that_are_numbers_are_those_of_outputs(tmp_path):
    def labelled(*labels):
        lines = [f"{i}.mp4,{label}" for i, label in enumerate(labels)]
        (tmp_path / "m.csv").write_text("\n".join(["path,label", *lines]) + "\n")
        return read_manifest(tmp_path / "m.csv")

    clips = with_classes(labelled(*range(12)), None, 12)
    assert clips.label_ids == {str(i): i for i in range(12)}
    some = with_classes(labelled("07", "2 | 10"), None, 12)  # of a part of the classes, as a test set may be
    assert (some.label_ids["07"], some.label_ids["2"], some.label_ids["10"], len(some.labels)) == (7, 2, 10, 12)
    assert with_classes(labelled("", ""), None, 3).labels == ("0", "1", "2")
    with pytest.raises(ConfigError, match=r"outputs 0 to 11, and the labels are 1 to 12 .*output 0: '1'.*--classes"):
        with_classes(labelled(*range(1, 13)), None, 12)
    for wrong in (("0", "1", "boat"), ("1", "01"), ("0", "-1"), ("0", "1.5")):
        with pytest.raises(ConfigError):
            with_classes(labelled(*wrong), None, 12)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("names.txt", "boat\nred, car\n\nwalking dog\n"),
        ("index.csv", 'index,mid,display_name\n1,/m/2,"red, car"\n0,/m/1,boat\n2,/m/3,walking dog\n'),
        ("pairs.csv", '"red, car",1\nboat,0\nwalking dog,2\n'),
        ("classInd.txt", "1 boat\n2 red, car\n3 walking dog\n"),
        ("map.txt", "boat 0\nred, car 1\nwalking dog 2\n"),
        ("map.tsv", "boat\t0\nred, car\t1\nwalking dog\t2\n"),
        ("list.json", '["boat", "red, car", "walking dog"]'),
        ("id2label.json", '{"0": "boat", "2": "walking dog", "1": "red, car"}'),
        ("label2id.json", '{"walking dog": 2, "boat": 0, "red, car": "1"}'),
    ],
)
def test_class_lists_people_have(name, text, tmp_path):
    (tmp_path / name).write_text(text)
    assert read_classes(tmp_path / name, 3) == ("boat", "red, car", "walking dog")
    with pytest.raises(ConfigError, match="3 classes for a model of 4 outputs"):
        read_classes(tmp_path / name, 4)


@pytest.mark.parametrize("text", ["a\nb\na\n", '{"0": "a", "2": "b", "3": "c"}', '{"a": "b"}', "3"])
def test_class_lists_that_say_no_order_are_refused(text, tmp_path):
    path = tmp_path / ("list.json" if text.startswith(("{", "3")) else "list.txt")
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"list\."):
        read_classes(path, 3)


def test_numbers_are_scored_by_number(clips, tmp_path):
    """Of a classifier without names, ten classes and more: sorted as text, "10" would come before "2"."""
    config, clips = small_config(), [*clips][:12]
    wide = Classifier(config.model, "video", 12, head_dropout=0.0)
    features: list[torch.Tensor] = []
    wide.head.linear.register_forward_hook(lambda module, inputs, _: features.append(inputs[0].detach().mean(0)))
    unlabelled = Manifest(tuple(replace(clip, label=None) for clip in clips), tmp_path, ())
    views = ViewDataset(unlabelled, config.data, config.model, "video", 4, 3, 1)
    with torch.no_grad():
        for i in range(12):
            wide.eval()(views[i].video.flatten(0, 1), views=12)
        mean = torch.stack(features).mean(0)
        apart = torch.stack(features) - mean
        wide.head.linear.weight.copy_(1000 * apart)  # output k is the nearest to the feature of clip k
        wide.head.linear.bias.copy_(-1000 * (apart @ mean + apart.square().sum(1) / 2))
    saved = {"classifier": {"modality": "video", "classes": 12}}
    write_model_folder(tmp_path / "model", wide.state_dict(), config, saved, None)
    numbered = [replace(clip, label=str(i), split="test") for i, clip in enumerate(clips)]
    write_manifest(tmp_path / "num.csv", numbered)
    arguments = ["--task", "classify", "--run", str(tmp_path / "model"), "--data", str(tmp_path / "num.csv")]
    assert evaluate.main([*arguments, "--out", str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out/result.json").read_text())["test"]["scores"]["top1"] == 1.0
    (tmp_path / "names.txt").write_text("".join(f"class {i}\n" for i in range(12)))
    write_manifest(tmp_path / "names.csv", [replace(clip, label=f"class {clip.label}") for clip in numbered])
    arguments[-1] = str(tmp_path / "names.csv")
    assert evaluate.main([*arguments, "--out", str(tmp_path / "refused")]) == 2
    assert evaluate.main([*arguments, "--classes", str(tmp_path / "names.txt"), "--out", str(tmp_path / "named")]) == 0
    assert json.loads((tmp_path / "named/result.json").read_text())["test"]["scores"]["top1"] == 1.0


def test_labels_must_fit_the_loss(tmp_path):
    (tmp_path / "m.csv").write_text("path,label\na.mp4,x | y\nb.mp4,x\n")
    several = read_manifest(tmp_path / "m.csv")
    check_labels(several, "sigmoid")
    with pytest.raises(ConfigError, match=r"a\.mp4 has several labels"):
        check_labels(several, "softmax")
    assert label_table(several, [1, 0]).tolist() == [[1.0, 0.0], [1.0, 1.0]]
    (tmp_path / "m.csv").write_text("path,label\na.mp4,x\nb.mp4,\n")
    with pytest.raises(ConfigError, match=r"1 of 2 clips have no label, the first is b\.mp4"):
        check_labels(read_manifest(tmp_path / "m.csv"), "softmax")


def test_tables_of_classes(tmp_path):
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 3.0], [1.0, 0.0, 0.0], [0.0, 5.0, 0.0]], dtype=torch.float64)
    labels = torch.tensor([[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0]]).float()
    assert confusion_matrix(logits, labels).tolist() == [[1, 0, 1], [1, 1, 0], [0, 0, 0]]
    assert score(logits, labels, "softmax") == {"top1": 0.5, "top5": 1.0, "mean_class_accuracy": 0.5}
    equal = torch.zeros(4, 3, dtype=torch.float64)
    assert confusion_matrix(equal, labels).tolist() == [[pytest.approx(2 / 3)] * 3, [pytest.approx(2 / 3)] * 3, [0] * 3]
    assert score(equal, labels, "softmax") == {
        "top1": pytest.approx(1 / 3),
        "top5": 1.0,
        "mean_class_accuracy": pytest.approx(1 / 3),
    }
    write_per_class(tmp_path / "one.csv", ("a", "b", "c"), logits, labels, "softmax")
    assert rows(tmp_path / "one.csv")[1] == {
        "class": "b",
        "clips": "2",
        "right": "1",
        "accuracy": "0.5",
        "precision": "1",
        "most_confused_with": "a",
    }
    write_per_class(tmp_path / "many.csv", ("a", "b", "c"), logits, labels, "sigmoid")
    table = {row["class"]: row for row in rows(tmp_path / "many.csv")}
    assert (table["a"]["clips"], table["a"]["AUC"], table["c"]["AP"]) == ("2", "0.625", "")


def test_predictions_of_several_labels_and_of_ties(tmp_path):
    (tmp_path / "m.csv").write_text("path,label\na.mp4,x | y\nb.mp4,y\nc.mp4,x\nd.mp4,z\n")
    clips = read_manifest(tmp_path / "m.csv")
    logits = torch.tensor([[1.0, 3.0, 0.0], [2.0, 0.0, 0.0], [2.0, 2.0, 0.0], [0.0, 0.0, 0.0]])
    result = classification.report(tmp_path, clips, [0, 1, 2, 3], logits, [], "sigmoid")
    written = rows(tmp_path / "predictions.csv")
    assert [row["right"] for row in written] == ["1", "0", "0.5", "0.333333"]
    assert (written[0]["label"], written[0]["predicted"]) == ("x | y", "y")
    assert float(written[0]["probability_1"]) == pytest.approx(torch.tensor(3.0).sigmoid().item(), rel=1e-5)
    assert written[0]["class_4"] == written[0]["probability_4"] == ""
    assert result["chance"]["mAP"] == pytest.approx((2 + 2 + 1) / 4 / 3)
    said = classification.format_scores(result | {"views": 1})
    assert "(chance 0.4167)" in said
    assert "note" not in said


def test_one_class_and_chance_are_said(tmp_path):
    (tmp_path / "m.csv").write_text("path,label\na.mp4,x\nb.mp4,y\n")
    clips, logits = read_manifest(tmp_path / "m.csv"), torch.tensor([[1.0, 0.0], [2.0, 0.0]])
    said = classification.format_scores(
        classification.report(tmp_path, clips, [0, 1], logits, [], "softmax") | {"views": 1}
    )
    assert "top1 0.5 (chance 0.5)" in said
    assert "note: all 2 clips are given the class 'x': none is told apart" in said


def test_scores_are_the_releases(shared):
    with np.load(shared / "parity" / "fixtures" / "metrics.npz") as npz:
        arrays = {name: torch.from_numpy(npz[name]) for name in npz.files}
    tagged = score(arrays["ml.pred"].double(), arrays["ml.gt"], "sigmoid")
    for name in ("mAP", "AUC", "d-prime"):
        assert tagged[name] == pytest.approx(float(arrays[f"ml.{name}"]), rel=1e-6)
    target = torch.nn.functional.one_hot(arrays["cls.gt"][:, 0].long(), arrays["cls.pred"].shape[1])
    scored = score(arrays["cls.pred"], target.float(), "softmax")
    assert [scored[f"top{k}"] for k in (1, 5)] == pytest.approx([float(arrays[f"cls.top{k}"]) for k in (1, 5)])


@pytest.mark.parametrize("name", ["finetune_video", "finetune_audio", "finetune_video_from_agnostic"])
def test_averaged_logits_are_the_releases(shared, name, clips, tmp_path, monkeypatch):
    """The recorded views of two clips, a batch each, as if a loader had read them."""
    fixtures = Fixtures(shared / "parity" / "fixtures", REFERENCE)
    with np.load(fixtures.folder / f"{name}.npz") as npz:
        recording = Recording(name, dict(npz), fixtures)
    model = fixtures.load(f"ckpt_{name}").module
    views = recording.input("in.views").unflatten(0, (-1, recording.number("num_views")))
    none, one = torch.empty(1, 0), torch.ones(1)

    def recorded(*_):
        for number, clip in enumerate(views.split(1)):
            video, sound = (none, clip[..., 0]) if model.modality == "audio" else (clip, none)
            yield Batch(video, sound, none, one, one, one, one.long(), none, [number], [number], [], 0.0, 0.0)

    monkeypatch.setattr(over_clips, "make_loader", recorded)
    dataset = ViewDataset(clips.split("test"), small_config().data, small_config().model, "video", 1, 1, batch_size=2)
    predictions = predict(model, dataset, tmp_path, FLOAT32)
    recording.check("eval.logits", predictions.logits)
    assert [row.passed for row in recording.rows] == [True]
    assert predictions.clips == [0, 1]
