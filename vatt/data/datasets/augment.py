"""Augmentation of the official pre-training pipeline: one draw per clip, the same for all of its frames.

Video: scale jitter (height and width by independent factors), resize so that the shorter side is `size`, random crop,
horizontal flip, then colour jitter on [0, 1] in the order brightness, saturation, contrast, hue, clip. Differences from
the release, all small: jitter and resize are one bilinear resample instead of two (and only of the pixels that the crop
shows), and the result is rounded back to uint8 once, at the end (at most 1/510 of full scale), so that batches stay a
quarter of the size; the model turns them into x * 2 / 255 - 1. Bilinear means half-pixel centres and no antialiasing.
Before all that, also for evaluation, the decoder shrinks larger sources to a shorter side of `short_side` (336 for size
224 and the default jitter) with libswscale's bilinear filter, which antialiases; the release resizes the stored frames.

Everything is numpy on one thread, so that a batch does not depend on how many threads a process has.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...config.data import AugmentConfig

Frames = NDArray[np.uint8]
Plane = NDArray[np.float32]


def short_side(size: int, augment: AugmentConfig | None) -> int:
    """Return shorter side that decoded frames need, so that no draw of the scale jitter has to enlarge them again."""
    if augment is None or augment.scale_jitter == 0:
        return size
    low, high = augment.scale_range
    return math.ceil(size * high / low)


@dataclass(frozen=True)
class VideoDraw:
    """What was drawn for one clip: its frames become `height` x `width` pixels, cropped at (`top`, `left`).

    `colour`: brightness, saturation, contrast and hue; None leaves the colours as they are.
    """

    height: int
    width: int
    top: int
    left: int
    mirror: bool
    colour: tuple[float, float, float, float] | None


def draw_video(height: int, width: int, size: int, augment: AugmentConfig, rng: np.random.Generator) -> VideoDraw:
    """Draws the augmentation of a clip of `height` x `width` pixels whose crop is `size` x `size`."""
    # Every draw is made whether or not it is used: turning one augmentation off leaves the others as they were.
    jitter, flip, colour = rng.random(3)
    scale_h, scale_w = rng.uniform(*augment.scale_range, size=2)
    place_y, place_x = rng.random(2)
    brightness = rng.uniform(-augment.brightness, augment.brightness)
    saturation = rng.uniform(1 - augment.saturation, 1 + augment.saturation)
    contrast = rng.uniform(1 - augment.contrast, 1 + augment.contrast)
    hue = rng.uniform(-augment.hue, augment.hue)

    if jitter >= augment.scale_jitter:
        scale_h = scale_w = 1.0
    new_h, new_w = fit_short_side(height * scale_h, width * scale_w, size)
    return VideoDraw(
        height=new_h,
        width=new_w,
        top=int(place_y * (new_h - size + 1)),
        left=int(place_x * (new_w - size + 1)),
        mirror=bool(augment.flip and flip < 0.5),
        colour=(brightness, saturation, contrast, hue) if colour < augment.colour_jitter else None,
    )


def train_video(frames: Frames, size: int, augment: AugmentConfig, rng: np.random.Generator) -> Frames:
    """Return uint8 [T, h, w, 3] to an augmented uint8 [T, size, size, 3]."""
    height, width = frames.shape[1:3]
    draw = draw_video(height, width, size, augment, rng)
    rows = Taps(height, draw.height, draw.top, size)
    columns = Taps(width, draw.width, draw.left, size, draw.mirror)
    if rows.whole and columns.whole and draw.colour is None:
        return np.ascontiguousarray(frames[:, rows.low][:, :, columns.low])
    out = np.empty((len(frames), size, size, 3), np.uint8)
    for i, frame in enumerate(frames):  # one frame at a time stays in the processor's cache
        image = resample(frame, rows, columns)
        if draw.colour is not None:
            image = jitter_colours(image, *draw.colour)
        out[i] = to_uint8(image)
    return out


def centre_crop(frames: Frames, size: int) -> Frames:
    """Return uint8 [T, h, w, 3] resized so that the shorter side is `size`, centre crop: uint8 [T, size, size, 3]."""
    height, width = frames.shape[1:3]
    new_h, new_w = fit_short_side(height, width, size)
    rows, columns = Taps(height, new_h, (new_h - size) // 2, size), Taps(width, new_w, (new_w - size) // 2, size)
    if rows.whole and columns.whole:
        return np.ascontiguousarray(frames[:, rows.low][:, :, columns.low])
    out = np.empty((len(frames), size, size, 3), np.uint8)
    for i, frame in enumerate(frames):
        out[i] = to_uint8(resample(frame, rows, columns))
    return out


def audio_noise(samples: NDArray[np.float32], share: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Add Gaussian noise with a standard deviation of `share` times the largest magnitude; float32 [S]."""
    peak = float(np.abs(samples).max(initial=0.0))
    if share == 0 or peak == 0:
        return samples
    return samples + np.float32(share * peak) * rng.standard_normal(len(samples), np.float32)


