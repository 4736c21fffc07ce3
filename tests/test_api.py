"""docs/api.md against the code: every public name is there, with its parameters, and the first example runs."""

from __future__ import annotations

import inspect
import os
import re
import shutil
from dataclasses import is_dataclass
from pathlib import Path

import pytest
import vatt_kernels
from helpers.small_model import write_model

import vatt
from vatt.data.manifest import read_manifest

DOCUMENT = (Path(__file__).resolve().parents[1] / "docs" / "api.md").read_text(encoding="utf-8")


def documented(package: str) -> dict[str, list[str] | None]:
    """Name to the parameters in its row; None for a row without any."""
    section = DOCUMENT.split(f"\n## {package}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)(?:\((.*?)\))?` \| \S.* \|$", section, re.MULTILINE)
    return {
        name: [p.strip() for p in parameters.split(",") if p.strip() != "*"] if parameters else None
        for name, parameters in rows
    }


def parameters(value: object) -> list[str] | None:
    """Names of the parameters of a function or class; None for what is not made by hand."""
    if inspect.ismodule(value):  # the command that is a function, too
        value = value.__call__  # type: ignore[operator]
    if is_dataclass(value) or (inspect.isclass(value) and issubclass(value, Exception)):
        return None
    return list(inspect.signature(value).parameters)  # type: ignore[arg-type]


@pytest.mark.parametrize("package", [vatt, vatt_kernels])
def test_every_public_name_is_documented(package) -> None:
    names = {name: parameters(getattr(package, name)) for name in package.__all__}
    assert documented(package.__name__) == names


@pytest.mark.parametrize("package", [vatt, vatt_kernels])
def test_every_public_name_says_what_it_does(package) -> None:
    for name in package.__all__:
        value = getattr(package, name)
        assert (inspect.getdoc(value.__call__ if inspect.ismodule(value) else value) or "").strip(), name


def test_the_first_example_runs(corpus: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    """From a file to embeddings in three lines, without a word printed."""
    write_model(tmp_path / "runs" / "tiny", corpus)
    shutil.copy(read_manifest(corpus)[0].path, tmp_path / "dog.mp4")
    capsys.readouterr()
    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
    assert code is not None
    names: dict[str, object] = {}
    exec(code[1], names)
    assert names["to_text"].shape == (1, 128)  # type: ignore[attr-defined]
    assert capsys.readouterr() == ("", "")
    assert os.listdir(tmp_path / "runs") == ["tiny"]
