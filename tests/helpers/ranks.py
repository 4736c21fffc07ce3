"""Run by torchrun with any number of processes: trains for some steps in float64 and saves what it saw and became.

`torchrun --nproc-per-node=N tests/helpers/ranks.py FOLDER KIND:PARALLEL:MICRO_BATCH ...`
KIND is "specific" or "agnostic".
"""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from dataclasses import replace
from itertools import chain
from pathlib import Path

import torch

from vatt.checkpoints.sharded import full_state_dict, is_sharded
from vatt.config.model import DropConfig
from vatt.config.presets import preset
from vatt.config.pretraining import Config
from vatt.data.datasets.training import ClipDataset
from vatt.data.manifest import read_manifest
from vatt.data.tokenizer import Tokenizer
from vatt.model.vatt import VATT
from vatt.ops import choose
from vatt.runtime.distributed import World, init_world
from vatt.training.optimizers import Adam
from vatt.training.parallel import parallelize
from vatt.training.pretraining_step import train_step

STEPS, BATCH = 10, 8


def settings(kind: str, micro_batch: int, parallel: str) -> Config:
    config = preset("tiny" if kind == "specific" else "tiny_ma")
    small = replace(config.model.video_encoder, width=32, layers=2, heads=2, head_width=16, mlp=48)
    model = replace(
        config.model,
        video_encoder=small,
        audio_encoder=small,
        text_encoder=replace(small, layers=1),
        shared_encoder=small,
        post_width=24,
        drop=DropConfig(0.5, "sample"),
        video=replace(config.model.video, frames=8, size=32),
        audio=replace(config.model.audio, samples=1280),
    )
    data = replace(config.data, batch_size=BATCH, workers=0, cache_gb=0.1, max_bad_share=1.0)
    return replace(
        config,
        model=model,
        data=data,
        steps=STEPS,
        fused=True,
        micro_batch=micro_batch,
        parallel=parallel,
        optim=replace(config.optim, warmup=2),
    )


def run(folder: Path, config: Config, world: World, *, recompute: bool) -> None:
    clips = read_manifest(folder / "clips.csv")
    words = Tokenizer.build([text for clip in clips for text in clip.captions], config.model.text.vocabulary)
    torch.manual_seed(config.seed)
    ops = choose(True, "cpu")
    model = VATT(config.model, ops).double()
    parts = parallelize(model, (model.backbone, model.head), world, config.parallel, recompute=recompute)
    optimizer = Adam(model.parameters(), config.optim)
    dataset = ClipDataset(clips, config.data, config.model, words, config.seed, slots=world.batch_slice(BATCH))
    seen, records = [], []
    for step in range(STEPS):
        batch = dataset[step]
        masks = batch.video_mask.double(), batch.audio_mask.double(), batch.text_mask.double()
        batch = replace(batch, audio=batch.audio.double(), video_mask=masks[0], audio_mask=masks[1], text_mask=masks[2])
        records.append(train_step(model, optimizer, batch, config, step, nullcontext(), ops, world, parts))
        everyone = world.all_gather_object(
            (batch.clips, batch.bad, batch.audio_mask.tolist(), batch.text_mask.tolist())
        )
        seen.append([list(chain(*parts)) for parts in zip(*everyone, strict=True)])
    state = full_state_dict(model) if is_sharded(model) else model.state_dict()
    if world.is_first:
        name = f"{config.model.kind}-{config.parallel}-{world.size}-{config.micro_batch}"
        torch.save(state, folder / f"{name}.pt")
        (folder / f"{name}.json").write_text(json.dumps({"records": records, "seen": seen}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    with init_world("cpu") as joint:
        for job in sys.argv[2:]:
            kind, parallel, micro_batch = job.split(":")
            run(Path(sys.argv[1]), settings(kind, int(micro_batch), parallel), joint, recompute=micro_batch == "1")
