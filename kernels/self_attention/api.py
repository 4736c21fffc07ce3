"""Self-attention: dense or packed, with a key mask, T5's relative bias and dropout on the probabilities.

    S = scale * q k^T + bias_table[bucket(key - query)];   P = softmax(S over visible keys);   out = dropout(P) v

Legend: B batch, N tokens, H heads, D width of a head, total = all tokens of packed sequences.
FLOPs: 4 H D sum(N^2) forward, 10 H D sum(N^2) backward (sums over sequences). Bytes: q, k, v, out once forward.
Limits: q, k and v have one shape (self-attention). Portable reads `cu_seqlens` on the host, which synchronises a GPU,
and materialises probabilities, in blocks of bounded size, when dropout is on.

Dropout: the decision for head h, query token t (its row in the packed or flattened batch) and key position c within
the sequence is a hash of (seed, t * H + h, c), see `reference.dropout_keep`; forward, backward and all implementations
see the same mask, and a packed batch of equal lengths sees that of the dense batch. The rate is p rounded to 16 bits.

Source: Akbari et al. 2021, section 3.2; relative bias: Raffel et al. 2020, section 2.1, with the release's numbers.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .. import reference
from ..dispatch import implementation
from ..validation import check_same_device, compute_dtype, shape_error, shape_of, without_autocast
from .libraries import LIBRARIES


def attention(
    q: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    *,
    key_mask: Tensor | None = None,
    bias_table: Tensor | None = None,
    max_distance: int = 64,
    cu_seqlens: Tensor | None = None,
    max_seqlen: int | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    seed: int | Tensor = 0,
    dropout_version: int = reference.DROPOUT,
    one_pass: bool = False,
    impl: str | None = None,
) -> Tensor:
    """Multi-head self-attention.

    Args:
        q, k, v: [B, N, H, D], or packed [total, H, D] with `cu_seqlens`; one shape, one floating dtype. Without k and
            v, q is all three, [B, N, 3, H, D] or [total, 3, H, D], and kernels write one gradient of it.
        key_mask: bool, [B, N] or [total]; True = attend. A sequence with no visible key gives 0 and no gradient.
        bias_table: [buckets, H], the bidirectional T5 bias added to the scaled scores; positions restart per sequence.
        max_distance: distance from which all keys share the last bucket.
        cu_seqlens: [sequences + 1] int32 or int64, 0 = first, total = last: where each packed sequence begins and ends.
        max_seqlen: an upper bound of the packed lengths, if known.
        scale: factor on q k^T; None is D**-0.5. T5 passes 1.0.
        dropout_p: probability of dropping a probability, 0 <= p < 1; the rest is scaled by 1 / (1 - p).
        seed: of the dropout mask; 64 bits are used. A tensor of one int64, on the device of q, is read there: what was
            captured or compiled with it drops anew when its value changes.
        dropout_version: 2, or 1 for the masks of runs that began with it.
        one_pass: let the Triton kernels' backward add up dq in any order, which is faster and does not repeat to the
            bit; the other implementations have no such form and ignore it.
        impl: "reference", "portable", "triton" or None: by device, see the package's docstring; for plain attention
            without dropout also "sdpa" or "xformers", who then compute it.

    Returns:
        The shape of q. In its dtype, or autocast's where that is on.

    Raises:
        ValueError, TypeError: a shape, a dtype, a length or a probability does not fit.
        RuntimeError, ImportError: `impl` was given and cannot run here, or `one_pass` under
            `torch.use_deterministic_algorithms`.
    """
    together = k is None and v is None
    if together:
        if q.ndim != (4 if cu_seqlens is not None else 5) or q.shape[-3] != 3:
            shape_error("attention", "q", "[B, N, 3, H, D], or [total, 3, H, D] with cu_seqlens, without k and v", q)
        whole, (q, k, v) = q, q.unbind(-3)
    assert k is not None
    assert v is not None
    packed = cu_seqlens is not None
    layout = "[total, H, D] (packed, as cu_seqlens is given)" if packed else "[B, N, H, D]"
    if q.ndim != (3 if packed else 4):
        shape_error("attention", "q", layout, q)
    for name, x in (("k", k), ("v", v)):
        if x.shape != q.shape:
            shape_error("attention", name, f"of the shape of q, {list(q.shape)}", x)
    if not q.is_floating_point() or not q.dtype == k.dtype == v.dtype:
        raise TypeError(f"attention: q, k, v must share one floating dtype, got {q.dtype}, {k.dtype}, {v.dtype}")
    heads, width = q.shape[-2:]
    if key_mask is not None:
        if key_mask.dtype != torch.bool:
            raise TypeError(f"attention: key_mask must be bool (True = attend), got {key_mask.dtype}; use mask != 0")
        if key_mask.shape != q.shape[:-2]:
            shape_error("attention", "key_mask", f"{list(q.shape[:-2])}, one value for each key", key_mask)
    if bias_table is not None:
        if bias_table.ndim != 2 or bias_table.shape[1] != heads or not bias_table.is_floating_point():
            shape_error("attention", "bias_table", f"[buckets, {heads}], floating point", bias_table)
        buckets = bias_table.shape[0]
        if buckets < 4 or buckets % 2 or max_distance <= buckets // 4:
            raise ValueError(
                f"attention: bias_table needs an even number of at least 4 buckets and max_distance > buckets / 4, "
                f"got {buckets} buckets and max_distance {max_distance}"
            )
    if cu_seqlens is not None and (
        cu_seqlens.ndim != 1 or not len(cu_seqlens) or cu_seqlens.dtype not in (torch.int32, torch.int64)
    ):
        raise ValueError(f"attention: cu_seqlens must be int32 or int64 [sequences + 1], got {shape_of(cu_seqlens)}")
    if max_seqlen is not None and not packed:
        raise ValueError("attention: max_seqlen belongs to packed sequences; pass cu_seqlens with it")
    if not 0.0 <= dropout_p < 1.0:
        raise ValueError(f"attention: dropout_p must satisfy 0 <= p < 1, got {dropout_p}")
    if dropout_version not in (1, reference.DROPOUT):
        raise ValueError(f"attention: dropout_version is 1 or {reference.DROPOUT}, got {dropout_version}")
    strict = torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
    if one_pass and strict:
        raise RuntimeError(
            "attention: one_pass adds up gradients in any order, and torch.use_deterministic_algorithms asks for one; "
            "leave it out"
        )
    check_same_device("attention", q=q, k=k, v=v, key_mask=key_mask, bias_table=bias_table)
    dtype = compute_dtype(q, q.dtype)
    compute = LIBRARIES.get(impl or "") or implementation("attention", impl, q.device, _load_triton)
    if not q.numel():
        return (q * k * v).to(dtype)  # no tokens: nothing to attend to
    triton = compute.__module__.endswith("triton_op")
    operands = (whole.to(dtype), None, None) if together and triton else (q.to(dtype), k.to(dtype), v.to(dtype))
    with without_autocast(q.device):
        out: Tensor = compute(
            *operands,
            key_mask=key_mask,
            bias_table=bias_table,
            max_distance=max_distance,
            cu_seqlens=cu_seqlens,
            max_seqlen=max_seqlen,
            scale=width**-0.5 if scale is None else scale,
            dropout_p=dropout_p,
            seed=seed,
            dropout_version=dropout_version,
            **({"one_pass": one_pass} if triton else {}),
        )
    return out


def _load_triton() -> Callable[..., Tensor]:
    from .triton_op import attention as operation

    return operation
