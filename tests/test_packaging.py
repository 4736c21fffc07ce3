"""What is installed: every module, everywhere, at the version that it says; and what `make` asks pip for."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import venv
import warnings
import zipfile
from dataclasses import asdict
from pathlib import Path

import pytest
from helpers.processes import finished
from helpers.small_run import SMALL
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import vatt
from vatt import __main__ as console

ROOT = Path(__file__).resolve().parents[1]
SETUP = runpy.run_path(str(ROOT / ".ci" / "pythons.py"))
SUPPORTED = SETUP["SUPPORTED"]
SOURCES = (
    "vatt",
    "kernels",
    "bench",
    "tests",
    ".ci",
    "setup.py",
    "pyproject.toml",
    "MANIFEST.in",
    "README.md",
    "LICENSE",
    "SECURITY.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "CITATION.cff",
    "Makefile",
    "constraints.txt",
    "mkdocs.yml",
    "docs",
    "examples",
)
OFFLINE = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"PIP_NO_INDEX": "1"}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(sdist, wheel made of it), built beside the checkout: a build leaves files in the folder it is made in."""
    copy = tmp_path_factory.mktemp("build") / "vatt"
    copy.mkdir()
    for name in SOURCES:
        whole = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        whole(ROOT / name, copy / name)
    build = "import sys, setuptools.build_meta as b; print(b.build_sdist(sys.argv[1]))"
    out = copy.parent
    command = [sys.executable, "-c", build, str(out)]
    done = subprocess.run(command, cwd=copy, env=OFFLINE, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (sdist,) = out.glob("vatt-*.tar.gz")
    done = finished(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--no-build-isolation",
            "--no-deps",
            "--no-index",
            f"--wheel-dir={out}",
            str(sdist),
        ],
        env=OFFLINE,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = out.glob("vatt-*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """`bin/` of an environment with that wheel, which borrows the packages of this one but not its vatt."""
    place = tmp_path_factory.mktemp("installed") / "venv"
    venv.create(place, symlinks=True, with_pip=False)
    python = place / "bin" / "python"
    done = finished(
        [sys.executable, "-m", "pip", f"--python={python}", "install", "--no-deps", "--no-index", str(built[1])],
        env=OFFLINE,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (site,) = place.glob("lib/python*/site-packages")
    # Lines of a .pth file are folders whose own .pth files are not read: an editable vatt stays out.
    lent = ("torch", "av", "numpy", "tqdm")
    borrowed = {str(Path(importlib.util.find_spec(name).origin).parents[1]) for name in lent}
    (site / "borrowed.pth").write_text("\n".join(sorted(borrowed)) + "\n")
    return place / "bin"


def test_the_wheel_holds_every_module_and_no_other(built):
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "vatt").rglob("*.py")}
    modules |= {f"vatt_{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "kernels").rglob("*.py")}
    with zipfile.ZipFile(built[1]) as wheel:
        held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert held == modules | {"vatt/py.typed", "vatt_kernels/py.typed", "vatt_kernels/measured_launches.json"}


def test_the_sdist_holds_what_builds_tests_and_runs(built):
    with tarfile.open(built[0]) as sdist:
        held = {name.partition("/")[2] for name in sdist.getnames()}
    folders = ("vatt", "kernels", "bench", "tests", ".ci", "docs", "examples")
    wanted = {
        path.relative_to(ROOT).as_posix()
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".md", ".ipynb")
    }
    wanted |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "tests" / "data_20a74a7").rglob("*")}
    assert wanted | {name for name in SOURCES if (ROOT / name).is_file()} | {".ci/run"} <= held
    assert not [name for name in held if name.endswith(".pyc") or name.startswith("reports")]


def test_a_wheel_trains_in_an_empty_folder(installed, cache, tmp_path):
    env = {**OFFLINE, "VATT_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    place = "import vatt, vatt_kernels; print(vatt.__file__, vatt_kernels.__file__, sep='\\n')"
    where = subprocess.run([installed / "python", "-c", place], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert where.returncode == 0, where.stderr
    assert all(Path(line).is_relative_to(installed.parent) for line in where.stdout.split())
    train = [str(installed / "vatt"), "train", "--fused", "--steps=2", f"--out={tmp_path / 'run'}", *SMALL]
    done = subprocess.run(train, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_the_console_command_says_its_version_and_commands(installed, tmp_path):
    def said(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [installed / "vatt", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=OFFLINE, capture_output=True, text=True)

    assert said("--version").stdout == f"vatt {vatt.__version__}\n"
    help_text = said()
    assert (help_text.returncode, help_text.stdout) == (0, said("--help").stdout)
    assert all(re.search(rf"^  {name} +\w", help_text.stdout, re.MULTILINE) for name in console.COMMANDS)
    wrong = said("trian")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: 'trian' is no command")


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")  # by other tests of this process
@pytest.mark.parametrize("name", console.COMMANDS)
def test_each_command_hands_over_to_its_module(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["vatt", name, "--help"])
    with pytest.raises(SystemExit) as left:
        console.main()
    assert left.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: python -m {console.COMMANDS[name][0]}")


def test_every_command_module_is_a_command():
    """Modules that are run with `python -m` and have flags; the rest of them serve the tests or a machine."""
    others = {"vatt.data.synthetic", "vatt.data.look", "vatt"}
    runnable = set()
    for path in (ROOT / "vatt").rglob("*.py"):
        if 'if __name__ == "__main__":' in path.read_text(encoding="utf-8").splitlines():
            runnable.add(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__"))
    assert runnable - others == {module for module, _ in console.COMMANDS.values()}


def constraints() -> list[Requirement]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def pinned(minor: str) -> dict[str, Version]:
    """The release of each package that the constraints name for Python `minor` on Linux."""
    where = default_environment() | {
        "python_version": minor,
        "python_full_version": f"{minor}.0",
        "sys_platform": "linux",
        "platform_machine": "x86_64",
    }
    found: dict[str, Version] = {}
    for one in constraints():
        if one.marker is None or one.marker.evaluate(where):
            name = canonicalize_name(one.name)
            (specifier,) = one.specifier
            assert name not in found, f"{name} stands twice for Python {minor}"
            assert specifier.operator == "==", f"{one} is no exact release"
            found[name] = Version(specifier.version)
    return found


@pytest.mark.parametrize("minor", SUPPORTED)
def test_constraints_fit_setup_py(minor):
    where = default_environment() | {"python_version": minor, "sys_platform": "linux", "platform_machine": "x86_64"}
    releases = pinned(minor)
    for text in SETUP["requirements"]("test", "bench", "dev"):
        one = Requirement(text)
        if one.marker is None or one.marker.evaluate(where):
            name = canonicalize_name(one.name)
            assert name in releases, f"{name} is not in constraints.txt for Python {minor}; run make constraints"
            assert one.specifier.contains(releases[name]), f"{name} {releases[name]} is outside {text}"
    assert releases["torch"] <= Version("2.14.1")


def test_constraints_name_no_place_to_download_from():
    assert all(one.url is None for one in constraints())
    assert "://" not in (ROOT / "constraints.txt").read_text(encoding="utf-8")


def test_supported_pythons_are_the_same_everywhere():
    given = SETUP["package"]()
    classified = [one.rpartition(" ")[2] for one in given["classifiers"] if "Python ::" in one]
    assert tuple(classified) == SUPPORTED
    assert given["python_requires"] == f">={SUPPORTED[0]}"
    assert given["version"] == vatt.__version__


@pytest.mark.parametrize(("names", "chosen"), [(("good",), "good"), (("shim", "good"), "good"), (("shim",), "")])
def test_make_takes_the_first_python_that_runs(names, chosen, tmp_path):
    for name, script in (("good", f'exec "{sys.executable}" "$@"'), ("shim", "echo no such version >&2; exit 127")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    places = " ".join(str(tmp_path / name) for name in names)
    lines = subprocess.run(
        ["make", "-n", "-B", "train", f"PYTHONS={places}", f"VENV={tmp_path / 'venv'}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        # Whoever called `make test PYTHON=...` named it for that call.
        env={name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "PYTHON")},
    ).stdout
    assert f'test -n "{tmp_path / chosen if chosen else ""}"' in lines
    assert "-c constraints.txt" in lines


@pytest.mark.parametrize("category", [DeprecationWarning, PendingDeprecationWarning, FutureWarning])
@pytest.mark.parametrize("module", ["torch.nn.functional", "av", "vatt.data.decoding.container", __name__])
def test_what_libraries_announce_to_remove_is_an_error_here(category, module):
    with pytest.raises(category):
        warnings.warn_explicit("is going", category, "somewhere.py", 1, module=module)
    with pytest.warns(category):
        warnings.warn_explicit("is going", category, "somewhere.py", 1, module="avocado.tree")


def test_the_table_of_versions_claims_only_what_was_tried(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / ".ci")
    import compat

    before = tmp_path / "compat.json"
    old = compat.Row("3.12.0", "newest", "failed", "a.py", "1 failed", {"av": "18.0.0"}, "c0ffee", "2026-01-01", "x")
    versions = {"torch": "2.13.0"}
    kept = compat.Row("3.11.7", "full", "passed", "whole suite", "9 passed", versions, "beef", "2026-01-01", "x")
    before.write_text(json.dumps([asdict(old), asdict(kept)]))
    new = compat.Row("3.12.1", "newest", "passed", "a.py", "2 passed", {"av": "19.0.2"}, "f00d", "2026-02-02", "x")
    table = compat.merge([new], before)
    assert [row for row in table if row.result != "not tried"] == [kept, new]
    assert len(table) == 3 * len(SUPPORTED)
    page = compat.page(table)
    assert page.count("not tried |") == len(table) - 2
    assert "| 3.12.1 | newest PyAV, numpy | 19.0.2 |" in page
    assert "| passed (9 passed) | beef | 2026-01-01 |" in page
