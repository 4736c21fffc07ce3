"""One file and a finished model: what `model.embed`, `model.predict` and `model.rank_texts` do."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..config.run import RunConfig
from ..data.clip import Clip, Manifest
from ..data.datasets.classification import ViewDataset
from ..data.decoding.container import BadClip, probe
from ..data.tokenizer import VocabularyError
from ..errors import ConfigError, DataError
from ..model.vatt import VATT, Classifier
from .read_clip import read_clip


@torch.no_grad()
def embed_sentences(model: VATT, texts: str | Sequence[str]) -> Tensor:
    """Return [256] of a sentence or [n, 256] of several. Raises `ConfigError`, `VocabularyError`, TypeError."""
    sentences = [texts] if isinstance(texts, str) else list(texts)
    if not sentences or not all(isinstance(text, str) for text in sentences):
        raise TypeError("embed_text: sentences, a str or several, or word ids, a torch.Tensor [clips, captions, words]")
    if model.tokenizer is None:
        holder = model.folder or "this model"
        raise VocabularyError(f"{holder} has no word list, so it cannot read text; set model.tokenizer")
    ids = np.stack([model.tokenizer.encode(text, model.settings.model.text.words) for text in sentences])
    for text, row in zip(sentences, ids, strict=True):
        words = model.tokenizer.split(text)
        if not row.any() or not any(word in model.tokenizer.ids for word in words):
            raise ConfigError(f"{text!r} has no word that the model knows; it knows {len(model.tokenizer)} words")
    device = next(model.parameters()).device
    embedded = model.embed_text(torch.from_numpy(ids)[None].to(device))[0]
    return embedded[0] if isinstance(texts, str) else embedded


@torch.no_grad()
def embed_file(
    model: VATT | Classifier, path: str | Path, windows: int | None, start: float, end: float | None
) -> dict[str, Tensor]:
    """Return means over the windows of all that `model` says of the file; see `VATT.embed`."""
    clip = read_clip(path, model.settings, windows or model.settings.eval_windows, start=start, end=end)
    device, backbone = next(model.parameters()).device, model.backbone
    vectors: dict[str, Tensor] = {}
    if "video" in backbone.tokens and clip.video_mask.any():
        pooled = backbone.features("video", clip.video.to(device))[:, 0]
        vectors["video_pooled"] = pooled.mean(0)
        if isinstance(model, VATT):
            to_audio, to_text = model.head.embed_video(pooled)
            vectors |= {"video_to_audio": to_audio.mean(0), "video_to_text": to_text.mean(0)}
    if "audio" in backbone.tokens and clip.audio_mask.any():
        pooled = backbone.features("audio", clip.audio.to(device))[:, 0]
        vectors["audio_pooled"] = pooled.mean(0)
        if isinstance(model, VATT):
            vectors["audio_embedding"] = model.head.audio(pooled).mean(0)
    if not vectors:
        raise DataError(f"{path} has no {'sound' if 'audio' in backbone.tokens else 'video'}, which the model looks at")
    return vectors


@torch.no_grad()
def predict_file(
    model: Classifier, path: str | Path, windows: int | None, start: float, end: float | None
) -> list[tuple[str, float]]:
    """Return all classes with their probabilities, best first; see `Classifier.predict`.

    The views are those of `vatt evaluate`, so that a file is given the class that is scored there.
    """
    record, settings = model.record, model.settings
    clip = Clip(0, Path(path), str(path), start=start, end=end)
    clips = Manifest((clip,), clip.path.parent, ())
    task, views = record.get("task", model.modality), windows or record.get("windows", 1)
    dataset = ViewDataset(clips, settings.data, settings.model, task, views, record.get("crops", 1), batch_size=1)
    batch = dataset[0]
    if batch.bad:
        raise DataError(f"{path}: {batch.bad[0][1]}")
    x = batch.audio[0] if model.modality == "audio" else batch.video[0]
    logits = model(x.to(next(model.parameters()).device), views=len(x))[0].float()
    probabilities = logits.sigmoid() if record.get("loss") == "sigmoid" else logits.softmax(0)
    best = probabilities.sort(descending=True, stable=True)
    return [(model.classes[i], p) for p, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)]


def starts_every(config: RunConfig, path: str | Path, seconds: float) -> list[float]:
    """Return 0, `seconds`, ... up to the end of the file. Raises `ConfigError`, or `DataError` for a bad file."""
    if not seconds > 0:
        raise ConfigError(f"windows are more than 0 seconds apart, got {seconds:g}")
    try:
        info = probe(Path(path), time_limit=config.data.decode_seconds, needs=())
    except BadClip as error:
        raise DataError(str(error)) from error
    return [number * seconds for number in range(max(1, math.ceil(info.duration / seconds - 1e-6)))]


def class_embeddings(model: VATT, texts: Sequence[str] | Mapping[str, Sequence[str]]) -> tuple[list[str], Tensor]:
    """Return names and unit vectors [n, 256]: of each text, or the mean of the unit vectors of each name's texts."""
    named: Mapping[str, Sequence[str]] = texts if isinstance(texts, Mapping) else {text: [text] for text in texts}
    if not named or isinstance(texts, str):
        raise ConfigError("texts to rank are a list of sentences, or names with their sentences; got none")
    means = [F.normalize(embed_sentences(model, list(prompts)), dim=-1).mean(0) for prompts in named.values()]
    return list(named), F.normalize(torch.stack(means), dim=-1)


def rank_texts(
    model: VATT,
    path: str | Path,
    texts: Sequence[str] | Mapping[str, Sequence[str]],
    windows: int | None,
    start: float,
    end: float | None,
) -> list[tuple[str, float]]:
    """Return texts or names with their cosines, best first; see `VATT.rank_texts`."""
    names, vectors = class_embeddings(model, texts)
    embedded = embed_file(model, path, windows, start, end)
    if "video_to_text" not in embedded:
        raise DataError(f"{path} has no pictures; words are compared with what a video shows")
    cosines = vectors @ F.normalize(embedded["video_to_text"], dim=-1)
    best = cosines.sort(descending=True, stable=True)
    return [(names[i], cosine) for cosine, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)]
