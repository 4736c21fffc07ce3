"""Zero-shot retrieval on held-out clips: `python -m vatt.evaluate --run DIR`.

Each text (and each clip's sound) ranks all clips by the cosine between common-space embeddings; the embeddings of a
clip's temporal windows are averaged first (the release's "embd" score). Paper, Table 4.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .config import ConfigError
from .data.loader import DataError, EvalDataset, make_loader
from .data.manifest import ManifestError, read_manifest
from .data.synthetic import build_corpus
from .data.text import VocabularyError, split_words
from .files import write_atomically
from .metrics import retrieval_scores
from .model.vatt import VATT
from .pretrained import load_config, load_tokenizer, load_vatt
from .progress import progress_bar
from .run import RunError, autocast_for, compute_dtype, pick_device


class ClipEmbeddings(NamedTuple):
    """Embeddings of the C clips that could be read, averaged over their windows, with their sounds and captions."""

    video_text: Tensor  # [C, 256]
    video_audio: Tensor  # [C, 512]
    audio: Tensor  # [A, 512], one of each clip with sound
    text: Tensor  # [Q, 256], one of each caption
    audio_clip: Tensor  # [A] position of its clip in the C
    text_clip: Tensor  # [Q]
    clips: list[int]  # [C] manifest indices
    bad: list[tuple[int, str]]  # manifest index and reason of each clip left out


@torch.no_grad()
def embed_clips(model: VATT, dataset: EvalDataset, autocast: Any) -> ClipEmbeddings:
    """Embeds the clips of `dataset` and all their captions, in eval mode (nothing is dropped)."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    parts: dict[str, list[Tensor]] = {name: [] for name in ("video_text", "video_audio", "audio", "text")}
    clips: list[int] = []
    sounds: list[int] = []
    texts: list[int] = []
    bad: list[tuple[int, str]] = []
    captions = {clip.index: clip.captions for clip in dataset.clips}
    bar = progress_bar(len(dataset), "evaluating", "batch")
    for batch in make_loader(dataset, 0, len(dataset), dataset.data.workers):
        bar.update()
        bad.extend(batch.bad)
        if not batch.clips:
            continue
        words = [(i, c) for i, index in enumerate(batch.clips) for c in captions[index] if split_words(c)]
        heard = [i for i, mask in enumerate(batch.audio_mask.tolist()) if mask]
        batch = batch.to(device)
        with autocast:
            to_audio, to_text = model.embed_video(batch.video.flatten(0, 1))
            sound = model.embed_audio(batch.audio[heard].flatten(0, 1)) if heard else None
            ids = [dataset.tokenizer.encode(caption, dataset.model.text.words) for _, caption in words]
            text = model.embed_text(torch.from_numpy(np.stack(ids))[None].to(device))[0] if ids else None
        views = dataset.windows_per_clip
        sounds += [len(clips) + i for i in heard]
        texts += [len(clips) + i for i, _ in words]
        clips += batch.clips
        parts["video_text"].append(_mean_of_views(to_text, views))
        parts["video_audio"].append(_mean_of_views(to_audio, views))
        if sound is not None:
            parts["audio"].append(_mean_of_views(sound, views))
        if text is not None:
            parts["text"].append(text.float().cpu())
    bar.close()
    model.train(was_training)
    if not clips:
        raise DataError(f"none of the {len(dataset.clips)} held-out clips could be read; the last one: {bad[-1][1]}")
    tensors = {name: torch.cat(part) if part else torch.empty(0) for name, part in parts.items()}
    places = {"audio_clip": torch.tensor(sounds), "text_clip": torch.tensor(texts)}
    return ClipEmbeddings(**tensors, **places, clips=clips, bad=bad)


def _mean_of_views(x: Tensor, views: int) -> Tensor:
    return x.float().unflatten(0, (-1, views)).mean(1).cpu()


def retrieval(embedded: ClipEmbeddings) -> dict[str, dict[str, float]]:
    """Text-to-video and audio-to-video scores; a direction without queries is left out."""
    scores = {}
    for name, query, target, candidates in (
        ("text_to_video", embedded.text, embedded.text_clip, embedded.video_text),
        ("audio_to_video", embedded.audio, embedded.audio_clip, embedded.video_audio),
    ):
        if len(query):
            similarity = F.normalize(query, dim=-1) @ F.normalize(candidates, dim=-1).T
            scores[name] = retrieval_scores(similarity, target)
    return scores


def format_scores(scores: dict[str, dict[str, float]]) -> str:
    lines = [
        f"{'retrieval':<16}{'R@1':>7}{'R@5':>7}{'R@10':>7}{'MedR':>7}{'queries':>9}{'clips':>7}{'chance R@10':>13}"
    ]
    for name, s in scores.items():
        lines.append(
            f"{name.replace('_', '-'):<16}{s['R@1']:>7.3f}{s['R@5']:>7.3f}{s['R@10']:>7.3f}{s['median_rank']:>7.1f}"
            f"{s['queries']:>9.0f}{s['candidates']:>7.0f}{s['chance_R@10']:>13.3f}"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m vatt.evaluate",
        description="Zero-shot text-to-video and audio-to-video retrieval on held-out clips.",
    )
    add = parser.add_argument
    add("--run", type=Path, required=True, metavar="DIR", help="folder of a finished run, or its model/ folder")
    add("--data", metavar="PATH", help="manifest CSV or folder of clips (default: what the run was trained on)")
    add("--split", metavar="NAME", help="rows of the manifest (default: the held-out split; all of --data without one)")
    add("--windows", type=int, metavar="N", help="temporal windows a clip (default: the run's)")
    add("--device", default="auto", metavar="NAME", help="cpu, cuda, ... (default auto: a GPU if there is one)")
    add("--out", type=Path, metavar="FILE", help="also write the scores to this JSON file")
    args = parser.parse_args(argv)
    try:
        if args.windows is not None and args.windows < 1:
            raise ConfigError(f"--windows must be at least 1, got {args.windows}")
        if args.out and not args.out.parent.is_dir():
            raise ConfigError(f"--out: there is no folder {args.out.parent}")
        device = pick_device(args.device)
        model = load_vatt(args.run, device=device)
        config, tokenizer = load_config(args.run), load_tokenizer(args.run)
        manifest = read_manifest(args.data or config.data.source or build_corpus(clips=config.data.builtin_clips))
        clips = manifest.split(args.split or config.data.test_split)
        if not len(clips) and args.data and not args.split:
            clips = manifest  # of a user's own: all there is
        if not len(clips):
            wanted = args.split or config.data.test_split
            raise ConfigError(f"no rows of split {wanted!r}; choose --split from: {', '.join(manifest.splits)}")
        windows = args.windows or config.eval_windows
        dataset = EvalDataset(clips, config.data, config.model, tokenizer, windows, max(1, 32 // windows))
        embedded = embed_clips(model, dataset, autocast_for(device, compute_dtype(config.dtype, device)))
        scores = retrieval(embedded)
        print(format_scores(scores))
        for index, reason in embedded.bad:
            print(f"left out: {manifest[index].name}: {reason}", file=sys.stderr)
        if args.out:
            write_atomically(args.out, (json.dumps(scores, indent=2) + "\n").encode())
    except (ConfigError, ManifestError, VocabularyError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (RunError, DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
