"""What corpora cost: the report of very small ones, measured by programs that run here in place of processes."""

import contextlib
import io
import json
import sys

from harness import report as harness

import corpus_scale
import pytest


@pytest.fixture
def here(monkeypatch):
    """The benchmark's programs run in this process, which has imported what each of them would import anew."""

    def call(program, *words):
        told = io.StringIO()
        with monkeypatch.context() as patch, contextlib.redirect_stdout(told):
            patch.setattr(sys, "argv", ["-c", *map(str, words)])
            patch.setattr(sys, "path", list(sys.path))
            exec(program, {"__name__": "__main__"})
        return json.loads(told.getvalue().splitlines()[-1])

    monkeypatch.setattr(corpus_scale, "call", call)
    monkeypatch.setattr(harness, "_sources", lambda: "one")


def test_a_report_of_small_corpora(here, tmp_path):
    assert corpus_scale.main(["--rows", "300", "600", "--out", str(tmp_path)]) == 0
    report = harness.load(next(tmp_path.glob("*/corpus_scale.json")))
    opened = corpus_scale.of(report, "open")
    assert [row["later"]["rows"] for row in opened.values()] == [300, 600]
    for kind in (*corpus_scale.KINDS, "parquet"):
        assert [row["code"] for row in report.rows if row["kind"] == kind and row["rows"] == 600] == ["now"]
    page = next(tmp_path.glob("*/corpus_scale.md")).read_text()
    for words in ("caption.json", "136,000,000 clips", "extrapolated by the row"):
        assert words in page


def test_targets_hold_only_for_the_sizes_they_are_of():
    report = harness.Report("corpus_scale", "", {}, {}, {}, "")

    def add(rows, code="now", **values):
        report.rows.append({"kind": "open", "rows": rows, "code": code, **values})

    add(10**6, later={"seconds": 0.1, "uss": 10**7})
    assert corpus_scale.checks(report) == []
    add(10**6, "before", first={"seconds": 4.0})
    add(10**7, later={"seconds": 12.0, "uss": 10**7 + 9 * 10**6})
    found = {check["what"]: (check["value"], check["green"]) for check in corpus_scale.checks(report)}
    assert list(found.values()) == [(1.0, True), (12.0, False), (40.0, True)]
    report.rows.append({"kind": "list", "rows": 10**6, "code": "now", "peak": 2.5e8, "seconds": 1.0})
    *_, peak = corpus_scale.checks(report)
    assert (peak["value"], peak["green"]) == (250, False)
