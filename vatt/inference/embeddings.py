"""Embeddings and features of clips, in shards that a resumed run goes on from."""

from __future__ import annotations

import itertools
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..data.bad_clips import bad_share
from ..data.clip import Clip
from ..data.datasets.batch import Batch
from ..data.datasets.evaluation import EvalDataset
from ..data.loader import make_loader
from ..data.remarks import Remarks
from ..data.tokenizer import Tokenizer
from ..errors import ConfigError, DataError, RunError
from ..model.vatt import VATT
from ..runtime.distributed import ALONE, World
from ..runtime.files import write_atomically
from ..runtime.forms import printable
from ..runtime.progress import progress_bar
from .features_file import POSITIONS, Arrays, FeaturesError, read_features, read_shard, write_shard
from .result_folder import IDENTITY, read_settings


@torch.no_grad()
def embed_clips(
    model: VATT, batch: Batch, clips: dict[int, Clip], tokenizer: Tokenizer | None, words: int, autocast: Any
) -> Arrays:
    """All arrays of a shard for one batch with a windows axis; `clips` by manifest index; no texts without tokenizer.

    Captions without any word are left out.
    """
    device = next(model.parameters()).device
    backbone, head = model.backbone, model.head
    views = batch.video.shape[1]
    seen, heard = (torch.nonzero(mask).flatten().tolist() for mask in (batch.video_mask, batch.audio_mask))
    captions = [(i, caption) for i, index in enumerate(batch.clips) for caption in clips[index].captions]
    ids = [(i, caption, tokenizer.encode(caption, words)) for i, caption in captions] if tokenizer else []
    ids = [entry for entry in ids if entry[2].any()]
    arrays: Arrays = {}

    def keep(count: int, **features: tuple[Tensor | None, int]) -> None:
        for name, (value, width) in features.items():
            if value is None:
                arrays[name] = np.zeros((0, width), np.float32)
            else:
                arrays[name] = value.float().unflatten(0, (-1, count)).mean(1).cpu().numpy()

    with autocast:
        video = audio = text = to_audio = to_text = None
        if seen:
            video = backbone.features("video", batch.video[seen].flatten(0, 1).to(device))[:, 0]
            to_audio, to_text = head.embed_video(video)
        if heard:
            audio = backbone.features("audio", batch.audio[heard].flatten(0, 1).to(device))[:, 0]
        if ids:
            text = backbone.features("text", torch.from_numpy(np.stack([entry[2] for entry in ids])).to(device))[:, 0]
        sound = None if audio is None else head.audio(audio)
        sentence = None if text is None else head.text(text)
    spaces = backbone.config.head
    keep(views, video_pooled=(video, backbone.width("video")), video_to_audio=(to_audio, spaces.video_audio),
         video_to_text=(to_text, spaces.video_text), audio_pooled=(audio, backbone.width("audio")),
         audio_embedding=(sound, spaces.video_audio))  # fmt: skip
    keep(1, text_pooled=(text, backbone.width("text")), text_embedding=(sentence, spaces.video_text))
    read = [clips[index] for index in batch.clips]
    return arrays | {
        "path": _texts([str(clip.path) for clip in read]),
        "row": np.array(batch.clips, np.int64),
        "start": np.array([clip.start for clip in read], np.float64),
        "end": np.array([np.nan if clip.end is None else clip.end for clip in read], np.float64),
        "split": _texts([clip.split or "" for clip in read]),
        "label": _texts([clip.label or "" for clip in read]),
        "video_clip": np.array(seen, np.int64),
        "audio_clip": np.array(heard, np.int64),
        "text_clip": np.array([entry[0] for entry in ids], np.int64),
        "caption": _texts([entry[1] for entry in ids]),
        "bad_path": _texts([str(clips[index].path) for index, _ in batch.bad]),
        "bad_row": np.array([index for index, _ in batch.bad], np.int64),
        "bad_reason": _texts([reason for _, reason in batch.bad]),
    }


def _texts(values: list[str]) -> np.ndarray:
    return np.array(values, dtype=str)


def _concatenate(batches: list[Arrays]) -> Arrays:
    first = np.cumsum([0, *(len(arrays["row"]) for arrays in batches)])
    for arrays, offset in zip(batches, first, strict=False):
        for name in POSITIONS:
            arrays[name] += offset
    return {name: np.concatenate([arrays[name] for arrays in batches]) for name in batches[0]}


def missing_shards(parts: Path, wanted: range) -> list[range]:
    """Runs of shards of `wanted` that are not in `parts`; a damaged one is named and made again."""
    missing = []
    for shard in wanted:
        path = _shard(parts, shard)
        try:
            if path.exists():
                read_shard(path)
                continue
        except FeaturesError as error:
            tqdm.write(f"made again: {error}", file=sys.stderr)
        missing.append(shard)
    ends = [i for i, shard in enumerate(missing) if shard + 1 not in missing]
    starts = [0, *(end + 1 for end in ends)]
    return [range(missing[a], missing[b] + 1) for a, b in zip(starts, ends, strict=False)]


