"""Linear probe: how much of a label can be read off frozen features with one dense layer.

Multinomial logistic regression with an L2 penalty on the weights, by full-batch L-BFGS in float64 from zero: convex, so
it has one solution and nothing is random. The release trains two dense layers with dropout 0.9 by Adam instead.

Legend: n training clips, m test clips, D width, C classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vatt.metrics import classification_scores

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)
HELD_OUT = 5  # every fifth training clip of a class chooses the strength


def fit(features: Tensor, labels: Tensor, classes: int, strength: float) -> tuple[Tensor, Tensor]:
    """Weight [D,C] and bias [C] that minimise mean cross-entropy + strength / 2 * |weight|^2.

    features float64 [n,D], labels int64 [n].
    """
    weight = torch.zeros(features.shape[1], classes, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=300, tolerance_grad=1e-6, tolerance_change=1e-10,
                                  history_size=20, line_search_fn="strong_wolfe")  # fmt: skip

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(features @ weight + bias, labels) + strength / 2 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type, unused-ignore]
    return weight.detach(), bias.detach()


def every_fifth(labels: Tensor) -> Tensor:
    """Mask [n]: the last of every HELD_OUT clips of each class, in their order."""
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        chosen[torch.nonzero(labels == label)[HELD_OUT - 1 :: HELD_OUT, 0]] = True
    return chosen


def linear_probe(features: Tensor, labels: Tensor, test_features: Tensor, test_labels: Tensor,
                 classes: int) -> dict[str, float]:  # fmt: skip
    """Top-1 and top-5 of `test_features` [m,D] after a fit to `features` [n,D]; labels int64 in [0, C).

    Features are standardised by the training clips' mean and deviation. The L2 strength of STRENGTHS that is best on a
    fifth of the training clips (the larger one if equal) is the one all of them are fitted with; "strength" tells it.
    """
    features, test_features = features.double(), test_features.double()
    mean, deviation = features.mean(0), features.std(0, correction=0)
    scale = torch.where(deviation > 1e-12, deviation, torch.ones_like(deviation))
    features, test_features = (features - mean) / scale, (test_features - mean) / scale
    tuning = every_fifth(labels)
    strength = max(STRENGTHS)
    if tuning.any():
        best = -1.0
        for candidate in sorted(STRENGTHS, reverse=True):
            weight, bias = fit(features[~tuning], labels[~tuning], classes, candidate)
            top1 = classification_scores(features[tuning] @ weight + bias, labels[tuning])["top1"]
            if top1 > best:
                best, strength = top1, candidate
    weight, bias = fit(features, labels, classes, strength)
    return {**classification_scores(test_features @ weight + bias, test_labels), "strength": strength}
