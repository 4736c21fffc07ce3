"""Pre-training on raw video, audio and text: `python -m vatt.train --fused`.

One readable loop. Everything random is a function of (seed, step, slot), so a run that was killed and resumed
repeats the uninterrupted one to the bit.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn

from .checkpoints import training_checkpoint
from .checkpoints.model_folder import corpus_format, read_record, write_config
from .config.data import Decoder
from .config.presets import PRESETS, preset
from .config.pretraining import Config
from .data.bad_clips import check_share
from .data.check import corpus_notes
from .data.clip import Manifest
from .data.datasets.batch import Batch
from .data.datasets.evaluation import EvalDataset
from .data.datasets.training import ClipDataset
from .data.manifest import read_manifest
from .data.synthetic import FORMAT, corpus_of
from .data.tokenizer import Tokenizer
from .errors import ConfigError, DataError, RunError
from .evaluation.retrieval import embed_clips, format_scores, retrieval
from .model.vatt import VATT
from .ops import choose
from .runtime.device import autocast_for, compute_dtype
from .runtime.distributed import World
from .runtime.forms import parse_json
from .runtime.provenance import environment
from .training.launch import OpenedRun, add_run_flags, open_run, open_source, run_command, settings_from_flags
from .training.metrics_log import draw_losses
from .training.optimizers import Adam
from .training.pretraining_step import train_step
from .training.runner import Task, run_training

EXAMPLES = """examples:
  python -m vatt.train --fused                              the built-in corpus, about 4 minutes on two cores
  python -m vatt.train --fused --data clips/ --steps 2000   a folder of clips, captions from .txt files beside them
  python -m vatt.train --fused --preset mbs --data clips.csv --batch-size 64 --out runs/mbs
  python -m vatt.train --out runs/mbs --resume              go on after a crash, exactly
  python -m vatt.train --status runs/mbs                    the state of a run, while it runs or after
  torchrun --nproc-per-node=8 -m vatt.train --fused --preset mbs --data clips.csv --batch-size 2048 --micro-batch 64
  python -m vatt.train --preset tiny --set optim.rate=3e-4 --set data.augment.flip=true --print-config

