"""Communication of a pre-training step: which collectives there are, how many bytes each rank sends, how long it takes.

A collective of S bytes (the whole tensor, not a rank's part) on n ranks, g of them in a node, m = n / g nodes:

    all-gather      a rank sends (n - 1) / n S     as a ring or in two stages: to a GPU of the same place in the other
    reduce-scatter  (n - 1) / n S                  nodes (m - 1) / n S over the network, (g - 1) / g S over NVLink
    all-reduce      2 (n - 1) / n S                a reduce-scatter and an all-gather

    seconds = calls x latency + max(NVLink bytes / NVLink rate, network bytes / network rate)

as all links work at once. Latency, as NCCL's own cost model has it: a ring passes n - 1 hops, m - 1 of them between
nodes; an all-reduce goes up and down a tree of nodes, a chain within each: 2 (g - 1) and 2 log2(m) hops.

What this project sends in a step (n > 1), all in float32:

    embeddings   video-audio, video-text, audio, text and three masks of all clips, in one call: all-gather,
                 reduce-scatter of their gradients
    batch norm   sums, then sums of squared differences from the mean, at three layers: all-reduce, and again of their
                 gradients
    gradients    DDP: all-reduce of the trained parameters, in buckets, and of which of them had gradients
    parameters   FSDP2: all-gather of a layer before its forward and its backward, of the rest before its forward;
                 reduce-scatter of their gradients. The frozen word table is gathered and has no gradient

Not counted: which clips were used, whether losses are finite and signals came; this goes over gloo, between CPUs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from vatt.config.model import ModelConfig
from vatt.model.heads import BatchNorm
from vatt.model.transformer import Layer
from vatt.model.vatt import VATT

KINDS = ("embeddings", "batch norm", "gradients", "parameters")
FLOAT = 4
MASKS = 3  # numbers a clip: whether it has video, audio, text
FIRST_BUCKET, BUCKET = 2**20, 25 * 2**20  # bytes; PyTorch's DistributedDataParallel


@dataclass(frozen=True)
class Hardware:
    """What times are computed from: rates in FLOP/s and bytes/s a GPU and direction, seconds a hop.

    `flop_share`, `link_share`: what a program gets of the rates of the data sheets.
    """

    name: str = "H100 SXM"
    flops: float = 989.4e12
    memory: float = 80e9
    gpus_a_node: int = 8
    nvlink: float = 450e9
    network: float = 50e9
    call: float = 14e-6
    nvlink_hop: float = 1.9e-6
    network_hop: float = 4e-6
    nvlink_hop_tree: float = 1.25e-6
    network_hop_tree: float = 8.5e-6
    flop_share: float = 0.4
    link_share: float = 0.8


@dataclass(frozen=True)
class Collective:
    """`calls` calls of `operation` for `kind`, together of `size` bytes (whole tensors)."""

    kind: str
    operation: str
    size: int
    calls: int

    def sent(self, ranks: int) -> float:
        """Return bytes that each rank sends (and receives)."""
        return (2 if self.operation == "all-reduce" else 1) * (ranks - 1) / ranks * self.size

    def links(self, ranks: int, hardware: Hardware) -> tuple[float, float]:
        """Return the same, (over NVLink, over the network)."""
        network = self.sent(ranks) * (nodes(ranks, hardware) - 1) / (ranks - 1) if ranks > 1 else 0.0
        return self.sent(ranks) - network, network

    def latency(self, ranks: int, hardware: Hardware) -> float:
        """Return seconds of one call without any bytes."""
        if ranks == 1:
            return 0.0
        count = nodes(ranks, hardware)
        if self.operation == "all-reduce":
            hops = 2 * (ranks // count - 1) * hardware.nvlink_hop_tree
            return hardware.call + hops + 2 * math.ceil(math.log2(count)) * hardware.network_hop_tree
        return hardware.call + (ranks - count) * hardware.nvlink_hop + (count - 1) * hardware.network_hop

    def seconds(self, ranks: int, hardware: Hardware) -> float:
        nvlink, network = (x / hardware.link_share for x in self.links(ranks, hardware))
        moving = max(nvlink / hardware.nvlink, network / hardware.network)
        return self.calls * self.latency(ranks, hardware) + moving


def nodes(ranks: int, hardware: Hardware) -> int:
    return -(-ranks // hardware.gpus_a_node)


@dataclass(frozen=True)
class Sizes:
    """Parameters of a model by what is sent together. `layers`: of each transformer layer; `backbone`: its others.

    `norms`: widths of the batch norm layers; `embedding`: numbers a clip that the loss reads; `tensors`: how many
    tensors the trained parameters are.
    """

    layers: tuple[int, ...]
    backbone: int
    head: int
    frozen: int
    norms: tuple[int, ...]
    embedding: int
    tensors: int

    @property
    def trained(self) -> int:
        return sum(self.layers) + self.backbone + self.head

    @property
    def total(self) -> int:
        return self.trained + self.frozen


def sizes_of(model: ModelConfig) -> Sizes:
    """Count sizes in a model that is built without numbers (meta device)."""
    with torch.device("meta"):
        network = VATT(model)
    layers = tuple(sum(p.numel() for p in m.parameters()) for m in network.modules() if isinstance(m, Layer))
    trained = sum(p.numel() for p in network.backbone.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in network.parameters() if not p.requires_grad)
    norms = tuple(m.num_features for m in network.modules() if isinstance(m, BatchNorm))
    head = sum(p.numel() for p in network.head.parameters())
    embedding = 2 * model.head.video_audio + (1 + model.text.captions) * model.head.video_text
    tensors = sum(p.requires_grad for p in network.parameters())
    return Sizes(layers, trained - sum(layers), head, frozen, norms, embedding, tensors)


def collectives(sizes: Sizes, batch: int, ranks: int, kind: str, passes: int = 1) -> Iterator[Collective]:
    """Yield those of a step of `batch` clips (of all ranks). `kind`: "ddp" or "fsdp".

    passes: micro-batches of exact accumulation, each of which goes forward twice and backward once. FSDP2 gathers the
    layers each time, the rest once a micro-batch; everything else happens once a step.
    """
    embeddings = batch * FLOAT * (sizes.embedding + MASKS)
    yield Collective("embeddings", "all-gather", embeddings, 1)
    yield Collective("embeddings", "reduce-scatter", embeddings, 1)
    yield Collective("batch norm", "all-reduce", 4 * FLOAT * sum(sizes.norms), 4 * len(sizes.norms))
    if kind == "ddp":
        parts = [FLOAT * (sum(sizes.layers) + sizes.backbone + 1), FLOAT * (sizes.head + 1)]  # see parallel.py
        buckets = sum(1 + math.ceil(max(part - FIRST_BUCKET, 0) / BUCKET) for part in parts)
        yield Collective("gradients", "all-reduce", sum(parts), buckets)
        yield Collective("gradients", "all-reduce", FLOAT * (sizes.tensors + len(parts)), len(parts))
        return
    layers, rest = FLOAT * sum(sizes.layers), FLOAT * (sizes.backbone + sizes.frozen)
    times = 2 if passes == 1 else 3 * passes
    yield Collective("parameters", "all-gather", times * layers, times * len(sizes.layers))
    yield Collective("parameters", "all-gather", passes * rest + FLOAT * sizes.head, passes + 1)
    yield Collective("gradients", "reduce-scatter", FLOAT * sizes.trained, len(sizes.layers) + 2)
