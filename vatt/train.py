"""Pre-training on raw video, audio and text: `python -m vatt.train --fused`.

One readable loop. Everything random is a function of (seed, step, slot), so a run that was killed and resumed
repeats the uninterrupted one to the bit.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from .checkpoints import training_checkpoint
from .checkpoints.content import note_contents
from .checkpoints.fingerprints import fingerprint
from .checkpoints.model_folder import corpus_format, read_config, read_record, write_config, write_model_folder
from .checkpoints.sharded import is_sharded, whole_state
from .config.presets import PRESETS, preset
from .config.pretraining import Config
from .config.serialization import apply_overrides, differences, from_record, to_dict
from .config.validation import check
from .data.bad_clips import BadClips, check_share
from .data.check import say
from .data.clip import Manifest
from .data.datasets.batch import Batch
from .data.datasets.evaluation import EvalDataset
from .data.datasets.training import ClipDataset
from .data.manifest import read_manifest
from .data.shards.reading import absolute_source
from .data.synthetic import FORMAT, corpus_of
from .data.tokenizer import Tokenizer
from .errors import ConfigError, DataError, RunError
from .evaluation.retrieval import embed_clips, format_scores, retrieval
from .model.vatt import VATT, count_parameters
from .ops import choose
from .runtime.device import autocast_for, compute_dtype
from .runtime.distributed import ALONE, World
from .runtime.provenance import environment
from .training.launch import add_run_flags, begin, open_source, run_command, summarise, write_result
from .training.loop import run_steps
from .training.metrics_log import MetricsLog, draw_losses
from .training.optimizers import Adam
from .training.parallel import prepare
from .training.pretraining_step import train_step
from .training.profiler import Traced
from .training.session import Session

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


FIXED = ("model.", "data.vocabulary:", "data.version:", "preset:")  # what a resumed run cannot change


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m vatt.train", description="Train VATT on video, audio and text.", epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("--preset", metavar="NAME", help=f"model size and settings: {', '.join(PRESETS)} (default tiny)")
    add("--data", metavar="PATH", help="manifest CSV, folder of clips or tar shards (default: the built-in corpus)")
    add("--fused", action="store_true", default=None,
        help="fast operations: dropped tokens are never read, no attention or similarity matrix is stored")  # fmt: skip
    add("--steps", metavar="N", type=int, help="number of updates")
    add("--batch-size", metavar="N", type=int, help="clips an update")
    add("--drop-rate", metavar="R", type=float, help="share of video and audio tokens dropped in training, 0 to <1")
    add("--decoder", metavar="NAME",
        help="of video: pyav (CPU), dali (NVIDIA GPU; pip install -e '.[dali]') or auto (default)")  # fmt: skip
    add("--micro-batch", metavar="N", type=int,
        help="clips a process computes at a time, for batches larger than memory; results stay the same")  # fmt: skip
    add_run_flags(parser, folder="runs/PRESET", seed="weights", example="optim.clip=1")
    return parser.parse_args(argv)


def resolve_config(args: argparse.Namespace, saved: Config | None = None) -> Config:
    """The preset (or the saved configuration of a resumed run) with the flags and `--set` laid over it."""
    config = saved or preset(args.preset or "tiny")
    if saved and args.preset and args.preset != saved.preset:
        raise ConfigError(f"the run in {args.out} has preset {saved.preset!r}, not {args.preset!r}")
    flags = {
        "data.source": args.data,
        "data.columns": args.columns,
        "data.batch_size": args.batch_size,
        "model.drop.rate": args.drop_rate,
        "steps": args.steps,
        "seed": args.seed,
        "data.decoder": args.decoder,
        "device": args.device,
        "dtype": args.dtype,
        "fused": args.fused,
        "parallel": args.parallel,
        "micro_batch": args.micro_batch,
    }
    given = [f"{name}={value}" for name, value in flags.items() if value is not None]
    config = apply_overrides(config, given + args.overrides)
    # A run may be resumed from another folder.
    words = str(Path(config.data.vocabulary).expanduser().absolute()) if config.data.vocabulary else ""
    source = absolute_source(config.data.source) if config.data.source else ""
    config = replace(config, data=replace(config.data, source=source, vocabulary=words))
    check(config)
    for line in differences(saved, config) if saved else []:
        if line.startswith(FIXED) and not line.startswith("model.drop."):
            raise ConfigError(f"a run keeps its model and words; this would change {line}; start a new one")
    return config


def make_tokenizer(config: Config, manifest: Manifest, out: Path, resume: bool) -> Tokenizer:
    """The run's vocabulary: that of the run itself when resumed, a given word list, or one built from the captions."""
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