def _shard(parts: Path, number: int) -> Path:
    return parts / f"{number:06d}.npz"


def make_shards(
    model: VATT, dataset: EvalDataset, tokenizer: Tokenizer | None, parts: Path, per_shard: int, max_bad: float,
    autocast: Any, world: World = ALONE,
) -> list[Path]:  # fmt: skip
    """Embeds what is missing in `parts`, `per_shard` batches a file; returns the paths of all shards.

    Each rank of `world` makes a consecutive part of the shards, and goes on when all have theirs. Raises `DataError`
    when too many clips of a rank are bad.
    """
    count = -(-len(dataset) // per_shard)
    error, bad, tried = "", 0, 0
    try:
        own = range(count * world.rank // world.size, count * (world.rank + 1) // world.size)
        bad, tried = _make_shards(model, dataset, tokenizer, parts, own, per_shard, max_bad, autocast)
    except DataError as caught:
        if world.size == 1:
            raise
        error = str(caught)
    told = world.exchange((bad, tried, error))
    if errors := [text for _, _, text in told if text]:
        raise DataError(errors[0])
    if sum(bad for bad, _, _ in told) == (tried := sum(tried for _, tried, _ in told)):
        raise DataError(f"none of the {tried} clips could be read")
    return [_shard(parts, i) for i in range(count)]


def _make_shards(
    model: VATT, dataset: EvalDataset, tokenizer: Tokenizer | None, parts: Path, own: range, per_shard: int,
    max_bad: float, autocast: Any,
) -> tuple[int, int]:  # fmt: skip
    """Makes the shards `own` that are missing; returns how many of their clips are bad and how many were tried."""
    clips = {clip.index: clip for clip in dataset.clips}
    runs = missing_shards(parts, own)
    absent = {shard for run in runs for shard in run}
    done = [read_shard(_shard(parts, i), ("row", "bad_row")) for i in own if i not in absent]
    bad = sum(len(arrays["bad_row"]) for arrays in done)
    tried = bad + sum(len(arrays["row"]) for arrays in done)
    remarks = Remarks(dataset.clips)
    with progress_bar(len(dataset.clips), "embedding", "clip", tried) as bar:
        for run in runs:
            start, stop = run.start * per_shard, min(run.stop * per_shard, len(dataset))
            batches = make_loader(dataset, start, stop - start, dataset.data.workers)
            for shard in run:
                kept = []
                for batch in itertools.islice(batches, min(per_shard, stop - shard * per_shard)):
                    for index, reason in batch.bad:
                        tqdm.write(printable(f"bad clip, left out: {clips[index].name}: {reason}"), file=sys.stderr)
                    kept.append(embed_clips(model, batch, clips, tokenizer, dataset.model.text.words, autocast))
                    bar.update(len(batch.tried))
                    remarks.add(batch.remarks)
                    bad, tried = bad + len(batch.bad), tried + len(batch.tried)
                write_shard(_shard(parts, shard), _concatenate(kept))
                if bad_share(bad, tried, len(dataset.clips)) > max_bad:
                    raise DataError(f"{bad} of {tried} clips tried could not be used, more than the share of "
                                    f"{max_bad:g} that --max-bad-share allows; they are named above. Allow more and "
                                    f"--resume, or mend them, delete {parts} and start over")  # fmt: skip
    remarks.tell()
    return bad, tried


def open_parts(out: Path, parts: Path, metadata: dict[str, Any], resume: bool) -> dict[str, Any] | None:
    """The record kept beside the shards, that of the first start if resumed; None: there is nothing left to do.

    Raises `ConfigError` rather than overwrite, and `RunError` when what was begun is not what is asked for now.
    """
    settings = parts / "settings.json"
    if not resume:
        for path in (out, parts):
            if path.exists():
                raise ConfigError(f"{path} exists; go on with --resume, delete it or choose another --out")
    elif out.exists() or settings.exists():
        begun = read_features(out, ()).metadata if out.exists() else read_settings(settings)
        differ = [f"{name}: {begun.get(name)!r}, now {metadata[name]!r}" for name in IDENTITY
                  if begun.get(name) != metadata[name]]  # fmt: skip
        if differ:
            raise RunError(f"{out if out.exists() else parts} was begun with other settings ({'; '.join(differ)}); "
                           "repeat those, or delete it to start over")  # fmt: skip
        return None if out.exists() else begun
    shutil.rmtree(parts, ignore_errors=True)  # shards of which nobody knows whence
    parts.mkdir(parents=True)
    write_atomically(settings, (json.dumps(metadata, indent=2) + "\n").encode())
    return metadata
