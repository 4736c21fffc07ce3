#!/usr/bin/env bash
# torch.nn.functional.interpolate with antialias=True gives one number in every row if the result is one pixel wide.
#
# Versions: torch 2.13.0 on a CPU, numpy 2.4.6; the same with ATEN_CPU_CAPABILITY default, avx2 and avx512.
# Input: a ramp 0 ... 7 along the height of an (1, 1, 8, W) tensor, resized to half its height, bilinear, with antialiasing.
# Expected: 0.71, 2.50, 4.50, 6.29 in each column, whatever the width.
# Seen:
#     width 2 to 2: [0.7143, 2.5, 4.5, 6.2857]
#     width 1 to 1: [0.7143, 0.7143, 0.7143, 0.7143]
#     width 4 to 1: [0.7143, 0.7143, 0.7143, 0.7143]
#     width 1 to 1 without antialiasing: [0.5, 2.5, 4.5, 6.5]
#     transposed, height 1 to 1: [0.7143, 2.5, 4.5, 6.2857]
#     width 1 to 1, 3 channels, channels_last: [0.7143, 2.5, 4.5, 6.2857]
#   float32 and float64, bilinear and bicubic, shrinking and growing, any batch size: every row of the result is the first one.
# Why it matters: a sequence has no resize of its own with antialiasing, so features in time (B, C, T, 1), one band of a
#   spectrogram and tables of relative positions are passed as pictures of width 1: the whole clip then is its first moment, and
#   training goes on. Put time last, (B, C, 1, T), which is right.
# Public: no report was found.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$work/venv/bin/python" - <<'PY'
import torch
from torch.nn.functional import interpolate

ramp = torch.arange(8.0).view(1, 1, 8, 1)


def resize(x, size, antialias=True):
    """The first channel's first four values of x in the new size."""
    y = interpolate(x, size=size, mode="bilinear", antialias=antialias)[0, 0]
    return [round(float(v), 4) for v in (y[:, 0] if size[0] > 1 else y[0])]


last = ramp.repeat(1, 3, 1, 1).contiguous(memory_format=torch.channels_last)
seen = {
    "width 2 to 2": resize(ramp.repeat(1, 1, 1, 2), (4, 2)),
    "width 1 to 1": resize(ramp, (4, 1)),
    "width 4 to 1": resize(ramp.repeat(1, 1, 1, 4), (4, 1)),
    "width 1 to 1 without antialiasing": resize(ramp, (4, 1), antialias=False),
    "transposed, height 1 to 1": resize(ramp.mT.contiguous(), (1, 4)),
    "width 1 to 1, 3 channels, channels_last": resize(last, (4, 1)),
}
for name, values in seen.items():
    print(f"{name}: {values}")
right, wrong = [0.7143, 2.5, 4.5, 6.2857], [0.7143] * 4
assert list(seen.values()) == [right, wrong, wrong, [0.5, 2.5, 4.5, 6.5], right, right], "the result has changed"
PY
