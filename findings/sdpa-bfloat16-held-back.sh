#!/usr/bin/env bash
# On a CPU with AMX, bfloat16 attention of torch 2.13 raises when ATEN_CPU_CAPABILITY names less than AVX-512.
#
# Versions: torch 2.13.0.
# Input: zeros [1, 1, 64, 64] in bfloat16 as query, key and value, with the variable unset and with the value `default`.
# Expected: the same zeros both times; the variable chooses kernels, slower ones at worst.
# Seen:
#     as it is: computed
#     held back: pack_vnni2 is only supported when avx512 is supported
# Why it matters: who holds PyTorch back to compare CPUs, or to get the same digits on all of them, finds models in
#   bfloat16 stopped inside attention. With 8 tokens it computes; float32 computes always.
# Public: no report was looked for.
set -euo pipefail
grep -q amx_bf16 /proc/cpuinfo 2>/dev/null || { echo "this CPU has no AMX"; exit 77; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3.11}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy
cat >"$work/attend.py" <<'PY'
import torch

x = torch.zeros(1, 1, 64, 64, dtype=torch.bfloat16)
try:
    torch.nn.functional.scaled_dot_product_attention(x, x, x)
    print("computed")
except RuntimeError as error:
    print(str(error).splitlines()[0])
PY
free=$("$work/venv/bin/python" "$work/attend.py")
held=$(ATEN_CPU_CAPABILITY=default "$work/venv/bin/python" "$work/attend.py")
echo "as it is: $free"
echo "held back: $held"
[ "$free" = computed ] && [ "${held#pack_vnni2}" != "$held" ]
