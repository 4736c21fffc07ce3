#!/usr/bin/env bash
# In PyAV 19 the memory of an AudioResampler, and of every filter graph, is not freed when the last reference to it goes,
# but when Python's cyclic garbage collector next looks at old objects.
#
# Versions: PyAV 19.0.2 and 18.1.0, numpy 2.2.6 (Linux; PyAV 19 has wheels for Python 3.12 and newer).
# Input: one frame of 4,096 stereo float samples, resampled to mono at 16 kHz by a new resampler, 100 times.
# Expected: as much memory afterwards as before: each resampler goes out of scope before the next is made.
# Seen:
#     PyAV 19.0.2: 100 resamplers out of scope hold 32.7 MiB; 100 graphs wait for the collector
#     PyAV 18.1.0: 100 resamplers out of scope hold 0.0 MiB; 0 graphs wait for the collector
#   and the same number of graphs made without a resampler.
# Why it matters: a graph, its dictionary and its filters are a few objects to the collector, whose generations are
#   counted in objects and not in bytes; where a program holds many others (PyTorch's modules), a full collection is rare.
#   A worker that decodes the sound of many short clips grew by 150 MiB between two of them, and the sum over workers
#   fills a machine. In 18.1 a filter had a weak reference to its graph; in 19 it has a strong one.
# Around it: gc.collect() after a batch, or emptying the graph's own dictionaries, which gc.get_referents() returns.
set -euo pipefail
python=${PYTHON:-}
for newer in python3.14 python3.13 python3.12 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.1[2-9]*/bin/python none; do
  [ -n "$python" ] && break
  [ "$newer" = none ] && echo "not shown: PyAV 19 needs a Python from 3.12 on" && exit 77
  "$newer" -c "import sys; assert sys.version_info >= (3, 12)" 2>/dev/null && python=$newer
done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for version in 19.0.2 18.1.0; do
  "$python" -m venv "$work/$version"
  "$work/$version/bin/pip" install --quiet "av==$version" numpy==2.2.6
  "$work/$version/bin/python" - <<'PY'
import gc
import re
from collections import Counter
from pathlib import Path

import av
import numpy as np
from av.filter import Graph

COUNT = 100


def resident():
    """Return MiB of this process that are not pages of files."""
    return int(re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


def frame():
    made = av.AudioFrame.from_ndarray(np.zeros((2, 4096), np.float32), "fltp", "stereo")
    made.sample_rate = 44_100
    return made


def by_resampler():
    resampler = av.AudioResampler("s16", "mono", 16_000)
    resampler.resample(frame())
    resampler.resample(None)


def by_graph():
    graph = Graph()
    graph.threads = 1
    source = graph.add("abuffer", sample_rate="44100", sample_fmt="fltp", channel_layout="stereo")
    target = graph.add("aformat", sample_rates="16000", sample_fmts="s16", channel_layouts="mono")
    graph.link_nodes(source, target, graph.add("abuffersink")).configure()
    graph.push(frame())
    graph.push(None)


release = int(av.__version__.split(".")[0])
gc.disable()  # as in a program whose next full collection is far
for name, once in (("resamplers", by_resampler), ("graphs", by_graph)):
    once()  # what the first of a process loads
    gc.collect()
    before = resident()
    for _ in range(COUNT):
        once()
    more = resident() - before
    gc.set_debug(gc.DEBUG_SAVEALL)
    gc.collect()
    gc.set_debug(0)
    waited = Counter(type(thing).__name__ for thing in gc.garbage)["Graph"]
    gc.garbage.clear()
    held = f"{COUNT} {name} out of scope" + (f" hold {more:.1f} MiB" if name == "resamplers" else "")
    print(f"PyAV {av.__version__}: {held}; {waited} graphs wait for the collector")
    if release >= 19:
        assert waited == COUNT and (name == "graphs" or more >= 10)
    else:
        assert waited == 0 and more < 2
PY
done
