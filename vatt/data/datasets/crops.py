"""Crops of fine-tuning: the inception crop for training, three crops along the longer side for tests.

Both are one bilinear resample of the decoded frames (half-pixel centres, no antialiasing), on one thread.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ...config.data import AugmentConfig
from .augment import Resampler, Taps, fit_short_side, jitter_colours, store

Frames = NDArray[np.uint8]
ATTEMPTS = 100
LEAST_COVERED = 0.1  # of the picture, whatever the area range says; the release asks for it


def inception_box(
    height: int, width: int, area: tuple[float, float], aspect: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Return (top, left, height, width) of a random box: width / height in `aspect`, a share of the picture in `area`.

    Of each attempt the aspect is drawn first, then a height out of those that give an area in range, then the place.
    The whole picture if no attempt fits.
    """
    whole = height * width
    for _ in range(ATTEMPTS):
        ratio = rng.uniform(*aspect)
        size, place_y, place_x = rng.random(3)
        low, high = (round(math.sqrt(share * whole / ratio)) for share in area)
        high = min(high, height, math.floor((width + 0.5) / ratio))
        low = min(low, high)
        rows = low + int(size * (high - low + 1))
        columns = round(rows * ratio)
        covered = rows * columns / whole
        if rows < 1 or not 1 <= columns <= width or covered < max(area[0], LEAST_COVERED) or covered > area[1]:
            continue
        return int(place_y * (height - rows + 1)), int(place_x * (width - columns + 1)), rows, columns
    return 0, 0, height, width


def inception_video(
    frames: Frames,
    size: int,
    area: tuple[float, float],
    aspect: tuple[float, float],
    augment: AugmentConfig,
    rng: np.random.Generator,
) -> Frames:
    """Crop uint8 [T, h, w, 3] to [T, size, size, 3]: one box a clip stretched to the size, flip, colour jitter."""
    # Every draw is made whether or not it is used: turning one augmentation off leaves the others as they were.
    flip, colour = rng.random(2)
    brightness = rng.uniform(-augment.brightness, augment.brightness)
    saturation = rng.uniform(1 - augment.saturation, 1 + augment.saturation)
    contrast = rng.uniform(1 - augment.contrast, 1 + augment.contrast)
    hue = rng.uniform(-augment.hue, augment.hue)
    top, left, height, width = inception_box(frames.shape[1], frames.shape[2], area, aspect, rng)
    region = frames[:, top : top + height, left : left + width]
    rows = Taps(height, size, 0, size)
    columns = Taps(width, size, 0, size, augment.flip and flip < 0.5)
    out = np.empty((len(frames), size, size, 3), np.uint8)
    resample = Resampler(rows, columns)
    for frame, place in zip(region, out, strict=True):
        image = resample(frame)
        if colour < augment.colour_jitter:
            image = jitter_colours(image, brightness, saturation, contrast, hue)
        store(image, place)
    return out


def three_crops(frames: Frames, size: int) -> Frames:
    """Crop uint8 [T, h, w, 3], shorter side resized to `size`, to uint8 [3, T, size, size, 3].

    Crops at the start, the middle and the end of the longer side.
    """
    height, width = frames.shape[1:3]
    new_h, new_w = fit_short_side(height, width, size)
    out = np.empty((3, len(frames), size, size, 3), np.uint8)
    for crop, share in zip(out, (0.0, 0.5, 1.0), strict=True):
        rows = Taps(height, new_h, int(share * (new_h - size)), size)
        columns = Taps(width, new_w, int(share * (new_w - size)), size)
        resample = Resampler(rows, columns)
        for frame, place in zip(frames, crop, strict=True):
            store(resample(frame), place)
    return out
