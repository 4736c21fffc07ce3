"""A model on several processes: DDP (a whole copy each) or FSDP2 (a part each), and checkpoints of sharded ones.

PyTorch does the work; here is which module is wrapped how, and where the bytes go. Sharded checkpoints are written by
torch.distributed.checkpoint as safetensors files: another number of processes can read them, and nothing is unpickled.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from .distributed import World
from .model.heads import BatchNorm
from .model.transformer import Encoder

KINDS = ("ddp", "fsdp")
# PyTorch 2.13 renamed it, and warns of the old name.
_SEND_BUFFERS = ("forward_sync_buffers" if "forward_sync_buffers" in signature(DistributedDataParallel).parameters
                 else "broadcast_buffers")  # fmt: skip


def prepare(model: nn.Module, parts: Sequence[nn.Module], world: World, kind: str, *,
            recompute: bool) -> list[nn.Module]:  # fmt: skip
    """Makes `parts` of `model`, each a module whose forward is called once a step, work on all of `world`.

    Returns what to call in place of each part. "fsdp" replaces the parameters of `model` by `DTensor`s, so it comes
    before the optimizer. Batch norm sees the batches of all ranks. `recompute`: activation checkpointing, a layer at a
    time.
    """
    for module in model.modules():
        if isinstance(module, BatchNorm) and world.size > 1:
            module.total, module.ranks = world.total, world.size
        if isinstance(module, Encoder):
            module.recompute = recompute
    if world.size == 1:
        return list(parts)
    device = next(model.parameters()).device
    if kind == "fsdp":
        mesh = init_device_mesh(device.type, (world.size,))
        for part in parts:
            for module in part.modules():
                if isinstance(module, Encoder):
                    for layer in module.layers:
                        fully_shard(layer, mesh=mesh)
            fully_shard(part, mesh=mesh)
        return list(parts)
    # Batch norm's statistics are the same on all ranks as it is: no buffers are sent.
    options: dict[str, Any] = {"gradient_as_bucket_view": True, "find_unused_parameters": True, _SEND_BUFFERS: False}
    return [DistributedDataParallel(_InPlace(part), **options) for part in parts]


class _InPlace(nn.Module):
    """Keeps DDP from arranging gradients anew after its first step.

    From three ranks on the order of a sum depends on an element's place, so that a resumed run, which begins with the
    first arrangement, would not repeat the whole one to the bit. DDP leaves them where they are if it has to look for
    unused parameters; and says that it need not, unless there is one.
    """

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part
        self.unused = nn.Parameter(torch.zeros(1, device=next(part.parameters()).device))

    def forward(self, *arguments: Any, **options: Any) -> Any:
        return self.part(*arguments, **options)


@contextlib.contextmanager
def unsynchronised(part: nn.Module) -> Iterator[None]:
    """Backward passes inside add up gradients on each rank alone."""
    if isinstance(part, DistributedDataParallel):
        with part.no_sync():
            yield
    elif isinstance(part, FSDPModule):
        part.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            part.set_requires_gradient_sync(True)
    else:
        yield


def whole(x: Tensor) -> Tensor:
    """A number that may be spread over ranks, as an ordinary tensor."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def is_sharded(model: nn.Module) -> bool:
    return any(isinstance(p, DTensor) for p in model.parameters())


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """All tensors of a sharded model, on the CPU of rank 0; the other ranks take part and get nothing."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state: dict[str, Any] = get_model_state_dict(model, options=options)
    return state


def save_shards(folder: Path, model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """Writes this rank's part of weights, statistics and moments; all ranks call it. Returns what is not sharded."""
    tensors, rest = _tensors(model, optimizer)
    dcp.save(tensors, storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
    return rest


def load_shards(folder: Path, model: nn.Module, optimizer: Optimizer, rest: dict[str, Any]) -> None:
    """Takes up what `save_shards` wrote and returned, on any number of ranks."""
    names = dict(model.named_parameters())
    for name, state in rest["state"].items():
        moments = {key: torch.zeros_like(names[name]) if value is None else value for key, value in state.items()}
        optimizer.state[names[name]] = moments
    tensors, _ = _tensors(model, optimizer)
    dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)))
    # The optimizer's own loading derives what it keeps outside of its state.
    optimizer.load_state_dict(optimizer.state_dict())


def _tensors(model: nn.Module, optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by name, sharded ones as they are; and the optimizer's state with None in place of those."""
    tensors: dict[str, Tensor] = {f"model.{name}": value for name, value in model.state_dict().items()}
    rest: dict[str, Any] = {}
    for name, parameter in model.named_parameters():
        rest[name] = {}
        for key, value in optimizer.state.get(parameter, {}).items():
            like = isinstance(value, Tensor) and value.shape == parameter.shape
            rest[name][key] = None if like else value
            if like:
                tensors[f"optimizer.{key}.{name}"] = value
    return tensors, {"state": {name: state for name, state in rest.items() if state}}
