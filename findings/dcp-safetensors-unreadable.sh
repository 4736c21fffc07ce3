#!/usr/bin/env bash
# A state dict with a step counter is saved in Hugging Face's format without an error, and no library can read the file.
#
# Versions: torch 2.13.0 (torch.distributed.checkpoint), safetensors 0.8.0, numpy 2.4.6. One process, no GPU.
# Input: {"weight": a tensor, "step": 3}, saved with HuggingFaceStorageWriter.
# Expected: an error when saving (safetensors holds tensors only), or a checkpoint that loads. The default writer keeps both.
# Seen:
#     saved: model-00001-of-00001.safetensors model.safetensors.index.json
#     dcp.load: CheckpointException
#     safetensors: SafetensorError: Error while deserializing header: header too large
#     first bytes of the file: b'PK\x03\x04'
#   The writer puts values that are no tensors through torch.save (a zip archive, PK) into the same .safetensors file.
# Why it matters: optimizers, schedulers and data loaders have integers in their state. The run saves for days, every save
#   succeeds, and the first resume finds that not even the weights can be read. Keep only tensors in what you pass, or read the
#   first checkpoint back at once.
# Public: no report was found.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 safetensors==0.8.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY' 2> /dev/null
from pathlib import Path

import safetensors
import torch
import torch.distributed.checkpoint as dcp

dcp.save({"weight": torch.ones(4), "step": 3}, storage_writer=dcp.HuggingFaceStorageWriter("run"))
print("saved:", *sorted(path.name for path in Path("run").iterdir()))
loads = True
try:
    dcp.load({"weight": torch.zeros(4)}, storage_reader=dcp.HuggingFaceStorageReader("run"))
except BaseException as error:
    loads = False
    print("dcp.load:", type(error).__name__)
reads = True
try:
    safetensors.safe_open("run/model-00001-of-00001.safetensors", "pt")
except Exception as error:
    reads = False
    print(f"safetensors: {type(error).__name__}: {error}")
print("first bytes of the file:", Path("run/model-00001-of-00001.safetensors").read_bytes()[:4])
dcp.save({"weight": torch.ones(4), "step": 3}, checkpoint_id="default")
state = {"weight": torch.zeros(4), "step": 0}
dcp.load(state, checkpoint_id="default")
raise SystemExit(0 if state["step"] == 3 and not loads and not reads else 1)
PY
