#!/usr/bin/env bash
# optimize() of a table with a vector index raises when none of the rows added since has a vector.
#
# Versions: lancedb 0.40.0, pyarrow 26.0.1, numpy 2.2.6.
# Input: a table of 1,000 rows with an index of vectors; one row is added whose vector is null, which the schema allows.
# Expected: nothing to be taken up by the index, and no error, as with a row that has a vector.
# Seen, with each of four kinds of index:
#     lancedb 0.40.0: with a vector: fine; without: IvfFlat raises RuntimeError, IvfPq raises RuntimeError,
#     IvfSq raises RuntimeError, IvfRq raises RuntimeError
#   The message names a temporary file that is "Not found"; the rows and searches are as before.
# Why it matters: a table of clips holds those that could not be read as well, with no vector; the nightly run that finds
#   nothing but such ones, or only removes rows and updates one of its own, ends with an error about a file in /tmp.
# Public: no report was found.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3.11}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet lancedb==0.40.0 pyarrow==26.0.1 numpy==2.2.6
cd "$work"
"$work/venv/bin/python" - <<'PY'
import lancedb
import numpy as np
import pyarrow as pa

SCHEMA = pa.schema({"name": pa.string(), "vector": pa.list_(pa.float32(), 16)})
draw = np.random.default_rng(0)
index = lancedb.index
KINDS = {
    "IvfFlat": index.IvfFlat(distance_type="cosine", num_partitions=4),
    "IvfPq": index.IvfPq(distance_type="cosine", num_partitions=4, num_sub_vectors=4),
    "IvfSq": index.IvfSq(distance_type="cosine", num_partitions=4),
    "IvfRq": index.IvfRq(distance_type="cosine", num_partitions=4, num_bits=4),
}


def rows(count, vector=True):
    made = [draw.standard_normal(16).astype(np.float32) if vector else None for _ in range(count)]
    return pa.Table.from_pylist([{"name": "clip", "vector": one} for one in made], schema=SCHEMA)


def outcome(kind, vector):
    table = lancedb.connect("tables").create_table(f"{kind}{vector}", data=rows(1000), schema=SCHEMA)
    table.create_index("vector", config=KINDS[kind])
    table.add(rows(1, vector))
    try:
        table.optimize()
    except RuntimeError as error:
        assert "Not found" in str(error), error
        return "raises RuntimeError"
    return "fine"


assert {outcome(kind, True) for kind in KINDS} == {"fine"}
without = {kind: outcome(kind, False) for kind in KINDS}
print(f"lancedb {lancedb.__version__}: with a vector: fine; without: {', '.join(f'{k} {v}' for k, v in without.items())}")
assert set(without.values()) == {"raises RuntimeError"}
PY
