"""DropToken: which tokens to keep, and taking them.

`sample_keep` is a function of (seed, offset, row, index) and of nothing else, so a run can be resumed exactly and
every device draws the same tokens. `gather_tokens` drops after the fact, where a layer sits between the projection and
the drop; where none does, give `keep` to the projection and the dropped tokens cost nothing at all.

Legend: B batch, N tokens, K kept tokens, D width. FLOPs: none. Bytes of the gather: 2 B K D values each way.
Source: Akbari et al. 2021, section 3.1 (DropToken); Philox4x32-10: Salmon et al. 2011, "Parallel random numbers: as
easy as 1, 2, 3".
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..dispatch import implementation
from ..validation import check_keep, check_same_device, shape_error


def sample_keep(
    tokens: int,
    kept: int,
    *,
    seed: int | Tensor,
    offset: int = 0,
    batch: int | None = None,
    device: torch.device | str | None = None,
    impl: str | None = None,
) -> Tensor:
    """Draw `kept` of `tokens` indices uniformly without replacement.

    Each index of each row gets one 32-bit word of Philox4x32-10 with key `seed` and counter (index, row, offset); the
    `kept` smallest words win, ties go to the smaller index.

    Args:
        tokens: N, the number of tokens to choose from.
        kept: K, usually int(share * tokens).
        seed: 64 bits are used. A tensor of one int64, on `device`, is read there, as in `attention`.
        offset: tells draws of one seed apart (a step, a layer, a modality); 64 bits are used.
        batch: None for one draw that all samples share (as the release does), else one draw for each of `batch` rows.
        device: where to draw; None is the CPU. The numbers do not depend on it.
        impl: "reference", "portable", "triton" or None: by device, see the package's docstring.

    Returns:
        [K], or [batch, K], int32, ascending.

    Raises:
        ValueError: `kept` is not in 0..tokens, `batch` is negative or `tokens` does not fit into 31 bits.
        RuntimeError, ImportError: `impl` was given and cannot run on `device`.
    """
    if not 0 <= tokens < 2**31:
        raise ValueError(f"sample_keep: tokens must lie in 0..2**31-1, got {tokens}")
    if not 0 <= kept <= tokens:
        raise ValueError(f"sample_keep: kept must lie in 0..{tokens} (the number of tokens), got {kept}")
    if batch is not None and batch < 0:
        raise ValueError(f"sample_keep: batch must be None or a number of rows, got {batch}")
    target = torch.device("cpu" if device is None else device)
    draw = implementation("sample_keep", impl, target, _load_triton_sample_keep)
    return draw(tokens, kept, seed=seed, offset=offset, batch=batch, device=target)


def gather_tokens(x: Tensor, keep: Tensor, *, impl: str | None = None) -> Tensor:
    """Take the kept tokens: `y[b, i] = x[b, keep[i]]`, or `x[b, keep[b, i]]`.

    Args:
        x: [B, N, D], any dtype.
        keep: [K] or [B, K] int32 or int64.
        impl: "reference", "portable", "triton" or None: by device, see the package's docstring.

    Returns:
        [B, K, D] in the dtype of `x`.

    Raises:
        ValueError, TypeError, IndexError: a shape, a dtype or an index in `keep` does not fit.
        RuntimeError, ImportError: `impl` was given and cannot run here.
    """
    if x.ndim != 3:
        shape_error("gather_tokens", "x", "[B, N, D]", x)
    check_keep("gather_tokens", keep, x.shape[0], x.shape[1])
    check_same_device("gather_tokens", x=x, keep=keep)
    return implementation("gather_tokens", impl, x.device, _load_triton_gather_tokens)(x, keep)


def _load_triton_sample_keep() -> Callable[..., Tensor]:
    from .triton_op import sample_keep as operation

    return operation


def _load_triton_gather_tokens() -> Callable[..., Tensor]:
    from .triton_op import gather_tokens as operation

    return operation
