"""Zero-shot retrieval: each text, and each clip's sound, ranks all clips (paper, Table 4).

Clips are compared by cosines in the common spaces. Over a clip's temporal windows the release has two scores: "embd"
averages embeddings and takes one cosine, "cosine" averages the windows' cosines. (Two sounds and videos of V windows
have V x V of them.)

Legend: C clips, A of them with sound, Q captions, V windows a clip.
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

from .data.batch import Batch
from .data.loader import EvalDataset
from .data.manifest import Manifest
from .data.text import split_words
from .files import write_atomically
from .metrics import ranks, retrieval_scores, window_similarity
from .model.vatt import VATT
from .resumed import Arrays, Bad, clip_arrays

SCORES = ("embd", "cosine")


class ClipEmbeddings(NamedTuple):
    """Embeddings of the C clips that could be read and of all their windows, with their sounds and captions."""

    video_text: Tensor  # [C, V, 256]
    video_audio: Tensor  # [C, V, 512]
    audio: Tensor  # [A, V, 512], one of each clip with sound
    text: Tensor  # [Q, 256], one of each caption
    audio_clip: Tensor  # [A] position of its clip in the C
    text_clip: Tensor  # [Q]
    clips: list[int]  # [C] manifest indices
    bad: Bad  # manifest index and reason of each clip left out


def embed_clips(model: VATT, dataset: EvalDataset, autocast: Any, parts: Path | None = None) -> ClipEmbeddings:
    """Embeds the clips of `dataset` and all their captions, in eval mode (nothing is dropped).

    Captions without any word are left out. `parts`: folder of finished shards, which are not made again. Raises
    `DataError` when no clip can be read.
    """
    was_training = model.training
    model.eval()
    captions = {clip.index: [c for c in clip.captions if split_words(c)] for clip in dataset.clips}
    arrays, bad = clip_arrays(dataset, lambda batch: _embed(model, dataset, captions, batch, autocast), "evaluating",
                              parts)  # fmt: skip
    model.train(was_training)
    place = {row: i for i, row in enumerate(arrays["row"].tolist())}
    tensors = {name: torch.from_numpy(arrays[name]) for name in ("video_text", "video_audio", "audio", "text")}
    owners = {name: torch.tensor([place[row] for row in arrays[name].tolist()], dtype=torch.int64)
              for name in ("audio_clip", "text_clip")}  # fmt: skip
    return ClipEmbeddings(**tensors, **owners, clips=arrays["row"].tolist(), bad=bad)


@torch.no_grad()
def _embed(model: VATT, dataset: EvalDataset, captions: dict[int, list[str]], batch: Batch, autocast: Any) -> Arrays:
    device, views, spaces = next(model.parameters()).device, dataset.windows_per_clip, dataset.model.head
    said = [(row, caption) for row in batch.clips for caption in captions[row]]
    heard = [i for i, mask in enumerate(batch.audio_mask.tolist()) if mask]
    video_text, video_audio = torch.empty(0, spaces.video_text), torch.empty(0, spaces.video_audio)
    audio, text = torch.empty(0, spaces.video_audio), torch.empty(0, spaces.video_text)
    with autocast:
        if batch.clips:
            video_audio, video_text = model.embed_video(batch.video.flatten(0, 1).to(device))
        if heard:
            audio = model.embed_audio(batch.audio[heard].flatten(0, 1).to(device))
        if said:
            ids = np.stack([dataset.tokenizer.encode(caption, dataset.model.text.words) for _, caption in said])
            text = model.embed_text(torch.from_numpy(ids)[None].to(device))[0]

    def windows(x: Tensor) -> np.ndarray:
        return x.float().reshape(-1, views, x.shape[-1]).cpu().numpy()

    return {"row": np.array(batch.clips, np.int64), "video_text": windows(video_text),
            "video_audio": windows(video_audio), "audio": windows(audio), "text": text.float().cpu().numpy(),
            "audio_clip": np.array([batch.clips[i] for i in heard], np.int64),
            "text_clip": np.array([row for row, _ in said], np.int64)}  # fmt: skip


def similarities(embedded: ClipEmbeddings, score: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Direction -> (similarity of queries and clips [Q,C], right clip of each query [Q]), without empty ones."""
    # A query's length does not change its ranks, so the mean of unit vectors stands for the mean of all cosines.
    audio = embedded.audio if score == "embd" else F.normalize(embedded.audio, dim=-1)
    found = {}
    if len(embedded.text):
        found["text_to_video"] = (window_similarity(embedded.text, embedded.video_text, score), embedded.text_clip)
    if len(audio):
        found["audio_to_video"] = (window_similarity(audio.mean(1), embedded.video_audio, score), embedded.audio_clip)
    return found


def retrieval(embedded: ClipEmbeddings, score: str = "embd") -> dict[str, dict[str, float]]:
    """Text-to-video and audio-to-video scores; a direction without queries is left out."""
    return {name: retrieval_scores(*pair) for name, pair in similarities(embedded, score).items()}


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
    for direction, (similarity, target) in similarities(embedded, score).items():
        said = captions if direction == "text_to_video" else [""] * len(target)
        found = zip(
            target.tolist(), said, ranks(similarity, target).tolist(), similarity.argmax(1).tolist(), strict=True
        )
        for owner, caption, rank, best in found:
            clip, first = by_index[embedded.clips[owner]], by_index[embedded.clips[best]]
            writer.writerow((direction, clip.path, clip.index, clip.start, clip.end, caption, rank, first.path,
                             first.index))  # fmt: skip
    # A file name need not be UTF-8: its bytes come out as they are on the disk.
    write_atomically(path, text.getvalue().encode(errors="surrogateescape"))
