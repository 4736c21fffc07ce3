"""Learning rates over steps."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence

from ..config.pretraining import OptimConfig


def multilevel_rate(step: int, levels: Sequence[tuple[int, float]], steps: int, *, first: float = 0.0) -> float:
    """Return the learning rate of an update: linear from `first` to the first level, then half a cosine a level.

    Each level falls to the next one, the last to 0 at `steps`, from where on the rate stays. A last level that begins
    at `steps` has no length: the rate stays at it (the release divides 0 by 0 there).

    Args:
        step: number of the update, from 0.
        levels: (step from which on, rate) in ascending order.
    """
    start, rate = levels[0]
    if step < start:
        return first + (rate - first) * step / start
    index = bisect_right([begin for begin, _ in levels], step) - 1
    start, rate = levels[index]
    end, target = levels[index + 1] if index + 1 < len(levels) else (steps, 0.0)
    if end <= start:
        return rate
    progress = min((step - start) / (end - start), 1.0)
    return target + (rate - target) * 0.5 * (1 + math.cos(math.pi * progress))


def learning_rate(step: int, config: OptimConfig, steps: int) -> float:
    """Return the learning rate of an update: linear warm-up from 0, then half a cosine down to `final_rate`.

    Args:
        step: number of the update, from 0.
    """
    steps = max(steps, config.warmup)
    return multilevel_rate(min(step, steps), [(config.warmup, config.rate), (steps, config.final_rate)], steps)
