"""From a file to tensors, vectors, classes: the public functions, and what they say of wrong input."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.media import numbered_frame, steady, tone_burst, write_clip
from helpers.media_alone import write_image, write_sound
from helpers.small_model import small_config, write_model

import vatt
from vatt.checkpoints.model_folder import write_model_folder
from vatt.data.datasets.evaluation import EvalDataset
from vatt.data.manifest import read_manifest
from vatt.data.tokenizer import Tokenizer
from vatt.evaluation import classification
from vatt.runtime.device import autocast_for


@pytest.fixture(scope="module")
def model(tmp_path_factory, corpus: Path) -> vatt.VATT:
    return vatt.load(write_model(tmp_path_factory.mktemp("runs") / "run", corpus))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory, corpus: Path) -> vatt.Classifier:
    clips, config = read_manifest(corpus), small_config()
    torch.manual_seed(3)
    made = vatt.Classifier(config.model, "video", len(clips.labels))
    saved = {
        "modality": "video",
        "classes": 5,
        "labels": clips.labels,
        "task": "video",
        "loss": "softmax",
        "windows": 2,
        "crops": 3,
    }
    folder = tmp_path_factory.mktemp("classifier")
    write_model_folder(folder, made.state_dict(), config, {"classifier": saved}, None)
    return vatt.load(folder)


@pytest.fixture(scope="module")
def clip(corpus: Path) -> Path:
    return read_manifest(corpus)[3].path


def test_a_clip_is_read_as_evaluation_reads_it(corpus, clip) -> None:
    config = small_config()
    batch = EvalDataset(read_manifest(corpus), config.data, config.model, Tokenizer([]), 3, 4)[0]
    read = vatt.read_clip(clip, config, 3)
    assert torch.equal(read.video, batch.video[3])
    assert torch.equal(read.audio, batch.audio[3])
    assert read.video_mask.tolist() == read.audio_mask.tolist() == [1, 1, 1]
    assert read.starts[0] == 0
    assert list(read.starts) == sorted(set(read.starts))


def test_any_span_is_read(tmp_path) -> None:
    """Frames hold their numbers: those of the span and no others."""
    write_clip(tmp_path / "c.mp4", steady(8.0, 10.0))
    config = small_config()
    read = vatt.read_clip(tmp_path / "c.mp4", config, start=4.0)
    whole = vatt.read_clip(tmp_path / "c.mp4", config)
    assert read.starts == (4.0,)
    assert not torch.equal(read.video, whole.video)
    assert torch.equal(read.video, vatt.read_clip(tmp_path / "c.mp4", config, start=4.0, end=8.0).video)
    with pytest.raises(vatt.VattError, match=r"c\.mp4: no frames at 9\.00 s"):
        vatt.read_clip(tmp_path / "c.mp4", config, start=9.0)


def test_pictures_and_sounds_have_masks(tmp_path) -> None:
    write_image(tmp_path / "i.png", numbered_frame(90))
    write_sound(tmp_path / "a.wav", tone_burst(1.5, 0.2, 16_000, 1.0), 16_000)
    picture, sound = (vatt.read_clip(tmp_path / name, small_config(), 2) for name in ("i.png", "a.wav"))
    assert (picture.video_mask.tolist(), picture.audio_mask.tolist()) == ([1, 1], [0, 0])
    assert (sound.video_mask.tolist(), sound.audio_mask.tolist()) == ([0, 0], [1, 1])
    assert not picture.audio.any()
    assert not sound.video.any()
    assert picture.video.dtype == torch.uint8


def test_vectors_of_one_file_are_those_of_many(model, corpus, clip) -> None:
    features = vatt.embed(model, corpus)
    one = model.embed(clip)
    for name in ("video_pooled", "video_to_text", "video_to_audio", "audio_embedding", "audio_pooled"):
        np.testing.assert_allclose(one[name], features.arrays[name][3], atol=1e-4, rtol=1e-4, err_msg=name)
    scores = vatt.retrieve(features)
    assert scores["text_to_video"]["candidates"] == 24
    # Rows of one span are one clip with two captions, as for the command: the scores stay, a query is added.
    arrays = dict(features.arrays)
    for name, array in arrays.items():
        arrays[name] = array if name.startswith("bad") else np.concatenate([array, array[3:4]])
    for name in ("video_clip", "audio_clip", "text_clip"):
        arrays[name][-1] = 24
    twice = vatt.retrieve(replace(features, arrays=arrays))
    assert twice["text_to_video"]["candidates"] == 24
    assert twice["text_to_video"]["queries"] == scores["text_to_video"]["queries"] + 1
    assert twice["audio_to_video"] == scores["audio_to_video"]
    some = vatt.embed(model, [clip], windows=1)
    assert some.arrays["path"].tolist() == [str(clip)]


def test_search_in_memory(model, corpus, clip) -> None:
    index = vatt.SearchIndex(vatt.embed(model, corpus), model)
    assert len(index) == 24
    first = index.search(video=clip, top=2)
    assert [hit["rank"] for hit in first] == [1, 2]
    assert first[0]["path"] == str(clip)
    assert first[0]["cosine"] == pytest.approx(1, abs=1e-5)
    assert len(index.search("a red square", top=3)) == 3
    with pytest.raises(vatt.VattError, match="one text, audio or video, got 2"):
        index.search("a red square", audio=clip)


def test_sentences_are_embedded(model) -> None:
    one = model.embed_text("a red square")
    assert one.shape == (128,)
    several = model.embed_text(["a red square", "a blue ring"])
    torch.testing.assert_close(several[0], one)
    with pytest.raises(vatt.VattError, match="no word that the model knows"):
        model.embed_text("xyzzy plugh")
    with pytest.raises(TypeError, match="sentences"):
        model.embed_text(["a", 3])


def test_texts_are_ranked(model, clip) -> None:
    texts = ["a red square", "a blue ring", "a green star"]
    ranked = model.rank_texts(clip, texts)
    cosines = torch.cosine_similarity(model.embed_text(texts), model.embed(clip)["video_to_text"][None])
    assert {text: pytest.approx(value, abs=1e-5) for text, value in ranked} == dict(
        zip(texts, cosines.tolist(), strict=True)
    )
    assert [value for _, value in ranked] == sorted((value for _, value in ranked), reverse=True)
    named = dict(model.rank_texts(clip, {"square": ["a red square", "a blue square"], "ring": ["a blue ring"]}))
    assert set(named) == {"square", "ring"}
    assert named["ring"] == pytest.approx(dict(ranked)["a blue ring"], abs=1e-5)


def test_a_prediction_is_that_of_the_evaluation(classifier, corpus, clip, tmp_path) -> None:
    clips = read_manifest(corpus)
    assert classifier.classes == clips.labels
    best = classifier.predict(clip)
    assert sum(p for _, p in classifier.predict(clip, top=None)) == pytest.approx(1, abs=1e-5)
    views = classification.ClassifyConfig("video", "softmax", 2, 3)
    config, float32 = small_config(), autocast_for(torch.device("cpu"), torch.float32)
    classification.classify(classifier, clips, views, config.data, tmp_path, float32)
    row = (tmp_path / "predictions.csv").read_text().splitlines()[4]
    assert re.search(rf"{best[0][0]} {best[0][1]:.3g}", row)
    assert set(classifier.embed(clip)) == {"video_pooled"}


def test_wrong_input_is_one_sentence(model, classifier, clip, tmp_path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    write_sound(tmp_path / "a.wav", tone_burst(1.0, 0.2, 16_000, 0.5), 16_000)
    for asked, message in (
        (lambda: model.embed(tmp_path / "text.mp4"), r"text\.mp4: not a video"),
        (lambda: model.embed(tmp_path / "gone.mp4"), r"gone\.mp4: missing"),
        (lambda: classifier.predict(tmp_path / "a.wav"), r"a\.wav: "),
        (lambda: model.rank_texts(tmp_path / "a.wav", ["a red square"]), "has no pictures"),
        (lambda: model.rank_texts(clip, []), "the list is empty"),
        (lambda: model.rank_texts(clip, ["a red square"] * 2), "named twice"),
        (lambda: model.rank_texts(clip, {"red": []}), "'red' has no sentence"),
        (lambda: vatt.embed(model, []), "the list is empty"),
        (lambda: vatt.embed(model, [clip], windows=0), "at least 1 window"),
        (lambda: vatt.load(model.folder, device="gpu"), "device 'gpu' cannot be used"),
        (lambda: model.embed(clip, windows=0), "at least 1 window"),
        (lambda: model.embed(clip, windows="2"), "at least 1 window"),
        (lambda: model.embed(clip, start="0"), "ends after its start"),
        (lambda: classifier.predict(clip, windows=0), "at least 1 window"),
        (lambda: classifier.predict(clip, start=-1.0), "ends after its start"),
        (lambda: classifier.predict(clip, start=2.0, end=1.0), "ends after its start"),
        (lambda: classifier.predict(clip, top=0), "from 1, or None for all"),
        (lambda: vatt.read_clip(clip, small_config(), 0), "at least 1 window"),
        (lambda: vatt.read_clip(clip, small_config(), start=2.0, end=1.0), "ends after its start"),
    ):
        with pytest.raises(vatt.VattError, match=message) as error:
            asked()
        assert "\n" not in str(error.value)


def test_wrong_shapes_and_types_are_one_sentence(model, classifier, clip) -> None:
    for asked, kind, message in (
        (
            lambda: model.embed_video(torch.zeros(1, 3, 16, 64, 64)),
            ValueError,
            r"\[clips, 16, 64, 64, 3\].* got \[1, 3,",
        ),
        (
            lambda: model.embed_video(torch.zeros(1, 8, 64, 64, 3)),
            ValueError,
            r"\[clips, 16, 64, 64, 3\].* got \[1, 8,",
        ),
        (
            lambda: model.embed_audio(torch.zeros(1, 100)),
            ValueError,
            r"\[clips, \d+\] .* got \[1, 100\]",
        ),
        (lambda: model.embed_video(torch.full((1, 16, 64, 64, 3), 255.0)), ValueError, "or floats in .* is 255"),
        (lambda: model.embed_video(torch.full((1, 16, 64, 64, 3), torch.nan)), ValueError, "or floats in .* is nan"),
        (lambda: model.embed_audio(np.zeros((1, 100))), TypeError, r"embed_audio: samples are a torch\.Tensor"),
        (lambda: model.embed_text(torch.ones(1, 8)), ValueError, r"\[clips, captions, words\].* got \[1, 8\]"),
        (lambda: model.embed_text(torch.ones(1, 1, 8)), ValueError, "whole numbers from 0 to 199"),
        (lambda: model.embed_text(torch.full((1, 1, 8), 200)), ValueError, "whole numbers from 0 to 199"),
        (lambda: model.embed_text(None), TypeError, "sentences, a str or several"),
        (lambda: model.rank_texts(clip, "a red square"), TypeError, "a list of sentences"),
        (lambda: model.rank_texts(clip, None), TypeError, "a list of sentences"),
        (lambda: model.rank_texts(clip, [3]), TypeError, "a list of sentences"),
        (lambda: classifier(torch.zeros(1, 3)), ValueError, r"frames of this model are \[clips, 16, 64, 64, 3\]"),
        (lambda: vatt.read_clip(clip, classifier.settings.model), TypeError, "config is `settings` of a model"),
        (lambda: model.predict(clip), AttributeError, "no predict: `rank_texts` compares"),
        (lambda: model.classes, AttributeError, "no classes"),
        (lambda: classifier.embed_text("a"), AttributeError, "a fine-tuned model has no embed_text"),
    ):
        with pytest.raises(kind, match=message) as error:
            asked()
        assert "\n" not in str(error.value)
