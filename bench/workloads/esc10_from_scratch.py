"""A raw-waveform transformer trained from scratch on ESC-10: 400 real clips of 5 s, 10 classes, 5 official folds.

The model is VATT's audio tower with a class head. DropToken acts in training only; every test clip is read with all its
tokens, at evenly spaced windows whose logits are averaged. Everything random is a function of (seed, fold, step), and
none of it of the drop rate, so that the rates are compared on the same weights, crops and mixtures.

Data: https://github.com/karolpiczak/ESC-50 (the ESC-10 subset, CC BY; Piczak 2015).
"""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from harness.report import ReportError

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vatt.config.model import AudioConfig, DropConfig, EncoderConfig, ModelConfig
from vatt.data.decoding.audio import to_float
from vatt.evaluation.metrics import classification_scores
from vatt.model.randomness import mix_seed
from vatt.model.vatt import Classifier
from vatt.ops import choose
from vatt.training.schedules import multilevel_rate

FOLDS = (1, 2, 3, 4, 5)
SECONDS = 5  # of a clip


@dataclass(frozen=True)
class Esc10Recipe:
    """Model and training. `rate` of the sound in Hz, `samples` a crop; `gain`, `speed`: largest factor either way.

    `level`: root mean square that every clip is scaled to. The release starts its projection so small that sound in
    [-1, 1] is drowned by the positions, and a short training does not grow out of that.
    `mixup`: alpha of the Beta distribution of the mixing share, 0 is off. `windows`: of a test clip.
    """

    rate: int = 16_000
    samples: int = 51_200
    patch: int = 512
    level: float = 20.0
    encoder: EncoderConfig = field(default_factory=lambda: EncoderConfig(96, 3, 3, 32, 192, dropout=0.0))
    head_dropout: float = 0.1
    batch: int = 16
    steps: int = 1200
    learning_rate: float = 2e-3
    warmup: int = 50
    weight_decay: float = 0.05
    clip: float = 1.0
    gain: float = 2.0
    speed: float = 1.15
    mixup: float = 0.4
    windows: int = 4

    @property
    def audio(self) -> AudioConfig:
        return AudioConfig(samples=self.samples, rate=self.rate, patch=self.patch)


class Esc10Clips(NamedTuple):
    """waves float32 [C,S], each scaled to the same loudness; labels and folds int64 [C]; names of classes."""

    waves: Tensor
    labels: Tensor
    folds: Tensor
    classes: tuple[str, ...]


def read_clips(folder: Path, recipe: Esc10Recipe) -> Esc10Clips:
    """Return all clips that FOLDER/esc10.csv lists (columns file, fold, label, category), mono.

    Raises `ReportError` when the list or a clip cannot be read.
    """
    from vatt.data.decoding.audio import read_sound
    from vatt.data.decoding.container import BadClip  # needs PyAV, which a machine that only measures may lack

    table = folder / "esc10.csv"
    try:
        with open(table, encoding="utf-8", newline="") as file:
            rows = [(row["file"], int(row["fold"]), int(row["label"]), row["category"]) for row in csv.DictReader(file)]
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise ReportError(f"{table} is no list of ESC-10 ({error}); --esc10 names the folder that holds it") from error
    names = {label: category for _, _, label, category in rows}
    if sorted(names) != list(range(len(names))) or not {fold for _, fold, _, _ in rows} >= set(FOLDS):
        raise ReportError(f"{table}: labels must count from 0 and folds be {FOLDS}; take the official list")
    waves = np.zeros((len(rows), SECONDS * recipe.rate), np.float32)
    for wave, (name, *_) in zip(waves, rows, strict=True):
        try:
            sound = to_float(read_sound(folder / name, recipe.rate, time_limit=30.0))[: len(wave)]
        except BadClip as error:
            raise ReportError(f"{error}; every clip is needed, restore it") from error
        wave[: len(sound)] = sound
    waves *= recipe.level / np.maximum(np.sqrt((waves**2).mean(axis=1, keepdims=True)), 1e-4)
    folds, labels = (torch.tensor([row[i] for row in rows]) for i in (1, 2))
    return Esc10Clips(torch.from_numpy(waves), labels, folds, tuple(names[i] for i in range(len(names))))


def model_config(recipe: Esc10Recipe, drop_rate: float) -> ModelConfig:
    return ModelConfig(audio=recipe.audio, audio_encoder=recipe.encoder, drop=DropConfig(rate=drop_rate))


def windows_of(waves: Tensor, recipe: Esc10Recipe) -> Tensor:
    """Cut waves [C,S] into windows [C*windows, samples], evenly spaced, those of a clip side by side."""
    last = waves.shape[1] - recipe.samples
    starts = np.linspace(0, last, recipe.windows).astype(int).tolist()
    return torch.stack([waves[:, start : start + recipe.samples] for start in starts], dim=1).flatten(0, 1)


