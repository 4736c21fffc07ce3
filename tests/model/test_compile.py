"""torch.compile over models of plain PyTorch operations; of the kernels: tests/kernels/test_triton_library.py."""

from __future__ import annotations

from helpers.compiled import assert_one_graph, model_config

from vatt.ops import choose


def test_a_whole_model_is_one_graph() -> None:
    assert_one_graph(model_config("agnostic", "sample"), choose(True, "cpu"), "cpu", "eager")
