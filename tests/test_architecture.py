"""Who may import whom, and what lies where: docs/ARCHITECTURE.md in tests. Imports inside functions count."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = ("train", "finetune", "evaluate", "predict", "embed", "search", "card", "figures", "recipes")
# A layer imports the layers before it; those of one line do not import each other.
LAYERS = (
    ("errors",),
    ("runtime", "config"),
    ("ops",),
    ("data", "model"),
    ("checkpoints",),
    ("training", "inference"),
    ("evaluation",),
    ("official",),
    COMMANDS,
    ("__main__",),
)
KERNEL_GROUND = ("device", "reference", "validation", "registration", "spec", "aot_case", "tuning")
OPERATIONS = ("self_attention", "contrastive", "projection", "droptoken")
BENCH_LAYERS = (("harness", "accounting"), ("workloads", "faults"), ("pages",))
NOT_COMMANDS = {"vatt": {"__init__", "errors", "ops"}, "bench": {"bench_kernels", "bench_model", "conftest"}}
OPTIONAL = {
    "matplotlib",
    "pandas",
    "pyarrow",
    "xformers",
    "nvidia",
    "tensorboard",
    "google_crc32c",
    "webdataset",
    "torchcodec",
    "decord",
    "transformers",
    "sklearn",
    "huggingface_hub",
    "fsspec",
    "ray",
}


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def short(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def modules() -> dict[str, Path]:
    """The files of the project by the names that imports use."""
    names = {}
    for path in sources("vatt", "kernels", "bench", "tests"):
        parts = list(path.relative_to(ROOT).with_suffix("").parts)
        if parts[-1] == "__init__":
            parts.pop()
        if parts[0] == "kernels":
            parts[0] = "vatt_kernels"
        names[".".join(parts)] = path
        if parts[0] in ("bench", "tests") and len(parts) > 1:
            names[".".join(parts[1:])] = path
    return names


def imported(path: Path) -> set[str]:
    """Absolute names of what a file imports, inside functions too: modules, and names in modules."""
    parts = list(path.relative_to(ROOT).parts[:-1])
    if parts[:1] == ["kernels"]:
        parts[0] = "vatt_kernels"
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = parts[: len(parts) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names.update(f"{module}.{alias.name}" for alias in node.names)
    return names


@cache
def graph() -> dict[Path, frozenset[Path]]:
    """Which files of the project each file imports. A name in a package's `__init__` is an arrow to that file."""
    arrows = {}
    for path in sources("vatt", "kernels", "bench", "tests"):
        found = set()
        for name in imported(path):
            target = modules().get(name) or modules().get(name.rpartition(".")[0])
            if target is not None and target != path:
                found.add(target)
        arrows[path] = frozenset(found)
    return arrows


def arrows(root: str) -> list[tuple[str, str, str, str]]:
    """(file, its part of `root`, imported file, its part of `root`) of all arrows within `root`."""
    return [
        (short(path), part(path), short(target), part(target))
        for path, targets in graph().items()
        for target in targets
        if short(path).startswith(f"{root}/") and short(target).startswith(f"{root}/")
    ]


def part(path: Path) -> str:
    return path.relative_to(ROOT).parts[1].removesuffix(".py")


def test_layers_of_vatt() -> None:
    floor = {name: number for number, names in enumerate(LAYERS) for name in names}
    wrong = []
    for file, here, target, there in arrows("vatt"):
        if here == "__init__" or here == there or (here == "recipes" and there in COMMANDS):
            continue  # the package's face, and the command that resolves the flags of other commands
        if (here, there) == ("__main__", "__init__"):
            continue  # the console command tells the version
        if there == "__init__" or floor[there] >= floor[here] or (here, there) == ("data", "ops"):
            wrong.append(f"{file} imports {target}")
    assert wrong == []


def test_every_part_of_vatt_has_a_layer() -> None:
    parts = {part(path) for path in sources("vatt")} - {"__init__"}
    assert parts == {name for names in LAYERS for name in names}


def importers(folder: str, name: str) -> list[str]:
    names = {path: imported(path) for path in sources(folder)}
    return [short(p) for p, found in names.items() if any(n == name or n.startswith(f"{name}.") for n in found)]


def test_only_ops_imports_the_kernels() -> None:
    assert importers("vatt", "vatt_kernels") == ["vatt/ops.py"]


def test_kernels_know_nothing_of_vatt() -> None:
    assert importers("kernels", "vatt") == []


