#!/usr/bin/env bash
# With LanceDB 0.40 two `merge_insert` of the same keys leave each key twice, if both tables were opened before either.
#
# Versions: lancedb 0.40.0, pyarrow 26.0.1.
# Input: an empty table on disk, opened twice; each handle merges the same four rows by "id", the second after the first
#   has finished. Then a handle that was opened afterwards merges them once more.
# Expected: four rows. "Update what matches, insert what does not" by a key is what `merge_insert` is for; the second
#   commit finds that the version it read is not the newest one, and could read again or be refused.
# Seen:
#     after two merges through handles of the same version: 8 rows
#     after one more through a new handle: 8 rows
# Why it matters: whoever fills one archive of embeddings from two processes, which the format allows, finds files twice
#   among the results and nothing says so. A merge that also updates one common row (a row of the table's own) does
#   conflict, and is made again by whoever came second.
# Public: lancedb/lancedb issues 2463 and 3377, lance-format/lance pull request 9238 (open).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3.11}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet lancedb==0.40.0 pyarrow==26.0.1
cat >"$work/merge.py" <<'PY'
import sys

import lancedb
import pyarrow as pa

ROWS = pa.table({"id": ["a", "b", "c", "d"], "label": ["rain", "dog", "train", "sea"]})


def merge(table):
    table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all().execute(ROWS)


def opened():
    return lancedb.connect(sys.argv[1]).open_table("moments")


lancedb.connect(sys.argv[1]).create_table("moments", schema=ROWS.schema)
for table in [opened(), opened()]:
    merge(table)
rows = opened().count_rows()
print(f"after two merges through handles of the same version: {rows} rows")
merge(opened())
again = opened().count_rows()
print(f"after one more through a new handle: {again} rows")
sys.exit((rows, again) != (8, 8))
PY
"$work/venv/bin/python" "$work/merge.py" "$work/table"
