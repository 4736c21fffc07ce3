#!/usr/bin/env bash
# Three samples written with webdataset's TarWriter are two when read back, if their keys hold a time such as 12.5.
#
# Versions: webdataset 1.0.2, numpy 2.4.6.
# Input: three samples with the keys talk_12.5, talk_12.9 and talk_30 (video id and start in seconds), each with a caption
#   and a label, written with TarWriter and read with WebDataset.
# Expected: what was written (three samples, keys as given), or a refusal by the writer.
# Seen:
#     written: ['talk_12.5', 'talk_12.9', 'talk_30']
#     read: [('talk_12', ['5.cls', '5.txt', '9.cls', '9.txt']), ('talk_30', ['cls', 'txt'])]
#   The reader takes the key up to the FIRST dot of the file name, by design; the writer puts any key before its dot.
#   Neither says anything: the two samples do not collide, since their fields have different names.
# Why it matters: clips named by id and start are the rule in caption corpora. Those that start on a whole second train,
#   all others have no field called txt or mp4: with to_tuple they raise, with a handler or a filter on fields they vanish,
#   and the number of samples is not that of the manifest. Keep dots out of keys.
# Public: https://github.com/webdataset/webdataset/issues/237 (reading, "by design").
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet webdataset==1.0.2 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PY'
import webdataset

keys = ["talk_12.5", "talk_12.9", "talk_30"]
with webdataset.TarWriter("clips.tar") as writer:
    for label, key in enumerate(keys):
        writer.write({"__key__": key, "txt": f"caption of {key}", "cls": label})
print("written:", keys)
read = [
    (sample["__key__"], sorted(field for field in sample if not field.startswith("__")))
    for sample in webdataset.WebDataset("clips.tar", shardshuffle=False)
]
print("read:", read)
assert read == [("talk_12", ["5.cls", "5.txt", "9.cls", "9.txt"]), ("talk_30", ["cls", "txt"])]
PY
