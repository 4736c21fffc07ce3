#!/usr/bin/env bash
# Automatic captions with word times: one reader gives the words, one leaves time codes in them, one formatting commands.
#
# Versions: webvtt-py 0.6.0, pysubs2 1.8.1, PyAV 18.1.0; PyAV 19.0.2 too where a Python from 3.12 on is there.
# Input: two cues of WebVTT as automatic captions have them: a time code before each word, and <c> around it. Both are part
#   of the WebVTT standard (timestamp tags and class spans).
# Expected: plain text without markup: "now add the flour".
# Seen:
#     webvtt-py   text:      'now add the flour'
#     pysubs2     plaintext: 'now<00:00:00.480> add<00:00:00.719> the<00:00:01.040> flour'
#     PyAV 18.1.0 text:      b''   dialogue: b'now add the flour'
#     PyAV 19.0.2 text:      b''   dialogue: b'{\\kf32}now{\\kf24} add{\\kf32} the{\\kf143} flour'
#   pysubs2 removes <c> but not the times, even from the property that is meant to be plain. FFmpeg turns captions into
#   ASS; since FFmpeg 9 (PyAV 19) it turns word times into karaoke commands, which `dialogue` keeps, and `text` is empty
#   for every text subtitle.
# Why it matters: narrated-video corpora are trained on these captions. The words "now<00" and "kf24" enter the vocabulary,
#   or all words of a cue but the first become unknown, and an upgrade of the decoder changes the captions of a corpus.
# Public: no report was found.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
cat > captions.vtt <<'VTT'
WEBVTT

00:00:00.160 --> 00:00:02.470
now<00:00:00.480><c> add</c><00:00:00.719><c> the</c><00:00:01.040><c> flour</c>

00:00:02.480 --> 00:00:04.470
and stir
VTT
cat > by_pyav.py <<'PY'
import sys

import av

with av.open("captions.vtt") as container:
    cues = [cue for packet in container.demux(container.streams.subtitles[0]) for cue in packet.decode() or []]
cue = cues[0]
print(f"PyAV {av.__version__} text:      {cue.text!r}   dialogue: {cue.dialogue!r}")
assert cue.text == b"" and (b"{\\kf" in cue.dialogue) == (sys.argv[1] == "karaoke")
assert cues[1].dialogue == b"and stir"
PY
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet webvtt-py==0.6.0 pysubs2==1.8.1 av==18.1.0
venv/bin/python - <<'PY'
import pysubs2
import webvtt

words = webvtt.read("captions.vtt")[0].text
print(f"webvtt-py   text:      {words!r}")
plain = pysubs2.load("captions.vtt")[0].plaintext
print(f"pysubs2     plaintext: {plain!r}")
assert words == "now add the flour"
assert plain == "now<00:00:00.480> add<00:00:00.719> the<00:00:01.040> flour"
PY
venv/bin/python by_pyav.py plain
for newer in python3.14 python3.13 python3.12 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.1[2-9]*/bin/python; do
    if "$newer" -m venv newer &> /dev/null; then
        newer/bin/pip install --quiet av==19.0.2
        newer/bin/python by_pyav.py karaoke
        exit 0
    fi
done
echo "PyAV 19.0.2: not shown, no Python from 3.12 on"
