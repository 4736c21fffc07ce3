"""What is measured beside the code of another commit: it answers, and says so where it fails."""

from __future__ import annotations

from pathlib import Path

from harness.checkouts import OtherCode, checkout
from harness.report import ReportError

import pytest

ANSWERS = """
import json, sys
for line in sys.stdin:
    job = json.loads(line)
    print(json.dumps(job["a"] / job["b"]), flush=True)
"""


def test_a_program_answers_until_it_fails(tmp_path: Path) -> None:
    program = tmp_path / "answers.py"
    program.write_text(ANSWERS)
    other = OtherCode(program)
    try:
        assert [other.ask(a=a, b=2) for a in (1, 5)] == [0.5, 2.5]
        for _ in range(2):
            with pytest.raises(ReportError, match=r'has failed \(above\) at \{"a": 1, "b": 0\}'):
                other.ask(a=1, b=0)
    finally:
        other.close()


def test_a_commit_that_git_does_not_know_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match=r"--before nowhere"):
        checkout("nowhere", tmp_path)
    assert (checkout("", tmp_path) / "vatt" / "__init__.py").is_file()