A manifest is a CSV with `path` and, as far as known, `start,end` (seconds), `caption` (several separated by " | "),
`label`, `split` (train/test); paths are relative to the CSV.
exit codes: 0 done, 1 failed, 2 wrong usage or settings, 130/143 interrupted or terminated after saving."""


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m vatt.train",
        description="Train VATT on video, audio and text.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--preset", metavar="NAME", help=f"model size and settings: {', '.join(PRESETS)} (default tiny)")
    add("--data", metavar="PATH", help="manifest CSV, folder of clips or tar shards (default: the built-in corpus)")
    add(
        "--fused",
        action="store_true",
        default=None,
        help="fast operations: dropped tokens are never read, no attention or similarity matrix is stored",
    )
    add("--steps", metavar="N", type=int, help="number of updates")
    add("--batch-size", metavar="N", type=int, help="clips an update")
    add("--drop-rate", metavar="R", type=float, help="share of video and audio tokens dropped in training, 0 to <1")
    add(
        "--decoder",
        metavar="NAME",
        help=f"of video: {', '.join(get_args(Decoder))} (default auto: dali where it works, on NVIDIA GPUs with "
        "pip install -e '.[dali]', else pyav)",
    )
    add(
        "--micro-batch",
        metavar="N",
        type=int,
        help="clips a process computes at a time, for batches larger than memory; results stay the same",
    )
    add_run_flags(parser, folder="runs/PRESET", seed="weights", example="optim.clip=1")
    return parser.parse_args(argv)


def resolve_config(args: argparse.Namespace, saved: Config | None = None) -> Config:
    """Return the preset, or the settings of a resumed run, with the flags and `--set` laid over it."""
    if saved and args.preset and args.preset != saved.preset:
        raise ConfigError(f"the run in {args.out} has preset {saved.preset!r}, not {args.preset!r}")
    flags = {"data.decoder": args.decoder, "micro_batch": args.micro_batch}
    return settings_from_flags(saved or preset(args.preset or "tiny"), args, flags, saved)


def make_tokenizer(config: Config, manifest: Manifest, out: Path, resume: bool) -> Tokenizer:
    """Return the run's vocabulary: that of the run itself when resumed, a given word list, or one built from the
    captions.
    """
    path = out / "vocabulary.txt"
    if resume and path.exists():
        return Tokenizer.from_file(path)
    if config.data.vocabulary:
        tokenizer = Tokenizer.from_file(config.data.vocabulary)
    else:
        captions = [c for clip in manifest.split(config.data.train_split) for c in clip.captions]
        tokenizer = Tokenizer.build(captions, config.model.text.vocabulary, config.data.split_unspaced)
    tokenizer.save(path)
    return tokenizer


def train(run: OpenedRun[Config], manifest: Manifest, corpus: int = FORMAT) -> None:
    """Pre-train on clips of `manifest`. All ranks call it.

    Args:
        corpus: format of the built-in corpus, if that is what `manifest` lists.
    """
    config, device, world = run.config, run.device, run.world
    ops = choose(config.fused, device)
    clips, held_out = split_clips(manifest, config)
    tokenizer = world.on_main(lambda: make_tokenizer(config, manifest, run.out, run.resume))
    slots = world.batch_slice(config.data.batch_size)
    dataset = ClipDataset(clips, config.data, config.model, tokenizer, config.seed, slots=slots)
    from .data.dali.loader import choose_decoder, make_dali_loader

    decoder, reason = choose_decoder(config.data.decoder, device, dataset)
    notes = [
        reason,
        f"data: {len(clips)} clips to train on, {len(held_out)} held out, {len(tokenizer)} words ({manifest.root})",
    ]
    world.require_equal({"the decoder": decoder, "the operations": ops.impl})
    if world.is_first:
        notes += corpus_notes(clips, held_out, config.data)
    if len(clips) < config.data.batch_size:
        size = config.data.batch_size
        notes.append(
            f"note: a batch of {size} repeats clips, which then are negatives of themselves; --batch-size lowers it"
        )
    elif dataset.files < len(clips):
        notes.append(f"note: the {len(clips)} rows are of {dataset.files} files; {same_file_note(config, dataset)}")
    if config.model.text.freeze_embedding:
        notes.append("note: the word table is random and frozen; --set model.text.freeze_embedding=false trains it")

    def step(
        model: VATT, optimizer: Adam, wrapped: Sequence[nn.Module], batch: Batch, number: int, autocast: torch.autocast
    ) -> dict[str, Any]:
        record = train_step(model, optimizer, batch, config, number, autocast, ops, world, wrapped)
        return record | {"same_file": dataset.repeats(number)}

    def modules(model: VATT) -> tuple[nn.Module, ...]:
        return model.backbone, model.head

    task = Task(
        title=f"preset {config.preset}",
        build=lambda: VATT(config.model, ops),
        modules=modules,
        optimizer=lambda model: Adam(model.parameters(), config.optim),
        dataset=dataset,
        train_clips=len(clips),
        step=step,
        finish=lambda model: evaluate(config, model, held_out, tokenizer),
        draw=draw_losses,
        advice="try --set optim.clip=1 or a lower --set optim.rate",
        ops=ops,
        notes=notes,
        environment={"decoder": reason},
        record={"corpus_format": corpus},
        tokenizer=tokenizer,
        loader=partial(make_dali_loader, device=device) if decoder == "dali" else None,
    )
    run_training(run, manifest, task)


def same_file_note(config: Config, dataset: ClipDataset) -> str:
    """Say what becomes of rows of one file in a batch."""
    if config.data.version < 2:
        return "this run began when those that meet in a batch were each other's negatives, and goes on so"
    if dataset.files < config.data.batch_size:
        return (
            f"in a batch of {config.data.batch_size} some are each other's negatives; --batch-size "
            f"{dataset.files} keeps them apart"
        )
    return "a second one in a batch would be a negative of the first, and gives way to another clip (same_file)"


def evaluate(
    config: Config, model: VATT, held_out: Manifest, tokenizer: Tokenizer
) -> tuple[dict[str, Any], DataError | None]:
    """Score retrieval among held-out clips and print it.

    Returns:
        What result.json says of it, and why there are no scores, if so.
    """
    if not held_out:
        print(f"no rows of split {config.data.test_split!r} in the manifest: no retrieval scores")
        return {}, None
    device = next(model.parameters()).device
    few = max(1, config.data.batch_size // config.eval_windows)
    dataset = EvalDataset(held_out, config.data, config.model, tokenizer, config.eval_windows, few, needs=())
    tick = time.perf_counter()
    result: dict[str, Any] = {"held_out_clips": len(held_out), "held_out_bad_clips": len(held_out)}
    failure = None
    try:
        embedded = embed_clips(model, dataset, autocast_for(device, compute_dtype(config.dtype, device)))
        result["held_out_bad_clips"] = len(embedded.bad)
        check_share(len(embedded.bad), len(held_out), config.data.max_bad_share)
        result["retrieval"] = retrieval(embedded)
        print(format_scores(result["retrieval"]))
    except DataError as error:
        failure = DataError(f"no retrieval scores: {error}; once the clips are mended, --resume scores the model")
    result["evaluate_seconds"] = time.perf_counter() - tick
    return result, failure


def saved_format(out: Path) -> int:
    """Return the format of the built-in corpus of the run in `out`: from config.json, or its newest checkpoint."""
    record = read_record(out)
    if not record and (checkpoint := training_checkpoint.load_latest(out / "checkpoints")):
        record = parse_json(str(checkpoint.state.get("record")))
    return corpus_format(record)


def run(args: argparse.Namespace, world: World, held: ExitStack) -> None:
    opened = open_run(args, world, Config, resolve_config, lambda config: config.preset, held)
    if opened is None:
        return
    config, out = opened.config, opened.out
    from .data.dali.loader import choose_decoder

    choose_decoder(config.data.decoder, opened.device)
    corpus = world.on_main(lambda: saved_format(out) if args.resume else FORMAT)
    manifest = open_source(config.data) if config.data.source else None
    if manifest is not None:
        split_clips(manifest, config)  # nothing is written for a run that cannot start

    def write() -> None:
        # First of all: whatever happens next, --resume knows what to do.
        write_config(out, config, {"environment": environment(opened.device), "corpus_format": corpus})
        if manifest is None:
            corpus_of(corpus, config.data.builtin_clips)

    world.on_main(write)
    if manifest is None:
        manifest = read_manifest(corpus_of(corpus, config.data.builtin_clips))  # there already, or on another machine
    train(opened, manifest, corpus)


def main(argv: list[str] | None = None) -> int:
    return run_command(parse_arguments(argv), run)


def split_clips(manifest: Manifest, config: Config) -> tuple[Manifest, Manifest]:
    """Return training clips and held-out clips. Raises `RunError` when there is nothing to train on."""
    data = config.data
    clips, held_out = manifest.split(data.train_split), manifest.split(data.test_split).one_clip_a_span()
    if not clips:
        names = sorted({clip.split or "" for clip in manifest})
        raise RunError(
            f"{manifest.root} has no rows of split {data.train_split!r} (it has: {', '.join(names)}); "
            "choose one with --set data.train_split=NAME"
        )
    return clips, Manifest(held_out[: config.eval_clips], manifest.root, manifest.labels)


if __name__ == "__main__":
    sys.exit(main())