def fit_short_side(height: float, width: float, size: int) -> tuple[int, int]:
    scale = size / min(height, width)
    return max(size, round(height * scale)), max(size, round(width * scale))


class Taps:
    """For `size` outputs from `first` on, of an axis resized from `old` to `new`: two source pixels and a weight."""

    def __init__(self, old: int, new: int, first: int, size: int, mirror: bool = False) -> None:
        at = (np.arange(first, first + size) + 0.5) * (old / new) - 0.5
        if mirror:
            at = at[::-1]
        at = np.clip(at, 0, old - 1)
        self.low = np.floor(at).astype(np.intp)
        self.high = np.minimum(self.low + 1, old - 1)
        self.weight = (at - self.low).astype(np.float32)
        self.whole = not self.weight.any()


def resample(frame: Frames, rows: Taps, columns: Taps) -> Plane:
    """Return uint8 [h, w, 3] to float32 [size, size, 3] in [0, 255]."""
    left, right = int(columns.low.min()), int(columns.high.max()) + 1
    region = frame[:, left:right]
    # `take` is three times as fast as the same with brackets.
    image = _lerp(region.take(rows.low, 0), region.take(rows.high, 0), rows.weight[:, None, None])
    return _lerp(image.take(columns.low - left, 1), image.take(columns.high - left, 1), columns.weight[:, None])


def _lerp(low: NDArray[np.generic], high: NDArray[np.generic], weight: Plane) -> Plane:
    base = low.astype(np.float32)
    step = high.astype(np.float32)
    step -= base
    step *= weight
    base += step
    return base


def to_uint8(image: Plane) -> Frames:
    return np.rint(image).astype(np.uint8)


def jitter_colours(image: Plane, brightness: float, saturation: float, contrast: float, hue: float) -> Plane:
    """Jitter the colours of one frame, float32 [h, w, 3] in [0, 255]; saturation and hue as in the HSV hexcone."""
    x = np.ascontiguousarray(np.moveaxis(image, 2, 0))
    x *= np.float32(1 / 255)
    x += np.float32(brightness)

    # Saturation S = (V - min) / V becomes min(1, S * saturation) at the same V: all channels move towards or from V.
    value = np.maximum(np.maximum(x[0], x[1]), x[2])
    spread = value - np.minimum(np.minimum(x[0], x[1]), x[2])
    with np.errstate(divide="ignore", invalid="ignore"):
        factor = np.minimum(np.float32(saturation), value / spread)
    factor = np.where(value > 0, factor, np.float32(0))  # black has no saturation
    factor = np.where(spread > 0, factor, np.float32(1))
    x -= value
    x *= factor
    x += value

    mean = x.mean(axis=(1, 2), keepdims=True, dtype=np.float64).astype(np.float32)
    x -= mean
    x *= np.float32(contrast)
    x += mean

    x = _rotate_hue(x, hue)
    np.clip(x, 0, 1, out=x)
    x *= np.float32(255)
    return np.moveaxis(x, 0, 2)


def _rotate_hue(x: Plane, turns: float) -> Plane:
    """Add `turns` full turns to the hue of float32 [3, h, w]; value and minimum stay."""
    red, green, blue = x
    value = np.maximum(np.maximum(red, green), blue)
    spread = value - np.minimum(np.minimum(red, green), blue)
    scale = np.float32(1) / np.where(spread > 0, spread, np.float32(1))
    # Hue in sixths of a turn.
    hue = (red - green) * scale + np.float32(4)
    np.copyto(hue, (blue - red) * scale + np.float32(2), where=value == green)
    np.copyto(hue, (green - blue) * scale, where=value == red)
    hue += np.float32(6 * turns)
    out = np.empty_like(x)
    for channel, offset in enumerate((5, 3, 1)):
        k = hue + np.float32(offset)
        k -= np.float32(6) * np.floor(k * np.float32(1 / 6))
        share = np.minimum(k, np.float32(4) - k)
        np.clip(share, 0, 1, out=share)
        share *= spread
        np.subtract(value, share, out=out[channel])
    return out
