"""Initial weights as TensorFlow draws them, and the linear layer that uses them."""

from __future__ import annotations

from torch import Tensor, nn

from .fusible import Dense


def glorot_uniform_(weight: Tensor, fan_in: int, fan_out: int) -> None:
    limit = (6 / (fan_in + fan_out)) ** 0.5
    nn.init.uniform_(weight, -limit, limit)


def glorot_normal_(weight: Tensor, fan_in: int, fan_out: int) -> None:
    """Fill a tensor from a normal distribution, truncated at two standard deviations and widened, so that the variance
    is 2 / (fan_in + fan_out).
    """
    std = (2 / (fan_in + fan_out)) ** 0.5 / 0.87962566103423978
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)


def linear(fan_in: int, fan_out: int, bias: bool = True) -> Dense:
    """Return a dense layer as the release initialises it: glorot-uniform weight, zero bias."""
    layer = Dense(fan_in, fan_out, bias=bias)
    glorot_uniform_(layer.weight, fan_in, fan_out)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer
