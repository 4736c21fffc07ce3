"""Every operation as a few literal lines of plain PyTorch: the specification, and the oracle of all tests.

Nothing here is fast or frugal: all voxels are projected before most are dropped, probabilities and the batch x batch x
captions matrix are stored. Everything runs in float64 as well. Arguments are checked by the public functions.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor

NEGATIVE = -1e9  # what the release adds to a score that is masked
WORD = 0xFFFFFFFF  # 32 bits; words live in int64 tensors, whose products wrap, so their low and high halves are exact
Words = TypeVar("Words", int, Tensor)
DROPOUT = 2  # how attention drops; runs that do not say it are of version 1, see `dropout_keep`


def patches(frames: Tensor, patch: tuple[int, int, int]) -> Tensor:
    """[B, T, H, W, C] -> a view [B, T/t, H/h, W/w, t, h, w, C]; borders that do not fill a patch are left out."""
    for axis, step in zip((1, 3, 5), patch, strict=True):
        count = frames.shape[axis] // step
        frames = frames.narrow(axis, 0, count * step).unflatten(axis, (count, step))
    return frames.permute(0, 1, 3, 5, 2, 4, 6, 7)


def project(
    frames: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    patch: tuple[int, int, int],
    keep: Tensor | None,
    position: Tensor | None,
    scale: float,
    shift: float,
    dtype: torch.dtype,
) -> Tensor:
    """Normalise the clip, project all its patches (the product in `dtype`), add bias and position, then drop."""
    voxels = patches(frames.to(dtype) * scale + shift, patch).flatten(4).flatten(1, 3)
    tokens = (voxels @ weight.to(dtype)).to(weight.dtype)
    if bias is not None:
        tokens = tokens + bias.to(weight.dtype)
    if position is not None:
        tokens = tokens + position.to(weight.dtype)
    return tokens if keep is None else gather_tokens(tokens, keep)


def philox4x32_10(
    counter: tuple[Words | int, Words | int, Words | int, Words | int], key: tuple[Words | int, Words | int]
) -> tuple[Words | int, Words | int, Words | int, Words | int]:
    """Four 32-bit words from four counter words and two key words, ints or int64 tensors that broadcast together."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = ((p1 >> 32) & WORD) ^ c1 ^ k0, p1 & WORD, ((p0 >> 32) & WORD) ^ c3 ^ k1, p0 & WORD
        k0, k1 = (k0 + 0x9E3779B9) & WORD, (k1 + 0xBB67AE85) & WORD
    return c0, c1, c2, c3


def draw_words(tokens: int, rows: int, seed: int | Tensor, offset: int, device: torch.device) -> Tensor:
    """[rows, tokens] int64: one 32-bit word for each index, the first of Philox at counter (index, row, offset)."""
    index = torch.arange(tokens, device=device).expand(rows, tokens)
    row = torch.arange(rows, device=device)[:, None]
    counter = (index, row, offset & WORD, (offset >> 32) & WORD)
    return torch.as_tensor(philox4x32_10(counter, (seed & WORD, (seed >> 32) & WORD))[0])


def sample_keep(
    tokens: int, kept: int, *, seed: int | Tensor, offset: int, batch: int | None, device: torch.device
) -> Tensor:
    """A stable sort of the words leaves ties in the order of their indices."""
    words = draw_words(tokens, 1 if batch is None else batch, seed, offset, device)
    keep = words.argsort(dim=1, stable=True)[:, :kept].sort(dim=1).values.int()
    return keep[0] if batch is None else keep


def gather_tokens(x: Tensor, keep: Tensor) -> Tensor:
    """x [B, N, D], keep [K] or [B, K] -> [B, K, D]."""
    if keep.ndim == 1:
        return x[:, keep.long()]
    return x[torch.arange(x.shape[0], device=x.device)[:, None], keep.long()]


