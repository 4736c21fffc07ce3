"""pytest-benchmark: operations and a tiny training step, reference beside fused; the video model beside VideoMAE.

Groups hold rivals of one job. Every benchmark first shows that what it times agrees with the literal operation in
float64 as well as the literal one does in float32; a red one is not timed. Sizes suit a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
import vatt_kernels
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor
from workloads import model_steps, videomae_step

from vatt.config.presets import preset
from vatt.data.datasets.batch import Batch
from vatt.model.losses import pretraining_loss
from vatt.model.vatt import VATT
from vatt.ops import choose
from vatt.training.optimizers import Adam
from vatt.training.pretraining_step import train_step

OPS = {"reference": choose(False, "cpu"), "portable": choose(True, "cpu")}
Job = Callable[[str, torch.dtype, int], list[Tensor]]  # implementation, dtype, which problem -> outputs and gradients


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def run_with_gradients(operation: Callable[..., Tensor], leaves: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Return the operation's output and the gradients of all leaves, for a fixed incoming gradient."""
    leaves = [leaf.detach().to(dtype, copy=True).requires_grad_() for leaf in leaves]
    out = operation(*leaves)
    out.backward(noise(*out.shape, seed=99).to(dtype))
    return [out.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def distances(job: Job, impl: str, problem: int) -> tuple[list[Tensor], list[Tensor]]:
    """Return the distance of each tensor in float32 from float64, and the float64 norms."""
    exact = job("reference", torch.float64, problem)
    return [(x - y).norm() for x, y in zip(job(impl, torch.float32, problem), exact, strict=True)], [
        x.norm() for x in exact
    ]


def agree(job: Job, impl: str, problems: int = 1) -> None:
    """Fail when a tensor of `impl` is more than twice as far from float64 as the literal float32 one.

    Of a whole step that distance is some hundred roundings, of which the worst few decide: on one problem it may be
    small by luck in one of a hundred tensors. With `problems`, the literal one is that of the worst of so many.
    """
    literal = [distances(job, "reference", problem)[0] for problem in range(problems)]
    this, sizes = distances(job, impl, 0)
    for position, (distance, size) in enumerate(zip(this, sizes, strict=True)):
        allowed = 2 * max(torch.finfo(torch.float32).eps * size, *(of_one[position] for of_one in literal))
        assert distance <= allowed, f"{impl}: tensor {position} is wrong, nothing is timed"


def measure(benchmark: BenchmarkFixture, job: Job, impl: str, rounds: int) -> None:
    agree(job, impl)
    benchmark.pedantic(job, args=(impl, torch.float32, 0), rounds=rounds, warmup_rounds=1)


@pytest.mark.parametrize("impl", OPS)
@pytest.mark.benchmark(group="voxel projection, 2 clips of 16x112x112, half dropped, forward + backward")
def test_projection(benchmark: BenchmarkFixture, impl: str) -> None:
    frames = torch.randint(0, 256, (2, 16, 112, 112, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    weight, bias, position = noise(3072, 256, seed=2) / 55, noise(256, seed=3), noise(196, 256, seed=4)
    keep = vatt_kernels.sample_keep(196, 98, seed=5)

    def job(impl: str, dtype: torch.dtype, problem: int) -> list[Tensor]:
        def operation(weight: Tensor, bias: Tensor, position: Tensor) -> Tensor:
            return vatt_kernels.project_voxels(frames, weight, bias, keep=keep, position=position, impl=impl)

        return run_with_gradients(operation, [weight, bias, position], dtype)

    measure(benchmark, job, impl, rounds=20)


@pytest.mark.parametrize("impl", OPS)
@pytest.mark.benchmark(group="attention, 393 tokens, 12 heads of 64, forward + backward")
def test_attention(benchmark: BenchmarkFixture, impl: str) -> None:
    q, k, v = (noise(1, 393, 12, 64, seed=seed) for seed in (1, 2, 3))

    def job(impl: str, dtype: torch.dtype, problem: int) -> list[Tensor]:
        return run_with_gradients(lambda q, k, v: vatt_kernels.attention(q, k, v, impl=impl), [q, k, v], dtype)

    measure(benchmark, job, impl, rounds=10)


@pytest.mark.parametrize("impl", OPS)
@pytest.mark.benchmark(group="MIL-NCE, 512 clips of 5 captions, width 256, forward + backward")
def test_loss(benchmark: BenchmarkFixture, impl: str) -> None:
    video, text = noise(512, 256, seed=1), noise(512, 5, 256, seed=2)

    def job(impl: str, dtype: torch.dtype, problem: int) -> list[Tensor]:
        def operation(video: Tensor, text: Tensor) -> Tensor:
            return vatt_kernels.contrastive_loss(video, text, temperature=0.07, impl=impl)

        return run_with_gradients(operation, [video, text], dtype)

    measure(benchmark, job, impl, rounds=10)


@pytest.mark.parametrize("impl", OPS)
@pytest.mark.benchmark(group="training step of the tiny preset, 16 clips, half dropped")
def test_tiny_training_step(benchmark: BenchmarkFixture, impl: str) -> None:
    config = preset("tiny")
    model, clips = config.model, 16
    draw = torch.Generator().manual_seed(1)
    batch = Batch(
        video=torch.randint(0, 256, (clips, model.video.frames, 64, 64, 3), dtype=torch.uint8, generator=draw),
        audio=0.1 * torch.randn(clips, model.audio.samples, generator=draw),
        text=torch.randint(1, model.text.vocabulary, (clips, 5, model.text.words), generator=draw),
        video_mask=torch.ones(clips),
        audio_mask=torch.ones(clips),
        text_mask=torch.ones(clips),
        label=torch.full((clips,), -1),
        labels=torch.zeros(clips, 0),
        clips=list(range(clips)),
        tried=list(range(clips)),
        bad=[],
        seconds=0.0,
        decode_seconds=0.0,
    )

    def build(impl: str) -> VATT:
        torch.manual_seed(2)
        return VATT(model, OPS[impl]).train()

    def job(impl: str, dtype: torch.dtype, problem: int) -> list[Tensor]:
        """Return problems; all but the first have weights moved by one rounding each."""
        trained, move = build(impl), torch.Generator().manual_seed(problem)
        with torch.no_grad():
            for weight in trained.parameters() if problem else ():
                weight.mul_(1 + torch.finfo(torch.float32).eps * torch.randint(-1, 2, weight.shape, generator=move))
        trained.to(dtype)
        embeddings = trained(batch.video, batch.audio.to(dtype), batch.text, seed=3)
        losses = pretraining_loss(embeddings, batch.audio_mask, batch.text_mask, config.loss, OPS[impl])
        losses.total.backward()
        return [losses.total.detach(), *(p.grad for p in trained.parameters() if p.grad is not None)]

    agree(job, impl, problems=4)
    trained = build(impl)
    optimizer = Adam(trained.parameters(), config.optim)
    benchmark.pedantic(
        train_step, args=(trained, optimizer, batch, config, 0, nullcontext(), OPS[impl]), rounds=10, warmup_rounds=1
    )


@pytest.mark.parametrize("model", videomae_step.MODELS)
@pytest.mark.parametrize("mode", videomae_step.MODES)
@pytest.mark.parametrize("rate", [0.0, 0.5])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.benchmark(group="Base video model, 1568 patches, batch 1, beside VideoMAE-Base")
def test_video_model(benchmark: BenchmarkFixture, dtype: str, rate: float, mode: str, model: str) -> None:
    """One round in turn shows the order of magnitude; bench/videomae.py alternates and repeats."""
    pytest.importorskip("transformers", reason="the rival needs transformers: pip install transformers")
    if dtype == "bfloat16" and not videomae_step.fast_bfloat16():
        pytest.skip("this CPU has no bfloat16 instructions: a step would take minutes")
    layers, size = (12, 224) if benchmark.enabled else (1, 64)
    row = {"model": model, "dtype": dtype, "drop_rate": rate, "mode": mode}
    if model == "vatt":
        case = model_steps.StepCase(videomae_step.video_model(layers, size, rate), True, dtype=dtype)
        assert model_steps.numerics(case)["green"], "the numerics are red, nothing is timed"
    benchmark.pedantic(videomae_step.make(row, layers, size), rounds=1, warmup_rounds=1)
