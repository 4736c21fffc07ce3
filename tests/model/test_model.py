"""The model: shapes, shared encoders, dropped tokens, gradients."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from vatt.config.model import DropConfig, EncoderConfig, kept_tokens
from vatt.config.presets import preset
from vatt.config.pretraining import LossConfig
from vatt.model.heads import BatchNorm, Embeddings
from vatt.model.losses import FORMS, pair_loss, pretraining_loss
from vatt.model.positions import resample_table, spline_matrix
from vatt.model.tokens import at_level, tones
from vatt.model.vatt import VATT, Backbone, Classifier, count_parameters
from vatt.ops import REFERENCE, choose

FUSED = choose(True, "cpu")


def small(kind: str = "specific", drop: DropConfig | None = None, dropout: float = 0.0):
    """The tiny preset made tinier: width 32, 2 layers."""
    encoder = EncoderConfig(width=32, layers=2, heads=2, head_width=16, mlp=48, dropout=dropout)
    model = preset("tiny").model
    return replace(
        model,
        kind=kind,
        video_encoder=encoder,
        audio_encoder=encoder,
        text_encoder=encoder,
        shared_encoder=encoder,
        post_width=24,
        drop=drop or DropConfig(0.5),
    )


def inputs(batch: int = 4, dtype: torch.dtype = torch.float32):
    g = torch.Generator().manual_seed(0)
    video = torch.randint(0, 256, (batch, 16, 64, 64, 3), dtype=torch.uint8, generator=g)
    audio = torch.randn(batch, 12_800, generator=g, dtype=dtype) * 0.1
    text = torch.randint(1, 1024, (batch, 5, 16), generator=g)
    text[:, :, 9:] = 0
    text[1] = 0  # a clip without captions
    return video, audio, text, torch.tensor([1.0, 1, 0, 1])[:batch], torch.tensor([1.0, 0, 1, 1])[:batch]


def step(config, ops, dtype=torch.float32, seed=3, rounding=0.0):
    torch.manual_seed(0)
    model = VATT(config, ops).to(dtype)
    if rounding:
        with torch.no_grad():
            for weight in model.parameters():
                weight *= 1 + rounding * (2 * torch.rand_like(weight) - 1)
    video, audio, text, audio_mask, text_mask = inputs(dtype=dtype)
    if dtype is torch.float64:
        video = video.double() * (2 / 255) - 1
    embeddings = model(video, audio, text, seed=seed)
    loss = pretraining_loss(embeddings, audio_mask, text_mask, LossConfig(), ops).total
    loss.backward()
    return loss.detach(), embeddings, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ["specific", "agnostic"])
@pytest.mark.parametrize("drop", [DropConfig(0.0), DropConfig(0.5), DropConfig(0.75, "sample")])
def test_fused_equals_reference_in_results_and_gradients(kind, drop):
    config = small(kind, drop)
    truth_loss, truth, truth_gradients = step(config, REFERENCE, torch.float64)
    loss, reference, gradients = step(config, REFERENCE)
    fused_loss, fused, fused_gradients = step(config, FUSED)
    eps = torch.finfo(torch.float32).eps
    # Batch norm of four clips divides by what may be small: how much it enlarges a rounding, exact arithmetic tells.
    _, moved, _ = step(config, REFERENCE, torch.float64, rounding=eps)

    def error(ours, exact):
        return (ours.double() - exact).norm() / exact.norm()

    assert abs(fused_loss - truth_loss) <= 2 * abs(loss - truth_loss) + 16 * eps * truth_loss
    for ours, plain, exact, nearby in zip(fused, reference, truth, moved, strict=True):
        assert error(ours, exact) <= 2 * error(plain, exact) + 16 * max(eps, error(nearby, exact))
    assert fused_gradients.keys() == gradients.keys() == truth_gradients.keys()
    # A gradient that vanishes in exact arithmetic (a shift before batch norm) carries the rounding of what cancels.
    largest = max(g.norm() for g in truth_gradients.values())
    for name, exact in truth_gradients.items():
        allowed = 2 * (gradients[name].double() - exact).norm() + 16 * eps * largest
        assert (fused_gradients[name].double() - exact).norm() <= allowed, name


@pytest.mark.parametrize("kind", ["specific", "agnostic"])
def test_every_trained_parameter_gets_a_gradient(kind):
    config = small(kind)
    model = VATT(config, FUSED)
    video, audio, text, audio_mask, text_mask = inputs()
    pretraining_loss(model(video, audio, text, seed=1), audio_mask, text_mask, LossConfig(), FUSED).total.backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize(
    ("tokens", "rate", "kept"),
    [(1568, 0.5, 784), (1568, 0.75, 392), (1568, 0.25, 1176), (1200, 0.9, 120), (10, 0.8, 2), (3200, 0.0, 3200)],
)
def test_kept_tokens_of_the_paper(tokens, rate, kept):
    assert kept_tokens(tokens, rate) == kept


@pytest.mark.parametrize(
    ("rate", "align", "kept"),
    [(0.5, 64, 767), (0.75, 64, 383), (0.25, 128, 1151), (0.999, 64, 63), (0.001, 64, 1535), (0, 64, 1568)],
)
def test_aligned_draws_fill_tiles_together_with_agg(rate, align, kept):
    assert kept_tokens(1568, rate, align) == kept
    assert rate == 0 or (kept + 1) % align == 0


@pytest.mark.parametrize("rate", [1.0, -0.1])
def test_impossible_drop_rates_are_refused(rate):
    with pytest.raises(ValueError, match="drop rate"):
        kept_tokens(10, rate)


@pytest.mark.parametrize("ops", [REFERENCE, FUSED], ids=["reference", "fused"])
def test_drop_token_only_in_training_and_a_function_of_the_seed(ops):
    backbone = Backbone(small(), ops, ("video",))
    video = inputs()[0]
    backbone.train()
    first = backbone.features("video", video, seed=5)
    assert first.shape[1] == 33
    assert torch.equal(first, backbone.features("video", video, seed=5))
    assert not torch.equal(first, backbone.features("video", video, seed=6))
    assert backbone.eval().features("video", video, seed=5).shape[1] == 65


@pytest.mark.parametrize("sampling", ["batch", "sample"])
def test_drop_sampling_is_shared_or_per_sample(sampling):
    backbone = Backbone(small(drop=DropConfig(0.5, sampling)), FUSED, ("video",)).train()
    same = inputs()[0][:1].expand(3, -1, -1, -1, -1)
    features = backbone.features("video", same, seed=1)
    # Equal clips stay equal exactly when they keep the same voxels.
    assert torch.allclose(features[0], features[1], atol=1e-5) == (sampling == "batch")


def test_dropped_voxels_cannot_change_anything():
    backbone = Backbone(small(), FUSED, ("video",)).train()
    video = inputs()[0].float() / 127.5 - 1
    keep = torch.arange(0, 64, 2)
    poisoned = video.unflatten(1, (4, 4)).unflatten(3, (4, 16)).unflatten(5, (4, 16)).clone()
    for token in range(1, 64, 2):
        poisoned[:, token // 16, :, token // 4 % 4, :, token % 4] = float("nan")
    poisoned = poisoned.flatten(5, 6).flatten(3, 4).flatten(1, 2)
    a = backbone.features("video", video, keep=keep)
    assert torch.equal(a, backbone.features("video", poisoned, keep=keep))


def natural_cubic(table: np.ndarray, target: int) -> np.ndarray:
    """The release's polyharmonic system of order 3, solved in float64 as it is written."""
    n = len(table)
    x, y = np.arange(n) / n, np.arange(target) / target

    def phi(a, b):
        return np.maximum((a[:, None] - b[None]) ** 2, 1e-10) ** 1.5

    border = np.stack([x, np.ones(n)], 1)
    system = np.block([[phi(x, x), border], [border.T, np.zeros((2, 2))]])
    solved = np.linalg.solve(system, np.concatenate([table, np.zeros((2, table.shape[1]))]))
    return phi(y, x) @ solved[:n] + np.stack([y, np.ones(target)], 1) @ solved[n:]


