"""Checks of what surrounds the models: contrastive losses, schedules, optimisers, metrics."""

from __future__ import annotations

import torch
from torch import nn

from ...config.pretraining import LossConfig, OptimConfig
from ...evaluation.metrics import classification_scores, multilabel_scores, retrieval_scores, window_similarity
from ...model.heads import Embeddings
from ...model.losses import Gathered, pretraining_loss
from ...training.optimizers import SGD, Adam
from ...training.schedules import learning_rate, multilevel_rate
from .recording import DEFAULT, Recording, Tolerance

# A pair of which one clip is valid has a loss near its minimum: differences of nearly equal numbers.
_CANCELLED = Tolerance(1e-4, 1e-4, None)
_INPUTS = ("video_toaud", "video_totxt", "audio_tovid", "text_tovid")


def nce_losses(recording: Recording) -> None:
    """Check every case in both forms; several replicas one after the other, each with the batches of all."""
    for tag in dict.fromkeys(name.partition(".")[0] for name in recording.arrays):
        captions, replicas = recording.number(f"{tag}.L"), recording.number(f"{tag}.replicas")
        tolerance = _CANCELLED if tag == "onevalid" else DEFAULT
        for form in ("asymmetric", "symmetric"):
            leaves = [recording.input(f"{tag}.{name}").requires_grad_() for name in _INPUTS]
            video_audio, video_text, audio, text = leaves
            everyone = Embeddings(video_audio, video_text, audio, text.unflatten(0, (-1, captions)))
            ones = torch.ones(len(audio))
            masks = {name: recording.optional(f"{tag}.{name}_mask") for name in ("audio", "text", "video")}
            audio_mask = ones if masks["audio"] is None else masks["audio"]
            text_mask = ones if masks["text"] is None else masks["text"]
            config = LossConfig(form=form, temperature=recording.fixtures.temperature)
            size, rows = len(audio) // replicas, []
            for offset in range(0, len(audio), size):
                own = slice(offset, offset + size)
                losses = pretraining_loss(
                    Embeddings(*(x[own] for x in everyone)),
                    audio_mask[own],
                    text_mask[own],
                    config,
                    recording.fixtures.ops,
                    video_mask=masks["video"],
                    gathered=Gathered(everyone, audio_mask, text_mask, offset) if replicas > 1 else None,
                )
                rows.append(torch.stack(losses))
            name = f"{tag}.{form}_nce"
            recording.check(f"{name}.loss_vidtxt_vidaud", torch.stack(rows), tolerance)
            if replicas == 1:
                rows[0][0].backward()
                for leaf, x in zip(_INPUTS, leaves, strict=True):
                    gradient = torch.zeros_like(x) if x.grad is None else x.grad
                    recording.check(f"{name}.grad.{leaf}", gradient, tolerance)


def schedules(recording: Recording) -> None:
    """Return rates of the release's pre-training and fine-tuning, and of a made-up schedule of three levels."""
    settings = {
        "pretrain": (OptimConfig(), 500_000),
        "finetune": (OptimConfig(rate=5e-3, final_rate=0.0, warmup=2_500), 100_000),
    }
    # Rates are small: the scaled part of the tolerance is the one that tests.
    for name, (config, steps) in settings.items():
        ours = [learning_rate(int(step), config, steps) for step in recording.input(f"{name}.steps")]
        recording.check(f"{name}.lr", torch.tensor(ours, dtype=torch.float64))
    levels = [(10, 1e-3), (30, 5e-4), (60, 1e-4)]
    ours = [multilevel_rate(int(step), levels, 100, first=1e-5) for step in recording.input("threelevel.steps")]
    recording.check("threelevel.lr", torch.tensor(ours, dtype=torch.float64))
    last = learning_rate(500_000, *settings["pretrain"])
    recording.undefined("pretrain.lr_at_500000", last, note=f"0 / 0 in the release; ours stays at {last:.0e}")


def optimizers(recording: Recording) -> None:
    start, gradients, rates = (recording.input(name) for name in ("w0", "grads", "lr_used"))
    for name in ("adam", "sgd_momentum"):
        parameter = nn.Parameter(start.clone())
        optimizer: Adam | SGD = Adam([parameter], OptimConfig()) if name == "adam" else SGD([parameter], 0.0)
        path = []
        for gradient, rate in zip(gradients, rates, strict=True):
            optimizer.param_groups[0]["lr"] = float(rate)
            parameter.grad = gradient.clone()
            optimizer.step()
            path.append(parameter.detach().clone())
        recording.check(f"{name}.trajectory", torch.stack(path))
    clipped = [nn.Parameter(torch.zeros_like(recording.input(f"clip.{name}"))) for name in ("g0", "g1")]
    for parameter, name in zip(clipped, ("g0", "g1"), strict=True):
        parameter.grad = recording.input(f"clip.{name}")
    recording.check("clip.norm", nn.utils.clip_grad_norm_(clipped, 0.75))
    for parameter, name in zip(clipped, ("out0", "out1"), strict=True):
        recording.check(f"clip.{name}", parameter.grad if parameter.grad is not None else torch.zeros(()))


def metrics(recording: Recording) -> None:
    scores = multilabel_scores(recording.input("ml.pred"), recording.input("ml.gt"))
    for name in ("mAP", "AUC", "d-prime"):
        recording.check(f"ml.{name}", scores[name])
    scores = classification_scores(recording.input("cls.pred"), recording.input("cls.gt")[:, 0])
    for name in ("top1", "top5"):
        recording.check(f"cls.{name}", scores[name])
    text, video = recording.input("ret.txt"), recording.input("ret.vid")
    windows = video.unflatten(0, (len(text), -1))
    for score in ("embd", "cosine"):
        similarity = window_similarity(text, windows, score)
        recording.check(f"ret.{score}.sim", similarity)
        scores = retrieval_scores(similarity, torch.arange(len(text)))
        for theirs, name in (("R1", "R@1"), ("R5", "R@5"), ("R10", "R@10"), ("MedianRank", "median_rank")):
            recording.check(f"ret.{score}.{theirs}", scores[name])
