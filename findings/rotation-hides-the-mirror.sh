#!/usr/bin/env bash
# A clip that is stored mirrored has the rotation 180 or 0 in PyAV: turned by it, it is upside down or still mirrored.
#
# Versions: PyAV 18.1.0 (FFmpeg 8.1.2), numpy 2.4.6; PyAV 19.0.2 as well.
# Input: three MP4s of one picture (red, green above; blue, yellow below), stored upright, mirrored left to right and upside
#   down, each with the track matrix that undoes it, as front cameras and editors write.
# Expected: turning each frame by frame.rotation gives the upright picture, or the property says that this is not enough.
# Seen:
#     plain: rotation 0, turned by it: red green blue yellow
#     mirrored left to right: rotation -180, turned by it: blue yellow red green
#     upside down: rotation 0, turned by it: blue yellow red green
#   av_display_rotation_get, behind the property, is only defined for matrices without a mirror (negative determinant); the
#   whole matrix is in the frame's side data of type DISPLAYMATRIX. Players and `ffmpeg` show all three upright.
# Why it matters: a share of phone clips is trained upside down or mirrored, and only after "correcting" the rotation; text and
#   left and right in captions are then wrong.
# Public: https://github.com/PyAV-Org/PyAV/pull/1675 (the property), https://github.com/FFMS/ffms2/issues/317 (the same
#   trap in another library).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet av==18.1.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PY'
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

COLOURS = {(1, 0, 0): "red", (0, 1, 0): "green", (0, 0, 1): "blue", (1, 1, 0): "yellow"}
upright = np.kron(255 * np.array([[[1, 0, 0], [0, 1, 0]], [[0, 0, 1], [1, 1, 0]]], np.uint8), np.ones((48, 48, 1), np.uint8))


def write(path, pixels, across, down, x, y):
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "8"})
        stream.width, stream.height, stream.pix_fmt = 96, 96, "yuv420p"
        for i in range(3):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    data = bytearray(Path(path).read_bytes())
    at = data.find(b"tkhd") + 44  # the track's matrix: a b u, c d v, x y w
    data[at : at + 36] = struct.pack(">9i", across << 16, 0, 0, 0, down << 16, 0, x << 16, y << 16, 1 << 30)
    Path(path).write_bytes(data)


cases = {
    "plain": (upright, 1, 1, 0, 0),
    "mirrored left to right": (upright[:, ::-1], -1, 1, 96, 0),
    "upside down": (upright[::-1], 1, -1, 0, 96),
}
expected = {
    "plain": (0, "red green blue yellow"),
    "mirrored left to right": (180, "blue yellow red green"),
    "upside down": (0, "blue yellow red green"),
}
for name, how in cases.items():
    write("clip.mp4", *how)
    with av.open("clip.mp4") as container:
        frame = next(container.decode(video=0))
    turned = np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
    seen = " ".join(COLOURS[tuple(int(c > 128) for c in turned[i, j])] for i in (24, 72) for j in (24, 72))
    print(f"{name}: rotation {frame.rotation}, turned by it: {seen}")
    assert (abs(frame.rotation), seen) == expected[name]
PY
