"""Checks of tokenisers and encoders: video_vit, audio_wat, text_t5, unified; relative buckets and the spline."""

from __future__ import annotations

import re

import torch
import torch.nn.functional as F
from torch import Tensor

from ...model.positions import resample_table
from ...model.tokens import AudioTokens, TextTokens, VideoTokens
from ...model.transformer import Encoder, Layer
from ...model.vatt import VATT
from ...ops import attention_probabilities, relative_bias, relative_buckets
from .recording import DEFAULT, EQUAL, Recording, Tolerance, spline_tolerance

SPECIFIC, UNIFIED = "ckpt_tx_fac", "ckpt_ut_fac"


def backbone(recording: Recording, checkpoint: str) -> VATT:
    module = recording.fixtures.load(checkpoint).module
    assert isinstance(module, VATT)
    return module


def encoder_layers(recording: Recording, prefix: str, encoder: Encoder, x: Tensor, mask: Tensor | None) -> None:
    """`hidden_0` (the input), then probabilities and output of every layer, then the final norm."""
    note = "by reference from the fused q and k" if recording.fixtures.fused else ""
    recording.check(f"{prefix}hidden_0", x)
    for index, layer in enumerate(encoder.layers):
        assert isinstance(layer, Layer)
        attention = layer.attention
        q, k, _ = attention.project(layer.attention_norm(x)).unbind(-3)
        probabilities = attention_probabilities(
            q, k, key_mask=mask, bias_table=encoder.bias_table, max_distance=encoder.max_distance, scale=attention.scale
        )
        recording.check(f"{prefix}attn_probs_{index}", probabilities, note=note)
        x = layer(x, mask, encoder.bias_table, encoder.max_distance, 0)
        recording.check(f"{prefix}hidden_{index + 1}", x)
    recording.check(f"{prefix}hidden_final_ln", encoder.norm(x))


def raw_tokens(tokens: VideoTokens | AudioTokens, x: Tensor) -> Tensor:
    """The projection alone: no position, no AGG."""
    if isinstance(tokens, VideoTokens):
        return tokens.ops.project_voxels(x, tokens.weight, tokens.bias, patch=tokens.patch)
    return tokens.ops.project_waveform(x, tokens.weight, tokens.bias, patch=tokens.patch)


