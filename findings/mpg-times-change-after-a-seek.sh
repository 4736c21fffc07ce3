#!/usr/bin/env bash
# In an MPEG program stream one picture has another time after a seek than when read from the start.
#
# Versions: PyAV 18.1.0 (FFmpeg 8.1.2), numpy 2.4.6.
# Input: 20 s of MPEG-2 at 25 frames/s in .mpg, picture i shows the number i. Such files, as camcorders and DVD rips are, hold
#   a presentation time for some pictures only.
# Expected: the i-th picture has the time start + i / 25, as it has when the file is read from the start.
# Seen (picture's number minus (time - start) * 25, over the first ten pictures after seeks to every 37th):
#     from the start: 0.0
#     after seeks: -1.0 -0.5 0.0
# Why it matters: a window's pictures are up to 40 ms off against its sound, or not, depending on where it begins; a search for
#   "the picture at time t" finds none, and windows of one clip overlap where they should meet.
# Public: no report was found.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet av==18.1.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PY'
from fractions import Fraction
from itertools import islice

import av
import numpy as np

FRAMES, RATE = 500, 25


def picture(number):
    """96 x 160 pixels in 12 blocks, each light or dark: the number in binary."""
    bits = np.array([number >> b & 1 for b in range(12)], np.uint8).reshape(3, 4)
    return np.repeat(np.kron(bits * 190 + 30, np.ones((32, 40), np.uint8))[..., None], 3, axis=2)


def read(frame):
    """The frame's time in ticks and the number it shows."""
    pixels = frame.to_ndarray(format="rgb24")
    return frame.pts, sum(1 << b for b in range(12) if pixels[b // 4 * 32 + 16, b % 4 * 40 + 20].mean() > 125)


with av.open("seek.mpg", "w") as container:
    stream = container.add_stream("mpeg2video", rate=RATE, options={"qmin": "3", "qmax": "3"})
    stream.width, stream.height, stream.pix_fmt = 160, 96, "yuv420p"
    stream.codec_context.gop_size = 50
    for i in range(FRAMES):
        frame = av.VideoFrame.from_ndarray(picture(i), format="rgb24")
        frame.pts, frame.time_base = i, Fraction(1, RATE)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))

with av.open("seek.mpg") as container:
    stream = container.streams.video[0]
    whole = [read(frame) for frame in container.decode(stream)]
    begin = whole[0][0]
    after = []
    for index in range(0, FRAMES - 60, 37):
        container.seek(begin + round(index / RATE / stream.time_base), stream=stream)
        after.append([read(frame) for frame in islice(container.decode(stream), 10)])
    base = stream.time_base


def errors(pairs):
    return {float(shown - (pts - begin) * base * RATE) for pts, shown in pairs}


straight, sought = errors(whole), set().union(*map(errors, after))
print("from the start:", *sorted(straight))
print("after seeks:", *sorted(sought))
assert straight == {0} and sought - {0}, "times after a seek are right now"
PY
