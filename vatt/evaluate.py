"""What a finished model scores on clips: `python -m vatt.evaluate --task classify|probe|retrieve --run DIR`.

classify: a fine-tuned model, several views of every clip, averaged logits (paper, Tables 1 to 3).
probe: a classifier on frozen pooled features, over official splits or folds (Table 5).
retrieve: captions and sounds rank all clips, zero-shot (Table 4).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .checkpoints.fingerprints import fingerprint, weights_fingerprint
from .checkpoints.loading import load_vatt, operations
from .checkpoints.model_folder import corpus_format, load_config, load_tokenizer, model_folder, read_record
from .config.data import DATA_VERSION
from .config.run import RunConfig
from .config.serialization import to_dict
from .data.class_list import SORTED, read_classes
from .data.clip import Manifest, ManifestError
from .data.datasets.evaluation import EvalDataset
from .data.manifest import read_manifest, tell_notes
from .data.media_types import AUDIO
from .data.synthetic import corpus_of
from .errors import ConfigError, RankFinished
from .evaluation import classification, linear_probe
from .evaluation.cross_validation import probe_folds, read_folds
from .evaluation.retrieval import SCORES, embed_clips, format_scores, retrieval, write_ranks
from .inference.result_folder import open_parts, open_result, write_result
from .ops import OURS, add_attention_flag
from .runtime.cli import exit_code
from .runtime.device import autocast_for, compute_dtype, pick_device
from .runtime.distributed import World, init_world
from .runtime.files import first_free, write_atomically
from .runtime.lock import add_force_flag, owned
from .runtime.provenance import code_identity

TASKS = ("classify", "probe", "retrieve")
# What is printed of a result.json that an earlier command wrote.
RESULT: dict[str, Any] = {
    "classify": {
        "test": {"scores?": {"*": (complex, None)}, "labelled": int, "clips": int, "views": int, "bad_clips": int}
    },
    "probe": {"probe": {"*": {"scores": {"*": complex}, "folds": (list, dict), "classes": int, "bad_clips": int}}},
    "retrieve": {
        "retrieval": {
            "*": dict.fromkeys(("R@1", "R@5", "R@10", "median_rank", "queries", "candidates", "chance_R@10"), complex)
        },
        "bad_clips": int,
    },
}
EXAMPLES = """examples:
  python -m vatt.evaluate --run runs/mbs --data test.csv                          retrieval, printed
  python -m vatt.evaluate --run vatt-mbs --data youcook2.csv --split val --score both --out runs/youcook2
  python -m vatt.evaluate --task classify --run runs/k400 --data k400.csv --split val
  python -m vatt.evaluate --task probe --run vatt-mbs --data ucf101-1.csv ucf101-2.csv ucf101-3.csv --out runs/ucf101
  python -m vatt.evaluate --task probe --run vatt-mbs --data esc50.csv --modality audio --probe lbfgs
  python -m vatt.evaluate --task probe --run vatt-mbs --data esc50.csv --out runs/esc50 --resume    after a crash
  torchrun --nproc-per-node=8 -m vatt.evaluate --task classify --model runs/k400 --data k400.csv --split val

probe: a manifest a split or fold, each with rows of train and test; features are made once for all of them. Rows of a
single manifest that are in other splits (1, 2, 3, ...) are folds: each is tested once, after a fit to the others.
  --probe official  dense 128, dropout 0.9, dense with L2 0.1, Adam, 1000 epochs, as the release
  --probe lbfgs     logistic regression, L2 strength chosen on a fifth of the training clips
  --probe sklearn   the same, solved by scikit-learn (pip install -e '.[probe]')
retrieve: --score embd averages a clip's embeddings over its windows, cosine averages the windows' cosines.

In --out DIR: result.json (scores, settings, environment) and
  classify  predictions.csv, predictions.parquet, per_class.csv, confusion.png
            (python -m pydoc vatt.evaluation.prediction_files describes them)
  probe     the same in MODALITY/FOLD/
  retrieve  ranks.csv: each query, its rank and what came first
