"""Features of many clips, once and for all: `python -m vatt.embed --model DIR --data CLIPS --out features.npz`.

For each clip, averaged over evenly spaced temporal windows (the release's "embd" score): the pooled backbone features
and the common-space embeddings of video and sound; for each caption its pooled feature and embedding. Clips, images and
sound files may share a manifest: each has what there is of it, and is bad only when nothing of it can be read.
`vatt.features` describes the file. `vatt.search` ranks its clips.

Work is kept in shards beside the output (OUT.parts/): a crash loses at most one, `--resume` goes on and ends with the
file that an uninterrupted run would have written.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import shutil
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from .command import exit_code
from .config import ConfigError, to_dict
from .data.bad_clips import bad_share
from .data.loader import Batch, DataError, EvalDataset, make_loader
from .data.manifest import Clip, Manifest, read_manifest
from .data.text import Tokenizer
from .distributed import ALONE, World, joined
from .features import POSITIONS, Arrays, FeaturesError, assemble, check_format, read_features, read_shard, write_shard
from .files import write_atomically
from .model.vatt import VATT
from .ops import choose
from .pretrained import VOCABULARY, load_config, load_tokenizer, load_vatt, model_folder, weights_fingerprint
from .progress import progress_bar
from .records import code_identity, environment
from .run import RunError, autocast_for, compute_dtype, fingerprint, pick_device
from .runtime.forms import FormError, printable, read_json
from .runtime.lock import add_force_flag, owned

SHARD_CLIPS = 256  # at least; what a crash loses
# What decides the numbers; a resumed run must have them all in common with the shards.
IDENTITY = ("weights_sha256", "config_sha256", "vocabulary_sha256", "clips_sha256", "split", "windows", "batch_size",
            "shard_batches", "device", "dtype", "operations")  # fmt: skip
EXAMPLES = """examples:
  python -m vatt.embed --model runs/mbs --data clips/ --out features.npz
  python -m vatt.embed --model vatt-mbs --data clips.csv --split test --windows 8 --out features.parquet
  python -m vatt.embed --model vatt-mbs --data clips.csv --out features.parquet --resume     go on after a crash

  python -m vatt.embed --model vatt-mbs --data sounds.csv --out sounds.npz          rows of .wav, .flac, ... files

arrays (C clips, V with video, A with sound, Q captions, D width of the backbone; means over the windows, float32):
  video_pooled [V,D]  video_to_audio [V,512]  video_to_text [V,256]   video_clip [V]: which of the C clips
  audio_pooled [A,D]  audio_embedding [A,512]     audio_clip [A]: which of the C clips
  text_pooled [Q,D]   text_embedding [Q,256]      text_clip [Q], caption [Q]
  path row start end split label [C]; bad_path bad_row bad_reason; metadata: JSON
