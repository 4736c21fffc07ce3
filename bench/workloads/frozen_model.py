"""What a pre-trained, frozen model scores on clips: linear probes of labels and zero-shot retrieval.

Pre-training and features are those of `python -m vatt.train` and `python -m vatt.embed`, called in this process; what
they print goes to a log beside what they write, and both go on where they were interrupted.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.report import ReportError

import numpy as np
import torch

from vatt import embed, train
from vatt.data.synthetic import build_corpus, plan
from vatt.evaluation.linear_probe import linear_probe
from vatt.evaluation.retrieval import from_features, retrieval
from vatt.inference.features_file import Features, read_features
from vatt.inference.npz import Arrays

ATTRIBUTES = ("shape", "colour", "motion")
POOLED = {"video": "video_pooled", "audio": "audio_pooled"}
Splits = list[tuple[np.ndarray, np.ndarray]]  # masks [C] of training and test clips


def run_command(main: Callable[[list[str]], int], argv: list[str], log: Path) -> None:
    """Call a command of the project. Raises `ReportError` when it fails; it has said why on standard error."""
    with open(log, "a", encoding="utf-8") as file, contextlib.redirect_stdout(file):
        try:
            code = main(argv)
        except SystemExit as stop:  # a signal ended the training, which has saved its state
            if stop.code != 130:
                raise
            code = 130
    if code == 130:
        raise KeyboardInterrupt
    if code:
        raise ReportError(f"the command ended with exit code {code}, see above and {log}: {' '.join(argv)}")


def pretrain(run: Path, drop_rate: float, seed: int, *, steps: int, clips: int, device: str, resume: bool) -> None:
    """Train the tiny preset on the built-in corpus of `clips` clips, in folder `run`; `resume` goes on there."""
    if not resume:
        shutil.rmtree(run, ignore_errors=True)
    resumable = (run / "config.json").exists()
    run.mkdir(parents=True, exist_ok=True)
    argv = [
        "--preset",
        "tiny",
        "--fused",
        "--drop-rate",
        str(drop_rate),
        "--seed",
        str(seed),
        "--steps",
        str(steps),
        "--set",
        f"data.builtin_clips={clips}",
        "--device",
        device,
        "--out",
        str(run),
    ]
    run_command(train.main, [*argv, *(["--resume"] if resumable else [])], run.with_name(f"{run.name}.log"))


def clip_features(model: Path, source: str | Path, out: Path, device: str) -> Features:
    """Return the features of every clip in the manifest or folder `source`, made by `vatt.embed` and kept in `out`."""
    argv = ["--model", str(model), "--data", str(source), "--out", str(out), "--device", device, "--resume"]
    run_command(embed.main, argv, out.with_suffix(".log"))
    return read_features(out)


def splits_of(split: np.ndarray) -> Splits:
    """Return clips to fit and to test on: "train" and "test"; else each split is tested on, and the others fitted."""
    names = sorted({str(name) for name in split} - {""})
    if "train" in names and "test" in names:
        return [(split == "train", split == "test")]
    return [((split != name) & (split != ""), split == name) for name in names] if len(names) > 1 else []


def probes(arrays: Arrays, labels: np.ndarray, splits: Splits) -> dict[str, dict[str, Any]]:
    """Score a linear probe of each modality's pooled features, mean over the splits. labels [C], "" is none."""
    names = {str(label) for label in labels} - {""}
    ids = {name: i for i, name in enumerate(sorted(names))}
    target = torch.tensor([ids.get(str(label), -1) for label in labels])
    by_modality: dict[str, dict[str, Any]] = {}
    for modality, name in POOLED.items():
        if not len(arrays.get(name, ())) or len(ids) < 2:
            continue
        owners = arrays[f"{modality}_clip"]
        features, known = torch.from_numpy(arrays[name]), target[owners]
        scores = []
        for train_mask, test_mask in splits:
            fit, test = (torch.from_numpy(mask[owners]) & (known >= 0) for mask in (train_mask, test_mask))
            if fit.any() and test.any():
                scores.append(linear_probe(features[fit], known[fit], features[test], known[test], len(ids)))
        if scores:
            means = {key: float(np.mean([score[key] for score in scores])) for key in ("top1", "top5")}
            by_modality[modality] = {
                **means,
                "classes": len(ids),
                "splits": [score["top1"] for score in scores],
                "strengths": [score["strength"] for score in scores],
            }
    return by_modality


def zero_shot(features: Features) -> dict[str, dict[str, float]]:
    """Score retrieval among the clips of split "test" (all of them where there is none), as `vatt.evaluate` does."""
    tested = features.arrays["split"] == "test"
    return retrieval(from_features(features, tested if tested.any() else None))


def corpus_scores(run: Path, clips: int, device: str) -> dict[str, Any]:
    """Score probes of the three attributes on held-out combinations of the built-in corpus, and retrieval of these."""
    manifest = build_corpus(clips=clips)
    features = clip_features(run, manifest, run / "features.npz", device)
    arrays = features.arrays
    recipes = {recipe.index: recipe for recipe in plan(clips, seed=0)}
    splits = splits_of(arrays["split"])
    probed = {
        name: probes(arrays, np.array([getattr(recipes[i], name) for i in arrays["row"].tolist()]), splits)
        for name in ATTRIBUTES
    }
    return {
        "probe": probed,
        "retrieval": zero_shot(features),
        "clips": len(arrays["row"]),
        "bad": len(arrays["bad_row"]),
    }


def manifest_scores(model: Path, source: str, out: Path, device: str) -> dict[str, Any]:
    """Score probes of the manifest's labels and retrieval of its captions; sound files are probed by their sound."""
    features = clip_features(model, source, out, device)
    arrays = features.arrays
    probed = probes(arrays, arrays["label"], splits_of(arrays["split"]))
    scores = zero_shot(features)
    if not probed and not scores:
        raise ReportError(
            f"{source} has nothing to score: neither captions, nor labels with two splits or more "
            "(columns caption, label, split)"
        )
    return {"probe": probed, "retrieval": scores, "clips": len(arrays["label"]), "bad": len(arrays["bad_row"])}
