"""What sound pre-training regresses: the log-mel spectrogram of each patch, and statistics of it for the whole clip.

They are computed from the waveform that the model hears, so that any sound teaches, labelled or not. On a few hundred
clips a linear classifier of the statistics does better than a transformer that has seen only the labels.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ..config.finetuning import DESCRIPTORS, WaveformConfig
from ..config.model import AudioConfig
from ..model.tokens import at_level

BANDS, COARSE = 16, 4
RHYTHMS = (DESCRIPTORS - 3 * BANDS) // COARSE  # of each coarse band
PLAYED = WaveformConfig(turn=True, speed=1.15, gain=1.5, equalise=1.0)  # how the clips are heard meanwhile


@lru_cache(maxsize=8)
def mel_filters(size: int, rate: int, lowest: float = 50.0) -> Tensor:
    """Return [size // 2 + 1, BANDS]: triangles over the bins of a spectrum, even on the mel scale, each of sum 1."""
    low, high = (math.log10(1 + hertz / 700) for hertz in (lowest, 0.95 * rate / 2))
    pitches = np.log10(1 + np.fft.rfftfreq(size, 1 / rate) / 700)[:, None]
    corners = np.linspace(low, high, BANDS + 2)
    rising = (pitches - corners[:-2]) / (corners[1:-1] - corners[:-2])
    falling = (corners[2:] - pitches) / (corners[2:] - corners[1:-1])
    filters = np.minimum(rising, falling).clip(min=0)
    return torch.from_numpy((filters / filters.sum(axis=0).clip(min=1e-3)).astype(np.float32))


def describe(sound: Tensor, config: AudioConfig) -> tuple[Tensor, Tensor]:
    """Return the log energies [B,N,BANDS] of the patches of sound [B,S], and DESCRIPTORS of each whole clip.

    These are the mean, the spread and the mean change from patch to patch of each band, and how much a coarse band
    swings how fast. Both are of about the size 1, and do not change with loudness.
    """
    size = config.patch
    patches = at_level(sound.float(), 1.0).unfold(1, size, size)
    window = torch.hann_window(size, periodic=False, device=sound.device)
    power = torch.fft.rfft(patches * window).abs().square() / size
    energies = (power @ mel_filters(size, config.rate).to(sound.device) + 1e-4).log()
    count = energies.shape[1]
    coarse = energies.unflatten(2, (COARSE, -1)).mean(3)
    swings = (coarse - coarse.mean(1, keepdim=True)) * torch.hann_window(count, device=sound.device)[:, None]
    spectrum = torch.fft.rfft(swings, dim=1).abs().square() / count
    edges = np.geomspace(1, count // 2 + 1, RHYTHMS + 1).round().astype(int).tolist()
    rhythms = torch.stack([spectrum[:, i : max(j, i + 1)].mean(1) for i, j in pairwise(edges)], 1)
    whole = [
        energies.mean(1) / 2 + 2.5,
        energies.std(1) - 1,
        2 * energies.diff(dim=1).abs().mean(1) - 1,
        (rhythms + 1e-2).log().flatten(1) / 2,
    ]
    return energies / 2 + 2.5, torch.cat(whole, dim=1)


def descriptor_loss(features: Tensor, sound: Tensor, config: AudioConfig, keep: Tensor | None) -> Tensor:
    """Return the mean squared error of features [B,K+1,D], pooled one first, whose first numbers shall be `describe`.

    `keep` [K] or [B,K]: which tokens the others are of, None: all.
    """
    patches, whole = describe(sound, config)
    if keep is not None:
        patches = patches[torch.arange(len(patches), device=keep.device)[:, None], keep]
    error = (features[:, 1:, :BANDS].float() - patches).square().mean()
    return error + (features[:, 0, :DESCRIPTORS].float() - whole).square().mean()
