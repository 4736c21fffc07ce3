"""The true FLOP counts against published ones, and against a count of the model's own products."""

import math
from dataclasses import replace

import pytest
import torch
from flops import video_flops
from torch.utils.flop_counter import FlopCounterMode

from vatt.config import DropConfig, EncoderConfig, ModelConfig, VideoConfig, kept_tokens
from vatt.model.vatt import Backbone
from vatt.ops import choose
from vatt.presets import BASE, LARGE, MEDIUM

# (frames, size, drop rate) -> 2 x MAC of ViT-Medium in GFLOPs, forward, with all patches projected.
MEDIUM_GFLOPS = {
    (32, 224, 0.0): "604.688",
    (64, 224, 0.0): "1450.766",
    (32, 320, 0.75): "293.563",
    (32, 320, 0.5): "629.605",
    (32, 320, 0.25): "1028.562",
    (32, 320, 0.0): "1490.433",
}


@pytest.mark.parametrize(("clip", "printed"), MEDIUM_GFLOPS.items())
def test_medium_forward_to_the_printed_digits(clip, printed):
    frames, size, rate = clip
    video = VideoConfig(frames=frames, size=size)
    flops = video_flops(MEDIUM, video, kept_tokens(video.tokens, rate), project_all=True)
    assert f"{flops.forward / 1e9:.3f}" == printed


@pytest.mark.parametrize(("encoder", "printed"), [(BASE, "11.24"), (MEDIUM, "17.89"), (LARGE, "35.53")])
def test_twelve_views_at_320_pixels(encoder, printed):
    assert f"{12 * video_flops(encoder, VideoConfig(size=320), project_all=True).forward / 1e12:.2f}" == printed


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_counts_equal_the_products_the_model_runs(fused, rate):
    # The counter sees matrix products; attention as plain products too, once it is the reference one.
    encoder = EncoderConfig(width=32, layers=2, heads=2, head_width=8, mlp=48, dropout=0.0)
    video = VideoConfig(frames=8, size=48)
    config = ModelConfig(video=video, video_encoder=encoder, drop=DropConfig(rate=rate))
    ops = choose(fused, "cpu")
    model = Backbone(config, ops, ("video",)).train()
    for layer in model.encoder["video"].layers:
        layer.attention.ops = choose(False, "cpu")
    frames = torch.zeros(3, 8, 48, 48, 3, dtype=torch.uint8)
    with FlopCounterMode(display=False) as counter:
        out = model.features("video", frames)
        forward = counter.get_total_flops()
        out.sum().backward()
    flops = video_flops(encoder, video, kept_tokens(video.tokens, rate), project_all=not fused)
    assert forward == 3 * flops.forward
    assert counter.get_total_flops() == 3 * flops.step


def test_dropping_before_projecting_saves_exactly_the_dropped_projections():
    video = VideoConfig()
    literal, fused = (video_flops(BASE, video, 784, project_all=all_) for all_ in (True, False))
    assert literal.step - fused.step == 2 * 2 * math.prod(video.patch) * 3 * BASE.width * (1568 - 784)
    assert literal == replace(fused, projection=literal.projection)
