"""Fine-tuning a pre-trained backbone for classification: `python -m vatt.finetune --task video --data clips.csv`.

The release's recipe (paper section 4.2): SGD with momentum, warm-up and cosine, the backbone's gradients clipped,
dropout before the class head, DropToken as in pre-training. The loop around a step is that of training, so a run that
was killed and resumed repeats the uninterrupted one to the bit.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from .checkpoints import training_checkpoint
from .checkpoints.content import note_contents
from .checkpoints.fingerprints import fingerprint
from .checkpoints.model_folder import write_model_folder
from .checkpoints.sharded import is_sharded, whole_state
from .config.finetuning import PRESETS, TASKS, FinetuneConfig, check_finetuning
from .config.presets import PRESETS as MODELS
from .config.presets import preset
from .config.serialization import apply_overrides, differences, from_record, to_dict
from .data.bad_clips import BadClips
from .data.check import say
from .data.clip import Manifest
from .data.datasets.batch import Batch
from .data.datasets.classification import LabelledDataset
from .data.shards.reading import absolute_source
from .errors import ConfigError, RunError
from .evaluation.classification import ClassifyConfig, check_labels, classify, format_scores
from .evaluation.prediction_files import draw_training
from .model.vatt import Classifier, count_parameters
from .official.init_source import read_source, source_sizes
from .ops import choose
from .runtime.device import autocast_for, compute_dtype
from .runtime.distributed import ALONE, World
from .runtime.files import write_atomically
from .runtime.forms import read_json
from .runtime.provenance import environment
from .training.finetuning_step import finetune_step
from .training.initialization import load_backbone
from .training.launch import add_run_flags, begin, open_source, run_command, summarise, write_result
from .training.loop import run_steps
from .training.metrics_log import MetricsLog
from .training.optimizers import SGD
from .training.parallel import prepare
from .training.profiler import Traced
from .training.session import Session

EXAMPLES = """examples:
  python -m vatt.finetune --task video --data kinetics.csv --init vatt-mbs --size 320 --fused
  python -m vatt.finetune --task audio --data audioset.csv --init runs/mbs --steps 50000     several labels a clip
  python -m vatt.finetune --task audio --loss softmax --data esc50.csv --init vatt-mbs       one label a clip
  python -m vatt.finetune --task image --data imagenet.csv --init downloads/ckpt-500000
  python -m vatt.finetune --task video --data clips.csv --init none --model tiny --steps 500  from scratch, on a CPU
  python -m vatt.finetune --out runs/finetune-video --resume                                 go on after a crash
  python -m vatt.finetune --status runs/finetune-video                               its state, while it runs or after

The manifest is a CSV with `path`, `label` (several separated by " | ") and, as far as known, `start,end` and `split`
(train/test); python -m vatt.data.sources makes it from a published dataset.
--init: a folder written by vatt.train or vatt.official convert, an official checkpoint's PREFIX, or none.
The run's folder ends with model/ (vatt.load reads it), result.json, predictions, per_class.csv and confusion.png.
exit codes: 0 done, 1 failed, 2 wrong usage or settings, 130/143 interrupted or terminated after saving."""

FIXED = ("model.", "data.version:", "task:", "init:", "preset:", "loss:")  # what a resumed run cannot change
FREE = ("model.drop.",)  # though it begins like one of those


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m vatt.finetune", description="Fine-tune VATT's vision or audio transformer for classification.",
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("--task", choices=TASKS, help="what a clip is classified by; brings the release's settings for it")
    add("--data", metavar="PATH", help="manifest CSV with labels")
    add("--init", metavar="SOURCE", help="where the backbone's weights come from: DIR, official PREFIX, or none")
    add("--model", metavar="NAME", help=f"sizes with --init none: {', '.join(MODELS)} (default tiny)")
    add("--fused", action="store_true", default=None,
        help="fast operations: dropped tokens are never read, no attention matrix is stored")  # fmt: skip
    add("--loss", choices=("softmax", "sigmoid"),
        help="softmax: one class a clip; sigmoid: any number of them (default: sigmoid for audio)")  # fmt: skip
    add("--steps", metavar="N", type=int, help="number of updates; the warm-up keeps its share of them")
    add("--batch-size", metavar="N", type=int, help="clips an update")
    add("--rate", metavar="R", type=float, help="learning rate after the warm-up")
    add("--size", metavar="N", type=int, help="pixels of a frame's side; position tables follow by a spline")
    add("--frames", metavar="N", type=int, help="frames of a clip; position tables follow by a spline")
    add("--drop-rate", metavar="R", type=float, help="share of tokens dropped in training, 0 to <1; 0 is off")
    add_run_flags(parser, folder="runs/finetune-TASK", seed="head", example="optim.clip=0")
    return parser.parse_args(argv)


def resolve_config(args: argparse.Namespace, saved: FinetuneConfig | None = None) -> FinetuneConfig:
    """The task's preset around the sizes of `--init`, or the settings of a resumed run; flags and `--set` on top."""
    given = {
        "data.source": args.data,
        "data.columns": args.columns,
        "data.batch_size": args.batch_size,
        "loss": args.loss,
        "optim.rate": args.rate,
        "model.video.size": args.size,
        "model.video.frames": args.frames,
        "model.drop.rate": args.drop_rate,
        "steps": args.steps,
        "seed": args.seed,
        "device": args.device,
        "dtype": args.dtype,
        "fused": args.fused,
        "parallel": args.parallel,
    }
    overrides = [f"{name}={value}" for name, value in given.items() if value is not None]
    if saved is None:
        for flag in ("task", "data", "init"):
            if not getattr(args, flag):
                raise ConfigError(f"--{flag} is missing; --help has examples")
        if args.model and args.init != "none":
            raise ConfigError("--model gives sizes with --init none; otherwise they are those of --init")
        init = "" if args.init == "none" else str(Path(args.init).expanduser().absolute())
        sizes = source_sizes(init) if init else preset(args.model or "tiny").model
        config = replace(PRESETS[args.task](sizes), init=init)
        if args.loss == "sigmoid":
            config = replace(config, smoothing=0.0)
        if args.steps:
            warmup = round(config.optim.warmup * args.steps / config.steps)
            config = replace(config, optim=replace(config.optim, warmup=warmup))
    else:
        config = saved
        for flag in ("task", "init", "model"):
            if getattr(args, flag):
                raise ConfigError(f"a resumed run keeps its {flag}: leave --{flag} out")
    config = apply_overrides(config, overrides + args.overrides)
    # A run may be resumed from another folder.
    source = absolute_source(config.data.source) if config.data.source else ""
    config = replace(config, data=replace(config.data, source=source))
    check_finetuning(config)
    for line in differences(saved, config) if saved else []:
        if line.startswith(FIXED) and not line.startswith(FREE):
            raise ConfigError(f"a run keeps its model, task and loss; this would change {line}; start a new one")
    return config


