#!/usr/bin/env bash
# The same stereo sound becomes 3 dB louder in mono when the output is float, and 5.1 more than 10 dB.
#
# Versions: PyAV 18.1.0 (FFmpeg 8.1.2, libswresample 6.3), numpy 2.4.6. PyAV 19.0.2 gives the same figures.
# Input: one second in which every channel holds 0.5, as 16-bit integers.
# Expected: av.AudioResampler to mono, once to "s16" and once to "flt", gives one level, apart from rounding: only
#   the sample format differs. And a sound whose channels never pass 0.5 does not pass full scale.
# Seen:
#     stereo -> mono   s16 0.5000   flt 0.7071
#     5.1 -> mono   s16 0.5000   flt 1.7071
#     5.1 -> stereo   s16 0.5000   flt 1.2071
#     mono -> stereo   s16 0.3535   flt 0.3536
#   For integer output libswresample scales its matrix so that no sum exceeds 1, for float output it does not.
#   Only the output format counts: float input (what the AAC and Opus decoders give) behaves as integer input does.
# Why it matters: waveforms for training are float and mono. Their level depends on how many channels the file had, a
#   corpus that was converted to 16-bit WAV first is 3 dB quieter than the same files decoded at training time, values
#   pass 1.0, and a mono recording stored as two equal channels is 3 dB louder than the mono file. Average the
#   channels yourself, or resample without changing the layout.
# Public: https://github.com/mpv-player/mpv/issues/3142 and https://github.com/AimesSoft/Erika/pull/52 (the matrix for
#   5.1), https://github.com/obsproject/obs-studio/pull/1686 (mono to stereo).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet av==18.1.0 numpy==2.4.6
"$work/venv/bin/python" - <<'PY'
from fractions import Fraction

import av
import numpy as np


def level(source, target, sample_format):
    channels = len(av.AudioLayout(source).channels)
    samples = np.full((1, channels * 48000), 16384, np.int16)
    frame = av.AudioFrame.from_ndarray(samples, format="s16", layout=source)
    frame.sample_rate, frame.pts, frame.time_base = 48000, 0, Fraction(1, 48000)
    out = av.AudioResampler(format=sample_format, layout=target, rate=48000).resample(frame)
    middle = np.abs(np.concatenate([part.to_ndarray() for part in out], axis=1))[0, 20000]
    return float(middle) / (32768 if sample_format == "s16" else 1)


expected = {
    ("stereo", "mono"): (0.5, 0.7071),
    ("5.1", "mono"): (0.5, 1.7071),
    ("5.1", "stereo"): (0.5, 1.2071),
    ("mono", "stereo"): (0.3535, 0.3536),
}
for (source, target), levels in expected.items():
    seen = level(source, target, "s16"), level(source, target, "flt")
    print(f"{source} -> {target}   s16 {seen[0]:.4f}   flt {seen[1]:.4f}")
    assert all(abs(a - b) < 0.0005 for a, b in zip(seen, levels)), "the levels have changed"
PY
