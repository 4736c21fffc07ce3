"""A strip of one file: key frames above, and below them what its classes score at the same times."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..config.run import RunConfig
from ..runtime.files import COLOURS, MARKERS, pyplot, write_figure
from .read_clip import read_clip

MOST_FRAMES = 8
MOST_CLASSES = len(MARKERS)
PIXELS = 144  # of a key frame's side
MARGIN = 0.9  # inches beside the panels


def key_frames(path: Path, config: RunConfig, starts: Sequence[float]) -> list[NDArray[np.uint8]]:
    """Return a picture [side, side, 3] at each of `starts`, in seconds; none of a sound.

    Raises:
        DataError: the file cannot be read.
    """
    video = replace(config.model.video, frames=1, size=PIXELS)
    small = replace(config, model=replace(config.model, video=video))
    clips = [read_clip(path, small, 1, start=start) for start in starts]
    return [clip.video[0, 0].numpy() for clip in clips] if clips[0].video_mask.any() else []


def draw_strip(
    out: Path,
    path: Path,
    config: RunConfig,
    windows: Sequence[tuple[float, Mapping[str, float]]],
    score: str,
) -> None:
    """Draw the strip of `path` as a PNG.

    Args:
        out: the PNG.
        config: of the model.
        windows: seconds at which each begins, evenly spaced, and the score of every class in it; the classes that score
            most anywhere are drawn.
        score: what that is, "probability" or "cosine".

    Raises:
        ImportError: matplotlib is not installed.
        DataError: the file cannot be read.
        WriteError: `out` cannot be written.
    """
    plt = pyplot()
    starts, scores = [start for start, _ in windows], [found for _, found in windows]
    every = math.ceil(len(starts) / MOST_FRAMES)
    frames = key_frames(path, config, starts[::every])
    best = sorted(scores[0], key=lambda name: -max(one[name] for one in scores))[:MOST_CLASSES]
    apart = every * (starts[1] - starts[0] if len(starts) > 1 else 1.0)  # seconds between key frames
    limits = starts[0] - apart / 2, starts[-1] + apart / 2
    width = min(max(5.5, 1.2 * len(starts[::every])), 10.0)
    inches = (width - MARGIN) / (limits[1] - limits[0])  # a second
    side = min(0.95 * apart * inches, 1.6)
    heights = [side, 2.2] if frames else [2.2]
    size = (width, sum(heights) + 1.2)
    figure, panels = plt.subplots(len(heights), 1, figsize=size, height_ratios=heights, squeeze=False)
    figure.set_layout_engine("constrained", hspace=0.0)
    lines = panels[-1, 0]
    for name, colour, sign in zip(best, COLOURS, MARKERS, strict=False):
        values = [one[name] for one in scores]
        lines.plot(starts, values, label=name, color=colour, marker=sign, markersize=5, linewidth=1.5)
    lines.set(xlabel="seconds", ylabel=score, xlim=limits)
    if score == "probability":
        lines.set_ylim(-0.03, 1.03)
    lines.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=min(3, len(best)), frameon=False)
    panels[0, 0].set_title(path.name, fontsize="medium")
    if frames:
        pictures = panels[0, 0]
        half = side / inches / 2
        for start, picture in zip(starts[::every], frames, strict=True):
            pictures.imshow(picture, extent=(start - half, start + half, 0, 1), aspect="auto")
        pictures.set(ylim=(0, 1), xlim=limits)
        pictures.axis("off")
    write_figure(figure, out)
