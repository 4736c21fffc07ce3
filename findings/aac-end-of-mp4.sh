#!/usr/bin/env bash
# The same MP4 has 47,104 samples of sound with PyAV 18.1 and 46,992 with PyAV 19.0.
#
# Versions: PyAV 18.1.0 (FFmpeg 8.1.2) and 19.0.2 (FFmpeg 9.0.2), numpy 2.4.6. Needs a Python from 3.12 on for 19.0.2
#   (exit 77 without one).
# Input: 47,000 samples of AAC in an MP4 that PyAV 18.1 writes. AAC codes blocks of 1,024 samples, so the last block has
#   padding; the edit list of the file ends the track before it, to the millisecond (46,992).
# Expected: one length whichever version reads: the declared one, as the start of the sound is cut to the edit list, too.
# Seen:
#     PyAV 18.1.0: 47104 samples, stream.duration 46992
#     PyAV 19.0.2: 46992 samples, stream.duration 46992
# Why it matters: sound features cached with one version do not fit those of the other at the end of every clip, and what 18.1
#   gives beyond the declared end is the encoder's padding, not sound. Cut to stream.duration yourself.
# Public: no report was found.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
for newer in python3.14 python3.13 python3.12 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.1[2-9]*/bin/python none; do
    [ "$newer" = none ] && echo "not shown: PyAV 19 needs a Python from 3.12 on" && exit 77
    "$newer" -m venv newer &> /dev/null && break
done
newer/bin/pip install --quiet av==19.0.2 numpy==2.4.6
"${PYTHON:-python3}" -m venv older
older/bin/pip install --quiet av==18.1.0 numpy==2.4.6
older/bin/python - <<'PY'
from fractions import Fraction

import av
import numpy as np

tone = np.float32(0.3 * np.sin(0.05 * np.arange(47000)))
with av.open("sound.mp4", "w") as container:
    stream = container.add_stream("aac", rate=48000)
    stream.layout = "mono"
    for start in range(0, len(tone), 1024):
        frame = av.AudioFrame.from_ndarray(tone[None, start : start + 1024], format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 48000, start, Fraction(1, 48000)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
PY
cat > read.py <<'PY'
import sys

import av

with av.open("sound.mp4") as container:
    stream = container.streams.audio[0]
    declared, samples = stream.duration, sum(frame.samples for frame in container.decode(stream))
print(f"PyAV {av.__version__}: {samples} samples, stream.duration {declared}")
assert (samples, declared) == (int(sys.argv[1]), 46992)
PY
older/bin/python read.py 47104
newer/bin/python read.py 46992
