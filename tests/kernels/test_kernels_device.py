"""What the launchers ask of a GPU, with a pretended one: every release of Triton in range must know how to say it."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from vatt_kernels import device

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
COLUMNS = {80: (80,), 90: (90, 942), 100: (100,)}
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """Facts are asked for once a process."""
    yield
    device.processors.cache_clear()
    device.shared_memory.cache_clear()


@needs_triton
def test_shared_memory_is_what_triton_holds_a_launch_against(monkeypatch: pytest.MonkeyPatch) -> None:
    import triton
    from triton.runtime import driver

    known = {0: {"max_shared_mem": 232_448}}
    monkeypatch.setattr(driver, "_active", SimpleNamespace(utils=SimpleNamespace(get_device_properties=known.get)))
    assert device.shared_memory(CUDA) == 232_448
    source = Path(triton.__file__).parent / "backends" / "nvidia" / "driver.c"  # who answers on a GPU
    assert '"max_shared_mem"' in source.read_text()


def test_the_interpreter_is_one_processor_without_limits() -> None:
    assert (device.processors(CPU), device.architecture(COLUMNS, CPU)) == (1, 90)
    assert device.shared_memory(CPU) > 2**30


@pytest.mark.parametrize(
    ("capability", "hip", "expected"),
    [
        ((8, 0), None, 80),
        ((8, 9), None, 80),
        ((9, 0), None, 90),
        ((10, 0), None, 100),
        ((12, 0), None, 80),
        ((9, 4), "6.4", 90),
    ],
)
def test_which_tiles_a_gpu_takes(
    capability: tuple[int, int], hip: str | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    assert device.architecture(COLUMNS, CUDA) == expected


def test_processors_are_those_of_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(multi_processor_count=132))
    assert device.processors(CUDA) == 132
