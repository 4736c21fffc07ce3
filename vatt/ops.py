"""The one place that chooses between the literal and the fused operations, and can say why.

Without `--fused` the model runs `vatt_kernels` in its "reference" form: a few lines of plain PyTorch an operation.
With it, the device decides: CUDA runs the Triton kernels, any other device the "portable" form (drop before projecting,
SDPA, streamed loss), and a CPU with TRITON_INTERPRET=1 in its environment the Triton kernels in Triton's interpreter.
Modules hold an `Ops`; nothing is switched by global state.

Plain attention, without key mask and relative bias, is that of video, sound and the shared encoder. `attention` names
who computes it: "triton", PyTorch's "sdpa", "xformers", or "auto", which takes what ATTENTION_CHOICES has measured for
the GPU, else that of the other operations. What is chosen is part of `reason`.

What no fused operation ever stores (attention probabilities, relative bias and its buckets) exists in the literal form
only; it is passed on from here for whoever looks into a model.
"""

from __future__ import annotations

from argparse import ArgumentParser
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any, get_args

import torch
import vatt_kernels
from torch import Tensor
from vatt_kernels.device import has_triton, interpreting
from vatt_kernels.reference import DROPOUT, attention_probabilities, relative_bias, relative_buckets

from .config.model import ModelConfig
from .config.run import AttentionBy, RunConfig
from .errors import ConfigError

__all__ = [
    "REFERENCE",
    "Ops",
    "add_attention_flag",
    "attention_dropout",
    "attention_probabilities",
    "choose",
    "has_triton",
    "relative_bias",
    "relative_buckets",
]

OURS = "ours"
# By the name that PyTorch gives a GPU: "sdpa" or "xformers" where bench/gpu_report.py has measured plain attention
# without dropout, forward and backward at the shapes of the preset MBS, to be faster than our kernels. None is
# measured.
ATTENTION_CHOICES: dict[str, str] = {}


@dataclass(frozen=True)
class Ops:
    """The operations of one run.

    Args:
        impl: what runs.
        reason: the line that is printed at the start and kept in records.
        attention_by: who computes plain attention, "triton" all of it; OURS is `impl`.
        dropout_version, one_pass: attention's, see `vatt_kernels.attention`; `of_run` takes them from settings.
    """

    impl: str
    reason: str
    attention_by: str = OURS
    dropout_version: int = DROPOUT
    one_pass: bool = False

    @property
    def name(self) -> str:
        """What tells two results apart that may differ by rounding."""
        return self.impl if self.attention_by == OURS else f"{self.impl}, attention {self.attention_by}"

    def project_voxels(self, frames: Tensor, weight: Tensor, bias: Tensor, **options: Any) -> Tensor:
        return vatt_kernels.project_voxels(frames, weight, bias, impl=self.impl, **options)

    def project_waveform(self, samples: Tensor, weight: Tensor, bias: Tensor, **options: Any) -> Tensor:
        return vatt_kernels.project_waveform(samples, weight, bias, impl=self.impl, **options)

    def sample_keep(self, tokens: int, kept: int, **options: Any) -> Tensor:
        return vatt_kernels.sample_keep(tokens, kept, impl=self.impl, **options)

    def attention(self, qkv: Tensor, **options: Any) -> Tensor:
        plain = options.get("key_mask") is None and options.get("bias_table") is None
        named = self.attention_by == "triton" or (self.attention_by != OURS and plain)
        options |= {"dropout_version": self.dropout_version, "one_pass": self.one_pass}
        return vatt_kernels.attention(qkv, impl=self.attention_by if named else self.impl, **options)

    def contrastive_loss(self, video: Tensor, other: Tensor, **options: Any) -> Tensor:
        return vatt_kernels.contrastive_loss(video, other, impl=self.impl, **options)

    def of_run(self, config: RunConfig) -> Ops:
        """Return these operations as a run trains with them.

        Raises:
            ConfigError: what was asked for cannot run, or not as it must.
        """
        one_pass = config.attention_backward == "one_pass"
        if one_pass and "triton" not in (self.impl, self.attention_by):
            raise ConfigError(
                "attention_backward=one_pass: only the Triton kernels have it, and this run has none; leave it out, or "
                "train with --fused on a GPU"
            )
        if one_pass and torch.get_deterministic_debug_mode() == 2:  # as errors, not as warnings
            raise ConfigError(
                "attention_backward=one_pass does not repeat to the bit, and deterministic algorithms are asked for; "
                "leave one of them out"
            )
        reason = self.reason + ("; attention's backward in one pass, not repeatable to the bit" if one_pass else "")
        return replace(self, reason=reason, dropout_version=config.dropout, one_pass=one_pass)


