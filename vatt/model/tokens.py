"""From raw input to tokens: voxels, waveform patches and words; positions, DropToken and the AGG token.

Shapes: B batch, T frames, H W pixels, S samples, L words, N tokens, K kept tokens, D width.
Source: paper section 3.1 (tokenisation, positions, DropToken); numbers from the official release.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import AudioConfig, DropConfig, TextConfig, VideoConfig, kept_tokens
from ..ops import Ops


def mix_seed(seed: int, tag: int) -> int:
    """A 31-bit seed of its own for use number `tag` of a step's seed."""
    return (seed * 0x9E3779B1 + (tag + 1) * 0x85EBCA77) % 0x7FFFFFFF


class Rows(NamedTuple):
    """Where the rows of a tensor lie in a batch that several processes, or several passes, share."""

    first: int
    total: int


@lru_cache(maxsize=64)
def spline_matrix(source: int, target: int) -> Tensor:
    """Matrix [target, source] that resamples a table of `source` rows to `target` rows, float64.

    A natural cubic spline through x_i = i / source, read at y_j = j / target, linear beyond the last knot. This is the
    release's order-3 polyharmonic interpolation, solved stably: the official float32 solve loses digits from 8 rows
    on and has none left at 1200.
    """
    if source == 1:
        return torch.ones(target, 1, dtype=torch.float64)
    x = np.arange(source) / source
    step = 1.0 / source
    # Second derivatives m solve a tridiagonal system; natural ends have m = 0.
    second = np.zeros((source, source))
    if source > 2:
        inner = source - 2
        system = 4 * np.eye(inner) + np.eye(inner, k=1) + np.eye(inner, k=-1)
        right = np.zeros((inner, source))
        rows = np.arange(inner)
        right[rows, rows] = right[rows, rows + 2] = 6 / step**2
        right[rows, rows + 1] = -12 / step**2
        second[1:-1] = np.linalg.solve(system, right)
    y = np.arange(target) / target
    left = np.clip((y * source).astype(np.int64), 0, source - 2)
    t = (y - x[left]) / step
    eye = np.eye(source)
    value_left, value_right, m_left, m_right = eye[left], eye[left + 1], second[left], second[left + 1]
    u = t[:, None]
    inside = (
        (1 - u) * value_left
        + u * value_right
        + step**2 / 6 * (((1 - u) ** 3 - (1 - u)) * m_left + (u**3 - u) * m_right)
    )
    # Beyond the last knot: straight on with the slope there (m_right is 0 at a natural end).
    slope = (value_right - value_left) + step**2 / 6 * (m_left + 2 * m_right)
    outside = value_right + (u - 1) * slope
    return torch.from_numpy(np.where(u > 1, outside, inside))


def resample_table(table: Tensor, target: int) -> Tensor:
    """Position table [n, D] -> [target, D]; differentiable, the identity when n == target."""
    if table.shape[0] == target:
        return table
    matrix = spline_matrix(table.shape[0], target).to(table.device)
    return (matrix @ table.double()).to(table.dtype)


class PositionTables(nn.Module):
    """Factorised learned positions: one table an axis, their sum, then LayerNorm on the sum alone (eps 1e-6)."""

    def __init__(self, sizes: tuple[int, ...], width: int):
        super().__init__()
        self.tables = nn.ParameterList(nn.Parameter(torch.empty(n, width)) for n in sizes)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        for table in self.tables:
            std = width**-0.5
            nn.init.trunc_normal_(table, std=std, a=-2 * std, b=2 * std)

    def forward(self, sizes: tuple[int, ...]) -> Tensor:
        """Positions [prod(sizes), D] of a grid, last axis fastest; other grid sizes than the tables' use the spline."""
        total: Tensor | None = None
        for axis, (table, size) in enumerate(zip(self.tables, sizes, strict=True)):
            shape = [1] * len(sizes) + [table.shape[1]]
            shape[axis] = size
            rows = resample_table(table, size).reshape(shape)
            total = rows if total is None else total + rows
        assert total is not None
        return self.norm(total.expand(*sizes, -1).reshape(-1, total.shape[-1]))


def glorot_uniform_(weight: Tensor, fan_in: int, fan_out: int) -> None:
    limit = (6 / (fan_in + fan_out)) ** 0.5
    nn.init.uniform_(weight, -limit, limit)


def glorot_normal_(weight: Tensor, fan_in: int, fan_out: int) -> None:
    """Truncated at two standard deviations and widened, so that the variance is 2 / (fan_in + fan_out)."""
    std = (2 / (fan_in + fan_out)) ** 0.5 / 0.87962566103423978
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)


def linear(fan_in: int, fan_out: int, bias: bool = True) -> nn.Linear:
    """A dense layer as the release initialises it: glorot-uniform weight, zero bias."""
    layer = nn.Linear(fan_in, fan_out, bias=bias)
    glorot_uniform_(layer.weight, fan_in, fan_out)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


