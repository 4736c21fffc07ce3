"""Inference and training steps of a video model or a whole VATT: numerics, peak memory and interleaved times.

A `StepCase` is one thing to measure. `measure` fills the rows of a report, one a case, and saves after each.

Inference: forward in eval mode, all tokens unless the case says `drop_in_eval`. Training: forward and backward with
DropToken, of a whole model with the loss; the optimiser's update, which no token makes dearer, is not in it.
Inputs are noise and lie on the device; nothing is decoded or copied to it.
"""

from __future__ import annotations

import argparse
import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness import memory as harness_memory
from harness import timing
from harness.pages import number, table
from harness.report import Report

import torch
from accounting.flops import backbone_flops, vatt_flops
from torch import Tensor

from vatt.config.model import DropConfig, EncoderConfig, ModelConfig, kept_tokens
from vatt.config.pretraining import LossConfig
from vatt.config.run import DROPOUT_VERSION
from vatt.model.heads import Embeddings
from vatt.model.losses import pretraining_loss
from vatt.model.vatt import VATT, Backbone
from vatt.ops import Ops, choose
from vatt.runtime.device import autocast_for, compute_dtype, pick_device
from vatt.runtime.files import write_atomically
from vatt.runtime.progress import progress_bar

GATE_LAYERS = 2  # deep enough for rounding to pass through attention twice, shallow enough for float64
GATE_FACTOR = 2.0  # what is timed may be this much further from float64 than the literal model in the same dtype
SEED = 4


@dataclass(frozen=True)
class StepCase:
    """What is measured: `model` (sizes, input, drop rate, dropout) and what is done with it.

    whole: all three modalities, common space and loss (a VATT); otherwise the video backbone alone.
    training: forward and backward with DropToken. drop_in_eval: DropToken in inference too, as no evaluation does.
    batch: clips; a whole model in training needs two, batch norm has no variance of one.
    dropout_version: of attention, see `RunConfig.dropout`.
    fused: fused operations, else the literal ones. dtype: "float32", or "bfloat16" under autocast.
    """

    model: ModelConfig
    training: bool
    whole: bool = False
    drop_in_eval: bool = False
    batch: int = 1
    fused: bool = True
    device: str = "cpu"
    dtype: str = "float32"
    dropout_version: int = DROPOUT_VERSION

    def __post_init__(self) -> None:
        if self.whole and self.training and self.batch < 2:
            raise ValueError("a training step of a whole model needs a batch of at least 2: batch norm is in its head")

    @property
    def drops(self) -> bool:
        return (self.training or self.drop_in_eval) and self.model.drop.rate > 0

    @property
    def tokens(self) -> dict[str, int]:
        """Tokens that enter each encoder, AGG among them; of text, those of one caption."""
        model, drop = self.model, self.model.drop if self.drops else DropConfig(0.0)
        counts = {"video": kept_tokens(model.video.tokens, drop.rate, drop.align) + 1}
        if self.whole:
            audio = kept_tokens(model.audio.tokens, drop.rate, drop.align) + 1
            counts |= {"audio": audio, "text": model.text.words + 1}
        return counts

    @property
    def flops(self) -> int:
        """True FLOPs of a step, the whole batch, as the case's operations run them."""
        return self._count(project_all=not self.fused)

    @property
    def ideal_flops(self) -> int:
        """True FLOPs of a step in which a dropped token costs nothing at all."""
        return self._count(project_all=False)

    def _count(self, *, project_all: bool) -> int:
        if self.whole:
            count = vatt_flops(
                self.model, drop=self.drops, project_all=project_all, batch=self.batch, loss=self.training
            )
        else:
            count = self.batch * backbone_flops(self.model, "video", drop=self.drops, project_all=project_all)
        return count.step if self.training else count.forward


def build(case: StepCase, shared: Mapping[str, Tensor] | None = None) -> VATT | Backbone:
    """The model of `case`, in its mode; parameters that `shared` has in the same shape are taken from there, uncopied.

    A dropped inference is eval mode with tokenisers that alone believe to be training: they draw, dropout stays off.
    """
    ops = replace(choose(case.fused, case.device), dropout_version=case.dropout_version)
    torch.manual_seed(1)
    with torch.device(case.device):
        model = VATT(case.model, ops) if case.whole else Backbone(case.model, ops, ("video",))
    own = model.state_dict()
    fitting = {name: t for name, t in (shared or {}).items() if name in own and own[name].shape == t.shape}
    model.load_state_dict(fitting, strict=False, assign=True)
    model.train(case.training)
    if case.drop_in_eval:
        for tokens in backbone_of(model).tokens.values():
            tokens.training = True  # this module alone, not the dropout in it
    return model


