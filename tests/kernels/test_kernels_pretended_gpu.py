"""The launchers' host code and specialisations on a pretended H200: what would raise in the first minute on a real one.

`python bench/workloads/pretended_gpu.py --all --shapes` does the same for all cases and for shapes of VATT.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

SCRIPT = Path(__file__).resolve().parents[2] / "bench" / "workloads" / "pretended_gpu.py"
BREAK = """
import sys
sys.path.insert(0, {folder!r})
import pretended_gpu as gpu
from vatt_kernels.projection import triton_launch
def shared_memory(device): raise AttributeError("max_shared_mem")
triton_launch.shared_memory = shared_memory
sys.argv = ["pretended"]
sys.exit(gpu.main())
"""


def run(folder: Path, *command: str) -> tuple[int, dict[str, Any]]:
    """In a process of its own, as it changes PyTorch, and with a cache of its own, so that everything is compiled."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(folder), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_the_first_case_of_each_operation_reaches_its_kernels(tmp_path: Path) -> None:
    from vatt_kernels.catalog import SPECS

    code, found = run(tmp_path, str(SCRIPT))
    assert [row["error"] for row in found["rows"] if row["error"]] == []
    assert code == 0
    assert {row["operation"] for row in found["rows"]} == {spec.name for spec in SPECS}
    for row in found["rows"]:
        assert row["launches"], row
        for launch in row["launches"]:
            assert all(0 < size <= limit for size, limit in zip(launch["grid"], found["limits"], strict=True)), launch
            assert launch["shared"] <= found["shared"], launch
    launched = {launch["kernel"] for row in found["rows"] for launch in row["launches"]}
    assert {"project_kernel", "weight_kernel", "forward_kernel", "gradient_kernel", "draw_kernel"} <= launched
    assert "one_pass_kernel" in launched  # its first pass once did not compile, which no interpreter sees


def test_a_launcher_that_raises_is_noticed(tmp_path: Path) -> None:
    code, found = run(tmp_path, "-c", BREAK.format(folder=str(SCRIPT.parent)))
    assert code == 1
    failed = {row["operation"] for row in found["rows"] if "max_shared_mem" in row["error"]}
    assert failed == {"project_voxels", "project_waveform"}
