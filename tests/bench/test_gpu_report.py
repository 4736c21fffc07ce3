"""The GPU report without a GPU: the dry run, what red rows do, and that a unit that dies costs nothing but itself."""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from harness import cli
from harness import report as harness
from harness.pages import results, write_page

import gpu_report
import pytest
import torch
from gpu_report import REPORT_PAGE, Unit, in_processes
from pages import gpu as gpu_page
from vatt_kernels.spec.error_budget import expect
from workloads import gpu_measurements, kernel_rivals
from workloads.gpu_measurements import BY_NAME
from workloads.kernel_rivals import Unable, providers
from workloads.sanitized_case import WATCHED, case_of, sanitizer


@pytest.fixture(autouse=True)
def few_and_one_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three correctness units; files that someone edits meanwhile make no other program."""
    units = gpu_report.correctness_units(True, "cpu")
    wanted = ("attention, plain, bfloat16", "attention, plain, float32", "contrastive_loss, MIL-NCE, float16")
    few = [unit for unit in units if unit.key.removeprefix("correctness, ") in wanted]
    monkeypatch.setattr(gpu_report, "correctness_units", lambda dry, device: few)
    monkeypatch.setattr(harness, "_sources", lambda: "one")


@pytest.fixture
def wrong(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes an operation compute something else, or raise."""

    def change(name: str, error: Exception | None = None) -> None:
        right = BY_NAME[name]

        def operation(*, impl: str | None, **given: Any) -> Any:
            if error is not None and impl is None:
                raise error
            out = right.operation(impl=impl, **given)
            return out if impl is not None else out * 1.1

        monkeypatch.setitem(BY_NAME, name, replace(right, operation=operation))

    return change


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "publish", lambda path, report_page, root: None)


def run(out: Path, *flags: str) -> tuple[int, harness.Report]:
    code = gpu_report.main(["--dry-run", "--out", str(out), *flags])
    return code, harness.load(next(out.glob("*/gpu_report.json")))


