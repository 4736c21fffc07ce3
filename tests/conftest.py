"""Settings every test shares. OMP_WAIT_POLICY is set before torch is imported: spinning threads crawl on 2 cores."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from collections.abc import Iterator
from pathlib import Path

import pytest
from interpreted import interpreter_fails

SHARED = Path(os.environ.get("VATT_SHARED", Path(__file__).resolve().parents[2] / "shared"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With TRITON_INTERPRET=1 what would run in the interpreter says why it cannot."""
    if os.environ.get("TRITON_INTERPRET") == "1" and (reason := interpreter_fails()):
        for item in items:
            if item.path.name == "test_spec.py" or item.path.name.startswith("test_triton_"):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with the official model's recorded outputs (parity/) and real clips (data/); VATT_SHARED moves it."""
    if not SHARED.is_dir():
        pytest.skip(f"no reference data at {SHARED}; set VATT_SHARED to the folder that holds parity/ and data/")
    return SHARED


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder of its own with a built-in corpus of 24 clips; VATT_CACHE names it until the session ends."""
    from vatt.data.synthetic import build_corpus

    folder = tmp_path_factory.mktemp("cache")
    before = os.environ.get("VATT_CACHE")
    os.environ["VATT_CACHE"] = str(folder)
    build_corpus(clips=24, progress=False)
    yield folder
    if before is None:
        del os.environ["VATT_CACHE"]
    else:
        os.environ["VATT_CACHE"] = before


@pytest.fixture(scope="session")
def corpus(cache: Path) -> Path:
    """The manifest of that corpus; files with clips of their own have one of this name."""
    return next(cache.rglob("manifest.csv"))
