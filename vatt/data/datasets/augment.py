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
AT_ONCE = 64  # rows that are resampled together
PLANE = 2**13  # numbers of one colour that are jittered together


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
    resample = Resampler(rows, columns)
    for frame, place in zip(frames, out, strict=True):
        image = resample(frame)
        store(image if draw.colour is None else jitter_colours(image, *draw.colour), place)
    return out


def centre_crop(frames: Frames, size: int) -> Frames:
    """Return uint8 [T, h, w, 3] resized so that the shorter side is `size`, centre crop: uint8 [T, size, size, 3]."""
    height, width = frames.shape[1:3]
    new_h, new_w = fit_short_side(height, width, size)
    rows, columns = Taps(height, new_h, (new_h - size) // 2, size), Taps(width, new_w, (new_w - size) // 2, size)
    if rows.whole and columns.whole:
        return np.ascontiguousarray(frames[:, rows.low][:, :, columns.low])
    out = np.empty((len(frames), size, size, 3), np.uint8)
    resample = Resampler(rows, columns)
    for frame, place in zip(frames, out, strict=True):
        store(resample(frame), place)
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


class Resampler:
    """Resamples frames, one after the other, in memory of its own.

    Memory that is new for each frame takes longer than the arithmetic, most of all in a loader's process, which gives
    blocks of this size back to the system at once. So do images of many rows: what lies between two steps leaves the
    processor's cache.
    """

    def __init__(self, rows: Taps, columns: Taps) -> None:
        top, left = int(rows.low.min()), int(columns.low.min())
        self.region = slice(top, int(rows.high.max()) + 1), slice(left, int(columns.high.max()) + 1)
        height, width = (part.stop - part.start for part in self.region)
        self.source = np.empty((height, width, 3), np.uint8)
        self.rows = rows.low - top, rows.high - top, rows.weight[:, None, None]
        self.columns = columns.low - left, columns.high - left, columns.weight[:, None]
        at_once = min(AT_ONCE, len(rows.low))
        self.bytes = np.empty((at_once, width, 3), np.uint8)
        self.base, self.step = (np.empty((at_once, width, 3), np.float32) for _ in range(2))
        self.across = np.empty((at_once, len(columns.low), 3), np.float32)
        self.image = np.empty((len(rows.low), len(columns.low), 3), np.float32)

    def __call__(self, frame: Frames) -> Plane:
        """Return uint8 [h, w, 3] to float32 [size, size, 3] in [0, 255], which the next call writes over."""
        self.source[...] = frame[self.region]  # `take` would copy what does not lie in one piece, at each call
        left, right, weight = self.columns
        for first in range(0, len(self.image), AT_ONCE):
            image = self.image[first : first + AT_ONCE]
            base, step, across = (x[: len(image)] for x in (self.base, self.step, self.across))
            above, below, share = (x[first : first + AT_ONCE] for x in self.rows)
            some = self.bytes[: len(image)]
            for places, plane in ((above, base), (below, step)):
                self.source.take(places, 0, some, "clip")  # three times as fast as the same with brackets
                plane[...] = some
            _lerp(base, step, share)
            base.take(left, 1, image, "clip")
            base.take(right, 1, across, "clip")
            _lerp(image, across, weight)
        return self.image


def _lerp(base: Plane, other: Plane, weight: Plane) -> None:
    """Move `base` towards `other` in place, which is overwritten."""
    other -= base
    other *= weight
    base += other


def store(image: Plane, out: Frames) -> None:
    """Round an image, in place, into `out`."""
    np.rint(image, out=image)
    out[...] = image


def jitter_colours(image: Plane, brightness: float, saturation: float, contrast: float, hue: float) -> Plane:
    """Jitter the colours of one frame, float32 [h, w, 3] in [0, 255]; saturation and hue as in the HSV hexcone."""
    planes = np.ascontiguousarray(np.moveaxis(image, 2, 0))
    at_once = max(1, PLANE // image.shape[1])
    parts = [planes[:, first : first + at_once] for first in range(0, len(image), at_once)]
    for x in parts:
        x *= np.float32(1 / 255)
        x += np.float32(brightness)
        _saturate(x, saturation)
    mean = planes.mean(axis=(1, 2), keepdims=True, dtype=np.float64).astype(np.float32)
    for x in parts:
        x -= mean
        x *= np.float32(contrast)
        x += mean
        np.clip(_rotate_hue(x, hue), 0, 1, out=x)
        x *= np.float32(255)
    return np.moveaxis(planes, 0, 2)


def _saturate(x: Plane, saturation: float) -> None:
    """Make saturation S = (V - min) / V of float32 [3, h, w] min(1, S * saturation), in place.

    V stays: all channels move towards or from it.
    """
    value = np.maximum(np.maximum(x[0], x[1]), x[2])
    spread = value - np.minimum(np.minimum(x[0], x[1]), x[2])
    with np.errstate(divide="ignore", invalid="ignore"):
        factor = np.minimum(np.float32(saturation), value / spread)
    factor = np.where(value > 0, factor, np.float32(0))  # black has no saturation
    factor = np.where(spread > 0, factor, np.float32(1))
    x -= value
    x *= factor
    x += value


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