def backbone_of(model: VATT | Backbone) -> Backbone:
    return model.backbone if isinstance(model, VATT) else model


def noise(case: StepCase, seed: int, *shape: int) -> Tensor:
    """Normal numbers [batch, *shape], the same for every device."""
    return torch.randn(case.batch, *shape, generator=torch.Generator().manual_seed(seed)).to(case.device)


def inputs(case: StepCase) -> dict[str, Tensor]:
    """Video [B,T,H,W,3] uint8; of whole models also audio [B,S] float32 and text [B,captions,L] without padding."""
    generator, video, text = torch.Generator().manual_seed(2), case.model.video, case.model.text
    clip = (case.batch, video.frames, video.size, video.size, 3)
    made = {"video": torch.randint(0, 256, clip, dtype=torch.uint8, generator=generator)}
    if case.whole:
        made["audio"] = 0.1 * torch.randn(case.batch, case.model.audio.samples, generator=generator)
        made["text"] = torch.randint(1, text.vocabulary, (case.batch, text.captions, text.words), generator=generator)
    return {name: x.to(case.device) for name, x in made.items()}


def make_step(case: StepCase, shared: Mapping[str, Tensor] | None = None) -> Callable[[], object]:
    """A function that runs one step of `case` and returns when the device has finished it."""
    return _step_of(build(case, shared), case)


def _step_of(model: VATT | Backbone, case: StepCase) -> Callable[[], object]:
    device, given = torch.device(case.device), inputs(case)
    direction = noise(case, 3, backbone_of(model).width("video"))
    ops = choose(case.fused, device)

    def forward() -> Any:
        with autocast_for(device, getattr(torch, case.dtype)):
            if isinstance(model, VATT):
                return model(**given, seed=SEED)
            return model.features("video", given["video"], seed=SEED)[:, 0]

    def inference() -> None:
        with torch.inference_mode():
            forward()
        wait(device)

    def training() -> None:
        model.zero_grad(set_to_none=True)
        out = forward()
        if isinstance(out, Embeddings):
            contrast(out, ops).backward()
        else:
            out.backward(direction.to(out.dtype))
        wait(device)

    return training if case.training else inference


def contrast(embeddings: Embeddings, ops: Ops) -> Tensor:
    """The release's loss of a batch in which every clip has sound and captions."""
    present = torch.ones(embeddings.audio.shape[0], device=embeddings.audio.device)
    return pretraining_loss(embeddings, present, present, LossConfig(), ops).total


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# numerics


def numerics(case: StepCase) -> dict[str, Any]:
    """Features and every gradient of all modalities (and of the loss) against the literal model in float64.

    Error of a tensor: |x - exact| / |exact|, Frobenius norms. Green where no tensor is more than GATE_FACTOR times as
    wrong as in the literal model in the case's dtype (or than that dtype's own spacing, where that model is exact by
    luck). At most GATE_LAYERS layers, and no dropout, whose masks are not the same in two dtypes.
    """
    model = _shallow(case.model)
    case = replace(case, model=model, training=True, drop_in_eval=False)
    exact = _tensors(replace(case, fused=False, dtype="float32"), exact=True)
    literal, this = _tensors(replace(case, fused=False)), _tensors(case)
    spacing = torch.finfo(getattr(torch, case.dtype)).eps
    worst, ratio = {"tensor": "", "literal": 0.0, "this": 0.0}, -1.0
    for name, value in exact.items():
        errors = [((x[name].double() - value).norm() / value.norm()).item() for x in (literal, this)]
        now = errors[1] / max(errors[0], spacing)
        if now > ratio or not math.isfinite(now):
            worst, ratio = {"tensor": name, "literal": errors[0], "this": errors[1]}, now
        if not math.isfinite(now):
            break
    green = exact.keys() == literal.keys() == this.keys() and ratio <= GATE_FACTOR
    video = model.video
    return {
        "clip": f"{video.frames}x{video.size}x{video.size}",
        "drop_rate": model.drop.rate,
        "whole": case.whole,
        "tensors": len(exact),
        **worst,
        "ratio": ratio,
        "green": green,
    }


def _shallow(model: ModelConfig) -> ModelConfig:
    def cut(encoder: EncoderConfig) -> EncoderConfig:
        return replace(encoder, layers=min(encoder.layers, GATE_LAYERS), dropout=0.0)

    return replace(
        model,
        video_encoder=cut(model.video_encoder),
        audio_encoder=cut(model.audio_encoder),
        text_encoder=cut(model.text_encoder),
        shared_encoder=cut(model.shared_encoder),
    )


