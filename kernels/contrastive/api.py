"""NCE and MIL-NCE over the batches of all ranks, in memory linear in the number of candidates.

With unit vectors v_i (video) and w_il (candidate l of clip i) and s(i, j, l) = v_i . w_jl / temperature:

    pos_i = logsumexp_l s(i, i, l)
    a_i   = logsumexp_{j,l} s(i, j, l)          video i against the candidates of all clips j
    c_i   = logsumexp_{j,l} s(j, i, l)          candidates of clip i against the videos of all clips j
    asymmetric: loss_i = log(exp(a_i) + exp(c_i)) - pos_i      one denominator, so positives count twice: loss_i >= ln 2
    symmetric:  loss_i = (a_i - pos_i) + (c_i - pos_i)         the sum of two directions, not halved

The form with positives counted once follows from the asymmetric one: log(expm1(loss_i)).

Masks: a clip j with mask 0 has no valid candidates: these leave a_i for all i. In the symmetric form only (as in the
release) a clip j with video_mask 0 leaves c_i too. They leave by adding -1e9, after dividing by the temperature in the
asymmetric form and before it in the symmetric one. The value of a clip that is masked itself is finite and means
nothing: multiply it away. The official numbers are, with B the local batch and x / 0 = 0,

    asymmetric: mean(loss * mask * B / sum(mask))
    symmetric:  mean(loss * mask * B / sum(mask) * video_mask * B / sum(video_mask))

Legend: B clips of this rank, G clips of all ranks, L candidates a clip, D width.
FLOPs: 4 B G L D forward (two directions), 12 B G L D backward (every tile is computed again).
Bytes: B D + G L D values and one statistic a row are kept; tiles of at most `block` x `block` scores exist at a time.
Limits: statistics and products in float32 (float64 for float64 inputs), also under autocast. Triton multiplies unit
vectors of the inputs' dtype if they share one, accumulates in float32, and takes no float64.

Source: Akbari et al. 2021, section 3.4 (NCE and MIL-NCE); merged denominator, masks and eps 1e-12 as the release.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import torch
from torch import Tensor

from .. import portable, reference
from ..dispatch import implementation
from ..validation import check_same_device, shape_error, without_autocast


def contrastive_loss(
    video: Tensor,
    other: Tensor,
    *,
    mask: Tensor | None = None,
    video_mask: Tensor | None = None,
    temperature: float = 0.07,
    symmetric: bool = False,
    all_video: Tensor | None = None,
    all_other: Tensor | None = None,
    all_mask: Tensor | None = None,
    all_video_mask: Tensor | None = None,
    offset: int = 0,
    impl: str | None = None,
) -> Tensor:
    """Contrastive loss of each clip; the formulas, and how to reduce with masks, are in the module's docstring.

    Args:
        video: [B, D], not normalised.
        other: [B, L, D] audio (L = 1) or captions, not normalised. Vectors are divided by sqrt(max(|x|^2, 1e-12)).
        mask: [B] bool or 0/1: does the clip have valid candidates? None: all do.
        video_mask: [B] bool or 0/1: is the clip's video valid? Read by the symmetric form only.
        temperature: cosines are divided by it.
        symmetric: two denominators instead of a merged one.
        all_video, all_other, all_mask, all_video_mask: [G, D], [G, L, D], [G], [G]: the batches of all ranks, this
            rank's included; gradients flow to them where they require it. None: this rank is alone.
        offset: the row of all_* at which this rank's batch begins.
        impl: "reference", "portable", "triton" or None: by device, see the package's docstring.

    Returns:
        [B] float32 (float64 for float64 inputs): the loss of each clip.

    Raises:
        ValueError, TypeError: a shape, a dtype or a combination of arguments does not fit.
        RuntimeError, ImportError: `impl` was given and cannot run here.
    """
    op = "contrastive_loss"
    if video.ndim != 2 or not video.is_floating_point():
        shape_error(op, "video", "[B, D], floating point", video)
    batch, width = video.shape
    if other.ndim != 3 or other.shape[0] != batch or other.shape[2] != width or not other.is_floating_point():
        shape_error(op, "other", f"[{batch}, L, {width}], floating point", other)
    if other.shape[1] < 1:
        shape_error(op, "other", f"[{batch}, L, {width}] with at least one candidate a clip", other)
    if temperature <= 0:
        raise ValueError(f"{op}: temperature must be positive, got {temperature}")
    for name, given in (("mask", mask), ("video_mask", video_mask)):
        if given is not None and given.shape != (batch,):
            shape_error(op, name, f"[{batch}]", given)
    if (all_video is None) != (all_other is None):
        raise ValueError(f"{op}: all_video and all_other come together; pass both or neither")
    compute = implementation(op, impl, video.device, _load_triton)
    common = reduce(torch.promote_types, (x.dtype for x in (video, other, all_video, all_other) if x is not None))
    statistics = torch.float64 if common == torch.float64 else torch.float32
    dtype = statistics if compute in (reference.contrastive_loss, portable.contrastive_loss) else common
    video, other = video.to(dtype), other.to(dtype)
    if all_video is None or all_other is None:
        if all_mask is not None or all_video_mask is not None or offset:
            raise ValueError(f"{op}: all_mask, all_video_mask and offset describe all_video and all_other; pass these")
        all_video, all_other, all_mask, all_video_mask = video, other, mask, video_mask
    else:
        if all_video.ndim != 2 or all_video.shape[1] != width:
            shape_error(op, "all_video", f"[G, {width}]", all_video)
        total = all_video.shape[0]
        if all_other.shape != (total, *other.shape[1:]):
            shape_error(op, "all_other", f"[{total}, {other.shape[1]}, {width}]", all_other)
        for name, local, gathered in (("mask", mask, all_mask), ("video_mask", video_mask, all_video_mask)):
            if (local is None) != (gathered is None):
                raise ValueError(f"{op}: {name} and all_{name} come together; pass both or neither")
            if gathered is not None and gathered.shape != (total,):
                shape_error(op, f"all_{name}", f"[{total}]", gathered)
        if not 0 <= offset <= total - batch:
            raise ValueError(f"{op}: rows {offset}..{offset + batch - 1} of this rank do not lie in the {total} of all")
    check_same_device(op, video=video, other=other, all_video=all_video, all_other=all_other)
    check_same_device(op, video=video, all_mask=all_mask, all_video_mask=all_video_mask)
    with without_autocast(video.device):
        loss: Tensor = compute(
            video,
            other,
            all_video.to(dtype),
            all_other.to(dtype),
            mask=None if all_mask is None else all_mask.to(statistics),
            video_mask=None if all_video_mask is None else all_video_mask.to(statistics),
            temperature=temperature,
            symmetric=symmetric,
        )
    return loss


def _load_triton() -> Callable[..., Tensor]:
    from .triton_op import contrastive_loss as operation

    return operation
