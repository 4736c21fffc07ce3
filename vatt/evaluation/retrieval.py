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

import csv
import io
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.clip import Manifest
from ..data.datasets.batch import Batch
from ..data.datasets.evaluation import EvalDataset
from ..data.tokenizer import split_words
from ..errors import DataError
from ..inference.over_clips import Arrays, Bad, clip_arrays
from ..model.vatt import VATT
from ..runtime.distributed import SINGLE_PROCESS, World
from ..runtime.files import write_atomically
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
    """Embeds the clips of `dataset` and all their captions, in eval mode (nothing is dropped).

    Captions without any word are left out, and so are clips without video. `parts`: folder of finished shards, which
    are not made again. Raises `DataError` when no clip can be read, or a larger share than `max_bad_share` cannot.
    """
    was_training = model.training
    model.eval()
    captions = {clip.index: [c for c in clip.captions if split_words(c)] for clip in dataset.clips}
    arrays, bad = clip_arrays(
        dataset,
        lambda batch: _embed(model, dataset, captions, batch, autocast),
        "evaluating",
        parts,
        max_bad_share,
        world,
    )
    model.train(was_training)
    if not len(arrays["row"]):
        raise DataError("none of the clips has video: there is nothing to retrieve")
    place = {row: i for i, row in enumerate(arrays["row"].tolist())}
    tensors = {name: torch.from_numpy(arrays[name]) for name in ("video_text", "video_audio", "audio", "text")}
    owners = {name: torch.tensor([place[row] for row in arrays[name].tolist()], dtype=torch.int64)
              for name in ("audio_clip", "text_clip")}  # fmt: skip
    return ClipEmbeddings(**tensors, **owners, clips=arrays["row"].tolist(), bad=bad)


@torch.no_grad()
def _embed(model: VATT, dataset: EvalDataset, captions: dict[int, list[str]], batch: Batch, autocast: Any) -> Arrays:
    device, views, spaces = next(model.parameters()).device, dataset.windows_per_clip, dataset.model.head
    seen = torch.nonzero(batch.video_mask).flatten().tolist()
    heard = torch.nonzero(batch.video_mask * batch.audio_mask).flatten().tolist()
    rows = [batch.clips[i] for i in seen]
    said = [(row, caption) for row in rows for caption in captions[row]]
    video_text, video_audio = torch.empty(0, spaces.video_text), torch.empty(0, spaces.video_audio)
    audio, text = torch.empty(0, spaces.video_audio), torch.empty(0, spaces.video_text)
    with autocast:
        if seen:
            video_audio, video_text = model.embed_video(batch.video[seen].flatten(0, 1).to(device))
        if heard:
            audio = model.embed_audio(batch.audio[heard].flatten(0, 1).to(device))
        if said:
            ids = np.stack([dataset.tokenizer.encode(caption, dataset.model.text.words) for _, caption in said])
            text = model.embed_text(torch.from_numpy(ids)[None].to(device))[0]

    def windows(x: Tensor) -> np.ndarray:
        return x.float().reshape(-1, views, x.shape[-1]).cpu().numpy()

    return {"row": np.array(rows, np.int64), "video_text": windows(video_text),
            "video_audio": windows(video_audio), "audio": windows(audio), "text": text.float().cpu().numpy(),
            "audio_clip": np.array([batch.clips[i] for i in heard], np.int64),
            "text_clip": np.array([row for row, _ in said], np.int64)}  # fmt: skip


class Ranking(NamedTuple):
    """One direction: what is compared with what."""

    similarity: Tensor  # [Q,S]
    target: Tensor  # [Q] position of the right clip in the S
    ranked: Tensor  # [S] position of each in the C


def similarities(embedded: ClipEmbeddings, score: str) -> dict[str, Ranking]:
    """Direction -> queries beside the clips that they rank, those that have a query; without empty directions."""
    # A query's length does not change its ranks, so the mean of unit vectors stands for the mean of all cosines.
    audio = embedded.audio if score == "embd" else F.normalize(embedded.audio, dim=-1)
    found = {}
    for name, queries, videos, owners in (
        ("text_to_video", embedded.text, embedded.video_text, embedded.text_clip),
        ("audio_to_video", audio.mean(1), embedded.video_audio, embedded.audio_clip),
    ):
        if len(queries):
            ranked, target = owners.unique(return_inverse=True)
            found[name] = Ranking(window_similarity(queries, videos[ranked], score), target, ranked)
    return found


def retrieval(embedded: ClipEmbeddings, score: str = "embd") -> dict[str, dict[str, float]]:
    """Text-to-video and audio-to-video scores; a direction without queries is left out."""
    found = similarities(embedded, score)
    return {name: retrieval_scores(one.similarity, one.target) for name, one in found.items()}


def format_scores(scores: dict[str, dict[str, float]]) -> str:
    """A table for people, a line a direction."""
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
    """A row a query: direction, its clip (path, row, start, end), the caption, the rank, and what came first."""
    by_index = {clip.index: clip for clip in clips}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("direction", "path", "row", "start", "end", "caption", "rank", "first", "first_row"))
    owners = [by_index[embedded.clips[i]] for i in embedded.text_clip.unique_consecutive().tolist()]
    captions = [caption for clip in owners for caption in clip.captions if split_words(caption)]
    for direction, (similarity, target, ranked) in similarities(embedded, score).items():
        said = captions if direction == "text_to_video" else [""] * len(target)
        candidates = [by_index[embedded.clips[i]] for i in ranked.tolist()]
        found = zip(
            target.tolist(), said, ranks(similarity, target).tolist(), similarity.argmax(1).tolist(), strict=True
        )
        for owner, caption, rank, best in found:
            clip, first = candidates[owner], candidates[best]
            writer.writerow((direction, clip.path, clip.index, clip.start, clip.end, caption, f"{rank:g}", first.path,
                             first.index))  # fmt: skip
    # A file name need not be UTF-8: its bytes come out as they are on the disk.
    write_atomically(path, text.getvalue().encode(errors="surrogateescape"))
