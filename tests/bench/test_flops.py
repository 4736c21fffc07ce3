"""Both accountings: the paper's against its tables, the true one against a count of the products the model runs."""

import csv
import math
from dataclasses import replace

import pytest
import torch
from accounting.flops import vatt_flops, video_flops
from accounting.paper_flops import vatt_paper_flops, video_paper_flops
from torch.utils.flop_counter import FlopCounterMode

from vatt.config.model import DropConfig, EncoderConfig, ModelConfig, VideoConfig, kept_tokens
from vatt.config.presets import BASE, LARGE, MEDIUM, PRESETS, preset
from vatt.config.pretraining import LossConfig
from vatt.model.losses import pretraining_loss
from vatt.model.vatt import VATT, Backbone
from vatt.ops import REFERENCE, choose

# Table 6, ViT-Medium: (frames, size, drop rate) -> printed GFLOPs, the paper's accounting and 2 x MAC to three decimals
# (forward, all patches projected).
TABLE_6 = {
    (32, 224, 0.0): (548.1, "548.072", "604.688"),
    (64, 224, 0.0): (1222.1, "1222.045", "1450.766"),
    (32, 320, 0.75): (279.8, "279.801", "293.563"),
    (32, 320, 0.5): (572.5, "572.489", "629.605"),
    (32, 320, 0.25): (898.9, "898.845", "1028.562"),
    (32, 320, 0.0): (1252.3, "1252.241", "1490.433"),
}
# Table 1: TFLOPs of twelve views at 32x320x320, printed and as 2 x MAC.
TABLE_1 = [(BASE, "9.09", "11.24"), (MEDIUM, "15.02", "17.89"), (LARGE, "29.80", "35.53")]
# Table 5, MBS: drop rate -> printed GFLOPs; one text row; percent that leaves; text rows that leave less than 0.02 %;
# 2 x MAC with one text row.
TABLE_5 = {
    0.75: (188.1, "187.434", "0.35", 2, "191.5"),
    0.5: (375.4, "374.683", "0.19", 2, "393.5"),
    0.25: (574.2, "573.568", "0.11", 2, "617.3"),
    0.0: (784.8, "781.484", "0.42", 6, "862.8"),
}


def video_model(encoder: EncoderConfig, frames: int = 32, size: int = 224, rate: float = 0.0) -> ModelConfig:
    return ModelConfig(video=VideoConfig(frames=frames, size=size), video_encoder=encoder, drop=DropConfig(rate))


@pytest.mark.parametrize(("clip", "expected"), TABLE_6.items())
def test_table_6(clip, expected):
    frames, size, rate = clip
    printed, paper, true = expected
    model = video_model(MEDIUM, frames, size, rate)
    counted = video_paper_flops(model).total() / 1e9
    assert f"{counted:.3f}" == paper
    assert counted == pytest.approx(printed, rel=1e-4)
    flops = video_flops(MEDIUM, model.video, kept_tokens(model.video.tokens, rate), project_all=True)
    assert f"{flops.forward / 1e9:.3f}" == true


@pytest.mark.parametrize(("encoder", "printed", "true"), TABLE_1)
def test_table_1_to_the_printed_digits(encoder, printed, true):
    model = video_model(encoder, size=320)
    assert f"{12 * video_paper_flops(model, initialisers=False).total() / 1e12:.2f}" == printed
    assert f"{12 * video_flops(encoder, model.video, project_all=True).forward / 1e12:.2f}" == true


@pytest.mark.parametrize(("rate", "expected"), TABLE_5.items())
def test_table_5_and_what_it_leaves(rate, expected):
    printed, paper, left, rows, true = expected
    model = replace(preset("mbs").model, drop=DropConfig(rate))
    counted = vatt_paper_flops(model).total() / 1e9
    assert f"{counted:.3f}" == paper
    assert f"{100 * (printed - counted) / printed:.2f}" == left
    assert vatt_paper_flops(model, text_rows=rows).total() / 1e9 == pytest.approx(printed, rel=2e-4)
    model = replace(model, text=replace(model.text, captions=1))
    assert f"{vatt_flops(model, drop=True, project_all=True).forward / 1e9:.1f}" == true


