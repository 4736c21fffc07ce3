"""The scaling page: bytes are those of real models and of what two processes send, times follow from them."""

from __future__ import annotations

import json
import multiprocessing
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.report import load

import pytest
import scaling
import torch
import torch.distributed as dist
from accounting import activations
from accounting.communication import Collective, Hardware, collectives, sizes_of
from helpers.small_model import ENCODER, small_config
from pages import scaling as scaling_page
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vatt.config.model import DropConfig
from vatt.config.presets import preset
from vatt.config.pretraining import Config
from vatt.data.datasets.batch import Batch
from vatt.model.heads import Embeddings
from vatt.model.vatt import VATT
from vatt.ops import choose
from vatt.runtime.distributed import World
from vatt.training.optimizers import Adam
from vatt.training.parallel import parallelize
from vatt.training.pretraining_step import train_step

CLIPS = 4  # of a rank
STEPS = [(kind, passes) for kind in ("ddp", "fsdp") for passes in (1, 2)]
# Trained parameters of the official models (Keras' count).
OFFICIAL = {"bbs": 193_877_292, "mbs": 260_905_772, "lbs": 412_060_460}


@pytest.mark.parametrize("name", OFFICIAL)
def test_gradients_are_those_of_the_official_models(name: str) -> None:
    sizes = sizes_of(preset(name).model)
    assert sizes.trained == OFFICIAL[name]
    gradients, _ = (c for c in collectives(sizes, 2048, 8, "ddp") if c.kind == "gradients")
    assert gradients.size == 4 * (OFFICIAL[name] + 2)  # and one of each part that nothing uses
    assert sizes.embedding * 4 == 10_240  # bytes a clip: 512 + 256 of video, 512 of audio, 5 x 256 of text


def test_links_carry_what_is_sent() -> None:
    hardware = Hardware()
    one = Collective("gradients", "all-reduce", 1000, 1)
    assert one.sent(2) == 1000  # a half away, a half back
    for ranks in (1, 2, 8, 16, 1024):
        for operation in ("all-gather", "reduce-scatter", "all-reduce"):
            part = replace(one, operation=operation)
            assert sum(part.links(ranks, hardware)) == pytest.approx(part.sent(ranks))
            assert (part.links(ranks, hardware)[1] > 0) == (ranks > 8)
    # 128 nodes: of an all-gather, 7/8 comes from the node, and each GPU fetches 1/8 of the other nodes' from outside.
    nvlink, network = replace(one, operation="all-gather").links(1024, hardware)
    assert network == pytest.approx(1000 / 8 * 127 / 128)
    assert nvlink == pytest.approx(1000 * 7 / 8)


def noise(config: Config, rank: int) -> Batch:
    """A rank's clips."""
    video, audio, text = config.model.video, config.model.audio, config.model.text
    generator, there, nothing = torch.Generator().manual_seed(rank), torch.ones(CLIPS), torch.zeros(0)
    clip = (CLIPS, video.frames, video.size, video.size, 3)
    return Batch(
        torch.randint(0, 256, clip, dtype=torch.uint8, generator=generator),
        torch.randn(CLIPS, audio.samples, generator=generator),
        torch.randint(1, text.vocabulary, (CLIPS, text.captions, text.words), generator=generator),
        there,
        there,
        there,
        nothing,
        nothing,
        [],
        [],
        [],
        0.0,
        0.0,
    )


# c10d operation -> what it is, and which argument holds the whole tensor, or all its parts.
PLACES = {
    "c10d::_allgather_base_": ("all-gather", 0),
    "c10d::allgather_": ("all-gather", 0),
    "c10d::_reduce_scatter_base_": ("reduce-scatter", 1),
    "c10d::reduce_scatter_": ("reduce-scatter", 1),
    "c10d::allreduce_": ("all-reduce", 0),
    "c10d::broadcast_": ("broadcast", 0),
}


