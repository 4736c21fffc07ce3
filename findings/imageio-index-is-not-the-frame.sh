#!/usr/bin/env bash
# imageio's reader gives frame 8 for index=10 of a fragmented MP4, and frame 10 when it iterates.
#
# Versions: imageio 2.38.1 with its "pyav" plugin, PyAV 18.1.0, numpy 2.4.6.
# Input: 10 s of H.264 with B-frames at 25 frames/s, picture i shows the number i, as a plain MP4 and as a fragmented one
#   (movflags frag_keyframe+empty_moov), as streaming services and browsers' recorders write them. The fragmented one has
#   no edit list, so its first picture has the time 0.08 s.
# Expected: imread(index=k) is the k-th image that imiter gives, for both.
# Seen:
#     plain.mp4: 250 images announced, 250 iterated, index 0 10 60 gives [0, 10, 60]
#     fragmented.mp4: 0 images announced, 250 iterated, index 0 10 60 gives [0, 8, 58]
#   The plugin turns the index into a time by the frame rate and looks for that time, not counting from the first frame.
# Why it matters: uniform sampling by index is early by the decoder's delay, and the first two indices are one picture;
#   captions and sound, which go by time, are not shifted with it. And a length of 0 makes the clip look empty.
# Public: no report was found.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet imageio==2.38.1 av==18.1.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PY'
from fractions import Fraction

import av
import imageio.v3 as iio
import numpy as np


def picture(number):
    """96 x 160 pixels in 12 blocks, each light or dark: the number in binary."""
    bits = np.array([number >> b & 1 for b in range(12)], np.uint8).reshape(3, 4)
    return np.repeat(np.kron(bits * 190 + 30, np.ones((32, 40), np.uint8))[..., None], 3, axis=2)


def number(pixels):
    return sum(1 << b for b in range(12) if pixels[b // 4 * 32 + 16, b % 4 * 40 + 20].mean() > 125)


def write(path, options):
    with av.open(path, "w", options=options) as container:
        stream = container.add_stream("libx264", rate=25, options={"g": "50", "bf": "2", "crf": "15"})
        stream.width, stream.height, stream.pix_fmt = 160, 96, "yuv420p"
        for i in range(250):
            frame = av.VideoFrame.from_ndarray(picture(i), format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


write("plain.mp4", {})
write("fragmented.mp4", {"movflags": "frag_keyframe+empty_moov"})
expected = {"plain.mp4": (250, [0, 10, 60]), "fragmented.mp4": (0, [0, 8, 58])}
for path, (announced, indexed) in expected.items():
    images = iio.improps(path, plugin="pyav").n_images
    in_order = [number(image) for image in iio.imiter(path, plugin="pyav")]
    jumped = [number(iio.imread(path, plugin="pyav", index=k)) for k in (0, 10, 60)]
    print(f"{path}: {images} images announced, {len(in_order)} iterated, index 0 10 60 gives {jumped}")
    assert in_order == list(range(250)) and images == announced and jumped == indexed
PY