def train(config: Config, out: Path, device: torch.device, manifest: Manifest, *, resume: bool,
          world: World = ALONE, traced: Traced | None = None, corpus: int = FORMAT) -> None:  # fmt: skip
    """Runs `config` in folder `out`, from its newest checkpoint if `resume`. All ranks of `world` call it.

    `corpus`: format of the built-in corpus, if that is what `manifest` lists.
    """
    dtype = compute_dtype(config.dtype, device)
    ops = choose(config.fused, device)
    clips, held_out = split_clips(manifest, config)
    tokenizer = world.first(lambda: make_tokenizer(config, manifest, out, resume))
    torch.manual_seed(config.seed)
    # Weights are drawn on the CPU so that a seed means the same model on every device.
    model = VATT(config.model, ops).to(device)
    parameters = count_parameters(model)
    parts = prepare(model, (model.backbone, model.head), world, config.parallel, recompute=config.recompute)
    optimizer = Adam(model.parameters(), config.optim)
    bad = BadClips(out / "bad_clips.csv", manifest, config.data.max_bad_share, writes=world.is_first)
    slots = world.slots(config.data.batch_size)
    dataset = ClipDataset(clips, config.data, config.model, tokenizer, config.seed, slots=slots)
    from .data.dali.loader import choose_decoder, make_dali_loader

    decoder, why = choose_decoder(config.data.decoder, device, dataset)
    world.require_equal({"the decoder": decoder, "the operations": ops.impl})
    where = environment(device) | {"operations": ops.reason, "decoder": why}
    identity = {"manifest": (fingerprint(manifest), manifest.root),
                "words": (fingerprint(tokenizer.words), out / "vocabulary.txt")}  # fmt: skip
    session = Session(out, manifest, model, optimizer, bad, identity,
                      json.dumps({"config": to_dict(config), "environment": where, "corpus_format": corpus}),
                      world)  # fmt: skip
    start = session.restore(config.steps) if resume else 0
    print(f"run {out}: preset {config.preset}, {parameters / 1e6:.1f} M parameters, {device}, {dtype}")
    if world.size > 1:
        print(f"{world.size} processes ({config.parallel}), {len(slots)} clips of each batch on each")
    print(ops.reason)
    print(why)
    print(f"data: {len(clips)} clips to train on, {len(held_out)} held out, {len(tokenizer)} words ({manifest.root})")
    if world.is_first:
        say(clips, held_out, config.data)
    if len(clips) < config.data.batch_size:
        print(f"note: a batch of {config.data.batch_size} repeats clips, which then are negatives of themselves; "
              "--batch-size lowers it")  # fmt: skip
    elif dataset.files < len(clips):
        print(f"note: the {len(clips)} rows are of {dataset.files} files; {same_file_note(config, dataset)}")
    if config.model.text.freeze_embedding:
        print("note: the word table is random and frozen; --set model.text.freeze_embedding=false trains it")
    if resume:
        print(f"resuming after step {start}" if start else "no checkpoint yet: starting over")
    note_contents(out, manifest, start, world)
    log = MetricsLog(out / "metrics.jsonl", resume_step=start if resume else None) if world.is_first else None
    autocast = autocast_for(device, dtype)

    def update(batch: Batch, step: int) -> dict[str, Any]:
        record = train_step(model, optimizer, batch.to(device), config, step, autocast, ops, world, parts)
        return record | {"operations": ops.impl, "same_file": dataset.repeats(step)}

    advice = "try --set optim.clip=1 or a lower --set optim.rate"
    load = partial(make_dali_loader, device=device) if decoder == "dali" else None
    trained = run_steps(session, config, dataset, start, log, update, advice, load, traced)
    state = whole_state(model) if is_sharded(model) else None
    parts.clear()  # see World.disband
    world.disband()
    assert log is not None  # the first rank's, which alone is still here
    log.close()
    if state is not None:
        model = VATT(config.model, ops).to(device)
        model.load_state_dict(state)
    record = {"environment": where, "corpus_format": corpus}
    finish(config, out, model, held_out, tokenizer, bad, record, trained, len(clips))


