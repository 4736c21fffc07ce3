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
    """An encoder whose layers keep tokens in bfloat16; takes and returns float32."""

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder.bfloat16()
        for layer in [x for x in encoder.modules() if isinstance(x, Layer)]:
            attention, mlp = layer.attention, layer.mlp
            attention.add_module("qkv", _Linear(attention.qkv))
            attention.add_module("out", _Linear(attention.out))
            layer.add_module("mlp", _MLP(_Linear(mlp.wi, gelu=True), _Linear(mlp.wo)))

    def forward(self, x: Tensor, *arguments: Any, **options: Any) -> Tensor:
        out: Tensor = self.encoder(x.bfloat16(), *arguments, **options)
        return out.float()


class _MLP(nn.Sequential):
    def forward(self, x: Tensor, seed: Tensor | None = None) -> Tensor:
        """As `MLP.forward`; nothing is dropped, so the seed has no use."""
        out: Tensor = super().forward(x)
        return out


class _Linear(nn.Module):
    """A dense layer in bfloat16, its weight in oneDNN's order where this release of PyTorch can keep it so."""

    def __init__(self, dense: nn.Linear, *, gelu: bool = False):
        super().__init__()
        self.dense, self.gelu = dense, gelu
        self.packed: Tensor | None = None
        try:
            self.packed = torch.ops.mkldnn._reorder_linear_weight(dense.weight.detach())
            self.forward(torch.zeros(1, dense.in_features, dtype=torch.bfloat16))
        except (AttributeError, NotImplementedError, RuntimeError):  # not public: a release may have it otherwise
            self.packed = None

    def forward(self, x: Tensor) -> Tensor:
        if self.packed is None:
            x = self.dense(x)
            return F.gelu(x) if self.gelu else x
        kind, how = ("gelu", "none") if self.gelu else ("none", "")  # "none" of GELU: exact, not tanh
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.dense.bias, kind, [], how)
        return out
