"""What a launcher allocates at the sizes of VATT, counted on tensors without memory as on a GPU of 132 processors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

pytest.importorskip("triton")

from vatt_kernels.contrastive import triton_backward as contrastive_backward_triton
from vatt_kernels.contrastive import triton_forward as contrastive_forward_triton
from vatt_kernels.contrastive import triton_op as contrastive_triton


class Peak(TorchDispatchMode):
    """The most bytes that were alive at one time of all that was allocated within."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, Tensor) and x.untyped_storage()._cdata not in given:
                storage = x.untyped_storage()
                self.alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.alive = {key: entry for key, entry in self.alive.items() if not entry[0].expired()}
        self.bytes = max(self.bytes, sum(size for _, size in self.alive.values()))
        return out


class Nothing:
    """A kernel that is launched and does nothing."""

    def __getitem__(self, grid: Any) -> Any:
        return lambda *arguments, **settings: None


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (contrastive_forward_triton, contrastive_backward_triton):
        monkeypatch.setattr(module, "processors", lambda device: 132)
        for name in [name for name in vars(module) if name.endswith("_kernel")]:
            monkeypatch.setattr(module, name, Nothing())


def test_peak_counts_what_is_alive_together() -> None:
    with Peak() as peak:
        x = torch.empty(1000, dtype=torch.float32, device="meta")
        del x
        y = torch.empty(600, dtype=torch.float32, device="meta")
        _ = y.view(2, 300)
        z = y + 1
    assert peak.bytes == 2 * 600 * 4
    del z


@pytest.mark.usefixtures("pretended")
@pytest.mark.parametrize(("clips", "total"), [(65_536, None), (65_536 // 8, 65_536)])
def test_a_loss_of_64k_clips_of_5_captions_takes_less_than_half_a_gigabyte(clips: int, total: int | None) -> None:
    """Beyond its inputs and gradients; scores would take 43 GB."""

    def vectors(count: int) -> list[Tensor]:
        shapes = ((count, 256), (count, 5, 256))
        return [torch.empty(shape, dtype=torch.bfloat16, device="meta") for shape in shapes]

    leaves = vectors(clips)
    gathered = vectors(total) if total else [None, None]
    settings = (None, None, 0.07, False)
    with Peak() as forward:
        _, *saved = contrastive_triton.contrastive_forward(*leaves, *gathered, *settings)
    grad = torch.empty(clips, dtype=torch.float32, device="meta")
    with Peak() as backward:
        gradients = contrastive_triton.contrastive_backward(
            grad, *saved, *leaves, *gathered, *settings, (True, True, total is not None, total is not None)
        )
    own = sum(x.numel() * x.element_size() for x in gradients if x is not None)
    assert own == sum(x.numel() * 2 for x in (*leaves, *gathered) if x is not None)
    assert 10_000_000 < forward.bytes < 0.5e9
    assert backward.bytes - own < 0.5e9