def test_nothing_imports_bench_or_tests() -> None:
    wrong = [
        f"{short(path)} imports {short(target)}"
        for path, targets in graph().items()
        for target in targets
        if short(target).split("/")[0] in ("bench", "tests") and short(path).split("/")[0] in ("vatt", "kernels")
    ]
    assert wrong == []


def test_imports_by_name_are_known() -> None:
    """`import_module` hides an arrow from the tests above, so it stands where there is a reason, and each name is real.

    Methods of the models that take files are on higher floors, which import the models: such a method imports its floor
    when it is called. `vatt` itself imports a public name when it is first used, figures look for other packages, and
    `vatt.embed`, a module that can be called, is pickled as its own name.
    """
    ways = {"importlib", "importlib.import_module"}
    users = [short(path) for path in sources("vatt") if ways & imported(path)]
    assert users == ["vatt/__init__.py", "vatt/embed.py", "vatt/figures/output.py", "vatt/model/vatt.py"]
    called: dict[str, set[str]] = {}
    for function in ast.walk(ast.parse((ROOT / "vatt/model/vatt.py").read_text(encoding="utf-8"))):
        if not isinstance(function, ast.FunctionDef):
            continue
        names = {}  # of variables that hold a module
        for node in ast.walk(function):
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                names[node.targets[0].id] = node.value
            if isinstance(node, ast.Attribute):
                value = names.get(node.value.id) if isinstance(node.value, ast.Name) else node.value
                if isinstance(value, ast.Call) and getattr(value.func, "id", "") == "_floor_above":
                    called.setdefault(ast.literal_eval(value.args[0]), set()).add(node.attr)
    assert {"checkpoints.hub", "inference.one_file"} <= set(called)
    for module, functions in called.items():
        assert module.split(".")[0] in ("checkpoints", "inference"), f"{module} is no floor above the models"
        body = ast.parse(modules()[f"vatt.{module}"].read_text(encoding="utf-8")).body
        assert functions <= {node.name for node in body if isinstance(node, ast.FunctionDef)}, module


def test_libraries_do_not_print() -> None:
    """They log, and a command's `exit_code` prints it. Commands print, and functions that take their arguments."""
    # Printers, a process's answers, and the address of a server of the command.
    may = {"vatt/runtime/cli.py", "vatt/runtime/faults.py", "vatt/data/look.py", "vatt/inference/search/server.py"}
    for path in sources("vatt"):
        if path.parent == ROOT / "vatt" or path.stem == "__main__" or short(path) in may:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for function in tree.body:
            given = {arg.arg for arg in function.args.args} if isinstance(function, ast.FunctionDef) else set()
            prints = any(getattr(getattr(n, "func", None), "id", "") == "print" for n in ast.walk(function))
            assert not prints or given & {"args", "argv"}, f"{short(path)}:{function.lineno} prints"