def test_dry_run_goes_on_and_holds_rows_of_every_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, begun = run(tmp_path, "--only", "correctness")
    assert not begun.finished
    begun.rows.pop()
    path = next(tmp_path.glob("*/gpu_report.json"))
    begun.save(path)
    code, report = run(tmp_path, "--resume")
    assert code == 0
    assert report.rows[: len(begun.rows)] == begun.rows
    assert {row["kind"] for row in report.rows} == {
        "ceilings",
        "correctness",
        "sanitizer",
        "kernel",
        "training",
        "decode",
    }
    assert all(row["skipped"] == "no GPU" for row in report.rows if row["kind"] in ("sanitizer", "decode"))
    assert len({(row["key"], row.get("provider"), row.get("implementation")) for row in report.rows}) == len(
        report.rows
    )
    assert (report.finished, report.quick, report.settings["dry_run"], report.gate["green"]) == (True,) * 4
    timed = [row for row in report.rows if row["kind"] == "kernel" and "forward" in row]
    assert {row["operation"] for row in timed if row["provider"] == "ours"} == set(BY_NAME)
    rivals = {"reference", "SDPA flash", "SDPA math", "Conv3d, then gather", "Conv, then gather", "materialised scores"}
    assert {row["provider"] for row in timed} == {"ours", *rivals}
    assert all(row["unable"] for row in report.rows if row["kind"] == "kernel" and "forward" not in row)
    for row in timed:
        forward = row["forward"]
        assert forward["p20"] <= forward["p50"] <= forward["p80"]
        assert forward["rate"] == pytest.approx(forward["flops"] / forward["p50"])
    steps = [row for row in report.rows if row["kind"] == "training"]
    assert {row["implementation"] for row in steps if row["p50"]} == set(gpu_measurements.IMPLEMENTATIONS)
    page = path.with_suffix(".md").read_text()
    assert gpu_page.DRY in page
    assert page == write_page(harness.load(path), REPORT_PAGE)
    assert path.with_suffix(".png").stat().st_size > 10_000
    assert "| attention forward | plain |" in capsys.readouterr().out
    assert results(tmp_path, {"gpu_report": REPORT_PAGE}) == []


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("error", [None, RuntimeError("kernel does not compile")])
def test_a_failing_kernel_is_red_and_not_compared(
    error: Exception | None, wrong: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong("attention", error)
    code, report = run(tmp_path, "--only", "correctness", "kernels")
    assert code == 1
    assert report.gate["green"] is False
    red = [row for row in report.rows if not row.get("green", True)]
    assert {(row["kind"], row["operation"]) for row in red} == {("correctness", "attention"), ("kernel", "attention")}
    for row in red:
        assert "does not compile" in row["error"] if error else "output" in row["red"]
        assert "forward" not in row
    others = [row for row in report.rows if row["kind"] == "kernel" and row["operation"] != "attention"]
    assert any(row["forward"]["over_ours"] for row in others if "forward" in row)
    assert all(
        row["doubted"] == "attention bfloat16"
        for row in report.rows
        if row.get("operation") == "attention" and row["kind"] == "kernel"
    )
    assert not any("attention" in what for what, _ in gpu_page.readme_rows(report))
    assert "RED" in capsys.readouterr().out
    assert "## Red" in gpu_page.page(report)


def measured(**red: list[str]) -> harness.Report:
    """A report of two operations in two dtypes and a step, each beside a rival that takes twice as long."""

    def kernel(operation: str, dtype: str, provider: str, seconds: float) -> dict[str, Any]:
        timed = {"seconds": [seconds] * 3, "flops": 10**9, "bytes": 10**6}
        return {
            "kind": "kernel",
            "operation": operation,
            "case": "a",
            "dtype": dtype,
            "provider": provider,
            "compiled": False,
            "green": True,
            "forward": timed,
        }

    rows: list[dict[str, Any]] = []
    for operation in ("attention", "project_voxels"):
        for dtype in ("bfloat16", "float32"):
            rows += [
                {
                    "kind": "correctness",
                    "operation": operation,
                    "case": "a",
                    "dtype": dtype,
                    "green": dtype not in red.get(operation, []),
                }
            ]
            rows += [kernel(operation, dtype, "ours", 1e-3), kernel(operation, dtype, "SDPA flash", 2e-3)]
    for implementation, seconds in (("fused", 1.0), ("eager", 2.0)):
        rows.append(
            {
                "kind": "training",
                "preset": "mbs",
                "part": "video",
                "dropout": 0.0,
                "drop_rate": 0.0,
                "batch": 2,
                "implementation": implementation,
                "dtype": "bfloat16",
                "green": True,
                "operations": gpu_measurements.USED["video"],
                "flops": 10**12,
                "seconds": [seconds] * 3,
            }
        )
    report = harness.Report(gpu_report.NAME, "", {"dry_run": False}, {}, {}, "", rows=rows)
    gpu_page.derive(report)
    return report


def test_a_red_row_marks_what_it_is_about_and_blanks_nothing() -> None:
    for red, marked, steps in (
        ({}, set(), ""),
        ({"attention": ["float32"]}, {("attention", "float32")}, ""),
        ({"project_voxels": ["bfloat16"]}, {("project_voxels", "bfloat16")}, "project_voxels bfloat16"),
    ):
        report = measured(**red)
        kernels = [row for row in report.rows if row["kind"] == "kernel"]
        assert all(row["forward"]["over_ours"] == (1 if row["provider"] == "ours" else 2) for row in kernels)
        assert {(row["operation"], row["dtype"]) for row in kernels if row["doubted"]} == marked
        training = [row for row in report.rows if row["kind"] == "training"]
        assert [row["doubted"] for row in training] == [steps] * 2
        assert training[0]["eager_over_this"] == 2
        assert ("2.00 (red)" in gpu_page.summary(report)) == bool(marked)
        front = " ".join(what for what, _ in gpu_page.readme_rows(report))
        assert ("video step" in front) == (not steps)
        assert "`attention` forward, a, bfloat16" in front


def test_what_decides_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ceilings, bfloat16, then the shapes and steps of MBS; nothing is done twice or left out."""
    monkeypatch.undo()
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    stages = gpu_report.plan(gpu_report.arguments([]))
    names = ["ceilings", "correctness, bfloat16", "sanitizer", "kernels", "training"]
    assert [stage.name for stage in stages[:5]] == names
    correct, _, kernels, training = (stage.units for stage in stages[1:5])
    assert {unit.about["dtype"] for unit in correct} == {"bfloat16"}
    cases = [(unit.about["operation"], unit.about["case"]) for unit in kernels]
    assert cases[:2] == [("attention", "Medium 224, 50% dropped"), ("attention", "Medium 224, 0% dropped")]
    assert all("dropout 0.1" in case for _, case in cases[2:4])
    assert [(u.about["drop_rate"], u.about["dropout"], u.about["batch"]) for u in training[:2]] == [
        (0.5, 0.0, 64),
        (0.5, 0.1, 64),
    ]
    assert {u.about["preset"] for u in training} == {"mbs"}
    keys = [unit.key for stage in stages for unit in stage.units]
    assert len(keys) == len(set(keys))
    whole = {
        (unit.about["operation"], unit.about["case"])
        for stage in stages
        for unit in stage.units
        if unit.kind == "kernel"
    }
    assert whole == {(name, case.name) for name, spec in BY_NAME.items() for case in spec.shapes()}
    assert stages[-1].units[-1].about["dtype"] == "float32"


@pytest.mark.usefixtures("undrawn")
def test_what_does_not_fit_into_the_minutes_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, report = run(tmp_path, "--minutes", "1e-9")
    assert code == 0
    assert not report.finished
    assert "training, tiny, full, 0.1, 0.5, 2, fused" in report.method["left_out"]
    assert "left out, --resume goes on" in capsys.readouterr().out


def some(behaviour: str, hanging: Path) -> list[dict[str, Any]]:
    """A unit for a child process; one that hangs writes the file `hanging` first."""
    if behaviour == "dies":
        os.kill(os.getpid(), signal.SIGSEGV)
    if behaviour == "hangs":
        hanging.touch()
        time.sleep(3600)
    if behaviour == "raises":
        raise ValueError("no")
    return [{"kind": "correctness", "green": True, "pid": os.getpid(), "av": "av" in sys.modules}]


def test_a_unit_that_dies_hangs_or_raises_costs_nothing_but_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging, hours = tmp_path / "hanging", itertools.count()
    # A clock that stands still until the unit hangs, and then runs by an hour each time somebody looks.
    clock = SimpleNamespace(monotonic=lambda: 3600.0 * next(hours) if hanging.exists() else 0.0)
    monkeypatch.setattr(gpu_report, "time", clock)
    order = ["works", "raises", "works again", "dies", "hangs"]
    units = [Unit("correctness", {"case": name}, some, (name, hanging)) for name in order]
    found = {unit.about["case"]: rows[0] for unit, rows in in_processes(units, 1, "cpu", math.inf)}
    assert list(found) == order
    assert found["works"]["pid"] == found["works again"]["pid"]
    assert not found["works"]["av"]  # GPU machines need no decoder
    assert "ValueError: no" in found["raises"]["error"]
    assert "exit code -11" in found["dies"]["error"]
    assert "took longer" in found["hangs"]["error"]
    assert all(json.dumps(row) for row in found.values())


def test_the_benchmark_has_every_operation_with_all_its_providers() -> None:
    import bench_kernels

    jobs = {(job.values[0].name, job.values[3].name) for job in bench_kernels.JOBS}
    assert jobs == {(name, provider.name) for name in BY_NAME for provider in providers(name)}


@pytest.mark.parametrize("provider", ["Inf-CL-style tiles", "Liger-style chunks"])
def test_losses_of_others_compute_the_same(provider: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU, where they are no rivals: what a GPU will time is the same function."""
    monkeypatch.setattr(kernel_rivals, "on_a_gpu", lambda inputs, otherwise: None)
    monkeypatch.setattr(kernel_rivals, "CHUNK_ROWS", 3)
    monkeypatch.setattr("torch.cuda.synchronize", lambda: None)
    monkeypatch.setattr("torch.compile", lambda function, **options: function)
    spec = BY_NAME["contrastive_loss"]
    prepare = next(p.prepare for p in providers("contrastive_loss") if p.name == provider)
    done = 0
    for case in spec.cases():
        expected = expect(spec, case, torch.float32)
        try:
            run = prepare(spec, expected.inputs.differentiable())
        except Unable:
            continue
        assert [str(error) for error in expected.errors(run) if not error.green] == [], case.name
        done += 1
    assert done >= 2


def test_a_dry_run_is_not_published(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        gpu_report.main(["--dry-run", "--out", str(harness.REPORTS)])
    assert "never published" in capsys.readouterr().err


SANITIZED = """#!/bin/sh
echo "========= COMPUTE-SANITIZER"
{said}
exit {code}
"""


@pytest.mark.parametrize(
    ("said", "code", "found"),
    [
        ("echo '========= ERROR SUMMARY: 0 errors'", 0, {"green": True}),
        (
            "echo '========= Invalid __shared__ read of size 16 bytes'; echo '========= ERROR SUMMARY: 2 errors'",
            99,
            {"green": False, "red": "2 errors: Invalid __shared__ read of size 16 bytes"},
        ),
        ("echo 'Traceback (most recent call last)'; echo 'RuntimeError: no'", 1, {"green": False}),
        (
            "echo '========= Error: Target application terminated before first instrumented API call'",
            1,
            {
                "skipped": "compute-sanitizer refused (exit code 1): Error: Target application terminated before first "
                "instrumented API call"
            },
        ),
    ],
)
def test_the_sanitizer_is_understood(
    said: str, code: int, found: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "compute-sanitizer"
    program.write_text(SANITIZED.format(said=said, code=code))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    for operation, case, variant in WATCHED:
        assert case_of(operation, case).name == case
        [row] = sanitizer(operation, case, variant, "cuda")
        assert found.items() <= row.items()
        assert ("green" in row) != ("skipped" in row)


def test_without_the_sanitizer_the_reason_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    [row] = sanitizer(*WATCHED[0], "cuda")
    assert "not on PATH" in row["skipped"]
