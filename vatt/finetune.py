"""Fine-tuning a pre-trained backbone for classification: `python -m vatt.finetune --task video --data clips.csv`.

The release's recipe (paper section 4.2): SGD with momentum, warm-up and cosine, the backbone's gradients clipped,
dropout before the class head, DropToken as in pre-training. The loop around a step is that of training, so a run that
was killed and resumed repeats the uninterrupted one to the bit.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn
from torch.optim import Optimizer

from .checkpoints.model_folder import write_config
from .config.finetuning import PRESETS, ClassLoss, FinetuneConfig, small
from .config.finetuning import Task as TaskName
from .config.presets import PRESETS as MODELS
from .config.presets import preset
from .data.check import corpus_notes
from .data.clip import Manifest
from .data.datasets.batch import Batch
from .data.datasets.classification import LabelledDataset
from .data.datasets.hold_out import nothing_held_out
from .errors import ConfigError
from .evaluation.classification import ClassifyConfig, check_labels, classify, format_scores
from .evaluation.prediction_files import draw_training
from .model.vatt import Classifier
from .official.init_source import read_source, source_sizes
from .runtime.device import autocast_for, compute_dtype
from .runtime.distributed import World
from .runtime.files import write_atomically
from .training.finetuning_step import finetune_step
from .training.initialization import load_backbone
from .training.launch import OpenedRun, add_run_flags, open_run, open_source, run_command, settings_from_flags
from .training.optimizers import finetuning_optimizer
from .training.runner import Task, run_training

EXAMPLES = """examples:
  python -m vatt.finetune --task video --data kinetics.csv --init vatt-mbs --size 320 --fused
  python -m vatt.finetune --task audio --data audioset.csv --init runs/mbs --steps 50000     several labels a clip
  python -m vatt.finetune --task audio --loss softmax --data esc50.csv --init vatt-mbs       one label a clip
  python -m vatt.finetune --task image --data imagenet.csv --init downloads/ckpt-500000
  python -m vatt.finetune --task video --data clips.csv --init none --model tiny --steps 500  from scratch, on a CPU
  python -m vatt.finetune --task audio --preset small --data esc10.csv --init none            a few hundred clips
  python -m vatt.finetune --out runs/finetune-video --resume                                 go on after a crash
  python -m vatt.finetune --status runs/finetune-video                               its state, while it runs or after

The manifest is a CSV with `path`, `label` (several separated by " | ") and, as far as known, `start,end` and `split`
(train/test); python -m vatt.data.sources makes it from a published dataset.
--init: a folder written by vatt.train or vatt.official convert, an official checkpoint's PREFIX, or none.
The run's folder ends with model/ (vatt.load reads it), result.json, predictions, per_class.csv and confusion.png.
exit codes: 0 done, 1 failed, 2 wrong usage or settings, 130/143 interrupted or terminated after saving."""


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m vatt.finetune",
        description="Fine-tune VATT's vision or audio transformer for classification.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--task", choices=get_args(TaskName), help="what a clip is classified by; brings the release's settings for it")
    add("--preset", choices=("small",), help="small: for a few hundred clips (default: the release's settings)")
    add("--data", metavar="PATH", help="manifest CSV with labels")
    add("--init", metavar="SOURCE", help="where the backbone's weights come from: DIR, official PREFIX, or none")
    add("--model", metavar="NAME", help=f"sizes with --init none: {', '.join(MODELS)} (default tiny)")
    add(
        "--fused",
        action="store_true",
        default=None,
        help="fast operations: dropped tokens are never read, no attention matrix is stored",
    )
    add(
        "--loss",
        choices=get_args(ClassLoss),
        help="softmax: one class a clip; sigmoid: any number of them (default: sigmoid for audio)",
    )
    add("--steps", metavar="N", type=int, help="number of updates; warm-up and pretraining keep their shares")
    add("--pretrain-steps", metavar="N", type=int, help="so many of them learn sound without labels first (audio)")
    add("--batch-size", metavar="N", type=int, help="clips an update")
    add("--rate", metavar="R", type=float, help="learning rate after the warm-up")
    add("--size", metavar="N", type=int, help="pixels of a frame's side; position tables follow by a spline")
    add("--frames", metavar="N", type=int, help="frames of a clip; position tables follow by a spline")
    add("--drop-rate", metavar="R", type=float, help="share of tokens dropped in training, 0 to <1; 0 is off")
    add_run_flags(parser, folder="runs/finetune-TASK", seed="head", example="optim.clip=0")
    return parser.parse_args(argv)


def resolve_config(args: argparse.Namespace, saved: FinetuneConfig | None = None) -> FinetuneConfig:
    """Return the task's preset around the sizes of `--init`, or the settings of a resumed run; flags on top."""
    if saved is None:
        config = preset_of(args)
    else:
        config = saved
        for flag in ("task", "preset", "init", "model"):
            if getattr(args, flag):
                raise ConfigError(f"a resumed run keeps its {flag}: leave --{flag} out")
    flags = {
        "loss": args.loss,
        "pretrain_steps": args.pretrain_steps,
        "optim.rate": args.rate,
        "model.video.size": args.size,
        "model.video.frames": args.frames,
    }
    return settings_from_flags(config, args, flags, saved)