def split_labelled(manifest: Manifest, config: FinetuneConfig) -> tuple[Manifest, Manifest]:
    """(clips to train on, clips to test on); raises `ConfigError` when the first cannot be trained on."""
    clips, held_out = manifest.split(config.data.train_split), manifest.split(config.data.test_split)
    if not clips:
        raise ConfigError(f"{manifest.root} has no rows of split {config.data.train_split!r} (it has: "
                          f"{', '.join(manifest.splits) or 'none'}); --set data.train_split=NAME chooses")  # fmt: skip
    check_labels(clips, config.loss)
    if any(clip.labels for clip in held_out):
        check_labels(Manifest(tuple(c for c in held_out if c.labels), held_out.root, held_out.labels), config.loss)
    return clips, held_out


def finetune(config: FinetuneConfig, out: Path, device: torch.device, manifest: Manifest, *, resume: bool,
             world: World = ALONE, traced: Traced | None = None) -> None:  # fmt: skip
    """Runs `config` in folder `out`, from its newest checkpoint if `resume`; ends with the test clips.

    All ranks of `world` call it.
    """
    dtype = compute_dtype(config.dtype, device)
    ops = choose(config.fused, device)
    clips, held_out = split_labelled(manifest, config)
    torch.manual_seed(config.seed)
    # Weights are drawn on the CPU so that a seed means the same model on every device.
    model = Classifier(config.model, config.modality, len(manifest.labels), head_dropout=config.head_dropout, ops=ops)
    model.to(device)
    parameters = count_parameters(model)
    # A run that has a checkpoint does not need what it started from any more.
    started = resume and any((out / "checkpoints").glob("step-*"))
    loaded = load_backbone(model, read_source(config.init), config.init) if config.init and not started else None
    parts = prepare(model, (model,), world, config.parallel, recompute=config.recompute)
    optimizer = SGD(model.parameters(), config.optim.rate, config.optim.momentum)
    bad = BadClips(out / "bad_clips.csv", manifest, config.data.max_bad_share, writes=world.is_first)
    slots = world.slots(config.data.batch_size)
    where = environment(device) | {"operations": ops.reason}
    session = Session(out, manifest, model, optimizer, bad, {"manifest": (fingerprint(manifest), manifest.root)},
                      json.dumps({"finetune": to_dict(config), "environment": where}), world)  # fmt: skip
    start = session.restore(config.steps) if resume else 0
    print(f"run {out}: {config.task}, {parameters / 1e6:.1f} M parameters, {device}, {dtype}")
    if world.size > 1:
        print(f"{world.size} processes ({config.parallel}), {len(slots)} clips of each batch on each")
    print(ops.reason)
    if loaded is not None:
        if world.is_first:
            write_atomically(out / "init.txt", f"{config.init}\n{loaded}\n".encode())
        fresh = len(loaded.mismatched) + len(loaded.fresh)
        print(f"from {config.init}: {len(loaded.loaded)} tensors loaded, {len(loaded.resampled)} position tables "
              f"resampled, {fresh} tensors start fresh ({out}/init.txt names them)")  # fmt: skip
    print(f"data: {len(clips)} clips to train on, {len(held_out)} to test on, {len(manifest.labels)} classes "
          f"({manifest.root})")  # fmt: skip
    if world.is_first:
        say(clips, held_out, config.data)
    if untrained := len(manifest.labels) - len({label for clip in clips for label in clip.labels}):
        print(f"note: {untrained} of the classes have no training clip")
    if resume:
        print(f"resuming after step {start}" if start else "no checkpoint yet: starting over")
    note_contents(out, manifest, start, world)
    log = MetricsLog(out / "metrics.jsonl", resume_step=start if resume else None) if world.is_first else None
    ranges = (config.crop.area, config.crop.aspect) if config.crop.style == "inception" else None
    dataset = LabelledDataset(clips, config.data, config.model, config.task, config.seed, ranges, slots)
    autocast = autocast_for(device, dtype)

    def update(batch: Batch, step: int) -> dict[str, Any]:
        record = finetune_step(model, optimizer, batch.to(device), config, step, autocast, world, parts[0])
        return record | {"operations": ops.impl}

    seconds = run_steps(session, config, dataset, start, log, update, "try a lower --rate", traced=traced)
    state = whole_state(model) if is_sharded(model) else None
    parts.clear()  # see World.disband
    world.disband()
    assert log is not None  # the first rank's, which alone is still here
    log.close()
    if state is not None:
        model = Classifier(config.model, config.modality, len(manifest.labels), head_dropout=config.head_dropout,
                           ops=ops).to(device)  # fmt: skip
        model.load_state_dict(state)
    finish(config, out, model, held_out, bad, where, seconds, len(clips))


