"""A raw-waveform transformer trained from scratch on ESC-10: 400 real clips of 5 s, 10 classes, 5 official folds.

The model is VATT's audio tower with a class head, trained as `python -m vatt.finetune --task audio --preset small` does
from scratch, with the clips in memory. DropToken acts in training only; every test clip is heard with all its tokens,
eight times, turned by an eighth each time, and the logits are averaged. Everything random is a function of (seed, fold,
step), and none of it of the drop rate, so that the rates are compared on the same weights, clips and mixtures.

Data: https://github.com/karolpiczak/ESC-50 (the ESC-10 subset, CC BY; Piczak 2015).
"""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from harness.report import ReportError

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vatt.config.finetuning import FinetuneConfig, audio, small
from vatt.config.model import DropConfig
from vatt.config.presets import tiny
from vatt.config.serialization import to_dict
from vatt.data.datasets.batch import Batch
from vatt.data.decoding.audio import to_float
from vatt.evaluation.metrics import classification_scores
from vatt.model.randomness import mix_seed
from vatt.model.vatt import Classifier
from vatt.ops import choose
from vatt.training.finetuning_step import finetune_step
from vatt.training.optimizers import finetuning_optimizer

FOLDS = (1, 2, 3, 4, 5)
SECONDS = 5  # of a clip
VIEWS = 8  # of a test clip


class Esc10Clips(NamedTuple):
    """waves float32 [C,S] as they were recorded; labels and folds int64 [C]; names of classes."""

    waves: Tensor
    labels: Tensor
    folds: Tensor
    classes: tuple[str, ...]


def recipe(*, quick: bool = False) -> FinetuneConfig:
    """Return the settings of `--preset small` from scratch; `quick`: a few steps, to see it work."""
    config = small(audio(tiny().model))
    short = replace(config, steps=20, pretrain_steps=10, optim=replace(config.optim, warmup=5))
    return short if quick else config


def at_drop_rate(config: FinetuneConfig, rate: float) -> FinetuneConfig:
    return replace(config, model=replace(config.model, drop=DropConfig(rate=rate)))


def facts(config: FinetuneConfig) -> dict[str, Any]:
    """Return what a report says of the settings."""
    sound = config.model.audio
    encoder = to_dict(config.model.audio_encoder)
    sizes = {"rate": sound.rate, "samples": sound.samples, "patch": sound.patch, "encoder": encoder}
    return {**sizes, "steps": config.steps, "views": VIEWS, "finetune": to_dict(config)}


def read_clips(folder: Path, rate: int) -> Esc10Clips:
    """Return all clips that FOLDER/esc10.csv lists (columns file, fold, label, category), mono, at `rate` Hz.

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
    waves = np.zeros((len(rows), SECONDS * rate), np.float32)
    for wave, (name, *_) in zip(waves, rows, strict=True):
        try:
            sound = to_float(read_sound(folder / name, rate, time_limit=30.0))[: len(wave)]
        except BadClip as error:
            raise ReportError(f"{error}; every clip is needed, restore it") from error
        wave[: len(sound)] = sound
    folds, labels = (torch.tensor([row[i] for row in rows]) for i in (1, 2))
    return Esc10Clips(torch.from_numpy(waves), labels, folds, tuple(names[i] for i in range(len(names))))


def training_batch(clips: Esc10Clips, chosen: Tensor, samples: int) -> Batch:
    """Return the beginnings of the `chosen` clips, of `samples` samples, and their labels."""
    sound, labels = clips.waves[chosen, :samples], clips.labels[chosen]
    shares = F.one_hot(labels, len(clips.classes)).float()
    none = torch.zeros(len(chosen))
    return Batch(none, sound, none, none, none + 1, none, labels, shares, [], [], [], 0.0, 0.0)


def train_fold(
    clips: Esc10Clips,
    fold: int,
    drop_rate: float,
    seed: int,
    config: FinetuneConfig,
    *,
    update: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Train on all folds but `fold`, on the device of `clips`, and test on `fold`. `update` is called every step.

    Returns top-1, the loss of the last 50 steps, train_seconds, and which test clips were right. Raises `ReportError`
    when the loss is not finite.
    """
    device = clips.waves.device
    config = replace(at_drop_rate(config, drop_rate), seed=mix_seed(seed, fold))
    torch.manual_seed(config.seed)
    ops, dropout = choose(True, device), config.head_dropout
    model = Classifier(config.model, "audio", len(clips.classes), head_dropout=dropout, ops=ops).to(device).train()
    optimizer = finetuning_optimizer(model, config.optim)
    training = torch.nonzero(clips.folds != fold)[:, 0]
    losses: list[float] = []
    began = time.perf_counter()
    for step in range(config.steps):
        chosen = training[draw(len(training), config.data.batch_size, seed, fold, step)]
        batch = training_batch(clips, chosen, config.model.audio.samples)
        losses.append(finetune_step(model, optimizer, batch, config, step, nullcontext())["loss"])
        update()
    last = float(np.mean(losses[-50:]))
    seconds = time.perf_counter() - began
    if not math.isfinite(last):
        raise ReportError(f"ESC-10, fold {fold}, {drop_rate:.0%} dropped: the loss is not finite; lower optim.rate")
    return {"train_seconds": seconds, "final_loss": last, **score(model, clips, fold, config.model.audio.samples)}


def draw(clips: int, batch: int, seed: int, fold: int, step: int) -> np.ndarray:
    """Return positions of the clips of one step: epochs are permutations, cut into whole batches."""
    epoch, position = divmod(step, max(1, clips // batch))
    order = np.random.default_rng((seed, fold, epoch, 1)).permutation(clips)
    return order[position * batch : (position + 1) * batch]


def views_of(waves: Tensor, samples: int) -> Tensor:
    """[C,S] -> [C*VIEWS, samples], turned by a part of their length each time, those of a clip side by side."""
    turned = [waves.roll(-view * waves.shape[1] // VIEWS, dims=1)[:, :samples] for view in range(VIEWS)]
    return torch.stack(turned, dim=1).flatten(0, 1)


@torch.no_grad()
def score(model: Classifier, clips: Esc10Clips, fold: int, samples: int) -> dict[str, Any]:
    """Return scores on `fold` with all tokens, and whether each of its clips, in the order of the list, was right."""
    model.eval()
    held_out = clips.folds == fold
    waves, labels = clips.waves[held_out], clips.labels[held_out]
    logits = torch.cat([model(views_of(part, samples), views=VIEWS) for part in waves.split(16)])
    scores = classification_scores(logits.double().cpu(), labels.cpu())
    return {"top1": scores["top1"], "clips": len(labels), "right": (logits.argmax(1) == labels).int().tolist()}
