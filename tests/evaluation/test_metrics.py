"""Scores against their definitions."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from vatt.evaluation.metrics import (
    average_precision,
    classification_scores,
    hits,
    multilabel_scores,
    ranks,
    retrieval_scores,
    roc_area,
    window_similarity,
)


def literal_area(scores, labels):
    """All pairs of a positive and a negative."""
    positive, negative = scores[labels == 1], scores[labels == 0]
    wins = (positive[:, None] > negative).double() + 0.5 * (positive[:, None] == negative)
    return wins.mean().item()


def literal_precision(scores, labels):
    """Precision at each threshold, weighted by the recall it gains."""
    total, recall = 0.0, 0.0
    for threshold in sorted(set(scores.tolist()), reverse=True):
        chosen = labels[scores >= threshold].double()
        gained = chosen.sum() / labels.sum()
        total += float((gained - recall) * chosen.mean())
        recall = float(gained)
    return total


@pytest.mark.parametrize("levels", [2, 5, 1000])
def test_area_and_precision_with_ties(levels):
    generator = torch.Generator().manual_seed(levels)
    scores = torch.randint(0, levels, (60,), generator=generator).double()
    labels = torch.randint(0, 2, (60,), generator=generator)
    assert roc_area(scores, labels) == pytest.approx(literal_area(scores, labels), abs=1e-12)
    assert average_precision(scores, labels) == pytest.approx(literal_precision(scores, labels), abs=1e-12)


def test_d_prime_is_the_mean_over_classes():
    scores = torch.tensor([[0.1, 0.9], [0.4, 0.8], [0.35, 0.85], [0.8, 0.1]])
    labels = torch.tensor([[0, 1], [0, 0], [1, 1], [1, 0]])
    got = multilabel_scores(scores, labels)
    assert got["AUC"] == pytest.approx((0.75 + 1.0) / 2)
    assert got["d-prime"] == math.inf  # a class that is separated perfectly
    one = multilabel_scores(scores[:, :1], labels[:, :1])
    assert one["d-prime"] == pytest.approx(math.sqrt(2) * 0.6744897501960817, abs=1e-6)


def test_classes_without_both_kinds_are_left_out():
    scores, labels = torch.rand(5, 3), torch.tensor([[1, 0, 1], [0, 0, 1], [1, 0, 1], [0, 0, 1], [0, 0, 1]])
    alone = multilabel_scores(scores[:, :1], labels[:, :1])
    assert multilabel_scores(scores, labels) == alone
    assert alone["classes"] == 1
    with pytest.raises(ValueError, match="none of the 2 classes"):
        multilabel_scores(scores[:, 1:], labels[:, 1:])


def test_constant_scores_are_worth_what_guessing_is():
    assert classification_scores(torch.zeros(4, 10), torch.arange(4)) == {"top1": 0.1, "top5": 0.5}
    scores = retrieval_scores(torch.zeros(20, 20), torch.arange(20))
    assert scores["R@10"] == scores["chance_R@10"] == 0.5
    assert scores["median_rank"] == 10.5
    assert roc_area(torch.zeros(4), torch.tensor([0, 1, 1, 0])) == 0.5


def test_ties_are_worth_the_mean_over_all_their_orders():
    """Of a table full of ties: every order of the candidates, equal ones in the order in which they stand."""
    similarity = torch.randint(0, 3, (6, 5), generator=torch.Generator().manual_seed(0)).double()
    target = torch.arange(6) % 5
    orders = [torch.tensor(order) for order in itertools.permutations(range(5))]
    sorted_by = [similarity[:, order].argsort(dim=1, descending=True, stable=True) for order in orders]
    found = [
        (by == order.argsort()[target][:, None]).int().argmax(1) for order, by in zip(orders, sorted_by, strict=True)
    ]
    places = torch.stack(found).double() + 1
    torch.testing.assert_close(ranks(similarity, target), places.mean(0))
    for k in (1, 2, 5):
        torch.testing.assert_close(hits(similarity, target, k), (places <= k).double().mean(0))


def test_ranks_start_at_one():
    assert ranks(torch.tensor([[0.1, 0.9, 0.5]]), torch.tensor([1])).tolist() == [1]


def test_windows_are_averaged_before_or_after():
    query, windows = torch.randn(3, 8), torch.randn(4, 5, 8)
    before = F.cosine_similarity(query[:, None], windows.mean(1)[None], dim=-1)
    after = F.cosine_similarity(query[:, None, None], windows[None], dim=-1).mean(-1)
    torch.testing.assert_close(window_similarity(query, windows, "embd"), before)
    torch.testing.assert_close(window_similarity(query, windows, "cosine"), after)
    with pytest.raises(ValueError, match="cosine"):
        window_similarity(query, windows, "mean")


def test_one_window_is_a_cosine_either_way():
    query, windows = torch.randn(3, 8), 100 * torch.randn(4, 1, 8)
    one, other = (window_similarity(query, windows, score) for score in ("embd", "cosine"))
    torch.testing.assert_close(one, other)
    assert one.abs().max() <= 1 + 1e-6