def preset_of(args: argparse.Namespace) -> FinetuneConfig:
    """Return the preset of a new run: of its task, around the sizes of `--init` or `--model`."""
    for flag in ("task", "data", "init"):
        if not getattr(args, flag):
            raise ConfigError(f"--{flag} is missing; --help has examples")
    if args.model and args.init != "none":
        raise ConfigError("--model gives sizes with --init none; otherwise they are those of --init")
    init = "" if args.init == "none" else str(Path(args.init).expanduser().absolute())
    sizes = source_sizes(init) if init else preset(args.model or "tiny").model
    config = replace(PRESETS[args.task](sizes), init=init)
    if args.preset:
        config = small(config)
    if args.loss == "sigmoid":
        config = replace(config, smoothing=0.0)
    if args.steps:
        warmup, alone = (round(n * args.steps / config.steps) for n in (config.optim.warmup, config.optim.head_steps))
        optim = replace(config.optim, warmup=warmup, head_steps=alone)
        before = config.pretrain_steps * args.steps // config.steps  # at least one step sees labels
        config = replace(config, optim=optim, pretrain_steps=before)
    labels_alone = not (config.pretrain_steps if args.pretrain_steps is None else args.pretrain_steps)
    if not config.init and labels_alone:  # lower layers have learned nothing that they should keep
        config = replace(config, optim=replace(config.optim, layer_decay=1.0))
    return config


def split_labelled(manifest: Manifest, config: FinetuneConfig) -> tuple[Manifest, Manifest]:
    """Return the clips to train on and those to test on. Raises `ConfigError` when the first cannot be trained on."""
    clips, held_out = manifest.split(config.data.train_split), manifest.split(config.data.test_split)
    if not clips:
        raise ConfigError(
            f"{manifest.root} has no rows of split {config.data.train_split!r} (it has: "
            f"{', '.join(manifest.splits) or 'none'}); --set data.train_split=NAME chooses"
        )
    check_labels(clips, config.loss)
    if any(clip.labels for clip in held_out):
        check_labels(Manifest(tuple(c for c in held_out if c.labels), held_out.root, held_out.labels), config.loss)
    return clips, held_out


