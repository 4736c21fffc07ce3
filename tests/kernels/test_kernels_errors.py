"""What the operations refuse, and that the message says what came and what fits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import vatt_kernels as vk
from torch import Tensor


def test_asking_for_triton_without_a_device_for_it_is_an_error_that_names_the_ways_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises((RuntimeError, ImportError), match=r"triton.*portable.*reference"):
        vk.sample_keep(4, 2, seed=0, impl="triton")
    with pytest.raises(ValueError, match=r"impl='fast' is unknown.*'reference', 'portable'"):
        vk.gather_tokens(torch.zeros(1, 4, 2), torch.tensor([0]), impl="fast")


FRAMES = torch.zeros(2, 4, 8, 8, 3, dtype=torch.uint8)
WEIGHT = torch.zeros(2 * 4 * 4 * 3, 5)
Q = torch.zeros(2, 3, 4, 8)
WRONG = [
    (lambda: vk.project_voxels(FRAMES[0], WEIGHT, patch=(2, 4, 4)), ValueError, r"frames must be \[B, T, H, W, C\]"),
    (lambda: vk.project_voxels(FRAMES.int(), WEIGHT, patch=(2, 4, 4)), TypeError, "uint8 or floating"),
    (lambda: vk.project_voxels(FRAMES, WEIGHT[:7], patch=(2, 4, 4)), ValueError, r"weight must be \[96, d\].*\[7, 5\]"),
    (lambda: vk.project_voxels(FRAMES, WEIGHT, WEIGHT[0, :4], patch=(2, 4, 4)), ValueError, r"bias must be \[5\]"),
    (lambda: vk.project_voxels(FRAMES, WEIGHT, patch=(2, 4, 4), position=WEIGHT), ValueError, r"position.*\[8, 5\]"),
    (lambda: vk.project_voxels(FRAMES[:, :1], WEIGHT, patch=(2, 4, 4)), ValueError, "smaller than one patch"),
    (lambda: vk.project_voxels(FRAMES, WEIGHT, patch=(2, 4, 4), keep=torch.tensor([8])), IndexError, r"0\.\.7"),
    (lambda: vk.project_voxels(FRAMES, WEIGHT, patch=(2, 4, 4), keep=torch.tensor([-1])), IndexError, r"0\.\.7"),
    (lambda: vk.project_voxels(FRAMES, WEIGHT, patch=(2, 4, 4), keep=torch.zeros(3, 2).int()), ValueError, r"\[2, K\]"),
    (lambda: vk.project_voxels(FRAMES, WEIGHT, patch=(2, 4, 4), keep=torch.zeros(2)), TypeError, "int32 or int64"),
    (lambda: vk.project_waveform(torch.zeros(2, 8, 1), WEIGHT, patch=4), ValueError, r"samples must be \[B, S\]"),
    (lambda: vk.project_waveform(torch.zeros(2, 8).int(), WEIGHT, patch=4), TypeError, "int16"),
    (lambda: vk.gather_tokens(torch.zeros(2, 3), torch.tensor([0])), ValueError, r"x must be \[B, N, D\]"),
    (lambda: vk.gather_tokens(torch.zeros(2, 3, 1), torch.tensor([3])), IndexError, r"0\.\.2"),
    (lambda: vk.sample_keep(4, 5, seed=0), ValueError, r"kept must lie in 0\.\.4"),
    (lambda: vk.attention(Q[0], Q[0], Q[0]), ValueError, r"q must be \[B, N, H, D\]"),
    (lambda: vk.attention(Q, Q[:, :2], Q), ValueError, "k must be of the shape of q"),
    (lambda: vk.attention(Q, Q, Q.double()), TypeError, "one floating dtype"),
    (lambda: vk.attention(Q, Q, Q, key_mask=torch.ones(2, 3)), TypeError, "bool"),
    (lambda: vk.attention(Q, Q, Q, key_mask=torch.ones(2, 4).bool()), ValueError, r"key_mask must be \[2, 3\]"),
    (lambda: vk.attention(Q, Q, Q, bias_table=torch.zeros(32, 3)), ValueError, r"\[buckets, 4\]"),
    (lambda: vk.attention(Q, Q, Q, bias_table=torch.zeros(31, 4)), ValueError, "even number"),
    (lambda: vk.attention(Q, Q, Q, dropout_p=1.0), ValueError, "0 <= p < 1"),
    (lambda: vk.attention(Q), ValueError, r"\[B, N, 3, H, D\].*without k and v"),
    (lambda: vk.attention(Q, Q, Q, dropout_version=3), ValueError, "dropout_version is 1 or 2, got 3"),
    (lambda: vk.attention(Q, Q, Q, max_seqlen=3), ValueError, "pass cu_seqlens"),
    (lambda: vk.attention(Q[0], Q[0], Q[0], cu_seqlens=torch.tensor([0, 2])), ValueError, "rise from 0 to 3"),
    (lambda: vk.attention(Q[0], Q[0], Q[0], cu_seqlens=torch.tensor([0, 3]), max_seqlen=2), ValueError, "max_seqlen"),
    (lambda: vk.contrastive_loss(Q[0, :, 0], Q[0, :, 0]), ValueError, r"other must be \[3, L, 8\]"),
    (lambda: vk.contrastive_loss(Q[0, :, 0], Q[0], mask=torch.ones(4)), ValueError, r"mask must be \[3\]"),
    (lambda: vk.contrastive_loss(Q[0, :, 0], Q[0], all_video=Q[0, :, 0]), ValueError, "come together"),
    (lambda: vk.contrastive_loss(Q[0, :, 0], Q[0], offset=1), ValueError, "all_video and all_other"),
    (
        lambda: vk.contrastive_loss(Q[0, :, 0], Q[0], mask=torch.ones(3), all_video=Q[0, :, 0], all_other=Q[0]),
        ValueError,
        "mask and all_mask come together",
    ),
    (
        lambda: vk.contrastive_loss(Q[0, :, 0], Q[0], all_video=Q[0, :, 0], all_other=Q[0], offset=1),
        ValueError,
        "rows 1..3",
    ),
]


def test_one_pass_is_refused_where_results_must_repeat() -> None:
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(RuntimeError, match="one_pass adds up gradients in any order"):
            vk.attention(Q, Q, Q, one_pass=True)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(("call", "kind", "message"), WRONG)
def test_wrong_arguments_are_named(call: Callable[[], Tensor], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        call()
