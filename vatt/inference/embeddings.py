"""Embeddings and pooled features of clips: computed in one place, for files of features, retrieval and `vatt.embed`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..checkpoints.fingerprints import weights_fingerprint
from ..checkpoints.loading import load_vatt
from ..data.clip import Clip, Manifest
from ..data.datasets.batch import Batch
from ..data.datasets.evaluation import EvalDataset
from ..data.datasets.moments import cut_moments, moment_length
from ..data.manifest import read_manifest
from ..data.media_types import AUDIO, IMAGE, MEDIA_SUFFIXES
from ..data.tokenizer import Tokenizer
from ..errors import ConfigError
from ..model.vatt import VATT
from ..runtime.device import autocast_for
from ..runtime.distributed import SINGLE_PROCESS, World
from .features_file import FORMAT, NAMES, POSITIONS, Features
from .npz import Arrays
from .over_clips import MappedClips, map_clips
from .read_clip import check_windows

WINDOWS_AT_ONCE = 32  # of all clips of a batch together


class Embedded(NamedTuple):
    """What a model says of a batch of B clips: V with video, A with sound, Q captions; W windows a clip, D width.

    All float32, on the model's device. Captions have no windows.
    """

    video_pooled: Tensor  # [V, W, D]
    video_to_audio: Tensor  # [V, W, 512]
    video_to_text: Tensor  # [V, W, 256]
    audio_pooled: Tensor  # [A, W, D]
    audio_embedding: Tensor  # [A, W, 512]
    text_pooled: Tensor  # [Q, D]
    text_embedding: Tensor  # [Q, 256]
    video_clip: list[int]  # [V], place in the batch
    audio_clip: list[int]  # [A]
    text_clip: list[int]  # [Q]
    captions: list[str]  # [Q]


@torch.no_grad()
def embed_batch(
    model: VATT, batch: Batch, captions: Mapping[int, Sequence[str]], tokenizer: Tokenizer | None, autocast: Any
) -> Embedded:
    """Return embeddings and pooled features of all windows of `batch`, and of its captions.

    Args:
        model: in eval mode.
        batch: with a windows axis after B.
        captions: those of each clip by its manifest index; captions without any word are left out.
        tokenizer: of the model; without one captions are left out.
        autocast: context of the forward passes, see `autocast_for`.
    """
    device = next(model.parameters()).device
    backbone, head = model.backbone, model.head
    views, length = batch.video.shape[1], backbone.config.text.words
    pictures, sounds = (torch.nonzero(mask).flatten().tolist() for mask in (batch.video_mask, batch.audio_mask))
    captioned = (
        [(i, text) for i, index in enumerate(batch.clips) for text in captions.get(index, ())] if tokenizer else []
    )
    encoded = [(i, text, ids) for i, text in captioned if tokenizer and (ids := tokenizer.encode(text, length)).any()]
    spaces = backbone.config.head
    video = torch.empty(0, backbone.width("video"))
    audio, text = torch.empty(0, backbone.width("audio")), torch.empty(0, backbone.width("text"))
    to_audio, to_text = torch.empty(0, spaces.video_audio), torch.empty(0, spaces.video_text)
    sound, sentence = torch.empty(0, spaces.video_audio), torch.empty(0, spaces.video_text)
    with autocast:
        if pictures:
            video = backbone.features("video", batch.video[pictures].flatten(0, 1).to(device))[:, 0]
            to_audio, to_text = head.embed_video(video)
        if sounds:
            audio = backbone.features("audio", batch.audio[sounds].flatten(0, 1).to(device))[:, 0]
            sound = head.audio(audio)
        if encoded:
            # Each once: all moments of a clip have its captions.
            once = {caption: ids for _, caption, ids in encoded}
            place = {caption: number for number, caption in enumerate(once)}
            words = torch.from_numpy(np.stack(list(once.values())))
            text = backbone.features("text", words.to(device))[:, 0]
            each = [place[entry[1]] for entry in encoded]
            text, sentence = text[each], head.text(text)[each]

    def windows(x: Tensor) -> Tensor:
        return x.float().reshape(-1, views, x.shape[-1])

    return Embedded(
        windows(video),
        windows(to_audio),
        windows(to_text),
        windows(audio),
        windows(sound),
        text.float(),
        sentence.float(),
        pictures,
        sounds,
        [entry[0] for entry in encoded],
        [entry[1] for entry in encoded],
    )


def feature_arrays(embedded: Embedded, batch: Batch, clips: Mapping[int, Clip]) -> Arrays:
    """Return the arrays of a features file for one batch: means over the windows, and what the clips are.

    Args:
        embedded: of `batch`.
        batch: the clips that could be read, and those that could not.
        clips: by manifest index.
    """
    read = [clips[index] for index in batch.clips]
    means = {
        name: getattr(embedded, name).mean(1).cpu().numpy()
        for name in ("video_pooled", "video_to_audio", "video_to_text", "audio_pooled", "audio_embedding")
    }
    return means | {
        "text_pooled": embedded.text_pooled.cpu().numpy(),
        "text_embedding": embedded.text_embedding.cpu().numpy(),
        "path": _texts([str(clip.path) for clip in read]),
        "row": np.array(batch.clips, np.int64),
        "start": np.array([clip.start for clip in read], np.float64),
        "end": np.array([np.nan if clip.end is None else clip.end for clip in read], np.float64),
        "split": _texts([clip.split or "" for clip in read]),
        "label": _texts([clip.label or "" for clip in read]),
        "video_clip": np.array(embedded.video_clip, np.int64),
        "audio_clip": np.array(embedded.audio_clip, np.int64),
        "text_clip": np.array(embedded.text_clip, np.int64),
        "caption": _texts(embedded.captions),
        "bad_path": _texts([str(clips[index].path) for index, _ in batch.bad]),
    }


def embed_dataset(
    model: VATT,
    dataset: EvalDataset,
    tokenizer: Tokenizer | None,
    autocast: Any,
    parts: Path | None = None,
    max_bad_share: float | None = 1.0,
    world: World = SINGLE_PROCESS,
    *,
    shard_batches: int | None = None,
    sink: Callable[[Arrays], None] | None = None,
) -> MappedClips:
    """Embed all clips of `dataset`, in shards with the arrays of a features file; see `map_clips` for the arguments.

    Raises:
        DataError: too many clips cannot be read.
    """

    def function(batch: Batch) -> Arrays:
        clips = {index: dataset.clips.at(index) for index in batch.tried}
        captions = {index: clip.captions for index, clip in clips.items()}
        return feature_arrays(embed_batch(model, batch, captions, tokenizer, autocast), batch, clips)

    return map_clips(
        dataset,
        function,
        "embedding",
        parts,
        max_bad_share,
        world,
        shard_batches=shard_batches,
        positions=POSITIONS,
        sink=sink,
    )


def embed(
    model: VATT | str | Path,
    data: Manifest | str | Path | Sequence[str | Path],
    *,
    windows: int | None = None,
    every: float | None = None,
    window: float | None = None,
    split: str | None = None,
    batch_size: int | None = None,
    workers: int = 0,
    max_bad_share: float | None = 1.0,
) -> Features:
    """Embed clips, pictures and sounds, and their captions, in memory; the command `vatt embed` writes files.

    Args:
        model: a pre-trained model, or its folder.
        data: files, or what `vatt.read_manifest` takes or returns: a manifest CSV, a folder, tar shards.
        windows: evenly spaced temporal windows a clip, None: the model's setting; of a moment: all of it.
        every: seconds from one moment of a clip to the next, a row each; None: a row a clip.
        window: seconds of a moment, None: a window of the model, or `every` where that is longer.
        split: only these rows of a manifest.
        batch_size: clips at once, None: 32 windows' worth.
        workers: decoding processes, 0: this one; a script with workers needs the `if __name__ == "__main__"` guard.
        max_bad_share: share of clips that may be unreadable; those that are take no part and are listed. None: all may
            be, and the features are then of no clip.

    Returns:
        Arrays by the names of `vatt.inference.features_file`, and how they were made.

    Raises:
        ConfigError: `every` or `window` are no lengths.
        DataError: no clip can be read, or too many cannot.
    """
    model = model if isinstance(model, VATT) else load_vatt(model)
    settings, tokenizer = model.settings, model.tokenizer
    clips = _manifest(data)
    clips = clips if split is None else clips.split(split)
    if every is not None:
        length, all_of_it = moment_length(every, window, settings.model.video)
        windows, clips = all_of_it if windows is None else windows, cut_moments(clips, every, length, workers)
    windows = settings.eval_windows if windows is None else windows
    check_windows(windows, 0.0, None)
    size = batch_size or max(1, WINDOWS_AT_ONCE // windows)
    options = replace(settings.data, workers=workers)
    words, moments = tokenizer or Tokenizer([]), every is not None
    dataset = EvalDataset(clips, options, settings.model, words, windows, size, needs=(), moments=moments)
    parameter = next(model.parameters())
    autocast = autocast_for(parameter.device, torch.float32)
    arrays = embed_dataset(model, dataset, tokenizer, autocast, None, max_bad_share).arrays()
    record = {"format": FORMAT, "model": str((model.folder or Path("model in memory")).absolute()), "windows": windows}
    record |= {"weights_sha256": weights_fingerprint(model), "clips": len(arrays["row"])}
    return Features(Path("what vatt.embed returned"), {name: arrays[name] for name in NAMES}, record)


def _manifest(data: Manifest | str | Path | Sequence[str | Path]) -> Manifest:
    if isinstance(data, Manifest):
        return data
    if not isinstance(data, str | Path):
        paths = [Path(path).absolute() for path in data]
        if not paths:
            raise ConfigError("no files to embed: the list is empty")
        return Manifest(tuple(Clip(i, path, str(path)) for i, path in enumerate(paths)), Path.cwd(), ())
    if Path(data).suffix.lower() in MEDIA_SUFFIXES | IMAGE | AUDIO:
        return _manifest([data])
    return read_manifest(data)


def _texts(values: list[str]) -> np.ndarray:
    return np.array(values, dtype=str)