class _PatchTokens(nn.Module):
    """What voxels and waveform patches share: projection weights, positions, DropToken, dropout and AGG.

    `inner` is the Linear + GELU that modality-agnostic models put between projection and position.
    """

    def __init__(self, patch_size: int, channels: int, tables: tuple[int, ...], width: int, *, inner: bool,
                 drop: DropConfig, dropout: float, ops: Ops):  # fmt: skip
        super().__init__()
        self.ops, self.drop = ops, drop
        self.weight = nn.Parameter(torch.empty(patch_size * channels, width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.inner = linear(width, width) if inner else None
        self.position = PositionTables(tables, width)
        self.agg = nn.Parameter(torch.empty(width))
        self.dropout = nn.Dropout(dropout)
        self.table_tokens = math.prod(tables)
        # A strided convolution's fans count the whole patch on both sides.
        glorot_uniform_(self.weight, patch_size * channels, patch_size * width)
        glorot_normal_(self.agg, width, width)

    def draw(self, batch: int, tokens: int, seed: int, device: torch.device, rows: Rows | None) -> Tensor | None:
        """Indices of kept tokens in training ([K], or [B,K] for per-sample draws); None keeps all.

        The kept count follows the position tables, not the input (as official), so that it is a constant of the model.
        """
        if not self.training or self.drop.rate == 0:
            return None
        kept = min(kept_tokens(self.table_tokens, self.drop.rate, self.drop.align), tokens)
        if self.drop.sampling != "sample":
            return self.ops.sample_keep(tokens, kept, seed=seed, device=device)
        first, total = rows or Rows(0, batch)
        return self.ops.sample_keep(tokens, kept, seed=seed, batch=total, device=device)[first : first + batch]

    def finish(self, grid: tuple[int, ...], keep: Tensor | None,
               project: Callable[[Tensor | None], Tensor]) -> Tensor:  # fmt: skip
        """Projects the kept tokens with `project(position)`, adds positions, dropout and AGG -> [B,K+1,D]."""
        position = self.position(grid)
        if self.inner is None:
            x = project(position)
        else:
            x = F.gelu(self.inner(project(None)))
            x = x + (position if keep is None else position[keep])
        x = self.dropout(x)
        agg = self.agg.to(x.dtype).expand(x.shape[0], 1, -1)
        return torch.cat([agg, x], dim=1)


class VideoTokens(_PatchTokens):
    """Frames [B,T,H,W,3] (uint8, or float in [-1,1]) -> tokens [B,K+1,D], AGG first."""

    def __init__(self, config: VideoConfig, width: int, *, inner: bool, drop: DropConfig, dropout: float, ops: Ops):
        t, h, w = config.patch
        tables = config.tables or config.grid
        super().__init__(t * h * w, 3, tables, width, inner=inner, drop=drop, dropout=dropout, ops=ops)
        self.patch = config.patch

    def forward(self, frames: Tensor, keep: Tensor | None = None, seed: int = 0,
                rows: Rows | None = None) -> tuple[Tensor, None]:  # fmt: skip
        grid = tuple(size // p for size, p in zip(frames.shape[1:4], self.patch, strict=True))
        if keep is None:
            keep = self.draw(frames.shape[0], math.prod(grid), seed, frames.device, rows)

        def project(position: Tensor | None) -> Tensor:
            return self.ops.project_voxels(
                frames, self.weight, self.bias, patch=self.patch, keep=keep, position=position
            )

        return self.finish(grid, keep, project), None


class AudioTokens(_PatchTokens):
    """Samples [B,S] (float in [-1,1], or int16) -> tokens [B,K+1,D], AGG first."""

    def __init__(self, config: AudioConfig, width: int, *, inner: bool, drop: DropConfig, dropout: float, ops: Ops):
        super().__init__(config.patch, 1, (config.tokens,), width, inner=inner, drop=drop, dropout=dropout, ops=ops)
        self.patch = config.patch

    def forward(self, samples: Tensor, keep: Tensor | None = None, seed: int = 0,
                rows: Rows | None = None) -> tuple[Tensor, None]:  # fmt: skip
        tokens = samples.shape[1] // self.patch
        if keep is None:
            keep = self.draw(samples.shape[0], tokens, seed, samples.device, rows)

        def project(position: Tensor | None) -> Tensor:
            return self.ops.project_waveform(
                samples, self.weight, self.bias, patch=self.patch, keep=keep, position=position
            )

        return self.finish((tokens,), keep, project), None


class TextTokens(nn.Module):
    """Word ids [B,L] (0 = padding) -> tokens [B,L+1,D] and the mask [B,L+1] of real tokens, AGG first.

    Modality-specific: the AGG vector joins in embedding space, before the bias-free projection + GELU; no position
    (the T5 encoder has a relative bias). Modality-agnostic (`positions=True`): projection with bias + GELU, a learned
    position table, then AGG in model space.
    """

    def __init__(self, config: TextConfig, width: int, *, positions: bool, dropout: float):
        super().__init__()
        self.embedding = nn.Embedding(config.vocabulary, config.embedding)
        nn.init.uniform_(self.embedding.weight, -0.05, 0.05)
        self.embedding.weight.requires_grad_(not config.freeze_embedding)
        self.inner = linear(config.embedding, width, bias=positions)
        self.position = PositionTables((config.words,), width) if positions else None
        self.agg = nn.Parameter(torch.empty(width if positions else config.embedding))
        self.dropout = nn.Dropout(dropout)
        glorot_normal_(self.agg, self.agg.numel(), self.agg.numel())

    def forward(self, words: Tensor) -> tuple[Tensor, Tensor]:
        mask = F.pad(words != 0, (1, 0), value=True)
        x = self.embedding(words)
        if self.position is None:
            x = F.gelu(self.inner(torch.cat([self.agg.expand(x.shape[0], 1, -1), x], dim=1)))
            return self.dropout(x), mask
        x = F.gelu(self.inner(x)) + self.position((words.shape[1],))
        x = self.dropout(x)
        return torch.cat([self.agg.to(x.dtype).expand(x.shape[0], 1, -1), x], dim=1), mask
