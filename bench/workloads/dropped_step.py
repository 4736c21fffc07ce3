"""Training steps with attention's dropout on a CPU: of version 2, and of version 1, which older runs go on with.

Version 1 computes what it did when it was the only one, so both are measured in one process, in turn; everything else
of the step is the same. The gain from dropping tokens stands beside the ratio of FLOPs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from harness.timing import quantiles, time_interleaved

from vatt.config.model import DropConfig
from vatt.config.presets import preset

from .model_steps import StepCase, make_step

RATES = (0.0, 0.5)
DROPOUT = 0.1


def rows(
    name: str = "sss",
    *,
    whole: bool = False,
    rates: Sequence[float] = RATES,
    rounds: int = 9,
    layers: int | None = None,
) -> list[dict[str, Any]]:
    """Measure steps of preset `name` in float32: the video model, or a `whole` one of two clips.

    Returns:
        A row for each drop rate and version: p20, p50 and p80 in seconds, GFLOP/s, `over_version_1` (how many times
        faster), `gain` (against no dropped token) and `flop_ratio` (what it would be at equal GFLOP/s).
    """
    cases = {rate: _case(name, rate, whole, layers) for rate in rates}
    steps = {
        (rate, version): make_step(replace(case, dropout_version=version))
        for rate, case in cases.items()
        for version in (1, 2)
    }
    names = {f"{rate} {version}": key for key in steps for rate, version in [key]}
    seconds: dict[tuple[float, int], list[float]] = {key: [] for key in steps}
    for label, took in time_interleaved({label: steps[key] for label, key in names.items()}, rounds):
        if took is not None:
            seconds[names[label]].append(took)
    medians = {key: quantiles(times)["p50"] or float("nan") for key, times in seconds.items()}
    return [
        {
            "preset": name,
            "whole": whole,
            "dropout": DROPOUT,
            "drop_rate": rate,
            "version": version,
            **quantiles(seconds[rate, version]),
            "gflops": cases[rate].flops / medians[rate, version] / 1e9,
            "over_version_1": medians[rate, 1] / medians[rate, version],
            "gain": medians[rates[0], version] / medians[rate, version],
            "flop_ratio": cases[rates[0]].flops / cases[rate].flops,
        }
        for rate, version in steps
    ]


def _case(name: str, rate: float, whole: bool, layers: int | None) -> StepCase:
    model = preset(name).model
    encoders = {}
    for encoder in ("video_encoder", "audio_encoder", "text_encoder", "shared_encoder"):
        sizes = getattr(model, encoder)
        encoders[encoder] = replace(sizes, dropout=DROPOUT, layers=sizes.layers if layers is None else layers)
    model = replace(model, drop=DropConfig(rate), **encoders)
    return StepCase(model, training=True, whole=whole, batch=2 if whole else 1)
