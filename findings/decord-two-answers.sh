#!/usr/bin/env bash
# decord gives two different pictures for one index of a clip that was cut without re-encoding.
#
# Versions: decord 0.6.0, PyAV 18.1.0 (writes the clip and reads it for comparison), numpy 2.4.6.
# Input: a 10 s MP4 whose picture i shows the number i, cut at 3 s by copying packets, as `ffmpeg -ss 3 -i in.mp4
#   -c copy out.mp4` does. The packets from the key frame at 2 s on are in the file, and an edit list says that
#   presentation begins 1 s after it: 200 packets, 175 pictures, the first one is number 75.
# Expected: len(reader) is 175, and reader[60] and reader.get_batch(range(...))[60] are the same picture: 135.
# Seen:
#     PyAV: 175 pictures, the first is 75, the last is 249
#     decord: length 200; get_batch of all: picture 60 is 135, the last 26 are all 249; reader[60] is 110
#   Reading in order skips the hidden pictures; jumping counts them, so it is 25 pictures (1 s) early; what is missing
#   at the end is filled up with the last picture.
# Why it matters: clips of Kinetics, AudioSet and the like are often cut this way. Sampling a window starts with a jump: it
#   shows what was cut away, a second before its sound, and uniform sampling over len(reader) ends in a still picture.
# Public: https://github.com/dmlc/decord/issues/54 tells of wrong frames after jumps in clips with odd timestamps.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet av==18.1.0 numpy==2.4.6 decord==0.6.0
cd "$work"
"$work/venv/bin/python" - <<'PY'
from fractions import Fraction

import av
import decord
import numpy as np


def picture(number):
    """96 x 160 pixels in 12 blocks, each light or dark: the number in binary."""
    bits = np.array([number >> b & 1 for b in range(12)], np.uint8).reshape(3, 4)
    return np.repeat(np.kron(bits * 190 + 30, np.ones((32, 40), np.uint8))[..., None], 3, axis=2)


def number(pixels):
    return sum(1 << b for b in range(12) if pixels[b // 4 * 32 + 16, b % 4 * 40 + 20].mean() > 125)


with av.open("whole.mp4", "w") as container:
    stream = container.add_stream("libx264", rate=25, options={"g": "50", "crf": "15", "x264-params": "scenecut=0"})
    stream.width, stream.height, stream.pix_fmt = 160, 96, "yuv420p"
    for i in range(250):
        frame = av.VideoFrame.from_ndarray(picture(i), format="rgb24")
        frame.pts, frame.time_base = i, Fraction(1, 25)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))

with av.open("whole.mp4") as source, av.open("cut.mp4", "w") as target:
    stream = source.streams.video[0]
    copy = target.add_stream_from_template(stream)
    cut = round(3 / stream.time_base)
    source.seek(cut, stream=stream)
    for packet in source.demux(stream):
        if packet.dts is not None:
            packet.pts, packet.dts, packet.stream = packet.pts - cut, packet.dts - cut, copy
            target.mux(packet)

with av.open("cut.mp4") as container:
    right = [number(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
print(f"PyAV: {len(right)} pictures, the first is {right[0]}, the last is {right[-1]}")
assert right == list(range(75, 250))

reader = decord.VideoReader("cut.mp4")
length = len(reader)
in_order = [number(pixels) for pixels in reader.get_batch(range(length)).asnumpy()]
jumped = number(decord.VideoReader("cut.mp4")[60].asnumpy())
still = in_order.count(249)
print(f"decord: length {length}; get_batch of all: picture 60 is {in_order[60]}, the last {still} are all 249; reader[60] is {jumped}")
assert (length, in_order[60], still, jumped) == (200, 135, 26, 110)
PY
