"""Fine-tuning starts from a pre-trained model; everything that is not copied is reported."""

from dataclasses import replace

import pytest
import torch

from vatt.checkpoints.loading import load_classifier
from vatt.config.presets import tiny, tiny_ma
from vatt.config.pretraining import Config
from vatt.errors import RunError
from vatt.model.positions import resample_table
from vatt.model.vatt import VATT, Classifier
from vatt.official.convert import write_folder
from vatt.official.infer_config import Description
from vatt.official.init_source import read_source
from vatt.training.initialization import load_backbone

TABLE = "backbone.tokens.video.position.tables.1"


def export(folder, config: Config):
    torch.manual_seed(3)
    model = VATT(config.model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    write_folder(folder, Description(config.model), model.state_dict(), None, {})
    return model.state_dict()


def wider(config: Config) -> Config:
    """The same model for clips of 96 instead of 64 pixels."""
    return replace(config, model=replace(config.model, video=replace(config.model.video, size=96)))


@pytest.mark.parametrize("preset", [tiny, tiny_ma])
@pytest.mark.parametrize("modality", ["video", "audio"])
def test_backbone_is_copied_and_the_rest_is_listed(tmp_path, preset, modality):
    theirs = export(tmp_path / "model", preset())
    classifier = Classifier(preset().model, modality, 5)
    head = classifier.head.linear.weight.clone()
    report = load_backbone(classifier, read_source(tmp_path / "model"), tmp_path / "model")
    ours = classifier.state_dict()
    assert set(report.loaded) == {name for name in ours if name.startswith("backbone.")}
    assert all(torch.equal(ours[name], theirs[name]) for name in report.loaded)
    assert report.fresh == ["head.linear.weight", "head.linear.bias"]
    assert torch.equal(classifier.head.linear.weight, head)
    assert set(report.unused) == set(theirs) - set(report.loaded)
    assert "starts fresh: head.linear.weight" in str(report)
    assert "not used: head (" in str(report)
    assert "not used: backbone.tokens.text" in str(report)


def test_position_tables_of_another_grid_go_through_the_spline(tmp_path):
    theirs = export(tmp_path / "model", tiny())
    classifier = Classifier(wider(tiny()).model, "video", 5)
    report = load_backbone(classifier, read_source(tmp_path / "model"), tmp_path / "model")
    assert [(old, new) for _, old, new in report.resampled] == [(4, 6), (4, 6)]
    assert torch.equal(classifier.state_dict()[TABLE], resample_table(theirs[TABLE], 6))
    assert f"resampled {TABLE}: 4 -> 6 rows" in str(report)
    # The result computes what the pre-trained tables would on that grid.
    frames = torch.randint(0, 256, (1, 16, 96, 96, 3), dtype=torch.uint8)
    small = Classifier(tiny().model, "video", 5)
    load_backbone(small, read_source(tmp_path / "model"), tmp_path / "model")
    a, b = (c.eval().backbone.features("video", frames) for c in (classifier, small))
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_other_shapes_and_missing_layers_are_listed(tmp_path):
    export(tmp_path / "model", tiny())
    model = tiny().model
    changed = replace(
        model,
        video=replace(model.video, patch=(4, 8, 8), size=32),
        video_encoder=replace(model.video_encoder, layers=model.video_encoder.layers + 1, mlp=48),
    )
    classifier = Classifier(changed, "video", 5)
    report = load_backbone(classifier, read_source(tmp_path / "model"), tmp_path / "model")
    mismatched = {name: (old, new) for name, old, new in report.mismatched}
    width, mlp, last = model.video_encoder.width, model.video_encoder.mlp, model.video_encoder.layers
    assert mismatched["backbone.tokens.video.weight"] == ((4 * 16 * 16 * 3, width), (4 * 8 * 8 * 3, width))
    assert mismatched["backbone.encoder.video.layers.0.mlp.wi.weight"] == ((mlp, width), (48, width))
    assert f"backbone.encoder.video.layers.{last}.attention.qkv.weight" in report.fresh
    text = str(report)
    assert f"NOT loaded backbone.tokens.video.weight: shape [3072, {width}], here [768, {width}]" in text
    assert f"starts fresh: backbone.encoder.video.layers.{last}.attention.qkv.weight" in text
    names = [*report.loaded, *mismatched, *report.fresh, *(name for name, _, _ in report.resampled)]
    assert sorted(names) == sorted(classifier.state_dict())


def test_the_other_family_is_refused(tmp_path):
    export(tmp_path / "model", tiny_ma())
    with pytest.raises(RunError, match=r"no weights for backbone\.encoder\.video .*backbone\.encoder\.shared"):
        load_backbone(Classifier(tiny().model, "video", 5), read_source(tmp_path / "model"), tmp_path / "model")


def test_an_official_checkpoint_is_a_source(shared, tmp_path):
    source = shared / "parity" / "fixtures" / "ckpt_ut_fac"
    weights = read_source(source)
    assert weights["backbone.encoder.shared.layers.0.attention.qkv.weight"].shape == (96, 32)
    assert read_source(source / "ckpt-1234").keys() == weights.keys()


def test_no_source_is_an_error(tmp_path):
    with pytest.raises(RunError, match="neither a folder"):
        read_source(tmp_path)
    with pytest.raises(RunError, match="neither a folder"):
        read_source(tmp_path / "nowhere")
    (tmp_path / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(RunError, match="cannot be read"):
        read_source(tmp_path)


def test_a_classifier_comes_back_as_it_was(tmp_path):
    classifier = Classifier(tiny().model, "audio", 7).eval()
    write_folder(tmp_path / "model", Description(tiny().model, "audio", 7), classifier.state_dict(), None, {})
    again = load_classifier(tmp_path / "model", torch.device("cpu"))
    samples = torch.randn(4, 12_800)
    assert torch.equal(again(samples, views=2), classifier(samples, views=2))
    write_folder(tmp_path / "other", Description(tiny().model, "audio", 8), classifier.state_dict(), None, {})
    with pytest.raises(RunError, match=r"head\.linear\.weight has shape \[7, \d+\], here \[8, \d+\], and 1 more"):
        load_classifier(tmp_path / "other", torch.device("cpu"))
    export(tmp_path / "pretrained", tiny())
    with pytest.raises(RunError, match="holds a pre-trained model without classes"):
        load_classifier(tmp_path / "pretrained", torch.device("cpu"))
