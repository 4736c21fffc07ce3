"""A dense layer and a dropout whose work a compiler can put into kernels that run anyway; see `transformer.Layer`.

Eagerly each would cost kernels more, so that both are off until a layer is compiled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Product(torch.autograd.Function):
    """x W^T + b with W and b rounded to x's dtype; the gradient of b is summed in the dtype of b."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        narrow = weight.to(x.dtype)
        ctx.save_for_backward(x, narrow)
        ctx.dtypes = weight.dtype, bias.dtype
        return F.linear(x, narrow, bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        of_weight, of_bias = ctx.dtypes
        grad = grad.view(torch.int16 if grad.itemsize == 2 else torch.int32).view(grad.dtype)
        product = grad.flatten(0, 1).mT @ x.flatten(0, 1)
        return grad @ weight, product.to(of_weight), grad.sum(1, dtype=of_bias).sum(0)


class Dense(nn.Linear):
    """A dense layer of tokens [B, N, D]. With `apart` the gradient of its bias is a sum over tokens, then over clips.

    TorchInductor computes the first of these sums in the kernel that writes what it adds up; a sum over both at once it
    splits in a way that does not fit any other kernel.
    """

    apart = False

    def forward(self, x: Tensor) -> Tensor:
        if not self.apart or self.bias is None:
            return super().forward(x)
        kind = x.device.type
        if torch.is_autocast_enabled(kind):
            x = x.to(torch.get_autocast_dtype(kind))
        with torch.autocast(kind, enabled=False):
            out: Tensor = _Product.apply(x, self.weight, self.bias)
        return out


class Dropout(nn.Dropout):
    """Dropout. Given a seed, an int64 tensor below 2^31, what is dropped is a hash of seed, `use` and place.

    So nothing is kept for the backward pass, which computes it again, and a captured graph drops anew when its seed
    changes.
    """

    def forward(self, x: Tensor, seed: Tensor | None = None, use: int = 0) -> Tensor:
        if seed is None or not self.training or not self.p:
            return super().forward(x)
        return torch.where(kept(x.shape, seed, use, self.p), x * (1 / (1 - self.p)), 0.0)


def kept(shape: Sequence[int], seed: Tensor, use: int, p: float) -> Tensor:
    """What a dropout of `p` keeps: bool of `shape`, from a word of 32 bits for each place, keyed before and between the
    two products of "lowbias32". Places repeat after 2^32 of them.
    """
    key = seed.to(torch.int32)
    places = torch.arange(torch.Size(shape).numel(), device=seed.device).to(torch.int32).view(shape)
    word = places ^ (key + _signed((use + 1) * 0x9E3779B1))
    word = (word ^ _shifted(word, 16)) * 0x7FEB352D
    word = (word ^ _shifted(word, 15)) + key * _signed(0x85EBCA77)
    word = word * _signed(0x846CA68B)  # its last step would mix the lower half, which decides nothing
    return word >= min(round(p * 2**32), 2**32 - 1) - 2**31


def _signed(word: int) -> int:
    """The signed number of a 32-bit word: products of int32 tensors wrap."""
    word %= 2**32
    return word - (word >> 31 << 32)


def _shifted(word: Tensor, by: int) -> Tensor:
    """Shifted right, without the copies of the sign bit."""
    return (word >> by) & ((1 << (32 - by)) - 1)
