"""Pictures stored turned or mirrored, as front cameras store them, are upright on both decoding paths."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from helpers.media import steady, write_clip
from helpers.media_alone import write_image

from vatt.data.dali.packets import cut_packets
from vatt.data.decoding.container import opened
from vatt.data.decoding.orientation import UPRIGHT, Orientation
from vatt.data.decoding.span import decode_span
from vatt.runtime.compatibility import COPIES_PACKETS

PICTURE = np.zeros((64, 64, 3), np.uint8)  # red, green above blue, yellow
PICTURE[:32, :32], PICTURE[:32, 32:], PICTURE[32:, :32], PICTURE[32:, 32:] = (
    (255, 0, 0),
    (0, 255, 0),
    (0, 0, 255),
    (255, 255, 0),
)
# What EXIF's orientations mean, as Pillow's ImageOps.exif_transpose does it, undone: how each stores the picture.
EXIF = {
    1: PICTURE,
    2: PICTURE[:, ::-1],
    3: PICTURE[::-1, ::-1],
    4: PICTURE[::-1],
    5: PICTURE.swapaxes(0, 1),
    6: np.rot90(PICTURE),
    7: np.rot90(PICTURE, 2).swapaxes(0, 1),
    8: np.rot90(PICTURE, -1),
}


def first(path: Path) -> np.ndarray:
    video = decode_span(path, start=0.0, fps=10.0, frames=1, rate=48_000, read=("video",)).video
    assert video is not None
    return video[0]


def corners(image: np.ndarray) -> list[tuple[bool, ...]]:
    return [tuple(bool(level > 127) for level in image[y, x]) for y in (16, 48) for x in (16, 48)]


@pytest.mark.parametrize("number", EXIF)
def test_photographs_of_every_exif_orientation(tmp_path: Path, number: int) -> None:
    image = write_image(tmp_path / "a.jpg", EXIF[number])
    exif = b"Exif\0\0" + struct.pack(">2sHIHHHIHxxI", b"MM", 42, 8, 1, 0x112, 3, 1, number, 0)
    data = image.read_bytes()
    image.write_bytes(data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:])
    assert corners(first(image)) == corners(PICTURE)


@pytest.mark.parametrize(
    "matrix", [(a, 0, 0, d) for a in (1, -1) for d in (1, -1)] + [(0, b, c, 0) for b in (1, -1) for c in (1, -1)]
)
def test_display_matrices_of_every_kind(tmp_path: Path, matrix: tuple[int, int, int, int]) -> None:
    """The track header's matrix (a, b, c, d) shows the stored (x, y) at (a x + c y, b x + d y); on both paths alike."""
    clip = write_clip(tmp_path / "clip.mp4", steady(1.0, 25))
    stored = first(clip)
    data = bytearray(clip.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    a, b, c, d = (value << 16 for value in matrix)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    clip.write_bytes(data)
    y, x = np.mgrid[0:64, 0:64] * 2 - 63  # from the middle, so that no offset is needed
    wanted = np.empty_like(stored)
    a, b, c, d = matrix
    wanted[(b * x + d * y + 63) // 2, (a * x + c * y + 63) // 2] = stored
    assert (first(clip) == wanted).all()
    if not COPIES_PACKETS:
        return
    with opened(clip, 30.0, ("video",)) as reader:
        turn = cut_packets(reader, 0.0, 10.0, 5, "gpu").orientation
    assert (turn.upright(stored) == wanted).all()


def test_a_damaged_matrix_turns_nothing(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", steady(1.0, 25))
    stored = first(clip)
    data = bytearray(clip.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    for matrix in ((0, 0, 0, 0), (50_000, 40_000, -40_000, 50_000), (1, 0, 0, 0), (-(1 << 31), 1, 7, 1 << 30)):
        a, b, c, d = matrix
        data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
        clip.write_bytes(data)
        assert first(clip).shape == stored.shape


def test_an_orientation_says_how_large_the_upright_frame_is() -> None:
    image = np.zeros((4, 6, 3), np.uint8)
    for turn in (UPRIGHT, Orientation(True), Orientation(True, True, False)):
        height, width = turn.upright(image).shape[:2]
        assert turn.shown(6, 4) == (width, height)
