"""`--compile`: each layer is compiled, equal layers share graphs, and no step makes a new one."""

from __future__ import annotations

from dataclasses import replace
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import small_run
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from vatt.config.model import DropConfig, EncoderConfig, VideoConfig
from vatt.config.presets import preset
from vatt.errors import ConfigError
from vatt.model.fusible import Dense, Dropout, kept
from vatt.model.transformer import Encoder, Layer
from vatt.model.vatt import Backbone
from vatt.ops import choose
from vatt.runtime.distributed import SINGLE_PROCESS
from vatt.training.parallel import parallelize

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # TorchInductor's own import
SEEDS = (11, 12, 13, 14, 15)


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()


def require_compiler() -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except (InvalidCxxCompiler, RuntimeError):
        pytest.skip("no C++ compiler")


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
    """Seeds of dropout differ from step to step and layer to layer; tensors, so no step compiles."""
    literal, model = encoder(0.3, text=text, layers=3), encoder(0.3, text=text, layers=3)
    for layer in literal.layers:
        layer.compiled = True  # drops what a compiled one drops
    counter = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(Layer, "compile", partialmethod(Layer.compile, backend=counter))
    parallelize(model, (model,), SINGLE_PROCESS, "ddp", recompute=False, compiled=True)
    graphs = []
    for seed in SEEDS:
        expected, found = step(literal, tokens, seed), step(model, tokens, seed)
        for one, other in zip(expected, found, strict=True):
            torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-6)
        graphs.append(counter.frame_count)
    assert set(graphs) == {3}  # made in the first step: two halves; the first layer's input has no gradient
    outs = [step(model, tokens, seed)[0] for seed in SEEDS[:2]]
    assert not torch.equal(*outs)


