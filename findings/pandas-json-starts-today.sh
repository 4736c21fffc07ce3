#!/usr/bin/env bash
# pandas.read_json reads the start of a clip, "00:00:10.5", as 10.5 s after last midnight: the result changes every day.
#
# Versions: pandas 3.1.1, numpy 2.4.6.
# Input: annotations as JSON with the columns start_time, end_time (text, as ActivityNet-like and HowTo-like lists write
#   times) and, beside them, the same text in columns named start and end.
# Expected: equal values give equal results whatever the column is called, and a file gives the same table on every day.
# Seen (on 2026-11-29):
#     start       00:00:10.5                 str
#     start_time  2026-11-29 00:00:10.500000 datetime64[us]
#     end_time    2026-11-29 00:05:00        datetime64[us]
#   (The text in end_time was "0:05".) Columns that end in _time or _at, or begin with timestamp, are parsed as dates; that is documented. That a time
#   without a date gets TODAY's date, and that "0:05" becomes five minutes past midnight, is not.
# Why it matters: the manifest's fingerprint, and with it caches and splits made from it, changes at midnight; rows read
#   by two workers on both sides of midnight differ by a day; "m:ss" becomes hours and minutes. Nothing fails: the
#   differences end - start are still timedeltas. Pass convert_dates=False.
# Public: the rule by names: https://github.com/pandas-dev/pandas/issues/15410; today's date: no report was found.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet pandas==3.1.1 numpy==2.4.6
"$work/venv/bin/python" - <<'PY'
import datetime
import io
import json

import pandas as pd

rows = [
    {"id": "a", "start": "00:00:10.5", "start_time": "00:00:10.5", "end_time": "0:05"},
    {"id": "b", "start": "00:00:11.0", "start_time": "00:00:11.0", "end_time": "0:06"},
]
before = datetime.date.today()
table = pd.read_json(io.StringIO(json.dumps(rows)))
after = datetime.date.today()
for column in ("start", "start_time", "end_time"):
    print(f"{column:11} {table[column][0]!s:26} {table[column].dtype}")
assert table["start"][0] == "00:00:10.5"
start, end = table["start_time"][0], table["end_time"][0]
assert before <= start.date() <= after and start.time() == datetime.time(0, 0, 10, 500000)
assert before <= end.date() <= after and end.time() == datetime.time(0, 5)
PY