def finetune(run: OpenedRun[FinetuneConfig], manifest: Manifest) -> None:
    """Fine-tune on clips of `manifest`, and end with the test clips. All ranks call it."""
    config, out, world = run.config, run.out, run.world
    clips, held_out = split_labelled(manifest, config)
    ranges = (config.crop.area, config.crop.aspect) if config.crop.style == "inception" else None
    slots = world.batch_slice(config.data.batch_size)
    dataset = LabelledDataset(clips, config.data, config.model, config.task, config.seed, ranges, slots)
    notes = [
        f"data: {len(clips)} clips to train on, {len(held_out)} to test on, {len(manifest.labels)} classes "
        f"({manifest.root})"
    ]
    if world.is_first:
        notes += corpus_notes(clips, held_out, config.data)
    if not held_out:
        notes.append(f"note: {nothing_held_out(config.data)}")
    if len(clips) < (size := config.data.batch_size):
        notes.append(f"note: a batch of {size} repeats some of the {len(clips)} training clips; --batch-size lowers it")
    if untrained := len(manifest.labels) - len({label for clip in clips for label in clip.labels}):
        notes.append(f"note: {untrained} of the classes have no training clip")
    classifier = {
        "modality": config.modality,
        "classes": len(held_out.labels),
        "labels": held_out.labels,
        "task": config.task,
        "loss": config.loss,
        "windows": config.eval_windows,
        "crops": config.eval_crops,
    }

    def build() -> Classifier:
        dropout = config.head_dropout
        return Classifier(config.model, config.modality, len(manifest.labels), head_dropout=dropout, ops=run.ops)

    def initialize(model: Classifier) -> list[str]:
        report = load_backbone(model, read_source(config.init), config.init)
        if world.is_first:
            write_atomically(out / "init.txt", f"{config.init}\n{report}\n".encode())
        fresh = len(report.mismatched) + len(report.fresh)
        return [
            f"from {config.init}: {len(report.loaded)} tensors loaded, {len(report.resampled)} position tables "
            f"resampled, {fresh} tensors start fresh ({out}/init.txt names them)"
        ]

    def step(
        model: Classifier,
        optimizer: Optimizer,
        wrapped: Sequence[nn.Module],
        batch: Batch,
        number: int,
        autocast: torch.autocast,
    ) -> dict[str, Any]:
        return finetune_step(model, optimizer, batch, config, number, autocast, world, wrapped[0])

    task = Task(
        title=config.task,
        build=build,
        modules=lambda model: (model,),
        optimizer=lambda model: finetuning_optimizer(model, config.optim),
        dataset=dataset,
        train_clips=len(clips),
        step=step,
        finish=lambda model: (test(config, out, model, held_out), None),
        draw=draw_training,
        advice="try a lower --rate",
        notes=notes,
        initialize=initialize if config.init else None,
        record={"classifier": classifier},
    )
    run_training(run, manifest, task)


def test(config: FinetuneConfig, out: Path, model: Classifier, held_out: Manifest) -> dict[str, Any]:
    """Classify the test clips, print the scores, and return what result.json says of them."""
    if not held_out:
        print(f"no scores: {nothing_held_out(config.data)}")
        return {}
    device = next(model.parameters()).device
    views = ClassifyConfig(config.task, config.loss, config.eval_windows, config.eval_crops)
    tick = time.perf_counter()
    scores = classify(
        model, held_out, views, config.data, out, autocast_for(device, compute_dtype(config.dtype, device))
    )
    print(format_scores(scores))
    return {"test": scores, "test_seconds": time.perf_counter() - tick}


def run(args: argparse.Namespace, world: World, held: ExitStack) -> None:
    opened = open_run(args, world, FinetuneConfig, resolve_config, lambda config: f"finetune-{config.task}", held)
    if opened is None:
        return
    config, out = opened.config, opened.out
    manifest = open_source(config.data)
    split_labelled(manifest, config)  # nothing is written for a run that cannot start

    def write() -> None:
        # First of all: whatever happens next, --resume knows what to do.
        write_config(out, config, {"environment": opened.environment})

    world.on_main(write)
    finetune(opened, manifest)


def main(argv: list[str] | None = None) -> int:
    return run_command(parse_arguments(argv), run)


if __name__ == "__main__":
    sys.exit(main())
