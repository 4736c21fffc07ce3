"""`--compile`: each layer is compiled, equal layers share graphs, and no step makes a new one."""

from __future__ import annotations

from dataclasses import replace
from functools import partialmethod
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from vatt.config.model import EncoderConfig
from vatt.config.presets import preset
from vatt.errors import ConfigError
from vatt.model.transformer import Encoder
from vatt.ops import choose
from vatt.runtime.distributed import SINGLE_PROCESS
from vatt.training.parallel import parallelize

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # TorchInductor's own import
SEEDS = (11, 12, 13, 14, 15)


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()


def encoder(dropout: float, *, text: bool = False, layers: int = 2) -> Encoder:
    small = EncoderConfig(layers=layers, width=16, heads=2, head_width=8, mlp=32, dropout=dropout)
    torch.manual_seed(0)
    return Encoder(small, choose(True, "cpu"), buckets=32 if text else None).train()


def step(model: Encoder, tokens: int, seed: int) -> tuple[Tensor, ...]:
    """Output and gradients of a step with a seed of its own."""
    x = torch.randn(2, tokens, 16, generator=torch.Generator().manual_seed(seed))
    mask = torch.ones(2, tokens, dtype=torch.bool) if model.bias_table is not None else None
    torch.manual_seed(seed)
    model.zero_grad()
    out = model(x, mask, seed)
    out.square().mean().backward()
    return out.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize(("text", "tokens"), [(False, 17), (True, 9)])
def test_steps_share_their_graphs_and_compute_the_same(
    text: bool, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seeds of attention's dropout differ from step to step and layer to layer; they are symbols in a graph."""
    literal, model = encoder(0.3, text=text, layers=3), encoder(0.3, text=text, layers=3)
    counter = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend=counter))
    parallelize(model, (model,), SINGLE_PROCESS, "ddp", recompute=False, compiled=True)
    graphs = []
    for seed in SEEDS:
        expected, found = step(literal, tokens, seed), step(model, tokens, seed)
        for one, other in zip(expected, found, strict=True):
            torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-6)
        graphs.append(counter.frame_count)
    assert 0 < graphs[0] <= graphs[1] == graphs[-1] <= 3
    outs = [step(model, tokens, seed)[0] for seed in SEEDS[:2]]
    assert not torch.equal(*outs)


def test_a_model_keeps_its_names() -> None:
    """Checkpoints of compiled runs are those of others."""
    model = encoder(0.0)
    names = list(model.state_dict())
    parallelize(model, (model,), SINGLE_PROCESS, "ddp", recompute=False, compiled=True)
    assert list(model.state_dict()) == names


def test_the_compiler_of_a_cpu_computes_the_same() -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except (InvalidCxxCompiler, RuntimeError):
        pytest.skip("no C++ compiler")
    literal, model = encoder(0.0, layers=1), encoder(0.0, layers=1)
    parallelize(model, (model,), SINGLE_PROCESS, "ddp", recompute=False, compiled=True)
    for one, other in zip(step(literal, 17, 1), step(model, 17, 1), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-6)


def test_without_a_compiler_a_run_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import cpp_builder
    from torch._inductor.exc import InvalidCxxCompiler

    def none() -> Any:
        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    model = encoder(0.0)
    with pytest.raises(ConfigError, match=r"--compile.*C\+\+ compiler.*run without --compile"):
        parallelize(model, (model,), SINGLE_PROCESS, "ddp", recompute=False, compiled=True)


def test_it_is_off_unless_asked_for() -> None:
    config = preset("tiny")
    assert not config.compile
    assert replace(config, compile=True).compile
