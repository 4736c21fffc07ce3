"""What a training step keeps for its backward, in bytes: the model's own saved tensors, counted without any memory.

The model runs forward on fake tensors (shapes and dtypes without numbers) under bfloat16 autocast, and
`saved_tensors_hooks` sees what autograd keeps. Fake tensors are CPU tensors where there is no GPU, so two operations
are put in the place of what a CPU would keep: attention as Triton runs it (q, k, v, the output and a statistic a row),
dropout as CUDA runs it (a byte an element instead of a number). RMS norms of the text encoder stay those of a CPU.

Copies of weights in bfloat16 are counted, parameters and inputs are not; nor gradients of activations, which live as
long as one layer, nor workspaces of libraries and what the allocator rounds.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef

from vatt.config.model import DropConfig, ModelConfig, kept_tokens
from vatt.model.transformer import Layer
from vatt.model.vatt import VATT
from vatt.ops import Ops


@dataclass(frozen=True)
class Activations:
    """Bytes kept for the backward of a batch: `fixed` + clips x `clip`."""

    fixed: int
    clip: int

    def of(self, clips: int) -> int:
        return self.fixed + clips * self.clip


@dataclass(frozen=True)
class _TritonAttention(Ops):
    """Portable operations, but for attention: that of Triton, past the check for a GPU."""

    def attention(self, qkv: Tensor, **options: Any) -> Tensor:
        from vatt_kernels.self_attention import triton_op as attention_triton

        scale = qkv.shape[-1] ** -0.5 if options["scale"] is None else options["scale"]
        rest: dict[str, Any] = {"cu_seqlens": None, "max_seqlen": None, "scale": scale, "one_pass": False}
        rest |= {"dropout_version": self.dropout_version}
        out: Tensor = attention_triton.attention(qkv, None, None, **(options | rest))
        return out


class _CudaDropout(nn.Module):
    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor, *_: Any) -> Tensor:  # seeds are for compiled layers
        return torch.native_dropout(x, self.p, True)[0]


def measure(model: ModelConfig) -> tuple[Activations, Activations]:
    """Return bytes kept as they are, and with activation checkpointing; text has no padding.

    With checkpointing: the inputs of all transformer layers, what lies outside of them, and of the largest layer what
    it keeps while it is computed again.

    Raises:
        ImportError: triton is not installed.
        ValueError: DropToken keeps part of a row of voxels (see `whole_rows`).
    """
    few, many = _kept(model, 2), _kept(model, 4)
    lines = [((b - a) // 2, 2 * a - b) for a, b in zip(few, many, strict=True)]
    plain, checkpointed = (Activations(fixed, clip) for clip, fixed in lines)
    return plain, checkpointed


def whole_rows(model: ModelConfig) -> ModelConfig:
    """Return `model` with shorter clips that have as many tokens as DropToken keeps, and without DropToken.

    The operations look at the values of kept indices on a CPU, and fake tensors have none.
    """
    video, audio, drop = model.video, model.audio, model.drop
    time, height, width = video.patch[0], *video.grid[1:]
    rows, rest = divmod(kept_tokens(video.tokens, drop.rate, drop.align), height * width)
    if rest:
        raise ValueError(f"drop rate {drop.rate:g} keeps {rest} voxels more than {rows} rows of {height} x {width}")
    samples = kept_tokens(audio.tokens, drop.rate, drop.align) * audio.patch
    return replace(
        model, video=replace(video, frames=rows * time), audio=replace(audio, samples=samples), drop=DropConfig(0.0)
    )


def _kept(model: ModelConfig, batch: int) -> tuple[int, int]:
    """Return bytes kept for a batch, and with checkpointing."""
    model = whole_rows(model)
    with torch.device("meta"):
        network = VATT(model, _TritonAttention("portable", "")).train()
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Dropout) and child.p:
                setattr(module, name, _CudaDropout(child.p))
    storages: dict[StorageWeakRef, tuple[Layer | None, int]] = {}
    alive: list[Tensor] = []  # a storage that is gone could lend its place to another
    inputs: dict[Layer, int] = {}
    inside: list[Layer | None] = [None]

    def enter(layer: Layer, given: tuple[Any, ...]) -> None:
        inside[0], inputs[layer] = layer, given[0].nbytes

    def leave(*_: Any) -> None:
        inside[0] = None

    def pack(x: Tensor) -> Tensor:
        alive.append(x)
        storage = x.untyped_storage()
        storages.setdefault(StorageWeakRef(storage), (inside[0], storage.nbytes()))
        return x

    for layer in network.modules():
        if isinstance(layer, Layer):
            layer.register_forward_pre_hook(enter)
            layer.register_forward_hook(leave)
    with FakeTensorMode(allow_non_fake_inputs=True):
        network.to_empty(device="cpu")
        video, text = model.video, model.text
        given = (
            torch.empty(batch, video.frames, video.size, video.size, 3, dtype=torch.uint8),
            torch.empty(batch, model.audio.samples),
            torch.empty(batch, text.captions, text.words, dtype=torch.int64),
        )
        hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x)
        with hooks, torch.autocast("cpu", dtype=torch.bfloat16), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Mismatch dtype")  # RMS norm on a CPU is not a fused one
            network(*given)
        for x in (*network.parameters(), *network.buffers(), *given):
            storages.pop(StorageWeakRef(x.untyped_storage()), None)
    of_layer: dict[Layer | None, int] = dict.fromkeys([None, *inputs], 0)
    for owner, size in storages.values():
        of_layer[owner] += size
    again = max(of_layer[layer] - size for layer, size in inputs.items())
    return sum(of_layer.values()), of_layer[None] + sum(inputs.values()) + again
