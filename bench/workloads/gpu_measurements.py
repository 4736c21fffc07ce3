"""What gpu_report measures: rows of correctness, of kernels beside their rivals, and of training steps.

A row is plain JSON. Each function here is one unit of work and returns its rows; `device` "cpu" is the dry run.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from harness import timing

import torch
from accounting.flops import backbone_flops, vatt_flops
from torch import Tensor, nn
from vatt_kernels.catalog import SPECS
from vatt_kernels.spec.cases import Case
from vatt_kernels.spec.error_budget import Error, expect
from vatt_kernels.spec.inputs import Draw, Inputs
from vatt_kernels.spec.kernel_spec import KernelSpec

from vatt.config.model import DropConfig
from vatt.config.presets import preset
from vatt.config.pretraining import Config
from vatt.model.losses import pretraining_loss
from vatt.model.vatt import VATT, Backbone
from vatt.ops import REFERENCE, Ops, choose
from vatt.training.optimizers import Adam, clip_gradients

from .kernel_rivals import EagerOps, Unable, expect_fitting, first_words, providers

Row = dict[str, Any]
FLUSH_BYTES = 2**30  # many times an L2 cache; writing them also keeps a GPU busy while the host launches what is timed
SEED = 1
BY_NAME: dict[str, KernelSpec] = {spec.name: spec for spec in SPECS}
CASE_SECONDS = 10.0  # for all rounds of a case: fewer rounds, but at least 3, where a provider is slow
IMPLEMENTATIONS = ("fused", "eager", "reference")
VIDEO = ["sample_keep", "project_voxels", "attention"]
USED = {"video": VIDEO, "full": [*VIDEO, "project_waveform", "contrastive_loss"]}  # operations of a step


class Clock:
    """Seconds of one call: device events after a flush of the L2 cache on a GPU, the host's clock on a CPU."""

    def __init__(self, device: str) -> None:
        self.seconds = 0.0
        self.cuda = device != "cpu"
        if self.cuda:
            self.flushed = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device)
            self.begin, self.end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def time(self, job: Callable[[], object]) -> None:
        if not self.cuda:
            tick = time.perf_counter()
            job()
            self.seconds = time.perf_counter() - tick
            return
        torch.cuda.synchronize()
        self.flushed.zero_()
        self.begin.record()
        job()
        self.end.record()
        self.end.synchronize()
        self.seconds = self.begin.elapsed_time(self.end) / 1e3

    def peak(self, job: Callable[[], object]) -> int | None:
        """Bytes of device memory that a call takes beyond what was there; None on a CPU."""
        if not self.cuda:
            job()
            return None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        job()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def interleaved(self, jobs: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
        """Each job's seconds; a job calls `time` itself, so that what it prepares is not timed."""
        samples: dict[str, list[float]] = {name: [] for name in jobs}
        for name, seconds in timing.time_interleaved(jobs, rounds):
            if seconds is not None:
                samples[name].append(self.seconds)
        return samples


def dtype_of(name: str) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def ceilings(device: str) -> list[Row]:
    """What this device reaches: a large product (random numbers) in two dtypes, a large copy (read + written)."""
    clock, size = Clock(device), 8192 if device != "cpu" else 128
    rates = {}
    for name in ("bfloat16", "float32"):
        a, b = (torch.randn(size, size, device=device, dtype=dtype_of(name)) for _ in range(2))
        seconds = clock.interleaved({"": lambda a=a, b=b: clock.time(lambda: a @ b)}, 10)[""]  # type: ignore[misc]
        rates[name] = 2 * size**3 / (timing.quantiles(seconds)["p50"] or math.inf)
    x = torch.randint(-128, 128, (2**32 if device != "cpu" else 2**20,), dtype=torch.int8, device=device)
    y = torch.empty_like(x)
    seconds = clock.interleaved({"": lambda: clock.time(lambda: y.copy_(x))}, 10)[""]
    copy = 2 * x.numel() / (timing.quantiles(seconds)["p50"] or math.inf)
    return [{"kind": "ceilings", "matmul": rates, "copy": copy}]


# correctness


def worst_of(errors: list[Error]) -> Row:
    """Of several tensors, the one that is nearest to what is allowed, or furthest beyond it."""

    def ratio(error: Error) -> float:
        if not math.isfinite(error.error):
            return math.inf
        return error.error / error.allowed if error.allowed else math.inf * bool(error.error) if error.error else 0.0

    worst = max(errors, key=ratio)
    used = ratio(worst)
    return {
        "green": all(e.green for e in errors),
        "tensor": worst.tensor,
        "tensors": len(errors),
        "of_allowed": used if math.isfinite(used) else None,
        "relative_error": worst.error / worst.size if worst.size and math.isfinite(worst.error) else None,
        "red": "; ".join(str(e) for e in errors if not e.green),
    }


def correctness(operation: str, case: Case, dtype: str, device: str) -> list[Row]:
    """Output and every gradient of what `impl=None` selects on `device`, in memory that was poisoned."""
    spec = BY_NAME[operation]
    errors = expect(spec, case, dtype_of(dtype), device).errors(lambda inputs: spec.call(inputs, None))
    return [{"kind": "correctness", "operation": operation, "case": case.name, "dtype": dtype, **worst_of(errors)}]


# kernels


class Candidate(NamedTuple):
    """One provider at work on one case."""

    run: Callable[[Inputs], Tensor]
    inputs: Inputs
    clock: Clock

    def forward(self) -> None:
        self.clock.time(lambda: self.run(self.inputs))

    def graph(self) -> tuple[Tensor, Tensor]:
        """An output that can be differentiated, and an incoming gradient."""
        out = self.run(self.inputs)
        return out, Draw(out.dtype, out.device, SEED).normal(*out.shape)

    def backward(self) -> None:
        """Times the backward alone, of a graph made anew."""
        out, grad = self.graph()
        self.clock.time(lambda: torch.autograd.grad(out, list(self.inputs.leaves.values()), grad))

    def once(self) -> None:
        if not self.inputs.leaves:
            self.run(self.inputs)
            return
        out, grad = self.graph()
        torch.autograd.grad(out, list(self.inputs.leaves.values()), grad)


def kernels(operation: str, case: Case, dtype: str, device: str, rounds: int, compiled: bool) -> list[Row]:
    """All providers of one case side by side, forward and backward, whose numerics are within the budget.

    Ours and all that need not be compiled, or with `compiled` ours and those that do.
    """
    spec, clock = BY_NAME[operation], Clock(device)
    inputs = spec.make(case, dtype_of(dtype), device, SEED).differentiable()
    expected = expect_fitting(spec, case, dtype_of(dtype), device)
    cost = {
        "forward": (spec.flops(case).forward, spec.bytes(case, dtype_of(dtype)).forward),
        "backward": (spec.flops(case).backward, spec.bytes(case, dtype_of(dtype)).backward),
    }
    rows: dict[str, Row] = {}
    jobs: dict[str, Callable[[], object]] = {}
    round_seconds = 0.0
    for provider in providers(operation):
        name, own = provider.name, provider.name == "ours"
        if provider.compiles != compiled and not own:
            continue
        row = rows[name] = {
            "kind": "kernel",
            "operation": operation,
            "case": case.name,
            "dtype": dtype,
            "provider": name,
            "compiled": compiled,
            "green": True,
            "numerics_of": dict(expected.case.sizes),
        }
        try:
            # What compiles would compile once more for the mode that poisons memory.
            errors = worst_of(expected.errors(provider.prepare(spec, expected.inputs), poison=own))
            if not errors["green"]:
                # A rival's error is a fact about the rival; ours is a failure of this report.
                row |= {"red": errors["red"], "green": not own}
                continue
            candidate = Candidate(provider.prepare(spec, inputs), inputs, clock)
            row["peak_bytes"] = clock.peak(candidate.once)
            clock.time(candidate.once)
            round_seconds += 1.5 * clock.seconds  # a round has one more forward
        except Unable as error:
            row["unable"] = str(error)
            continue
        except Exception as error:  # whatever a provider raises: the others are still worth measuring
            row |= {"error" if own else "unable": f"{type(error).__name__}: {first_words(error)}", "green": not own}
            continue
        jobs[f"{name}/forward"] = candidate.forward
        if inputs.leaves:
            jobs[f"{name}/backward"] = candidate.backward
    del expected
    rounds = min(rounds, max(3, int(CASE_SECONDS / max(round_seconds, 1e-9))))
    for job, samples in clock.interleaved(jobs, rounds).items():
        name, direction = job.rsplit("/", 1)
        rows[name][direction] = {"seconds": samples, "flops": cost[direction][0], "bytes": cost[direction][1]}
    return list(rows.values())


# training


def step_flops(config: Config, part: str, batch: int) -> int:
    """Products of a whole step, where dropped tokens are not projected."""
    model = config.model
    if part == "full":
        return vatt_flops(model, drop=True, project_all=False, batch=batch, loss=True).step
    return batch * backbone_flops(model, "video", drop=True, project_all=False).step


def operations(name: str, device: str) -> Ops:
    return {"fused": choose(True, device), "reference": REFERENCE, "eager": EagerOps("reference", "eager")}[name]


def with_settings(name: str, dropout: float, drop: float, **sizes: Any) -> Config:
    config = preset(name)
    encoders = {
        f"{m}_encoder": replace(getattr(config.model, f"{m}_encoder"), dropout=dropout, **sizes)
        for m in ("video", "audio", "text")
    }
    return replace(config, model=replace(config.model, drop=DropConfig(rate=drop), **encoders))


class Trainer:
    """A model with weights of its own and a batch of noise; a call is a training step."""

    def __init__(self, config: Config, part: str, implementation: str, batch: int, device: str, *, low: bool):
        model, self.config, self.part = config.model, config, part
        self.ops, self.device, self.low = operations(implementation, device), device, low
        generator = torch.Generator(device).manual_seed(SEED)
        shape = (batch, model.video.frames, model.video.size, model.video.size, 3)
        self.frames = torch.randint(0, 256, shape, dtype=torch.uint8, device=device, generator=generator)
        torch.manual_seed(SEED)
        with torch.device(device):
            self.model: nn.Module = (
                VATT(model, self.ops) if part == "full" else Backbone(model, self.ops, ("video",))
            ).train()
        self.direction = torch.randn(batch, model.video_encoder.width, device=device, generator=generator)
        if part == "full":
            self.samples = 0.1 * torch.randn(batch, model.audio.samples, device=device, generator=generator)
            words = (batch, model.text.captions, model.text.words)
            self.words = torch.randint(1, model.text.vocabulary, words, device=device, generator=generator)
            self.valid = torch.ones(batch, device=device)
            self.optimizer = Adam(self.model.parameters(), config.optim)

    def __call__(self) -> Tensor:
        """Forward, backward and, of the full model, clipping and the update. Returns the pooled feature or the loss."""
        torch.manual_seed(SEED)  # element-wise dropout
        self.model.zero_grad(set_to_none=True)
        with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.low):
            if self.part == "video":
                out = self.model.features("video", self.frames, seed=SEED)[:, 0]  # type: ignore[operator]
            else:
                out = self.model(self.frames, self.samples, self.words, seed=SEED)
        if self.part == "video":
            out.backward(self.direction.to(out.dtype))
            result: Tensor = out.detach()
            return result
        loss = pretraining_loss(out, self.valid, self.valid, self.config.loss, self.ops).total
        loss.backward()
        clip_gradients(self.model.parameters(), self.config.optim.clip)
        self.optimizer.step()
        return loss.detach()


