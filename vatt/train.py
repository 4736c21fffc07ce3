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
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn

from .checkpoints import training_checkpoint
from .checkpoints.model_folder import corpus_format, read_record, tokenizer_of, write_config
from .checkpoints.word_vectors import WordVectors, read_word_vectors, vector_width
from .config.data import DATA_VERSION, Decoder
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
from .runtime.device import autocast_for, compute_dtype
from .runtime.distributed import World
from .runtime.files import write_atomically
from .runtime.forms import parse_json
from .training.initialization import WORD_TABLE, load_pretrained, require_start
from .training.launch import OpenedRun, add_run_flags, open_run, open_source, run_command, settings_from_flags
from .training.metrics_log import draw_losses
from .training.optimizers import Adam
from .training.pretraining_step import train_step
from .training.runner import Task, run_training

EXAMPLES = """examples:
  python -m vatt.train --fused                              the built-in corpus, about 4 minutes on two cores
  python -m vatt.train --fused --data clips/ --steps 2000   a folder of clips, captions from .txt files beside them
  python -m vatt.train --fused --preset mbs --data clips.csv --batch-size 64 --out runs/mbs
  python -m vatt.train --init vatt-mbs --data clips.csv --freeze audio --lr-scale video=0.1    train on, own clips
  python -m vatt.train --preset mbs --data clips.csv --word-vectors GoogleNews-vectors-negative300.bin
  python -m vatt.train --out runs/mbs --resume              go on after a crash, exactly
  python -m vatt.train --status runs/mbs                    the state of a run, while it runs or after
  torchrun --nproc-per-node=8 -m vatt.train --fused --preset mbs --data clips.csv --batch-size 2048 --micro-batch 64
  python -m vatt.train --preset tiny --set optim.rate=3e-4 --set data.augment.flip=true --print-config

A manifest is a CSV with `path` and, as far as known, `start,end` (seconds), `caption` (several separated by " | "),
`label`, `split` (train/test); paths are relative to the CSV.
exit codes: 0 done, 1 failed, 2 wrong usage or settings, 130/143 interrupted or terminated after saving."""


