"""A small model's training step as one graph of torch.compile, for the implementation that the process can run."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from helpers.small_model import small_config
from vatt.config.model import DropConfig, ModelConfig
from vatt.config.pretraining import LossConfig
from vatt.model.losses import pretraining_loss
from vatt.model.vatt import VATT
from vatt.ops import Ops


def model_config(kind: str, sampling: str) -> ModelConfig:
    """Everything on: DropToken, dropout, masks, relative bias; as few tokens as go."""
    config = small_config().model
    encoder = replace(config.video_encoder, dropout=0.1)
    return replace(
        config,
        kind=kind,
        video_encoder=encoder,
        audio_encoder=encoder,
        text_encoder=encoder,
        shared_encoder=encoder,
        post_width=24,
        drop=DropConfig(0.5, sampling),
        video=replace(config.video, frames=8, size=32),
        audio=replace(config.audio, samples=1280),
        text=replace(config.text, captions=2),
    )


def assert_one_graph(config: ModelConfig, ops: Ops, device: str, backend: str) -> None:
    """Losses and gradients of three steps equal those without compilation; a new seed does not compile again."""
    draw = torch.Generator().manual_seed(1)
    video = torch.randint(0, 256, (3, 8, 32, 32, 3), dtype=torch.uint8, generator=draw).to(device)
    audio = torch.randn(3, 1280, generator=draw).to(device)
    text = torch.randint(0, 200, (3, 2, 8), generator=draw).to(device)
    mask = torch.tensor([1.0, 0, 1], device=device)
    torch.manual_seed(0)
    model = VATT(config, ops).to(device)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # its draws are PyTorch's, and a compiler may draw in another order

    form = LossConfig()

    def step(seed: int) -> Tensor:
        loss = pretraining_loss(model(video, audio, text, seed=seed), mask, mask, form, ops).total
        assert isinstance(loss, Tensor)
        return loss

    def run(step, seed: int) -> list[Tensor]:
        model.zero_grad()
        loss = step(seed)
        loss.backward()
        return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]

    torch._dynamo.reset()
    graphs = 0
    inner = torch._dynamo.lookup_backend(backend)

    def counting(graph, inputs):
        nonlocal graphs
        graphs += 1
        return inner(graph, inputs)

    compiled = torch.compile(step, fullgraph=True, backend=counting)
    for seed in (7, 8, 9):
        for eager, graph in zip(run(step, seed), run(compiled, seed), strict=True):
            torch.testing.assert_close(graph, eager, rtol=1e-4, atol=1e-5)
    assert graphs <= 2  # one in which the seed is a constant, one in which it is a number that changes
