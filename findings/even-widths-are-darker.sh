#!/usr/bin/env bash
# Shrunk to an even width a white picture is 253, to an odd width 255.
#
# Versions: PyAV 18.1.0 (libswscale 9.5), numpy 2.4.6; PyAV 19.0.2 as well.
# Input: a yuv420p frame of 640 x 360 that is white (Y 235, U V 128), and one that is middle grey (Y 126), converted to rgb24 by
#   frame.reformat at several widths.
# Expected: 255 and 128 at every width: a picture of one colour has the same colour at any size.
# Seen:
#     width 640: white 255, grey 128
#     width 455: white 255, grey 128
#     width 398: white 253, grey 126
#     width 224: white 253, grey 126
#   With interpolation=BILINEAR | FULL_CHR_H_INT white is 255 at all of them.
# Why it matters: short side 256 of 16:9 is 455 wide, short side 224 is 398 wide, so the level depends on the shape and on
#   the setting: 1 % of full scale, in every pixel, a difference between training and evaluation when these sizes differ.
# Public: no report was found.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet av==18.1.0 numpy==2.4.6
"$work/venv/bin/python" - <<'PY'
import av
from av.video.reformatter import Interpolation

FULL = Interpolation.BILINEAR | Interpolation.FULL_CHR_H_INT


def level(luma, width, **how):
    frame = av.VideoFrame(640, 360, "yuv420p")
    for plane, value in zip(frame.planes, (luma, 128, 128)):
        plane.update(bytes([value]) * plane.buffer_size)
    return float(frame.reformat(width=width, height=width * 9 // 16, format="rgb24", **how).to_ndarray().mean())


for width, white, grey in ((640, 255, 128), (455, 255, 128), (398, 253, 126), (224, 253, 126)):
    seen = level(235, width), level(126, width)
    print(f"width {width}: white {seen[0]:.0f}, grey {seen[1]:.0f}")
    assert abs(seen[0] - white) < 0.5 and abs(seen[1] - grey) < 0.5
    assert abs(level(235, width, interpolation=FULL) - 255) < 0.5
PY
