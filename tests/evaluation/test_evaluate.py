"""The evaluation command, each task end to end, and its scores against their definitions."""

import csv
import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.media import steady, tone_burst, write_clip
from helpers.media_alone import write_sound
from helpers.small_model import small_config, write_model

from vatt import evaluate
from vatt.checkpoints.loading import load_vatt
from vatt.checkpoints.model_folder import load_tokenizer, write_model_folder
from vatt.data.clip import Clip, Manifest
from vatt.data.datasets import windows as reader
from vatt.data.datasets.evaluation import EvalDataset
from vatt.data.decoding.span import span_of
from vatt.data.loader import make_loader
from vatt.data.manifest import read_manifest, write_manifest
from vatt.data.synthetic import build_corpus
from vatt.data.tokenizer import Tokenizer
from vatt.errors import ConfigError, DataError
from vatt.evaluation import classification, cross_validation, linear_probe
from vatt.evaluation.cross_validation import read_folds
from vatt.evaluation.linear_probe import fit, fit_and_classify, mean_of_windows, official_probe
from vatt.evaluation.metrics import ranks
from vatt.evaluation.retrieval import embed_clips, retrieval, similarities, write_ranks
from vatt.inference import over_clips
from vatt.model.vatt import Classifier
from vatt.ops import choose
from vatt.runtime.device import autocast_for

CPU = torch.device("cpu")
FLOAT32 = autocast_for(CPU, torch.float32)


@pytest.fixture(scope="module")
def corpus(cache):
    return build_corpus(clips=24, progress=False)


@pytest.fixture(scope="module")
def model(tmp_path_factory, corpus):
    return write_model(tmp_path_factory.mktemp("pretrained"), corpus)


@pytest.fixture(scope="module")
def embedded(model, corpus):
    config, clips = small_config(), read_manifest(corpus).split("train")
    dataset = EvalDataset(clips, config.data, config.model, load_tokenizer(model), 3, 10)
    return embed_clips(load_vatt(model), dataset, FLOAT32)


def run(*arguments) -> int:
    return evaluate.main([str(a) for a in arguments])


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def result(out):
    return json.loads((out / "result.json").read_text())


def test_both_scores_are_what_they_say(embedded):
    """Sounds have windows too: every cosine of a window of the sound with one of the video counts."""
    sound, video = F.normalize(embedded.audio, dim=-1), F.normalize(embedded.video_audio, dim=-1)
    cosines = torch.einsum("avd,cwd->acvw", sound, video)
    got, target, _ = similarities(embedded, "cosine")["audio_to_video"]
    assert torch.equal(ranks(got.double(), target), ranks(cosines.double().mean((2, 3)), target))
    text = F.cosine_similarity(embedded.text[:, None], embedded.video_text.mean(1)[None], dim=-1)
    torch.testing.assert_close(similarities(embedded, "embd")["text_to_video"].similarity, text)
    assert not torch.equal(got, similarities(embedded, "embd")["audio_to_video"].similarity)


def test_only_clips_that_have_both_are_ranked(model, corpus, tmp_path):
    """A silent clip is no answer to a sound, one without words none to a text; a sound file takes no part."""
    clips = [*read_manifest(corpus).split("train")]
    write_clip(tmp_path / "silent.mp4", steady(3.0, 10.0))
    write_sound(tmp_path / "a.wav", tone_burst(1.5, 0.2, 16_000, 1.0), 16_000)
    mixed = [
        clips[0],
        replace(clips[1], captions=()),
        replace(clips[2], path=tmp_path / "silent.mp4"),
        replace(clips[3], path=tmp_path / "a.wav"),
        clips[4],
    ]
    manifest = Manifest(tuple(replace(clip, index=i, label=None) for i, clip in enumerate(mixed)), tmp_path, ())
    config = small_config()
    dataset = EvalDataset(manifest, config.data, config.model, load_tokenizer(model), 2, 3, needs=())
    found = embed_clips(load_vatt(model), dataset, FLOAT32)
    assert found.clips == [0, 1, 2, 4]
    text, sound = (similarities(found, "embd")[name] for name in ("text_to_video", "audio_to_video"))
    assert [found.clips[i] for i in text.ranked.tolist()] == [0, 2, 4]
    assert [found.clips[i] for i in sound.ranked.tolist()] == [0, 1, 4]
    assert sound.target.tolist() == [0, 1, 2]
    assert retrieval(found)["audio_to_video"]["candidates"] == 3
    write_ranks(tmp_path / "ranks.csv", found, manifest, "embd")
    heard = [row for row in rows(tmp_path / "ranks.csv") if row["direction"] == "audio_to_video"]
    assert [int(row["row"]) for row in heard] == [0, 1, 4]
    assert {int(row["first_row"]) for row in heard} <= {0, 1, 4}


