"""Settings: JSON round trip, overrides, ranges, presets."""

import json
from dataclasses import replace

import pytest

from vatt.config.finetuning import video
from vatt.config.presets import PRESETS, preset
from vatt.config.pretraining import Config
from vatt.config.serialization import apply_overrides, differences, from_dict, require_resumable, to_json
from vatt.config.validation import check
from vatt.errors import ConfigError


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_json(name):
    config = preset(name)
    assert config.preset == name
    assert from_dict(Config, json.loads(to_json(config))) == config


def test_overrides_reach_nested_settings_and_keep_types():
    config = apply_overrides(
        Config(),
        ["optim.rate=3e-4", "model.video.patch=2,8,8", "data.augment.flip=false", "loss.form=paper", "steps=7"],
    )
    assert config.optim.rate == 3e-4
    assert config.model.video.patch == (2, 8, 8)
    assert config.data.augment.flip is False
    assert (config.loss.form, config.steps) == ("paper", 7)


@pytest.mark.parametrize(
    ("override", "nearest"),
    [("optim.rat=1", "optim.rate"), ("batch_sise=4", "data.batch_size"), ("model.vidio.size=8", "model.video.size")],
)
def test_unknown_setting_names_the_nearest(override, nearest):
    with pytest.raises(ConfigError, match=f"did you mean '{nearest}'"):
        apply_overrides(Config(), [override])


@pytest.mark.parametrize("override", ["steps=many", "steps=1.5", "data.augment.flip=maybe", "model.video.patch=4,16"])
def test_value_of_the_wrong_type_names_the_setting(override):
    with pytest.raises(ConfigError, match=override.partition("=")[0]):
        apply_overrides(Config(), [override])


def test_override_without_value_says_how_it_is_written():
    with pytest.raises(ConfigError, match="NAME=VALUE"):
        apply_overrides(Config(), ["steps"])


def test_unknown_preset_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'mbs'"):
        preset("msb")


def test_unknown_key_in_a_saved_config_is_an_error():
    with pytest.raises(ConfigError, match=r"data\.batchsize"):
        from_dict(Config, {"data": {"batchsize": 3}})


def test_differences_lists_what_changed():
    old = preset("tiny")
    assert differences(old, replace(old, steps=5)) == [("steps", old.steps, 5)]


def test_what_a_resumed_run_may_change_is_marked_in_the_fields():
    old = preset("tiny")
    for override in ("steps=5", "model.drop.rate=0.1", "data.batch_size=4", "optim.rate=1", "loss.form=paper"):
        require_resumable(old, apply_overrides(old, [override]))
    tuned = video(old.model)
    for config, override in (
        (old, "model.video_encoder.width=8"),
        (old, "data.vocabulary=words.txt"),
        (old, "preset=mbs"),
        (tuned, "loss=sigmoid"),
        (tuned, "task=image"),
        (tuned, "init=elsewhere"),
    ):
        with pytest.raises(ConfigError, match=override.partition("=")[0]):
            require_resumable(config, apply_overrides(config, [override]))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("loss.form=other", "loss.form must be asymmetric, symmetric or paper, got 'other'"),
        ("parallel=both", "parallel must be ddp or fsdp"),
        ("model.kind=shared", "model.kind must be specific or agnostic"),
    ],
)
def test_a_word_that_is_not_allowed_names_those_that_are(override, expected):
    with pytest.raises(ConfigError, match=expected):
        check(apply_overrides(preset("tiny"), [override]))


def test_clip_spans_of_video_and_audio_agree():
    for name in PRESETS:
        model = preset(name).model
        assert model.audio.samples / model.audio.rate == pytest.approx(model.video.seconds)


def test_official_token_counts():
    model = preset("mbs").model
    assert (model.video.tokens, model.audio.tokens) == (1568, 1200)
