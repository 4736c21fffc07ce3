"""Attention with dropout in PyTorch operations, for CPUs: a few rows of probabilities at a time, never all of them.

    S = scale q k^T + bias;   P = softmax(S over visible keys);   out = (M P) v / (1 - rate)
    dP = M (grad v^T) / (1 - rate);   dS = P (dP - rowsum(P dP))
    dq = scale dS k;   dk = scale dS^T q;   dv = (M P)^T grad / (1 - rate)

Legend: B batch, N tokens, H heads, D width of a head; M is 1 where dropout keeps a probability.
The forward leaves the maximum of each row and the inverse of its denominator, so that the backward computes P again
with one exponential and no softmax, and M as bits, which is cheaper than its hash. Blocks are as large as a core's
cache takes of them, and each is computed by one thread: two that share a block wait for each other at every operation,
which costs as much as the operations of a short clip. Both directions are opaque to PyTorch (see `registration`): the
blocks of a long clip would be a graph of ten thousand nodes.
FLOPs: 4 B H D N^2 forward, 10 backward. Bytes kept: 8 B H N + B H N^2 / 8 besides q, k, v.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from threading import Barrier
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import reference
from .registration import differentiable, operator, present

SCORES = 2**18  # of a block: with the tensors beside them 4 MB in float32, so that few wait for each other


class _Block(NamedTuple):
    """Rows of B*H and of queries; either all queries or one row of B*H."""

    outer: slice
    rows: slice


def _parts(outer: int, tokens: int) -> list[list[_Block]]:
    """The blocks of a call, those together that add to the same keys' gradients."""
    size, high = (max(1, SCORES // max(1, scores)) for scores in (tokens * tokens, tokens))
    return [
        [
            _Block(slice(begin, min(begin + size, outer)), slice(row, min(row + high, tokens)))
            for row in range(0, tokens, high)
        ]
        for begin in range(0, outer, size)
    ]


@lru_cache(maxsize=1)
def _threads(number: int, process: int) -> ThreadPoolExecutor:
    """Threads of `process` whose operations use no others."""
    all_exist = Barrier(number)

    def begin() -> None:
        torch.get_num_threads()  # the first call of a thread takes what was set last
        all_exist.wait()
        torch.set_num_threads(1)

    pool = ThreadPoolExecutor(number, "dropped_attention")
    for begun in [pool.submit(begin) for _ in range(number)]:
        begun.result()
    torch.set_num_threads(number)  # what threads of others take
    return pool


def _each(work: Callable[[list[_Block]], None], parts: list[list[_Block]], alone: bool) -> None:
    """Do `work` for each of `parts`, on as many threads as PyTorch uses unless `alone`."""
    number = torch.get_num_threads()
    if alone or number == 1 or len(parts) == 1:
        for part in parts:
            work(part)
    else:
        list(_threads(number, os.getpid()).map(torch.inference_mode()(work), parts))


def keep_bits(words: Tensor, p: float, bits: Tensor) -> Tensor:
    """`reference.dropout_keep` of version 2 as bits.

    Args:
        words: int32 [..., R], of rows.
        p: of dropping.
        bits: uint8 [..., R, 2 G] for G times 16 keys, the first of eight in the highest bit. It is overwritten.

    Returns:
        `bits`.
    """
    pairs = bits.shape[-1] * 4
    if not words.is_cpu:
        keep = reference.keep_of_words(words.long() & reference.WORD, 2 * pairs, p).unflatten(-1, (-1, 8))
        return torch.sum(keep * 2 ** torch.arange(7, -1, -1, device=words.device), dim=-1, dtype=torch.uint8, out=bits)
    import numpy as np

    word = (words[..., None] + torch.arange(pairs, dtype=torch.int32)).numpy().view(np.uint32)
    room, keep = np.empty_like(word), np.empty(word.shape, dtype=bool)
    low, high = bits[..., 0::2].numpy(), bits[..., 1::2].numpy()
    word ^= np.right_shift(word, 16, out=room)
    word *= np.uint32(0x7FEB352D)
    word ^= np.right_shift(word, 15, out=room)
    word *= np.uint32(0x846CA68B)
    threshold = np.uint32(reference.dropout_threshold(p, 2) << 16)
    high[...] = np.packbits(np.greater_equal(word, threshold, out=keep), axis=-1)
    word ^= np.left_shift(word, 16, out=room)  # the last shift of the hash, to where the upper half was
    low[...] = np.packbits(np.greater_equal(word, threshold, out=keep), axis=-1)
    return bits


def unpacked(bits: Tensor, tokens: int) -> Tensor:
    """Back to 1 or 0 [..., N] in uint8."""
    if bits.is_cpu:
        import numpy as np

        return torch.from_numpy(np.unpackbits(bits.numpy(), axis=-1, count=tokens))
    return (bits[..., None] >> torch.arange(7, -1, -1, device=bits.device)).bitwise_and(1).flatten(-2)[..., :tokens]


class _Operands:
    """One call: q (times scale), k, v as [B*H, N, D] in the accumulating dtype."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, visible: Tensor | None, scale: float):
        self.batch, self.tokens, self.heads, _ = q.shape
        self.dtype = q.dtype
        self.wide = torch.float64 if q.dtype == torch.float64 else torch.float32
        self.q, self.k, self.v = self.rows_of(q).mul_(scale), self.rows_of(k), self.rows_of(v)
        self.bias = bias
        self.hidden = None if visible is None else ~visible

    def rows_of(self, x: Tensor) -> Tensor:
        """A copy of [B, N, H, D]."""
        return x.transpose(1, 2).to(self.wide, copy=True, memory_format=torch.contiguous_format).flatten(0, 1)

    def result(self, x: Tensor) -> Tensor:
        """[B*H, N, D] as the caller has it: [B, N, H, D] in his dtype."""
        x = x.unflatten(0, (self.batch, self.heads)).transpose(1, 2)
        return x.to(self.dtype, copy=True, memory_format=torch.contiguous_format)

    def row(self, block: _Block) -> Tensor:
        return torch.arange(block.outer.start, block.outer.stop, device=self.q.device)

    def parts(self) -> list[list[_Block]]:
        return _parts(len(self.q), self.tokens)

    def rooms(self, number: int, part: list[_Block]) -> Iterator[tuple[_Block, list[Tensor]]]:
        """The blocks of a part, and room for `number` tensors of their scores, the same for all blocks."""
        outer, rows = part[0]
        shape = (outer.stop - outer.start, rows.stop - rows.start, self.tokens)
        rooms = [self.q.new_empty(math.prod(shape)) for _ in range(number)]
        for block in part:
            shape = (*shape[:1], block.rows.stop - block.rows.start, self.tokens)
            yield block, [room[: math.prod(shape)].view(shape) for room in rooms]

    def masked_scores(self, block: _Block, out: Tensor) -> Tensor:
        scores = torch.bmm(self.q[block.outer, block.rows], self.k[block.outer].mT, out=out)
        if self.bias is not None:
            scores += self.bias[self.row(block) % self.heads, block.rows]
        if self.hidden is not None:
            scores.masked_fill_(self.hidden[self.row(block) // self.heads, None], -torch.inf)
        return scores


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
    (peak, inverse), made = statistics, torch.empty_like(given.q)

    def work(part: list[_Block]) -> None:
        for block, (weights, kept) in given.rooms(2, part):
            scores = given.masked_scores(block, weights)
            scores.sub_(torch.amax(scores, dim=-1, keepdim=True, out=peak[block])).exp_()
            torch.sum(weights, dim=-1, keepdim=True, out=inverse[block])
            kept.copy_(unpacked(keep_bits(words[block], p, bits[block]), given.tokens))
            torch.bmm(weights.mul_(kept), given.v[block.outer], out=made[block])

    _each(work, given.parts(), alone=not q.is_cpu)
    made *= inverse.reciprocal_() * reference.dropout_rescale(p, 2)
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
    dq, dk, dv = torch.empty_like(given.q), torch.zeros_like(given.k), torch.zeros_like(given.v)
    d_bias = grad.new_empty(0) if given.bias is None else torch.zeros_like(given.bias)

    def work(part: list[_Block]) -> None:
        for block, (weights, kept, ds) in given.rooms(3, part):
            outer = block.outer
            given.masked_scores(block, weights).sub_(peak[block]).exp_()  # times `inverse` they are P
            kept.copy_(unpacked(bits[block], given.tokens)).mul_(weights)
            dv[outer].baddbmm_(kept.mT, grads[block])
            torch.bmm(grads[block], given.v[outer].mT, out=ds).mul_(kept)
            ds.addcmul_(weights, ds.sum(dim=-1, keepdim=True).mul_(inverse[block]), value=-1)
            torch.bmm(ds, given.k[outer], out=dq[block])
            dk[outer].baddbmm_(ds.mT, given.q[block])
            if given.bias is not None:
                d_bias[:, block.rows].index_add_(0, given.row(block) % given.heads, ds)

    _each(work, given.parts(), alone=not q.is_cpu or given.bias is not None)  # all parts add to the bias' gradient
    return given.result(dq.mul_(scale)), given.result(dk), given.result(dv), d_bias


def _fake_forward(q: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    batch, tokens, heads, _width = q.shape
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    statistics = q.new_empty(2, batch * heads, tokens, 1, dtype=wide)
    bits = q.new_empty(batch * heads, tokens, -(-tokens // 16) * 2, dtype=torch.uint8)
    return q.new_empty(q.shape), statistics, bits


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
