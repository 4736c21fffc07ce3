#!/usr/bin/env bash
# Two Ogg files joined with cat are one valid file, of 3 s, 5 s or 2 s, depending on whom one asks.
#
# Versions: soundfile 0.14.0 (libsndfile of its wheel), PyAV 18.1.0 (FFmpeg 8.1.2), mutagen 1.48.1, numpy 2.4.6.
# Input: 3 s of 440 Hz and 2 s of 880 Hz, each an Ogg Opus file, joined. The Ogg format (RFC 3533) provides for it
#   and calls it sequential multiplexing, or chaining; recordings of web radio look like this.
# Expected: 5 s everywhere, or an error.
# Seen:
#     soundfile: 3.0 s in its info, 3.0 s read
#     mutagen: 3.0 s
#     PyAV: 5.0 s decoded, container.duration 2.0065 s, and time jumps back 1 times
# Why it matters: with soundfile everything after the first part is lost without a word. With PyAV the declared length is
#   that of the LAST part, so windows are drawn from 2 s of 5, and time within the file is ambiguous: two sounds have
#   time 1.0. Decode the whole file and count samples, or re-write such files first.
# Public: RFC 3533; no report about these readers was found.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet soundfile==0.14.0 av==18.1.0 mutagen==1.48.1 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PY'
from pathlib import Path

import av
import mutagen
import numpy as np
import soundfile

for name, hertz, seconds in (("a.opus", 440, 3), ("b.opus", 880, 2)):
    tone = 0.4 * np.sin(2 * np.pi * hertz * np.arange(48000 * seconds) / 48000)
    soundfile.write(name, tone, 48000, format="OGG", subtype="OPUS")
Path("ab.opus").write_bytes(Path("a.opus").read_bytes() + Path("b.opus").read_bytes())

declared, read = soundfile.info("ab.opus").duration, len(soundfile.read("ab.opus")[0]) / 48000
print(f"soundfile: {declared} s in its info, {read} s read")
tag = mutagen.File("ab.opus").info.length
print(f"mutagen: {tag} s")
with av.open("ab.opus") as container:
    duration = container.duration / 1e6
    frames = list(container.decode(audio=0))
decoded = sum(frame.samples for frame in frames) / 48000
back = sum(later.pts < earlier.pts for earlier, later in zip(frames, frames[1:]))
print(f"PyAV: {decoded} s decoded, container.duration {duration} s, and time jumps back {back} times")
assert (declared, read, tag) == (3.0, 3.0, 3.0)
assert abs(decoded - 5) < 0.05 and abs(duration - 2) < 0.05 and back == 1
PY
