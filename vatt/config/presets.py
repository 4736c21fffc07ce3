"""Presets: a function each, returning a frozen `Config`. Sizes are Table 7 of the paper.

    Small 6 layers, width 512 | Base 12, 768 | Medium 12, 1024 | Large 24, 1024

A modality-specific name spells video, audio and text size: MBS = Medium video, Base audio, Small text.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import replace

from ..errors import ConfigError
from .data import AugmentConfig, DataConfig
from .model import AudioConfig, DropConfig, EncoderConfig, HeadConfig, ModelConfig, TextConfig, VideoConfig
from .pretraining import Config, OptimConfig

SMALL = EncoderConfig(width=512, layers=6, heads=8, mlp=2048)
BASE = EncoderConfig(width=768, layers=12, heads=12, mlp=3072)
MEDIUM = EncoderConfig(width=1024, layers=12, heads=16, mlp=4096)
LARGE = EncoderConfig(width=1024, layers=24, heads=16, mlp=4096)


def _specific(name: str, video: EncoderConfig, audio: EncoderConfig) -> Config:
    return Config(preset=name, model=ModelConfig(video_encoder=video, audio_encoder=audio, text_encoder=SMALL))


def sss() -> Config:
    """Small video, Small audio, Small text; no official checkpoint exists. Expected result: unknown, never trained.

    `python -m vatt.train --fused --preset sss --data clips.csv`
    """
    return _specific("sss", SMALL, SMALL)


def bbs() -> Config:
    """VATT-BBS: Base video, Base audio, Small text (213.5 M parameters). Expected result: the paper gives none.

    `python -m vatt.train --fused --preset bbs --data clips.csv`
    """
    return _specific("bbs", BASE, BASE)


def mbs() -> Config:
    """VATT-MBS: Medium video, Base audio, Small text (280.6 M parameters); the release's default.

    `python -m vatt.train --fused --preset mbs --data clips.csv --batch-size 2048`
    Paper after 500k steps: zero-shot R@10 45.5 on YouCook2 and 29.7 on MSR-VTT (Table 4).
    """
    return _specific("mbs", MEDIUM, BASE)


def lbs() -> Config:
    """VATT-LBS: Large video, Base audio, Small text (431.7 M parameters). Expected result: see fine-tuning, Table 1.

    `python -m vatt.train --fused --preset lbs --data clips.csv`
    """
    return _specific("lbs", LARGE, BASE)


def ma_medium() -> Config:
    """VATT-MA-Medium: one Medium encoder shared by all modalities (182.7 M parameters).

    `python -m vatt.train --fused --preset ma_medium --data clips.csv --batch-size 2048`
    Paper after 500k steps: zero-shot R@10 40.6 on YouCook2 and 23.6 on MSR-VTT (Table 4).
    """
    return Config(preset="ma_medium", model=ModelConfig(kind="agnostic", shared_encoder=MEDIUM))


def tiny() -> Config:
    """Return a three-tower model for two CPU cores: 16 frames of 64 x 64 at 10 fps, 1.6 s of 8 kHz sound.

    `python -m vatt.train --fused` (or `make train`): trains on the built-in corpus in minutes and ends with held-out
    retrieval among 100 clips; reports/cpu-2core/tiny_training.md holds the result of three seeds.

    Colour and left-right are what its captions are about, so it neither flips nor shifts hues. The word table is
    trained: there is no word2vec for a vocabulary built from captions.
    """
    encoder = EncoderConfig(width=128, layers=4, heads=4, head_width=32, mlp=256, dropout=0.0)
    return Config(
        preset="tiny",
        model=ModelConfig(
            video=VideoConfig(frames=16, size=64, fps=10.0, patch=(4, 16, 16)),
            audio=AudioConfig(samples=12_800, rate=8_000, patch=128),
            text=TextConfig(words=16, captions=5, vocabulary=1_024, embedding=64, freeze_embedding=False),
            video_encoder=encoder,
            audio_encoder=encoder,
            text_encoder=replace(encoder, width=64, layers=2, heads=2),
            shared_encoder=encoder,
            post_width=128,
            head=HeadConfig(video_audio=128, video_text=128),
            drop=DropConfig(rate=0.5),
        ),
        data=DataConfig(
            batch_size=32,
            workers=1,
            cache_gb=1.0,
            augment=AugmentConfig(flip=False, colour_jitter=0.0),
        ),
        optim=OptimConfig(rate=1e-3, final_rate=1e-5, warmup=50, clip=1.0),
        steps=600,
        save_every=200,
        eval_windows=2,
    )


def tiny_ma() -> Config:
    """Return the tiny preset with one shared encoder (modality-agnostic).

    `python -m vatt.train --fused --preset tiny_ma`.
    """
    config = tiny()
    return replace(config, preset="tiny_ma", model=replace(config.model, kind="agnostic"))


PRESETS: dict[str, Callable[[], Config]] = {f.__name__: f for f in (tiny, tiny_ma, sss, bbs, mbs, lbs, ma_medium)}


def preset(name: str) -> Config:
    """Return the named preset. Raises `ConfigError` with the nearest name for an unknown one."""
    if name not in PRESETS:
        close = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(PRESETS)}"
        raise ConfigError(f"unknown preset {name!r}; {hint}")
    return PRESETS[name]()
