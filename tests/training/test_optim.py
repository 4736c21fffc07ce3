"""Optimizers and learning rates against their formulas."""

import numpy as np
import pytest
import torch
from torch import nn

from vatt.config.pretraining import OptimConfig
from vatt.training import optimizers
from vatt.training.optimizers import Adam, clip_gradients
from vatt.training.schedules import learning_rate


def literal_adam(w, grads, rates, b1=0.9, b2=0.999, eps=1e-7):
    m, v = np.zeros_like(w), np.zeros_like(w)
    for t, (g, rate) in enumerate(zip(grads, rates, strict=True), 1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        w = w - rate * np.sqrt(1 - b2**t) / (1 - b1**t) * m / (np.sqrt(v) + eps)
    return w


def test_adam_is_keras_adam_also_where_eps_matters():
    rng = np.random.default_rng(0)
    w, grads = rng.normal(size=(7,)), rng.normal(size=(5, 7)) * 10.0 ** rng.integers(-9, 1, size=(5, 7))
    rates = [1e-3, 2e-3, 5e-3, 1e-3, 1e-2]
    p = nn.Parameter(torch.tensor(w))
    optimizer = Adam([p], OptimConfig())
    for g, rate in zip(grads, rates, strict=True):
        p.grad = torch.tensor(g)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
    np.testing.assert_allclose(p.detach().numpy(), literal_adam(w, grads, rates), rtol=1e-12)


def test_adam_resumes_to_the_bit():
    torch.manual_seed(0)
    grads = torch.randn(6, 4)

    def run(parameter, optimizer, some):
        for g in some:
            parameter.grad = g.clone()
            optimizer.step()

    whole = nn.Parameter(torch.ones(4))
    run(whole, Adam([whole], OptimConfig()), grads)
    first = nn.Parameter(torch.ones(4))
    before = Adam([first], OptimConfig())
    run(first, before, grads[:3])
    second = nn.Parameter(first.detach().clone())
    after = Adam([second], OptimConfig())
    after.load_state_dict(before.state_dict())
    run(second, after, grads[3:])
    assert torch.equal(whole, second)


def test_frozen_parameters_get_no_moments():
    frozen = nn.Parameter(torch.ones(3), requires_grad=False)
    optimizer = Adam([frozen, nn.Parameter(torch.ones(2))], OptimConfig())
    assert sum(p.numel() for group in optimizer.param_groups for p in group["params"]) == 2


@pytest.mark.parametrize(
    ("step", "rate"), [(0, 0.0), (2500, 5e-5), (5000, 1e-4), (252_500, 7.5e-5), (499_999, 5e-5), (600_000, 5e-5)]
)
def test_official_schedule(step, rate):
    assert learning_rate(step, OptimConfig(), 500_000) == pytest.approx(rate, rel=1e-5)


def test_schedule_equals_the_recorded_one(shared):
    recorded = np.load(shared / "parity/fixtures/schedules.npz")
    ours = [learning_rate(int(step), OptimConfig(), 500_000) for step in recorded["pretrain.steps"]]
    np.testing.assert_allclose(ours, recorded["pretrain.lr"], rtol=2e-6)


def test_adam_equals_the_recorded_one(shared):
    recorded = np.load(shared / "parity/fixtures/optimizers.npz")
    p = nn.Parameter(torch.tensor(recorded["w0"]))
    optimizer = Adam([p], OptimConfig())
    for gradient, rate, expected in zip(
        recorded["grads"], recorded["lr_used"], recorded["adam.trajectory"], strict=True
    ):
        p.grad = torch.tensor(gradient)
        optimizer.param_groups[0]["lr"] = float(rate)
        optimizer.step()
        np.testing.assert_allclose(p.detach().numpy(), expected, rtol=1e-5, atol=1e-6)


def update(parameters, optimizer, grads):
    for step in grads:
        for parameter, grad in zip(parameters, step, strict=True):
            parameter.grad = grad.clone()
        optimizer.step()


def test_one_kernel_for_all_is_keras_adam_too():
    rng = np.random.default_rng(1)
    w, grads = rng.normal(size=(7,)), rng.normal(size=(5, 7)) * 10.0 ** rng.integers(-9, 1, size=(5, 7))
    p = nn.Parameter(torch.tensor(w, dtype=torch.float32))
    optimizer = Adam([p], OptimConfig(rate=1e-3))
    assert optimizer.param_groups[0]["fused"] is True
    update([p], optimizer, torch.tensor(grads, dtype=torch.float32)[:, None])
    expected = literal_adam(w, grads.astype(np.float32).astype(np.float64), [1e-3] * 5)
    np.testing.assert_allclose(p.detach().double().numpy(), expected, rtol=3e-6, atol=1e-8)


def test_the_bits_of_one_kernel_do_not_depend_on_threads():
    grads = torch.randn(3, 1, 100_003, generator=torch.Generator().manual_seed(0))
    found, threads = [], torch.get_num_threads()
    for number in (1, 3):
        torch.set_num_threads(number)
        try:
            parameter = nn.Parameter(torch.ones(100_003))
            update([parameter], Adam([parameter], OptimConfig()), grads)
        finally:
            torch.set_num_threads(threads)
        found.append(parameter)
    assert torch.equal(*found)


def test_a_run_goes_on_with_the_form_of_adam_it_began_with(monkeypatch):
    grads = torch.randn(6, 2, 5, generator=torch.Generator().manual_seed(0))
    for began_fused in (False, True):
        monkeypatch.setattr(optimizers, "is_whole", lambda parameter, fused=began_fused: fused)
        whole, first = ([nn.Parameter(torch.ones(5)) for _ in range(2)] for _ in range(2))
        update(whole, Adam(whole, OptimConfig()), grads)
        before = Adam(first, OptimConfig())
        update(first, before, grads[:3])
        monkeypatch.setattr(optimizers, "is_whole", lambda parameter, fused=began_fused: not fused)
        second = [nn.Parameter(p.detach().clone()) for p in first]
        after = Adam(second, OptimConfig())
        after.load_state_dict(before.state_dict())
        assert bool(after.param_groups[0]["fused"]) is began_fused
        update(second, after, grads[3:])
        assert all(map(torch.equal, whole, second))


@pytest.mark.parametrize(("largest", "scale"), [(0.0, 1.0), (100.0, 1.0), (0.5, 0.1)])
def test_gradients_are_scaled_only_to_clip_them(largest, scale):
    grads = [torch.tensor([3.0, 0.0]), torch.tensor([[4.0]])]
    parameters = [nn.Parameter(torch.zeros_like(g)) for g in grads] + [nn.Parameter(torch.zeros(1))]
    for parameter, g in zip(parameters[:2], grads, strict=True):
        parameter.grad = g.clone()
    versions = [p.grad._version for p in parameters[:2]]
    assert float(clip_gradients(parameters, largest)) == 5.0
    for parameter, g in zip(parameters[:2], grads, strict=True):
        torch.testing.assert_close(parameter.grad, g * scale, rtol=1e-6, atol=0)
    assert largest or versions == [p.grad._version for p in parameters[:2]]  # not even multiplied by 1
