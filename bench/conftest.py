"""Plain `pytest` runs each benchmark once, small and untimed, to see that it works; `--benchmark-only` measures."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch is imported

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if config.pluginmanager.hasplugin("benchmark") and not config.option.benchmark_only:
        config.option.benchmark_disable = True  # not in addopts: there it would forbid --benchmark-only
