#!/usr/bin/env bash
# A checkpoint saved over an older one in Hugging Face's format loads the OLD weights.
#
# Versions: torch 2.13.0 (torch.distributed.checkpoint), safetensors 0.8.0, numpy 2.4.6. One process, no GPU.
# Input: {"a": ones, "b": ones} saved into a folder with HuggingFaceStorageWriter in two files, then {"a": fives} saved into the
#   same folder in one file, then loaded with HuggingFaceStorageReader. The same with the default writer and reader.
# Expected: a is 5, as with the default writer and as model.safetensors.index.json says.
# Seen:
#     files: model-00001-of-00001.safetensors model-00001-of-00002.safetensors model-00002-of-00002.safetensors
#     index: a is in model-00001-of-00001.safetensors
#     loaded, Hugging Face's format: a = [1.0, 1.0]
#     loaded, default format: a = [5.0, 5.0]
#   The writer leaves older files where they are, and the reader takes every *.safetensors of the folder, not the index.
# Why it matters: "latest" folders are written again and again. When the number of files changes (another shard size, a tower that
#   was added or frozen out), training resumes from, and evaluation scores, weights of an earlier time, without a word; loaders
#   that follow the index (transformers) load others from the same folder. Save into an empty folder.
# Public: no report was found.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 safetensors==0.8.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
import json
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp

first, second = {"a": torch.ones(2), "b": torch.ones(2)}, {"a": torch.full((2,), 5.0)}

dcp.save(first, storage_writer=dcp.HuggingFaceStorageWriter("latest", fqn_to_index_mapping={"a": 1, "b": 2}))
dcp.save(second, storage_writer=dcp.HuggingFaceStorageWriter("latest"))
print("files:", *sorted(path.name for path in Path("latest").glob("*.safetensors")))
indexed = json.loads(Path("latest/model.safetensors.index.json").read_text())["weight_map"]["a"]
print("index: a is in", indexed)
state = {"a": torch.zeros(2)}
dcp.load(state, storage_reader=dcp.HuggingFaceStorageReader("latest"))
print("loaded, Hugging Face's format: a =", state["a"].tolist())

dcp.save(first, checkpoint_id="default")
dcp.save(second, checkpoint_id="default")
default = {"a": torch.zeros(2)}
dcp.load(default, checkpoint_id="default")
print("loaded, default format: a =", default["a"].tolist())
assert indexed == "model-00001-of-00001.safetensors" and default["a"].tolist() == [5, 5]
assert state["a"].tolist() == [1, 1], "the newer values are loaded now"
PY
