#!/usr/bin/env bash
# libx264 in the PyAV wheels gives different files for the same frames and options, on CPUs with AVX-512.
#
# Versions: PyAV 18.1.0 (its own build of libx264), numpy 2.4.6; 19.0.2 does the same. Linux x86-64 with AVX-512: elsewhere
#   the script exits with 77, "not shown on this CPU". Debian's libx264 is deterministic on the same CPU.
# Input: 20 frames of 320 x 240 coloured blocks, encoded 60 times in one process, one thread, preset medium, with other memory
#   allocated in between; then the same with the x264 parameter asm=AVX2.
# Expected: one stream for all 60: x264 has a switch for non-deterministic operation, and it is off.
# Seen (the first number varies from run to run):
#     default: 18 different streams of 60
#     asm=AVX2: 1 different streams of 60
# Why it matters: a corpus that is transcoded or generated from a seed is not a function of its input, so hashes of clips
#   differ, a resumed or repeated run trains on other pixels, and a test that compares bytes fails now and then.
# Public: no report about the wheels was found.
set -euo pipefail
if ! grep -qw avx512f /proc/cpuinfo 2> /dev/null; then
    echo "not shown on this CPU: no AVX-512"
    exit 77
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet av==18.1.0 numpy==2.4.6
"$work/venv/bin/python" - <<'PY'
import hashlib
import io
from fractions import Fraction

import av
import numpy as np

draw = np.random.default_rng(0)
frames = [np.kron(draw.integers(0, 255, (12, 20, 3), np.uint8), np.ones((20, 16, 1), np.uint8)) for _ in range(20)]


def stream_hash(parameters):
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=10, options={"preset": "medium", "x264-params": parameters})
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        stream.codec_context.thread_count = 1
        for i, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return hashlib.sha256(file.getvalue()).hexdigest()


kept = []  # memory of various sizes, so that the encoder's own lies elsewhere each time, as in a program that does more


def streams(parameters):
    """How many different streams 60 encodings give."""
    seen = set()
    for _ in range(60):
        kept.append(bytearray(int(draw.integers(1, 100_000))))
        seen.add(stream_hash(parameters))
    return len(seen)


default, avx2 = streams("threads=1"), streams("threads=1:asm=AVX2")
print(f"default: {default} different streams of 60")
print(f"asm=AVX2: {avx2} different streams of 60")
assert avx2 == 1 and default > 1, "libx264 is deterministic now"
PY