def test_paper_accounting_equals_the_recorded_profiles(shared):
    with open(shared / "parity" / "flops.csv") as file:
        recorded = {row["row"]: row for row in csv.DictReader(file)}
    digit = 1e-3  # GFLOPs: the recordings have three decimals
    for (frames, size, rate), (printed, *_) in TABLE_6.items():
        row = next(r for name, r in recorded.items() if name.startswith("T6") and float(r["paper_GFLOPs"]) == printed)
        model = video_model(MEDIUM, frames, size, rate)
        for key, initialisers in (("with", True), ("without", False)):
            ours = video_paper_flops(model, initialisers=initialisers).total() / 1e9
            assert ours == pytest.approx(float(row[f"tf2.4_graph_{key}_initialisers"]), abs=digit)
    for rate in TABLE_5:
        for rows in (1, 5):
            row = recorded[f"T5 MBS DropToken {rate:.0%} ({rows} text row{'s' * (rows > 1)})"]
            model = replace(preset("mbs").model, drop=DropConfig(rate))
            for key, initialisers in (("with", True), ("without", False)):
                ours = vatt_paper_flops(model, text_rows=rows, initialisers=initialisers).total() / 1e9
                assert ours == pytest.approx(float(row[f"tf2.4_graph_{key}_initialisers"]), abs=digit)


def test_the_paper_leaves_out_half_of_attention_and_nothing_else_of_the_products():
    for rate in (0.0, 0.5):
        model = video_model(MEDIUM, size=320, rate=rate)
        ops, kept = video_paper_flops(model), kept_tokens(model.video.tokens, rate)
        products = ops["patch products"] + ops["dense products"] + ops["P V"]
        true = video_flops(MEDIUM, model.video, kept, project_all=True)
        assert true.forward - products == ops["P V"] == true.attention // 2


def count(config: ModelConfig, batch: int) -> tuple[int, int]:
    """FLOPs that PyTorch's counter sees in a whole literal model on meta tensors: (forward, forward and backward).

    It counts mm, addmm, bmm and baddbmm, to which every product of the reference operations comes down, einsum among
    them: nothing is opaque. Fused attention or a Triton kernel would be.
    """
    video, text = config.video, config.text
    with torch.device("meta"):
        model = VATT(config, REFERENCE).train()
        frames = torch.empty(batch, video.frames, video.size, video.size, 3, dtype=torch.uint8)
        samples, words = torch.empty(batch, config.audio.samples), torch.ones(batch, text.captions, text.words).long()
        present = torch.ones(batch)
    with FlopCounterMode(display=False) as counter:
        embeddings = model(frames, samples, words, seed=1)
        loss = pretraining_loss(embeddings, present, present, LossConfig(), REFERENCE).total
        forward = counter.get_total_flops()
        loss.backward()
    return forward, counter.get_total_flops()


@pytest.mark.parametrize(("name", "rate"), [("tiny", 0.0), *((name, 0.5) for name in PRESETS)])
def test_true_count_equals_what_the_whole_model_runs_on_meta_tensors(name, rate):
    # Layers are all alike: two, or the four of a tiny model, show what the counter would see of 24, in less time.
    model = preset(name).model
    encoders = {field: getattr(model, field) for field in model.__dataclass_fields__ if field.endswith("_encoder")}
    cut = {field: replace(encoder, layers=min(encoder.layers, 2)) for field, encoder in encoders.items()}
    config = replace(model, drop=DropConfig(rate), **({} if name.startswith("tiny") else cut))
    flops = vatt_flops(config, drop=True, project_all=True, batch=3, loss=True)
    assert (flops.forward, flops.step) == count(config, 3)


@pytest.mark.parametrize("fused", [False, True])
def test_video_count_equals_the_products_each_implementation_runs(fused):
    # The counter sees matrix products; attention as plain products too, once it is the reference one.
    encoder = EncoderConfig(width=32, layers=2, heads=2, head_width=8, mlp=48, dropout=0.0)
    video = VideoConfig(frames=8, size=48)
    config = ModelConfig(video=video, video_encoder=encoder, drop=DropConfig(0.5))
    model = Backbone(config, choose(fused, "cpu"), ("video",)).train()
    for layer in model.encoder["video"].layers:
        layer.attention.ops = REFERENCE
    with FlopCounterMode(display=False) as counter:
        out = model.features("video", torch.zeros(3, 8, 48, 48, 3, dtype=torch.uint8))
        forward = counter.get_total_flops()
        out.sum().backward()
    flops = video_flops(encoder, video, kept_tokens(video.tokens, 0.5), project_all=not fused)
    assert (forward, counter.get_total_flops()) == (3 * flops.forward, 3 * flops.step)


def test_dropping_before_projecting_saves_exactly_the_dropped_projections():
    video = VideoConfig()
    literal, fused = (video_flops(BASE, video, 784, project_all=all_) for all_ in (True, False))
    assert literal.step - fused.step == 2 * 2 * math.prod(video.patch) * 3 * BASE.width * (1568 - 784)
    assert literal == replace(fused, projection=literal.projection)