@pytest.mark.parametrize(("source", "target"), [(2, 5), (3, 2), (4, 8), (8, 16), (14, 20), (20, 14), (16, 8)])
def test_spline_solves_the_official_system(source, target):
    table = np.random.default_rng(source).normal(size=(source, 6))
    ours = spline_matrix(source, target).numpy() @ table
    np.testing.assert_allclose(ours, natural_cubic(table, target), atol=1e-8)


def test_spline_is_the_identity_on_its_own_grid_and_has_gradients():
    table = torch.randn(6, 4, requires_grad=True)
    assert resample_table(table, 6) is table
    np.testing.assert_allclose(spline_matrix(6, 6).numpy(), np.eye(6), atol=1e-12)
    resample_table(table, 9).sum().backward()
    assert table.grad is not None
    assert torch.isfinite(table.grad).all()


def test_spline_agrees_with_the_recorded_float64(shared):
    recorded = np.load(shared / "parity/fixtures/spline.npz")
    names = sorted(name.removesuffix(".table") for name in recorded.files if name.endswith(".table"))
    assert names
    for name in names:
        table, truth = recorded[f"{name}.table"], recorded[f"{name}.expanded_float64"]
        ours = spline_matrix(len(table), len(truth)).numpy() @ table
        # At n = 1200 the recorded solution itself is good to 2e-3 (condition number 2e12).
        np.testing.assert_allclose(ours, truth, atol=2e-3 if len(table) > 100 else 1e-8, err_msg=name)


