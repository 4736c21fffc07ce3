"""A strip of one file: key frames above, and below them what its classes score at the same times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..config.run import RunConfig
from ..runtime.files import COLOURS, MARKERS, pyplot, write_figure
from .read_clip import read_clip

MOST_FRAMES = 10
MOST_CLASSES = len(MARKERS)
PIXELS = 144  # of a key frame's side


def key_frames(path: Path, config: RunConfig, starts: Sequence[float]) -> list[tuple[float, NDArray[np.uint8]]]:
    """Return times and pictures [side, side, 3], at most MOST_FRAMES of `starts`; none of a sound.

    Raises:
        DataError: the file cannot be read.
    """
    places = np.linspace(0, len(starts) - 1, min(len(starts), MOST_FRAMES)).round().astype(int).tolist()
    video = replace(config.model.video, frames=1, size=PIXELS)
    small = replace(config, model=replace(config.model, video=video))
    found = []
    for place in places:
        clip = read_clip(path, small, 1, start=starts[place])
        if not clip.video_mask.any():
            return []
        found.append((starts[place], clip.video[0, 0].numpy()))
    return found


def draw_strip(
    out: Path,
    path: Path,
    config: RunConfig,
    starts: Sequence[float],
    scores: Sequence[Mapping[str, float]],
    score: str,
) -> None:
    """Draw the strip of `path` as a PNG.

    Args:
        out: the PNG.
        config: of the model.
        starts: seconds at which the windows begin, evenly spaced.
        scores: of each window the score of every class; those that score most anywhere are drawn.
        score: what it is, "probability" or "cosine".

    Raises:
        ImportError: matplotlib is not installed.
        DataError: the file cannot be read.
        WriteError: `out` cannot be written.
    """
    plt = pyplot()
    frames = key_frames(path, config, starts)
    best = sorted(scores[0], key=lambda name: -max(one[name] for one in scores))[:MOST_CLASSES]
    step = starts[1] - starts[0] if len(starts) > 1 else 1.0
    first, last = starts[0] - step / 2, starts[-1] + step / 2
    width = min(max(6.0, 1.2 * len(frames)), 12.0)
    side = (width - 1.2) / max(1, len(frames))  # inches that a key frame has
    side = min(side, 1.4)
    heights = [side, 2.4] if frames else [2.4]
    figure, panels = plt.subplots(
        len(heights),
        1,
        figsize=(width, sum(heights) + 1.1),
        height_ratios=heights,
        sharex=True,
        squeeze=False,
        layout="constrained",
    )
    lines = panels[-1, 0]
    for number, name in enumerate(best):
        sign = MARKERS[number % len(MARKERS)]
        colour = COLOURS[number % len(COLOURS)]
        values = [one[name] for one in scores]
        lines.plot(starts, values, label=name, color=colour, marker=sign, markersize=5, linewidth=1.5)
    lines.set(xlabel="seconds", ylabel=score, xlim=(first, last))
    if score == "probability":
        lines.set_ylim(-0.03, 1.03)
    lines.grid(alpha=0.3)
    lines.legend(loc="upper center", bbox_to_anchor=(0.5, -0.25), ncols=min(4, len(best)), frameon=False)
    if frames:
        pictures = panels[0, 0]
        half = 0.48 * min(side / (width - 1.2) * (last - first), (last - first) / len(frames))
        for start, picture in frames:
            pictures.imshow(picture, extent=(start - half, start + half, 0, 1), aspect="auto")
        pictures.set(ylim=(0, 1), xlim=(first, last), title=path.name)
        pictures.axis("off")
    else:
        lines.set_title(path.name)
    write_figure(figure, out)
