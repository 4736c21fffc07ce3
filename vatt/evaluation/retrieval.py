"""Zero-shot retrieval: each text, and each clip's sound, ranks the clips that have both (paper, Table 4).

Text-to-video is among the clips with video and a caption, audio-to-video among those with video and sound: a clip that
no query asks for would make the task another one. Sound files take no part. Rows of one span of a file are one clip
with several captions (`Manifest.one_clip_a_span`): many tables have a row for each caption.

Clips are compared by cosines in the common spaces. Over a clip's temporal windows the release has two scores: "embd"
averages embeddings and takes one cosine, "cosine" averages the windows' cosines. (Two sounds and videos of V windows
have V x V of them.)

Legend: C clips with video, A of them with sound, Q captions, V windows a clip, S clips that are ranked.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..data.clip import Manifest
from ..data.datasets.batch import Batch
from ..data.datasets.evaluation import EvalDataset
from ..data.tokenizer import split_words
from ..errors import DataError
from ..inference.embeddings import Embedded, embed_batch
from ..inference.features_file import Features, read_features
from ..inference.npz import Arrays
from ..inference.over_clips import Bad, map_clips
from ..model.vatt import VATT
from ..runtime.distributed import SINGLE_PROCESS, World
from ..runtime.files import write_csv
from .metrics import ranks, retrieval_scores, window_similarity

SCORES = ("embd", "cosine")


class ClipEmbeddings(NamedTuple):
    """Embeddings of the C clips with video that could be read, of all their windows, with their sounds and captions."""

    video_text: Tensor  # [C, V, 256]
    video_audio: Tensor  # [C, V, 512]
    audio: Tensor  # [A, V, 512], one of each clip with sound
    text: Tensor  # [Q, 256], one of each caption
    audio_clip: Tensor  # [A] position of its clip in the C
    text_clip: Tensor  # [Q]
    clips: list[int]  # [C] manifest indices
    bad: Bad  # manifest index and reason of each clip left out


def embed_clips(
    model: VATT,
    dataset: EvalDataset,
    autocast: Any,
    parts: Path | None = None,
    world: World = SINGLE_PROCESS,
    max_bad_share: float = 1.0,
) -> ClipEmbeddings:
    """Embed the clips of `dataset` and all their captions, in eval mode (nothing is dropped).

    Captions without any word are left out, and so are clips without video.

    Args:
        parts: folder of finished shards, which are not made again.

    Raises:
        DataError: no clip can be read, or a larger share than `max_bad_share` cannot.
    """
    captions = {clip.index: clip.captions for clip in dataset.clips}

    def function(batch: Batch) -> Arrays:
        ranked = _with_video(batch)
        return _windows_of(embed_batch(model, ranked, captions, dataset.tokenizer, autocast), ranked)

    was_training = model.training
    model.eval()
    mapped = map_clips(dataset, function, "evaluating", parts, max_bad_share, world)
    model.train(was_training)
    arrays = mapped.arrays()
    if not len(arrays["row"]):
        raise DataError("none of the clips has video: there is nothing to retrieve")
    position = {row: i for i, row in enumerate(arrays["row"].tolist())}
    tensors = {name: torch.from_numpy(arrays[name]) for name in ("video_text", "video_audio", "audio", "text")}
    owners = {
        name: torch.tensor([position[row] for row in arrays[name].tolist()], dtype=torch.int64)
        for name in ("audio_clip", "text_clip")
    }
    return ClipEmbeddings(**tensors, **owners, clips=arrays["row"].tolist(), bad=mapped.bad)


def _windows_of(embedded: Embedded, batch: Batch) -> Arrays:
    rows = batch.clips
    return {
        "row": np.array(rows, np.int64),
        "video_text": embedded.video_to_text.cpu().numpy(),
        "video_audio": embedded.video_to_audio.cpu().numpy(),
        "audio": embedded.audio_embedding.cpu().numpy(),
        "text": embedded.text_embedding.cpu().numpy(),
        "audio_clip": np.array([rows[i] for i in embedded.audio_clip], np.int64),
        "text_clip": np.array([rows[i] for i in embedded.text_clip], np.int64),
    }


def _with_video(batch: Batch) -> Batch:
    """Return the clips of `batch` that have video; only they are ranked and asked for."""
    kept = torch.nonzero(batch.video_mask).flatten()
    names = ("video", "audio", "text", "video_mask", "audio_mask", "text_mask", "label", "labels")
    tensors = {name: getattr(batch, name)[kept] for name in names}
    return replace(batch, **tensors, clips=[batch.clips[i] for i in kept.tolist()])


def from_features(features: Features, among: NDArray[np.bool_] | None = None) -> ClipEmbeddings:
    """Return the embeddings in a features file, whose clips have one window each: the mean of all.

    Rows of one span of a file are one clip with the captions of all, as the manifest that `vatt.evaluate` reads.

    Args:
        features: of C clips.
        among: mask [C] of those to take, None: all.
    """
    arrays = features.arrays
    rows = np.arange(len(arrays["row"]))
    chosen = np.ones(len(rows), bool) if among is None else among
    first: dict[tuple[str, float, float], int] = {}
    ends = np.nan_to_num(arrays["end"], nan=-1.0)
    spans = zip(arrays["path"].tolist(), arrays["start"].tolist(), ends.tolist(), strict=True)
    owner = np.array([first.setdefault(span, i) if chosen[i] else i for i, span in enumerate(spans)], np.int64)
    taken = chosen & (owner == rows)
    videos = taken[arrays["video_clip"]]
    position = np.full(len(rows), -1)
    position[arrays["video_clip"][videos]] = np.arange(videos.sum())
    sounds = taken[arrays["audio_clip"]] & (position[arrays["audio_clip"]] >= 0)
    text_position = position[owner[arrays["text_clip"]]]
    return ClipEmbeddings(
        torch.from_numpy(arrays["video_to_text"][videos])[:, None],
        torch.from_numpy(arrays["video_to_audio"][videos])[:, None],
        torch.from_numpy(arrays["audio_embedding"][sounds])[:, None],
        torch.from_numpy(arrays["text_embedding"][text_position >= 0]),
        torch.from_numpy(position[arrays["audio_clip"][sounds]]),
        torch.from_numpy(text_position[text_position >= 0]),
        arrays["row"][arrays["video_clip"][videos]].tolist(),
        list(zip(arrays["bad_row"].tolist(), arrays["bad_reason"].tolist(), strict=True)),
    )


def retrieve(features: Features | str | Path) -> dict[str, dict[str, float]]:
    """Score zero-shot retrieval: each caption, and each clip's sound, ranks the clips.

    Args:
        features: what `vatt.embed` returned, or a file of the command `vatt embed`.

    Returns:
        "text_to_video" and "audio_to_video", those that have queries: R@1, R@5, R@10, median_rank, queries,
        candidates, chance_R@10, by the score "embd".

    Raises:
        FeaturesError: the file holds no features.
    """
    return retrieval(from_features(features if isinstance(features, Features) else read_features(features)))


class Ranking(NamedTuple):
    """The queries of one direction beside the clips that they rank."""

    similarity: Tensor  # [Q,S]
    target: Tensor  # [Q] position of the right clip in the S
    ranked: Tensor  # [S] position of each in the C


def similarities(embedded: ClipEmbeddings, score: str) -> dict[str, Ranking]:
    """Return the ranking of each direction that has queries: the queries, and the clips that they rank."""
    # A query's length does not change its ranks, so the mean of unit vectors stands for the mean of all cosines.
    audio = embedded.audio if score == "embd" else F.normalize(embedded.audio, dim=-1)
    rankings = {}
    for name, queries, videos, owners in (
        ("text_to_video", embedded.text, embedded.video_text, embedded.text_clip),
        ("audio_to_video", audio.mean(1), embedded.video_audio, embedded.audio_clip),
    ):
        if len(queries):
            ranked, target = owners.unique(return_inverse=True)
            rankings[name] = Ranking(window_similarity(queries, videos[ranked], score), target, ranked)
    return rankings


def retrieval(embedded: ClipEmbeddings, score: str = "embd") -> dict[str, dict[str, float]]:
    """Return the scores of text-to-video and audio-to-video; a direction without queries is left out."""
    rankings = similarities(embedded, score)
    return {name: retrieval_scores(one.similarity, one.target) for name, one in rankings.items()}


def format_scores(scores: dict[str, dict[str, float]]) -> str:
    """Return a table for people, a line for each direction."""
    width = max([16, *(len(name) + 2 for name in scores)])
    head = (
        f"{'retrieval':<{width}}{'R@1':>7}{'R@5':>7}{'R@10':>7}{'MedR':>7}{'queries':>9}{'clips':>7}{'chance R@10':>13}"
    )
    lines = [head]
    for name, s in scores.items():
        lines.append(
            f"{name.replace('_', '-'):<{width}}{s['R@1']:>7.3f}{s['R@5']:>7.3f}{s['R@10']:>7.3f}"
            f"{s['median_rank']:>7.1f}{s['queries']:>9.0f}{s['candidates']:>7.0f}{s['chance_R@10']:>13.3f}"
        )
    return "\n".join(lines)


def write_ranks(path: Path, embedded: ClipEmbeddings, clips: Manifest, score: str) -> None:
    """Write a row for each query: direction, its clip (path, row, start, end), caption, rank, and what came first."""
    by_index = {clip.index: clip for clip in clips}
    owners = [by_index[embedded.clips[i]] for i in embedded.text_clip.unique_consecutive().tolist()]
    captions = [caption for clip in owners for caption in clip.captions if split_words(caption)]
    rows: list[tuple[object, ...]] = []
    for direction, (similarity, target, ranked) in similarities(embedded, score).items():
        candidates = [by_index[embedded.clips[i]] for i in ranked.tolist()]
        queries = captions if direction == "text_to_video" else [""] * len(target)
        best = similarity.argmax(1).tolist()
        for i, (caption, rank) in enumerate(zip(queries, ranks(similarity, target).tolist(), strict=True)):
            clip, first = candidates[int(target[i])], candidates[best[i]]
            span = (clip.path, clip.index, clip.start, clip.end)
            rows.append((direction, *span, caption, f"{rank:g}", first.path, first.index))
    write_csv(path, ("direction", "path", "row", "start", "end", "caption", "rank", "first", "first_row"), rows)