def crops(waves: Tensor, recipe: Esc10Recipe, rng: np.random.Generator) -> Tensor:
    """Crop waves [B,S] to [B, samples]: a random place, played faster or slower, louder or softer, either polarity.

    What lies beyond the end of a clip is its beginning.
    """
    count, length = waves.shape
    speed = recipe.speed ** rng.uniform(-1, 1, (count, 1))
    gain = recipe.gain ** rng.uniform(-1, 1, (count, 1)) * rng.choice([-1, 1], (count, 1))
    start = torch.from_numpy(rng.integers(length, size=(count, 1))).to(waves.device)
    rate, factor = (torch.from_numpy(x.astype(np.float32)).to(waves.device) for x in (speed, gain))
    places = rate * torch.arange(recipe.samples, device=waves.device)
    left = places.floor()
    index = start + left.long()
    twice = torch.cat([waves, waves], dim=1)  # a crop is shorter than a clip
    low, high = twice.gather(1, index), twice.gather(1, index + 1)
    return torch.lerp(low, high, places - left) * factor


def training_batch(
    clips: Esc10Clips, chosen: Tensor, recipe: Esc10Recipe, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Return crops [B, samples] of the `chosen` clips and their class shares [B,classes].

    With mixup, sums of two clips.
    """
    waves = crops(clips.waves[chosen], recipe, rng)
    shares = F.one_hot(clips.labels[chosen], len(clips.classes)).float()
    if not recipe.mixup:
        return waves, shares
    part = torch.from_numpy(rng.beta(recipe.mixup, recipe.mixup, len(chosen)).astype(np.float32)).to(waves.device)
    part = torch.maximum(part, 1 - part)[:, None]
    other = torch.from_numpy(rng.permutation(len(chosen))).to(waves.device)
    # Two sounds that do not know of each other add in power: this keeps the sum as loud as they are.
    mixed = (part * waves + (1 - part) * waves[other]) / (part**2 + (1 - part) ** 2).sqrt()
    return mixed, part * shares + (1 - part) * shares[other]


def train_fold(
    clips: Esc10Clips,
    fold: int,
    drop_rate: float,
    seed: int,
    recipe: Esc10Recipe,
    *,
    update: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Train on all folds but `fold`, on the device of `clips`, and test on `fold`. `update` is called every step.

    Returns top-1, the loss of the last 50 steps, train_seconds, and which test clips were right. Raises `ReportError`
    when the loss is not finite.
    """
    device = clips.waves.device
    torch.manual_seed(mix_seed(seed, fold))
    model = (
        Classifier(
            model_config(recipe, drop_rate),
            "audio",
            len(clips.classes),
            head_dropout=recipe.head_dropout,
            ops=choose(True, device),
        )
        .to(device)
        .train()
    )
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=recipe.learning_rate,
    )
    training = torch.nonzero(clips.folds != fold)[:, 0]
    losses: list[Tensor] = []
    began = time.perf_counter()
    for step in range(recipe.steps):
        rng = np.random.default_rng((seed, fold, step))
        for group in optimizer.param_groups:
            group["lr"] = multilevel_rate(step, [(recipe.warmup, recipe.learning_rate)], recipe.steps)
        chosen = training[draw(len(training), recipe.batch, seed, fold, step)]
        waves, shares = training_batch(clips, chosen, recipe, rng)
        torch.manual_seed(mix_seed(mix_seed(seed, fold), step))  # dropout
        loss = F.cross_entropy(model(waves, seed=mix_seed(mix_seed(seed, fold), step)), shares)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
        losses = [*losses[-49:], loss.detach()]
        update()
    last = torch.stack(losses).mean().item()
    seconds = time.perf_counter() - began
    if not math.isfinite(last):
        raise ReportError(f"ESC-10, fold {fold}, {drop_rate:.0%} dropped: the loss is not finite; lower learning_rate")
    return {"train_seconds": seconds, "final_loss": last, **score(model, clips, fold, recipe)}


def draw(clips: int, batch: int, seed: int, fold: int, step: int) -> np.ndarray:
    """Return positions of the clips of one step: epochs are permutations, cut into whole batches."""
    epoch, position = divmod(step, max(1, clips // batch))
    order = np.random.default_rng((seed, fold, epoch, 1)).permutation(clips)
    return order[position * batch : (position + 1) * batch]


@torch.no_grad()
def score(model: Classifier, clips: Esc10Clips, fold: int, recipe: Esc10Recipe) -> dict[str, Any]:
    """Return scores on `fold` with all tokens, and whether each of its clips, in the order of the list, was right."""
    model.eval()
    held_out = clips.folds == fold
    waves, labels = clips.waves[held_out], clips.labels[held_out]
    logits = torch.cat([model(windows_of(part, recipe), views=recipe.windows) for part in waves.split(16)])
    scores = classification_scores(logits.double().cpu(), labels.cpu())
    return {"top1": scores["top1"], "clips": len(labels), "right": (logits.argmax(1) == labels).int().tolist()}


def quick(recipe: Esc10Recipe) -> Esc10Recipe:
    """Return the recipe with a few steps, to see it work."""
    return replace(recipe, steps=20, warmup=5)
