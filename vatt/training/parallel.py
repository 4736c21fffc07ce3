"""A model on several processes: DDP (a whole copy each) or FSDP2 (a part each), and checkpoints of sharded ones.

PyTorch does the work; here is which module is wrapped how, and where the bytes go. Sharded checkpoints are written by
torch.distributed.checkpoint as safetensors files: another number of processes can read them, and nothing is unpickled.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from ..errors import ConfigError
from ..model.heads import BatchNorm
from ..model.transformer import Encoder
from ..ops import has_triton
from ..runtime.distributed import World

# PyTorch 2.13 renamed it, and warns of the old name.
_SEND_BUFFERS = (
    "forward_sync_buffers"
    if "forward_sync_buffers" in signature(DistributedDataParallel).parameters
    else "broadcast_buffers"
)


def parallelize(
    model: nn.Module,
    parts: Sequence[nn.Module],
    world: World,
    kind: str,
    *,
    recompute: bool,
    compiled: bool = False,
    narrow: bool = False,
) -> list[nn.Module]:
    """Makes `parts` of `model`, each a module whose forward is called once a step, work on all of `world`.

    Returns what to call in place of each part. "fsdp" replaces the parameters of `model` by `DTensor`s, so it comes
    before the optimizer. Batch norm sees the batches of all ranks. `recompute`: activation checkpointing, a layer at a
    time. `compiled`: torch.compile of each layer; equal layers share their graphs, and seeds of steps are tensors.
    `narrow`: see `Encoder`.
    """
    if compiled:
        check_compiler(next(model.parameters()).device)
    for module in model.modules():
        if isinstance(module, BatchNorm) and world.size > 1:
            module.total, module.ranks = world.all_reduce_sum, world.size
        if isinstance(module, Encoder):
            module.recompute, module.narrow = recompute, narrow
            if compiled:
                for layer in module.layers:
                    layer.compile()
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
    return [
        DistributedDataParallel(_FixedBucketOrder(part), **options) if any(map(trains, part.parameters())) else part
        for part in parts
    ]


def trains(parameter: nn.Parameter) -> bool:
    return parameter.requires_grad


def check_compiler(device: torch.device) -> None:
    """Refuse to compile where what TorchInductor needs is missing; it would say so in the first step.

    Raises:
        ConfigError: there is no Triton for a GPU, or no C++ compiler for a CPU.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    if device.type == "cuda" and not has_triton():
        raise ConfigError("--compile: on CUDA it needs the package triton; install it, or run without --compile")
    if device.type == "cpu":
        try:
            get_cpp_compiler()
        except (InvalidCxxCompiler, RuntimeError) as error:
            raise ConfigError(
                "--compile: on a CPU it needs a C++ compiler such as g++; install one (CXX names it), or run without "
                "--compile"
            ) from error


class _FixedBucketOrder(nn.Module):
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
def no_gradient_sync(part: nn.Module) -> Iterator[None]:
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


def full_tensor(x: Tensor) -> Tensor:
    """A number that may be spread over ranks, as an ordinary tensor."""
    return x.full_tensor() if isinstance(x, DTensor) else x
