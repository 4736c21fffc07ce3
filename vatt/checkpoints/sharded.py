"""Checkpoints of models that FSDP2 shards over processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer


def is_sharded(model: nn.Module) -> bool:
    return any(isinstance(p, DTensor) for p in model.parameters())


def full_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Return all tensors of a sharded model, on the CPU of rank 0; the other ranks take part and get nothing."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state: dict[str, Any] = get_model_state_dict(model, options=options)
    return state


def save_shards(folder: Path, model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """Write this rank's part of weights, statistics and moments; all ranks call it. Returns what is not sharded."""
    tensors, rest = _tensors(model, optimizer)
    dcp.save(tensors, storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
    return rest


def load_shards(folder: Path, model: nn.Module, optimizer: Optimizer, rest: dict[str, Any]) -> None:
    """Take up what `save_shards` wrote and returned, on any number of ranks."""
    names = dict(model.named_parameters())
    for name, state in rest["state"].items():
        moments = {key: torch.zeros_like(names[name]) if value is None else value for key, value in state.items()}
        optimizer.state[names[name]] = moments
    tensors, _ = _tensors(model, optimizer)
    dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)))
    # The optimizer's own loading derives what it keeps outside of its state.
    optimizer.load_state_dict(optimizer.state_dict())


def _tensors(model: nn.Module, optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return tensors by name, sharded ones as they are; and the optimizer's state with None in place of those."""
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
