"""Settings every test shares. OMP_WAIT_POLICY is set before torch is imported: spinning threads crawl on 2 cores."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import gc
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from helpers.interpreter.needs import interpreter_fails, quicken
from helpers.processes import end_all

# Python's collector looks through all that PyTorch's modules are made of, again and again: a tenth of the tests' time.
gc.set_threshold(20_000, 50, 100)
SHARED = Path(os.environ.get("VATT_SHARED", Path(__file__).resolve().parents[2] / "shared"))
LONGEST = (
    *("test_triton_interpreter.py", "test_promises.py", "test_distributed.py", "test_readme_commands.py"),
    *("test_compile.py", "test_aot.py", "test_bench.py"),
)
CACHES = ("XDG_CACHE_HOME", "HF_HOME", "TORCH_HOME", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "MPLCONFIGDIR")


@pytest.hookimpl(optionalhook=True)  # pytest-xdist is not everywhere that tests run
def pytest_xdist_auto_num_workers() -> int:
    """One more than cores (`-n auto`): a good part of the time, tests wait for programs that they began."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (cores or 1) + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest come first, so that none is at work alone when all others are done."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(LONGEST)))
    _skip_a_failing_interpreter(items)


def _skip_a_failing_interpreter(items: list[pytest.Item]) -> None:
    """With TRITON_INTERPRET=1 what would run in the interpreter says why it cannot."""
    interpreted = [
        item for item in items if item.path.name == "test_spec.py" or item.path.name.startswith("test_triton_")
    ]
    if os.environ.get("TRITON_INTERPRET") != "1" or not interpreted:
        return
    if reason := interpreter_fails():
        for item in interpreted:
            item.add_marker(pytest.mark.skip(reason=reason))
    elif find_spec("triton"):
        quicken()


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with the official model's recorded outputs (parity/) and real clips (data/); VATT_SHARED moves it."""
    if not SHARED.is_dir():
        pytest.skip(f"no reference data at {SHARED}; set VATT_SHARED to the folder that holds parity/ and data/")
    return SHARED


@pytest.fixture(scope="session", autouse=True)
def caches(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Whatever a test or a program it begins keeps for later lies in a folder of this run of the tests, or is new."""
    base = tmp_path_factory.getbasetemp()
    if hasattr(request.config, "workerinput"):  # one of several processes, below a folder of all of them
        base = base.parent
    names = {name: str(base / "caches" / name.lower()) for name in CACHES}
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("VATT_CACHE", raising=False)
        for name, folder in names.items():
            Path(folder).mkdir(parents=True, exist_ok=True)
            patch.setenv(name, folder)
        yield


@pytest.fixture(autouse=True)
def programs_end() -> Iterator[None]:
    """No program that a test began outlives it, also where the test failed or was cut off."""
    yield
    end_all()


@pytest.fixture(scope="session")
def cache(caches: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder of its own with a built-in corpus of 24 clips; VATT_CACHE names it until the session ends."""
    from vatt.data.synthetic import build_corpus

    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VATT_CACHE", str(folder))
        build_corpus(clips=24, progress=False)
        yield folder


@pytest.fixture(scope="session")
def corpus(cache: Path) -> Path:
    """The manifest of that corpus; files with clips of their own have one of this name."""
    return next(cache.rglob("manifest.csv"))
