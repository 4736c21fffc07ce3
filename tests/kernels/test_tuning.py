"""Launches that were measured stand before those of the code; bench/tune.py without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from vatt_kernels import tuning
from vatt_kernels.tuning import trying, tuned

pytest.importorskip("triton")

TUNE = Path(__file__).resolve().parents[2] / "bench" / "tune.py"
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty table in place of the project's, and a GPU named "GPU 1"."""
    path = tmp_path / "table.json"
    path.write_text("{}")
    monkeypatch.setattr(tuning, "TABLE", path)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *of: "GPU 1")
    for cached in (tuning.measured, tuning._gpu):
        cached.cache_clear()
    yield path
    for cached in (tuning.measured, tuning._gpu):
        cached.cache_clear()


def test_nothing_has_been_measured() -> None:
    """Until a GPU says otherwise all tiles are the compiler's choice."""
    assert json.loads(tuning.TABLE.read_text()) == {}


def test_what_was_measured_is_launched(table: Path) -> None:
    from vatt_kernels.self_attention.triton_tiles import AttentionLaunch, measured_launch

    table.write_text(json.dumps({"GPU 1": {"launches": {"attention dq 64": [128, 64, 8, 3]}}}))
    here = torch.zeros(1, dtype=torch.bfloat16)
    ours, small = AttentionLaunch(64, 64, 4, 2), AttentionLaunch(32, 32, 4, 1)
    assert measured_launch("dq", ours, 64, here) is ours  # a CPU has no name in the table
    assert tuned("attention dq 64", (ours,), CUDA) == (AttentionLaunch(128, 64, 8, 3), ours)
    assert tuned("attention dk dv 64", (ours,), CUDA) == (ours,)
    with trying("attention dq 64", (64, 128, 8, 2)):
        assert measured_launch("dq", ours, 64, here) == AttentionLaunch(64, 128, 8, 2)
        assert measured_launch("dq", ours, 64, here.float()) is ours
        assert measured_launch("dq", small, 64, here) is small
        assert measured_launch("dq", ours, 128, here) is ours
    assert tuned("attention dq 64", (ours,), CPU) == (ours,)


def test_only_what_is_faster_is_written_beside_what_is_there(table: Path) -> None:
    sys.path.insert(0, str(TUNE.parent))
    import tune

    found = {
        "a": [{"launch": None, "seconds": 1.0}, {"launch": [1], "seconds": 0.5}, {"launch": [2], "left_out": "off"}],
        "b": [{"launch": None, "seconds": 1.0}, {"launch": [3], "seconds": 0.99}],
    }
    other = {"made": {}, "launches": {"a": [9]}}
    table.write_text(json.dumps({"GPU 2": other, "GPU 1": {"made": {}, "launches": {"b": [7], "c": [8]}}}))
    assert tune.write_table(table, "GPU 1", found, {"commit": "x"}) == {"a": [1]}
    written = {"made": {"commit": "x"}, "launches": {"c": [8], "a": [1]}}
    assert json.loads(table.read_text()) == {"GPU 2": other, "GPU 1": written}
    x = [[torch.ones(4)]]
    assert not tune.off(x, x)
    assert tune.off([[torch.full((4,), 1.1)]], x)
    assert tune.off([[torch.full((4,), torch.nan)]], x)


def test_it_runs_without_a_gpu_and_says_that_there_is_none(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["CUDA_VISIBLE_DEVICES"] = ""
    path = tmp_path / "tuned.json"
    command = [sys.executable, str(TUNE), "--dry-run", "--seconds=500", "--only=attention forward 64", f"--out={path}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "| attention forward 64 | [64, 64, 4, 3] |" in done.stdout
    made = json.loads(path.read_text())["pretended"]["made"]
    assert made["versions"]["triton"]
    refused = subprocess.run([sys.executable, str(TUNE)], env=environment, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[-1].endswith(
        "PyTorch sees no GPU here; --dry-run shows what the program does without one"
    )
