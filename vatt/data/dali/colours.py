"""Colours of frames that DALI decodes: it takes all for BT.601, and most HD video is BT.709.

What a decoder makes of Y, U and V is linear, so another one's colours follow by a matrix, as long as no channel was
clipped. Saturated colours are: those of BT.709 that BT.601 takes for more than there is are lost, up to 22 levels of
255. `python -m vatt.data.transcode` writes BT.601 and says so in the file, which both decoders read alike.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Shares of red and blue in luma, by what libav calls the matrix; all others are decoded as BT.601.
BT601 = (0.299, 0.114)
LUMA = {1: (0.2126, 0.0722), 4: (0.30, 0.11), 7: (0.212, 0.087), 9: (0.2627, 0.0593)}
RESTORED = (
    "its colours are not BT.601, which DALI takes them for; they are restored except where they are saturated (up to "
    "22 levels of 255 off): python -m vatt.data.transcode writes files that both decoders read alike"
)


def colour_matrix(colourspace: int) -> NDArray[np.float32]:
    """float32 [3, 3]: RGB decoded as BT.601 to RGB of `colourspace`, as libav numbers them; a product from the left."""
    if colourspace not in LUMA:
        return np.eye(3, dtype=np.float32)
    right = _rgb_of_yuv(*LUMA[colourspace])
    return (right @ np.linalg.inv(_rgb_of_yuv(*BT601))).astype(np.float32)


def _rgb_of_yuv(red: float, blue: float) -> NDArray[np.float64]:
    green = 1 - red - blue
    return np.array(
        [
            [1, 0, 2 * (1 - red)],
            [1, -2 * blue * (1 - blue) / green, -2 * red * (1 - red) / green],
            [1, 2 * (1 - blue), 0],
        ]
    )
