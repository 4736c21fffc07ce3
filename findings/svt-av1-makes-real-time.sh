#!/usr/bin/env bash
# Encoding one AV1 clip as root leaves the calling Python process with real-time priority.
#
# Versions: PyAV 18.1.0 (its own build of SVT-AV1), numpy 2.4.6. Linux, as a user who may set real-time priorities (root outside
#   restricted containers); for others the script exits with 77, "not shown for this user".
# Input: three frames of 64 x 64 encoded with libsvtav1; the scheduling policy of the main thread before and after.
# Expected: SCHED_OTHER before and after: a library changes its own threads at most.
# Seen:
#     before: SCHED_OTHER, after the encoder was opened: SCHED_FIFO, after the file was closed: SCHED_FIFO
# Why it matters: containers often run as root. A worker that transcodes one AV1 clip stays a real-time process, and so do the
#   workers it forks: decoding and training loops in it go before everything else on the machine, ssh and the other ranks
#   included. Encode in a process of its own, or put the policy back with os.sched_setscheduler.
# Public: no report was found.
set -euo pipefail
if ! "${PYTHON:-python3}" -c 'import os; os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))' 2> /dev/null; then
    echo "not shown for this user: real-time priorities may not be set"
    exit 77
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet av==18.1.0 numpy==2.4.6
cd "$work"
SVT_LOG=0 "$work/venv/bin/python" - <<'PY' 2> messages || { cat messages; exit 1; }
import os
from fractions import Fraction

import av
import numpy as np

NAMES = {os.SCHED_OTHER: "SCHED_OTHER", os.SCHED_FIFO: "SCHED_FIFO"}
policy = lambda: NAMES[os.sched_getscheduler(0)]  # noqa: E731
before = policy()
try:
    with av.open("clip.mp4", "w") as container:
        stream = container.add_stream("libsvtav1", rate=10, options={"preset": "12"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for i in range(3):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 20 * i, np.uint8), format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 10)
            container.mux(stream.encode(frame))
        opened = policy()
        container.mux(stream.encode(None))
    closed = policy()
finally:
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
print(f"before: {before}, after the encoder was opened: {opened}, after the file was closed: {closed}")
assert (before, opened, closed) == ("SCHED_OTHER", "SCHED_FIFO", "SCHED_FIFO")
PY
