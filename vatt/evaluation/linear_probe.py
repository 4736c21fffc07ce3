"""Linear probe: how much of a label can be read off frozen features (paper, Table 5).

"official": the release's classifier, dense 128 without activation, dropout 0.9, dense C with L2 0.1, by Adam.
"lbfgs": multinomial logistic regression with an L2 penalty on the weights, by full-batch L-BFGS in float64 from zero.
It is convex: there is one solution, and nothing is random. "sklearn" is another name of it, from the time when
scikit-learn could be chosen to look for the same solution.

As in the release, a probe is fitted on the window in the middle of each training clip, and the probabilities of a test
clip are means over its windows.

Legend: n training clips, m test clips, W windows, D width, C classes.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config.pretraining import OptimConfig
from ..model.initializers import glorot_normal_, linear
from ..runtime.progress import progress_bar
from ..training.optimizers import Adam
from .metrics import classification_scores

CLASSIFIERS = ("official", "lbfgs", "sklearn")
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)
HELD_OUT = 5  # every fifth training clip of a class chooses the strength
HIDDEN, DROPOUT, PENALTY, RATE, BATCH, EPOCHS = 128, 0.9, 0.1, 5e-4, 64, 1000  # the release's


def fit_and_classify(classifier: str, features: Tensor, labels: Tensor, windows: Tensor, classes: int) -> Tensor:
    """Fit the named classifier to `features` and classify test clips by it.

    Args:
        classifier: one of CLASSIFIERS.
        features: [n,D], of one window of each training clip.
        labels: int64 [n] in [0, C).
        windows: [m,W,D], of the test clips.

    Returns:
        Log-probabilities float64 [m,C].
    """
    if classifier == "official":
        return official_probe(features, labels, windows, classes)
    return regression(features, labels, windows, classes)[0]


def official_probe(features: Tensor, labels: Tensor, windows: Tensor, classes: int, seed: int = 1) -> Tensor:
    """Fit and classify with the release's two dense layers: 1000 epochs in batches of 64, cross-entropy + 0.1 |w|^2."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        first, last = linear(features.shape[1], HIDDEN), linear(HIDDEN, classes)
        for layer in (first, last):
            glorot_normal_(layer.weight, layer.in_features, layer.out_features)
        model = nn.Sequential(first, nn.Dropout(DROPOUT), last)
        optimizer = Adam(model.parameters(), OptimConfig(rate=RATE))
        with progress_bar(EPOCHS, "fitting", "epoch") as bar:
            for _ in range(EPOCHS):
                for chosen in torch.randperm(len(features)).split(BATCH):
                    optimizer.zero_grad(set_to_none=True)
                    loss = F.cross_entropy(model(features[chosen]), labels[chosen])
                    (loss + PENALTY * last.weight.square().sum()).backward()
                    optimizer.step()
                bar.update()
    with torch.no_grad():
        return mean_of_windows(model.eval()(windows))


def mean_of_windows(logits: Tensor) -> Tensor:
    """Return the log of the mean over windows of the probabilities of logits [m,W,C], float64 [m,C]."""
    return logits.double().log_softmax(-1).logsumexp(1) - math.log(logits.shape[1])


def fit(features: Tensor, labels: Tensor, classes: int, strength: float) -> tuple[Tensor, Tensor]:
    """Minimise mean cross-entropy + strength / 2 * |weight|^2 over a linear classifier.

    Args:
        features: float64 [n,D].
        labels: int64 [n] in [0, C).

    Returns:
        weight float64 [D,C] and bias float64 [C].
    """
    weight = torch.zeros(features.shape[1], classes, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=300,
        tolerance_grad=1e-6,
        tolerance_change=1e-10,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(features @ weight + bias, labels) + strength / 2 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type, unused-ignore]
    return weight.detach(), bias.detach()


def every_fifth(labels: Tensor) -> Tensor:
    """Return a mask [n] of the last of every HELD_OUT clips of each class, in their order."""
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        chosen[torch.nonzero(labels == label)[HELD_OUT - 1 :: HELD_OUT, 0]] = True
    return chosen


def regression(features: Tensor, labels: Tensor, windows: Tensor, classes: int) -> tuple[Tensor, float]:
    """Fit a logistic regression to `features` [n,D] and classify windows [m,W,D].

    Features are standardised by the training clips' mean and deviation. The strength of STRENGTHS that is best on a
    fifth of the training clips (the larger one if equal) is the one all of them are fitted with.

    Returns:
        Log-probabilities float64 [m,C], and the L2 strength.
    """
    features, windows = features.double(), windows.double()
    mean, deviation = features.mean(0), features.std(0, correction=0)
    scale = torch.where(deviation > 1e-12, deviation, torch.ones_like(deviation))
    features, windows = (features - mean) / scale, (windows - mean) / scale
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
    return mean_of_windows(windows @ weight + bias), strength


def linear_probe(
    features: Tensor, labels: Tensor, test_features: Tensor, test_labels: Tensor, classes: int
) -> dict[str, float]:
    """Return top-1 and top-5 of `test_features` [m,D] by `regression` on `features` [n,D].

    "strength" tells that chosen.
    """
    logits, strength = regression(features, labels, test_features[:, None], classes)
    return {**classification_scores(logits, test_labels), "strength": strength}
