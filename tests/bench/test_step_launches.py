"""Launches of a step, counted without a GPU: the count itself, and the page that is drawn from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness import report as harness

import pytest
import step_launches
from step_launches import REPORT_PAGE, operations, parts_of, totals

pytest.importorskip("triton")

WAYS = ("forward", "backward")
FORMS = ("before", *step_launches.FORMS)
LOOPS = [f"{kernel} {variant}" for kernel in (*WAYS, "one pass") for variant in ("dense", "dense dropout")]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A step of one layer an encoder, with dropout, of the code that is here; launches of our kernels are made up."""
    tree = step_launches.checkout("", tmp_path_factory.mktemp("tree"))
    flags = ("--preset=tiny", "--batch=4", "--dropout=0.1", "--layers=1")
    found = operations(tree, *flags, modes=["trace"])
    for call in found["calls"]:
        call |= {"launches": 2 if "backward" in call["name"] else 1, "bytes": 0, "kernels": [f"{call['name']}_kernel"]}
    return found


def test_every_launch_of_a_step_is_counted(found: dict[str, Any]) -> None:
    eager = parts_of(found, compiled=False)
    # qkv, out, wi and wo: one product forward and two backward each
    assert all(layer["eager"]["products"][0] == 12 for layer in found["layers"])
    assert eager["attention backward"][0] == 2 * eager["attention forward"][0] == 6
    assert eager["dropout"][0] > 0
    assert eager["optimizer"][0] < 20  # many tensors a launch
    assert eager["products"][1] == 0 < eager["GELU"][1]
    names = {call["name"] for call in found["calls"]}
    assert names == {
        f"{name}{way}" for name in ("attention", "project", "contrastive_loss") for way in ("", "_backward")
    } | {"sample_keep"}


def test_compiled_layers_have_fewer_launches_and_bytes(found: dict[str, Any]) -> None:
    eager, compiled = (parts_of(found, compiled=form) for form in (False, True))
    for index in (0, 1):
        assert sum(part[index] for part in compiled.values()) < sum(part[index] for part in eager.values())
    assert compiled["products"] == eager["products"]
    assert compiled["attention backward"] == eager["attention backward"]
    assert compiled["GELU"][0] == eager["GELU"][0] - 2 * sum(layer["times"] for layer in found["layers"])


def test_the_report_compares_both_and_adds_up(
    found: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trees: list[str] = []
    monkeypatch.setattr(step_launches, "checkout", lambda commit, folder: trees.append(commit) or folder)
    monkeypatch.setattr(step_launches, "operations", lambda tree, *flags: found)
    loops = iter([dict.fromkeys(LOOPS, 600), dict.fromkeys(LOOPS, 300)])
    monkeypatch.setattr(step_launches, "loops", lambda tree: next(loops))
    assert step_launches.main(["--quick", "--out", str(tmp_path), "--before", "HEAD"]) == 0
    path = next(tmp_path.glob("*/step_launches.json"))
    report = harness.load(path)
    assert trees == ["HEAD", "", "HEAD", ""]
    assert [(row["form"], row["dropout"]) for row in report.rows] == [
        (form, dropout) for dropout in (0.0, 0.1) for form in FORMS
    ]
    before, after, compiled = report.rows[:3]
    assert totals(before)[:2] == totals(after)[:2]
    saved = sum(before["milliseconds"][f"attention {way}"] - after["milliseconds"][f"attention {way}"] for way in WAYS)
    assert totals(before)[2] - totals(after)[2] == pytest.approx(saved)
    assert saved > 0
    assert totals(compiled)[0] < totals(after)[0]
    text = REPORT_PAGE.page(report)
    assert "not measured: no GPU took part" in text
    assert f"| before | 0 | {totals(before)[0]} |" in text
    assert path.with_suffix(".png").stat().st_size > 5000


def test_a_commit_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert step_launches.main(["--quick", "--out", str(tmp_path), "--before", "no-such-commit"]) == 1
    assert "--before no-such-commit: " in capsys.readouterr().err