REFERENCE = Ops("reference", "operations: reference (literal PyTorch; --fused selects the fast ones)")


def attention_dropout(model: ModelConfig) -> float:
    """The largest dropout of plain attention in training."""
    encoders = [model.shared_encoder] if model.kind == "agnostic" else [model.video_encoder, model.audio_encoder]
    return max(encoder.dropout for encoder in encoders)


def add_attention_flag(parser: ArgumentParser) -> None:
    """Add the flag of commands that use a finished model; training has the setting `attention`."""
    parser.add_argument(
        "--attention",
        choices=get_args(AttentionBy),
        help="who computes attention without mask and bias (default: as the model was trained, where that can run)",
    )


def choose(
    fused: bool,
    device: torch.device | str,
    attention: str = "auto",
    *,
    dropout: float = 0.0,
    recorded: str | None = None,
    asked: bool = True,
) -> Ops:
    """Operations for `device`.

    Args:
        fused: what the user asked for.
        attention: "auto", or who computes plain attention.
        dropout: of plain attention, 0 outside of training.
        recorded: what "auto" was when a resumed run began; None looks it up.
        asked: False where `attention` is that of a model's training, which `device` need not have.

    Raises:
        ConfigError: the operations of `device` cannot run here, or not `attention`; there is no silent fallback.
    """
    ops, device = _operations(fused, device), torch.device(device)
    by, why = attention, "as asked for"
    if attention == "auto":
        if ops.impl != "triton" or device.type != "cuda":
            return ops
        gpu = torch.cuda.get_device_name(device) if recorded is None and ATTENTION_CHOICES else ""
        by = recorded or ATTENTION_CHOICES.get(gpu, OURS)
        why = f"measured to be the fastest on {gpu}" if gpu else "as when the run began"
        if by == OURS:
            return ops
    obstacle = _obstacle(by, device, dropout)
    if obstacle and asked and attention != "auto":
        raise ConfigError(f"attention={attention}: {obstacle}; attention=auto takes what can run")
    if obstacle:
        return replace(ops, reason=f"{ops.reason}; attention with them, as {by} cannot: {obstacle}")
    return replace(ops, reason=f"{ops.reason}; plain attention by {by}, {why}", attention_by=by)


def _obstacle(by: str, device: torch.device, dropout: float) -> str:
    """Why `by` cannot compute plain attention on `device`, or nothing."""
    if by == "triton":
        if not has_triton():
            return "the package triton is not installed"
        if device.type != "cuda" and not (device.type == "cpu" and interpreting()):
            return f"its kernels need a CUDA device, and this is {device.type}"
        return ""
    if by == "xformers":
        if find_spec("xformers") is None:
            return "the package xformers is not installed (pip install -e '.[xformers]')"
        if device.type != "cuda":
            return f"xformers has no attention for {device.type}, it needs a CUDA device"
    if dropout:
        return (
            f"it drops other probabilities than the model's seed says, and dropout is {dropout:g}; it can be had with "
            "a dropout of 0"
        )
    return ""


def _operations(fused: bool, device: torch.device | str) -> Ops:
    if not fused:
        return REFERENCE
    kind = torch.device(device).type
    interpreted = kind == "cpu" and interpreting()
    if kind != "cuda" and not interpreted:
        return Ops("portable", f"operations: fused, portable form on {kind} (PyTorch ops)")
    if not has_triton():
        asked = "TRITON_INTERPRET=1 asks for the Triton kernels" if interpreted else "on CUDA they are Triton kernels"
        way_out = "unset TRITON_INTERPRET" if interpreted else "run without --fused"
        raise ConfigError(f"--fused: {asked}, and the package triton is not installed; install it, or {way_out}")
    if interpreted:
        return Ops(
            "triton", "operations: fused, Triton kernels in Triton's interpreter on cpu (TRITON_INTERPRET=1; slow)"
        )
    return Ops("triton", f"operations: fused, Triton kernels on {kind}")
