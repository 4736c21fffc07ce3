"""Official splits and folds: which clips a probe is fitted to, which it is tested on, and what it scores there.

A folder below OUT/MODALITY for each fold: predictions, a table of classes and their confusion (prediction_files.py).
"""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..config.run import RunConfig
from ..data.clip import Clip, Manifest
from ..data.datasets.classification import ViewDataset
from ..data.datasets.evaluation import EvalDataset
from ..data.manifest import read_manifest, tell_notes
from ..data.tokenizer import Tokenizer
from ..errors import ConfigError, DataError
from ..inference.pooled_features import PooledClips, pooled_features
from ..model.vatt import Backbone
from ..runtime.distributed import SINGLE_PROCESS, World
from ..runtime.files import write_atomically
from .classification import check_labels, label_table, one_class_note, report
from .linear_probe import fit_and_classify

log = logging.getLogger(__name__)


class Fold(NamedTuple):
    """Manifest indices to fit to and to test on."""

    name: str
    train: list[int]
    test: list[int]


def read_folds(sources: Sequence[str | Path], train: str, test: str, columns: str = "") -> tuple[Manifest, list[Fold]]:
    """Return the clips of all folds, each once, and the folds: a manifest each, of its splits `train` and `test`.

    A single manifest whose rows are in neither is a cross-validation: each of its splits is tested on in turn and the
    others are fitted to. Raises `ConfigError` for a fold without clips to fit to or to test on, and for clips with no
    label, several, or other ones in another manifest.
    """
    clips: dict[tuple[Path, float, float | None], Clip] = {}
    folds: list[Fold] = []
    for number, source in enumerate(sources):
        manifest = tell_notes(read_manifest(source, columns))
        rows: dict[str, list[int]] = {}
        for clip in manifest:
            if clip.split is None:
                continue
            key = (clip.path, clip.start, clip.end)
            known = clips.setdefault(key, replace(clip, index=len(clips), split=None))
            if known.labels != clip.labels:
                raise ConfigError(f"{source}: {clip.name} is {clip.label!r}, and {known.label!r} in another manifest")
            rows.setdefault(clip.split, []).append(known.index)
        if rows.get(train) and rows.get(test):
            folds.append(Fold(_name(source, number, sources), rows[train], rows[test]))
        elif len(sources) == 1 and len(rows) > 1 and not rows.keys() & {train, test}:
            folds = [
                Fold(name, [i for other in rows if other != name for i in rows[other]], rows[name])
                for name in sorted(rows)
            ]
        else:
            raise ConfigError(
                f"{source} has no rows of split {train if not rows.get(train) else test!r} (it has: "
                f"{', '.join(sorted(rows)) or 'none'}); a probe is fitted to {train!r} and tested on "
                f"{test!r}, --split names another test split"
            )
    used = {i for fold in folds for i in (*fold.train, *fold.test)}
    kept = tuple(clip for clip in clips.values() if clip.index in used)
    merged = Manifest(kept, manifest.root, tuple(sorted({label for clip in kept for label in clip.labels})))
    check_labels(merged, "softmax")
    return merged, folds


def _name(source: str | Path, number: int, sources: Sequence[str | Path]) -> str:
    """Return the fold's name: that of its file, where all of them differ, else its number."""
    stems = [Path(each).stem for each in sources]
    return stems[number] if len(set(stems)) == len(stems) else f"{number + 1}"


def probe_folds(
    backbone: Backbone,
    modality: str,
    classifier: str,
    clips: Manifest,
    folds: list[Fold],
    config: RunConfig,
    autocast: Any,
    out: Path,
    world: World = SINGLE_PROCESS,
) -> dict[str, Any]:
    """Score a probe on one modality's features: means over the folds, those of each, counts.

    Features are made once for all folds; they and finished folds are kept in OUT/features.parts/MODALITY, which must
    exist, until the caller deletes it. All ranks of `world` make features, the first one goes on with them; on the
    others this ends with `RankFinished`. Raises `DataError` for a fold without clips of the modality.
    """
    parts = out / "features.parts" / modality
    size = max(1, 32 // config.eval_windows)

    def only(wanted: set[int]) -> Manifest:
        return Manifest(tuple(clip for clip in clips if clip.index in wanted), clips.root, clips.labels)

    def pooled(use: str, dataset: EvalDataset) -> PooledClips:
        world.on_main(lambda: (parts / use).mkdir(exist_ok=True))
        what = f"{modality} of clips to {use}"
        return pooled_features(
            backbone, modality, dataset, autocast, what, parts / use, config.data.max_bad_share, world
        )

    fitted = only({i for fold in folds for i in fold.train})
    tested = only({i for fold in folds for i in fold.test})
    only_modality = (modality,)
    middles = EvalDataset(
        *(fitted, config.data, config.model, Tokenizer([]), 1, size),
        read=only_modality,
        needs=only_modality,
        place="middle",
    )
    fit = pooled("fit", middles)
    test = pooled("test", ViewDataset(tested, config.data, config.model, modality, config.eval_windows, 1, size))
    world.only_main_continues()
    fit_place, test_place = ({i: n for n, i in enumerate(found.clips)} for found in (fit, test))
    scores: dict[str, dict[str, float]] = {}
    for fold in folds:
        learned = [i for i in fold.train if i in fit_place]
        asked = [i for i in fold.test if i in test_place]
        if not learned or not asked:
            raise DataError(f"fold {fold.name}: none of its clips to {'test' if learned else 'fit'} could be used")
        kept = parts / f"{fold.name}.npy"
        if not kept.exists():
            log.info("%s, fold %s: %d clips to fit to, %d to test on", modality, fold.name, len(learned), len(asked))
            features, windows = fit.features[[fit_place[i] for i in learned], 0], [test_place[i] for i in asked]
            labels = label_table(clips, learned).argmax(1)
            _keep(kept, fit_and_classify(classifier, features, labels, test.features[windows], len(clips.labels)))
        logits = torch.from_numpy(np.load(kept, allow_pickle=False))
        bad = [entry for entry in test.bad if entry[0] in set(fold.test)]
        scores[fold.name] = _write(out / modality / fold.name, clips, asked, logits, bad)
        scores[fold.name] |= {"fitted": len(learned), "tested": len(asked)}
    means = {
        name: float(np.mean([one[name] for one in scores.values()])) for name in ("top1", "top5", "mean_class_accuracy")
    }
    bad_clips = {index for found in (fit, test) for index, _ in found.bad}
    return {"scores": means, "folds": scores, "classes": len(clips.labels), "bad_clips": len(bad_clips)}


def _keep(path: Path, values: Tensor) -> None:
    buffer = io.BytesIO()
    np.save(buffer, values.numpy())
    write_atomically(path, buffer.getvalue())


def _write(
    folder: Path, clips: Manifest, indices: list[int], logits: Tensor, bad: list[tuple[int, str]]
) -> dict[str, float]:
    """Write the files of a fold and return its scores. logits float64 [m,C] of the clips with these indices."""
    folder.mkdir(parents=True, exist_ok=True)
    found = report(folder, clips, indices, logits, bad, "softmax")
    if note := one_class_note(found):
        log.info("%s: %s", folder, note)
    scores: dict[str, float] = found["scores"]
    return scores