def relative_buckets(relative_position: Tensor, buckets: int, max_distance: int) -> Tensor:
    """T5's bidirectional buckets: exact for small distances, logarithmic up to `max_distance`, then constant.

    Args:
        relative_position: key - query, any shape, integers.
        buckets: even; the upper half is for keys after the query.
        max_distance: distance from which all keys share the last bucket.

    Returns:
        int64 of the same shape, in 0..buckets-1. The logarithm is a float32 one, as official.
    """
    half = buckets // 2
    exact = half // 2
    distance = relative_position.abs()
    logarithm = torch.log(distance.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    far = (exact + (logarithm * (half - exact)).long()).clamp(max=half - 1)
    return torch.where(distance < exact, distance, far) + (relative_position > 0) * half


def relative_bias(bias_table: Tensor, tokens: int, max_distance: int) -> Tensor:
    """[buckets, H] -> [H, N, N] (query, key)."""
    position = torch.arange(tokens, device=bias_table.device)
    buckets = relative_buckets(position[None, :] - position[:, None], bias_table.shape[0], max_distance)
    return bias_table[buckets].permute(2, 0, 1)


def attention_probabilities(
    q: Tensor,
    k: Tensor,
    *,
    key_mask: Tensor | None = None,
    bias_table: Tensor | None = None,
    max_distance: int = 64,
    scale: float | None = None,
) -> Tensor:
    """Softmax probabilities [B, H, N, N] (query, key) of q, k [B, N, H, D]; the other arguments as in `attention`.

    Masked keys get the lowest score and then probability 0, so that a row without any visible key is 0, not NaN.
    """
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if bias_table is not None:
        scores = scores + relative_bias(bias_table, q.shape[1], max_distance).to(scores.dtype)
    if key_mask is None:
        return scores.softmax(dim=-1)
    hidden = ~key_mask[:, None, None, :]
    lowest = torch.finfo(scores.dtype).min
    return scores.masked_fill(hidden, lowest).softmax(dim=-1).masked_fill(hidden, 0.0)


def mix(x: Words) -> Words:
    """A bijection of 32-bit words that flips each output bit with probability near one half ("lowbias32")."""
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & WORD
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & WORD
    return x ^ (x >> 16)


def dropout_keys(first: Tensor, tokens: int, heads: int, seed: int | Tensor) -> Tensor:
    """[B, H, N] words, one for each row of probabilities; `first` [B] is the row of each sequence's first token."""
    token = first.long()[:, None, None] + torch.arange(tokens, device=first.device)
    row = (token * heads + torch.arange(heads, device=first.device)[None, :, None]) & WORD
    low: Any = seed & WORD
    high = (seed >> 32) & WORD
    return mix(mix(row ^ mix(low ^ 0x9E3779B9)) ^ mix(mix(low) ^ high))


def dropout_keep(
    first: Tensor, tokens: int, heads: int, p: float, seed: int | Tensor, version: int = DROPOUT
) -> Tensor:
    """[B, H, N, N] bool: which probabilities dropout keeps.

    Two keys that lie 8 apart, c and c + 8 where c % 16 < 8, share the hash of the row's word plus the number of their
    pair: its lower half decides for c, its upper half for c + 8, by a threshold. Version 1 has a hash for each key,
    which decides as a signed word.
    """
    words = dropout_keys(first, tokens, heads, seed)
    if version == 1:
        word = mix((words[..., None] + torch.arange(tokens, device=first.device)) & WORD)
        return word - ((word >> 31) << 32) >= dropout_threshold(p, version)
    return keep_of_words(words, tokens, p)


def keep_of_words(words: Tensor, tokens: int, p: float) -> Tensor:
    """Version 2 of `dropout_keep` for words [...] of rows: bool [..., N]."""
    column = torch.arange(tokens, device=words.device)
    word = mix((words[..., None] + column // 16 * 8 + column % 8) & WORD)
    return torch.where(column % 16 < 8, word & 0xFFFF, word >> 16) >= dropout_threshold(p)


def dropout_threshold(p: float, version: int = DROPOUT) -> int:
    """The number, of 16 bits or in version 1 a signed one of 32, below which lies a share `p` of all of them."""
    return min(round(p * 2**32) - 2**31, 2**31 - 1) if version == 1 else min(round(p * 2**16), 2**16 - 1)


def dropout_rescale(p: float, version: int = DROPOUT) -> float:
    """What keeps the expectation: the inverse of the share that is kept, in version 2 a multiple of 2**-16."""
    return 1 / (1 - (p if version == 1 else dropout_threshold(p, version) / 2**16))


def sequence_bounds(cu_seqlens: Tensor, total: int, max_seqlen: int | None) -> list[tuple[int, int]]:
    """(begin, end) of each packed sequence, after a check that they tile 0..total."""
    edges: list[int] = cu_seqlens.tolist()
    bounds = list(pairwise(edges))
    if edges[0] != 0 or edges[-1] != total or any(begin > end for begin, end in bounds):
        raise ValueError(f"attention: cu_seqlens must rise from 0 to {total} (the number of tokens), got {edges}")
    longest = max((end - begin for begin, end in bounds), default=0)
    if max_seqlen is not None and longest > max_seqlen:
        raise ValueError(f"attention: the longest packed sequence has {longest} tokens, max_seqlen says {max_seqlen}")
    return bounds


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
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
) -> Tensor:
    """Probabilities, dropout, values; packed sequences one after the other."""

    def dense(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, first: Tensor) -> Tensor:
        probabilities = attention_probabilities(
            q, k, key_mask=key_mask, bias_table=bias_table, max_distance=max_distance, scale=scale
        )
        if dropout_p:
            kept = dropout_keep(first, q.shape[1], q.shape[2], dropout_p, seed, dropout_version)
            probabilities = probabilities * kept * dropout_rescale(dropout_p, dropout_version)
        return torch.einsum("bhqk,bkhd->bqhd", probabilities, v)

    if cu_seqlens is None:
        batch, tokens = q.shape[:2]
        return dense(q, k, v, key_mask, torch.arange(batch, device=q.device) * tokens)
    outputs = []
    for begin, end in sequence_bounds(cu_seqlens, q.shape[0], max_seqlen):
        part = slice(begin, end)
        mask = None if key_mask is None else key_mask[None, part]
        outputs.append(
            dense(q[None, part], k[None, part], v[None, part], mask, torch.tensor([begin], device=q.device))[0]
        )
    return torch.cat(outputs)


def normalised(x: Tensor) -> Tensor:
    """Unit vectors along the last axis; the square of the length is at least 1e-12, as official."""
    return x * x.square().sum(dim=-1, keepdim=True).clamp(min=1e-12).rsqrt()


def contrastive_loss(
    video: Tensor,
    other: Tensor,
    all_video: Tensor,
    all_other: Tensor,
    *,
    mask: Tensor | None,
    video_mask: Tensor | None,
    temperature: float,
    symmetric: bool,
) -> Tensor:
    """Both matrices of cosines in full. `mask` and `video_mask` [G] belong to `all_other` and `all_video`."""
    video, other, all_video, all_other = (normalised(x) for x in (video, other, all_video, all_other))
    penalty = NEGATIVE / temperature if symmetric else NEGATIVE
    forth = torch.einsum("id,jld->ijl", video, all_other) / temperature
    back = torch.einsum("jd,ild->ijl", all_video, other) / temperature
    if mask is not None:
        forth = forth + (1 - mask)[None, :, None] * penalty
    if video_mask is not None and symmetric:
        back = back + (1 - video_mask)[None, :, None] * penalty
    positives = (torch.einsum("id,ild->il", video, other) / temperature).logsumexp(dim=1)
    forth, back = forth.flatten(1).logsumexp(dim=1), back.flatten(1).logsumexp(dim=1)
    if symmetric:
        return (forth - positives) + (back - positives)
    return torch.logaddexp(forth, back) - positives