Images have no sound, sound files no video: they are in the C clips and not in the other arrays.
Parquet holds a row a clip (pip install -e '.[features]'); `python -m pydoc vatt.features` tells all of both formats.
exit codes: 0 done, 1 failed, 2 wrong usage or settings, 130 interrupted (go on with --resume)."""


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
                    bad, tried = bad + len(batch.bad), tried + len(batch.tried)
                write_shard(_shard(parts, shard), _concatenate(kept))
                if bad_share(bad, tried, len(dataset.clips)) > max_bad:
                    raise DataError(f"{bad} of {tried} clips tried could not be used, more than the share of "
                                    f"{max_bad:g} that --max-bad-share allows; they are named above. Allow more and "
                                    f"--resume, or mend them, delete {parts} and start over")  # fmt: skip
    return bad, tried


def choose_clips(source: str, split: str | None) -> Manifest:
    """All rows of a manifest or folder, or those of one split."""
    manifest = read_manifest(source)
    clips = manifest if split is None else manifest.split(split)
    if not len(clips):
        raise ConfigError(f"{source} has no rows of split {split!r}; it has: {', '.join(manifest.splits) or 'none'}")
    return clips


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
        begun = read_features(out, ()).metadata if out.exists() else _read_settings(settings)
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


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        settings: dict[str, Any] = read_json(path)
    except FormError as error:
        raise RunError(f"{path} is damaged ({error}); delete {path.parent} to start over") from error
    return settings


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m vatt.embed", epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Write features and common-space embeddings of clips, images, sounds and captions.",
    )  # fmt: skip
    add = parser.add_argument
    add("--model", type=Path, required=True, metavar="DIR", help="folder of a finished run or of a converted model")
    add("--data", required=True, metavar="PATH",
        help="manifest CSV (clips, images and sound files), folder of clips, or tar shards")  # fmt: skip
    add("--out", type=Path, required=True, metavar="FILE", help="file to write, .npz or .parquet")
    add("--resume", action="store_true", help="go on from the shards in FILE.parts/")
    add_force_flag(parser)
    add("--split", metavar="NAME", help="only these rows of the manifest (default: all)")
    add("--windows", type=int, metavar="N", help="temporal windows a clip (default: the model's)")
    add("--vocabulary", type=Path, metavar="FILE", help=f"word list (default: {VOCABULARY} in the model's folder)")
    add("--batch-size", type=int, metavar="N", help="clips at once (default: 32 windows' worth)")
    add("--workers", type=int, metavar="N", help="decoding processes, 0: this one (default: the model's setting)")
    add("--device", default="auto", metavar="NAME", help="cpu, cuda, ... (default auto: a GPU if there is one)")
    add("--dtype", default="auto", choices=("auto", "float32", "bfloat16"),
        help="compute type (default auto: bfloat16 on GPUs)")  # fmt: skip
    add("--fused", action="store_true", default=None, help="fast operations (default: as the model was trained)")
    add("--max-bad-share", type=float, metavar="R",
        help="stop when a larger share of the clips cannot be read (default: the model's setting)")  # fmt: skip
    args = parser.parse_args(argv)
    for name, least in (("windows", 1), ("batch_size", 1), ("workers", 0), ("max_bad_share", 0)):
        value = getattr(args, name)
        if value is not None and not value >= least:  # so that NaN is refused
            parser.error(f"--{name.replace('_', '-')} is at least {least}, got {value:g}")
    return args


def embed(args: argparse.Namespace, world: World, held: ExitStack) -> None:
    check_format(args.out)
    device = pick_device(args.device, world.local_rank if world.size > 1 else None)
    dtype = compute_dtype(args.dtype, device)
    folder = model_folder(args.model)
    clips = choose_clips(args.data, args.split)
    config = load_config(folder)
    fused = config.fused if args.fused is None else args.fused
    model, ops = load_vatt(folder, device=device, fused=fused), choose(fused, device)
    tokenizer = None
    if args.vocabulary or (folder / VOCABULARY).is_file():
        tokenizer = Tokenizer.from_file(args.vocabulary) if args.vocabulary else load_tokenizer(folder)
    windows = args.windows or config.eval_windows
    data = config.data if args.workers is None else replace(config.data, workers=args.workers)
    size = args.batch_size or max(1, 32 // windows)
    dataset = EvalDataset(clips, data, config.model, tokenizer or Tokenizer([]), windows, size, needs=())
    per_shard = max(1, SHARD_CLIPS // size)
    metadata: dict[str, Any] = {
        "model": str(folder.absolute()),
        "weights_sha256": weights_fingerprint(model),
        "config_sha256": hashlib.sha256(json.dumps(to_dict(config.model)).encode()).hexdigest(),
        "vocabulary_sha256": hashlib.sha256("\n".join(tokenizer.words).encode()).hexdigest() if tokenizer else None,
        "data": str(Path(args.data).absolute()),
        "clips_sha256": fingerprint(clips),
        "split": args.split,
        "windows": windows,
        "batch_size": size,
        "shard_batches": per_shard,
        "device": device.type,
        "dtype": str(dtype).removeprefix("torch."),
        "operations": ops.impl,
        "environment": environment(device),
    }
    parts = args.out.with_name(f"{args.out.name}.parts")


    if world.size > 1:
        world.require_equal(code_identity() | {name: metadata[name] for name in IDENTITY} | {"--resume": args.resume})

    def start() -> dict[str, Any] | None:
        held.enter_context(owned(args.out, force=args.force))
        return open_parts(args.out, parts, metadata, args.resume)

    record = world.first(start)
    if record is None:
        if world.is_first:
            shutil.rmtree(parts, ignore_errors=True)
        print(f"{args.out} is complete")
        return
    print(f"{len(clips)} clips, {windows} windows each; {folder}, {device}, {dtype}")
    print(ops.reason)
    if tokenizer is None and any(clip.captions for clip in clips):
        print(f"captions are left out: {folder} has no {VOCABULARY}; copy its word list there or name --vocabulary")
    max_bad = data.max_bad_share if args.max_bad_share is None else args.max_bad_share
    shards = make_shards(model, dataset, tokenizer, parts, per_shard, max_bad, autocast_for(device, dtype),
                         world)  # fmt: skip
    if not world.is_first:
        return
    counts = assemble(shards, args.out, record)
    shutil.rmtree(parts)
    said = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items())
    print(f"done: {args.out}: {said}{' (left out, listed in it)' if counts['bad_clips'] else ''}")


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)

    def action() -> None:
        with joined(args.device) as world, ExitStack() as held:
            embed(args, world, held)

    return exit_code(action, "interrupted; finished shards are kept: --resume goes on")


if __name__ == "__main__":
    sys.exit(main())
