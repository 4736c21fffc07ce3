"""The map of the official checkpoints, their conversion, and what is refused."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from helpers.bundle_writer import write
from safetensors.torch import load_file

from vatt.checkpoints.loading import load_classifier, load_vatt
from vatt.checkpoints.model_folder import load_config
from vatt.model.vatt import VATT
from vatt.official.__main__ import main
from vatt.official.convert import MapError, build, map_variables, preset_name
from vatt.official.infer_config import SizeError
from vatt.official.tensorflow_checkpoint import TFCheckpoint
from vatt.official.variable_names import SLOT, VALUE, variable

PARAMETERS = {
    "pretrain-bbs": 213_540_652,
    "pretrain-mbs": 280_569_132,
    "pretrain-lbs": 431_723_820,
    "pretrain-ut_fac_medium": 182_653_696,
    "finetune-vit_base-k400": 87_762_832,
    "finetune-vit_medium-k400": 154_765_712,
    "finetune-vit_large-k400": 305_920_400,
    "finetune-wat_base-audioset": 86_484_239,
    "finetune-vit_medium-k400-from_agnostic": 156_864_912,
    "finetune-wat_medium-audioset-from_agnostic": 155_160_079,
}
PRESETS = {"pretrain-bbs": "bbs", "pretrain-mbs": "mbs", "pretrain-lbs": "lbs", "pretrain-ut_fac_medium": "ma_medium"}
BOOKKEEPING = {
    "_CHECKPOINTABLE_OBJECT_GRAPH",
    "save_counter" + VALUE,
    "optimizer/iter" + VALUE,
    "optimizer/decay" + VALUE,
}
ADAM = {f"optimizer/{name}{VALUE}" for name in ("beta_1", "beta_2")}
MOMENTUM = {"optimizer/momentum" + VALUE}


def read_csv(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def shape_of(row):
    return () if row["shape"] == "scalar" else tuple(map(int, row["shape"].split("x")))


@pytest.fixture(scope="module")
def fixtures(shared):
    return shared / "parity" / "fixtures"


@pytest.fixture(scope="module")
def sizes(fixtures):
    return json.loads((fixtures / "config.json").read_text())


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_variable_of_the_full_size_models_has_one_place(shared, name):
    rows = read_csv(shared / "parity" / "variables" / f"variables-{name}.csv")
    shapes = {row["checkpoint_key"]: shape_of(row) for row in rows}
    mapped = map_variables(shapes)
    assert mapped.numbers == PARAMETERS[name]
    assert preset_name(mapped.description) == PRESETS.get(name, "official")

    with torch.device("meta"):
        module = build(mapped.description)
    ours = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    numbers = dict.fromkeys(ours, 0)
    model_rows = {row["checkpoint_key"].removesuffix(VALUE): row for row in rows if row["keras_name"]}
    for variable_name, where in mapped.places.items():
        official, part = mapped.shapes[variable_name], where.part(ours[where.name])
        numbers[where.name] += part.numel()
        leaf = variable_name.rsplit("/", 1)[1]
        assert where.transpose == (leaf == "kernel" and len(official) == 2)
        if where.transpose:
            assert tuple(part.shape) == official[::-1]
        elif len(official) > 2:
            assert tuple(part.shape) == (np.prod(official[:-1]), official[-1])
        else:
            assert tuple(part.shape) == official
        trainable = isinstance(ours[where.name], torch.nn.Parameter) and ours[where.name].requires_grad
        assert trainable == (model_rows[variable_name]["trainable"] == "True")
    # Each of our tensors is covered in full; torch's batch counters are the only ones without a counterpart.
    assert {n for n, t in ours.items() if numbers[n] != t.numel()} == {n for n in ours if "num_batches" in n}

    left = {key for key in shapes if key.removesuffix(VALUE) not in mapped.places}
    kinds = ("m", "v") if name.startswith("pretrain") else ("momentum",)
    slots = {
        f"{variable_name}{SLOT}{kind}{VALUE}"
        for variable_name in mapped.places
        for kind in kinds
        if model_rows[variable_name]["trainable"] == "True"
    }
    assert left == slots | BOOKKEEPING | (ADAM if name.startswith("pretrain") else MOMENTUM)


def test_names_that_are_no_state_count_as_variables():
    assert variable("something/new" + VALUE) == "something/new"
    assert variable("model/layer_with_weights-1/x" + VALUE) == "model/layer_with_weights-1/x"
    assert variable("optimizer/iter" + VALUE) is None


def small(fixtures, name="ckpt_finetune_audio"):
    with TFCheckpoint(fixtures / name) as checkpoint:
        return {key: checkpoint[key] for key in checkpoint}


def rewritten(tmp_path, arrays, name="ckpt-1"):
    folder = tmp_path / "rewritten"
    folder.mkdir()
    return write(folder / name, arrays)


@pytest.mark.parametrize("name", ["ckpt_tx_fac", "ckpt_ut_fac"])
def test_converted_pretrained_model_runs(fixtures, tmp_path, name, capsys):
    out = tmp_path / "model"
    assert main(["convert", str(fixtures / name), "--out", str(out), "--config", str(fixtures / "config.json")]) == 0
    printed = capsys.readouterr().out
    with TFCheckpoint(fixtures / name) as checkpoint:
        variables = [n for key in checkpoint if (n := variable(key)) is not None]
    for name_ in variables:  # a line each, with where it went
        assert f"{name_}  " in printed
    assert f"{len(variables)} of {len(variables)} model variables converted" in printed
    (out / "vocabulary.txt").write_text("dog\ncat\n")
    model, config = load_vatt(out), load_config(out)
    assert isinstance(model, VATT)
    assert not model.training
    with np.load(fixtures / f"{name.removeprefix('ckpt_')}_full.npz") as npz:
        audio = model.embed_audio(torch.from_numpy(npz["in.audio"])[..., 0])
        np.testing.assert_allclose(audio.detach(), npz["eval.head_stack.bridge.audio.tovid"], rtol=1e-4, atol=1e-4)
    record = json.loads((out / "config.json").read_text())
    assert record["official"]["step"] == 1234
    assert config.preset == "official"


def test_converted_classifier_runs(fixtures, tmp_path):
    out = tmp_path / "model"
    arguments = ["--out", str(out), "--config", str(fixtures / "config.json")]
    assert main(["convert", str(fixtures / "ckpt_finetune_video_from_agnostic"), *arguments]) == 0
    classifier = load_classifier(out, torch.device("cpu"), fused=True)
    with np.load(fixtures / "finetune_video_from_agnostic.npz") as npz, torch.no_grad():
        logits = classifier(torch.from_numpy(npz["in.views"]), views=int(npz["num_views"]))
        np.testing.assert_allclose(logits, npz["eval.logits"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "kinds"), [("ckpt_tx_fac", ("m", "v")), ("ckpt_finetune_audio", ("momentum",))])
def test_moments_lie_where_their_parameters_do(fixtures, sizes, tmp_path, name, kinds):
    out = tmp_path / "model"
    arguments = ["--out", str(out), "--config", str(fixtures / "config.json"), "--with-optimizer"]
    assert main(["convert", str(fixtures / name), *arguments]) == 0
    moments = load_file(out / "optimizer.safetensors")
    assert moments.pop("iter").item() == 1234
    found = 0
    with TFCheckpoint(fixtures / name) as checkpoint:
        mapped = map_variables({key: checkpoint.shape(key) for key in checkpoint}, sizes)
        for variable_name, where in mapped.places.items():
            for kind in kinds:
                if (key := f"{variable_name}{SLOT}{kind}{VALUE}") in checkpoint:
                    ours = where.to_official(moments[f"{kind}.{where.name}"], mapped.shapes[variable_name])
                    assert np.array_equal(ours, checkpoint[key])
                    found += 1
        assert found == sum(SLOT in key for key in checkpoint)
    weights = {n for n in load_file(out / "model.safetensors") if "running" not in n and "num_batches" not in n}
    trained = weights - {"backbone.tokens.text.embedding.weight"}
    assert set(moments) == {f"{kind}.{n}" for kind in kinds for n in trained}


def refused(arguments, out, capsys, status=1):
    assert main(["convert", *map(str, arguments), "--out", str(out)]) == status
    assert list(out.parent.glob(f"*{out.name}*")) == []
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model/layer_with_weights-0/_base/new/kernel": (2, 3)}, "_base/new/kernel 2x3: unmatched"),
        ({"elsewhere/weight": (4,)}, "elsewhere/weight 4: unmatched"),
        ({"model/layer_with_weights-0/_base/tx/final_layer_norm/beta": None}, "no variable for our backbone.encoder"),
        ({"model/layer_with_weights-0/_base/tx/layers/1/mha/v/bias": None}, "attention.qkv.bias[v]"),
        ({"model/layer_with_weights-0/_base/tx/layers/1/mha/v/kernel": (24, 12)}, "shape 24x12"),
        (
            {"model/layer_with_weights-0/_base/wave_to_patch/kernel": (8, 2, 24)},
            "patch_size = 16, the checkpoint has 8",
        ),
    ],
)
def test_what_does_not_match_is_refused(fixtures, tmp_path, change, message, capsys):
    arrays = {key: value for key, value in small(fixtures).items() if SLOT not in key}
    for name, shape in change.items():
        arrays.pop(name + VALUE, None)
        if shape is not None:
            arrays[name + VALUE] = np.zeros(shape, np.float32)
    prefix = rewritten(tmp_path, arrays)
    assert message in refused([prefix, "--config", fixtures / "config.json"], tmp_path / "out", capsys)


def test_other_types_and_foreign_checkpoints_are_refused(fixtures, tmp_path, capsys):
    arrays = {key: value for key, value in small(fixtures).items() if SLOT not in key}
    key = f"model/layer_with_weights-0/_ops/cls/bias{VALUE}"
    prefix = rewritten(tmp_path, arrays | {key: arrays[key].astype(np.float64)})
    error = refused([prefix, "--config", fixtures / "config.json"], tmp_path / "out", capsys)
    assert "_ops/cls/bias holds float64" in error
    foreign = write(tmp_path / "foreign", {"model/dense/kernel" + VALUE: np.zeros((2, 2), np.float32)})
    assert "not a VATT checkpoint" in refused([foreign], tmp_path / "out", capsys)


def test_moments_are_refused_where_there_are_none(fixtures, tmp_path, capsys):
    arrays = {key: value for key, value in small(fixtures).items() if SLOT not in key}
    prefix = rewritten(tmp_path, arrays)
    config = ["--config", fixtures / "config.json"]
    assert "without --with-optimizer" in refused([prefix, *config, "--with-optimizer"], tmp_path / "out", capsys)
    assert main(["convert", str(prefix), "--out", str(tmp_path / "out"), *map(str, config)]) == 0


def test_a_flipped_bit_is_named_and_nothing_is_written(fixtures, tmp_path, capsys):
    folder = tmp_path / "damaged"
    shutil.copytree(fixtures / "ckpt_finetune_audio", folder)
    data = next(folder.glob("*.data-*"))
    raw = bytearray(data.read_bytes())
    raw[len(raw) // 2] ^= 1
    data.write_bytes(raw)
    error = refused([folder, "--config", fixtures / "config.json", "--with-optimizer"], tmp_path / "out", capsys)
    assert str(data) in error
    assert "tensor 'model/layer_with_weights-0/" in error
    assert "byte " in error


def test_a_truncated_file_is_named_and_nothing_is_written(fixtures, tmp_path, capsys):
    folder = tmp_path / "damaged"
    shutil.copytree(fixtures / "ckpt_tx_fac", folder)
    data = next(folder.glob("*.data-*"))
    data.write_bytes(data.read_bytes()[:-100])
    error = refused([folder, "--config", fixtures / "config.json"], tmp_path / "out", capsys)
    assert str(data) in error
    assert "tensor '" in error


def test_a_failed_write_leaves_nothing(fixtures, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vatt.official.convert.write_config", full)
    arguments = [fixtures / "ckpt_finetune_audio", "--config", fixtures / "config.json"]
    assert "No space left" in refused(arguments, tmp_path / "out", capsys)


def test_an_existing_folder_is_kept(fixtures, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    arguments = [
        str(fixtures / "ckpt_tx_fac"),
        "--config",
        str(fixtures / "config.json"),
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(["convert", *arguments]) == 1
    assert "choose another --out" in capsys.readouterr().err
    assert [p.name for p in tmp_path.rglob("*")] == ["out", "mine"]


def test_heads_come_from_the_settings(fixtures, tmp_path, capsys):
    prefix = fixtures / "ckpt_finetune_audio"
    assert "give d_kv and num_heads of 'audio'" in refused([prefix], tmp_path / "out", capsys)
    config = tmp_path / "heads.json"
    config.write_text(json.dumps({"audio": {"num_heads": 6}, "tf": "2"}))
    assert main(["convert", str(prefix), "--out", str(tmp_path / "out"), "--config", str(config)]) == 0
    printed = capsys.readouterr().out
    assert "6 heads of 4" in printed
    assert "not read from --config: tf" in printed
    encoder = json.loads((tmp_path / "out" / "config.json").read_text())["config"]["model"]["audio_encoder"]
    assert (encoder["heads"], encoder["head_width"]) == (6, 4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"audio": {"d_kv": 8, "num_heads": 4}}, "4 heads of 8"),
        ({"audio": {"d_kv": 8, "d_model": 32}}, "audio.d_model = 32, the checkpoint has 24"),
        ({"audio": {"d_kv": "8"}}, "audio.d_kv is a positive whole number"),
        ({"audio": 8}, "'audio' holds sizes by name"),
    ],
)
def test_settings_that_contradict_are_refused(fixtures, tmp_path, settings, message, capsys):
    config = tmp_path / "sizes.json"
    config.write_text(json.dumps(settings))
    assert message in refused([fixtures / "ckpt_finetune_audio", "--config", config], tmp_path / "out", capsys)


@pytest.mark.parametrize("text", ["{", "[1]", None])
def test_unreadable_settings_are_wrong_arguments(fixtures, tmp_path, text, capsys):
    config = tmp_path / "broken.json"
    if text is not None:
        config.write_text(text)
    error = refused([fixtures / "ckpt_finetune_audio", "--config", config], tmp_path / "out", capsys, status=2)
    assert "broken.json" in error


def test_full_size_assumptions_are_told(shared):
    rows = read_csv(shared / "parity" / "variables" / "variables-pretrain-bbs.csv")
    mapped = map_variables({row["checkpoint_key"]: shape_of(row) for row in rows})
    told = "\n".join(mapped.description.assumed)
    assert "video: attention heads are 64 wide" in told
    assert "audio: attention heads are 64 wide" in told
    assert "T5 maximum distance 64" in told
    assert mapped.description.config.text_encoder.heads == 8  # the bias table tells


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("ckpt_tx_fac", ["pre-trained, modality-specific", "step 1234", "moments: m, v", "grid 3 x 4 x 4"]),
        ("ckpt_ut_fac", ["pre-trained, modality-agnostic", "one for all modalities"]),
        ("ckpt_finetune_audio", ["fine-tuned for audio classification (9 classes)", "moments: momentum"]),
    ],
)
def test_inspect_tells_kind_sizes_and_step(fixtures, name, wanted, capsys):
    assert main(["inspect", str(fixtures / name)]) == 0
    printed = capsys.readouterr().out
    for text in [*wanted, "parameters in", "convert needs --config"]:
        assert text in printed


def test_inspect_of_nothing_is_an_error(tmp_path, capsys):
    assert main(["inspect", str(tmp_path / "ckpt-1")]) == 1
    said = capsys.readouterr().err
    assert str(tmp_path / "ckpt-1") in said
    assert "no such file" in said


def test_interrupted_exits_130(tmp_path, monkeypatch, capsys):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("vatt.official.__main__.inspect", interrupt)
    assert main(["inspect", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("arguments", [[], ["inspect"], ["convert"], ["verify"]])
def test_help_and_missing_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--help"])
    assert stop.value.code == 0
    assert "usage: python -m vatt.official" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2


def test_errors_are_values_to_catch():
    with pytest.raises(SizeError, match="not a VATT checkpoint"):
        map_variables({"x" + VALUE: (1,)})
    assert issubclass(MapError, ValueError)


@pytest.mark.parametrize(
    ("name", "fps", "rate"), [("vit_base-k400", 12.5, 48_000), ("wat_base-audioset", 10.0, 24_000)]
)
def test_fine_tuned_models_read_clips_at_their_own_rates(shared, name, fps, rate):
    rows = read_csv(shared / "parity" / "variables" / f"variables-finetune-{name}.csv")
    model = map_variables({row["checkpoint_key"]: shape_of(row) for row in rows}).description.config
    assert (model.video.fps, model.audio.rate) == (fps, rate)
