"""Settings every test shares. OMP_WAIT_POLICY is set before torch is imported: spinning threads crawl on 2 cores."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from pathlib import Path

import pytest

SHARED = Path(os.environ.get("VATT_SHARED", Path(__file__).resolve().parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with the official model's recorded outputs (parity/) and real clips (data/); VATT_SHARED moves it."""
    if not SHARED.is_dir():
        pytest.skip(f"no reference data at {SHARED}; set VATT_SHARED to the folder that holds parity/ and data/")
    return SHARED
