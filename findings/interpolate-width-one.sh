#!/usr/bin/env bash
# torch.nn.functional.interpolate with antialias=True gives one number everywhere if the width is 1.
#
# Versions: torch 2.13.0 on a CPU, numpy 2.4.6; the same with ATEN_CPU_CAPABILITY default, avx2 and avx512.
# Input: a ramp 0 ... 7 along the height of a (1, 1, 8, 1) tensor, resized to (4, 1), bilinear, with antialiasing; and the same
#   ramp two columns wide, resized to (4, 2).
# Expected: the column of the second result: 0.71, 2.50, 4.50, 6.29, whatever the width.
# Seen:
#     width 1, antialias:    [0.7143, 0.7143, 0.7143, 0.7143]
#     width 2, antialias:    [0.7143, 2.5, 4.5, 6.2857]
#     width 1, no antialias: [0.5, 2.5, 4.5, 6.5]
#     width 1, 3 channels, channels_last, antialias: [0.7143, 2.5, 4.5, 6.2857]
#   float32 and float64, bilinear and bicubic, shrinking and growing, any batch size: every output row is the first one.
#   channels_last with more than one channel takes other code and is right, as is uint8 where the CPU has AVX2.
# Why it matters: a sequence has no resize of its own with antialiasing, so features in time (B, C, T, 1), spectrogram bands and
#   relative position tables are passed as pictures of width 1: the whole clip then is its first moment, and training goes on.
#   Transpose to (B, C, 1, T), which is right, or repeat the column.
# Public: no report was found.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$work/venv/bin/python" - <<'PY'
import torch
from torch.nn.functional import interpolate


def column(x, **how):
    """The first column of x at half its height."""
    y = interpolate(x, size=(x.shape[2] // 2, x.shape[3]), mode="bilinear", **how)
    return [round(float(v), 4) for v in y[0, 0, :, 0]]


ramp = torch.arange(8.0).view(1, 1, 8, 1)
one = column(ramp, antialias=True)
two = column(ramp.repeat(1, 1, 1, 2), antialias=True)
plain = column(ramp)
last = column(ramp.repeat(1, 3, 1, 1).contiguous(memory_format=torch.channels_last), antialias=True)
print("width 1, antialias:   ", one)
print("width 2, antialias:   ", two)
print("width 1, no antialias:", plain)
print("width 1, 3 channels, channels_last, antialias:", last)
assert two == last == [0.7143, 2.5, 4.5, 6.2857] and plain == [0.5, 2.5, 4.5, 6.5]
assert one == [0.7143] * 4, "width 1 is right now"
PY
