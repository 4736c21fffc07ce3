"""What Triton's interpreter needs of the releases that are installed."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def interpreter_fails() -> str:
    """Why Triton's interpreter cannot run here, where it is the fault of the releases that are installed."""
    try:
        triton, numpy = (tuple(map(int, version(name).split(".")[:2])) for name in ("triton", "numpy"))
    except PackageNotFoundError:
        return ""
    if triton < (3, 7) and numpy >= (2, 4):
        return "triton 3.6's interpreter turns arrays into numbers as numpy 2.4 no longer does; with numpy<2.4 it works"
    return ""