def test_a_row_for_each_caption_is_one_candidate(model, corpus, tmp_path):
    clips = [*read_manifest(corpus).split("train")][:5]
    several = [replace(clip, captions=(*clip.captions, f"thing {i}", f"{i} more")) for i, clip in enumerate(clips)]
    single = [replace(clip, captions=(caption,)) for clip in several for caption in clip.captions]
    half = replace(several[0], end=1.0, captions=("the first second",))  # another span of a file is another clip
    write_manifest(tmp_path / "grouped.csv", [*several, half])
    write_manifest(tmp_path / "rows.csv", [*single, half])
    for name in ("grouped", "rows"):
        assert run("--run", model, "--data", tmp_path / f"{name}.csv", "--windows", 1, "--out", tmp_path / name) == 0
    assert result(tmp_path / "rows")["retrieval"] == result(tmp_path / "grouped")["retrieval"]
    text = result(tmp_path / "rows")["retrieval"]["text_to_video"]
    assert (text["candidates"], text["queries"]) == (6, len(single) + 1)


def test_retrieval_is_the_same_after_a_crash(model, corpus, embedded, tmp_path, monkeypatch, capsys):
    arguments = ("--run", model, "--data", corpus, "--split", "train", "--windows", 3, "--score", "both")
    monkeypatch.setattr(over_clips, "SHARD_CLIPS", 10)
    real, asked = make_loader, []

    def breaking(dataset, start, count, *rest):
        asked.append(start)
        for number, batch in enumerate(real(dataset, start, count, *rest)):
            if len(asked) == 1 and number == 1:
                raise DataError("the disk went away")
            yield batch

    monkeypatch.setattr(over_clips, "make_loader", breaking)
    out = tmp_path / "out"
    assert run(*arguments, "--out", out) == 1
    assert run(*arguments, "--out", out) == 2  # never overwrites
    assert "--resume" in capsys.readouterr().err
    assert run(*arguments, "--out", out, "--resume", "--score", "embd") == 1
    assert "other settings (score: 'both', now 'embd')" in capsys.readouterr().err
    assert run(*arguments, "--out", out, "--resume") == 0
    assert asked == [0, 1]
    text, sound = retrieval(embedded), retrieval(embedded, "cosine")
    found = result(out)
    assert found["retrieval"] == {**text, **{f"{name}_cosine": scores for name, scores in sound.items()}}
    assert set(found["environment"]) >= {"argv", "commit", "versions"}
    table = [row for row in rows(out / "ranks.csv") if row["direction"] == "text_to_video"]
    said = [(clip.index, caption) for clip in read_manifest(corpus).split("train") for caption in clip.captions]
    assert [(int(row["row"]), row["caption"]) for row in table] == said
    assert np.mean([float(row["rank"]) <= 5 for row in table]) == text["text_to_video"]["R@5"]
    assert not list(out.glob("*.parts"))
    assert run(*arguments, "--out", out, "--resume") == 0
    assert len(asked) == 2  # nothing is left to do
    assert "text-to-video-cosine" in capsys.readouterr().out


@pytest.fixture(scope="module")
def two_folds(tmp_path_factory, corpus):
    """The corpus with its even clips to test on, and with its odd ones."""
    folder = tmp_path_factory.mktemp("folds")
    for number in (1, 2):
        lines = [
            f"{c.path},{c.label},{'test' if c.index % 2 == number - 1 else 'train'}" for c in read_manifest(corpus)
        ]
        (folder / f"fold-{number}.csv").write_text("\n".join(["path,label,split", *lines]) + "\n")
    return [folder / "fold-1.csv", folder / "fold-2.csv"]


