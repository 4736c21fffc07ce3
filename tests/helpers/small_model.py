"""A folder with a tiny untrained model, laid out as training leaves it, for tests of what is done with models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from vatt.config.model import EncoderConfig, TextConfig
from vatt.config.presets import tiny
from vatt.config.pretraining import Config
from vatt.model.heads import BatchNorm
from vatt.model.vatt import VATT

ENCODER = EncoderConfig(width=32, layers=1, heads=2, head_width=16, mlp=32, dropout=0.0)


def small_config() -> Config:
    config = tiny()
    text = TextConfig(words=8, captions=5, vocabulary=200, embedding=16, freeze_embedding=False)
    model = replace(config.model, video_encoder=ENCODER, audio_encoder=ENCODER, text_encoder=ENCODER, text=text)
    return replace(config, model=model, data=replace(config.data, workers=0, cache_gb=0.0), fused=True)


@torch.no_grad()
def write_model(folder: Path, corpus: Path, seed: int = 1) -> Path:
    """FOLDER/model with the words of `corpus`; moving statistics are those of its clips, so that embeddings differ."""
    from vatt.checkpoints.model_folder import write_model_folder
    from vatt.data.datasets.evaluation import EvalDataset  # PyAV, without which small_config is as good
    from vatt.data.manifest import read_manifest
    from vatt.data.tokenizer import Tokenizer

    config, manifest = small_config(), read_manifest(corpus)
    tokenizer = Tokenizer.build([caption for clip in manifest for caption in clip.captions], 200)
    torch.manual_seed(seed)
    model = VATT(config.model).eval()
    clips = EvalDataset(manifest, config.data, config.model, tokenizer, 1, len(manifest))[0].video[:, 0]
    for module in model.modules():
        if isinstance(module, BatchNorm):
            module.train().momentum = 1.0
    model.embed_video(clips)
    folder.mkdir(parents=True, exist_ok=True)
    write_model_folder(folder / "model", model.state_dict(), config, {}, tokenizer)
    return folder / "model"
