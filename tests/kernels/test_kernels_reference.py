"""The literal operations against independent oracles: the official model's numbers, PyTorch's own, plain integers."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import vatt_kernels as vk
from torch import Tensor
from vatt_kernels import reference

BOTH = pytest.mark.parametrize("impl", ["reference", "portable"])
MASK32 = 0xFFFFFFFF


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_importing_loads_neither_triton_nor_vatt() -> None:
    code = "import sys, vatt_kernels; print(sorted({'triton', 'vatt'} & set(sys.modules)), vatt_kernels.attention)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.startswith("[] <function attention")


# projection


@BOTH
def test_voxels_are_a_strided_convolution_of_the_normalised_clip(impl: str) -> None:
    frames = torch.randint(0, 256, (2, 9, 11, 14, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    weight, bias, position = randn(4 * 5 * 6 * 3, 7), randn(7, seed=2), randn(2 * 2 * 2, 7, seed=3)
    clip = (frames.double() * 2 / 255 - 1).permute(0, 4, 1, 2, 3)
    kernel = weight.T.reshape(7, 4, 5, 6, 3).permute(0, 4, 1, 2, 3)
    expected = F.conv3d(clip, kernel, bias, stride=(4, 5, 6)).flatten(2).mT + position
    got = vk.project_voxels(frames, weight, bias, patch=(4, 5, 6), position=position, impl=impl)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-11)
    keep = torch.tensor([[7, 0, 3], [1, 1, 6]], dtype=torch.int32)
    got = vk.project_voxels(frames, weight, bias, patch=(4, 5, 6), position=position, keep=keep, impl=impl)
    torch.testing.assert_close(got, torch.stack([expected[0, keep[0]], expected[1, keep[1]]]), rtol=0, atol=1e-11)
    got = vk.project_voxels(frames, weight, bias, patch=(4, 5, 6), position=position, keep=keep[0], impl=impl)
    torch.testing.assert_close(got, expected[:, keep[0]], rtol=0, atol=1e-11)


@BOTH
def test_waveforms_are_a_strided_convolution(impl: str) -> None:
    samples = torch.randint(-(2**15), 2**15, (3, 67), dtype=torch.int16, generator=torch.Generator().manual_seed(1))
    weight, bias = randn(16, 5), randn(5, seed=2)
    expected = F.conv1d(samples.double()[:, None] / 32768, weight.T[:, None], bias, stride=16).mT
    got = vk.project_waveform(samples, weight, bias, patch=16, impl=impl)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    scaled = vk.project_waveform(samples, weight, bias, patch=16, scale=0.5, shift=-3.0, impl=impl)
    expected = F.conv1d(samples.double()[:, None] * 0.5 - 3, weight.T[:, None], bias, stride=16).mT
    torch.testing.assert_close(scaled, expected, rtol=1e-12, atol=1e-9)


# sampling


def test_philox_known_answers() -> None:
    pi = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0)
    for (counter, key), words in (
        (((0, 0, 0, 0), (0, 0)), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (((MASK32,) * 4, (MASK32,) * 2), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (pi, (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
    ):
        assert reference.philox4x32_10(counter, key) == words
        tensors = tuple(torch.tensor([word]) for word in counter)
        assert tuple(int(word) for word in reference.philox4x32_10(tensors, key)) == words


@BOTH
def test_kept_tokens_are_the_smallest_philox_words(impl: str) -> None:
    seed, offset = 2**63 + 12345, 2**40 + 7
    keep = vk.sample_keep(50, 20, seed=seed, offset=offset, batch=3, impl=impl)
    assert keep.dtype == torch.int32
    for row in range(3):
        words = [
            reference.philox4x32_10((i, row, offset & MASK32, offset >> 32), (seed & MASK32, seed >> 32))[0]
            for i in range(50)
        ]
        smallest = sorted((word, i) for i, word in enumerate(words))[:20]
        assert keep[row].tolist() == sorted(i for _, i in smallest)
    assert torch.equal(vk.sample_keep(50, 20, seed=seed, offset=offset, impl=impl), keep[0])


@BOTH
def test_ties_go_to_the_smaller_index(impl: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "draw_words", lambda n, rows, *_: torch.tensor([[5, 1, 5, MASK32, 5]]))
    assert vk.sample_keep(5, 3, seed=0, impl=impl).tolist() == [0, 1, 2]


@BOTH
def test_draws_are_uniform_and_tell_seeds_rows_and_offsets_apart(impl: str) -> None:
    rows, tokens, kept = 4000, 24, 9
    keep = vk.sample_keep(tokens, kept, seed=3, batch=rows, impl=impl).long()
    assert bool((keep.diff(dim=1) > 0).all())  # ascending, so also without replacement
    member = torch.zeros(rows, tokens).scatter_(1, keep, 1.0)
    share = kept / tokens
    sigma = math.sqrt(share * (1 - share) / rows)
    assert float((member.mean(dim=0) - share).abs().max()) < 4.5 * sigma
    pairs = (member.T @ member / rows)[~torch.eye(tokens, dtype=torch.bool)]
    pair = kept * (kept - 1) / (tokens * (tokens - 1))
    assert float((pairs - pair).abs().max()) < 5 * math.sqrt(pair * (1 - pair) / rows)
    draws = [vk.sample_keep(400, 200, seed=s, offset=o, impl=impl) for s, o in ((0, 0), (1, 0), (0, 1), (2**32, 0))]
    assert len({tuple(draw.tolist()) for draw in draws}) == 4


@BOTH
def test_none_and_all_can_be_kept(impl: str) -> None:
    assert vk.sample_keep(7, 0, seed=0, impl=impl).shape == (0,)
    assert vk.sample_keep(7, 7, seed=0, batch=2, impl=impl).tolist() == [list(range(7))] * 2
    assert vk.sample_keep(0, 0, seed=0, batch=0, impl=impl).shape == (0, 0)


# attention


def test_buckets_are_the_official_ones(shared: Path) -> None:
    recorded = np.load(shared / "parity/fixtures/relative_buckets.npz")
    places = torch.from_numpy(recorded["relative_position"])
    names = [name for name in recorded.files if name.endswith("_bi")]
    assert len(names) >= 4
    for name in names:
        buckets, distance = (int(part[1:]) for part in name.split("_")[1:3])
        assert np.array_equal(reference.relative_buckets(places, buckets, distance).numpy(), recorded[name]), name


def test_attention_is_the_official_formula() -> None:
    q, k, v = (randn(2, 5, 3, 4, seed=seed) for seed in range(3))
    table = randn(8, 3, seed=4)
    mask = torch.tensor([[1, 1, 0, 1, 0], [1, 0, 0, 0, 0]]).bool()
    bias = torch.empty(3, 5, 5, dtype=torch.float64)
    for query in range(5):
        for key in range(5):
            bucket = reference.relative_buckets(torch.tensor(key - query), 8, 6)
            bias[:, query, key] = table[bucket]
    additive = (1 - mask.double())[:, None, None, :] * -1e9 + bias
    heads_first = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    expected = F.scaled_dot_product_attention(*heads_first, attn_mask=additive, scale=0.7)
    for impl in ("reference", "portable"):
        got = vk.attention(q, k, v, key_mask=mask, bias_table=table, max_distance=6, scale=0.7, impl=impl)
        torch.testing.assert_close(got, expected.transpose(1, 2), rtol=0, atol=1e-13)
    probabilities = reference.attention_probabilities(q, k, key_mask=mask, bias_table=table, max_distance=6, scale=0.7)
    torch.testing.assert_close(probabilities @ v.transpose(1, 2), expected, rtol=0, atol=1e-13)


@BOTH
def test_default_scale_is_the_root_of_the_head_width(impl: str) -> None:
    q, k, v = (randn(1, 4, 2, 9, seed=seed) for seed in range(3))
    torch.testing.assert_close(vk.attention(q, k, v, impl=impl), vk.attention(q, k, v, scale=1 / 3, impl=impl))


@BOTH
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_a_sequence_without_keys_gives_zero_and_no_gradient(impl: str, dropout: float, dtype: torch.dtype) -> None:
    q, k, v = (randn(3, 4, 2, 8, seed=seed).to(dtype).requires_grad_() for seed in range(3))
    table = randn(8, 2).to(dtype).requires_grad_()
    mask = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0], [1, 1, 1, 1]]).bool()
    out = vk.attention(q, k, v, key_mask=mask, bias_table=table, dropout_p=dropout, impl=impl)
    out.float().square().sum().backward()
    assert not out[1].any()
    assert bool(out[[0, 2]].any())
    for x in (q, k, v):
        assert x.grad is not None
        assert bool(x.grad.isfinite().all())
        assert not x.grad[1].any()
    assert table.grad is not None
    assert bool(table.grad.isfinite().all())
    for x in (k, v):
        assert x.grad is not None
        assert not x.grad[0, 1].any()  # a hidden key


@BOTH
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_packed_sequences_see_only_themselves(impl: str, dropout: float) -> None:
    lengths = [3, 1, 0, 5, 3]
    q, k, v = (randn(sum(lengths), 2, 4, seed=seed) for seed in range(3))
    table, mask = randn(8, 2, seed=5), torch.rand(sum(lengths), generator=torch.Generator().manual_seed(0)) > 0.3
    edges = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
    settings = {"bias_table": table, "max_distance": 6, "dropout_p": dropout, "seed": 9, "impl": impl}
    packed = vk.attention(q, k, v, key_mask=mask, cu_seqlens=edges, max_seqlen=5, **settings)
    assert packed.shape == q.shape
    if dropout == 0.0:
        for begin, length in zip(edges.tolist(), lengths, strict=False):
            part = slice(begin, begin + length)
            alone = vk.attention(q[None, part], k[None, part], v[None, part], key_mask=mask[None, part], **settings)
            torch.testing.assert_close(packed[part], alone[0])
    same = torch.arange(0, 13, 4)
    packed = vk.attention(q, k, v, cu_seqlens=same, **settings)
    dense = vk.attention(*(x.unflatten(0, (3, 4)) for x in (q, k, v)), **settings)
    torch.testing.assert_close(packed, dense.flatten(0, 1))


@pytest.mark.parametrize("version", [1, 2])
def test_dropout_mask_is_the_documented_hash(version: int) -> None:
    seed, heads, tokens, p = (7 << 32) + 11, 3, 29, 0.25
    first = torch.tensor([0, 2**31 - 1])  # rows past 2**32 wrap
    kept = reference.dropout_keep(first, tokens, heads, p, seed, version)
    low, high = seed & MASK32, seed >> 32
    a, b = reference.mix(low ^ 0x9E3779B9), reference.mix(reference.mix(low) ^ high)
    for sample, head, query, key in (
        (0, 0, 0, 0),
        (0, 2, 4, 3),
        (1, 1, 2, 4),
        (1, 0, 0, 9),
        (0, 1, 28, 23),
        (1, 2, 3, 27),
    ):
        row = ((int(first[sample]) + query) * heads + head) & MASK32
        pair = key if version == 1 else key // 16 * 8 + key % 8
        word = reference.mix((reference.mix(reference.mix(row ^ a) ^ b) + pair) & MASK32)
        if version == 1:
            expected = (word - 2**32 if word >= 2**31 else word) >= 2**30 - 2**31
        else:
            expected = (word >> 16 if key % 16 >= 8 else word & 0xFFFF) >= 2**14
        assert bool(kept[sample, head, query, key]) == expected


def test_dropout_of_version_2_has_a_rate_of_16_bits() -> None:
    for p in (1e-9, 0.1, 0.5, 1 - 1e-12):
        rate = reference.dropout_threshold(p) / 2**16
        assert abs(rate - p) <= 2**-16
        assert reference.dropout_rescale(p) * (1 - rate) == pytest.approx(1, rel=1e-12)


def test_dropout_hash_flips_half_of_its_bits_for_each_bit_of_the_row_and_of_the_pair() -> None:
    words = torch.randint(0, 2**32, (20_000,), generator=torch.Generator().manual_seed(0))
    bits = torch.arange(32)
    for bit in range(32):
        changed = reference.mix(words) ^ reference.mix((words + (1 << bit)) & MASK32)
        share = (changed[:, None] >> bits & 1).double().mean(dim=0)
        assert float((share - 0.5).abs().max()) < 5 * 0.5 / math.sqrt(len(words))


@pytest.mark.parametrize("version", [1, 2])
def test_dropout_has_its_rate_and_no_pattern(version: int) -> None:
    p, tokens = 0.1, 96
    first = torch.arange(8) * tokens
    kept = reference.dropout_keep(first, tokens, 4, p, 1, version).double()
    p = reference.dropout_threshold(p) / 2**16 if version == 2 else p
    sigma = math.sqrt(p * (1 - p) / kept.numel())
    assert abs(float(1 - kept.mean()) - p) < 4 * sigma
    for axes in ((0, 1, 2), (0, 1, 3), (0, 2, 3), (1, 2, 3)):  # by key, by query, by head, by sample
        part = 1 - kept.mean(dim=axes)
        assert float((part - p).abs().max()) < 4.5 * sigma * math.sqrt(len(part))
    other = reference.dropout_keep(first, tokens, 4, p, 2, version).double()
    apart = [(kept[..., n:], kept[..., :-n]) for n in (1, 2, 7, 8, 9, 16, 48)]  # keys, those of one word among them
    rows = [(kept[..., n:, :], kept[..., :-n, :]) for n in (1, 8)]
    for a, b in ((kept, other), (kept[:-1], kept[1:]), (kept[:, 1:], kept[:, :-1]), *apart, *rows):
        together = float(((1 - a) * (1 - b)).mean())
        assert abs(together - p * p) < 5 * math.sqrt(p * p * (1 - p * p) / a.numel())


def test_dropout_keeps_the_expectation() -> None:
    q, k, v = (randn(1, 6, 1, 4, seed=seed) for seed in range(3))
    mean = torch.stack([vk.attention(q, k, v, dropout_p=0.5, seed=seed, impl="reference") for seed in range(400)])
    exact = vk.attention(q, k, v, impl="reference")
    spread = mean.std(dim=0) / math.sqrt(400)
    assert bool(((mean.mean(dim=0) - exact).abs() < 5 * spread).all())


# contrastive loss


def official_pair(case: dict, pair: tuple[str, str, str], form: str, impl: str) -> tuple[Tensor, list[Tensor]]:
    """The official losses of one pair on each replica, by the reduction that the module's docstring gives."""
    video, other, mask_name = pair
    replicas, symmetric = int(case["replicas"]), form == "symmetric_nce"
    all_video, flat = (torch.from_numpy(case[name]).double().requires_grad_() for name in (video, other))
    total = all_video.shape[0]
    all_other = flat.view(total, -1, flat.shape[1])
    masks = {name: torch.from_numpy(case[name]).double() for name in (mask_name, "video_mask") if name in case}
    size = total // replicas
    losses = []
    for replica in range(replicas):
        part = slice(replica * size, (replica + 1) * size)
        mask, video_mask = masks.get(mask_name), masks.get("video_mask")
        loss = vk.contrastive_loss(
            all_video[part],
            all_other[part],
            mask=None if mask is None else mask[part],
            video_mask=None if video_mask is None else video_mask[part],
            symmetric=symmetric,
            all_video=all_video,
            all_other=all_other,
            all_mask=mask,
            all_video_mask=video_mask,
            offset=part.start,
            impl=impl,
        )
        assert bool(loss.isfinite().all())
        for weight in (mask, video_mask if symmetric else None):
            if weight is not None:
                loss = loss * weight[part] * (size / weight[part].sum().clamp(min=1))
        losses.append(loss.mean())
    return torch.stack(losses), [all_video, flat]


