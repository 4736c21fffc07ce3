"""Scores of retrieval, classification and tagging, as the release reports them (paper section 4).

Equal scores have no order, so every order of them counts as equally likely: a rank is the mean of those that equals
share, R@k and top-k are the chance to be among the first k, the area under the ROC curve takes a tie as one half.
Scores that are all equal therefore give exactly what guessing gives. A score that is not a number comes last.

Legend: Q queries, C candidates or classes, W temporal windows a clip, D width. Everything in float64.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def _places(similarity: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return int64 [Q]: candidates ahead of `target[q]` in row q of similarity [Q,C], and those equal to it.

    It is itself among the equal ones.
    """
    own = similarity.gather(1, target[:, None])
    ahead = (~(similarity <= own)).sum(1).clamp(max=similarity.shape[1] - 1)
    return ahead, (similarity == own).sum(1).clamp(min=1)


def ranks(similarity: Tensor, target: Tensor) -> Tensor:
    """Rank from 1, float64 [Q], of candidate `target[q]` in row q of similarity [Q,C]; the mean rank of equals."""
    ahead, equal = _places(similarity, target)
    return ahead + (equal + 1).double() / 2


def hits(similarity: Tensor, target: Tensor, k: int) -> Tensor:
    """Return the chance, float64 [Q], that candidate `target[q]` is among the first `k` of row q: 0 or 1 without
    equals.
    """
    ahead, equal = _places(similarity, target)
    return ((k - ahead).clamp(min=0).double() / equal).clamp(max=1.0)


def retrieval_scores(similarity: Tensor, target: Tensor) -> dict[str, float]:
    """Return R@1/5/10 (shares of queries) and median rank, with the chance level of R@10 beside them."""
    if not len(target):
        return {"queries": 0, "candidates": similarity.shape[1]}
    recall = {f"R@{k}": hits(similarity, target, k).mean().item() for k in (1, 5, 10)}
    candidates = similarity.shape[1]
    return {
        **recall,
        "median_rank": ranks(similarity, target).quantile(0.5).item(),
        "queries": len(target),
        "candidates": candidates,
        "chance_R@10": min(10 / candidates, 1.0),
    }


def window_similarity(query: Tensor, windows: Tensor, score: str = "embd") -> Tensor:
    """Return cosines [Q,C] of queries [Q,D] and clips of W windows [C,W,D].

    "embd": a clip is the mean of its windows' embeddings. "cosine": the mean of its windows' cosines. (With a single
    window the release leaves "embd" un-normalised, a plain dot product; here both are cosines then.)
    """
    if score not in ("embd", "cosine"):
        raise ValueError(f'the retrieval score is "embd" or "cosine", got {score!r}')
    clips = windows.mean(1) if score == "embd" else F.normalize(windows, dim=-1).mean(1)
    return F.normalize(query, dim=-1) @ (F.normalize(clips, dim=-1) if score == "embd" else clips).T


def classification_scores(scores: Tensor, target: Tensor) -> dict[str, float]:
    """Return Top-1 and top-5 accuracy of scores [B,C] (logits or probabilities), target [B]."""
    return {f"top{k}": hits(scores, target, k).mean().item() for k in (1, 5)}


def average_precision(scores: Tensor, labels: Tensor) -> float:
    """Return the area under precision over recall as a sum of steps.

    Equal scores are one step. scores, labels (0/1) [B].
    """
    order = scores.argsort(descending=True)
    scores, labels = scores[order], labels[order].double()
    positives = labels.cumsum(0)
    precision = positives / torch.arange(1, len(positives) + 1)
    last = torch.cat([scores[1:] != scores[:-1], torch.ones(1, dtype=torch.bool)])
    gained = torch.diff(positives[last], prepend=torch.zeros(1, dtype=torch.float64))
    return ((gained * precision[last]).sum() / positives[-1]).item()


def roc_area(scores: Tensor, labels: Tensor) -> float:
    """Return the chance that a positive scores above a negative, ties counting one half. scores, labels (0/1) [B]."""
    _, index, counts = scores.unique(return_inverse=True, return_counts=True)
    rank = (counts.cumsum(0) - (counts - 1) / 2).double()[index]  # from 1, the mean where scores are equal
    positive = labels.bool()
    count = int(positive.sum())
    return ((rank[positive].sum() - count * (count + 1) / 2) / (count * (len(labels) - count))).item()


def multilabel_scores(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """Return mAP, mean AUC and d-prime (AudioSet's scores) of scores [B,C], labels [B,C] of 0/1: means over classes.

    d-prime is the mean of sqrt(2) * Phi^-1(AUC) over classes, not of the mean AUC; infinite where a class is separated
    perfectly. Classes without positives or without negatives have no score: they are left out, "classes" counts the
    others. Raises ValueError when none is left.
    """
    scores, positives = scores.double(), labels.sum(0)
    usable = [c for c in range(labels.shape[1]) if 0 < positives[c] < len(labels)]
    if not usable:
        raise ValueError(f"none of the {labels.shape[1]} classes has both positive and negative clips")
    areas = torch.tensor([roc_area(scores[:, c], labels[:, c]) for c in usable], dtype=torch.float64)
    precisions = [average_precision(scores[:, c], labels[:, c]) for c in usable]
    return {
        "mAP": sum(precisions) / len(usable),
        "AUC": areas.mean().item(),
        "d-prime": (math.sqrt(2) * torch.special.ndtri(areas)).mean().item(),
        "classes": len(usable),
    }
