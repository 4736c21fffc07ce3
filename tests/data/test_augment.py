"""Augmentation against literal float64 versions of the same definitions."""

import colorsys
from dataclasses import replace

import numpy as np
import pytest

from vatt.config.data import AugmentConfig
from vatt.data.datasets import augment as augmentation
from vatt.data.datasets.augment import audio_noise, centre_crop, short_side, train_video
from vatt.data.decoding.audio import to_float

OFF = AugmentConfig(scale_jitter=0.0, flip=False, colour_jitter=0.0, audio_noise=0.0)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def bilinear(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Half-pixel centres, no antialiasing; float64 [height, width, 3]."""

    def matrix(old: int, new: int) -> np.ndarray:
        weights = np.zeros((new, old))
        for i in range(new):
            at = min(max((i + 0.5) * old / new - 0.5, 0), old - 1)
            low = int(at)
            weights[i, low] += 1 - (at - low)
            weights[i, min(low + 1, old - 1)] += at - low
        return weights

    return np.einsum(
        "yh,hwc,xw->yxc", matrix(image.shape[0], height), image.astype(float), matrix(image.shape[1], width)
    )


@pytest.mark.parametrize(("height", "width"), [(60, 90), (90, 60), (20, 30), (32, 32), (33, 47), (1, 1), (3, 100)])
def test_centre_crop(height: int, width: int) -> None:
    frames, size = noise(2, height, width, 3), 32
    scale = size / min(height, width)
    new_h, new_w = round(height * scale), round(width * scale)
    top, left = (new_h - size) // 2, (new_w - size) // 2
    wanted = bilinear(frames[1], new_h, new_w)[top : top + size, left : left + size]
    got = centre_crop(frames, size)
    assert got.shape == (2, size, size, 3)
    assert np.abs(got[1] - wanted).max() <= 0.5 + 1e-4


def test_random_crops_are_windows_of_the_resized_frame_and_reach_both_ends() -> None:
    frames = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, None, :, None], (1, 32, 64, 3))
    lefts = {int(train_video(frames, 32, OFF, np.random.default_rng(seed))[0, 0, 0, 0]) for seed in range(400)}
    assert lefts == set(range(33))


def test_flip_is_of_the_whole_clip_and_half_of_the_time() -> None:
    frames = noise(3, 32, 32, 3)
    flips = 0
    for seed in range(200):
        got = train_video(frames, 32, replace(OFF, flip=True), np.random.default_rng(seed))
        mirrored = bool((got == frames[:, :, ::-1]).all())
        assert mirrored or (got == frames).all()
        flips += mirrored
    assert 70 < flips < 130


def test_scale_jitter_stretches_within_its_range() -> None:
    # A ramp along x: its slope after the resample tells the horizontal scale of the whole pipeline.
    frames = np.broadcast_to(np.linspace(0, 255, 96).astype(np.uint8)[None, None, :, None], (1, 64, 96, 3))
    slopes = []
    for seed in range(200):
        row = train_video(frames, 32, replace(OFF, scale_jitter=1.0), np.random.default_rng(seed))[0, 16, :, 0]
        slopes.append((float(row[-2]) - float(row[1])) / 29)
    plain = 255 / 95 * 64 / 32
    stretch = plain / np.array(slopes)
    assert 2 / 3 - 0.05 < stretch.min() < 0.85
    assert 1.2 < stretch.max() < 1.5 + 0.05


def test_short_side_never_enlarges() -> None:
    assert short_side(224, AugmentConfig()) == 336
    assert short_side(224, OFF) == short_side(224, None) == 224


def test_same_generator_same_result_and_frames_share_one_draw() -> None:
    still = np.repeat(noise(1, 40, 50, 3), 4, axis=0)
    augment = AugmentConfig(scale_jitter=1.0, colour_jitter=1.0)
    got = train_video(still, 32, augment, np.random.default_rng(5))
    assert (got == train_video(still, 32, augment, np.random.default_rng(5))).all()
    assert (got == got[:1]).all()
    assert (got != train_video(still, 32, augment, np.random.default_rng(6))).any()


def colour_reference(
    image: np.ndarray, brightness: float, saturation: float, contrast: float, hue: float
) -> np.ndarray:
    x = image / 255 + brightness
    for y in range(x.shape[0]):
        for i in range(x.shape[1]):
            h, s, v = colorsys.rgb_to_hsv(*x[y, i])
            x[y, i] = colorsys.hsv_to_rgb(h, min(1, s * saturation), v)
    mean = x.mean(axis=(0, 1))
    x = (x - mean) * contrast + mean
    for y in range(x.shape[0]):
        for i in range(x.shape[1]):
            h, s, v = colorsys.rgb_to_hsv(*x[y, i])
            x[y, i] = colorsys.hsv_to_rgb((h + hue) % 1, s, v)
    return np.clip(x, 0, 1) * 255


@pytest.mark.parametrize("seed", range(6))
def test_colour_jitter_against_colorsys(seed: int) -> None:
    # Brightness can push values below 0, where HSV means nothing; start from pixels that stay positive.
    frames = np.clip(noise(2, 16, 16, 3, seed=seed), 60, 255).astype(np.uint8)
    frames[0, 0, :4] = 128  # grey has no hue
    augment = replace(OFF, colour_jitter=1.0, brightness=0.1, contrast=0.2)
    rng = np.random.default_rng(seed)
    got = train_video(frames, 16, augment, rng)
    rng = np.random.default_rng(seed)
    rng.random(3), rng.uniform(size=2), rng.random(2)
    draws = [rng.uniform(-0.1, 0.1), rng.uniform(0.6, 1.4), rng.uniform(0.8, 1.2), rng.uniform(-0.2, 0.2)]
    for t in range(2):
        assert np.abs(got[t] - colour_reference(frames[t].astype(float), *draws)).max() <= 0.5 + 1e-3


def test_rows_that_are_computed_together_do_not_change_a_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a frame of 224 pixels, in parts that do not divide it, is beside one that is computed whole."""
    frames, augment = noise(3, 60, 90, 3), AugmentConfig(scale_jitter=1.0, colour_jitter=1.0)
    whole = [train_video(frames, 32, augment, np.random.default_rng(seed)) for seed in range(8)]
    monkeypatch.setattr(augmentation, "AT_ONCE", 5)
    monkeypatch.setattr(augmentation, "PLANE", 3 * 32)
    for seed, expected in enumerate(whole):
        assert np.array_equal(train_video(frames, 32, augment, np.random.default_rng(seed)), expected)


def test_black_and_white_survive_colour_jitter() -> None:
    for value in (0, 255):
        frames = np.full((1, 8, 8, 3), value, np.uint8)
        for seed in range(20):
            got = train_video(frames, 8, AugmentConfig(colour_jitter=1.0), np.random.default_rng(seed))
            assert np.ptp(got) == 0  # grey stays grey: no division by zero, no hue out of nothing


def test_audio() -> None:
    samples = np.array([-32768, 0, 16384], np.int16)
    assert to_float(samples).tolist() == [-1.0, 0.0, 0.5]
    tone = np.sin(np.arange(50_000, dtype=np.float32)) * np.float32(0.5)
    noisy = audio_noise(tone, 0.01, np.random.default_rng(0))
    assert noisy.dtype == np.float32
    assert float((noisy - tone).std()) == pytest.approx(0.01 * float(np.abs(tone).max()), rel=0.02)
    silence = np.zeros(100, np.float32)
    assert not audio_noise(silence, 0.01, np.random.default_rng(0)).any()
