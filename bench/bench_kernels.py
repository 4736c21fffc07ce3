"""pytest-benchmark: every operation beside its rivals, made from the specs (`pytest --benchmark-only bench`).

On a CPU small cases in float32; with a GPU the shapes of VATT in bfloat16 and float16 (bench/gpu_report.py measures
these with device events instead, and saves a report). A call is forward and backward, and on a GPU waits for the
device. Whose numerics are red is not timed; who cannot compute a case is skipped with the reason.
"""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from vatt_kernels.catalog import SPECS
from vatt_kernels.contrastive.spec import nce
from vatt_kernels.droptoken.spec import gather, sample
from vatt_kernels.projection.spec import voxels, waveform
from vatt_kernels.self_attention.spec import attend
from vatt_kernels.spec.cases import Case
from vatt_kernels.spec.error_budget import results
from vatt_kernels.spec.kernel_spec import KernelSpec
from workloads.kernel_rivals import Provider, Unable, expect_fitting, first_words, providers

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
DTYPES = (torch.bfloat16, torch.float16) if CUDA else (torch.float32,)
CPU_CASES = {
    "project_voxels": [
        voxels(
            "2 clips of 16x112x112, 50% dropped",
            frames=16,
            rows=112,
            columns=112,
            patch=(4, 16, 16),
            width=256,
            kept=98,
        )
    ],
    "project_waveform": [
        waveform("8 clips of 300 patches, 50% dropped", batch=8, samples=38_400, patch=128, width=256, kept=150)
    ],
    "sample_keep": [sample(1568, 784, batch=8)],
    "gather_tokens": [gather("8 clips of 392 tokens, 50% dropped", batch=8, tokens=392, kept=196, width=256)],
    "attention": [
        attend("197 tokens", heads=4, width=64, tokens=197),
        attend("197 tokens, dropout", heads=4, width=64, tokens=197, dropout=0.1),
        attend("text, T5 bias and key mask", batch=16, heads=4, width=64, mask="some", buckets=32, scale=1.0),
        attend("packed", heads=4, width=64, lengths=[197, 151, 17, 17]),
    ],
    "contrastive_loss": [nce("MIL-NCE, 256 clips", batch=256, width=128)],
}
JOBS = [
    pytest.param(spec, case, dtype, provider, id=f"{spec.name}-{case.name}-{str(dtype)[6:]}-{provider.name}")
    for spec in SPECS
    for case in (spec.shapes() if CUDA else CPU_CASES[spec.name])
    for dtype in (DTYPES[:1] if spec.name == "sample_keep" else DTYPES)
    for provider in providers(spec.name)
]


@pytest.mark.parametrize(("spec", "case", "dtype", "provider"), JOBS)
def test_kernel(
    benchmark: BenchmarkFixture, spec: KernelSpec, case: Case, dtype: torch.dtype, provider: Provider
) -> None:
    expected = expect_fitting(spec, case, dtype, DEVICE)
    inputs = spec.make(case, dtype, DEVICE, 0)
    try:
        checked, run = (provider.prepare(spec, x) for x in (expected.inputs, inputs))
        red = [str(error) for error in expected.errors(checked, poison=False) if not error.green]
    except (Unable, NotImplementedError, torch.OutOfMemoryError) as error:
        pytest.skip(f"{provider.name}: {error}")
    except RuntimeError as error:
        if provider.name == "ours":
            raise
        pytest.skip(f"{provider.name}: {first_words(error)}")
    assert not red, f"{provider.name} is wrong, nothing is timed: {'; '.join(red)}"

    with torch.no_grad():
        grad = torch.ones_like(run(inputs))

    def job() -> None:
        results(run, inputs, grad)
        if CUDA:
            torch.cuda.synchronize()

    benchmark.group = f"{spec.name}, {case.name}, {str(dtype)[6:]}"
    benchmark.pedantic(job, rounds=20 if CUDA else 5, warmup_rounds=2)
    if benchmark.stats is None:  # --benchmark-disable
        return
    seconds = benchmark.stats.stats.median
    flops, moved = spec.flops(case), spec.bytes(case, dtype)
    benchmark.extra_info |= {
        "TFLOP/s": sum(flops) / seconds / 1e12,
        "GB/s": sum(moved) / seconds / 1e9,
        "numerics": "green",
    }
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        job()
        benchmark.extra_info["peak_bytes"] = torch.cuda.max_memory_allocated() - before
