"""Ranking the clips of files of features by a query of words, sound or video."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ..checkpoints.fingerprints import weights_fingerprint
from ..checkpoints.loading import load_vatt
from ..checkpoints.model_folder import load_config
from ..config.run import RunConfig
from ..data.clip import Clip, Manifest
from ..data.datasets.evaluation import EvalDataset
from ..data.decoding.audio import read_sound_windows
from ..data.decoding.container import BadClip
from ..data.tokenizer import Tokenizer, VocabularyError
from ..errors import ConfigError, DataError, RunError
from ..model.vatt import VATT
from .features_file import Features, FeaturesError, read_features

SPACE = {"text": "video_to_text", "audio": "video_to_audio", "video": "video_to_audio"}


class Query(NamedTuple):
    kind: str  # "text", "audio" or "video"
    query: str  # the text, or the path of the file


class Index(NamedTuple):
    """Clips with video of all files, in order; `spaces` float32 [C, 256 or 512] normalised, by name."""

    paths: list[str]
    spans: list[tuple[float, float | None]]
    captions: list[list[str]]
    windows: list[int]
    spaces: dict[str, NDArray[np.float32]]


def build_index(files: list[Features], spaces: set[str]) -> Index:
    """Return one index of several files; they must hold embeddings of one model."""
    index = Index([], [], [], [], {})
    parts: dict[str, list[NDArray[np.float32]]] = {name: [] for name in spaces}
    for features in files:
        arrays, with_video = features.arrays, features.arrays["video_clip"]
        starts, ends = arrays["start"][with_video].tolist(), arrays["end"][with_video].tolist()
        captions: dict[int, list[str]] = {clip: [] for clip in with_video.tolist()}
        for clip, caption in zip(arrays["text_clip"].tolist(), arrays["caption"].tolist(), strict=True):
            captions.get(clip, []).append(caption)
        index.paths.extend(arrays["path"][with_video].tolist())
        index.spans.extend((s, None if np.isnan(e) else e) for s, e in zip(starts, ends, strict=True))
        index.windows.extend([features.metadata["windows"]] * len(with_video))
        index.captions.extend(captions.values())
        for name in spaces:
            parts[name].append(_normalised(arrays[name]))
    index.spaces.update({name: np.concatenate(part) for name, part in parts.items()})
    return index


def _normalised(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def rank(index: Index, space: str, embedding: NDArray[np.float32], top: int) -> list[dict[str, Any]]:
    """Return the `top` clips nearest to `embedding` [256 or 512]; ties in the order of the index."""
    cosine = index.spaces[space] @ _normalised(embedding)
    order = np.argsort(-cosine, kind="stable")[:top].tolist()
    return [
        {
            "rank": number,
            "cosine": float(cosine[i]),
            "path": index.paths[i],
            "start": index.spans[i][0],
            "end": index.spans[i][1],
            "windows": index.windows[i],
            "captions": index.captions[i],
        }
        for number, i in enumerate(order, 1)
    ]


def require_model(files: list[Features], weights: str, source: str) -> None:
    """Raise `RunError` unless all `files` were made by the model with that fingerprint, which `source` names."""
    for features in files:
        if features.metadata["weights_sha256"] != weights:
            raise RunError(
                f"{features.source} was made by another model ({features.metadata['model']}) than {source}; search "
                "them apart"
            )


def open_model(files: list[Features], given: Path | None, device: torch.device) -> tuple[VATT, Path]:
    """Return the model that made the index: the folder on record, or `given`.

    Raises `RunError` if it is another one.
    """
    require_model(files, files[0].metadata["weights_sha256"], f"{files[0].source} ({files[0].metadata['model']})")
    weights = files[0].metadata["weights_sha256"]
    folder = given or Path(files[0].metadata["model"])
    if given is None and not folder.is_dir():
        raise RunError(
            f"{files[0].source} was made by the model in {folder}, which is not there; name its folder with --model"
        )
    model = load_vatt(folder, device=device)
    if weights_fingerprint(model) != weights:
        made_by = files[0].metadata["model"]
        raise RunError(
            f"{files[0].source} was made by another model (in {made_by}) than that in {folder} now; name "
            "the right one with --model, or embed the clips again"
        )
    spaces = load_config(folder).model.head
    for features in files:
        for name, width in (("video_to_text", spaces.video_text), ("video_to_audio", spaces.video_audio)):
            if name in features.arrays and features.arrays[name].shape[1] != width:
                raise FeaturesError(
                    f"{features.source} is damaged: {name} is {features.arrays[name].shape[1]} wide, "
                    f"and {width} in the model in {folder}; embed the clips again"
                )
    return model, folder


def check_words(text: str, tokenizer: Tokenizer, limit: int) -> list[str]:
    """Return what to warn of. Raises `ConfigError` for a text of which the model knows no word."""
    words = tokenizer.split(text)
    unknown = [word for word in dict.fromkeys(words[:limit]) if word not in tokenizer.ids]
    listed = ", ".join(repr(word) for word in unknown)
    if not words:
        raise ConfigError(f"the text {text!r} holds no words")
    if all(word in unknown for word in words[:limit]):
        raise ConfigError(f"{text!r}: the model's vocabulary of {len(tokenizer)} words has none of these: {listed}")
    warnings = [f"{text!r}: not in the vocabulary, read as unknown: {listed}"] if unknown else []
    return warnings + ([f"{text!r}: only the first {limit} words are read"] if len(words) > limit else [])


@torch.no_grad()
def embed_query(model: VATT, config: RunConfig, query: Query, windows: int, tokenizer: Tokenizer | None) -> NDArray:
    """Return float32 [256] for a text, [512] for a sound or video. Raises `BadClip` for a file that cannot be read."""
    device = next(model.parameters()).device
    limit = config.data.decode_seconds
    if query.kind == "text":
        assert tokenizer is not None
        ids = torch.from_numpy(tokenizer.encode(query.query, config.model.text.words))
        return model.embed_text(ids[None, None].to(device))[0, 0].cpu().numpy()
    path = Path(query.query).absolute()
    if query.kind == "audio":
        sound = torch.from_numpy(read_sound_windows(path, config.model.audio, windows, limit))
        return model.embed_audio(sound.to(device)).mean(0).cpu().numpy()
    clip = Manifest((Clip(0, path, query.query),), path.parent, ())
    batch = EvalDataset(clip, config.data, config.model, Tokenizer([]), windows, 1)[0]
    if batch.bad:
        raise BadClip(path, batch.bad[0][1])
    return model.embed_video(batch.video[0].to(device))[0].mean(0).cpu().numpy()


class SearchIndex:
    """Clips of features files, ranked by words, sound or video: `vatt.SearchIndex("features.npz").search("a dog")`.

    Args:
        features: what `vatt.embed` returned, or files of the command `vatt embed`, of one model.
        model: the model that made them, or its folder; None: the folder that the files name.
        device: where queries are embedded.

    Raises:
        FeaturesError: a file is damaged, or none of the clips has video.
        RunError: another model made the files.
    """

    def __init__(
        self,
        features: Features | str | Path | Sequence[Features | str | Path],
        model: VATT | str | Path | None = None,
        *,
        device: str | torch.device = "cpu",
    ) -> None:
        several = [features] if isinstance(features, Features | str | Path) else list(features)
        files = [one if isinstance(one, Features) else read_features(one) for one in several]
        if isinstance(model, VATT):
            require_model(files, weights_fingerprint(model), "the model given")
            self.model = model
        else:
            self.model, _ = open_model(files, None if model is None else Path(model), torch.device(device))
        self.index = build_index(files, set(SPACE.values()))
        self.windows: int = files[0].metadata["windows"]
        if not self.index.paths:
            raise FeaturesError(f"{files[0].source}: none of the clips has video, which all queries ask for")

    def __len__(self) -> int:
        return len(self.index.paths)

    def search(
        self,
        text: str | None = None,
        *,
        audio: str | Path | None = None,
        video: str | Path | None = None,
        top: int = 10,
    ) -> list[dict[str, Any]]:
        """Return the `top` clips nearest to one query: a text, or a file whose sound or pictures are meant.

        Returns:
            Dictionaries with rank, cosine, path, start, end, windows, captions; best first.

        Raises:
            ConfigError: not one query, or a text of which the model knows no word.
            DataError: the file cannot be read.
        """
        given = {"text": text, "audio": audio, "video": video}
        queries = [Query(kind, str(query)) for kind, query in given.items() if query is not None]
        if len(queries) != 1:
            raise ConfigError(f"search for one text, audio or video, got {len(queries)}")
        (query,) = queries
        settings, tokenizer = self.model.settings, self.model.tokenizer if query.kind == "text" else None
        if query.kind == "text":
            if tokenizer is None:
                raise VocabularyError("the model has no word list, so it cannot read text; set its tokenizer")
            check_words(query.query, tokenizer, settings.model.text.words)
        try:
            embedding = embed_query(self.model, settings, query, self.windows, tokenizer)
        except BadClip as error:
            raise DataError(str(error)) from error
        return rank(self.index, SPACE[query.kind], embedding, top)
