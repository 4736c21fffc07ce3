"""Who may import whom. The rooms and directions are in README's annotated tree."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def imports(path: Path) -> set[str]:
    """Absolute names of all modules a file imports, also inside functions."""
    package = ".".join(path.relative_to(ROOT).with_suffix("").parts[:-1])
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found.add(module)
            found.update(f"{module}.{alias.name}" for alias in node.names)
    return found


def importers(folder: str, name: str) -> list[str]:
    files = sorted((ROOT / folder).rglob("*.py"))
    return [
        str(path.relative_to(ROOT))
        for path in files
        if any(module == name or module.startswith(name + ".") for module in imports(path))
    ]


def test_kernels_know_nothing_of_vatt():
    assert importers("kernels", "vatt") == []


def test_only_ops_imports_the_kernels():
    assert importers("vatt", "vatt_kernels") == ["vatt/ops.py"]


@pytest.mark.parametrize(
    "upper", ["vatt.train", "vatt.evaluate", "vatt.checkpoints.model_folder", "vatt.model", "vatt.ops"]
)
def test_data_stands_below_model_and_commands(upper):
    assert importers("vatt/data", upper) == []


@pytest.mark.parametrize("upper", ["vatt.train", "vatt.evaluate", "vatt.checkpoints.model_folder", "vatt.data"])
def test_model_stands_below_commands_and_beside_data(upper):
    assert importers("vatt/model", upper) == []


def test_commands_import_each_other_only_downwards():
    assert importers("vatt", "vatt.train") == []
    assert importers("vatt", "vatt.finetune") == [
        "vatt/recipes/__main__.py"
    ]  # which names the commands, on top of them all


@pytest.mark.parametrize("name", ["bench", "tests"])
def test_nothing_imports_bench_or_tests(name):
    assert [path for folder in ("vatt", "kernels") for path in importers(folder, name)] == []


def test_reference_stands_alone_and_portable_on_it():
    for file, allowed in (("reference", set()), ("portable", {"kernels.reference"})):
        inner = {m for m in imports(ROOT / "kernels" / f"{file}.py") if m.startswith("kernels")}
        assert {".".join(m.split(".")[:2]) for m in inner} - {"kernels"} <= allowed | {f"kernels.{file}"}


@pytest.mark.parametrize(
    "optional",
    [
        "matplotlib",
        "pandas",
        "xformers",
        "nvidia",
        "tensorboard",
        "google_crc32c",
        "webdataset",
        "torchcodec",
        "decord",
        "transformers",
        "sklearn",
    ],
)
def test_optional_packages_are_imported_inside_functions_only(optional):
    for folder in ("vatt", "kernels"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.parse(path.read_text()).body:
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
                assert not any(n.split(".")[0] == optional for n in names), f"{path} imports {optional} at top level"


def test_files_are_readable_at_one_sitting():
    long = {}
    for folder in ("vatt", "kernels", "bench", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            lines = len(path.read_text().splitlines())
            if lines > 400:
                long[str(path.relative_to(ROOT))] = lines
    assert long == {}
