#!/usr/bin/env bash
# pyarrow reads "00:05" (0 min 5 s) in a CSV as five past midnight, but only while every clip starts before minute 24.
#
# Versions: pyarrow 26.0.1, pandas 3.1.1, numpy 2.4.6.
# Input: two-row manifests whose column `start` holds minutes and seconds.
# Expected: text stays text, or one type for one notation; and pandas.read_csv gives the same table with each engine.
# Seen:
#     starts 00:05 01:10    time32[s]  00:05:00 01:10:00
#     starts 00:05 24:10    string     00:05 24:10
#     starts 00:05.5 01:10  string     00:05.5 01:10
#     starts 0:05 1:10      string     0:05 1:10
#     pandas.read_csv of the first: C engine '00:05', engine="pyarrow" datetime.time(0, 5)
#   Arrow's CSV reader recognises hh:mm among its types; the inference depends on all values of the first block.
# Why it matters: the type of a column depends on the longest video of the list: a code that was written for one shard gets
#   another type from the next one, and where it gets times, 5 s are 300 s. Give the type:
#   ConvertOptions(column_types={"start": pyarrow.string()}).
# Public: the types are documented (Arrow's CSV page, "Data types"); no report about mm:ss was found.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet pyarrow==26.0.1 pandas==3.1.1 numpy==2.4.6
"$work/venv/bin/python" - <<'PY'
import io

import pandas as pd
import pyarrow.csv

expected = {
    ("00:05", "01:10"): ("time32[s]", "00:05:00 01:10:00"),
    ("00:05", "24:10"): ("string", "00:05 24:10"),
    ("00:05.5", "01:10"): ("string", "00:05.5 01:10"),
    ("0:05", "1:10"): ("string", "0:05 1:10"),
}
for (first, second), right in expected.items():
    text = f"id,start\na,{first}\nb,{second}\n"
    column = pyarrow.csv.read_csv(io.BytesIO(text.encode()))["start"]
    seen = str(column.type), " ".join(map(str, column.to_pylist()))
    print(f"starts {first + ' ' + second:14} {seen[0]:10} {seen[1]}")
    assert seen == right
text = "id,start\na,00:05\nb,01:10\n"
values = [pd.read_csv(io.StringIO(text), engine=engine)["start"][0] for engine in ("c", "pyarrow")]
print(f"pandas.read_csv of the first: C engine {values[0]!r}, engine=\"pyarrow\" {values[1]!r}")
assert isinstance(values[0], str) and not isinstance(values[1], str)
PY
