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
from contextlib import ExitStack, suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from .checkpoints.fingerprints import fingerprint, weights_fingerprint
from .checkpoints.loading import load_vatt, operations
from .checkpoints.model_folder import VOCABULARY, load_config, load_tokenizer, model_folder
from .config.serialization import to_identity
from .data.clip import Manifest
from .data.datasets.evaluation import EvalDataset
from .data.datasets.moments import SHORTEST, cut_moments, moment_length
from .data.manifest import choose_clips
from .data.tokenizer import Tokenizer
from .errors import ConfigError
from .inference.bfloat16 import choose_dtype, inference_form
from .inference.embeddings import WINDOWS_AT_ONCE, embed, embed_dataset
from .inference.features_file import FeaturesError, assemble, check_format
from .inference.result_folder import FEATURES_IDENTITY, begun_dtype, open_features
from .inference.search.archive import SPACES, SUFFIX, Archive, create_archive, is_archive, open_archive
from .inference.search.filling import Filling, Lack, compare, removable
from .ops import add_attention_flag
from .runtime.cli import exit_code
from .runtime.device import pick_device
from .runtime.distributed import World, init_world
from .runtime.forms import printable
from .runtime.lock import add_force_flag, owned
from .runtime.provenance import code_identity, environment

SHARD_CLIPS = 256  # at least; what a crash loses
EXAMPLES = """examples:
  python -m vatt.embed --model runs/mbs --data clips/ --out features.npz
  python -m vatt.embed --model vatt-mbs --data clips.csv --split test --windows 8 --out features.parquet
  python -m vatt.embed --model vatt-mbs --data clips.csv --out features.parquet --resume     go on after a crash

  python -m vatt.embed --model vatt-mbs --data sounds.csv --out sounds.npz          rows of .wav, .flac, ... files
  python -m vatt.embed --model vatt-mbs --data films/ --every 1 --out moments.npz   a row for each second of each file
  python -m vatt.embed --model vatt-mbs --data films/ --every 1 --out archive.lance --sync   new and changed files only

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
    add("--out", required=True, metavar="FILE", help="file to write, .npz or .parquet, or archive to add to, .lance")
    add("--resume", action="store_true", help="go on from the shards in FILE.parts/; an archive needs no telling")
    add("--sync", action="store_true", help="remove the rows of files that are not there any more from an archive")
    add_force_flag(parser)
    add("--split", metavar="NAME", help="only these rows of the manifest (default: all)")
    add("--every", type=float, metavar="SECONDS", help="a row for each moment of a clip: one starts every so often")
    add(
        "--window",
        type=float,
        metavar="SECONDS",
        help="length of a moment (default: a window of the model, or --every)",
    )
    add("--windows", type=int, metavar="N", help="temporal windows a clip (default: the model's) or moment (all of it)")
    add("--vocabulary", type=Path, metavar="FILE", help=f"word list (default: {VOCABULARY} in the model's folder)")
    add("--batch-size", type=int, metavar="N", help="clips at once (default: 32 windows' worth)")
    add("--workers", type=int, metavar="N", help="decoding processes, 0: this one (default: the model's setting)")
    add("--device", default="auto", metavar="NAME", help="cpu, cuda, ... (default auto: a GPU if there is one)")
    add(
        "--dtype",
        default="auto",
        choices=("auto", "float32", "bfloat16"),
        help="compute type (default auto: bfloat16 on GPUs, and on CPUs that have it for models as wide as Small)",
    )
    add("--fused", action="store_true", default=None, help="fast operations (default: as the model was trained)")
    add_attention_flag(parser)
    add(
        "--max-bad-share",
        type=float,
        metavar="R",
        help="stop when a larger share of the clips cannot be read (default: the model's setting)",
    )
    args = parser.parse_args(argv)
    for name, least in (
        *(("windows", 1), ("batch_size", 1), ("workers", 0), ("max_bad_share", 0)),
        *(("every", SHORTEST), ("window", SHORTEST)),
    ):
        value = getattr(args, name)
        if value is not None and not value >= least:  # so that NaN is refused
            parser.error(f"--{name.replace('_', '-')} is at least {least}, got {value:g}")
    if not is_archive(args.out):
        args.out = Path(args.out)
        if args.sync:
            parser.error(f"--sync is for archives, which end in {SUFFIX}")
    if args.window is not None and args.every is None:
        parser.error("--window is the length of a moment; say how often one starts with --every")
    return args


def run(args: argparse.Namespace, world: World, held: ExitStack) -> None:
    """Embed the clips that the flags name and write the file of features, which is ours until `held` is closed."""
    archived = is_archive(args.out)
    if not archived:
        check_format(args.out)
    elif world.size > 1:
        raise ConfigError(f"{args.out}: start commands of their own for parts of --data; an archive takes several")
    device = pick_device(args.device, world.local_rank if world.size > 1 else None)
    folder = model_folder(args.model)
    clips = choose_clips(args.data, args.split, args.columns)
    config = load_config(folder)
    ops = operations(config, device, args.fused, args.attention)
    model = load_vatt(folder, device=device, fused=args.fused, attention=args.attention)
    begun = None
    if archived:
        with suppress(FeaturesError):  # there is none yet; what is wrong with it is said when it is opened to be filled
            begun = open_archive(args.out).metadata["dtype"]
    else:
        parts = args.out.with_name(f"{args.out.name}.parts")
        begun = begun_dtype(args.out, parts) if args.resume else None
    dtype, why = choose_dtype(args.dtype, device, model, begun)
    tokenizer = None
    if args.vocabulary or (folder / VOCABULARY).is_file():
        tokenizer = Tokenizer.from_file(args.vocabulary) if args.vocabulary else load_tokenizer(folder)
    data = config.data if args.workers is None else replace(config.data, workers=args.workers)
    windows, length = args.windows or config.eval_windows, None
    if args.every is not None:
        length, all_of_it = moment_length(args.every, args.window, config.model.video)
        windows = args.windows or all_of_it
    size = args.batch_size or max(1, WINDOWS_AT_ONCE // windows)
    per_shard = max(1, SHARD_CLIPS // size)
    metadata: dict[str, Any] = {
        "model": str(folder.absolute()),
        "weights_sha256": weights_fingerprint(model),
        "config_sha256": hashlib.sha256(json.dumps(to_identity(config.model)).encode()).hexdigest(),
        "vocabulary_sha256": hashlib.sha256("\n".join(tokenizer.words).encode()).hexdigest() if tokenizer else None,
        "windows": windows,
        "every": args.every,
        "window": length,
        "batch_size": size,
        "shard_batches": per_shard,
        "device": device.type,
        "dtype": str(dtype).removeprefix("torch."),
        "operations": ops.name,
        "environment": environment(device),
    }
    autocast = inference_form(model, device, dtype)  # after the fingerprint of the weights as they are in the file
    max_bad = data.max_bad_share if args.max_bad_share is None else args.max_bad_share

    def dataset_of(wanted: Manifest) -> EvalDataset:
        what = "clips" if length is None else f"moments of {length:g} s, one every {args.every:g} s"
        print(f"{len(wanted)} {what}, {windows} window{'s' * (windows > 1)} each; {folder}, {device}, {dtype} ({why})")
        print(ops.reason)
        if tokenizer is None and any(clip.captions for clip in wanted):
            print(f"captions are left out: {folder} has no {VOCABULARY}; copy its word list there or name --vocabulary")
        words, moments = tokenizer or Tokenizer([]), length is not None
        return EvalDataset(wanted, data, config.model, words, windows, size, needs=(), moments=moments)

    def cut(wanted: Manifest) -> Manifest:
        return wanted if length is None else cut_moments(wanted, args.every, length, data.workers)

    if archived:
        head = config.model.head
        widths = dict(zip(SPACES, (head.video_text, head.video_audio, head.video_audio), strict=True))
        archive = create_archive(args.out, metadata, widths)
        lack = compare(clips, archive.known())
        _tell_and_sync(args, archive, lack, clips.root)
        bad = 0
        if lack.files:
            moments = cut(lack.clips)
            sink = Filling(archive, moments, lack.files)
            dataset = dataset_of(moments)
            mapped = embed_dataset(
                model, dataset, tokenizer, autocast, None, max_bad, world, shard_batches=per_shard, sink=sink
            )
            bad = len(mapped.bad)
        for line in archive.settle():
            print(line)
        print(f"done: {args.out}: {len(archive)} clips with video; {bad} of the new ones left out, listed in it")
        return
    clips = cut(clips)
    metadata |= {"data": str(Path(args.data).absolute()), "clips_sha256": fingerprint(clips), "split": args.split}
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
    mapped = embed_dataset(
        model, dataset_of(clips), tokenizer, autocast, parts, max_bad, world, shard_batches=per_shard
    )
    if not world.is_first:
        return
    counts = assemble(mapped.files, args.out, record)
    shutil.rmtree(parts)
    totals = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items())
    print(f"done: {args.out}: {totals}{' (left out, listed in it)' if counts['bad_clips'] else ''}")


def _tell_and_sync(args: argparse.Namespace, archive: Archive, lack: Lack, root: Path) -> None:
    """Say what an archive has and lacks; remove the rows of vanished files where --sync asks for it."""
    new = len(lack.files) - lack.changed
    print(f"{args.out}: {new} files are new, {lack.changed} changed, {lack.unchanged} are as they were")
    for path in lack.unnameable:
        print(f"left out: {printable(path)}: its name is no UTF-8, which an archive needs; rename it", file=sys.stderr)
    remove, away = removable(lack.vanished, root)
    if args.sync:
        archive.remove(remove)
        print(f"{len(remove)} files are not there any more, their rows were removed")
    elif remove:
        print(f"{len(remove)} files are not there any more; --sync removes their rows")
    if away:
        print(f"{len(away)} files lie in folders that are not there, such as {away[0]}; their rows are kept")


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)

    def action() -> None:
        with init_world(args.device) as world, ExitStack() as held:
            run(args, world, held)

    return exit_code(action, "interrupted; finished shards are kept: --resume goes on")


class _Callable(ModuleType):
    """This module, which is `vatt.embed` as soon as it is imported: the public function of that name, too."""

    __call__ = staticmethod(embed)

    def __reduce__(self) -> tuple[Any, ...]:
        # Libraries that send functions to other processes (Ray, Dask) know how to send modules of ModuleType alone.
        return import_module, (self.__name__,)


sys.modules[__name__].__class__ = _Callable

if __name__ == "__main__":
    sys.exit(main())