def finish(config: FinetuneConfig, out: Path, model: Classifier, held_out: Manifest, bad: BadClips,
           where: dict[str, Any], seconds: float, train_clips: int) -> None:  # fmt: skip
    """After the last step: export the model, draw the curves, classify the test clips, write result.json."""
    classifier = {"modality": config.modality, "classes": len(held_out.labels), "labels": held_out.labels,
                  "task": config.task, "loss": config.loss, "windows": config.eval_windows,
                  "crops": config.eval_crops}  # fmt: skip
    write_model_folder(out / "model", model.state_dict(), config.base(),
                       {"environment": where, "classifier": classifier}, None)  # fmt: skip
    result = summarise(out, draw_training, where, config, seconds, bad, train_clips) | {"finetune": to_dict(config)}
    if held_out:
        device = next(model.parameters()).device
        views = ClassifyConfig(config.task, config.loss, config.eval_windows, config.eval_crops)
        autocast = autocast_for(device, compute_dtype(config.dtype, device))
        tick = time.perf_counter()
        result["test"] = classify(model, held_out, views, config.data, out, autocast)
        result["test_seconds"] = time.perf_counter() - tick
        print(format_scores(result["test"]))
    else:
        print(f"no rows of split {config.data.test_split!r} in the manifest: no scores")
    write_result(out, result)


def saved_config(out: Path) -> FinetuneConfig:
    """The settings of the run in `out`: from config.json, or from its newest checkpoint when that is damaged."""
    path = out / "config.json"
    try:
        return from_record(FinetuneConfig, read_json(path, {"finetune": dict})["finetune"])
    except FileNotFoundError as error:
        raise RunError(f"{out} holds no run: {path} is missing") from error
    except (ValueError, TypeError, ArithmeticError) as error:
        found = training_checkpoint.load_latest(out / "checkpoints", tqdm.write)
        if found is None or "finetune" not in (record := json.loads(found.state["record"])):
            raise RunError(f"{path} is no fine-tuning run's config: {error}") from error
        print(f"{path} is damaged ({error}); using the settings in {found.path}")
        return from_record(FinetuneConfig, record["finetune"])


def run(args: argparse.Namespace, world: World, held: ExitStack) -> None:
    begun = begin(args, world, saved_config, resolve_config, lambda config: f"finetune-{config.task}", held)
    if begun is None:
        return
    config, out, device = begun.config, begun.out, begun.device
    manifest = open_source(config.data)
    split_labelled(manifest, config)  # nothing is written for a run that cannot start

    def write() -> None:
        # First of all: whatever happens next, --resume knows what to do.
        record = {"finetune": to_dict(config), "environment": environment(device)}
        write_atomically(out / "config.json", (json.dumps(record, indent=2) + "\n").encode())

    world.first(write)
    finetune(config, out, device, manifest, resume=args.resume, world=world, traced=begun.traced)


def main(argv: list[str] | None = None) -> int:
    return run_command(parse_arguments(argv), run)


if __name__ == "__main__":
    sys.exit(main())
