"""Interleaved timing and its quantiles."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence


def time_interleaved(
    candidates: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    warmup: int = 1,
    done: Mapping[str, int] | None = None,
) -> Iterator[tuple[str, float | None]]:
    """Time candidates in turn, a call each a round, so that slow drifts of the machine meet all of them alike.

    Every second round goes backwards: no candidate always follows the same one.

    Args:
        done: calls that each has behind it from an earlier process.

    Yields:
        (name, seconds) after every call, (name, None) for warm-up calls.
    """
    counts = {name: (done or {}).get(name, 0) for name in candidates}
    for name, step in candidates.items():
        for _ in range(warmup if counts[name] < rounds else 0):
            step()
            yield name, None
    for number in range(rounds):
        order = list(candidates) if number % 2 == 0 else list(candidates)[::-1]
        for name in order:
            if counts[name] > number:
                continue
            tick = time.perf_counter()
            candidates[name]()
            yield name, time.perf_counter() - tick


def quantiles(seconds: Sequence[float]) -> dict[str, float | None]:
    """Return p20, p50 and p80 (linear interpolation); None without samples."""
    ordered = sorted(seconds)

    def at(share: float) -> float | None:
        if not ordered:
            return None
        position = share * (len(ordered) - 1)
        low = int(position)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (position - low) * (ordered[high] - ordered[low])

    return {"p20": at(0.2), "p50": at(0.5), "p80": at(0.8)}