@BOTH
@pytest.mark.parametrize("form", ["asymmetric_nce", "symmetric_nce"])
@pytest.mark.parametrize(
    "tag", ["nomask", "allvalid", "partial", "notext", "onevalid", "nce_L1", "videomask", "replicas2"]
)
def test_contrastive_loss_is_the_official_one(shared: Path, tag: str, form: str, impl: str) -> None:
    recorded = np.load(shared / "parity/fixtures/nce_losses.npz")
    case = {name.removeprefix(f"{tag}."): recorded[name] for name in recorded.files if name.startswith(f"{tag}.")}
    text, video_text = official_pair(case, ("video_totxt", "text_tovid", "text_mask"), form, impl)
    audio, video_audio = official_pair(case, ("video_toaud", "audio_tovid", "audio_mask"), form, impl)
    total = (text + audio) / 2
    got = torch.stack([total, text, audio], dim=1).detach().numpy()
    np.testing.assert_allclose(got, case[f"{form}.loss_vidtxt_vidaud"], rtol=1e-5, atol=2e-6)
    if int(case["replicas"]) > 1:
        return  # gradients were recorded for one replica
    total.sum().backward()
    names = ("video_totxt", "text_tovid", "video_toaud", "audio_tovid")
    for name, leaf in zip(names, video_text + video_audio, strict=True):
        expected = case[f"{form}.grad.{name}"]
        assert leaf.grad is not None
        np.testing.assert_allclose(leaf.grad.numpy(), expected, rtol=1e-4, atol=1e-5 * max(np.abs(expected).max(), 0.1))