RANDOM_TABLE = "note: the word table is random and frozen; --set model.text.freeze_embedding=false trains it"


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
    add(
        "--init",
        metavar="SOURCE",
        help="train on from a model: a finished run, a folder of vatt.official convert, a fine-tuned one, or an "
        "official PREFIX; without --preset its sizes and settings are kept",
    )
    add("--freeze", metavar="TOWERS", help="video, audio or text, with commas between: encoders that are not trained")
    add("--lr-scale", metavar="TOWER=X", help="the rate of an encoder times X, e.g. video=0.1,text=0.5")
    add(
        "--word-vectors",
        metavar="FILE",
        help="fill the word table and freeze it, as the release does: word2vec, GloVe or fastText",
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
    """Return the settings of a new run, or those of a resumed one, with the flags and `--set` laid over them."""
    if saved and args.preset and args.preset != saved.preset:
        raise ConfigError(f"the run in {args.out} has preset {saved.preset!r}, not {args.preset!r}")
    if saved and args.init:
        raise ConfigError("a resumed run keeps its init: leave --init out")
    flags = {
        "data.decoder": args.decoder,
        "micro_batch": args.micro_batch,
        "freeze": args.freeze,
        "lr_scale": args.lr_scale,
        "word_vectors": str(Path(args.word_vectors).expanduser().absolute()) if args.word_vectors else None,
    }
    if saved:
        return settings_from_flags(saved, args, flags, saved)
    config = new_settings(args)
    if args.word_vectors or not config.init:
        # A table that comes from nowhere has to be learned.
        text = replace(config.model.text, freeze_embedding=bool(args.word_vectors))
        config = replace(config, model=replace(config.model, text=text))
    config = settings_from_flags(config, args, flags)
    if config.word_vectors and (width := vector_width(config.word_vectors)) != config.model.text.embedding:
        raise ConfigError(
            f"{config.word_vectors} has vectors of {width} numbers and the model's word table "
            f"{config.model.text.embedding}; --set model.text.embedding={width} makes them fit"
        )
    if config.init:
        from .official.init_source import source_shapes

        require_start(config.init, source_shapes(config.init), config.model)
    return config


def new_settings(args: argparse.Namespace) -> Config:
    """Return the preset of a new run; without one, the sizes of --init and what it was pre-trained with."""
    if not args.init:
        return preset(args.preset or "tiny")
    from .official.init_source import source_settings

    init = str(Path(args.init).expanduser().absolute())
    if args.preset:
        return replace(preset(args.preset), init=init)
    found = source_settings(init)
    if not isinstance(found, Config):
        found = replace(preset("tiny"), preset="custom", model=found.model, fused=found.fused)
    # Its clips and word list lie where it was trained.
    data = replace(found.data, source="", columns="", vocabulary="", version=DATA_VERSION)
    return replace(found, init=init, data=data, freeze="", lr_scale="", word_vectors="")


def choose_words(config: Config, manifest: Manifest) -> Tokenizer:
    """Return the vocabulary of a new run: a given list, that of --init, or one built from the captions."""
    if config.data.vocabulary:
        return Tokenizer.from_file(config.data.vocabulary)
    if config.init and (known := tokenizer_of(config.init)) is not None:
        return known
    clips, size = manifest.split(config.data.train_split), config.model.text.vocabulary
    if clips.rows is not None and not config.data.split_unspaced:
        return Tokenizer.of_ranked(clips.rows.words(), size)
    captions = (caption for clip in clips for caption in clip.captions)
    return Tokenizer.build(captions, size, config.data.split_unspaced)


def make_tokenizer(config: Config, manifest: Manifest, out: Path, resume: bool) -> Tokenizer:
    """Return the run's vocabulary, which is in its folder from then on."""
    path = out / "vocabulary.txt"
    if resume and path.exists():
        return Tokenizer.from_file(path)
    tokenizer = choose_words(config, manifest)
    tokenizer.save(path)
    return tokenizer


def initialize(
    model: VATT, config: Config, words: tuple[str, ...], vectors: WordVectors | None
) -> tuple[list[str], list[str]]:
    """Put weights of --init and --word-vectors into `model`; return lines of output, and what init.txt says."""
    said: list[str] = []
    told: list[str] = []
    known_words = 0
    if config.init:
        from .official.init_source import read_source

        weights, found = read_source(config.init), tokenizer_of(config.init)
        known = found.words if found else None
        # A list that was built from captions may be as long as the table by chance, a given one is meant.
        if known is None and config.data.vocabulary and len(words) == len(weights.get(WORD_TABLE, ())):
            known = words
        report = load_pretrained(model, weights, known, words)
        known_words = report.known_words
        said.append(
            f"from {config.init}: {len(report.loaded)} tensors loaded, {len(report.resampled)} position tables "
            f"resampled, {len(report.fresh)} tensors start fresh; {report.words[0]}"
        )
        told += [config.init, str(report)]
    if vectors is not None:
        table = model.get_parameter(WORD_TABLE).data
        table[vectors.places] = torch.from_numpy(vectors.vectors)
        said.append(f"word vectors: {len(vectors.places)} of {len(words)} words found in {config.word_vectors}")
        missing = set(words) - {words[place] for place in vectors.places}
        told += [said[-1], *(f"no vector: {word}" for word in words if word in missing)]
    elif not known_words and config.model.text.freeze_embedding:
        said.append(RANDOM_TABLE)
    return said, told


def make_optimizer(model: VATT, config: Config) -> Adam:
    """Return the optimizer of what `config` trains; what is frozen has no state in it."""
    optimizer = Adam(model.parameters(), config.optim)
    if config.lr_scale:
        scales = config.rate_scales.items()
        optimizer.scale_rates({p: factor for name, factor in scales for p in model.backbone.tower(name)})
    return optimizer


def train(run: OpenedRun[Config], manifest: Manifest, corpus: int = FORMAT, vectors: WordVectors | None = None) -> None:
    """Pre-train on clips of `manifest`. All ranks call it.

    Args:
        corpus: format of the built-in corpus, if that is what `manifest` lists.
        vectors: of the words, if they were read already.
    """
    config, device, world = run.config, run.device, run.world
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
    world.require_equal({"the decoder": decoder})
    if world.is_first:
        notes += corpus_notes(clips, held_out, config.data)
    if len(clips) < config.data.batch_size:
        size = config.data.batch_size
        notes.append(
            f"note: a batch of {size} repeats clips, which then are negatives of themselves; --batch-size lowers it"
        )
    elif dataset.files < len(clips):
        notes.append(f"note: the {len(clips)} rows are of {dataset.files} files; {same_file_note(config, dataset)}")

    def step(
        model: VATT, optimizer: Adam, wrapped: Sequence[nn.Module], batch: Batch, number: int, autocast: torch.autocast
    ) -> dict[str, Any]:
        record = train_step(model, optimizer, batch, config, number, autocast, run.ops, world, wrapped)
        return record | {"same_file": dataset.repeats(number)}

    def modules(model: VATT) -> tuple[nn.Module, ...]:
        return model.backbone, model.head

    def start(model: VATT) -> list[str]:
        found = vectors
        if found is None and config.word_vectors:
            found = read_word_vectors(config.word_vectors, tokenizer.words)
        said, told = initialize(model, config, tokenizer.words, found)
        if told and world.is_first:
            write_atomically(run.out / "init.txt", "\n".join([*told, ""]).encode())
        return said

    def build() -> VATT:
        model = VATT(config.model, run.ops)
        for name in config.frozen:
            for parameter in model.backbone.tower(name):
                parameter.requires_grad_(False)
        return model

    task = Task(
        title=f"preset {config.preset}",
        build=build,
        modules=modules,
        optimizer=lambda model: make_optimizer(model, config),
        dataset=dataset,
        train_clips=len(clips),
        step=step,
        finish=lambda model: evaluate(config, model, held_out, tokenizer),
        draw=draw_losses,
        advice="try --set optim.clip=1 or a lower --set optim.rate",
        notes=notes,
        initialize=start,
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
    vectors = None
    if config.word_vectors and manifest is not None and not args.resume:
        vectors = read_word_vectors(config.word_vectors, choose_words(config, manifest).words)

    def write() -> None:
        # First of all: whatever happens next, --resume knows what to do.
        write_config(out, config, {"environment": opened.environment, "corpus_format": corpus})
        if manifest is None:
            corpus_of(corpus, config.data.builtin_clips)

    world.on_main(write)
    if manifest is None:
        manifest = read_manifest(corpus_of(corpus, config.data.builtin_clips))  # there already, or on another machine
    train(opened, manifest, corpus, vectors)


def main(argv: list[str] | None = None) -> int:
    return run_command(parse_arguments(argv), run)


def split_clips(manifest: Manifest, config: Config) -> tuple[Manifest, Manifest]:
    """Return training clips and held-out clips; raises `RunError` when there is nothing to train on."""
    data = config.data
    clips, held_out = manifest.split(data.train_split), manifest.split(data.test_split).one_clip_a_span()
    if not clips:
        raise RunError(
            f"{manifest.root} has no rows of split {data.train_split!r} (it has: {', '.join(manifest.splits)}); "
            "choose one with --set data.train_split=NAME"
        )
    return clips, Manifest(held_out[: config.eval_clips], manifest.root, manifest.labels)


if __name__ == "__main__":
    sys.exit(main())
