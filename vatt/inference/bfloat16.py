"""bfloat16 on CPUs that multiply it in hardware: which models gain, and the form of a model that is fast there.

Weights of the encoders are cast once and kept in the order in which oneDNN multiplies; tokens stay bfloat16 from layer
to layer. Projections of patches run under autocast. Heads and the T5 text encoder stay float32: it is small, and as it
has no 1/sqrt(d), its softmax turns roundings of large scores into other weights. Products add up in float32, norms and
softmax compute in float32.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..model.transformer import Attention, Layer
from ..model.vatt import VATT, Classifier
from ..runtime.device import autocast_for, compute_dtype, cpu_multiplies_bfloat16

SMALLEST_WIDTH = 512  # of VATT-Small; casts cost narrower models more than products gain
# oneDNN computes a product whose output is narrower than its input with one core alone when it has some 400 to 1,400
# rows, such as one window of sound; fewer rows, and more, it shares among the cores. So such products go in parts.
PART_ROWS, WHOLE_ROWS = 320, 1536
# Tokens that go through a tower together: of more, what a layer computes lies in memory instead of the caches.
TOGETHER = 3200


def choose_dtype(
    name: str, device: torch.device, model: VATT | Classifier, begun: str | None = None
) -> tuple[torch.dtype, str]:
    """Return the dtype of products for inference, and why it is that one.

    Args:
        name: "float32", "bfloat16", or "auto": bfloat16 on GPUs, and on CPUs that multiply it in hardware where the
            model's encoders are as wide as VATT-Small's; float32 elsewhere.
        device: where the model is.
        model: pre-trained or fine-tuned.
        begun: the dtype that an interrupted command began with, which "auto" keeps.

    Raises:
        ConfigError: PyTorch cannot compute in that dtype here.
    """
    if name != "auto":
        return compute_dtype(name, device), "as --dtype says"
    if begun is not None:
        return compute_dtype(begun, device), "as it was begun"
    if device.type == "cuda":
        return torch.bfloat16, "on a GPU"
    if device.type != "cpu" or not cpu_multiplies_bfloat16():
        return torch.float32, f"this {'CPU' if device.type == 'cpu' else device.type} has no products of bfloat16"
    layers = [
        x for name, x in model.backbone.named_modules() if name.startswith("encoder") and isinstance(x, Attention)
    ]
    width = min(x.out.out_features for x in layers if x.scale is None)  # T5's, of the text encoder, is 1
    if width < SMALLEST_WIDTH:
        return torch.float32, f"encoders {width} wide gain nothing from bfloat16 on a CPU"
    return torch.bfloat16, "this CPU multiplies bfloat16 in hardware; --dtype float32 for more digits"


def inference_form(model: VATT | Classifier, device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Put `model` into its form for inference with products of `dtype`, and return the context to call it in.

    On a GPU that is autocast and leaves the model as it is; on a CPU see `use_bfloat16`.
    """
    if device.type == "cpu" and dtype == torch.bfloat16:
        use_bfloat16(model)
        dtype = torch.float32
    return autocast_for(device, dtype)


def use_bfloat16(model: VATT | Classifier) -> None:
    """Turn the backbone of `model` into its bfloat16 form for a CPU, in place; it cannot be trained or saved then."""
    backbone = model.eval().requires_grad_(False).backbone
    for name in backbone.tokens:
        if name != "text":
            backbone.tokens[name] = _Projection(backbone.tokens[name])
    for name in backbone.encoder:
        if name != "text":
            backbone.encoder[name] = _Encoder(backbone.encoder[name])


class _Projection(nn.Module):
    """Patches to tokens with products in bfloat16; tokens are as float32 as those of a GPU."""

    def __init__(self, tokens: nn.Module):
        super().__init__()
        self.tokens = tokens

    def forward(self, x: Tensor, **options: Any) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return self.tokens(x, **options)


class _Encoder(nn.Module):
    """An encoder whose layers keep tokens in bfloat16, of a few rows at a time; takes and returns float32."""

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder.bfloat16()
        encoder.layers = nn.ModuleList(_Layer(x) for x in encoder.modules() if isinstance(x, Layer))

    def forward(self, x: Tensor, key_mask: Tensor | None = None, **options: Any) -> Tensor:
        rows = max(1, TOGETHER // x.shape[1])
        parts = x.split(rows)
        masks = [None] * len(parts) if key_mask is None else key_mask.split(rows)
        pairs = zip(parts, masks, strict=True)
        return torch.cat([self.encoder(part.bfloat16(), mask, **options).float() for part, mask in pairs])


class _Layer(nn.Module):
    """`transformer.Layer` without dropout; products add what they find to the tokens before it is rounded."""

    def __init__(self, layer: Layer):
        super().__init__()
        self.attention_norm, self.attention, self.mlp_norm = layer.attention_norm, layer.attention, layer.mlp_norm
        self.attention.add_module("qkv", _Linear(layer.attention.qkv))
        self.attention.add_module("out", _Linear(layer.attention.out))
        self.wi, self.wo = _Linear(layer.mlp.wi, gelu=True), _Linear(layer.mlp.wo)

    def forward(
        self, x: Tensor, key_mask: Tensor | None, bias_table: Tensor | None, max_distance: int, seed: Tensor | None
    ) -> Tensor:
        one = self.attention
        heads = one.ops.attention(
            one.project(self.attention_norm(x)),
            key_mask=key_mask,
            bias_table=bias_table,
            max_distance=max_distance,
            scale=one.scale,
        )
        x = one.out(heads.flatten(-2), x)
        out: Tensor = self.wo(self.wi(self.mlp_norm(x)), x)
        return out


class _Linear(nn.Module):
    """A dense layer in bfloat16, its weight in oneDNN's order where this release of PyTorch can keep it so."""

    def __init__(self, dense: nn.Linear, *, gelu: bool = False):
        super().__init__()
        self.dense, self.gelu = dense, gelu
        self.packed: Tensor | None = None
        try:
            self.packed = torch.ops.mkldnn._reorder_linear_weight(dense.weight.detach())
            row = torch.zeros(1, dense.in_features, dtype=torch.bfloat16)
            self.forward(row, None if gelu else self.forward(row))
        except (AttributeError, NotImplementedError, RuntimeError):  # not public: a release may have it otherwise
            self.packed = None

    def forward(self, x: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Return what is computed from x, added to `tokens` where they are given."""
        if self.packed is None:
            x = self.dense(x)
            x = F.gelu(x) if self.gelu else x
            return x if tokens is None else tokens + x
        product, rows = torch.ops.mkldnn._linear_pointwise, x.flatten(0, -2)
        parts = 1
        if self.dense.out_features < self.dense.in_features and PART_ROWS < len(rows) < WHOLE_ROWS:
            parts = -(-len(rows) // PART_ROWS)
        if tokens is None:
            kind, how = ("gelu", "none") if self.gelu else ("none", "")  # "none" of GELU: exact, not tanh
            found = [product(part, self.packed, self.dense.bias, kind, [], how) for part in rows.chunk(parts)]
        else:
            pairs = zip(rows.chunk(parts), tokens.flatten(0, -2).chunk(parts), strict=True)
            found = [product.binary(part, to, self.packed, self.dense.bias, "add") for part, to in pairs]
        out = torch.cat(found) if parts > 1 else found[0]
        return out.unflatten(0, x.shape[:-1])
