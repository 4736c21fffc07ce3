"""NCE and MIL-NCE on a GPU: forward and backward stream tiles of the score matrix, which is never stored.

The formulas and masks are those of api.py; the kernels and their sums are in triton_forward.py and
triton_backward.py. Here they are put together: unit vectors are formed in float32 and rounded once, to the
dtype of the inputs, which is the dtype of the products; everything else (sums, logarithms, positives, losses and the
few vectors of the backward) is float32. Positives are taken from the rounded unit vectors as well, so that the positive
in the denominator is the one above it. Between forward and backward the inputs and [B] + [B] + [B, L] numbers are kept.

A rank alone needs one pass over B x (B*L) scores forward and two backward, since the matrix of the other direction is
its transpose. With gathered batches there are two matrices, B x (G*L) and (B*L) x G.

Legend: B clips of this rank, G clips of all ranks, L candidates a clip, D width.
FLOPs: forward 2 B B L D alone, 4 B G L D gathered; backward 8 B B L D alone, 16 B G L D gathered.
Bytes beyond inputs and gradients: (B + B L) D elements of unit vectors (and (G + G L) D gathered), some numbers for
each row, and float32 sums of a few tiles a processor.
Limits: D <= 512; bfloat16, float16, float32; masks bool or 0/1. Deterministic: no atomics.

Source: VATT (Akbari et al. 2021), section 3.4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import reference
from ..device import check_product
from ..registration import differentiable, operator, present
from .triton_backward import Positives, Side, vector_gradient
from .triton_forward import FIXED_TEMPERATURE, MAX_WIDTH, both_sums, padded, pair_scores, row_sums, unit_vectors

# Gradients by scores are scaled to this maximum (twice it in the symmetric form): a softmax of a large batch lies below
# the smallest float16. With it, what is a 4e-9th of the largest is still a normal number.
FLOAT16_GRADIENT = 2.0**14


class Admissions(NamedTuple):
    """What masks do to the columns of both matrices: factors [padded rows] 1 or 0, and what is added to all scores.

    The release adds -1e9 to what is masked. Where anything is left, that is a factor of 0; where all is masked, it is
    the same number added to every score. Taking the largest addition out of the sum covers both.
    """

    videos: Tensor
    others: Tensor
    to_videos: Tensor
    to_others: Tensor


def admissions(
    clips: int,
    candidates: int,
    mask: Tensor | None,
    video_mask: Tensor | None,
    temperature: float,
    symmetric: bool,
    like: Tensor,
) -> Admissions:
    """`clips` of the gathered batch, `mask` and `video_mask` [clips] or None; dtype and device as `like`."""
    penalty = reference.NEGATIVE / temperature if symmetric else reference.NEGATIVE

    def admit(mask: Tensor | None, repeat: int) -> tuple[Tensor, Tensor]:
        factors = torch.zeros(padded(clips * repeat, like.dtype), dtype=torch.float32, device=like.device)
        if mask is None:
            factors[: clips * repeat] = 1
            return factors, torch.zeros((), dtype=torch.float32, device=like.device)
        additions = (1 - mask.float()) * penalty
        largest = additions.amax()
        factors[: clips * repeat] = (additions - largest).exp().repeat_interleave(repeat)
        return factors, largest

    videos, to_videos = admit(video_mask if symmetric else None, 1)
    others, to_others = admit(mask, candidates)
    return Admissions(videos, others, to_videos, to_others)


def logarithms(forth: Tensor, back: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    return (forth.log(), back.log()) if temperature >= FIXED_TEMPERATURE else (forth, back)


def contrastive_forward(
    video: Tensor,
    other: Tensor,
    all_video: Tensor | None,
    all_other: Tensor | None,
    mask: Tensor | None,
    video_mask: Tensor | None,
    temperature: float,
    symmetric: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Losses, and what the backward needs of them.

    Args:
        video, other: [B, D] and [B, L, D], contiguous, of one dtype, B > 0.
        all_video, all_other: [G, D] and [G, L, D] likewise; None: this rank is alone.
        mask, video_mask: [G] (alone [B]) or None; `video_mask` is read by the symmetric form only.

    Returns:
        float32 losses [B]; the sums of both directions [B] and [B] as `row_sums` gives them, without what a mask adds
        to all scores of a direction; scores of the positives [B, L].
    """
    clips, candidates = other.shape[:2]
    videos, others = unit_vectors(video), unit_vectors(other.flatten(0, 1))
    total = clips if all_video is None else all_video.shape[0]
    admit = admissions(total, candidates, mask, video_mask, temperature, symmetric, video)
    if all_video is None or all_other is None:
        if temperature >= FIXED_TEMPERATURE:
            forth, back = both_sums(videos, others, admit.videos, admit.others, temperature)
        else:
            forth = row_sums(videos, others, admit.others, temperature)
            back = row_sums(others, videos, admit.videos, temperature)
    else:
        forth = row_sums(videos, unit_vectors(all_other.flatten(0, 1)), admit.others, temperature)
        back = row_sums(others, unit_vectors(all_video), admit.videos, temperature)
    forth, back = forth[:clips].contiguous(), back[: clips * candidates].view(clips, candidates)
    back = back.sum(dim=1) if temperature >= FIXED_TEMPERATURE else back.logsumexp(dim=1)
    pairs = pair_scores(videos, others, clips, candidates, temperature)
    log_forth, log_back, positives = *logarithms(forth, back, temperature), pairs.logsumexp(dim=1)
    if symmetric:
        loss = (log_forth + admit.to_others - positives) + (log_back + admit.to_videos - positives)
    else:
        loss = torch.logaddexp(log_forth + admit.to_others, log_back) - positives
    return loss, forth, back, pairs