@pytest.mark.parametrize("shape", [(16, 96, 96), (8, 64, 64), (24, 80, 64)])
def test_other_grids_go_through_the_spline(shape):
    backbone = Backbone(small(), REFERENCE, ("video",)).eval()
    video = torch.zeros(1, *shape, 3, dtype=torch.uint8)
    t, h, w = shape
    assert backbone.features("video", video).shape[1] == t // 4 * (h // 16) * (w // 16) + 1


def test_borders_that_do_not_divide_are_dropped():
    backbone = Backbone(small(), FUSED, ("video", "audio")).eval()
    video = torch.randint(0, 256, (1, 16, 64, 64, 3), dtype=torch.uint8)
    wide = torch.nn.functional.pad(video, (0, 0, 0, 7, 0, 9))
    assert torch.equal(backbone.features("video", video), backbone.features("video", wide))


@pytest.mark.parametrize("dtype", [torch.float32, torch.int16])
def test_sounds_of_any_loudness_come_at_one_level(dtype):
    wave = torch.sin(torch.arange(4_096) / 7.0)
    loud = torch.stack([0.9 * wave, 0.9 / 50 * wave])
    sounds = loud if dtype == torch.float32 else (loud * 32767).to(dtype)
    levelled = at_level(sounds, 20.0)
    assert levelled.dtype == torch.float32
    torch.testing.assert_close(levelled.square().mean(1).sqrt(), torch.full((2,), 20.0))
    torch.testing.assert_close(levelled[0], levelled[1], rtol=0.01 if dtype == torch.int16 else 1e-5, atol=0.05)
    assert not at_level(torch.zeros(1, 8), 20.0).any()


def test_a_pair_of_tones_holds_its_band_wherever_a_sound_begins():
    rate, patch = 16_000, 512
    bank = tones(48, patch, rate)
    torch.testing.assert_close(bank.norm(dim=0), torch.ones(96))
    pitch = torch.linspace(0, 1, 10)[:, None] * 2 * torch.pi
    sound = torch.sin(2 * torch.pi * 1_000 / rate * torch.arange(patch) + pitch)
    energy = (sound @ bank).square().unflatten(1, (48, 2)).sum(2)
    assert energy.argmax(1).unique().numel() == 1
    assert energy.max(1).values.std() < 0.02 * energy.max()


def test_batch_norm_moves_by_the_biased_variance():
    norm = BatchNorm(3).train()
    x = torch.randn(5, 3) * 2 + 1
    norm(x)
    torch.testing.assert_close(norm.running_mean, 0.1 * x.mean(0))
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * x.var(0, correction=0))


def embeddings_of(batch: int, seed: int = 0) -> Embeddings:
    g = torch.Generator().manual_seed(seed)
    return Embeddings(*(torch.randn(*s, generator=g) for s in ((batch, 8), (batch, 6), (batch, 8), (batch, 5, 6))))


