#!/usr/bin/env bash
# A checkpoint saved over an older one in Hugging Face's format loads OLD weights, some or all, as the file system lists them.
#
# Versions: torch 2.13.0 (torch.distributed.checkpoint), safetensors 0.8.0, numpy 2.4.6. One process, no GPU.
# Input: 40 tensors of value 1 saved into a folder with HuggingFaceStorageWriter, one a file; then 39 of them with value 2 saved
#   into the same folder in one file; then loaded with HuggingFaceStorageReader. The same with the default writer and reader.
# Expected: 39 tensors of value 2, as model.safetensors.index.json says, and an error for the 40th, as the default reader gives.
# Seen:
#     index: 39 tensors in 1 file; safetensors files in the folder: 41
#     loaded, Hugging Face's format: 24 of 39 have the old value; the 40th: 1.0
#     loaded, default format: 0 of 39 have the old value; the 40th: CheckpointException
#   The writer leaves older files where they are; the reader takes every *.safetensors of the folder, not the index, and the file
#   that is listed last wins. So the number of old values differs between file systems (the check is the 40th tensor).
# Why it matters: "latest" folders are written again and again. When the number of files changes (another shard size, a tower that
#   was added or frozen out), training resumes from a mixture of two steps, without a word, and on another machine from another
#   mixture; loaders that follow the index load the right ones from the same folder. Save into an empty folder.
# Public: no report was found.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 safetensors==0.8.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY' 2> errors || { cat errors; exit 1; }
import json
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp

names = [f"layer{i}" for i in range(40)]
first = {name: torch.ones(2) for name in names}
second = {name: torch.full((2,), 2.0) for name in names[:39]}


def outcome(**how):
    state = {name: torch.zeros(2) for name in names[:39]}
    dcp.load(state, **how)
    old = sum(float(value[0]) == 1 for value in state.values())
    last = {names[39]: torch.zeros(2)}
    try:
        dcp.load(last, **how)
        found = float(last[names[39]][0])
    except BaseException as error:
        found = type(error).__name__
    print(f"{old} of 39 have the old value; the 40th: {found}")
    return old, found


mapping = {name: i + 1 for i, name in enumerate(names)}
dcp.save(first, storage_writer=dcp.HuggingFaceStorageWriter("latest", fqn_to_index_mapping=mapping))
dcp.save(second, storage_writer=dcp.HuggingFaceStorageWriter("latest"))
index = json.loads(Path("latest/model.safetensors.index.json").read_text())["weight_map"]
files = len(list(Path("latest").glob("*.safetensors")))
print(f"index: {len(index)} tensors in {len(set(index.values()))} file; safetensors files in the folder: {files}")
print("loaded, Hugging Face's format: ", end="")
ours = outcome(storage_reader=dcp.HuggingFaceStorageReader("latest"))
dcp.save(first, checkpoint_id="default")
dcp.save(second, checkpoint_id="default")
print("loaded, default format: ", end="")
default = outcome(checkpoint_id="default")
assert len(index) == 39 and files == 41 and ours[1] == 1.0 and default == (0, "CheckpointException")
PY