@BOTH
@pytest.mark.parametrize("symmetric", [False, True])
def test_ranks_together_are_the_whole_batch(impl: str, symmetric: bool) -> None:
    video, other = randn(6, 8).requires_grad_(), randn(6, 3, 8, seed=1).requires_grad_()
    mask, video_mask = torch.tensor([1, 1, 0, 1, 1, 1]).bool(), torch.tensor([1, 0, 1, 1, 1, 1]).bool()
    settings = {"symmetric": symmetric, "temperature": 0.2, "impl": impl}
    valid = mask & video_mask if symmetric else mask
    whole = vk.contrastive_loss(video, other, mask=mask, video_mask=video_mask, **settings)
    expected = torch.autograd.grad((whole * valid).sum(), (video, other))
    gathered = {"all_video": video, "all_other": other, "all_mask": mask, "all_video_mask": video_mask}
    ranks = [
        vk.contrastive_loss(
            video[i : i + 2],
            other[i : i + 2],
            mask=mask[i : i + 2],
            video_mask=video_mask[i : i + 2],
            offset=i,
            **gathered,
            **settings,
        )
        for i in (0, 2, 4)
    ]
    torch.testing.assert_close(torch.cat(ranks)[valid], whole[valid])
    got = torch.autograd.grad((torch.cat(ranks) * valid).sum(), (video, other))
    torch.testing.assert_close(got, expected)


