#!/usr/bin/env bash
# A frame that was asked for its side data stays in memory until the garbage collector comes.
#
# Versions: PyAV 18.1.0 and 14.1.0, numpy 2.2.6.
# Input: frames that PyAV itself makes; each is asked once for `frame.side_data` and then forgotten.
# Expected: the frame is freed when its last name goes, as one that was not asked is.
# Seen (both versions):
#     PyAV 18.1.0: not asked: 0 of 20 frames left; asked: 20 of 20 frames left; read apart: 0
# Why it matters: who reads the display matrix (a camera's rotation and mirror) of each frame holds as many decoded frames as
#   the collector's threshold lets pass: at 1080p 6 MB each, and its generations count objects, not bytes. The frame keeps the
#   container of its side data, which keeps the frame. `SideDataContainer(frame)` reads the same and is kept by nobody.
# Public: no report was found.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for version in 18.1.0 14.1.0; do
  "${PYTHON:-python3.11}" -m venv "$work/$version"
  "$work/$version/bin/pip" install --quiet "av==$version" numpy==2.2.6
  "$work/$version/bin/python" - <<'PY'
import gc

import av
from av.sidedata.sidedata import SideDataContainer


def left(read):
    gc.collect()
    gc.disable()
    for _ in range(20):
        read(av.VideoFrame(64, 64, "yuv420p"))
    count = sum(isinstance(thing, av.VideoFrame) for thing in gc.get_objects())
    gc.enable()
    return count


plain, asked, apart = left(lambda frame: None), left(lambda frame: len(frame.side_data)), left(lambda frame: len(SideDataContainer(frame)))
print(f"PyAV {av.__version__}: not asked: {plain} of 20 frames left; asked: {asked} of 20 frames left; read apart: {apart}")
assert (plain, asked, apart) == (0, 20, 0)
PY
done
