"""Ranking the clips of files of features by a query of words, sound or video."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ...checkpoints.fingerprints import weights_fingerprint
from ...checkpoints.loading import load_vatt
from ...config.run import RunConfig
from ...data.clip import Clip, Manifest
from ...data.datasets.evaluation import EvalDataset
from ...data.decoding.audio import read_sound_windows
from ...data.decoding.container import BadClip
from ...data.tokenizer import Tokenizer, VocabularyError
from ...errors import ConfigError, DataError, RunError
from ...model.vatt import VATT
from ..bfloat16 import choose_dtype, inference_form
from ..features_file import Features, FeaturesError, read_features
from .archive import Archive, gone, is_archive, moment_id, normalised, open_archive

SPACE = {"text": "video_to_text", **dict.fromkeys(("audio", "video", "like"), "video_to_audio")}
COLUMNS = ("path", "start", "end", "label", "video_clip", "text_clip", "caption")


class Query(NamedTuple):
    kind: str  # "text", "audio", "video" or "like"
    query: str  # the text, the path of the file, or the id of a clip in the index


class Source(Protocol):
    """Where clips are searched: files of features in memory, or an archive."""

    def nearest(
        self, space: str, vector: NDArray[np.float32], top: int, where: str | None = None
    ) -> list[dict[str, Any]]: ...


@dataclass
class Index:
    """Clips with video of all files, in order; `spaces` float32 [C, 256 or 512] normalised, by name."""

    paths: list[str] = field(default_factory=list)
    spans: list[tuple[float, float | None]] = field(default_factory=list)
    labels: list[str | None] = field(default_factory=list)
    captions: list[list[str]] = field(default_factory=list)
    windows: list[int] = field(default_factory=list)
    spaces: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.paths)

    def nearest(
        self, space: str, vector: NDArray[np.float32], top: int, where: str | None = None
    ) -> list[dict[str, Any]]:
        """Return the `top` clips nearest to `vector` [256 or 512]; ties in the order of the index.

        Raises:
            ConfigError: a filter is given.
        """
        if where is not None:
            raise ConfigError("only archives are filtered; write the features with vatt embed --out NAME.lance")
        cosine = self.spaces[space] @ normalised(vector)
        order = np.argsort(-cosine, kind="stable")[:top]  # NaN comes last
        return [self._hit(i, cosine[i]) for i in order.tolist() if np.isfinite(cosine[i])]

    def _hit(self, i: int, cosine: np.float32) -> dict[str, Any]:
        start, end = self.spans[i]
        path, label, captions = self.paths[i], self.labels[i], self.captions[i]
        row = {"id": moment_id(path, start, end), "path": path, "start": start, "end": end}
        return {"cosine": float(cosine), **row, "label": label, "captions": captions, "windows": self.windows[i]}

    def holds(self, path: str) -> bool:
        """Whether a clip of that file is in the index."""
        return path in self.paths

    def vector(self, identity: str, space: str) -> NDArray[np.float32] | None:
        """Return the vector of the clip of that id; None where there is no such clip."""
        spans = zip(self.paths, self.spans, strict=True)
        found = (i for i, (path, span) in enumerate(spans) if moment_id(path, *span) == identity)
        return next((self.spaces[space][i] for i in found), None)


def build_index(files: list[Features], spaces: set[str]) -> Index:
    """One index of several files; they must hold embeddings of one model."""
    index = Index()
    parts: dict[str, list[NDArray[np.float32]]] = {name: [] for name in spaces}
    for features in files:
        arrays, seen = features.arrays, features.arrays["video_clip"]
        starts, ends = arrays["start"][seen].tolist(), arrays["end"][seen].tolist()
        captions: dict[int, list[str]] = {clip: [] for clip in seen.tolist()}
        for clip, caption in zip(arrays["text_clip"].tolist(), arrays["caption"].tolist(), strict=True):
            captions.get(clip, []).append(caption)
        index.paths.extend(arrays["path"][seen].tolist())
        index.labels.extend(label or None for label in arrays["label"][seen].tolist())
        index.spans.extend((s, None if np.isnan(e) else e) for s, e in zip(starts, ends, strict=True))
        index.captions.extend(captions.values())
        index.windows.extend([features.metadata["windows"]] * len(seen))
        for name in spaces:
            parts[name].append(normalised(arrays[name]))
    index.spaces.update({name: np.concatenate(part) for name, part in parts.items()})
    return index


def rank(
    sources: Sequence[Source],
    space: str,
    vector: NDArray[np.float32],
    top: int,
    where: str | None = None,
    per_file: int | None = None,
) -> list[dict[str, Any]]:
    """Return the `top` clips of all sources nearest to `vector`, at most `per_file` of one file.

    Returns:
        Dictionaries with rank, cosine, id, path, start, end, label, captions, windows, and gone: whether the file is
        not there any more; best first, ties in the order of the sources.
    """
    if not np.isfinite(vector).all():
        raise DataError("the model gives numbers that are not finite for this query, so nothing is near to it")
    asked = top
    while True:
        found = [source.nearest(space, vector, asked, where) for source in sources]
        hits = sorted((hit for one in found for hit in one), key=lambda hit: -hit["cosine"])
        taken: Counter[str] = Counter()
        chosen = []
        for hit in hits:
            taken[hit["path"]] += 1
            if per_file is None or taken[hit["path"]] <= per_file:
                chosen.append(hit)
        if len(chosen) >= top or all(len(one) < asked for one in found):
            return [{"rank": place, **hit, "gone": gone(hit["path"])} for place, hit in enumerate(chosen[:top], 1)]
        asked *= 8  # the best of few files are many moments


def require_model(files: Sequence[Features | Archive], weights: str, source: str) -> None:
    """Raise `RunError` unless all `files` were made by the model with that fingerprint, which `source` names."""
    for features in files:
        if features.metadata["weights_sha256"] != weights:
            raise RunError(
                f"{features.source} was made by another model ({features.metadata['model']}) than {source}; search "
                "them apart"
            )


def open_model(files: Sequence[Features | Archive], given: Path | None, device: torch.device) -> VATT:
    """The model that made the index: the folder on record, or `given`. Raises `RunError` if it is another one."""
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
    inference_form(model, device, choose_dtype("auto", device, model)[0])
    spaces = model.settings.model.head
    for features in files:
        for name, wanted in (("video_to_text", spaces.video_text), ("video_to_audio", spaces.video_audio)):
            if features.widths.get(name, wanted) != wanted:
                raise FeaturesError(
                    f"{features.source} is damaged: {name} is {features.widths[name]} wide, "
                    f"and {wanted} in the model in {folder}; embed the clips again"
                )
    return model


def check_words(text: str, tokenizer: Tokenizer, limit: int) -> list[str]:
    """What to warn of; raises `ConfigError` for a text of which the model knows no word."""
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
    """float32 [256] for a text, [512] for a sound or video. Raises `BadClip` for a file that cannot be read."""
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
        features: what `vatt.embed` returned, or files and archives of the command `vatt embed`, of one model.
        model: the model that made them, or its folder; None: the folder that the files name.
        device: where queries are embedded.
        kinds: which queries will come, of "text", "audio", "video" and "like"; what others need stays on the disk.

    Raises:
        FeaturesError: a file is damaged, or none of the clips has video.
        RunError: another model made the files.
        MissingPackage: an archive, and no LanceDB.
    """

    def __init__(
        self,
        features: Features | str | Path | Sequence[Features | str | Path],
        model: VATT | str | Path | None = None,
        *,
        device: str | torch.device = "cpu",
        kinds: Collection[str] = tuple(SPACE),
    ) -> None:
        several = [features] if isinstance(features, Features | str | Path) else list(features)
        spaces = {SPACE[kind] for kind in kinds}
        opened = [_open(one, (*COLUMNS, *sorted(spaces))) for one in several]
        if isinstance(model, VATT):
            require_model(opened, weights_fingerprint(model), "the model given")
            self.model = model
        else:
            self.model = open_model(opened, None if model is None else Path(model), torch.device(device))
        files = [one for one in opened if isinstance(one, Features)]
        archives = [one for one in opened if isinstance(one, Archive)]
        index = build_index(files, spaces) if files else Index()
        self.sources: list[Index | Archive] = [*([index] if files else []), *archives]
        self.windows: int = opened[0].metadata["windows"]
        self.silent = sum(len(one.arrays["path"]) for one in files) - len(index) + sum(one.silent() for one in archives)
        self._count = sum(len(source) for source in self.sources)
        if not self._count:
            names = ", ".join(str(one.source) for one in opened)
            raise FeaturesError(f"{names}: none of the {self.silent} clips has video, which all queries ask for")

    def __len__(self) -> int:
        return self._count

    def search(
        self,
        text: str | None = None,
        *,
        audio: str | Path | None = None,
        video: str | Path | None = None,
        top: int = 10,
        where: str | None = None,
        per_file: int | None = None,
    ) -> list[dict[str, Any]]:
        """Return the `top` clips nearest to one query: a text, or a file whose sound or pictures are meant.

        Args:
            text, audio, video: one of them.
            top: clips at most.
            where: a filter in SQL, for archives: "label = 'dog' and start > 60".
            per_file: clips of one file at most.

        Returns:
            Dictionaries with rank, cosine, id, path, start, end, label, captions, windows, and gone: whether the file
            is not there any more; best first.

        Raises:
            ConfigError: not one query, a text of which the model knows no word, or a filter that cannot be read.
            DataError: the file cannot be read.
        """
        given = {"text": text, "audio": audio, "video": video}
        queries = [Query(kind, str(query)) for kind, query in given.items() if query is not None]
        if len(queries) != 1:
            raise ConfigError(f"search for one text, audio or video, got {len(queries)}")
        try:
            return self.answer(queries[0], top, where, per_file)["results"]
        except BadClip as error:
            raise DataError(str(error)) from error

    def answer(self, query: Query, top: int, where: str | None = None, per_file: int | None = None) -> dict[str, Any]:
        """Return kind and query, `warnings` about its words, and `results` as `search` returns them.

        Raises:
            ConfigError, DataError: as `search`.
            BadClip: the file cannot be read.
        """
        warnings: list[str] = []
        for archive in self.sources:
            if where is not None and isinstance(archive, Archive):
                archive.check_filter(where)
        if query.kind == "like":
            vectors = (source.vector(query.query, SPACE["like"]) for source in self.sources)
            vector = next((vector for vector in vectors if vector is not None), None)
            if vector is None:
                raise DataError(f"the index has no clip {query.query!r}, or it has no video")
        else:
            tokenizer = self.model.tokenizer if query.kind == "text" else None
            if query.kind == "text":
                if tokenizer is None:
                    raise VocabularyError("the model has no word list, so it cannot read text; set its tokenizer")
                warnings = check_words(query.query, tokenizer, self.model.settings.model.text.words)
            vector = embed_query(self.model, self.model.settings, query, self.windows, tokenizer)
        found = rank(self.sources, SPACE[query.kind], vector, top, where, per_file)
        return {**query._asdict(), "warnings": warnings, "results": found}

    def holds(self, path: str) -> bool:
        """Whether clips of that file are in the index."""
        return any(source.holds(path) for source in self.sources)


def _open(one: Features | str | Path, names: Sequence[str]) -> Features | Archive:
    if isinstance(one, Features):
        return one
    return open_archive(one) if is_archive(one) else read_features(one, names)
