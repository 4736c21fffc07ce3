"""Attention with dropout in PyTorch operations, for CPUs: a few rows of probabilities at a time, never all of them.

    S = scale q k^T + bias;   P = softmax(S over visible keys);   out = (M P) v / (1 - rate)
    dP = M (grad v^T) / (1 - rate);   dS = P (dP - rowsum(P dP))
    dq = scale dS k;   dk = scale dS^T q;   dv = (M P)^T grad / (1 - rate)

Legend: B batch, N tokens, H heads, D width of a head; M is 1 where dropout keeps a probability.
The forward leaves the maximum of each row and the inverse of its denominator, so that the backward computes P again
with one exponential and no softmax, and M as bits, which is cheaper than its hash. Blocks are as large as a core's
cache takes of them. Keys are taken in another order: first those whose position modulo 16 is below 8, then the others,
so that the two keys of one word of the hash are two columns of one tensor. Both directions are opaque to PyTorch (see
`registration`): the blocks of a long clip would be a graph of ten thousand nodes.
FLOPs: 4 B H D N^2 forward, 10 backward. Bytes kept: 8 B H N + B H N^2 / 8 besides q, k, v.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import reference
from .registration import differentiable, operator, present

SCORES = 2**17  # of a block: with the tensors beside them 2 MB in float32


class _Block(NamedTuple):
    """Rows of B*H and of queries; either all queries or one row of B*H."""

    outer: slice
    rows: slice


def _blocks(outer: int, tokens: int) -> Iterator[_Block]:
    """Blocks that begin with a whole byte of the bits of a row of B*H."""
    if tokens * tokens <= SCORES:
        size = SCORES // (tokens * tokens)
        for begin in range(0, outer, size):
            yield _Block(slice(begin, min(begin + size, outer)), slice(0, tokens))
        return
    size = max(8, SCORES // tokens // 8 * 8)
    for row in range(outer):
        for begin in range(0, tokens, size):
            yield _Block(slice(row, row + 1), slice(begin, min(begin + size, tokens)))


def _order(tokens: int, device: torch.device) -> Tensor:
    key = torch.arange(tokens, device=device)
    return torch.cat([key[key % 16 < 8], key[key % 16 >= 8]])


def keep_in_order(words: Tensor, tokens: int, p: float) -> Tensor:
    """`reference.dropout_keep` of version 2, in wrapping 32-bit integers and in place.

    Args:
        words: int32 [..., 1], of rows.
        tokens: N, the number of keys.
        p: of dropping.

    Returns:
        int32 [..., N], -1 for keep and 0 for drop, keys in this file's order.
    """
    pairs = tokens // 16 * 8 + min(tokens % 16, 8)
    word = words + torch.arange(pairs, dtype=torch.int32, device=words.device)
    shifted = torch.empty_like(word)

    def shift(by: int) -> Tensor:  # arithmetic: clear the copies of the sign bit
        return torch.bitwise_right_shift(word, by, out=shifted).bitwise_and_((1 << (32 - by)) - 1)

    word ^= shift(16)
    word *= 0x7FEB352D
    word ^= shift(15)
    word *= 0x846CA68B - 2**32
    word ^= shift(16)
    keep = torch.empty(*words.shape[:-1], tokens, dtype=torch.int32, device=words.device)
    torch.bitwise_and(word, 0xFFFF, out=keep[..., :pairs])
    keep[..., pairs:] = shift(16)[..., : tokens - pairs]
    torch.sub(reference.dropout_threshold(p, 2) - 1, keep, out=keep)  # below 0 from the threshold on
    return keep.bitwise_right_shift_(31)


def _packed(keep: Tensor) -> Tensor:
    """-1 or 0 [rows, scores] -> bits [rows, scores / 8, rounded up]."""
    small = keep.to(torch.int8)
    if small.device.type == "cpu":
        import numpy as np

        return torch.from_numpy(np.packbits(small.numpy(), axis=1))
    small = torch.nn.functional.pad(small, (0, -small.shape[1] % 8)).unflatten(1, (-1, 8))
    return (small & 2 ** torch.arange(7, -1, -1, device=small.device)).sum(dim=2, dtype=torch.uint8)


def _unpacked(bits: Tensor, scores: int) -> Tensor:
    """Back to 1 or 0 [rows, scores] in uint8."""
    if bits.device.type == "cpu":
        import numpy as np

        return torch.from_numpy(np.unpackbits(bits.numpy(), axis=1, count=scores))
    return (bits[..., None] >> torch.arange(7, -1, -1, device=bits.device)).bitwise_and(1).flatten(1)[:, :scores]


class _Operands:
    """One call: q (times scale), k, v as [B*H, N, D] in the accumulating dtype, keys in this file's order."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, visible: Tensor | None, scale: float):
        self.batch, self.tokens, self.heads, _ = q.shape
        self.dtype = q.dtype
        self.wide = torch.float64 if q.dtype == torch.float64 else torch.float32
        self.order = _order(self.tokens, q.device)
        self.q = self.rows_of(q).mul_(scale)
        self.k, self.v = self.rows_of(k)[:, self.order], self.rows_of(v)[:, self.order]
        self.bias = None if bias is None else bias[..., self.order]
        self.hidden = None if visible is None else ~visible[:, self.order]
        self.room: dict[str, Tensor] = {}

    def rows_of(self, x: Tensor) -> Tensor:
        """A copy of [B, N, H, D]."""
        return x.transpose(1, 2).to(self.wide, copy=True, memory_format=torch.contiguous_format).flatten(0, 1)

    def result(self, x: Tensor) -> Tensor:
        """[B*H, N, D] as the caller has it: [B, N, H, D] in his dtype."""
        x = x.unflatten(0, (self.batch, self.heads)).transpose(1, 2)
        return x.to(self.dtype, copy=True, memory_format=torch.contiguous_format)

    def scores(self, name: str, block: _Block) -> Tensor:
        """Room for the scores of a block, the same one for all blocks."""
        shape = (block.outer.stop - block.outer.start, block.rows.stop - block.rows.start, self.tokens)
        if name not in self.room:
            self.room[name] = self.q.new_empty(max(SCORES, 8 * self.tokens))
        return self.room[name][: math.prod(shape)].view(shape)

    def masked_scores(self, block: _Block) -> Tensor:
        scores = torch.bmm(self.q[block.outer, block.rows], self.k[block.outer].mT, out=self.scores("P", block))
        row = torch.arange(block.outer.start, block.outer.stop, device=scores.device)
        if self.bias is not None:
            scores += self.bias[row % self.heads, block.rows]
        if self.hidden is not None:
            scores.masked_fill_(self.hidden[row // self.heads, None], -torch.inf)
        return scores

    def places(self, block: _Block) -> slice:
        """Bytes of the bits of a row of B*H."""
        return slice(block.rows.start * self.tokens // 8, (block.rows.stop * self.tokens + 7) // 8)


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    visible: Tensor | None,
    words: Tensor,
    scale: float,
    p: float,
) -> tuple[Tensor, Tensor, Tensor]:
    given = _Operands(q, k, v, bias, visible, scale)
    _, statistics, bits = _fake_forward(q, k, v)
    rescale, made = reference.dropout_rescale(p, 2), given.q.new_empty(given.q.shape)
    for block in _blocks(len(given.q), given.tokens):
        weights = given.masked_scores(block)
        peak = weights.amax(dim=-1, keepdim=True)
        weights.sub_(peak).exp_()
        inverse = weights.sum(dim=-1, keepdim=True).reciprocal_()
        statistics[0, block.outer, block.rows], statistics[1, block.outer, block.rows] = peak, inverse
        keep = keep_in_order(words[block.outer, block.rows, None], given.tokens, p)
        bits[block.outer, given.places(block)] = _packed(keep.flatten(1))
        weights *= given.scores("M", block).copy_(keep)
        made[block.outer, block.rows] = torch.bmm(weights, given.v[block.outer]).mul_(-rescale * inverse)
    return given.result(made), statistics, bits


def _backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    visible: Tensor | None,
    statistics: Tensor,
    bits: Tensor,
    scale: float,
    p: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    given = _Operands(q, k, v, bias, visible, scale)
    peak, inverse = statistics
    grads = given.rows_of(grad).mul_(inverse * reference.dropout_rescale(p, 2))
    dq, dk, dv = (torch.zeros_like(x) for x in (given.q, given.k, given.v))
    d_bias = grad.new_empty(0) if given.bias is None else torch.zeros_like(given.bias)
    for block in _blocks(len(given.q), given.tokens):
        outer, rows = block
        weights = given.masked_scores(block).sub_(peak[outer, rows]).exp_()  # times `inverse` they are P
        dropped = given.scores("M", block)
        dropped.flatten(1).copy_(_unpacked(bits[outer, given.places(block)], dropped[0].numel()))
        ds = torch.bmm(grads[outer, rows], given.v[outer].mT, out=given.scores("dS", block))
        ds *= dropped
        dropped *= weights
        dv[outer].baddbmm_(dropped.mT, grads[outer, rows])
        ds *= weights
        ds.addcmul_(weights, ds.sum(dim=-1, keepdim=True).mul_(inverse[outer, rows]), value=-1)
        dq[outer, rows] = torch.bmm(ds, given.k[outer])
        dk[outer].baddbmm_(ds.mT, given.q[outer, rows])
        if given.bias is not None:
            d_bias[:, rows].index_add_(0, torch.arange(outer.start, outer.stop, device=ds.device) % given.heads, ds)
    if given.bias is not None:
        d_bias = torch.empty_like(d_bias).index_copy_(2, given.order, d_bias)
    dk, dv = (torch.empty_like(x).index_copy_(1, given.order, x) for x in (dk, dv))
    return given.result(dq.mul_(scale)), given.result(dk), given.result(dv), d_bias


def _fake_forward(q: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    batch, tokens, heads, _width = q.shape
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    statistics = q.new_empty(2, batch * heads, tokens, 1, dtype=wide)
    return q.new_empty(q.shape), statistics, q.new_empty(batch * heads, (tokens * tokens + 7) // 8, dtype=torch.uint8)


def _fake_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, *_: Any) -> tuple[Tensor, ...]:
    return *(q.new_empty(q.shape) for _ in range(3)), grad.new_empty(0) if bias is None else bias.new_empty(bias.shape)


def _forward_flops(q: torch.Size, *_: Any, out_shape: Any) -> int:
    return 4 * math.prod(q) * q[1]


def _backward_flops(grad: torch.Size, *_: Any, out_shape: Any) -> int:
    """Of the products in the formula, as everywhere."""
    return 8 * math.prod(grad) * grad[1]


_ARGUMENTS = "Tensor q, Tensor k, Tensor v, Tensor? bias, Tensor? visible"
_attend = operator(
    f"dropped_attention({_ARGUMENTS}, Tensor words, float scale, float p) -> (Tensor, Tensor, Tensor)",
    _forward,
    _fake_forward,
    _forward_flops,
)
_attend_backward = operator(
    f"dropped_attention_backward(Tensor grad, {_ARGUMENTS}, Tensor statistics, Tensor bits, float scale, float p) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _fake_backward,
    _backward_flops,
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:5], *output[1:])
    ctx.settings = inputs[6:]
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 8
    gradients = _attend_backward(grad, *ctx.saved_tensors, *ctx.settings)
    return *present(gradients, ctx.needs_input_grad[:4]), *[None] * 4


differentiable(_attend, _save, _gradients, _attend_backward)


def attend(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, visible: Tensor | None, words: Tensor, scale: float, p: float
) -> Tensor:
    """Dense attention with dropout of version 2.

    Args:
        q, k, v: [B, N, H, D].
        bias: [H, N, N], in the accumulating dtype.
        visible: bool [B, N], True for keys that are seen; each row has one at least.
        words: [B, H, N], `reference.dropout_keys`.
        scale: factor on q k^T.
        p: of dropping a probability.

    Returns:
        [B, N, H, D], contiguous, in the dtype of q.
    """
    out: Tensor = _attend(q, k, v, bias, visible, words.flatten(0, 1).to(torch.int32), scale, p)[0]
    return out
