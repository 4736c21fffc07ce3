#!/usr/bin/env bash
# A clip of varying frame rate says that it ends before its last two pictures begin.
#
# Versions: PyAV 18.1.0 (FFmpeg 8.1.2), numpy 2.4.6.
# Input: 100 pictures in MP4 (H.264), 50 of them 0.04 s apart and then 50 of them 0.2 s apart, as screen recorders and phones
#   in the dark make them, written with PyAV once without B-frames and once with two.
# Expected: container.duration and stream.duration at least 11.8 s, the time of the last picture (12 s with its length).
# Seen:
#     0 B-frames: last picture at 11.8 s, container.duration 11.84 s, stream.duration 11.84 s
#     2 B-frames: last picture at 11.8 s, container.duration 11.52 s, stream.duration 11.52 s
#   The movie header in the file says 11.84 s both times. FFmpeg reports the span of decoding times (-0.08 to 11.44 s), and the last
#   picture is decoded 0.4 s before it is shown, as two slow B-frames come between; at the fast start that was 0.08 s.
# Why it matters: windows are drawn from [0, duration], so the end is never seen, and with longer still pictures at the end
#   (slides) that is seconds. A probe says that a clip is shorter than the span its annotation names, and drops it.
# Public: no report was found.
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

times = [40 * i if i < 50 else 2000 + 200 * (i - 50) for i in range(100)]  # milliseconds
for b_frames in (0, 2):
    with av.open("slow.mp4", "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"bf": str(b_frames), "b-adapt": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for i, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 2 * i, np.uint8), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with av.open("slow.mp4") as container:
        stream = container.streams.video[0]
        whole, track = container.duration / 1e6, float(stream.duration * stream.time_base)
        last = max(frame.time for frame in container.decode(stream))
    print(f"{b_frames} B-frames: last picture at {last} s, container.duration {whole} s, stream.duration {track} s")
    assert last == 11.8 and (whole < last) == (track < last) == (b_frames > 0)
PY
