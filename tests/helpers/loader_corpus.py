"""Thirteen small clips, three of them broken, and what tests of the loader make of them."""

from __future__ import annotations

from pathlib import Path

import torch

from helpers.media import steady, tone_burst, write_clip
from vatt.config.data import AugmentConfig, DataConfig
from vatt.config.model import AudioConfig, ModelConfig, TextConfig, VideoConfig
from vatt.data.clip import Manifest
from vatt.data.datasets.batch import Batch
from vatt.data.datasets.training import ClipDataset
from vatt.data.manifest import read_manifest
from vatt.data.tokenizer import Tokenizer

RATE = 16_000
MODEL = ModelConfig(
    video=VideoConfig(frames=8, size=32, fps=10.0),
    audio=AudioConfig(samples=12_800, rate=RATE),
    text=TextConfig(words=4, captions=2, vocabulary=40),
)
PLAIN = AugmentConfig(scale_jitter=0.0, flip=False, colour_jitter=0.0, audio_noise=0.0)
DATA = DataConfig(batch_size=4)
GOOD = 10


def write_corpus(folder: Path) -> Manifest:
    """Ten clips of 2 s (two without sound, two without a caption) and three that cannot be used."""
    lines = ["path,caption,label"]
    for i in range(GOOD):
        sound = None if i < 2 else tone_burst(2.0, 0.1 * i, RATE)
        write_clip(folder / f"{i}.mp4", steady(2.0, 25), sound, RATE, gop=25)
        lines.append(f"{i}.mp4,{'' if 2 <= i < 4 else f'clip {i} | number {i}'},{'even' if i % 2 == 0 else ''}")
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("no video " * 50)
    data = (folder / "9.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(data[: len(data) // 2])
    lines += ["empty.mp4,,", "text.mp4,,", "cut.mp4,,"]
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    return read_manifest(folder / "manifest.csv")


def words_of(corpus: Manifest) -> Tokenizer:
    return Tokenizer.build([caption for clip in corpus for caption in clip.captions], 40)


def training(corpus: Manifest, tokenizer: Tokenizer, data: DataConfig = DATA, seed: int = 7) -> ClipDataset:
    return ClipDataset(corpus, data, MODEL, tokenizer, seed)


def same(a: Batch, b: Batch) -> bool:
    tensors = ("video", "audio", "text", "video_mask", "audio_mask", "text_mask", "label", "labels")
    return (
        all(torch.equal(getattr(a, name), getattr(b, name)) for name in tensors)
        and a.clips == b.clips
        and a.bad == b.bad
        and a.tried == b.tried
    )


def good(corpus: Manifest) -> Manifest:
    return Manifest(corpus.clips[:GOOD], corpus.root, corpus.labels)