def contrastive_backward(
    grad: Tensor,
    forth: Tensor,
    back: Tensor,
    pairs: Tensor,
    video: Tensor,
    other: Tensor,
    all_video: Tensor | None,
    all_other: Tensor | None,
    mask: Tensor | None,
    video_mask: Tensor | None,
    temperature: float,
    symmetric: bool,
    needed: tuple[bool, bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients by video, other, all_video and all_other where `needed`, in their shapes and dtypes.

    `grad` is float32 [B]; what follows it are the results and the arguments of `contrastive_forward`.
    """
    clips, candidates = other.shape[:2]
    flat = other.flatten(0, 1)
    videos, others = unit_vectors(video), unit_vectors(flat)
    total = clips if all_video is None else all_video.shape[0]
    admit = admissions(total, candidates, mask, video_mask, temperature, symmetric, video)

    largest = grad.abs().amax().clamp(min=1e-30)
    target = FLOAT16_GRADIENT if video.dtype == torch.float16 else 1.0
    grad = grad * (target / largest)
    factor = (largest / (target * temperature)).reshape(1)
    log_forth, log_back = logarithms(forth, back, temperature)
    grad_forth = grad_back = grad
    grad_positives = -2 * grad
    if not symmetric:
        ahead = log_forth + admit.to_others - log_back
        grad_forth, grad_back, grad_positives = grad * ahead.sigmoid(), grad * (-ahead).sigmoid(), -grad
    weights = grad_positives[:, None] * pairs.softmax(dim=1)

    def terms(units: Tensor, gain: Tensor | None, sums: Tensor | None, factors: Tensor | None) -> Tensor:
        """[3, padded rows] for the kernel, which needs the sums apart from the gains below FIXED_TEMPERATURE only."""
        result = torch.zeros(3, units.shape[0], dtype=torch.float32, device=units.device)
        if gain is not None and sums is not None:
            fixed = temperature >= FIXED_TEMPERATURE
            result[0, : len(gain)] = gain / sums if fixed else gain
            result[2, : len(gain)] = 0 if fixed else sums * math.log2(math.e)
        if factors is not None:
            result[1] = factors
        return result

    def gradient(rows: Side, columns: Side, positives: Positives | None = None) -> Tensor:
        return vector_gradient(rows, columns, positives, factor, temperature)

    grad_back, back = grad_back.repeat_interleave(candidates), back.repeat_interleave(candidates)
    of_clips = Positives("clips", others, weights, candidates)
    of_candidates = Positives("candidates", videos, weights, candidates)
    grad_video = grad_other = grad_all_video = grad_all_other = None
    if all_video is None or all_other is None:
        video_side = Side(video, videos, terms(videos, grad_forth, forth, admit.videos), True)
        other_side = Side(flat, others, terms(others, grad_back, back, admit.others), True)
        if needed[0]:
            grad_video = gradient(video_side, other_side, of_clips)
        if needed[1]:
            grad_other = gradient(other_side, video_side, of_candidates).view_as(other)
        return grad_video, grad_other, None, None
    video_side = Side(video, videos, terms(videos, grad_forth, forth, None), True)
    other_side = Side(flat, others, terms(others, grad_back, back, None), True)
    if needed[0] or needed[3]:
        all_flat = all_other.flatten(0, 1)
        all_others = unit_vectors(all_flat)
        all_side = Side(all_flat, all_others, terms(all_others, None, None, admit.others), False)
        if needed[0]:
            grad_video = gradient(video_side, all_side, of_clips)
        if needed[3]:
            grad_all_other = gradient(all_side, video_side).view_as(all_other)
    if needed[1] or needed[2]:
        all_videos = unit_vectors(all_video)
        all_side = Side(all_video, all_videos, terms(all_videos, None, None, admit.videos), False)
        if needed[1]:
            grad_other = gradient(other_side, all_side, of_candidates).view_as(other)
        if needed[2]:
            grad_all_video = gradient(all_side, other_side)
    return grad_video, grad_other, grad_all_video, grad_all_other


ARGUMENTS = (
    "Tensor video, Tensor other, Tensor? all_video, Tensor? all_other, Tensor? mask, Tensor? video_mask, "
    "float temperature, bool symmetric"
)


def _backward(
    grad: Tensor, forth: Tensor, back: Tensor, pairs: Tensor, video: Tensor, other: Tensor, *settings: Any
) -> tuple[Tensor, ...]:
    gradients = contrastive_backward(grad, forth, back, pairs, video, other, *settings)
    return tuple(grad.new_empty(0) if gradient is None else gradient for gradient in gradients)


def _fake_forward(video: Tensor, other: Tensor, *settings: Any) -> tuple[Tensor, ...]:
    clips, candidates = other.shape[:2]
    shapes = ((clips,), (clips,), (clips,), (clips, candidates))
    return tuple(video.new_empty(shape, dtype=torch.float32) for shape in shapes)


def _fake_backward(
    grad: Tensor,
    forth: Tensor,
    back: Tensor,
    pairs: Tensor,
    video: Tensor,
    other: Tensor,
    all_video: Tensor | None,
    all_other: Tensor | None,
    mask: Tensor | None,
    video_mask: Tensor | None,
    temperature: float,
    symmetric: bool,
    needed: Sequence[bool],
) -> tuple[Tensor, ...]:
    inputs = (video, other, all_video, all_other)
    return tuple(
        x.new_empty(x.shape) if need and x is not None else grad.new_empty(0)
        for x, need in zip(inputs, needed, strict=True)
    )


def _forward_flops(
    video: torch.Size, other: torch.Size, all_video: torch.Size | None, *settings: Any, out_shape: Any
) -> int:
    """Both matrices of scores, also where a rank alone computes one of them only."""
    return 4 * (video if all_video is None else all_video)[0] * math.prod(other)


def _backward_flops(
    grad: torch.Size,
    forth: Any,
    back: Any,
    pairs: Any,
    video: torch.Size,
    other: torch.Size,
    all_video: torch.Size | None,
    *settings: Any,
    out_shape: Any,
) -> int:
    """Twice the forward; computing the scores again is the implementation's own expense."""
    return 2 * _forward_flops(video, other, all_video, out_shape=None)


_loss = operator(
    f"contrastive_loss({ARGUMENTS}) -> (Tensor, Tensor, Tensor, Tensor)",
    contrastive_forward,
    _fake_forward,
    _forward_flops,
)
_loss_backward = operator(
    f"contrastive_loss_backward(Tensor grad, Tensor forth, Tensor back, Tensor pairs, {ARGUMENTS}, bool[] needed) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _fake_backward,
    _backward_flops,
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*output[1:], *inputs[:6])
    ctx.settings = inputs[6:]
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, grad: Tensor | None, *of_statistics: Tensor | None) -> tuple[Tensor | None, ...]:
    """Of the losses; nobody differentiates the statistics."""
    if grad is None:
        return (None,) * 8
    needed = ctx.needs_input_grad[:4]
    gradients = _loss_backward(grad, *ctx.saved_tensors, *ctx.settings, needed)
    return *present(gradients, needed), *[None] * 4


differentiable(_loss, _save, _gradients, _loss_backward)


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
    """As `portable.contrastive_loss`, but the products are of the inputs' dtype; [B] float32.

    The batch of all ranks given as the very same tensors as this rank's own is a rank alone.

    Raises:
        TypeError: float64, several dtypes, or bfloat16 in the interpreter.
        ValueError: D is too large for a tile.
    """
    problem = None
    if video.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        problem = f"takes bfloat16, float16 or float32 vectors, got {video.dtype}"
    elif any(x.dtype != video.dtype for x in (other, all_video, all_other)):
        problem = "takes vectors of one dtype"
    if problem:
        raise TypeError(f'contrastive_loss: impl="triton" {problem}; convert them, or use impl="portable"')
    check_product("contrastive_loss", video.dtype)
    if video.shape[1] > MAX_WIDTH:
        raise ValueError(
            f'contrastive_loss: impl="triton" takes vectors of up to {MAX_WIDTH} numbers, got {video.shape[1]}; '
            'use impl="portable"'
        )
    alone = all_video is video and all_other is other
    if not video.shape[0]:
        return (video.sum(dim=1) + other.sum(dim=(1, 2))).float()  # empty, and no kernel to launch
    gathered = (None, None) if alone else (all_video.contiguous(), all_other.contiguous())
    loss: Tensor = _loss(video.contiguous(), other.contiguous(), *gathered, mask, video_mask, temperature, symmetric)[0]
    return loss