def test_what_was_captured_drops_other_probabilities_and_tokens_when_its_seed_changes() -> None:
    """As a CUDA graph is replayed: the same call on the same tensors, whose values changed in between."""
    config = replace(preset("tiny").model, video=VideoConfig(8, 32, patch=(4, 16, 16)), drop=DropConfig(0.5, "sample"))
    config = replace(config, video_encoder=EncoderConfig(16, 1, 2, 8, 32, dropout=0.3))
    torch.manual_seed(0)
    model = Backbone(config, choose(True, "cpu"), ("video",)).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 1e-12  # on, and drops nothing: what is left is attention's
    frames = torch.randint(0, 256, (2, 8, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    counter, seed = CompileCounterWithBackend("aot_eager"), torch.tensor(1)
    captured = torch.compile(model.features, backend=counter, fullgraph=True)
    found = []
    for value in (1, 2, 1):
        seed.fill_(value)
        found.append(captured("video", frames, seed=seed).detach().clone())
        torch.testing.assert_close(found[-1], model.features("video", frames, seed=value))
    assert not torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert counter.frame_count == 1


def test_element_wise_dropout_by_a_seed_keeps_its_share_and_draws_anew_for_every_use_and_seed() -> None:
    """Agreement of two draws, and of neighbours, within five standard deviations of what chance gives."""
    shape, p = (3, 101, 1024), 0.3
    draws = [kept(shape, torch.tensor(seed), use, p) for seed in (1, 2, 2**31 - 2) for use in (0, 1)]
    assert torch.equal(draws[0], kept(shape, torch.tensor(1), 0, p))
    places = draws[0].numel()
    agreeing = p * p + (1 - p) ** 2
    for i, one in enumerate(draws):
        assert abs(float(one.double().mean()) - (1 - p)) < 5 * (p * (1 - p) / places) ** 0.5
        pairs = [(one, other) for other in draws[:i]] + [(one[..., d:], one[..., :-d]) for d in (1, 2, 16, 512)]
        for a, b in pairs:
            shares = float((a == b).double().mean())
            assert abs(shares - agreeing) < 5 * (agreeing * (1 - agreeing) / a.numel()) ** 0.5
    x = torch.ones(2, 5, 8, requires_grad=True)
    out = Dropout(p)(x, torch.tensor(7), 1)
    out.sum().backward()
    assert torch.equal(out, x.grad)
    assert set(out.detach().unique().tolist()) == {0.0, torch.tensor(1 / (1 - p)).item()}
    assert torch.equal(Dropout(p).eval()(x, torch.tensor(7)), x)


@pytest.mark.parametrize("autocast", [False, True])
def test_a_dense_layer_that_sums_the_gradient_of_its_bias_apart_computes_the_same(autocast: bool) -> None:
    torch.manual_seed(0)
    layer, x = Dense(8, 12), torch.randn(3, 5, 8, requires_grad=True)
    found = []
    for layer.apart in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = layer(x)
        out.float().square().mean().backward()
        found.append([out, x.grad, *(p.grad for p in layer.parameters())])
        x.grad = None
        layer.zero_grad()
    for one, other in zip(*found, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(other, one, rtol=1e-2 if autocast else 1e-5, atol=1e-4 if autocast else 1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_replays_of_a_cuda_graph_drop_anew() -> None:
    q, seed = (
        torch.randn(2, 80, 3, 2, 64, device="cuda", dtype=torch.bfloat16),
        torch.zeros((), dtype=torch.int64).cuda(),
    )

    def step() -> tuple[Tensor, Tensor]:
        ops = choose(True, "cuda")
        keep = ops.sample_keep(40, 20, seed=seed, device="cuda")
        return ops.attention(
            q, key_mask=None, bias_table=None, max_distance=64, scale=None, dropout_p=0.3, seed=seed
        ), keep

    step()  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    found = []
    for value in (1, 2, 1):
        seed.fill_(value)
        graph.replay()
        found.append([x.clone() for x in captured])
        for one, other in zip(found[-1], step(), strict=True):
            assert torch.equal(one, other)
    assert not any(torch.equal(a, b) for a, b in zip(found[0], found[1], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(found[0], found[2], strict=True))


def test_a_compiled_run_is_resumed_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the graphs of a compiler that is quick; what TorchInductor draws is the next test's."""
    monkeypatch.setattr(Layer, "compile", partialmethod(Layer.compile, backend="aot_eager"))
    small = ("--fused", "--compile", "--preset=tiny_ma", "--set=save_every=1")
    assert small_run.run(*small, "--steps=2", "--out", tmp_path / "whole") == 0
    assert small_run.run(*small, "--steps=1", "--out", tmp_path / "parts") == 0
    torch._dynamo.reset()
    assert small_run.run("--resume", "--steps=2", "--out", tmp_path / "parts") == 0
    assert small_run.same_run(tmp_path / "whole", tmp_path / "parts")


def test_the_compiler_of_a_cpu_computes_and_draws_the_same_for_the_same_seed() -> None:
    """As layers that are not compiled do, and when a resumed run compiles anew, and begins in the middle."""
    require_compiler()
    literal, found = encoder(0.3, layers=1), []
    literal.layers[0].compiled = True  # drops what a compiled one drops
    for seeds in ((1, 2), (2,)):
        torch._dynamo.reset()
        model = encoder(0.3, layers=1)
        parallelize(model, (model,), SINGLE_PROCESS, "ddp", recompute=False, compiled=True)
        found.append([step(model, 17, seed) for seed in seeds][-1])
    for one, other, eager in zip(*found, step(literal, 17, 2), strict=True):
        assert torch.equal(one, other)
        torch.testing.assert_close(one, eager, rtol=1e-4, atol=1e-6)


def test_a_model_keeps_its_names() -> None:
    """Checkpoints of compiled runs are those of others."""
    model = encoder(0.0)
    names = list(model.state_dict())
    parallelize(model, (model,), SINGLE_PROCESS, "ddp", recompute=False, compiled=True)
    assert list(model.state_dict()) == names


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


def test_a_narrow_residual_stream_is_of_the_dtype_of_autocast_inside_alone() -> None:
    """Twice as far off as float32 sums at most: both round what they add."""
    x = torch.randn(2, 17, 16, generator=torch.Generator().manual_seed(2))
    exact = encoder(0.0, layers=3)(x)
    errors, seen = [], []
    for narrow in (False, True):
        model = encoder(0.0, layers=3)
        model.layers[0].register_forward_hook(lambda *call: seen.append(call[2].dtype))
        parallelize(model, (model,), SINGLE_PROCESS, "ddp", recompute=False, narrow=narrow)
        with torch.autocast("cpu", torch.bfloat16):
            out = model(x)
        assert out.dtype == torch.float32
        errors.append(float((out - exact).detach().norm() / exact.detach().norm()))
    assert seen == [torch.float32, torch.bfloat16]
    assert 0 < errors[0] < errors[1] < 4 * errors[0]


def test_a_narrow_residual_stream_needs_bfloat16(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for more, said in (
        ("--dtype=float32", "residual must be float32, as dtype is"),
        ("--device=cpu", "--dtype bfloat16"),
    ):
        assert small_run.run("--set=residual=bfloat16", more, "--out", tmp_path / "run") == 2
        assert said in capsys.readouterr().err
