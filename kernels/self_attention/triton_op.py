# mypy: disallow-incomplete-defs=False
"""Flash attention in Triton: the forward kernel and the differentiable function.

    S = scale * q k^T + bias_table[bucket(key - query)];   P = softmax(S over visible keys);   out = dropout(P) v

Legend: B batch, N tokens, H heads, D width of a head, total = all tokens of packed sequences (B N of dense ones).
Scores are kept times log2(e), so that exponentials are exp2 and the scale is part of a multiply-add; statistics are
float32. Only the last tile of keys is checked against the length.
FLOPs: 4 H D sum(N^2) forward. Bytes: q, k, v, out once, where tiles of keys come from the L2 cache.
Limits: bfloat16, float16, float32 (no bfloat16 in Triton's interpreter); D <= 128; on a GPU `cu_seqlens` is trusted
where `max_seqlen` is given, as reading it would make the host wait.

Source: Dao 2023, "FlashAttention-2", algorithm 1; relative bias: Raffel et al. 2020, section 2.1.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..aot_case import AotCase
from ..device import check_product
from ..registration import differentiable, operator, present, seed_tensor
from .triton_backward import attention_backward
from .triton_forward import LENGTHS, attention_forward, forward_kernel, forward_launch
from .triton_tiles import (
    TYPES,
    aot_case,
    settings,
)

ARGUMENTS = (
    "Tensor? bias_table, Tensor? key_mask, SymInt max_distance, Tensor? cu_seqlens, SymInt? max_seqlen, float scale, "
    "float dropout_p, Tensor? seed, int dropout_version, bool one_pass"
)
NAMES = [argument.split()[-1] for argument in ARGUMENTS.split(", ")]


def _apart(q: Tensor, k: Tensor | None, v: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Without k and v, q is all three: [..., 3, H, D]."""
    if k is None or v is None:
        q, k, v = q.unbind(-3)
    return q, k, v


def _forward(q: Tensor, k: Tensor | None, v: Tensor | None, *settings: Any) -> tuple[Tensor, Tensor]:
    named = dict(zip(NAMES, settings, strict=True))
    del named["one_pass"]
    return attention_forward(*_apart(q, k, v), **named)


def _backward(
    grad: Tensor, q: Tensor, k: Tensor | None, v: Tensor | None, out: Tensor, lse: Tensor, *settings: Any
) -> tuple[Tensor, ...]:
    """Gradients of q, k, v and the bias table; those of k and v are empty where q is all three."""
    made = [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v) if x is not None]
    into = _apart(made[0], *made[1:]) if len(made) == 3 else _apart(made[0], None, None)
    d_table = attention_backward(grad, *_apart(q, k, v), out, lse, into=into, **dict(zip(NAMES, settings, strict=True)))
    nothing = [grad.new_empty(0) for _ in range(4 - len(made))]
    return *made, *nothing[1:], nothing[0] if d_table is None else d_table


def _fake_forward(q: Tensor, k: Tensor | None, v: Tensor | None, *settings: Any) -> tuple[Tensor, Tensor]:
    statistics = 2 if q.dtype == torch.float32 else 1
    *outer, heads, width = q.shape if k is not None else (*q.shape[:-3], *q.shape[-2:])
    lse = q.new_empty(statistics, heads, math.prod(outer), dtype=torch.float32)
    return q.new_empty(*outer, heads, width), lse


def _fake_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    out: Tensor,
    lse: Tensor,
    bias_table: Tensor | None,
    *settings: Any,
) -> tuple[Tensor, ...]:
    return tuple(grad.new_empty(0) if x is None else x.new_empty(x.shape) for x in (q, k, v, bias_table))


def _forward_flops(q: torch.Size, k: torch.Size | None, *shapes: Any, out_shape: Any) -> int:
    """Packed sequences count as if each had `max_seqlen` tokens: the shapes do not tell their lengths."""
    longest = q[1] if len(q) == 4 + (k is None) else shapes[5]
    return 4 * math.prod(q) // (1 if k is not None else 3) * longest


def _backward_flops(grad: torch.Size, *shapes: Any, out_shape: Any) -> int:
    """Of the products in the formula; computing the scores again is the implementation's own expense."""
    longest = grad[1] if len(grad) == 4 else shapes[9]
    return 8 * math.prod(grad) * longest


_attention = operator(
    f"attention(Tensor q, Tensor? k, Tensor? v, {ARGUMENTS}) -> (Tensor, Tensor)",
    _forward,
    _fake_forward,
    _forward_flops,
)
_attention_backward = operator(
    f"attention_backward(Tensor grad, Tensor q, Tensor? k, Tensor? v, Tensor out, Tensor lse, {ARGUMENTS}) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _fake_backward,
    _backward_flops,
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:3], *output, *(x for x in inputs[3:] if isinstance(x, Tensor)))
    ctx.settings = [None if isinstance(x, Tensor) else x for x in inputs[3:]]
    ctx.tensors = [isinstance(x, Tensor) for x in inputs[3:]]
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, grad: Tensor | None, of_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    """Saves q, k, v, out and statistics, and computes probabilities again; nobody differentiates the statistics."""
    if grad is None:
        return (None,) * (3 + len(NAMES))
    q, k, v, out, lse, *saved = ctx.saved_tensors
    rest = iter(saved)
    settings = [next(rest) if is_tensor else x for x, is_tensor in zip(ctx.settings, ctx.tensors, strict=True)]
    gradients = _attention_backward(grad, q, k, v, out, lse, *settings)
    return *present(gradients, ctx.needs_input_grad[:4]), *[None] * (len(NAMES) - 1)


differentiable(_attention, _save, _gradients, _attention_backward)


def attention(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    *,
    key_mask: Tensor | None,
    bias_table: Tensor | None,
    max_distance: int,
    cu_seqlens: Tensor | None,
    max_seqlen: int | None,
    scale: float,
    dropout_p: float,
    seed: int | Tensor,
    dropout_version: int,
    one_pass: bool,
) -> Tensor:
    """The differentiable operation; arguments as in `vatt_kernels.attention`, checked there.

    Reads `cu_seqlens` on the host where `max_seqlen` is missing, and on a CPU, where that costs nothing.

    Raises:
        TypeError: bfloat16 in the interpreter, which would give other numbers without a word.
    """
    check_product("attention", q.dtype)
    if cu_seqlens is not None and (max_seqlen is None or not (cu_seqlens.is_cuda or torch.compiler.is_compiling())):
        bounds = reference.sequence_bounds(cu_seqlens, q.shape[0], max_seqlen)
        max_seqlen = max(end - begin for begin, end in bounds)
    place = seed_tensor(seed, q.device) if dropout_p else None
    where = (bias_table, key_mask, max_distance, cu_seqlens, max_seqlen)
    out: Tensor = _attention(q, k, v, *where, scale, dropout_p, place, dropout_version, one_pass)[0]
    return out


def aot_cases() -> list[AotCase]:
    """The forward at the shapes of VATT: video and audio at all drop rates and both resolutions, text."""
    cases = []
    for setting in settings():
        for tokens in (17,) if setting.has["bias"] else LENGTHS:
            launch = forward_launch(
                tokens, setting.width, TYPES[setting.type_name], setting.architecture, **setting.has
            )
            blocks = {"ROWS": launch.rows, "KEYS": launch.keys}
            cases.append(aot_case("forward", forward_kernel, "q k v out", launch, blocks, setting, f"N={tokens}"))
    return cases
