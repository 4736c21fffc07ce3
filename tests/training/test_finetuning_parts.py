"""Losses and optimiser of fine-tuning, and the pre-training loss over several ranks."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vatt.config.finetuning import DESCRIPTORS
from vatt.config.model import AudioConfig
from vatt.config.pretraining import LossConfig
from vatt.model.heads import Embeddings
from vatt.model.losses import (
    Gathered,
    balanced_sigmoid_cross_entropy,
    pretraining_loss,
    smooth_labels,
    softmax_cross_entropy,
)
from vatt.ops import REFERENCE, choose
from vatt.training.descriptors import BANDS, describe, descriptor_loss
from vatt.training.optimizers import SGD
from vatt.training.schedules import multilevel_rate


def test_smoothed_labels_still_sum_to_one():
    labels = smooth_labels(torch.eye(4)[:2], 0.1)
    torch.testing.assert_close(labels.sum(1), torch.ones(2))
    torch.testing.assert_close(labels[0, 0], torch.tensor(0.925))


def test_cross_entropy_is_bounded():
    logits = torch.tensor([[200.0, -200.0]], requires_grad=True)
    loss = softmax_cross_entropy(logits, torch.tensor([[0.0, 1.0]]))
    assert loss.item() == pytest.approx(16.118, abs=1e-3)
    loss.backward()
    assert torch.isfinite(logits.grad).all()


def test_rare_classes_weigh_more():
    """Three clips of class 0, one of class 1, which weighs three times as much as each of them."""
    labels = torch.tensor([[1.0, 0.0]] * 3 + [[0.0, 1.0]])
    logits = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    balanced_sigmoid_cross_entropy(logits, labels.double()).backward()
    plain = logits.detach().sigmoid() - labels
    torch.testing.assert_close(logits.grad, plain * torch.tensor([[1 / 3]] * 3 + [[1.0]]) / 4)


def test_clips_without_a_class_have_no_loss():
    labels = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    logits = torch.zeros(2, 2, requires_grad=True)
    balanced_sigmoid_cross_entropy(logits, labels).backward()
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad[1] == 0).all()


def test_sound_is_described_patch_by_patch_and_as_a_whole():
    config = AudioConfig(samples=8_192, rate=16_000, patch=512)
    seconds = torch.arange(config.samples) / config.rate
    swelling = torch.sin(2 * torch.pi * torch.tensor([[300.0], [3_000.0]]) * seconds) * (0.1 + seconds)
    patches, whole = describe(swelling, config)
    low, high = patches[:, -1].argmax(dim=-1)
    assert (patches.shape, whole.shape) == ((2, 16, BANDS), (2, DESCRIPTORS))
    assert low < high
    assert patches[0, -1, low] > patches[0, 0, low] + 1
    torch.testing.assert_close(describe(swelling / 5, config)[1], whole, rtol=0, atol=1e-3)  # loudness says nothing
    features = torch.cat([F.pad(whole[:, None], (0, 8)), F.pad(patches, (0, 80 - BANDS), value=7.0)], dim=1)
    keep = torch.tensor([3, 9])
    assert descriptor_loss(features, swelling, config, None) == 0
    assert descriptor_loss(features[:, [0, 4, 10]], swelling, config, keep) == 0
    assert descriptor_loss(features[:, [0, 4, 11]], swelling, config, keep.expand(2, 2)) > 1e-4


def literal_sgd(weight, gradients, rates):
    velocity = torch.zeros_like(weight)
    for gradient, rate in zip(gradients, rates, strict=True):
        velocity = 0.9 * velocity - rate * gradient
        weight = weight + velocity
    return weight


def test_sgd_keeps_the_rate_inside_the_velocity_and_resumes():
    gradients, rates = torch.randn(6, 3), [0.1, 0.2, 0.05, 0.0, 0.3, 0.1]

    def run(parameter, optimizer, part):
        for gradient, rate in zip(gradients[part], rates[part], strict=True):
            optimizer.param_groups[0]["lr"] = rate
            parameter.grad = gradient.clone()
            optimizer.step()

    whole = nn.Parameter(torch.ones(3))
    run(whole, SGD([whole], 0.1), slice(None))
    torch.testing.assert_close(whole.detach(), literal_sgd(torch.ones(3), gradients, rates))
    first = nn.Parameter(torch.ones(3))
    before = SGD([first], 0.1)
    run(first, before, slice(3))
    second = nn.Parameter(first.detach().clone())
    after = SGD([second], 0.1)
    after.load_state_dict(before.state_dict())
    run(second, after, slice(3, None))
    assert torch.equal(whole, second)


def test_schedule_reaches_each_level_and_the_end():
    levels = [(10, 1.0), (30, 0.5)]
    rates = [multilevel_rate(step, levels, 50, first=0.1) for step in (0, 5, 10, 20, 30, 40, 50, 60)]
    assert rates == pytest.approx([0.1, 0.55, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0])
    assert multilevel_rate(0, [(0, 1.0)], 10) == 1.0
    assert multilevel_rate(50, [(10, 1.0), (50, 0.5)], 50) == 0.5  # 0 / 0 in the release


@pytest.mark.parametrize("form", ["asymmetric", "symmetric", "paper"])
@pytest.mark.parametrize("fused", [False, True])
def test_two_ranks_average_to_the_whole_batch(form, fused):
    """With as many valid clips on each rank, the mean of the ranks' losses and gradients is the whole batch's."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    whole = Embeddings(normal(6, 8), normal(6, 5), normal(6, 8), normal(6, 3, 5))
    audio_mask, text_mask = torch.tensor([1, 1, 0, 1, 0, 1]), torch.tensor([0, 1, 1, 1, 1, 0])
    ops, config = choose(True, "cpu") if fused else REFERENCE, LossConfig(form=form)
    together = pretraining_loss(whole, audio_mask, text_mask, config, ops).total
    expected = torch.autograd.grad(together, whole)
    ranks = []
    for offset in (0, 3):
        own = slice(offset, offset + 3)
        gathered = Gathered(whole, audio_mask, text_mask, offset)
        local = Embeddings(*(x[own] for x in whole))
        ranks.append(pretraining_loss(local, audio_mask[own], text_mask[own], config, ops, gathered=gathered).total)
    mean = torch.stack(ranks).mean()
    torch.testing.assert_close(mean, together)
    for ours, theirs in zip(torch.autograd.grad(mean, whole), expected, strict=True):
        torch.testing.assert_close(ours, theirs)
