#!/usr/bin/env bash
# On CPUs scaled_dot_product_attention with dropout_p=0.1 needs more than ten times the memory that it needs with 0.0.
#
# Versions: torch 2.13.0 on a CPU, numpy 2.4.6. Linux.
# Input: queries, keys and values of 1 x 4 heads x 2048 x 64 in float32; growth of the process's largest resident memory, in
#   units of one score matrix (4 x 2048 x 2048 x 4 bytes = 64 MiB), one process for each measurement.
# Expected: a fused kernel with either, a fraction of a score matrix; at most one matrix more for the mask.
# Seen:
#     dropout_p 0.0: 0.04 score matrices forward, 0.16 with backward
#     dropout_p 0.1: 3.16 score matrices forward, 4.23 with backward
#   The fused CPU kernel has no dropout, so the call falls back to separate operations that keep all scores; nothing is said.
# Why it matters: video has thousands of tokens. A model that evaluates in 2 GB on a CPU is killed for memory at its first
#   training step, with dropout as the only difference, and time grows with it.
# Public: no report about the memory was found.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cat > "$work/measure.py" <<'PY'
import resource
import sys

import torch
from torch.nn.functional import scaled_dot_product_attention

torch.set_num_threads(1)
x = torch.randn(1, 4, 2048, 64, requires_grad=True)
scaled_dot_product_attention(x[:, :, :8], x[:, :, :8], x[:, :, :8]).sum().backward()  # what the libraries take once
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (4 * 2048 * 2048 * 4 / 1024)  # noqa: E731
start = peak()
y = scaled_dot_product_attention(x, x, x, dropout_p=float(sys.argv[1]))
forward = peak() - start
y.sum().backward()
print(f"{forward:.2f} score matrices forward, {peak() - start:.2f} with backward")
raise SystemExit(not (forward > 2 if float(sys.argv[1]) else forward < 1))
PY
for p in 0.0 0.1; do
    echo "dropout_p $p: $("$work/venv/bin/python" "$work/measure.py" $p)"
    "$work/venv/bin/python" "$work/measure.py" $p > /dev/null
done
