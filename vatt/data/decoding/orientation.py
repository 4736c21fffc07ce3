"""How stored pictures are made upright: display matrices and orientations of EXIF, with and without a mirror.

A display matrix (a, b, u, c, d, v, x, y, w) shows the stored pixel (x, y) at (a x + c y, b x + d y), y downwards. Each
matrix that cameras write keeps the axes or swaps them; any other one (damaged headers hold any number) is
taken as upright, as by players that turn by quarters only.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from ...runtime.compatibility import display_matrix

SKEW = 0.0087  # the tangent of half a degree: what a matrix may be off the axes


class Orientation(NamedTuple):
    """What makes a stored frame upright: first rows and columns change places, then each may be reversed."""

    transposed: bool = False
    mirrored: bool = False  # left and right
    upside_down: bool = False

    def shown(self, width: int, height: int) -> tuple[int, int]:
        """Return the (width, height) of the upright frame."""
        return (height, width) if self.transposed else (width, height)

    def upright(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return `image`, uint8 [h, w, 3], made upright: a view."""
        if self.transposed:
            image = image.swapaxes(0, 1)
        return image[:: -1 if self.upside_down else 1, :: -1 if self.mirrored else 1]


UPRIGHT = Orientation()


def orientation(frame: VideoFrame) -> Orientation:
    """Return how `frame` is to be shown, `UPRIGHT` where nothing says."""
    data = display_matrix(frame)
    if data is None:
        return UPRIGHT
    matrix = np.frombuffer(data, np.int32).astype(np.float64)
    a, b, c, d = matrix[[0, 1, 3, 4]]
    along, across = min(abs(a), abs(d)), min(abs(b), abs(c))
    if along > 0 and max(abs(b), abs(c)) <= SKEW * along:
        return Orientation(False, bool(a < 0), bool(d < 0))
    if across > 0 and max(abs(a), abs(d)) <= SKEW * across:
        return Orientation(True, bool(c < 0), bool(b < 0))
    return UPRIGHT
