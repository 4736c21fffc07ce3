#!/usr/bin/env bash
# soundfile opens a FLAC file that was written to a pipe, says it lasts six million years, and cannot read its end.
#
# Versions: soundfile 0.14.0 (libsndfile of its wheel), mutagen 1.48.1, PyAV 18.1.0 (writes the file), numpy 2.4.6.
# Input: 3 s of sound, encoded by FFmpeg's FLAC encoder into something that cannot seek, as `ffmpeg ... -f flac - > x`
#   and segmenting recorders do. The encoder cannot go back to fill in the number of samples, so it stays 0, which the
#   FLAC format (RFC 9639, section 8.2) defines as "unknown".
# Expected: soundfile.info says that the length is unknown, and soundfile.read gives 144,000 samples.
# Seen:
#     soundfile.info: 9223372036854775807 frames, 192153584101141.16 s
#     soundfile.read, whole: ValueError   its first second: 48000 samples   its last second: LibsndfileError
#     mutagen: 0.0 s
#     PyAV: 144000 samples, duration None
#   The second error comes after the samples were decoded: every read that meets the end of the file is lost.
# Why it matters: one such file in a manifest makes the total length of a corpus meaningless, a sampler that draws clips in
#   proportion to length draws nothing else, and a length filter (too long, or 0 s) drops a healthy clip. PyAV
#   reads it.
# Public: https://github.com/libsndfile/libsndfile/issues/1038
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet soundfile==0.14.0 av==18.1.0 mutagen==1.48.1 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PY'
from fractions import Fraction
from pathlib import Path

import av
import mutagen
import numpy as np
import soundfile


class Pipe:
    """What PyAV may write to and cannot seek in."""

    def __init__(self):
        self.data = bytearray()

    def write(self, data):
        self.data += bytes(data)
        return len(data)


pipe = Pipe()
tone = (12000 * np.sin(2 * np.pi * 440 * np.arange(48000 * 3) / 48000)).astype(np.int16)
with av.open(pipe, "w", format="flac") as container:
    stream = container.add_stream("flac", rate=48000)
    stream.layout = "mono"
    for start in range(0, len(tone), 960):
        frame = av.AudioFrame.from_ndarray(tone[None, start : start + 960], format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 48000, start, Fraction(1, 48000)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
Path("piped.flac").write_bytes(pipe.data)


def outcome(**how):
    try:
        return f"{len(soundfile.read('piped.flac', **how)[0])} samples"
    except Exception as error:
        return type(error).__name__


info = soundfile.info("piped.flac")
print(f"soundfile.info: {info.frames} frames, {info.duration} s")
whole, first, last = outcome(), outcome(frames=48000), outcome(start=96000, frames=48000)
print(f"soundfile.read, whole: {whole}   its first second: {first}   its last second: {last}")
tag = mutagen.File("piped.flac").info.length
print(f"mutagen: {tag} s")
with av.open("piped.flac") as container:
    duration = container.duration
    decoded = sum(frame.samples for frame in container.decode(audio=0))
print(f"PyAV: {decoded} samples, duration {duration}")
assert decoded == len(tone) and duration is None and tag == 0
assert info.frames == 2**63 - 1 and first == "48000 samples" and "samples" not in whole + last
PY
