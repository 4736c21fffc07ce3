"""From raw input to tokens: voxels, waveform patches and words; positions, DropToken and the AGG token.

Shapes: B batch, T frames, H W pixels, S samples, L words, N tokens, K kept tokens, D width.
Source: paper section 3.1 (tokenisation, positions, DropToken); numbers from the official release.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config.model import AudioConfig, DropConfig, TextConfig, VideoConfig, kept_tokens
from ..ops import Ops
from .initializers import glorot_normal_, glorot_uniform_, linear
from .positions import PositionTables
from .randomness import BatchRows


class _PatchTokens(nn.Module):
    """What voxels and waveform patches share: projection weights, positions, DropToken, dropout and AGG.

    `inner` is the Linear + GELU that modality-agnostic models put between projection and position.
    """

    def __init__(
        self,
        patch_size: int,
        channels: int,
        tables: tuple[int, ...],
        width: int,
        *,
        inner: bool,
        drop: DropConfig,
        dropout: float,
        ops: Ops,
    ):
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

    def draw(
        self, batch: int, tokens: int, seed: int | Tensor, device: torch.device, rows: BatchRows | None
    ) -> Tensor | None:
        """Indices of kept tokens in training ([K], or [B,K] for per-sample draws); None keeps all.

        The kept count follows the position tables, not the input (as official), so that it is a constant of the model.
        """
        if not self.training or self.drop.rate == 0:
            return None
        kept = min(kept_tokens(self.table_tokens, self.drop.rate, self.drop.align), tokens)
        if self.drop.sampling != "sample":
            return self.ops.sample_keep(tokens, kept, seed=seed, device=device)
        first, total = rows or BatchRows(0, batch)
        return self.ops.sample_keep(tokens, kept, seed=seed, batch=total, device=device)[first : first + batch]

    def finish(self, grid: tuple[int, ...], keep: Tensor | None, project: Callable[[Tensor | None], Tensor]) -> Tensor:
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

    def forward(
        self, frames: Tensor, keep: Tensor | None = None, seed: int = 0, rows: BatchRows | None = None
    ) -> tuple[Tensor, None]:
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
        self.patch, self.level = config.patch, config.level
        if config.tones:
            pairs = width // 2
            with torch.no_grad():
                self.weight[:, : 2 * pairs] = tones(pairs, config.patch, config.rate)

    def forward(
        self, samples: Tensor, keep: Tensor | None = None, seed: int = 0, rows: BatchRows | None = None
    ) -> tuple[Tensor, None]:
        tokens = samples.shape[1] // self.patch
        if keep is None:
            keep = self.draw(samples.shape[0], tokens, seed, samples.device, rows)
        if self.level:
            samples = at_level(samples, self.level)

        def project(position: Tensor | None) -> Tensor:
            return self.ops.project_waveform(
                samples, self.weight, self.bias, patch=self.patch, keep=keep, position=position
            )

        return self.finish((tokens,), keep, project), None


def tones(pairs: int, samples: int, rate: int, lowest: float = 50.0) -> Tensor:
    """Cosines and sines [samples, 2*pairs] in turn, of length 1 under the root of a Hann window.

    Pitches are evenly spaced on the mel scale, from `lowest` to 95 % of half the sampling `rate`, in Hz. A pair holds
    the energy of its band wherever in the patch a sound begins, which noise has to be trained to do.
    """
    low, high = (2595 * math.log10(1 + hertz / 700) for hertz in (lowest, 0.95 * rate / 2))
    pitches = 700 * (10 ** (torch.linspace(low, high, pairs, dtype=torch.float64) / 2595) - 1)
    turns = 2 * torch.pi / rate * torch.arange(samples)[:, None] * pitches
    waves = torch.stack([turns.cos(), turns.sin()], dim=-1).flatten(1)
    window = torch.hann_window(samples, periodic=False, dtype=torch.float64).sqrt()
    return torch.nn.functional.normalize(waves * window[:, None], dim=0).float()


def at_level(samples: Tensor, level: float) -> Tensor:
    """Sound [B,S], float in [-1,1] or int16, scaled to the root mean square `level`; silence stays what it is.

    What is softer than -80 dB of full scale is made louder by no more than that would be.
    """
    sound = samples if samples.is_floating_point() else samples.float() / 32768
    loudness = sound.float().square().mean(dim=-1, keepdim=True).sqrt()
    return (sound * (level / loudness.clamp(min=1e-4))).to(sound.dtype)


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