@BOTH
def test_asymmetric_minimum_and_the_form_with_positives_once(impl: str) -> None:
    aligned = torch.eye(5, 8, dtype=torch.float64)
    loss = vk.contrastive_loss(aligned, aligned[:, None], temperature=0.01, impl=impl)
    torch.testing.assert_close(loss, torch.full_like(loss, math.log(2)))
    video, other = randn(4, 8), randn(4, 3, 8, seed=1)
    loss = vk.contrastive_loss(video, other, temperature=0.3, impl=impl)
    cosine = F.normalize(video, dim=1) @ F.normalize(other, dim=2).flatten(0, 1).T / 0.3
    scores = cosine.exp().view(4, 4, 3).sum(dim=2)
    positive = scores.diagonal()
    once = torch.log(scores.sum(dim=0) + scores.sum(dim=1) - positive) - positive.log()
    torch.testing.assert_close(torch.log(torch.expm1(loss)), once)


@BOTH
def test_zero_vectors_have_finite_losses_and_gradients(impl: str) -> None:
    video, other = torch.zeros(3, 4, requires_grad=True), torch.zeros(3, 2, 4, requires_grad=True)
    vk.contrastive_loss(video, other, impl=impl).sum().backward()
    for x in (video, other):
        assert x.grad is not None
        assert bool(x.grad.isfinite().all())
