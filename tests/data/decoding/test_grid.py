"""Spans that keep their frames together hold what each alone would."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vatt.data.decoding import grid
from vatt.data.decoding.grid import Span, share

FPS = 10.0


class Numbered:
    """Images of one value, that of the frame."""

    short_side = 8

    def __call__(self, frame: Any, size: tuple[int, int]) -> NDArray[np.uint8]:
        return np.full((size[1], size[0], 3), frame.value % 251, np.uint8)


def gather(spans: list[Span], shown: list[float], sizes: list[int]) -> list[NDArray[np.uint8]]:
    """Let frames pass by as the decoder's do; spans are taken in order when they are complete, the rest at the end."""
    found, waiting = [], list(spans)
    for value, (size, until) in enumerate(zip(sizes, [*shown[1:], shown[-1] + 0.04], strict=True)):
        frame: Any = SimpleNamespace(width=size, height=size, value=value)
        for span in waiting:
            if span.start <= until:
                span.show(frame, span.before(until), Numbered())
        while waiting and waiting[0].complete:
            found.append(waiting.pop(0).video)
    return found + [span.video for span in waiting]


@pytest.mark.parametrize("at_once", [2**28, 2000], ids=["room for all", "room for few"])
@pytest.mark.parametrize("seed", range(8))
def test_together_as_alone(seed: int, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid, "AT_ONCE", at_once)
    draw = np.random.default_rng(seed)
    shown = np.cumsum(draw.uniform(0.01, 0.2, 300)).tolist()
    shown[0] = 0.0
    sizes = [8 if seed % 2 or i < 150 else 6 for i in range(300)]  # a stream may change its size midway
    starts = np.sort(draw.choice(np.concatenate([np.arange(0, 25, 0.1), np.arange(0.03, 25, 0.5)]), 60))
    lengths = draw.integers(1, 40, 60).tolist()
    alone = [gather([Span(s, FPS, n)], shown, sizes)[0] for s, n in zip(starts, lengths, strict=True)]
    spans = [Span(s, FPS, n) for s, n in zip(starts, lengths, strict=True)]
    share(spans)
    for one, other in zip(gather(spans, shown, sizes), alone, strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_overlaps_lies_in_memory_once() -> None:
    spans = [Span(1.0 * i, FPS, 32) for i in range(100)]
    share(spans)
    found = gather(spans, [0.04 * i for i in range(2600)], [8] * 2600)
    pairs = list(pairwise(found))
    assert sum(np.shares_memory(one, other) for one, other in pairs) > 0.8 * len(pairs)
    assert not any(np.shares_memory(one, found[-1]) for one in found[:50])  # what is done with is freed


def test_a_span_shorter_than_its_room_gives_most_of_it_back() -> None:
    span = Span(0.0, FPS, 100)
    (video,) = gather([span], [0.04 * i for i in range(50)], [8] * 50)
    assert len(video) == 20
    assert video.base is None
