"""Features of many clips, once and for all: `python -m vatt.embed --model DIR --data CLIPS --out features.npz`.

For each clip, averaged over evenly spaced temporal windows (the release's "embd" score): the pooled backbone features
and the common-space embeddings of video and sound; for each caption its pooled feature and embedding. Clips, images and
sound files may share a manifest: each has what there is of it, and is bad only when nothing of it can be read.
`vatt.inference.features_file` describes the file. `vatt.search` ranks its clips.

Work is kept in shards beside the output (OUT.parts/): a crash loses at most one, `--resume` goes on and ends with the
file that an uninterrupted run would have written.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from .checkpoints.fingerprints import fingerprint, weights_fingerprint
from .checkpoints.loading import load_vatt
from .checkpoints.model_folder import VOCABULARY, load_config, load_tokenizer, model_folder
from .config.serialization import to_dict
from .data.datasets.evaluation import EvalDataset
from .data.manifest import choose_clips
from .data.tokenizer import Tokenizer
from .inference.embeddings import embed, embed_dataset
from .inference.features_file import assemble, check_format
from .inference.result_folder import FEATURES_IDENTITY, open_features
from .ops import choose
from .runtime.cli import exit_code
from .runtime.device import autocast_for, compute_dtype, pick_device
from .runtime.distributed import World, init_world
from .runtime.lock import add_force_flag, owned
from .runtime.provenance import code_identity, environment

SHARD_CLIPS = 256  # at least; what a crash loses
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
Parquet holds a row a clip (pip install -e '.[features]'); `python -m pydoc vatt.inference.features_file` has both.
exit codes: 0 done, 1 failed, 2 wrong usage or settings, 130 interrupted (go on with --resume)."""


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m vatt.embed",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Write features and common-space embeddings of clips, images, sounds and captions.",
    )
    add = parser.add_argument
    add("--model", type=Path, required=True, metavar="DIR", help="folder of a finished run or of a converted model")
    add(
        "--columns",
        metavar="NAME=COLUMN,...",
        default="",
        help="columns of --data that have other names, e.g. caption=title,path=filepath",
    )
    add(
        "--data",
        required=True,
        metavar="PATH",
        help="manifest CSV (clips, images and sound files), folder of clips, or tar shards",
    )
    add("--out", type=Path, required=True, metavar="FILE", help="file to write, .npz or .parquet")
    add("--resume", action="store_true", help="go on from the shards in FILE.parts/")
    add_force_flag(parser)
    add("--split", metavar="NAME", help="only these rows of the manifest (default: all)")
    add("--windows", type=int, metavar="N", help="temporal windows a clip (default: the model's)")
    add("--vocabulary", type=Path, metavar="FILE", help=f"word list (default: {VOCABULARY} in the model's folder)")
    add("--batch-size", type=int, metavar="N", help="clips at once (default: 32 windows' worth)")
    add("--workers", type=int, metavar="N", help="decoding processes, 0: this one (default: the model's setting)")
    add("--device", default="auto", metavar="NAME", help="cpu, cuda, ... (default auto: a GPU if there is one)")
    add(
        "--dtype",
        default="auto",
        choices=("auto", "float32", "bfloat16"),
        help="compute type (default auto: bfloat16 on GPUs)",
    )
    add("--fused", action="store_true", default=None, help="fast operations (default: as the model was trained)")
    add(
        "--max-bad-share",
        type=float,
        metavar="R",
        help="stop when a larger share of the clips cannot be read (default: the model's setting)",
    )
    args = parser.parse_args(argv)
    for name, least in (("windows", 1), ("batch_size", 1), ("workers", 0), ("max_bad_share", 0)):
        value = getattr(args, name)
        if value is not None and not value >= least:  # so that NaN is refused
            parser.error(f"--{name.replace('_', '-')} is at least {least}, got {value:g}")
    return args


def run(args: argparse.Namespace, world: World, held: ExitStack) -> None:
    """Embed the clips that the flags name and write the file of features, which is ours until `held` is closed."""
    check_format(args.out)
    device = pick_device(args.device, world.local_rank if world.size > 1 else None)
    dtype = compute_dtype(args.dtype, device)
    folder = model_folder(args.model)
    clips = choose_clips(args.data, args.split, args.columns)
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
        identity = {name: metadata[name] for name in FEATURES_IDENTITY}
        world.require_equal(code_identity() | identity | {"--resume": args.resume})

    def start() -> dict[str, Any] | None:
        held.enter_context(owned(args.out, force=args.force))
        return open_features(args.out, parts, metadata, args.resume)

    record = world.on_main(start)
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
    mapped = embed_dataset(
        model, dataset, tokenizer, autocast_for(device, dtype), parts, max_bad, world, shard_batches=per_shard
    )
    if not world.is_first:
        return
    counts = assemble(mapped.files, args.out, record)
    shutil.rmtree(parts)
    totals = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items())
    print(f"done: {args.out}: {totals}{' (left out, listed in it)' if counts['bad_clips'] else ''}")


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)

    def action() -> None:
        with init_world(args.device) as world, ExitStack() as held:
            run(args, world, held)

    return exit_code(action, "interrupted; finished shards are kept: --resume goes on")


class _Callable(ModuleType):
    """This module, which is `vatt.embed` as soon as it is imported: the public function of that name, too."""

    __call__ = staticmethod(embed)


sys.modules[__name__].__class__ = _Callable

if __name__ == "__main__":
    sys.exit(main())
