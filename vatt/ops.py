"""The one place that chooses between the literal and the fused operations, and can say why.

Without `--fused` the model runs `vatt_kernels` in its "reference" form: a few lines of plain PyTorch an operation.
With it, the device decides: CUDA runs the Triton kernels, any other device the "portable" form (drop before projecting,
SDPA, streamed loss), and a CPU with TRITON_INTERPRET=1 in its environment the Triton kernels in Triton's interpreter.
Modules hold an `Ops`; nothing is switched by global state.

What no fused operation ever stores (attention probabilities, relative bias and its buckets) exists in the literal form
only; it is passed on from here for whoever looks into a model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import vatt_kernels
from torch import Tensor
from vatt_kernels.device import has_triton, interpreting
from vatt_kernels.reference import DROPOUT, attention_probabilities, relative_bias, relative_buckets

from .config.run import RunConfig
from .errors import ConfigError

__all__ = [
    "REFERENCE",
    "Ops",
    "attention_probabilities",
    "choose",
    "has_triton",
    "relative_bias",
    "relative_buckets",
]


@dataclass(frozen=True)
class Ops:
    """The operations of one run. `impl` is what runs, `reason` is the line printed at start and kept in records.

    `dropout_version` and `one_pass` are attention's, see `vatt_kernels.attention`; `of_run` takes them from settings.
    """

    impl: str
    reason: str
    dropout_version: int = DROPOUT
    one_pass: bool = False

    def project_voxels(self, frames: Tensor, weight: Tensor, bias: Tensor, **options: Any) -> Tensor:
        return vatt_kernels.project_voxels(frames, weight, bias, impl=self.impl, **options)

    def project_waveform(self, samples: Tensor, weight: Tensor, bias: Tensor, **options: Any) -> Tensor:
        return vatt_kernels.project_waveform(samples, weight, bias, impl=self.impl, **options)

    def sample_keep(self, tokens: int, kept: int, **options: Any) -> Tensor:
        return vatt_kernels.sample_keep(tokens, kept, impl=self.impl, **options)

    def attention(self, qkv: Tensor, **options: Any) -> Tensor:
        options |= {"dropout_version": self.dropout_version, "one_pass": self.one_pass}
        return vatt_kernels.attention(qkv, impl=self.impl, **options)

    def contrastive_loss(self, video: Tensor, other: Tensor, **options: Any) -> Tensor:
        return vatt_kernels.contrastive_loss(video, other, impl=self.impl, **options)

    def of_run(self, config: RunConfig) -> Ops:
        """Return these operations as a run trains with them.

        Raises:
            ConfigError: what was asked for cannot run, or not as it must.
        """
        one_pass = config.attention_backward == "one_pass"
        if one_pass and self.impl != "triton":
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


def choose(fused: bool, device: torch.device | str) -> Ops:
    """Operations for `device`; `fused` is what the user asked for.

    Raises:
        ConfigError: the fused operations of `device` cannot run here; there is no silent fallback.
    """
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
