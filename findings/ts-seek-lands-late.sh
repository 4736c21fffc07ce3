#!/usr/bin/env bash
# A backward seek in an MPEG transport stream gives frames after the time asked for, and at the end none.
#
# Versions: PyAV 18.1.0 (FFmpeg 8.1.2), numpy 2.4.6.
# Input: 10 s of H.264 at 25 frames/s with a key frame every 2 s, once as .mp4 and once as .ts; a seek to every 7th
#   frame's time with the defaults backward=True, any_frame=False, then the first frame that is decoded.
# Expected: the first frame has a time at or before the one asked for (the key frame before it), in both containers;
#   so "seek, then decode forward until the time is reached" finds every frame.
# Seen:
#     t.mp4: 0 of 35 seeks late or empty
#     t.ts: 35 of 35 seeks late or empty; asked for frame 0: 50, asked for frame 49: 100, asked for frame 203: no frame
#   libavformat has no index of key frames for transport streams: it lands at the packet of that time, and the
#   decoder gives nothing until the next key frame.
# Why it matters: a window is silently cut from up to one group of pictures later than its caption or its sound, and a
#   window in the last group of pictures makes a healthy clip look empty. Compare the first frame's time with the
#   one asked for, and seek again from earlier.
# Public: https://github.com/JuliaIO/VideoIO.jl/pull/467, https://github.com/CasparCG/server/issues/1304
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet av==18.1.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PY'
from fractions import Fraction

import av
import numpy as np

FRAMES, RATE = 250, 25


def write(path):
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"g": "50", "x264-params": "scenecut=0"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for i in range(FRAMES):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), i, np.uint8), format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def first_after_seek(path, index):
    """The index of the first frame that is decoded after a seek to frame `index`, or None if no frame comes."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        start = stream.start_time
        container.seek(start + round(index / RATE / stream.time_base), stream=stream)
        frame = next(container.decode(stream), None)
        return None if frame is None else round((frame.pts - start) * stream.time_base * RATE)


for path in ("t.mp4", "t.ts"):
    write(path)
    seen = {i: first_after_seek(path, i) for i in range(0, 245, 7)}
    late = [i for i, first in seen.items() if first is None or first > i]
    print(f"{path}: {len(late)} of {len(seen)} seeks late or empty")
    if path == "t.mp4":
        assert not late
    else:
        print({i: seen[i] for i in (0, 49, 203)})
        assert len(late) == len(seen) and (seen[0], seen[49], seen[203]) == (50, 100, None)
PY