def same_file_note(config: Config, dataset: ClipDataset) -> str:
    """What becomes of rows of one file in a batch."""
    if config.data.version < 2:
        return "this run began when those that meet in a batch were each other's negatives, and goes on so"
    if dataset.files < config.data.batch_size:
        return (
            f"in a batch of {config.data.batch_size} some are each other's negatives; --batch-size "
            f"{dataset.files} keeps them apart"
        )
    return "a second one in a batch would be a negative of the first, and gives way to another clip (same_file)"


def finish(config: Config, out: Path, model: VATT, held_out: Manifest, tokenizer: Tokenizer, bad: BadClips,
           record: dict[str, Any], seconds: float, train_clips: int) -> None:  # fmt: skip
    """After the last step: export the model, draw the loss curve, evaluate on held-out clips, write result.json."""
    write_model_folder(out / "model", model.state_dict(), config, record, tokenizer)
    result = summarise(out, draw_losses, record["environment"], config, seconds, bad, train_clips)
    result |= {"config": to_dict(config)}
    no_scores: DataError | None = None
    if held_out:
        device = next(model.parameters()).device
        few = max(1, config.data.batch_size // config.eval_windows)
        dataset = EvalDataset(held_out, config.data, config.model, tokenizer, config.eval_windows, few, needs=())
        tick = time.perf_counter()
        result |= {"held_out_clips": len(held_out), "held_out_bad_clips": len(held_out)}
        try:
            embedded = embed_clips(model, dataset, autocast_for(device, compute_dtype(config.dtype, device)))
            result["held_out_bad_clips"] = len(embedded.bad)
            check_share(len(embedded.bad), len(held_out), config.data.max_bad_share)
            result["retrieval"] = retrieval(embedded)
            print(format_scores(result["retrieval"]))
        except DataError as error:
            no_scores = error
        result["evaluate_seconds"] = time.perf_counter() - tick
    else:
        print(f"no rows of split {config.data.test_split!r} in the manifest: no retrieval scores")
    write_result(out, result)
    if no_scores is not None:
        raise DataError(f"no retrieval scores: {no_scores}; once the clips are mended, --resume scores the model")


def saved_config(out: Path) -> Config:
    """The settings of the run in `out`: from config.json, or from its newest checkpoint when that is damaged."""
    try:
        return read_config(out)
    except RunError as error:
        found = training_checkpoint.load_latest(out / "checkpoints", tqdm.write)
        if found is None:
            raise
        print(f"{error}; using the settings in {found.path}")
        return from_record(Config, json.loads(found.state["record"])["config"])


def saved_format(out: Path) -> int:
    """Format of the built-in corpus of the run in `out`: from config.json, or from its newest checkpoint."""
    record = read_record(out)
    if not record and (found := training_checkpoint.load_latest(out / "checkpoints")):
        record = json.loads(found.state["record"])
    return corpus_format(record)


def run(args: argparse.Namespace, world: World, held: ExitStack) -> None:
    begun = begin(args, world, saved_config, resolve_config, lambda config: config.preset, held)
    if begun is None:
        return
    config, out, device = begun.config, begun.out, begun.device
    from .data.dali.loader import choose_decoder

    choose_decoder(config.data.decoder, device)
    corpus = world.first(lambda: saved_format(out) if args.resume else FORMAT)
    manifest = open_source(config.data) if config.data.source else None
    if manifest is not None:
        split_clips(manifest, config)  # nothing is written for a run that cannot start

    def write() -> None:
        # First of all: whatever happens next, --resume knows what to do.
        write_config(out, config, {"environment": environment(device), "corpus_format": corpus})
        if manifest is None:
            corpus_of(corpus, config.data.builtin_clips)

    world.first(write)
    if manifest is None:
        manifest = read_manifest(corpus_of(corpus, config.data.builtin_clips))  # there already, or on another machine
    train(config, out, device, manifest, resume=args.resume, world=world, traced=begun.traced,
          corpus=corpus)  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    return run_command(parse_arguments(argv), run)


def split_clips(manifest: Manifest, config: Config) -> tuple[Manifest, Manifest]:
    """(training clips, held-out clips); raises `RunError` when there is nothing to train on."""
    data = config.data
    clips, held_out = manifest.split(data.train_split), manifest.split(data.test_split).one_clip_a_span()
    if not clips:
        names = sorted({clip.split or "" for clip in manifest})
        raise RunError(f"{manifest.root} has no rows of split {data.train_split!r} (it has: {', '.join(names)}); "
                       "choose one with --set data.train_split=NAME")  # fmt: skip
    return clips, Manifest(held_out[: config.eval_clips], manifest.root, manifest.labels)


if __name__ == "__main__":
    sys.exit(main())