def _tensors(case: StepCase, *, exact: bool = False) -> dict[str, Tensor]:
    """Features of every modality, the loss of noise embeddings, and all gradients; in float64 where `exact`."""
    device, ops, wide = torch.device(case.device), choose(case.fused, case.device), torch.float64
    backbone = backbone_of(build(case)).to(wide if exact else torch.float32)
    tensors: dict[str, Tensor] = {}
    for index, (modality, x) in enumerate(inputs(case).items()):
        x = x.flatten(0, 1) if modality == "text" else x
        with autocast_for(device, getattr(torch, case.dtype)):
            features = backbone.features(modality, x, seed=SEED)
        direction = noise(case, 10 + index, backbone.width(modality)).to(features.dtype)
        features[:, 0].backward(direction.repeat_interleave(len(x) // case.batch, dim=0))
        tensors[f"{modality} features"] = features.detach()
    tensors |= {name: p.grad for name, p in backbone.named_parameters() if p.grad is not None}
    if case.whole:
        head, captions = case.model.head, case.model.text.captions
        shapes = ((head.video_audio,), (head.video_text,), (head.video_audio,), (captions, head.video_text))
        leaves = [noise(case, 20 + i, *shape) for i, shape in enumerate(shapes)]
        leaves = [leaf.to(wide if exact else torch.float32).requires_grad_() for leaf in leaves]
        contrast(Embeddings(*leaves), ops).backward()
        tensors |= {
            f"{name} of the loss": leaf.grad
            for name, leaf in zip(Embeddings._fields, leaves, strict=True)
            if leaf.grad is not None
        }
    return tensors


# memory and time


def peak_memory(case: StepCase) -> dict[str, int]:
    """`harness.peak_memory` of one step; on CUDA the same two figures from PyTorch's allocator, of a second step."""
    if torch.device(case.device).type != "cuda":
        return harness_memory.peak_memory(_lone_step, case, torch.get_num_threads())
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(case.device)
    step = make_step(case)
    ready = torch.cuda.memory_allocated(case.device)
    step()  # libraries allocate workspaces once
    torch.cuda.reset_peak_memory_stats(case.device)
    step()
    peak = torch.cuda.max_memory_allocated(case.device)
    return {"peak_bytes": peak - before, "step_bytes": peak - ready}


def _lone_step(case: StepCase, threads: int) -> Callable[[], object]:
    torch.set_num_threads(threads)
    return make_step(case)


def measure(
    report: Report,
    path: Path,
    cases: Sequence[StepCase],
    *,
    repeats: int,
    checks: Sequence[StepCase],
    derive: Callable[[Report], None],
) -> bool:
    """Numerics of `checks`, then memory, then times of `cases`, to which the first rows of the report belong, in order.

    Such a row begins with "seconds": [] and whatever tells it apart; it gets "gflops" (true, of a step), "peak_bytes",
    "step_bytes", the seconds, their "p20", "p50", "p80" and "clips_per_second" (the same three). `derive` adds ratios
    to the rows before each save. What the rows hold already is not measured again. Returns whether the numerics are
    green; red ones end it.
    """
    rows = report.rows[: len(cases)]
    warmup = 1 if torch.device(cases[0].device).type == "cpu" else 3
    work = [case.flops / 1e9 for case in cases]
    for row, gflops in zip(rows, work, strict=True):
        row["gflops"] = gflops
    missing = [repeats - min(len(row["seconds"]), repeats) for row in rows]
    total = sum(gflops * (1 + repeats) for gflops in work)
    ahead = sum(
        gflops * (left + warmup * (left > 0) + ("peak_bytes" not in row))
        for gflops, left, row in zip(work, missing, rows, strict=True)
    )
    total = max(total, ahead)
    bar = progress_bar(round(total), report.name, "GFLOP", round(total - ahead))  # steps differ: time left goes by work

    def record(gflops: float) -> None:
        for row, case in zip(rows, cases, strict=True):
            row.update(timing.quantiles(row["seconds"]))
            row["clips_per_second"] = timing.quantiles([case.batch / seconds for seconds in row["seconds"]])
        derive(report)
        report.save(path)
        bar.update(round(gflops))

    with bar:
        bar.set_postfix_str("numerics")
        for check in checks[len(report.gate["checks"]) :]:
            report.gate["checks"].append(numerics(check))
            record(0)
        report.gate["green"] = all(check["green"] for check in report.gate["checks"])
        if not report.gate["green"]:
            report.save(path)
            return False
        bar.set_postfix_str("memory")
        for row, case, gflops in zip(rows, cases, work, strict=True):
            if "peak_bytes" not in row:
                row.update(peak_memory(case))
                record(gflops)
        bar.set_postfix_str("time")
        steps: dict[str, Callable[[], object]] = {}
        shared: dict[str, Tensor] = {}
        for index, case in enumerate(cases):
            if missing[index]:
                model = build(case, shared)
                shared = shared or model.state_dict(keep_vars=True)
                steps[str(index)] = _step_of(model, case)
        counts = {name: len(rows[int(name)]["seconds"]) for name in steps}
        for name, seconds in timing.time_interleaved(steps, repeats, warmup=warmup, done=counts):
            if seconds is None:
                bar.update(round(work[int(name)]))
            else:
                rows[int(name)]["seconds"].append(seconds)
                record(work[int(name)])
    report.finished = True
    record(0)
    return True


# flags and texts


def add_step_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--batch", type=int, metavar="N", help="clips a step")
    add("--repeats", type=int, metavar="N", help="timed rounds (default 5 on a CPU, 20 on a GPU; with --quick 2)")
    add("--device", default="auto", metavar="NAME", help="cpu, cuda, cuda:1, ... (default auto: a GPU if there is one)")
    add(
        "--dtype",
        default="auto",
        choices=("auto", "float32", "bfloat16"),
        help="compute type (default auto: bfloat16 on GPUs, float32 on CPUs)",
    )
    add("--reference", action="store_true", help="measure the literal operations instead of the fused ones")


def resolve_step_flags(args: argparse.Namespace, *, batch_on_gpu: int, batch_on_cpu: int = 1) -> torch.device:
    """Fills in what depends on the device and returns it. Raises `ConfigError` for one that is not there."""
    device = pick_device(args.device)
    on_cpu = device.type == "cpu"
    args.device = str(device)
    args.dtype = str(compute_dtype(args.dtype, device)).removeprefix("torch.")
    args.batch = args.batch or (batch_on_cpu if on_cpu else batch_on_gpu)
    args.repeats = args.repeats or (2 if args.quick else 5 if on_cpu else 20)
    return device


def method(args: argparse.Namespace) -> dict[str, str]:
    """How it was measured, for `harness.open_report`."""
    on_cpu = torch.device(args.device).type == "cpu"
    return {
        "operations": choose(not args.reference, args.device).reason.removeprefix("operations: "),
        "inference": "forward in eval mode; training: forward and backward with DropToken, without the optimiser",
        "timing": f"all rows alternate within one process, every second round backwards; {1 if on_cpu else 3} warm-up "
        f"steps each, {args.repeats} rounds, time.perf_counter"
        f"{'' if on_cpu else ' around a step and torch.cuda.synchronize'}; p20, p50, p80 of the rounds",
        "memory": "one step in a fresh process: VmHWM less what the process held after its imports"
        if on_cpu
        else "torch.cuda.max_memory_allocated of the second step of a model alone on the device",
        "input": "noise that lies on the device: decoding and copying are not measured",
    }


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows as CSV, a column a key in the order of their first mention; an inner mapping becomes columns key.inner."""
    flat = [
        {
            f"{key}.{inner}" if inner else key: value
            for key, given in row.items()
            for inner, value in (given.items() if isinstance(given, Mapping) else [("", given)])
        }
        for row in rows
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in flat for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    write_atomically(path, text.getvalue().encode())


def checks_table(report: Report) -> str:
    """The gate of a report as a Markdown table with its explanation."""
    return (
        "Features and every gradient of the operations that were timed, against the literal model in float64, at most "
        f"{GATE_LAYERS} layers deep; the worst tensor of each row. Green: at most {GATE_FACTOR:g} times as far from "
        "float64 as the literal model in the same dtype.\n\n"
        + table(
            ["clip", "dropped", "tensors", "worst tensor", "literal error", "error", "ratio", "green"],
            [
                [
                    c["clip"],
                    f"{c['drop_rate']:.0%}",
                    str(c["tensors"]),
                    f"`{c['tensor']}`",
                    f"{c['literal']:.1e}",
                    f"{c['this']:.1e}",
                    number(c["ratio"]),
                    "yes" if c["green"] else "NO",
                ]
                for c in report.gate["checks"]
            ],
        )
    )
