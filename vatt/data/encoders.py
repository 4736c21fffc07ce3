"""Options with which an encoder writes the same bytes each time: for the built-in corpus and for transcoding."""

from __future__ import annotations

# Of x264: no macroblock tree. Its floating-point code is another for AVX-512, where small frames are encoded otherwise
# each time (seen with FFmpeg 8.1), and estimates reciprocals, which CPUs of different makers may do differently.
REPEATABLE = {"x264-params": "mbtree=0"}
