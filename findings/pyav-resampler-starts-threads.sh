#!/usr/bin/env bash
# An AudioResampler starts a thread for each core when it sees its first frame, whatever it is to do.
#
# Versions: PyAV 18.1.0 and 14.1.0, numpy 2.2.6.
# Input: one frame of 1,024 float samples at 48 kHz, mono, to 16-bit samples at the same rate; eight resamplers.
# Expected: a thread or none: FFmpeg's converter of sample formats works in one.
# Seen (both versions, 2 cores):
#     PyAV 18.1.0: 16 more threads with 8 resamplers on 2 cores, 0 with graphs of one thread, which give the same bytes
#     PyAV 14.1.0: 16 more threads with 8 resamplers on 2 cores
# Why it matters: the resampler is a graph of filters whose number of threads is left at "as many as there are cores".
#   Who decodes many short clips makes one for each; starting and ending the threads took 0.4 ms here, of a clip whose
#   sound takes 2 ms to decode, and takes longer where there are more cores. `Graph.threads = 1` (from PyAV 17.0.1 on) on a
#   graph of abuffer, aformat and abuffersink does the same without them.
# Public: PyAV issue 1468 asks where the threads come from (2024, open, without an answer).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for version in 18.1.0 14.1.0; do
  "${PYTHON:-python3.11}" -m venv "$work/$version"
  "$work/$version/bin/pip" install --quiet "av==$version" numpy==2.2.6
  "$work/$version/bin/python" - <<'PY'
import os

import av
import numpy as np
from av.filter import Graph

cores = os.cpu_count()
noise = np.random.default_rng(0).uniform(-1, 1, (1, 1024)).astype(np.float32)


def frame():
    made = av.AudioFrame.from_ndarray(noise, "fltp", "mono")
    made.sample_rate = 48_000
    return made


def threads():
    return len(os.listdir("/proc/self/task"))


before = threads()
held = [av.AudioResampler("s16", "mono", 48_000) for _ in range(8)]
sounds = [resampler.resample(frame())[0] for resampler in held]
more = threads() - before
if not hasattr(Graph, "threads"):
    print(f"PyAV {av.__version__}: {more} more threads with 8 resamplers on {cores} cores")
    assert more == 8 * cores
    raise SystemExit
before, graphs, same = threads(), [], []
for sound in sounds:
    graph = Graph()
    graph.threads = 1
    source = graph.add("abuffer", sample_rate="48000", sample_fmt="fltp", channel_layout="mono")
    target = graph.add("aformat", sample_rates="48000", sample_fmts="s16", channel_layouts="mono")
    graph.link_nodes(source, target, graph.add("abuffersink")).configure()
    graph.push(frame())
    same.append(bytes(graph.pull().planes[0]) == bytes(sound.planes[0]))
    graphs.append(graph)
ours = threads() - before
print(
    f"PyAV {av.__version__}: {more} more threads with 8 resamplers on {cores} cores, {ours} with graphs of one thread, "
    f"which give {'the same' if all(same) else 'other'} bytes"
)
assert more == 8 * cores and ours == 0 and all(same)
PY
done
