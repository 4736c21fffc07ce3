"""The one place that chooses between the literal and the fused operations, and can say why.

Without `--fused` the model runs `vatt_kernels` in its "reference" form: a few lines of plain PyTorch an operation.
With it, the device decides: CUDA runs the Triton kernels, any other device the "portable" form (drop before projecting,
SDPA, streamed loss), and a CPU with TRITON_INTERPRET=1 in its environment the Triton kernels in Triton's interpreter.
Modules hold an `Ops`; nothing is switched by global state.

What no fused operation ever stores (attention probabilities, relative bias and its buckets) exists in the literal form
only; it is passed on from here for whoever looks into a model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import vatt_kernels
from torch import Tensor
from vatt_kernels.device import has_triton, interpreting
from vatt_kernels.reference import attention_probabilities, relative_bias, relative_buckets

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
    """The operations of one run. `impl` is what runs, `reason` is the line printed at start and kept in records."""

    impl: str
    reason: str

    def project_voxels(self, frames: Tensor, weight: Tensor, bias: Tensor, **options: Any) -> Tensor:
        return vatt_kernels.project_voxels(frames, weight, bias, impl=self.impl, **options)

    def project_waveform(self, samples: Tensor, weight: Tensor, bias: Tensor, **options: Any) -> Tensor:
        return vatt_kernels.project_waveform(samples, weight, bias, impl=self.impl, **options)

    def sample_keep(self, tokens: int, kept: int, **options: Any) -> Tensor:
        return vatt_kernels.sample_keep(tokens, kept, impl=self.impl, **options)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        return vatt_kernels.attention(q, k, v, impl=self.impl, **options)

    def contrastive_loss(self, video: Tensor, other: Tensor, **options: Any) -> Tensor:
        return vatt_kernels.contrastive_loss(video, other, impl=self.impl, **options)


REFERENCE = Ops("reference", "operations: reference (literal PyTorch; --fused selects the fast ones)")


def choose(fused: bool, device: torch.device | str) -> Ops:
    """Return operations for `device`; `fused` is what the user asked for.

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