def test_probe_over_folds_goes_on_after_a_crash(model, two_folds, tmp_path, monkeypatch):
    monkeypatch.setattr(linear_probe, "EPOCHS", 20)
    arguments = ("--task", "probe", "--run", model, "--data", *two_folds, "--windows", 2)
    assert run(*arguments, "--modality", "video", "audio", "--out", tmp_path / "whole") == 0
    whole = result(tmp_path / "whole")
    assert set(whole["probe"]) == {"video", "audio"}
    for modality, found in whole["probe"].items():
        assert found["classes"] == 5
        for name, scores in found["folds"].items():
            table = rows(tmp_path / "whole" / modality / name / "predictions.csv")
            right = [row["best"].startswith(f"{row['label']} ") for row in table]
            assert (len(table), scores["fitted"], np.mean(right)) == (12, 12, pytest.approx(scores["top1"]))
            assert (tmp_path / "whole" / modality / name / "confusion.png").stat().st_size > 1000
        assert found["scores"]["top5"] == np.mean([scores["top5"] for scores in found["folds"].values()])
    made, real = [], linear_probe.fit_and_classify

    def counted(*arguments):
        made.append(1)
        if len(made) == 2:
            raise OSError("power cut")
        return real(*arguments)

    monkeypatch.setattr(cross_validation, "fit_and_classify", counted)
    assert run(*arguments, "--modality", "audio", "--out", tmp_path / "again") == 1
    assert run(*arguments, "--modality", "audio", "--out", tmp_path / "again", "--resume") == 0
    assert len(made) == 3  # the second fold twice, the first one is kept
    assert result(tmp_path / "again")["probe"] == {"audio": whole["probe"]["audio"]}