@pytest.mark.parametrize("form", FORMS)
def test_loss_forms_are_what_they_say(form):
    e = embeddings_of(4)
    v, t = (torch.nn.functional.normalize(x.double(), dim=-1) for x in (e.video_text, e.text))
    scores = torch.einsum("id,jld->ijl", v, t) / 0.07
    positive = torch.stack([scores[i, i].logsumexp(0) for i in range(4)])
    rows, columns = scores.flatten(1).logsumexp(1), scores.transpose(0, 1).flatten(1).logsumexp(1)
    if form == "asymmetric":
        expected = torch.logaddexp(rows, columns) - positive
    elif form == "symmetric":
        expected = rows + columns - 2 * positive
    else:
        both = rows.exp() + columns.exp() - positive.exp()
        expected = both.log() - positive
    config = LossConfig(form=form)
    for ops in (REFERENCE, FUSED):
        ours = pair_loss(e.video_text, e.text, torch.ones(4), config, ops)
        torch.testing.assert_close(ours.double(), expected.mean(), rtol=1e-5, atol=1e-6)
        losses = pretraining_loss(e, torch.ones(4), torch.ones(4), config, ops)
        both = losses.video_text + losses.video_audio
        torch.testing.assert_close(losses.total, both if form == "paper" else both / 2)


@pytest.mark.parametrize("form", FORMS)
def test_masked_clips_add_nothing_and_an_empty_batch_is_zero(form):
    e = embeddings_of(4)
    video, text = e.video_text.requires_grad_(), e.text.requires_grad_()
    config = LossConfig(form=form)
    loss = pair_loss(video, text, torch.tensor([1.0, 0, 1, 1]), config, FUSED)
    loss.backward()
    assert torch.isfinite(loss)
    assert text.grad[1].abs().max() == 0
    assert video.grad[1].abs().max() > 0  # its video is still a negative of the others
    video.grad = None
    none = pair_loss(video, text, torch.zeros(4), config, FUSED)
    none.backward()
    assert none == 0
    assert video.grad.abs().max() == 0


def test_the_asymmetric_loss_cannot_go_below_ln_2():
    same = torch.eye(4, dtype=torch.float64)
    loss = pair_loss(same, same[:, None], torch.ones(4), LossConfig(temperature=0.01), FUSED)
    assert loss.item() == pytest.approx(np.log(2), abs=1e-12)


def test_classifier_averages_logits_over_views_in_eval_only():
    model = Classifier(small(), "audio", 7, ops=FUSED).eval()
    audio = inputs()[1]
    single = model(audio)
    torch.testing.assert_close(model(audio, views=2), single.unflatten(0, (2, 2)).mean(1))
    assert model.train()(audio).shape == (4, 7)


def test_mlp_outputs_can_be_tapped_before_the_residual():
    backbone = Backbone(small(), FUSED, ("audio",)).eval()
    seen = []
    for layer in backbone.encoder["audio"].layers:
        layer.mlp.register_forward_hook(lambda module, args, out: seen.append(out))
    backbone.features("audio", inputs()[1])
    assert [tuple(x.shape) for x in seen] == [(4, 101, 32)] * 2


@pytest.mark.parametrize(
    ("name", "total", "trained"),
    [
        ("bbs", 213_540_652, 193_877_292),
        ("mbs", 280_569_132, 260_905_772),
        ("lbs", 431_723_820, 412_060_460),
        ("ma_medium", 182_653_696, 162_990_336),
    ],
)
def test_sizes_are_the_official_ones(name, total, trained):
    with torch.device("meta"):
        model = VATT(preset(name).model)
    assert count_parameters(model) == total
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == trained


def test_dropout_draws_are_a_function_of_the_seed():
    config = small(dropout=0.3, drop=DropConfig(0.0))
    torch.manual_seed(0)
    backbone = Backbone(config, FUSED, ("audio",)).train()

    def run(seed):
        torch.manual_seed(seed)
        return backbone.features("audio", inputs()[1], seed=seed)

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))