def grid_of(tokens: VideoTokens | AudioTokens, x: Tensor) -> tuple[int, ...]:
    if isinstance(tokens, VideoTokens):
        return tuple(size // patch for size, patch in zip(x.shape[1:4], tokens.patch, strict=True))
    return (x.shape[1] // tokens.patch,)


def resampled(tokens: VideoTokens | AudioTokens, grid: tuple[int, ...]) -> Tolerance:
    """Tolerance of what stands on position tables that the official spline stretched to `grid`."""
    lengths = [len(table) for table, size in zip(tokens.position.tables, grid, strict=True) if len(table) != size]
    return spline_tolerance(max(lengths)) if lengths else DEFAULT


@torch.no_grad()
def video_vit(recording: Recording) -> None:
    _tower(recording, "video")


@torch.no_grad()
def audio_wat(recording: Recording) -> None:
    _tower(recording, "audio")


def _tower(recording: Recording, modality: str) -> None:
    model = backbone(recording, SPECIFIC).backbone
    tokens, encoder = model.tokens[modality], model.encoder[modality]
    assert isinstance(tokens, VideoTokens | AudioTokens)
    assert isinstance(encoder, Encoder)

    def read(name: str) -> Tensor:
        x = recording.input(name)
        return x if modality == "video" else x[..., 0]

    x = read(modality)
    grid, raw = grid_of(tokens, x), raw_tokens(tokens, x)
    recording.check("patch_grid" if modality == "video" else "patch", raw.unflatten(1, grid))
    recording.check("position_only", tokens.position(grid)[None])
    with_agg = tokens(x)[0]
    recording.check("after_position", with_agg[:, 1:])
    recording.check("with_agg", with_agg)
    encoder_layers(recording, "", encoder, with_agg, None)
    features = model.features(modality, x)
    recording.check("features_pooled", features[:, 0])
    recording.check("predictions", features[:, 1:])
    if modality == "video":
        recording.check("predictions_3d", features[:, 1:].unflatten(1, grid))
    kept = recording.input("drop_perm")[: recording.number("drop_kept")]
    features = model.features(modality, x, keep=kept)
    recording.check("drop_features_pooled", features[:, 0])
    recording.check("drop_predictions", features[:, 1:])

    x = read(f"big_{modality}")
    grid = grid_of(tokens, x)
    tolerance = resampled(tokens, grid)
    recording.check("big_position_only", tokens.position(grid)[None], tolerance)
    recording.check("big_after_position", tokens(x)[0][:, 1:], tolerance)
    features = model.features(modality, x)
    recording.check("big_features_pooled", features[:, 0], tolerance)
    name = "big_predictions_3d" if modality == "video" else "big_predictions"
    recording.check(name, features[:, 1:].unflatten(1, grid), tolerance)


@torch.no_grad()
def text_t5(recording: Recording) -> None:
    model = backbone(recording, SPECIFIC).backbone
    tokens, encoder = model.tokens["text"], model.encoder["text"]
    assert isinstance(tokens, TextTokens)
    assert isinstance(encoder, Encoder)
    assert encoder.bias_table is not None
    words = recording.input("text_ids").long()
    x, mask = tokens(words)
    recording.check("attention_mask", mask[:, 1:], EQUAL)
    recording.check("mask_with_agg", mask, EQUAL)
    agg = tokens.agg.expand(len(words), 1, -1)
    recording.check("embedding_with_agg", torch.cat([agg, tokens.embedding(words)], dim=1))
    bias = relative_bias(encoder.bias_table, x.shape[1], encoder.max_distance)[None]
    recording.check("position_bias", bias)
    recording.check("position_bias_plus_mask", bias + (~mask[:, None, None]).float() * -1e9)
    encoder_layers(recording, "", encoder, x, mask)
    features = model.features("text", words)
    recording.check("features_pooled", features[:, 0])
    recording.check("word_embeddings", features[:, 1:])


@torch.no_grad()
def unified(recording: Recording) -> None:
    model = backbone(recording, UNIFIED).backbone
    encoder = model.encoder["shared"]
    assert isinstance(encoder, Encoder)
    for modality in ("video", "audio", "text"):
        tokens, x = model.tokens[modality], recording.input(f"{modality}.in")
        assert isinstance(tokens, VideoTokens | AudioTokens | TextTokens)
        assert tokens.inner is not None
        grid: tuple[int, ...]
        if isinstance(tokens, TextTokens):
            x = x.long()
            grid, raw = (x.shape[1],), tokens.embedding(x)
        else:
            x = x if modality == "video" else x[..., 0]
            grid, raw = grid_of(tokens, x), raw_tokens(tokens, x)
        recording.check(f"{modality}.raw_embedding", raw.unflatten(1, grid))
        recording.check(f"{modality}.pre_proj", F.gelu(tokens.inner(raw)).unflatten(1, grid))
        with_agg, mask = tokens(x)
        recording.check(f"{modality}.after_position", with_agg[:, 1:])
        if mask is not None:
            recording.check(f"{modality}.mask", mask, EQUAL)
        encoder_layers(recording, f"{modality}.", encoder, with_agg, mask)
        features = model.features(modality, x)
        recording.check(f"{modality}.features_pooled", features[:, 0])
        recording.check(f"{modality}.features", features[:, 1:].unflatten(1, grid))


def buckets(recording: Recording) -> None:
    """relative_buckets.npz: number of buckets and maximum distance are in the arrays' names."""
    position = recording.input("relative_position").long()
    for name in recording.arrays:
        if match := re.fullmatch(r"bucket_n(\d+)_d(\d+)_(bi|uni)", name):
            number, distance = int(match[1]), int(match[2])
            if match[3] == "bi":
                ours = relative_buckets(position, number, distance)
            else:
                # One direction with n buckets is the lower half of two directions with 2n; later keys share bucket 0.
                ours = relative_buckets(position.clamp(max=0), 2 * number, distance)
            recording.check(name, ours, EQUAL)


def spline(recording: Recording) -> None:
    for name in list(recording.arrays):
        if match := re.fullmatch(r"(src_(\d+)_to_(\d+))\.table", name):
            case, rows, target = match[1], int(match[2]), int(match[3])
            ours = resample_table(recording.input(name).double(), target)
            recording.check(f"{case}.expanded_float64", ours, spline_tolerance(rows, 2.0**-52))
            note = "the float32 solve's own error is the tolerance" if rows > 8 else ""
            recording.check(f"{case}.expanded", ours, spline_tolerance(rows), note)
