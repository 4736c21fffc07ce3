#!/usr/bin/env bash
# A 3 s piece of an Ogg stream that begins at 10 s has a duration of 13 s if it is Opus, and of 3 s if it is Vorbis.
#
# Versions: PyAV 18.1.0 (FFmpeg 8.1.2), soundfile 0.14.0, numpy 2.4.6.
# Input: 3 s of sound whose Ogg timestamps begin at 10 s, as parts cut from a running broadcast have them (RFC 7845 provides
#   for it), once encoded as Opus and once as Vorbis.
# Expected: one meaning of `duration` in one container: the length, from start_time on.
# Seen:
#     vorbis: start 10.0 s, container.duration 3.0 s, 3.0 s decoded; soundfile: 3.0 s
#     opus: start 10.0 s, container.duration 13.0 s, 3.0 s decoded; soundfile: 3.0 s
# Why it matters: start_time and duration are all that a sampler has before it decodes. Here it draws ten of thirteen windows
#   behind the end, which then count as broken or are padded with silence.
# Public: no report was found.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet av==18.1.0 soundfile==0.14.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PY'
from fractions import Fraction

import av
import numpy as np
import soundfile

RATE = 48000
tone = np.float32(0.3 * np.sin(2 * np.pi * 440 * np.arange(3 * RATE) / RATE))
for name, codec, options in (("vorbis", "vorbis", {"strict": "experimental"}), ("opus", "libopus", {})):
    with av.open("part.ogg", "w") as container:
        stream = container.add_stream(codec, rate=RATE, options=options)
        stream.layout = "stereo"
        for start in range(0, len(tone), 960):
            frame = av.AudioFrame.from_ndarray(np.stack([tone[start : start + 960]] * 2), format="fltp", layout="stereo")
            frame.sample_rate, frame.pts, frame.time_base = RATE, 10 * RATE + start, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with av.open("part.ogg") as container:
        begin, duration = container.start_time / 1e6, container.duration / 1e6
        decoded = sum(frame.samples for frame in container.decode(audio=0)) / RATE
    other = soundfile.info("part.ogg").duration
    print(f"{name}: start {begin:.1f} s, container.duration {duration:.1f} s, {decoded:.1f} s decoded; soundfile: {other:.1f} s")
    right = 13 if name == "opus" else 3
    assert abs(begin - 10) < 0.1 and abs(duration - right) < 0.1 and abs(decoded - 3) < 0.1 and abs(other - 3) < 0.1
PY
