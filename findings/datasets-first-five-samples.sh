#!/usr/bin/env bash
# datasets' webdataset loader cuts start = 6.5 to 6 and drops later columns: it decides on five samples and says nothing.
#
# Versions: datasets 5.2.0, pyarrow 26.0.1, numpy 2.4.6.
# Input: a tar of eight samples in the WebDataset layout, KEY.json with caption and start (seconds). The first six start at
#   whole seconds; the last two at 6.5 and 7.5, and have a field `speaker` and a file KEY.cls besides.
# Expected: start is 6.5 in the seventh sample (or an error), and its speaker and cls are there (None in the others).
# Seen:
#     columns: __key__ __url__ json json has: caption start
#     starts: [0, 1, 2, 3, 4, 5, 6, 7]
#   The columns and their types come from the first five samples of the first shard, and everything after is cast to them
#   without a check whether the value survives.
# Why it matters: JSON writers print 3.0 as 3, so whether clip times keep their fractions depends on the order of the
#   shard: up to a second of sound and picture under the wrong caption. Pass features= to load_dataset.
# Public: https://github.com/huggingface/datasets/pull/6391 (the loader), issue 6900 (a missing field, then a KeyError);
#   no report about the cut numbers was found.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet datasets==5.2.0 pyarrow==26.0.1 numpy==2.4.6
cd "$work"
HF_HOME="$work/home" HF_HUB_OFFLINE=1 HF_DATASETS_DISABLE_PROGRESS_BARS=1 "$work/venv/bin/python" - <<'PY'
import io
import json
import os
import tarfile

import datasets


def add(archive, name, data):
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    archive.addfile(entry, io.BytesIO(data))


with tarfile.open("clips.tar", "w") as archive:
    for i in range(8):
        sample = {"caption": f"clip {i}", "start": i}
        if i >= 6:
            sample.update(start=i + 0.5, speaker="A")
            add(archive, f"clip{i}.cls", b"3")
        add(archive, f"clip{i}.json", json.dumps(sample).encode())

table = datasets.load_dataset("webdataset", data_files={"train": os.path.abspath("clips.tar")}, split="train")
columns, fields = sorted(table.column_names), sorted(table[0]["json"])
starts = [row["json"]["start"] for row in table]
print("columns:", *columns, "json has:", *fields)
print("starts:", starts)
assert columns == ["__key__", "__url__", "json"] and fields == ["caption", "start"] and starts == list(range(8))
PY