def test_sound_files_beside_clips_are_probed_by_their_sound(model, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(linear_probe, "EPOCHS", 5)
    write_clip(tmp_path / "silent.mp4", steady(3.0, 10.0))
    rates = (300, 500, 700, 900)
    for i, rate in enumerate(rates):
        write_sound(tmp_path / f"{i}.flac", (np.sin(np.arange(16_000) * rate / 2500) * 9000).astype(np.int16), 16_000)
    lines = [
        f"{i}.flac,{'low' if rate < 600 else 'high'},{'train' if i % 2 else 'test'}" for i, rate in enumerate(rates)
    ]
    lines += [f"{read_manifest(corpus)[0].path},low,train", "silent.mp4,low,test"]
    (tmp_path / "m.csv").write_text("\n".join(["path,label,split", *lines]) + "\n")
    out = tmp_path / "out"
    assert (
        run(
            "--task=probe",
            "--run",
            model,
            "--data",
            tmp_path / "m.csv",
            "--modality=audio",
            "--out",
            out,
            "--max-bad-share=1",
        )
        == 0
    )
    found = result(out)["probe"]["audio"]
    assert found["folds"]["m"]["fitted"] == 3
    assert found["folds"]["m"]["tested"] == 2
    assert found["bad_clips"] == 1  # the one without sound


@pytest.mark.parametrize("modality", ["video", "audio"])
def test_fitted_to_the_middle_window_and_only_that_is_decoded(modality, corpus, tmp_path, monkeypatch):
    config, long = small_config(), tmp_path / "long.mp4"
    write_clip(long, steady(24.0, 10), tone_burst(24.0, 12.0, 48_000), size=64)
    built_in = read_manifest(corpus)
    clips = Manifest((*built_in[:2], Clip(2, long, "long.mp4")), tmp_path, built_in.labels)
    given, decoded = (clips, config.data, config.model, Tokenizer([])), []

    def spy(opened, start, fps, frames, *more):
        decoded.append((opened.path, frames))
        return span_of(opened, start, fps, frames, *more)

    monkeypatch.setattr(reader, "span_of", spy)
    middles, spaced = (
        EvalDataset(*given, count, 3, read=(modality,), needs=(modality,), place=place)
        for place, count in (("middle", 1), ("spaced", 3))
    )
    batch, of_middles = middles[0], [*decoded]
    assert torch.equal(getattr(batch, modality), getattr(spaced[0], modality)[:, 1:2])
    steps = middles.windows(0).steps
    if modality == "video":
        assert of_middles == [(clip.path, steps) for clip in clips]
    assert of_middles[2:] == [(long, steps)]  # a window of one clip
    assert decoded[5:] == 3 * [(long, steps)]
    with pytest.raises(ValueError, match="one window is in the middle, not 3"):
        EvalDataset(clips, config.data, config.model, Tokenizer([]), 3, place="middle")


def test_folds_of_one_manifest_and_of_several(tmp_path, two_folds):
    clips, found = read_folds(two_folds, "train", "test")
    assert [fold.name for fold in found] == ["fold-1", "fold-2"]
    assert (len(clips), found[0].train) == (24, found[1].test)
    (tmp_path / "m.csv").write_text("path,label,split\na.wav,x,1\nb.wav,y,2\nc.wav,x,3\nd.wav,x,\n")
    clips, found = read_folds([tmp_path / "m.csv"], "train", "test")
    assert [fold.test for fold in found] == [[0], [1], [2]]
    assert found[1].train == [0, 2]
    (tmp_path / "n.csv").write_text("path,label,split\na.wav,y,train\nb.wav,y,test\n")
    (tmp_path / "o.csv").write_text("path,label,split\na.wav,x,train\nb.wav,y,test\n")
    with pytest.raises(ConfigError, match=r"a\.wav is 'x', and 'y' in another manifest"):
        read_folds([tmp_path / "n.csv", tmp_path / "o.csv"], "train", "test")
    with pytest.raises(ConfigError, match="no rows of split 'val'"):
        read_folds([tmp_path / "n.csv"], "train", "val")


def test_the_official_classifier_learns_and_repeats():
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(60) % 3
    features = torch.randn(60, 16, generator=generator) + 4 * F.one_hot(labels, 16)
    windows = torch.stack([features, features.flip(1)], 1)  # the second says nothing about the class
    found = official_probe(features, labels, windows[:, :1], 3)
    assert (found.argmax(1) == labels).float().mean() > 0.95
    assert found.exp().sum(1).allclose(torch.ones(60, dtype=torch.float64))
    state = torch.random.get_rng_state()
    assert torch.equal(found, official_probe(features, labels, windows[:, :1], 3))
    assert torch.equal(state, torch.random.get_rng_state())
    logits = torch.randn(4, 3, 5, generator=generator)
    torch.testing.assert_close(mean_of_windows(logits), logits.double().softmax(-1).mean(1).log())


@pytest.mark.parametrize("classes", [2, 3])
def test_logistic_regression_finds_the_minimum_that_scikit_learn_finds(classes):
    linear_model = pytest.importorskip("sklearn.linear_model", reason="scikit-learn is not installed")
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(90, 6, generator=generator, dtype=torch.float64)
    labels, strength = features[:, :classes].argmax(1), 0.01
    weight, bias = fit(features, labels, classes, strength)
    # Of two classes scikit-learn has one weight vector, the difference of ours, with half the penalty for its square.
    penalty = len(features) * strength / (2 if classes == 2 else 1)
    solver = linear_model.LogisticRegression(C=1 / penalty, max_iter=5000, tol=1e-10)
    expected = solver.fit(features.numpy(), labels.numpy()).predict_proba(features.numpy())
    # `fit` ends at a gradient of 1e-6, and the loss curves by `strength` at least: weights are this near the minimum.
    near = 1e-6 * math.sqrt(weight.numel()) / strength
    torch.testing.assert_close((features @ weight + bias).softmax(1), torch.from_numpy(expected), atol=near, rtol=0)
    # Both names of it are accepted, and are one.
    found = [fit_and_classify(name, features, labels, features[:, None], classes) for name in ("lbfgs", "sklearn")]
    assert torch.equal(*found)


def test_classification_of_a_finished_model(corpus, tmp_path, capsys):
    config, clips = small_config(), read_manifest(corpus)
    torch.manual_seed(1)
    model = Classifier(config.model, "video", len(clips.labels), ops=choose(True, CPU))
    saved = {
        "modality": "video",
        "classes": 5,
        "labels": clips.labels,
        "task": "video",
        "loss": "softmax",
        "windows": 2,
        "crops": 3,
    }
    write_model_folder(tmp_path / "model", model.state_dict(), config, {"classifier": saved}, None)
    arguments = ("--task", "classify", "--run", tmp_path, "--data", corpus, "--crops", 1)
    assert run(*arguments, "--out", tmp_path / "out") == 0
    views = classification.ClassifyConfig("video", "softmax", 2, 1)
    (tmp_path / "direct").mkdir()
    direct = classification.classify(
        model.eval(), clips.split("test"), views, config.data, tmp_path / "direct", FLOAT32
    )
    assert result(tmp_path / "out")["test"] == direct
    assert (tmp_path / "out" / "confusion.png").exists()
    assert run(*arguments, "--out", tmp_path / "out", "--resume") == 0
    assert "top1" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ("--task=probe", "--crops=3"),
        ("--task=retrieve", "--modality=audio"),
        ("--task=classify", "--fps=12.5"),
        ("--task=retrieve", "--data", "a.csv", "b.csv"),
        ("--task=probe", "--out=scores.json"),
        ("--resume",),
        ("--fps=0",),
        ("--task=probe", "--data", "nothing.csv"),
    ],
)
def test_wrong_usage_exits_2(model, arguments, capsys):
    assert run("--run", model, *arguments) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_a_pretrained_model_is_no_classifier(model, corpus, capsys):
    assert run("--task", "classify", "--run", model, "--data", corpus) == 1
    assert "without classes" in capsys.readouterr().err


