#!/usr/bin/env bash
# With pytest 9.2 the groups of pytest-xdist 3.8 do nothing: tests of one group run on several workers, without a word.
#
# Versions: pytest-xdist 3.8.0 with pytest 9.1.1 and with 9.2.0.
# Input: eight tests of one `xdist_group`, run with two workers and `--dist loadgroup`.
# Expected: one worker runs all of a group, as pytest-xdist documents.
# Seen:
#     pytest 9.1.1: 1 worker(s)
#     pytest 9.2.0: 2 worker(s)
# Why it matters: tests that share what one of them made (a trained model, a converted checkpoint, a GPU) are grouped so that it
#   is made once and in order. They now fail by chance, or train everything twice. The plugin writes the group into a private
#   attribute of a test, which this release of pytest no longer reads. `--dist loadfile` still keeps files together.
# Public: no report was found.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat >"$work/test_group.py" <<'PY'
import os
import time

import pytest


@pytest.mark.xdist_group("one")
@pytest.mark.parametrize("number", range(8))
def test_group(number):
    time.sleep(0.2)
    with open("workers.txt", "a") as file:
        print(os.environ["PYTEST_XDIST_WORKER"], file=file)
PY
cd "$work"
for pair in 9.1.1:1 9.2.0:2; do
  version=${pair%%:*}
  "${PYTHON:-python3.11}" -m venv "$work/$version"
  "$work/$version/bin/pip" install --quiet "pytest==$version" pytest-xdist==3.8.0
  rm -f workers.txt
  "$work/$version/bin/python" -m pytest -q -n 2 --dist loadgroup test_group.py >/dev/null
  seen=$(sort -u workers.txt | wc -l)
  echo "pytest $version: $seen worker(s)"
  [ "$seen" -eq "${pair##*:}" ]
done
