"""Plain attention by other libraries, for those who name them: PyTorch's scaled_dot_product_attention, and xformers.

Plain: no key mask, no relative bias, no packed sequences. Neither drops the probabilities that the seed says, so that
dropout is refused. Their backward need not repeat to the bit on a GPU. FLOPs and bytes: as in `api`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

# On a GPU the first that can, for a dtype and a width: the fastest of them on NVIDIA's newer ones comes first.
BACKENDS = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


def _require_plain(name: str, dropout_p: float, **given: Tensor | None) -> None:
    found = [option for option, value in given.items() if value is not None]
    if found or dropout_p:
        what = f"has no {', '.join(found)}" if found else "drops other probabilities than the seed says"
        raise ValueError(f'attention: impl="{name}" {what}; use impl="triton" or impl="portable"')


def sdpa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    key_mask: Tensor | None,
    bias_table: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float,
    dropout_p: float,
    **_: Any,
) -> Tensor:
    """Arguments as in `vatt_kernels.attention`. Raises ValueError where attention is not plain."""
    _require_plain("sdpa", dropout_p, key_mask=key_mask, bias_table=bias_table, cu_seqlens=cu_seqlens)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    with sdpa_kernel(BACKENDS, set_priority=True) if q.is_cuda else nullcontext():
        return F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2)


def xformers(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    key_mask: Tensor | None,
    bias_table: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float,
    dropout_p: float,
    **_: Any,
) -> Tensor:
    """Likewise. Raises ImportError without the package, and what it raises where it has no kernel."""
    _require_plain("xformers", dropout_p, key_mask=key_mask, bias_table=bias_table, cu_seqlens=cu_seqlens)
    try:
        from xformers.ops import memory_efficient_attention
    except ImportError as error:
        raise ImportError(
            f'attention: impl="xformers" needs the package xformers ({error}); use impl="triton" or impl="portable"'
        ) from error
    out: Tensor = memory_efficient_attention(q, k, v, scale=scale)
    return out


LIBRARIES: dict[str, Callable[..., Tensor]] = {"sdpa": sdpa, "xformers": xformers}
