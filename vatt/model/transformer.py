"""The encoders: pre-norm (video, audio, shared) and T5-style (text).

Shapes: B batch, N tokens, D width, H heads. Source: paper section 3.2; numbers from the official release.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..config.model import EncoderConfig
from ..ops import Ops
from .fusible import Dense, Dropout
from .initializers import glorot_uniform_, linear
from .randomness import layer_seeds


class Attention(nn.Module):
    """Multi-head self-attention. `qkv` is one dense layer: rows [q; k; v], each heads x head_width.

    `scale` None is head_width ** -0.5; T5 passes 1. Dropout acts on the probabilities, from `seed` alone, a tensor.
    """

    def __init__(self, config: EncoderConfig, *, bias: bool, scale: float | None, ops: Ops):
        super().__init__()
        self.heads, self.head_width, self.scale = config.heads, config.head_width, scale
        self.dropout, self.ops = config.dropout, ops
        inner = config.heads * config.head_width
        self.qkv = Dense(config.width, 3 * inner, bias=bias)
        self.out = linear(inner, config.width, bias=bias)
        # q, k and v are three layers of the release: their fans are those of one third.
        glorot_uniform_(self.qkv.weight, config.width, inner)
        if bias:
            nn.init.zeros_(self.qkv.bias)

    def project(self, x: Tensor) -> Tensor:
        """x [B,N,D] -> q, k and v as one tensor [B,N,3,H,head_width], so that their gradient is one."""
        return self.qkv(x).unflatten(-1, (3, self.heads, self.head_width))

    def forward(
        self, x: Tensor, key_mask: Tensor | None, bias_table: Tensor | None, max_distance: int, seed: Tensor | None
    ) -> Tensor:
        x = self.ops.attention(
            self.project(x),
            key_mask=key_mask,
            bias_table=bias_table,
            max_distance=max_distance,
            scale=self.scale,
            dropout_p=self.dropout if self.training else 0.0,
            seed=0 if seed is None else seed,
        )
        return self.out(x.flatten(-2))


class MLP(nn.Module):
    """Two dense layers around an exact (erf) GELU. A forward hook here sees the output before the residual."""

    def __init__(self, config: EncoderConfig, *, bias: bool):
        super().__init__()
        self.wi = linear(config.width, config.mlp, bias=bias)
        self.wo = linear(config.mlp, config.width, bias=bias)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, seed: Tensor | None = None) -> Tensor:
        return self.wo(self.dropout(F.gelu(self.wi(x)), seed, 1))


class Layer(nn.Module):
    """x + attention(norm(x)), then + mlp(norm(x)).

    `text` makes it the release's T5 layer: no biases, no 1/sqrt(d), RMS norm before attention but a full LayerNorm
    (with offset) before the MLP; the checkpoints have exactly this mixture.
    """

    compiled = False

    def __init__(self, config: EncoderConfig, *, text: bool, ops: Ops):
        super().__init__()
        norm = nn.RMSNorm if text else nn.LayerNorm
        self.attention_norm = norm(config.width, eps=1e-6)
        self.attention = Attention(config, bias=not text, scale=1.0 if text else None, ops=ops)
        self.mlp_norm = nn.LayerNorm(config.width, eps=1e-6)
        self.mlp = MLP(config, bias=not text)
        self.dropout = Dropout(config.dropout)

    def compile(self, *options: Any, **more: Any) -> None:
        """`torch.compile` of each half, in the form that asks least of a GPU's memory.

        Gradients of biases are summed by kernels that write what is summed; what the element-wise dropouts drop
        follows from the layer's seed. Halves, as each has one norm: TorchInductor computes the whole backward of a norm
        in one kernel, but that of two which read the same tensor in three.
        """
        for dense in (self.attention.qkv, self.attention.out, self.mlp.wi, self.mlp.wo):
            dense.apart = True
        self.compiled = True
        for name in ("attend", "feed"):
            setattr(self, name, torch.compile(getattr(self, name), *options, **more))

    def attend(
        self, x: Tensor, key_mask: Tensor | None, bias_table: Tensor | None, max_distance: int, seed: Tensor | None
    ) -> Tensor:
        found = self.attention(self.attention_norm(x), key_mask, bias_table, max_distance, seed)
        return x + self.dropout(found, seed if self.compiled else None, 0)

    def feed(self, x: Tensor, seed: Tensor | None) -> Tensor:
        own = seed if self.compiled else None
        return x + self.dropout(self.mlp(self.mlp_norm(x), own), own, 2)

    def forward(
        self, x: Tensor, key_mask: Tensor | None, bias_table: Tensor | None, max_distance: int, seed: Tensor | None
    ) -> Tensor:
        return self.feed(self.attend(x, key_mask, bias_table, max_distance, seed), seed)


class Encoder(nn.Module):
    """A stack of layers and a final norm: tokens [B,N,D] and optional key mask [B,N] (True = attend) -> [B,N,D].

    With `buckets` it is the text encoder: T5 layers and one relative-bias table [buckets, H] shared by all of them.
    `recompute`: keep only the input of each layer and compute the rest again in the backward pass.
    `narrow`: under autocast what layers add to is of autocast's dtype instead of float32; not in the text encoder,
    whose RMS norm has no fused form of that.
    """

    recompute = False
    narrow = False

    def __init__(self, config: EncoderConfig, ops: Ops, *, buckets: int | None = None, max_distance: int = 64):
        super().__init__()
        text = buckets is not None
        self.layers = nn.ModuleList(Layer(config, text=text, ops=ops) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.width, eps=1e-6) if text else nn.LayerNorm(config.width, eps=1e-6)
        self.dropout = nn.Dropout(config.dropout)
        self.bias_table: nn.Parameter | None = None
        self.max_distance = max_distance
        if buckets is not None:
            self.bias_table = nn.Parameter(torch.empty(buckets, config.heads).uniform_(-0.05, 0.05))

    def forward(self, x: Tensor, key_mask: Tensor | None = None, seed: int | Tensor = 0) -> Tensor:
        drops = self.training and self.dropout.p > 0
        seeds = layer_seeds(seed, len(self.layers), x.device) if drops else [None] * len(self.layers)
        kind, wide = x.device.type, x.dtype
        if self.narrow and self.bias_table is None and torch.is_autocast_enabled(kind):
            x = x.to(torch.get_autocast_dtype(kind))
        for layer, own in zip(self.layers, seeds, strict=True):
            inputs = x, key_mask, self.bias_table, self.max_distance, own
            again = self.recompute and torch.is_grad_enabled()
            x = checkpoint(layer, *inputs, use_reentrant=False) if again else layer(*inputs)
        return self.dropout(self.norm(x.to(wide)))
