"""What fine-tuning draws for the clips of a batch: mixup, spans left out, sound turned and played faster or louder.

Everything is a function of the step's seed and of where a clip lies in the batch of all ranks.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..config.finetuning import WaveformConfig
from ..model.randomness import BatchRows
from ..runtime.distributed import SINGLE_PROCESS, World

# Keep these draws apart, also from those of the model.
_MIXUP, _WAVEFORM, _TIME_MASK, _COLOUR, _OVERLAY = 20, 21, 22, 23, 24


def _draws(seed: int, kind: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, kind])))


def mix(clips: Tensor, labels: Tensor, alpha: float, seed: int, world: World = SINGLE_PROCESS) -> tuple[Tensor, Tensor]:
    """Mixup: each clip [B,...] with one of a random order of the batch of all ranks, labels [B,classes] alike.

    A clip's own share is drawn from Beta(alpha, alpha), a function of `seed` alone. Frames become float in [-1, 1].
    """
    if clips.dtype == torch.uint8:
        clips = clips.float() / 127.5 - 1
    here = slice(world.rank * len(clips), (world.rank + 1) * len(clips))
    clips, labels = world.gather_many([clips, labels])
    rng = _draws(seed, _MIXUP)
    other = torch.from_numpy(rng.permutation(len(clips))).to(clips.device)
    own = torch.from_numpy(rng.beta(alpha, alpha, (len(clips), 1)).astype(np.float32)).to(clips.device)
    share = own.reshape(-1, *[1] * (clips.ndim - 1))
    mixed, classes = share * clips + (1 - share) * clips[other], own * labels + (1 - own) * labels[other]
    return mixed[here], classes[here]


def overlay(sound: Tensor, seed: int, world: World = SINGLE_PROCESS) -> Tensor:
    """Sound [B,S], to about half of which another of the batch of all ranks is added, by 0 to 40 dB softer."""
    here = slice(world.rank * len(sound), (world.rank + 1) * len(sound))
    (sounds,) = world.gather_many([sound])
    rng = _draws(seed, _OVERLAY)
    other = torch.from_numpy(rng.permutation(len(sounds))).to(sound.device)
    gain = 10 ** rng.uniform(-2, 0, len(sounds)) * (rng.random(len(sounds)) < 0.5)
    return (sounds + torch.from_numpy(gain[:, None]).to(sounds) * sounds[other])[here]


def play(sound: Tensor, config: WaveformConfig, seed: int, rows: BatchRows) -> Tensor:
    """Sound [B,S] turned, faster or slower, louder or softer, as `config` has it.

    Where a faster sound ends too early, its beginning follows.
    """
    rng = _draws(seed, _WAVEFORM)
    samples = sound.shape[1]
    # Every draw is made whether or not it is used: turning one of them off leaves the others as they were.
    start, speed, gain = rng.integers(samples, size=rows.total), *rng.uniform(-1, 1, (2, rows.total))
    sign = rng.choice([-1.0, 1.0], rows.total)

    mine = slice(rows.first, rows.first + len(sound))
    if config.turn or config.speed > 1:
        sound = torch.stack(
            [
                _faster(one.roll(-int(config.turn * first)), config.speed**factor)
                for one, first, factor in zip(sound, start[mine], speed[mine], strict=True)
            ]
        )
    if config.gain > 1:
        sound = sound * torch.from_numpy((config.gain**gain * sign)[mine, None]).to(sound)
    return sound


def _faster(sound: Tensor, factor: float) -> Tensor:
    """Sound [S] played faster by `factor`, still [S] samples."""
    samples = len(sound)
    if factor == 1:
        return sound
    played = F.interpolate(sound[None, None], size=max(1, round(samples / factor)), mode="linear")[0, 0]
    return played.repeat(-(-samples // len(played)))[:samples]


def colour(sound: Tensor, config: WaveformConfig, rate: int, seed: int, rows: BatchRows) -> Tensor:
    """Sound [B,S] at `rate` Hz with other gains at some pitches and without a band of them, as `config` has it.

    A band that is taken out keeps 3 % of its magnitude.
    """
    rng, mine = _draws(seed, _COLOUR), slice(rows.first, rows.first + len(sound))
    gains = rng.normal(0, 1, (rows.total, 8))[mine] * config.equalise
    width, place = rng.random((2, rows.total))[:, mine, None]
    first = place * (1 - width * config.band_mask)
    pitches = np.log10(1 + np.fft.rfftfreq(sound.shape[1], 1 / rate) / 700)  # mel, but for a factor
    pitches /= pitches[-1]
    factors = np.exp([np.interp(pitches, np.linspace(0, 1, 8), row) for row in gains])
    factors[(first <= pitches) & (pitches < first + width * config.band_mask)] *= 0.03
    spectrum = torch.fft.rfft(sound.float()) * torch.from_numpy(factors.astype(np.float32)).to(sound.device)
    return torch.fft.irfft(spectrum, n=sound.shape[1]).to(sound.dtype)


def leave_out_span(clips: Tensor, longest: float, seed: int, rows: BatchRows) -> Tensor:
    """Clips [B,T,...] with one span of each silent (sound) or grey (frames), of at most the share `longest` of T."""
    steps = clips.shape[1]
    length, place = _draws(seed, _TIME_MASK).random((2, rows.total))[:, rows.first : rows.first + len(clips), None]
    first = np.floor(place * (1 - length * longest) * steps)
    at = np.arange(steps)
    masked = torch.from_numpy((first <= at) & (at < first + np.floor(length * longest * steps))).to(clips.device)
    grey = 127 if clips.dtype == torch.uint8 else 0
    return clips.masked_fill(masked.reshape(len(clips), steps, *[1] * (clips.ndim - 2)), grey)