def model_error(name: str, drop: float, device: str) -> Row:
    """Two layers of the fused video backbone: how far pooled features and all gradients are from the literal model.

    That one in float32 without autocast is what is compared with; fused may be twice as far off as the literal one
    under autocast, and a rounding. Dropout is that of the release: both drop the same.
    """
    config = with_settings(name, 0.1, drop, layers=2)
    results = []
    for implementation, low in (("reference", False), ("reference", True), ("fused", True)):
        trainer = Trainer(config, "video", implementation, 2, device, low=low)
        pooled = trainer().flatten()
        gradients = [p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]
        results.append((pooled.double(), torch.cat(gradients).double()))
    eps = torch.finfo(torch.bfloat16).eps
    errors = [
        Error(
            tensor,
            float((fused - exact).norm()),
            float(2 * (literal - exact).norm() + eps * exact.norm()),
            float(exact.norm()),
        )
        for tensor, exact, literal, fused in zip(("pooled feature", "all gradients"), *results, strict=True)
    ]
    return {
        "kind": "correctness",
        "operation": f"{name} video backbone, 2 layers",
        "case": f"{drop:.0%} dropped",
        "dtype": "autocast",
        **worst_of(errors),
    }


def training(name: str, part: str, dropout: float, drop: float, batch: int, device: str, rounds: int) -> list[Row]:
    """Training steps of one preset at one drop rate, all implementations side by side."""
    check, low = model_error(name, drop, device), device != "cpu"
    clock = Clock(device)
    config = with_settings(name, dropout, drop, **({} if device != "cpu" else {"layers": 1}))
    rows: dict[str, Row] = {}
    jobs: dict[str, Callable[[], object]] = {}
    for implementation in IMPLEMENTATIONS:
        row: Row = {
            "kind": "training",
            "preset": name,
            "part": part,
            "dropout": dropout,
            "drop_rate": drop,
            "batch": batch,
            "implementation": implementation,
            "dtype": "bfloat16" if low else "float32",
            "operations": USED[part],
            "green": True,
            "flops": step_flops(config, part, batch),
        }
        rows[implementation] = row
        if implementation == "fused" and not check["green"]:
            row |= {"green": False, "red": check["red"]}
            continue
        try:
            trainer = Trainer(config, part, implementation, batch, device, low=low)
            trainer()
            row["peak_bytes"] = clock.peak(trainer)
        except Exception as error:  # one implementation that fails, or does not fit, leaves the others
            fits = not isinstance(error, torch.OutOfMemoryError)
            kind = "error" if implementation == "fused" and fits else "unable"
            row |= {kind: f"{type(error).__name__}: {first_words(error)}", "green": kind == "unable"}
            continue
        jobs[implementation] = lambda trainer=trainer: clock.time(trainer)  # type: ignore[misc]
    for implementation, samples in clock.interleaved(jobs, rounds).items():
        rows[implementation]["seconds"] = samples
    return [check, *rows.values()]
