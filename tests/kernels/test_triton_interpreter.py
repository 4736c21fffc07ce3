"""Which implementation answers where, and the Triton tests in Triton's interpreter, in processes of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.interpreter.needs import interpreter_fails
from vatt_kernels import dispatch

from vatt.errors import ConfigError
from vatt.ops import choose

ROOT = Path(__file__).resolve().parents[2]
FILES = ["test_spec.py", *sorted(path.name for path in (ROOT / "tests" / "kernels").glob("test_triton_*.py"))]
FILES.remove(Path(__file__).name)
# One file changes the interpreter for its whole process; the others share the imports of one.
PROCESSES = [["test_triton_as_gpu.py"], [file for file in FILES if file != "test_triton_as_gpu.py"]]


def run_interpreted(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m arguments` in a process of its own, on one core and without a GPU."""
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("files", PROCESSES, ids=["as on a GPU", "as it is"])
def test_kernels_in_the_interpreter(files: list[str]) -> None:
    pytest.importorskip("triton")
    if reason := interpreter_fails():
        pytest.skip(reason)
    done = run_interpreted("pytest", "-q", "-x", "-p", "no:cacheprovider", *(f"tests/kernels/{file}" for file in files))
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert "[100%]" in done.stdout  # not all of it was skipped


# which implementation answers


def triton_is(monkeypatch: pytest.MonkeyPatch, *, installed: bool, interpreted: bool) -> None:
    monkeypatch.setattr(dispatch, "has_triton", lambda: installed)
    monkeypatch.setattr("vatt.ops.has_triton", lambda: installed)
    monkeypatch.setenv("TRITON_INTERPRET", "1" if interpreted else "0")


@pytest.mark.parametrize(
    ("device", "installed", "interpreted", "expected"),
    [
        ("cpu", True, False, "portable"),
        ("cpu", True, True, "triton"),
        ("cpu", False, True, "triton"),  # it was asked for, so that it is missing has to show
        ("cuda", True, False, "triton"),
        ("cuda", False, False, "portable"),
        ("mps", True, True, "portable"),
    ],
)
def test_the_device_decides(
    device: str, installed: bool, interpreted: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    triton_is(monkeypatch, installed=installed, interpreted=interpreted)
    assert dispatch.default_implementation(torch.device(device)) == expected


@pytest.mark.parametrize(
    ("impl", "device", "installed", "interpreted", "kind", "message"),
    [
        ("triton", "cpu", True, False, RuntimeError, r"CUDA device, got cpu.*portable.*TRITON_INTERPRET=1"),
        ("triton", "cpu", False, True, ImportError, r"not installed.*portable"),
        (None, "cpu", False, True, ImportError, r"not installed.*portable"),
        ("triton", "cuda", False, False, ImportError, r"not installed.*portable"),
        ("triton", "mps", True, True, RuntimeError, r"CUDA device, got mps.*portable"),
        ("fast", "cpu", True, False, ValueError, r"'fast' is unknown.*'reference', 'portable', 'triton'"),
    ],
)
def test_what_was_asked_for_and_cannot_run_is_an_error(
    impl: str | None,
    device: str,
    installed: bool,
    interpreted: bool,
    kind: type[Exception],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    triton_is(monkeypatch, installed=installed, interpreted=interpreted)
    for op in ("attention", "gather_tokens"):
        with pytest.raises(kind, match=message):
            dispatch.implementation(op, impl, torch.device(device), lambda: torch.add)


@pytest.mark.parametrize(
    ("fused", "device", "interpreted", "impl", "reason"),
    [
        (False, "cuda", True, "reference", "literal PyTorch; --fused selects"),
        (True, "cpu", False, "portable", "fused, portable form on cpu"),
        (True, "cpu", True, "triton", r"Triton's interpreter on cpu \(TRITON_INTERPRET=1"),
        (True, "cuda:1", False, "triton", "fused, Triton kernels on cuda$"),
        (True, "mps", False, "portable", "fused, portable form on mps"),
    ],
)
def test_a_run_says_which_operations_it_has(
    fused: bool, device: str, interpreted: bool, impl: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    triton_is(monkeypatch, installed=True, interpreted=interpreted)
    ops = choose(fused, device)
    assert ops.impl == impl
    assert re.search(reason, ops.reason)


@pytest.mark.parametrize(
    ("device", "interpreted", "message"),
    [
        ("cuda", False, r"on CUDA.*not installed; install it, or run without --fused"),
        ("cpu", True, r"TRITON_INTERPRET=1.*not installed; install it, or unset TRITON_INTERPRET"),
    ],
)
def test_a_run_that_cannot_have_its_operations_does_not_start(
    device: str, interpreted: bool, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    triton_is(monkeypatch, installed=False, interpreted=interpreted)
    with pytest.raises(ConfigError, match=message):
        choose(True, device)


def test_kernels_are_tested_where_pyav_is_not_installed(tmp_path: Path) -> None:
    """As on a machine that has a GPU and no decoder: all tests of kernels can be collected."""
    pytest.importorskip("triton")
    (tmp_path / "av.py").write_text("raise ModuleNotFoundError(\"No module named 'av'\", name='av')\n")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    files = [
        f"tests/kernels/{file}"
        for file in (*FILES, "test_kernels_errors.py", "test_kernels_portable.py", "test_aot.py")
    ]
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *files]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
