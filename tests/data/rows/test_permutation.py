"""The order of an epoch: a bijection, as likely as any other, of which every part can be asked for alone."""

from __future__ import annotations

from collections import Counter
from itertools import permutations

import numpy as np
import pytest

from vatt.data.rows.permutation import Permutation


@pytest.mark.parametrize("n", [1, 2, 3, 12, 255, 256, 257, 10_007])
def test_every_index_once(n: int) -> None:
    order = Permutation(3, 1, n)[np.arange(n)]
    assert sorted(order.tolist()) == list(range(n))
    assert [int(Permutation(3, 1, n)[place]) for place in (0, n // 2, n - 1)] == order[[0, n // 2, n - 1]].tolist()
    assert order[n // 3 :].tolist() == Permutation(3, 1, n)[np.arange(n // 3, n)].tolist()


def test_a_function_of_seed_epoch_and_size() -> None:
    orders = [tuple(Permutation(*key)[np.arange(50)].tolist()) for key in ((1, 0, 50), (1, 1, 50), (2, 0, 50))]
    assert len(set(orders)) == 3
    assert orders[0] == tuple(Permutation(1, 0, 50)[np.arange(50)].tolist())
    assert Permutation(7, 2, 1_000_003)[np.arange(4)].tolist() == [969235, 895977, 348960, 323254]


@pytest.mark.parametrize("n", [3, 4])
def test_all_orders_are_as_likely(n: int) -> None:
    draws = 100 * len(list(permutations(range(n))))
    counts = Counter(tuple(Permutation(5, epoch, n)[np.arange(n)].tolist()) for epoch in range(draws))
    assert len(counts) == draws // 100
    spread = sum((count - 100) ** 2 / 100 for count in counts.values())
    freedom = len(counts) - 1
    assert abs(spread - freedom) < 4 * np.sqrt(2 * freedom)


def test_a_place_gets_every_index_as_often_and_neighbours_are_strangers() -> None:
    n, table, together = 1000, np.zeros((20, 20)), 0
    for epoch in range(60):
        order = Permutation(3, epoch, n)[np.arange(n)]
        np.add.at(table, (np.arange(n) // 50, order // 50), 1)
        together += int((abs(np.diff(order)) == 1).sum())
    expected = 60 * n / 400
    spread, freedom = ((table - expected) ** 2 / expected).sum(), 19 * 19
    assert abs(spread - freedom) < 4 * np.sqrt(2 * freedom)
    assert abs(together - 60 * 2) < 4 * np.sqrt(60 * 2)
