"""bfloat16 on CPUs: who gets it, and that features stay near those of float32, packed or not."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers.bfloat16 import skip_without_bfloat16

from vatt.config.presets import tiny
from vatt.errors import ConfigError
from vatt.inference import bfloat16
from vatt.model.vatt import VATT
from vatt.runtime import device as devices

CPU = torch.device("cpu")


def model_of_width(width: int) -> VATT:
    torch.manual_seed(0)
    config = tiny().model
    encoder = replace(config.video_encoder, width=width, layers=2)
    return VATT(replace(config, video_encoder=encoder, audio_encoder=encoder)).eval()


@pytest.mark.parametrize(
    ("hardware", "width", "name", "begun", "expected", "why"),
    [
        (True, 512, "auto", None, torch.bfloat16, "in hardware"),
        (True, 128, "auto", None, torch.float32, "gain nothing"),
        (False, 512, "auto", None, torch.float32, "no products of bfloat16"),
        (True, 512, "auto", "float32", torch.float32, "as it was begun"),
        (False, 512, "auto", "bfloat16", torch.bfloat16, "as it was begun"),
        (False, 512, "bfloat16", None, torch.bfloat16, "--dtype"),
        (True, 512, "float32", None, torch.float32, "--dtype"),
    ],
)
def test_who_gets_it(hardware, width, name, begun, expected, why, monkeypatch):
    monkeypatch.setattr(bfloat16, "cpu_multiplies_bfloat16", lambda: hardware)
    monkeypatch.setattr(devices, "require_bfloat16", lambda device: None)
    model = model_of_width(width)  # of its video and audio encoders; the text encoder, which stays as it is, is narrow
    dtype, reason = bfloat16.choose_dtype(name, CPU, model, begun)
    assert dtype == expected
    assert why in reason


def test_a_cpu_that_is_held_back_has_no_bfloat16(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True}, raising=False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(devices.platform, "machine", lambda: "x86_64")
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    assert devices.cpu_multiplies_bfloat16() == torch.ops.mkldnn._is_mkldnn_bf16_supported()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert not devices.cpu_multiplies_bfloat16()
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert not devices.cpu_multiplies_bfloat16()


@pytest.mark.parametrize("packs", [True, False])
def test_features_are_those_of_float32_but_for_rounding(packs, monkeypatch):
    """Also where PyTorch keeps no weights in oneDNN's order: another release, or a CPU without its instructions."""
    skip_without_bfloat16()
    if not packs:

        def absent(weight):
            raise RuntimeError

        monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", absent)
    model = model_of_width(128)
    light = copy.deepcopy(model)
    bfloat16.use_bfloat16(light)
    config = model.backbone.config
    draw = torch.Generator().manual_seed(1)
    video = torch.randint(0, 256, (2, config.video.frames, config.video.size, config.video.size, 3), generator=draw)
    audio = torch.rand(2, config.audio.samples, generator=draw) * 2 - 1
    words = torch.randint(1, 9, (2, 1, config.text.words), generator=draw)
    with torch.inference_mode():
        for name, x in (("video", video.byte()), ("audio", audio)):
            exact, rounded = (one.backbone.features(name, x)[:, 0] for one in (model, light))
            assert rounded.dtype == torch.float32
            assert F.cosine_similarity(exact, rounded).min() >= 0.9995
            assert not torch.equal(exact, rounded)  # it is in use
        assert torch.equal(model.embed_text(words), light.embed_text(words))
        assert all(x.dtype == torch.float32 for x in light.embed_video(video.byte()))


def test_windows_are_computed_a_few_at_a_time(monkeypatch):
    """In order, each with its own mask, whatever their number; also none."""
    skip_without_bfloat16()
    model = model_of_width(128)
    bfloat16.use_bfloat16(model)
    encoder, draw = model.backbone.encoder["video"], torch.Generator().manual_seed(1)
    x = torch.randn(5, 7, 128, generator=draw)
    mask = torch.rand(5, 7, generator=draw) < 0.7
    mask[:, 0] = True
    sizes = []
    encoder.encoder.register_forward_pre_hook(lambda module, arguments: sizes.append(len(arguments[0])))
    with torch.inference_mode():
        for given in (None, mask):
            whole = encoder(x, given)
            sizes.clear()
            monkeypatch.setattr(bfloat16, "TOGETHER", 15)
            assert F.cosine_similarity(encoder(x, given), whole, dim=-1).min() >= 0.9995
            assert sizes == [2, 2, 1]
            assert encoder(x[:0]).shape == (0, 7, 128)
            monkeypatch.undo()


@pytest.mark.parametrize(("shape", "products"), [((1, 320), 1), ((1, 1201), 4), ((3, 401), 4), ((1, 1569), 1)])
def test_products_that_one_core_would_compute_go_in_parts(shape, products, monkeypatch):
    """Those whose output is narrower than their input; what a product is called with is looked at, not who computes."""
    sizes = []

    class Products:
        def __call__(self, x, weight, bias, *how):
            sizes.append(len(x))
            return F.linear(x, weight, bias)

        def binary(self, x, tokens, weight, bias, how):
            return tokens + self(x, weight, bias)

    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", lambda weight: weight)
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", Products())
    draw = torch.Generator().manual_seed(1)
    for width, count in ((8, products), (32, 1)):
        dense = torch.nn.Linear(16, width).bfloat16()
        linear = bfloat16._Linear(dense)
        x, tokens = (torch.randn(*shape, size, generator=draw).bfloat16() for size in (16, width))
        for added in (None, tokens):
            sizes.clear()
            expected = dense(x) if added is None else added + dense(x)
            assert torch.allclose(linear(x, added), expected, rtol=2**-7, atol=2**-7)
            assert len(sizes) == count
            assert sum(sizes) == shape[0] * shape[1]


def test_where_pytorch_cannot_the_way_out_is_named(monkeypatch):
    def fails(*tensors):
        raise RuntimeError("pack_vnni2 is only supported when avx512 is supported")

    monkeypatch.setattr(devices.F, "scaled_dot_product_attention", fails)
    with pytest.raises(ConfigError, match=r"bfloat16 cannot be used here .*use float32"):
        bfloat16.choose_dtype("bfloat16", CPU, model_of_width(128))