class Sent(TorchDispatchMode):
    """Bytes (of whole tensors) and calls of the process group's collectives; numbers sent alone do not count."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        operation, place = PLACES.get(func._schema.name, ("", 0))
        if operation:
            parts = tree_leaves(args[place])
            if sum(x.numel() for x in parts) > 3:
                self.counts += Counter({operation: sum(x.nbytes for x in parts), f"{operation} calls": 1})
        return func(*args, **(kwargs or {}))


def send(rank: int, folder: str) -> None:
    """A process: a training step with DDP and FSDP2, whole and in two micro-batches. Writes what it sent."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    counts = {}
    for kind, passes in STEPS:
        c = replace(small_config(), micro_batch=0 if passes == 1 else CLIPS // passes)
        torch.manual_seed(1)
        model, ops = VATT(c.model).train(), choose(True, "cpu")
        world = World(rank, 2, rank)
        parts = parallelize(model, (model.backbone, model.head), world, kind, recompute=False)
        optimizer = Adam(model.parameters(), c.optim)
        with Sent() as sent:
            train_step(model, optimizer, noise(c, rank), c, 0, nullcontext(), ops, world, parts)
        counts[f"{kind} {passes}"] = sent.counts
    if rank == 0:
        Path(folder, "counts.json").write_text(json.dumps(counts))
    dist.destroy_process_group()


def test_two_processes_send_what_the_formulas_say(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=send, args=(rank, str(tmp_path))) for rank in range(2)]
    for process in ranks:
        process.start()
    try:
        for process in ranks:
            process.join()
            assert process.exitcode == 0
    finally:
        for process in ranks:  # one waits for another that has failed
            process.kill()
    counts = json.loads((tmp_path / "counts.json").read_text())
    sizes = sizes_of(small_config().model)
    for kind, passes in STEPS:
        wanted: Counter[str] = Counter()
        for part in collectives(sizes, 2 * CLIPS, 2, kind, passes):
            wanted += Counter({part.operation: part.size, f"{part.operation} calls": part.calls})
        assert counts[f"{kind} {passes}"] == wanted, (kind, passes)


def test_embeddings_have_the_counted_width() -> None:
    model = small_config().model
    head = VATT(model).head
    pooled = (
        torch.randn(2, ENCODER.width),
        torch.randn(2, ENCODER.width),
        torch.randn(2, model.text.captions, ENCODER.width),
    )
    to_audio, to_text = head.embed_video(pooled[0])
    made = Embeddings(to_audio, to_text, head.audio(pooled[1]), head.text(pooled[2]))
    assert sum(x.numel() for x in made) == 2 * sizes_of(model).embedding


def test_activations_grow_with_layers_and_checkpointing_keeps_their_inputs() -> None:
    pytest.importorskip("triton")
    small = replace(small_config().model, drop=DropConfig(0.5))
    encoder = replace(ENCODER, dropout=0.1)
    models = (replace(small, video_encoder=replace(encoder, layers=layers)) for layers in (2, 4))
    (few, few_kept), (many, many_kept) = (activations.measure(model) for model in models)
    # By hand, for a token of width 32 (MLP 32, 2 heads): float32 inputs of two norms and their statistics; in bfloat16
    # these norms' outputs, q, k, v, attention's output (with a float32 statistic a head) and the MLP before and after
    # GELU; a byte for each of three dropouts.
    token = 2 * (4 * 32 + 8) + 2 * (2 * 32) + 2 * 3 * 32 + 2 * 32 + 4 * 2 + 2 * (2 * 32) + 3 * 32
    assert (many.clip - few.clip) / 2 == 33 * token
    assert (many.fixed - few.fixed) / 2 == 2 * (4 * 32 * 32 + 2 * 32 * 32) + 8  # weights in bfloat16, and a seed
    assert (many_kept.clip - few_kept.clip) / 2 == 33 * 32 * 4
    assert (many_kept.fixed, many_kept.clip < many.clip) == (few_kept.fixed, True)
    with pytest.raises(ValueError, match="more than 1 rows"):
        activations.measure(replace(small, drop=DropConfig(0.6)))


def test_the_page_draws_and_its_numbers_add_up(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    assert scaling.main(["--quick", "--out", str(tmp_path)]) == 0
    path = next(tmp_path.glob("*/scaling.json"))
    report = load(path)
    assert report.gate["green"] is True
    assert path.with_suffix(".png").stat().st_size > 10_000
    text = path.with_suffix(".md").read_text()
    assert "Nothing here was measured on GPUs" in text
    assert "data sheet" in text
    for row in scaling_page.steps_of(report):
        seconds = row["compute_seconds"] + sum(row["seconds"].values())
        assert row["step_seconds"] == pytest.approx(seconds, rel=1e-5)
        assert row["step_seconds_overlapped"] <= row["step_seconds"]
        assert sum(row["memory"].values()) <= 0.9 * 80e9
        assert row["clips"] * row["gpus"] == row["batch"]
        assert row["micro_batch"] * row["passes"] >= row["clips"]
    few, many = (row["efficiency"] for row in scaling_page.steps_of(report, parallel="ddp", batch=2048)[::2])
    assert few > many