def test_no_circles() -> None:
    done: set[Path] = set()

    def visit(path: Path, way: tuple[Path, ...]) -> None:
        assert path not in way, " -> ".join(map(short, (*way[way.index(path) :], path)))
        if path not in done:
            for target in sorted(graph()[path]):
                visit(target, (*way, path))
            done.add(path)

    for path in graph():
        visit(path, ())


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("vatt", ("torch", "vatt.config", "vatt_kernels")),
        ("vatt.train", ("vatt.official", "vatt.data.sources", "vatt.data.transcode", "vatt.data.dali", "vatt.figures")),
        ("vatt_kernels", ("triton", "vatt")),
    ],
)
def test_importing_loads_no_more_than_is_needed(module: str, absent: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = [name for name in done.stdout.split() if any(name == a or name.startswith(f"{a}.") for a in absent)]
    assert loaded == []


def test_layers_of_the_kernels() -> None:
    floors = [
        KERNEL_GROUND,
        ("dropped_attention",),
        ("portable",),
        ("dispatch",),
        OPERATIONS,
        ("catalog", "__init__"),
        ("aot",),
    ]
    floor = {name: number for number, names in enumerate(floors) for name in names}
    wrong = []
    for file, here, target, there in arrows("kernels"):
        among_ground = {here, there} <= set(KERNEL_GROUND)
        segment_sum = (here, there) == ("projection", "droptoken")  # the gradient of its positions is that sum
        if here != there and floor[there] >= floor[here] and not among_ground and not segment_sum:
            wrong.append(f"{file} imports {target}")
    assert wrong == []


def test_layers_of_the_benchmarks() -> None:
    floor = {name: number for number, names in enumerate(BENCH_LAYERS) for name in names}
    commands = {part(path) for path in sources("bench")} - set(floor)
    wrong = []
    for file, here, target, there in arrows("bench"):
        if here == there or here == "draw_reports":
            continue
        if there in commands or floor[there] >= floor.get(here, len(BENCH_LAYERS)):
            wrong.append(f"{file} imports {target}")
    assert wrong == []


@pytest.mark.parametrize("folder", ["vatt", "bench"])
def test_a_file_at_the_top_is_a_command(folder: str) -> None:
    for path in sorted((ROOT / folder).glob("*.py")):
        functions = {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}
        assert ("main" in functions) != (path.stem in NOT_COMMANDS[folder]), short(path)


def test_every_command_ends_with_the_one_main() -> None:
    """`exit_code` alone turns errors into messages and codes, so that no command forgets one."""
    for path in sources("vatt"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        (main,) = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "main"] or [None]
        if main is None or short(path) in ("vatt/__main__.py", "vatt/data/look.py"):
            continue  # no command, or one that only hands over, prints, or is a process of data.check
        called = {node.func.id for node in ast.walk(main) if isinstance(node, ast.Call) and hasattr(node.func, "id")}
        assert {"exit_code", "run_command"} & called, f"{short(path)}: main() does not end with runtime/cli.exit_code"
        assert not any(isinstance(node, ast.Try) for node in main.body), f"{short(path)}: main() catches errors itself"


def test_private_names_stay_in_their_file() -> None:
    wrong = [
        f"{short(path)} takes {name}"
        for path in sources("vatt", "kernels", "bench")
        for name in imported(path)
        if re.match(r"_[a-zA-Z]", name.rpartition(".")[2])
    ]
    assert wrong == []


def test_benchmarks_import_the_harness_before_torch() -> None:
    """It imports vatt, which sets OMP_WAIT_POLICY: OpenMP reads it when torch is imported, and never again."""
    for path in [*(ROOT / "bench").glob("*.py"), ROOT / "bench" / "harness" / "report.py"]:
        names = []
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
        roots = [name.split(".")[0] for name in names]
        first = next(root for root in roots if root not in sys.stdlib_module_names)
        own = {"harness", "vatt", *(command.stem for command in (ROOT / "bench").glob("*.py"))}
        assert first in own or path.stem in NOT_COMMANDS["bench"], f"{short(path)} imports {first} first"


def test_optional_packages_are_imported_inside_functions_only() -> None:
    for path in sources("vatt", "kernels"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            optional = OPTIONAL & {name.split(".")[0] for name in names}
            assert not optional, f"{short(path)} imports {optional} at top level"


def test_files_and_folders_have_a_readable_size() -> None:
    """Who meets a limit makes a folder split by meaning."""
    for path in sources("vatt", "kernels", "bench", "tests"):
        statements = sum(isinstance(node, ast.stmt) for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        assert statements <= 350, f"{short(path)} has {statements} statements"
    for folder in {path.parent for path in sources("vatt", "kernels", "bench", "tests")}:
        files = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert len(files) <= (30 if folder == ROOT / "bench" else 16), f"{short(folder)} has {len(files)} files"


def test_names_are_not_lengthened_to_make_room() -> None:
    """A suffix that says "more of that file" is a folder that was not made."""
    for path in sources("vatt", "kernels", "bench"):
        assert not re.search(r"_(rows|page|read|parts)$", path.stem), short(path)


def test_the_document_has_every_file() -> None:
    """The tree in docs/ARCHITECTURE.md: two spaces deeper for a folder's content, a name and what it is for."""
    text = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
    tree = text.split("```text\n")[1].split("```")[0]
    described, way = {}, [""]
    for line in tree.splitlines():
        depth, (name, _, meaning) = (len(line) - len(line.lstrip())) // 2, line.strip().partition(" ")
        way = [*way[:depth], name]
        assert meaning.strip(), f"{name} has no description"
        if name.endswith(".py"):
            assert "".join(way) not in described, f"{''.join(way)} is listed twice"
            described["".join(way)] = meaning
    files = {short(path) for path in sources("vatt", "kernels", "bench", "tests")}
    assert set(described) == {file for file in files if not file.endswith("/__init__.py") or file.count("/") == 1}