exit codes: 0 done, 1 failed, 2 wrong usage or settings, 130 interrupted (go on with --resume)."""


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m vatt.evaluate",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Score a finished model: classification, linear probes of frozen features, zero-shot retrieval.",
    )
    add = parser.add_argument
    add("--task", choices=TASKS, default="retrieve", help="what to score (default retrieve)")
    # Under torchrun --run means an option of its own.
    add(
        "--run",
        "--model",
        type=Path,
        required=True,
        metavar="DIR",
        dest="run",
        help="folder of a finished run, its model/ folder, or a converted model",
    )
    add(
        "--data",
        nargs="+",
        metavar="PATH",
        help="manifest CSV or folder of clips; probe: one a fold (default: what the run was trained on)",
    )
    add(
        "--columns",
        metavar="NAME=COLUMN,...",
        default="",
        help="columns of --data that have other names, e.g. caption=title,path=filepath",
    )
    add("--split", metavar="NAME", help="rows to test on (default: the held-out split; all of --data without one)")
    add("--windows", type=int, metavar="N", help="temporal windows a test clip (default: the model's)")
    add("--crops", type=int, choices=(1, 3), help="classify: crops a window, centre or three (default: the model's)")
    add(
        "--classes",
        metavar="FILE",
        help="classify: names of the model's outputs in their order, a line each, for a model without names; "
        "sorted: the labels in alphabetical order (default: labels are numbers of outputs)",
    )
    add("--fps", type=float, metavar="R", help="probe, retrieve: frames a second of a clip (default: the model's)")
    add(
        "--modality",
        nargs="+",
        choices=("video", "audio"),
        help="probe: whose features (default video, audio where all files are sound)",
    )
    add(
        "--probe", choices=linear_probe.CLASSIFIERS, default="official", help="probe: the classifier (default official)"
    )
    add("--score", choices=(*SCORES, "both"), default="embd", help="retrieve: how windows are averaged (default embd)")
    add("--device", default="auto", metavar="NAME", help="cpu, cuda, ... (default auto: a GPU if there is one)")
    add("--dtype", choices=("auto", "float32", "bfloat16"), help="compute type (default: the model's setting)")
    add("--fused", action="store_true", default=None, help="fast operations (default: as the model was trained)")
    add_attention_flag(parser)
    add("--workers", type=int, metavar="N", help="decoding processes, 0: this one (default: the model's setting)")
    add(
        "--max-bad-share",
        type=float,
        metavar="R",
        help="stop when a larger share of clips cannot be read (default: the model's)",
    )
    add(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder to write (default: the first free runs/evaluate-TASK[-N]; none for retrieve); for retrieve also a "
        "FILE.json for the scores alone",
    )
    add("--resume", action="store_true", help="go on with what an interrupted command left in --out")
    add_force_flag(parser)
    return parser.parse_args(argv)


def check_arguments(args: argparse.Namespace) -> None:
    for name, least in (("windows", 1), ("workers", 0), ("max_bad_share", 0), ("fps", 1e-3)):
        value = getattr(args, name)
        if value is not None and not value >= least:  # so that NaN is refused
            raise ConfigError(f"--{name.replace('_', '-')} must be at least {least:g}, got {value:g}")
    for flag, tasks in (
        ("crops", ("classify",)),
        ("classes", ("classify",)),
        ("modality", ("probe",)),
        ("fps", ("probe", "retrieve")),
    ):
        if getattr(args, flag) is not None and args.task not in tasks:
            raise ConfigError(f"--{flag} belongs to --task {' or '.join(tasks)}")
    if args.task != "probe" and len(args.data or []) > 1:
        raise ConfigError(f"--task {args.task} takes one --data")
    if scores_only(args):
        if args.task != "retrieve" or args.resume:
            raise ConfigError(f"--out {args.out}: --task {args.task}{' --resume' * args.resume} takes a folder")
        if not args.out.parent.is_dir():
            raise ConfigError(f"--out: there is no folder {args.out.parent}")
    if args.resume and not args.out:
        raise ConfigError("--resume goes on with what is in --out; name its folder")


def scores_only(args: argparse.Namespace) -> bool:
    """Whether --out names a file for the scores of retrieval, not a folder."""
    return args.out is not None and args.out.suffix == ".json"


def open_out(
    args: argparse.Namespace, settings: dict[str, Any], held: contextlib.ExitStack
) -> tuple[Path | None, dict[str, Any] | None]:
    """Return the folder to write, None for none, and the result in it when an earlier command has finished.

    What is written is this command's own until `held` is closed.
    """
    if args.out is None and args.task == "retrieve":
        return None, None
    out = args.out or first_free(f"evaluate-{args.task}", held)
    if args.out:
        held.enter_context(owned(out, folder=not scores_only(args), force=args.force))
    if scores_only(args):
        return None, None
    return out, open_result(out, settings, args.resume, RESULT[args.task])


def settings_of(args: argparse.Namespace) -> RunConfig:
    """The settings of the model, with what the command line changes of how clips are read."""
    config = load_config(model_folder(args.run))
    data, video = config.data, config.model.video
    data = data if args.workers is None else replace(data, workers=args.workers)
    data = data if args.max_bad_share is None else replace(data, max_bad_share=args.max_bad_share)
    video = video if args.fps is None else replace(video, fps=args.fps)
    windows = args.windows or config.eval_windows
    fused = config.fused if args.fused is None else args.fused
    return replace(
        config,
        data=data,
        model=replace(config.model, video=video),
        eval_windows=windows,
        fused=fused,
        dtype=args.dtype or config.dtype,
    )


def builtin_corpus(args: argparse.Namespace, config: RunConfig) -> Path:
    """The manifest of the built-in corpus in the format that the model was trained on."""
    return corpus_of(corpus_format(read_record(model_folder(args.run))), config.data.builtin_clips)


def held_out_clips(args: argparse.Namespace, config: RunConfig) -> Manifest:
    """The rows to test on; says which they are, and when files that were trained on are among them.

    Without --split they are those of the held-out split; without such rows those of the one split that is not for
    training, or of the only one there is. Raises `ConfigError` when there are none, or several such splits.
    """
    (source,) = args.data or [config.data.source]
    columns = args.columns or ("" if args.data else config.data.columns)
    version = DATA_VERSION if args.data else config.data.version
    manifest = tell_notes(read_manifest(source or builtin_corpus(args, config), columns, version))
    split: str | None = args.split or config.data.test_split
    clips = manifest.split(args.split or config.data.test_split)
    if not len(clips) and args.data and not args.split:
        splits = [name for name in manifest.splits if name != config.data.train_split] or list(manifest.splits)
        if len(splits) > 1:
            raise ConfigError(
                f"{source}: no rows of split {split!r}; choose --split from: {', '.join(manifest.splits)}"
            )
        split = splits[0] if splits else None
        clips = manifest.split(splits[0]) if splits else manifest  # rows that are in no split, which is all there are
    if not len(clips):
        raise ConfigError(f"no rows of split {split!r}; choose --split from: {', '.join(manifest.splits)}")
    part = "in no split" if split is None else f"split {split!r}"
    print(f"testing on {len(clips)} of {len(manifest)} rows, {part}")
    trained = trained_files(config)
    if split != config.data.train_split:
        trained |= {clip.path for clip in manifest.split(config.data.train_split)}
    known = [clip for clip in clips if clip.path in trained]
    if known:
        print(
            f"warning: {len(known)} of them are of files that are trained on, the first is {known[0].name}: "
            "scores on them are no measure of new clips",
            file=sys.stderr,
        )
    return clips


def trained_files(config: RunConfig) -> set[Path]:
    """The files that the model of `config` was trained on, as far as a table of them is still there."""
    data = config.data
    try:
        if not data.source or not Path(data.source).exists():
            return set()
        return {clip.path for clip in read_manifest(data.source, data.columns).split(data.train_split)}
    except ManifestError:
        return set()


def classify_clips(args: argparse.Namespace, device: torch.device, world: World, held: contextlib.ExitStack) -> None:
    """`--task classify`."""
    config = settings_of(args)
    model, views, labels = classification.read_classifier(
        args.run, device, fused=config.fused, attention=args.attention
    )
    views = replace(views, windows=args.windows or views.windows, crops=args.crops or views.crops)
    if views.task == "audio" and views.crops != 1:
        raise ConfigError("--crops 3 is for pictures; a sound has one")
    clips, outputs = held_out_clips(args, config), model.head.linear.out_features
    named = labels is not None
    if args.classes == SORTED:
        labels = clips.labels
        if len(labels) != outputs:
            raise ConfigError(f"--classes {SORTED}: {clips.root} has {len(labels)} labels, the model {outputs} outputs")
    elif args.classes:
        labels = read_classes(Path(args.classes), outputs)
    clips = classification.with_classes(clips, labels, outputs)
    if labelled := tuple(clip for clip in clips if clip.labels):
        classification.check_labels(Manifest(labelled, clips.root, clips.labels), views.loss)
    dtype = compute_dtype(config.dtype, device)
    settings = resume_identity(args, config, device, weights_fingerprint(model), fingerprint(clips)) | {
        "windows": views.windows,
        "crops": views.crops,
        "loss": views.loss,
    }
    if not named or args.classes:
        settings["classes_sha256"] = fingerprint(clips.labels)
    require_equal(args, settings, world)
    out, result = world.on_main(lambda: open_out(args, settings, held))
    assert out is not None
    if result is None:
        test = classification.classify(model, clips, views, config.data, out, autocast_for(device, dtype), world)
        result = write_result(out, settings, config, device, {"test": test})
    print(classification.format_scores(result["test"]))
    print(f"done: {out}/result.json, predictions.csv, per_class.csv")


def retrieve_clips(args: argparse.Namespace, device: torch.device, world: World, held: contextlib.ExitStack) -> None:
    """`--task retrieve`."""
    config = settings_of(args)
    model, tokenizer = (
        load_vatt(args.run, device=device, fused=config.fused, attention=args.attention),
        load_tokenizer(args.run),
    )
    clips = held_out_clips(args, config).one_clip_a_span()
    size = max(1, 32 // config.eval_windows)
    dataset = EvalDataset(clips, config.data, config.model, tokenizer, config.eval_windows, size, needs=())
    settings = resume_identity(args, config, device, weights_fingerprint(model), fingerprint(clips)) | {
        "vocabulary_sha256": fingerprint(tokenizer.words),
        "score": args.score,
    }
    require_equal(args, settings, world)
    out, result = world.on_main(lambda: open_out(args, settings, held))
    if result is None:
        parts = None if out is None else out / "embeddings.parts"
        if parts is not None:
            world.on_main(lambda: open_parts(parts, settings))
        elif world.size > 1:
            raise ConfigError("several processes share their work in a folder: name one with --out")
        autocast = autocast_for(device, compute_dtype(config.dtype, device))
        embedded = embed_clips(model, dataset, autocast, parts, world, config.data.max_bad_share)
        world.only_main_continues()
        chosen = SCORES if args.score == "both" else (args.score,)
        scores = {
            name if score == chosen[0] else f"{name}_{score}": values
            for score in chosen
            for name, values in retrieval(embedded, score).items()
        }
        counts = {"clips": len(embedded.clips), "bad_clips": len(embedded.bad)}
        result = {"retrieval": scores, **counts}
        if out is not None:
            write_ranks(out / "ranks.csv", embedded, clips, chosen[0])
            result = write_result(out, settings, config, device, result)
            shutil.rmtree(out / "embeddings.parts")
    print(format_scores(result["retrieval"]))
    if out is None and result["bad_clips"]:
        print(f"{result['bad_clips']} of {len(clips)} clips could not be used and take no part")
    if out is not None:
        print(f"done: {out}/result.json, ranks.csv; {result['bad_clips']} bad clips")
    elif args.out:
        write_atomically(args.out, (json.dumps(result["retrieval"], indent=2) + "\n").encode())


def probe_clips(args: argparse.Namespace, device: torch.device, world: World, held: contextlib.ExitStack) -> None:
    """`--task probe`."""
    if args.probe == "sklearn":
        linear_probe.logistic_regression()  # said now rather than after hours of features
    config = settings_of(args)
    model = load_vatt(args.run, device=device, fused=config.fused, attention=args.attention)
    sources = args.data or [config.data.source or builtin_corpus(args, config)]
    split = args.split or config.data.test_split
    clips, folds = read_folds(sources, config.data.train_split, split, args.columns)
    only_sound = all(clip.path.suffix.lower() in AUDIO for clip in clips)
    modalities = args.modality or ["audio" if only_sound else "video"]
    settings = resume_identity(args, config, device, weights_fingerprint(model), fingerprint(clips)) | {
        "probe": args.probe,
        "modality": modalities,
        "folds_sha256": fingerprint(map(repr, folds)),
    }
    require_equal(args, settings, world)
    out, result = world.on_main(lambda: open_out(args, settings, held))
    assert out is not None
    if result is None:
        parts, probed = out / "features.parts", {}
        autocast = autocast_for(device, compute_dtype(config.dtype, device))
        for modality in modalities:
            world.on_main(partial(open_parts, parts / modality, settings))
            with contextlib.suppress(RankFinished):
                probed[modality] = probe_folds(
                    model.backbone, modality, args.probe, clips, folds, config, autocast, out, world
                )
        world.only_main_continues()
        result = write_result(out, settings, config, device, {"probe": probed})
        shutil.rmtree(parts)
    for modality, one in result["probe"].items():
        scores = "  ".join(f"{name} {value:.4g}" for name, value in one["scores"].items())
        print(
            f"{modality}: {scores}  (mean of {len(one['folds'])} folds, {one['classes']} classes, "
            f"{one['bad_clips']} bad clips)"
        )
    print(f"done: {out}/result.json; predictions, classes and confusion of each fold below {out}/MODALITY/")


def require_equal(args: argparse.Namespace, settings: dict[str, Any], world: World) -> None:
    """Raises `RunError` unless all ranks do the same."""
    if world.size > 1:
        world.require_equal(code_identity() | settings | {"--resume": args.resume})


def resume_identity(
    args: argparse.Namespace, config: RunConfig, device: torch.device, weights: str, clips: str
) -> dict[str, Any]:
    """What decides the numbers; a resumed command must have it in common with the one it goes on with."""
    by = operations(config, device, config.fused, args.attention).attention_by
    return {
        "task": args.task,
        "weights_sha256": weights,
        "clips_sha256": clips,
        "windows": config.eval_windows,
        "video": to_dict(config.model.video),
        "device": device.type,
        "dtype": str(compute_dtype(config.dtype, device)).removeprefix("torch."),
        "fused": config.fused,
        "attention": None if by == OURS else by,
    }


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)

    def action() -> None:
        check_arguments(args)
        with init_world(args.device) as world, contextlib.ExitStack() as held:
            device = pick_device(args.device, world.local_rank if world.size > 1 else None)
            ops = operations(load_config(model_folder(args.run)), device, args.fused, args.attention)
            if ops.attention_by != OURS and world.is_first:
                print(ops.reason)
            task = {"classify": classify_clips, "probe": probe_clips, "retrieve": retrieve_clips}[args.task]
            task(args, device, world, held)

    return exit_code(action, "interrupted; finished shards in --out are kept: --resume goes on")


if __name__ == "__main__":
    sys.exit(main())
