"""Figures 2 and 4 as their users meet them: what is in the arrays, what is left out, resume, wrong input."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.small_model import ENCODER, small_config, write_model

import vatt
from vatt import embed
from vatt.checkpoints.model_folder import write_model_folder
from vatt.data.clip import Clip, Manifest
from vatt.data.datasets.evaluation import EvalDataset
from vatt.data.manifest import read_manifest, write_manifest
from vatt.figures import __main__ as figures
from vatt.figures import activations as figures_activations
from vatt.figures import tsne as figures_tsne
from vatt.figures.activations import mlp_activations
from vatt.figures.tsne import choose_classes, neighbour_share, points_figure, video_features
from vatt.inference.features_file import read_features
from vatt.model.vatt import VATT, Classifier

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def models(tmp_path_factory, corpus) -> dict[str, Path]:
    """A modality-specific model, an agnostic one of two layers, and a classifier of sound; none is trained."""
    folder = tmp_path_factory.mktemp("runs")
    specific = write_model(folder / "specific", corpus)
    words, config = vatt.load_tokenizer(specific), small_config()
    sizes = replace(config.model, kind="agnostic", shared_encoder=replace(ENCODER, layers=2), post_width=24)
    shared = VATT(sizes).state_dict()
    write_model_folder(folder / "agnostic", shared, replace(config, model=sizes), {}, words)
    sound = Classifier(config.model, "audio", 5).state_dict()
    write_model_folder(folder / "sound", sound, config, {"classifier": {"modality": "audio", "classes": 5}}, None)
    return {"specific": specific, "agnostic": folder / "agnostic", "sound": folder / "sound"}


def tsne(models, data, out, *arguments) -> int:
    folders = [models["specific"], models["agnostic"]]
    return figures.main(["tsne", "--model", *map(str, folders), f"--data={data}", f"--out={out}", *arguments])


def activations(model, data, out, *arguments) -> int:
    return figures.main(["activations", f"--model={model}", f"--data={data}", f"--out={out}", *arguments])


@pytest.mark.parametrize("kind", ["specific", "agnostic"])
@torch.no_grad()
def test_activations_are_mlp_outputs_before_the_residual(models, kind):
    """Against a walk through the layers, in float64; padding of a text does not count."""
    backbone, generator = vatt.load(models[kind], fused=False).double().backbone, torch.Generator().manual_seed(0)
    ids = torch.randint(2, 60, (2, 8), generator=generator)
    ids[1, 3:] = 0
    inputs = {
        "video": torch.randint(256, (2, 16, 64, 64, 3), dtype=torch.uint8, generator=generator),
        "audio": torch.rand(2, 12_800, dtype=torch.float64, generator=generator) - 0.5,
        "text": ids,
    }
    for name, given in inputs.items():
        x, mask = backbone.tokens[name](given)
        encoder = backbone.encoder["shared" if kind == "agnostic" else name]
        wanted = []
        for layer in encoder.layers:
            x = x + layer.attention(layer.attention_norm(x), mask, encoder.bias_table, encoder.max_distance, 0)
            output = layer.mlp(layer.mlp_norm(x))
            kept = [output[i] if mask is None else output[i, mask[i]] for i in range(2)]
            wanted.append(torch.stack([tokens.mean(0) for tokens in kept]))
            x = x + output
        found = mlp_activations(backbone, name, given)
        torch.testing.assert_close(found, torch.stack(wanted, dim=1), rtol=1e-10, atol=1e-12)
        assert not any(layer.mlp._forward_hooks for layer in encoder.layers)


def test_activations_of_triplets(tmp_path, models, corpus, monkeypatch, capsys):
    """The first clips that have all three modalities: the one without caption is passed over."""
    first, *others = read_manifest(corpus)
    write_manifest(tmp_path / "m.csv", [replace(first, captions=()), *others[:3]])
    assert activations(models["agnostic"], tmp_path / "m.csv", tmp_path / "4.png", "--clips=2") == 0
    assert (tmp_path / "4.png").read_bytes().startswith(PNG)
    arrays = np.load(tmp_path / "4.npz")
    assert arrays["row"].tolist() == [1, 2]
    assert {arrays[name].shape for name in ("video", "audio", "text")} == {(2, 32)}
    assert json.loads(str(arrays["metadata"]))["environment"]["argv"]
    model, config = vatt.load(models["agnostic"]), vatt.load_config(models["agnostic"])
    words = vatt.load_tokenizer(models["agnostic"])
    batches = EvalDataset(read_manifest(tmp_path / "m.csv"), config.data, config.model, words, 1, 1)
    for name in ("video", "audio", "text"):
        given = [getattr(batches[row], name)[:, 0] for row in (1, 2)]
        each = [mlp_activations(model.backbone, name, x) for x in given]
        assert np.array_equal(arrays[name], torch.cat(each).mean(0).numpy())
    capsys.readouterr()
    monkeypatch.setattr(figures_activations, "write_figure", lambda *_: None)
    assert activations(models["agnostic"], tmp_path / "m.csv", tmp_path / "all.png", "--clips=9") == 0
    assert "only 3 of 4 clips" in capsys.readouterr().out


def test_activations_of_each_tower(tmp_path, models, corpus):
    assert activations(models["specific"], corpus, tmp_path / "towers.png") == 0
    assert set(np.load(tmp_path / "towers.npz")) == {"video", "audio", "text", "row", "metadata"}
    assert activations(models["sound"], corpus, tmp_path / "sound.png") == 0
    assert set(np.load(tmp_path / "sound.npz")) == {"audio", "row", "metadata"}


def test_features_of_several_models(tmp_path, models, corpus, capsys):
    """Those of vatt.embed; a clip that cannot be read is in no panel; the points are the principal components."""
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    clips = [*read_manifest(corpus)]
    write_manifest(tmp_path / "m.csv", [*clips[:5], Clip(5, broken, "broken.mp4", label="ring"), *clips[5:]])
    assert tsne(models, tmp_path / "m.csv", tmp_path / "2.png", "--method=pca", "--names", "one", "two") == 0
    assert "broken.mp4" in capsys.readouterr().err
    assert (tmp_path / "2.png").read_bytes().startswith(PNG)
    arrays = np.load(tmp_path / "2.npz")
    assert arrays["row"].tolist() == [i for i in range(25) if i != 5]
    assert arrays["label"].tolist() == [clip.label for clip in clips]
    for i, kind in enumerate(("specific", "agnostic")):
        out = tmp_path / f"{kind}.npz"
        assert embed.main([f"--model={models[kind]}", f"--data={tmp_path / 'm.csv'}", f"--out={out}"]) == 0
        features = arrays[f"features_{i}"]
        assert np.array_equal(features, read_features(out).arrays["video_pooled"])
        variances = np.linalg.eigvalsh(np.cov(features.T.astype(np.float64)))[:-3:-1]
        assert np.allclose(
            np.cov(arrays["points"][i].T.astype(np.float64)), np.diag(variances), atol=1e-5 * variances[0]
        )
    titles = json.loads(str(arrays["metadata"]))["titles"]
    assert [title.split("\n")[0] for title in titles] == ["one", "two"]
    assert all("chance 1" in title for title in titles)  # 24 clips of 5 shapes


def test_resume_takes_what_is_there(tmp_path, models, corpus, monkeypatch, capsys):
    """A crash loses one model; a figure that is there is never overwritten; other clips are other features."""
    out, asked, compute = tmp_path / "2.png", [], video_features

    def counted(model, dataset, autocast, name):
        asked.append(name)
        if asked == ["specific", "agnostic"]:
            raise RuntimeError("the power went off")
        return compute(model, dataset, autocast, name)

    monkeypatch.setattr(figures_tsne, "video_features", counted)
    monkeypatch.setattr(figures_activations, "write_figure", lambda figure, path: path.write_bytes(PNG))
    with pytest.raises(RuntimeError, match="power"):
        tsne(models, corpus, out, "--method=pca")
    assert tsne(models, corpus, out, "--method=pca") == 2
    assert "--resume" in capsys.readouterr().err
    assert tsne(models, corpus, out, "--method=pca", "--resume") == 0
    assert asked == ["specific", "agnostic", "agnostic"]
    before = np.load(out.with_suffix(".npz"))["points"]
    out.unlink()
    assert tsne(models, corpus, out, "--method=pca", "--resume") == 0
    assert (asked[3:], out.exists()) == ([], True)
    assert np.array_equal(np.load(out.with_suffix(".npz"))["points"], before)
    assert tsne(models, corpus, out, "--method=pca", "--resume", "--per-class=2") == 0
    assert asked[3:] == ["specific", "agnostic"]
    assert len(np.load(out.with_suffix(".npz"))["row"]) == 10
    out.with_suffix(".npz").write_bytes(b"torn")
    assert tsne(models, corpus, out, "--method=pca", "--resume") == 1
    assert "2.npz" in capsys.readouterr().err


def test_tsne_keeps_groups_together(tmp_path, models, corpus, monkeypatch):
    """Two groups far apart in many dimensions are so in two; the same features have the same picture."""
    pytest.importorskip("sklearn")
    labels = np.array([clip.label for clip in read_manifest(corpus)])
    features = (np.random.default_rng(1).normal(size=(24, 32)) + 50 * (labels == "ring")[:, None]).astype(np.float32)
    monkeypatch.setattr(figures_tsne, "video_features", lambda *_: (features, np.arange(24)))
    monkeypatch.setattr(figures_activations, "write_figure", lambda *_: None)
    assert tsne(models, corpus, tmp_path / "a.png") == 0
    points, again = np.load(tmp_path / "a.npz")["points"]  # of both models
    assert np.array_equal(points, again)
    ring, others = points[labels == "ring"], points[labels != "ring"]
    apart = np.linalg.norm(ring[:, None] - others, axis=-1).min(1)
    assert (np.linalg.norm(ring - ring.mean(0), axis=-1) < apart).all()


def test_without_scikit_learn_there_is_pca(tmp_path, models, corpus, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert tsne(models, corpus, tmp_path / "2.png") == 2
    said = capsys.readouterr().err
    assert "[figures]" in said
    assert "--method pca" in said


def test_classes_are_drawn_by_seed():
    labels = [*"aaaabbbbccccdddd", "a | b", None]
    clips = Manifest(tuple(Clip(i, Path(f"{i}.mp4"), f"{i}.mp4", label=x) for i, x in enumerate(labels)), Path("m"), ())
    chosen = choose_classes(clips, 3, 2, seed=1)
    assert chosen == choose_classes(clips, 3, 2, seed=1)
    assert len({choose_classes(clips, 3, 2, seed=seed).clips for seed in range(8)}) > 2
    assert (len(chosen), len({clip.label for clip in chosen})) == (6, 3)
    assert len(choose_classes(clips, 100, 100, seed=1)) == 16  # no clip of several labels, none without


def test_neighbours_and_their_chance():
    features = np.array([[1, 0.1], [2, 0.1], [0.1, 1], [0.1, 3]])
    assert neighbour_share(features, np.array(list("aabb"))) == (1.0, 1 / 3)
    assert neighbour_share(features, np.array(list("abab")))[0] == 0.0


@pytest.mark.parametrize(("panels", "classes"), [(1, 40), (4, 41)])
def test_any_number_of_panels_and_classes_is_drawn(tmp_path, panels, classes):
    labels = np.array([f"class number {i}" for i in range(classes)] * 2)
    points = np.random.default_rng(0).normal(size=(panels, len(labels), 2))
    points_figure(points, labels, ["title"] * panels, "t-SNE").savefig(tmp_path / "f.png")
    assert (tmp_path / "f.png").read_bytes().startswith(PNG)


def test_wrong_input_is_named(tmp_path, models, corpus, capsys):
    unlabelled = tmp_path / "m.csv"
    write_manifest(unlabelled, [replace(clip, label=None, captions=()) for clip in read_manifest(corpus)])
    model, pca = models["agnostic"], "--method=pca"
    for code, said, got in (
        (2, "column is `label`", lambda: tsne(models, unlabelled, tmp_path / "f.png", pca)),
        (1, "no caption", lambda: activations(model, unlabelled, tmp_path / "f.png")),
        (2, "ends in .png", lambda: activations(model, corpus, tmp_path / "f.pdf")),
        (2, "no such file", lambda: activations(model, tmp_path / "none.csv", tmp_path / "f.png")),
        (1, "config.json is missing", lambda: activations(tmp_path, corpus, tmp_path / "f.png")),
        (2, "no vision tower", lambda: tsne({**models, "specific": models["sound"]}, corpus, tmp_path / "f.png", pca)),
    ):
        assert got() == code, said
        assert said in capsys.readouterr().err
    for arguments in (("--names", "one"), ("--perplexity=nan",), ("--classes=1",)):
        with pytest.raises(SystemExit, match="2"):
            tsne(models, corpus, tmp_path / "f.png", *arguments)
    assert not list(tmp_path.glob("f.*"))
    shutil.copytree(model, tmp_path / "mute")
    (tmp_path / "mute" / "vocabulary.txt").unlink()
    assert activations(tmp_path / "mute", corpus, tmp_path / "f.png") == 2
    assert "vocabulary.txt" in capsys.readouterr().err