def test_the_held_out_rows_are_chosen_and_said(model, corpus, tmp_path, capsys):
    clips = [*read_manifest(corpus)][:4]

    def evaluated(*splits, flags=()):
        write_manifest(tmp_path / "m.csv", [replace(c, split=s) for c, s in zip(clips, splits, strict=True)])
        code = run("--run", model, "--data", tmp_path / "m.csv", "--windows", 1, *flags)
        return code, *capsys.readouterr()

    code, out, err = evaluated("train", "train", "val", "val")
    assert (code, "testing on 2 of 4 rows, split 'val'" in out, "warning" in err) == (0, True, False)
    code, out, _ = evaluated("val", "test", "val", "val")
    assert (code, "testing on 1 of 4 rows, split 'test'" in out) == (0, True)
    code, _, err = evaluated("train", "train", "val", "dev")
    assert (code, "choose --split from: dev, train, val" in err) == (2, True)
    clips[2] = replace(clips[2], path=clips[0].path, start=0.5)
    code, _, err = evaluated("train", "train", "val", "val")
    told = f"warning: 1 of them are of files that are trained on, the first is {clips[0].path}"
    assert (code, told in err) == (0, True)


def test_files_of_the_models_own_training_are_told(model, corpus, tmp_path, capsys):
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    record = json.loads((folder / "config.json").read_text())
    record["config"]["data"]["source"] = str(corpus)
    (folder / "config.json").write_text(json.dumps(record))
    trained = read_manifest(corpus).split("train")
    (tmp_path / "m.csv").write_text(f"path,caption\n{trained[0].path},a\n{trained[1].path},b\n")
    assert run("--run", folder, "--data", tmp_path / "m.csv", "--windows", 1) == 0
    assert "warning: 2 of them are of files that are trained on" in capsys.readouterr().err


def test_missing_clips_stop_a_retrieval(model, corpus, tmp_path, capsys):
    clips = [clip.path for clip in read_manifest(corpus)][:4]
    lines = [f"{path},thing {i}" for i, path in enumerate([*clips, "gone.mp4", "gone too.mp4"])]
    (tmp_path / "m.csv").write_text("\n".join(["path,caption", *lines]) + "\n")
    arguments = ("--run", model, "--data", tmp_path / "m.csv", "--windows", 1)
    assert run(*arguments) == 1
    assert "2 of 6 clips tried could not be used" in capsys.readouterr().err
    assert run(*arguments, "--max-bad-share", 0.4) == 0
    assert "2 of 6 clips could not be used and take no part" in capsys.readouterr().out
