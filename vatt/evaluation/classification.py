"""How well a fine-tuned model classifies: several views of every clip, averaged logits, scores (Tables 1 to 3).

A view is one temporal window and one crop: 4 x 3 of a video, 4 windows of a sound, 3 crops of a picture. Nothing is
dropped. `classify` is what `vatt.finetune` ends with; `read_classifier` brings a finished model here.

Work is kept in shards in OUT/predictions.parts until all is done: the same call after a crash goes on, with the numbers
of an uninterrupted one.

Legend: C clips that could be read, K classes, V views of a clip.
"""

from __future__ import annotations

import math
import shutil
import unicodedata
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoints.fingerprints import fingerprint, weights_fingerprint
from ..checkpoints.loading import load_classifier
from ..checkpoints.model_folder import model_folder
from ..config.data import DataConfig
from ..config.serialization import to_dict
from ..data.class_list import numbered_classes
from ..data.clip import CAPTION_SEPARATOR, Manifest
from ..data.datasets.classification import ViewDataset
from ..errors import ConfigError
from ..inference.logits import predict
from ..inference.result_folder import open_parts
from ..model.vatt import Classifier
from ..runtime.distributed import SINGLE_PROCESS, World
from .metrics import classification_scores, hits, multilabel_scores
from .prediction_files import draw_confusion, write_per_class, write_predictions


@dataclass(frozen=True)
class ClassifyConfig:
    """What a classifier looks at. `task`: video, audio or image; `loss`: softmax (one class a clip) or sigmoid."""

    task: str
    loss: str
    windows: int = 4
    crops: int = 3

    @property
    def views(self) -> int:
        return self.windows * self.crops


def read_classifier(
    folder: str | Path, device: torch.device, *, fused: bool = False, attention: str | None = None
) -> tuple[Classifier, ClassifyConfig, tuple[str, ...] | None]:
    """The fine-tuned model in `folder`, how it is tested, and its class names (None: a converted one has none).

    Converted models are tested as the release does. Raises `RunError` for a folder without a classifier.
    """
    folder = model_folder(folder)
    model = load_classifier(folder, device, fused=fused, attention=attention)
    record = model.record
    config = ClassifyConfig(record["task"], record["loss"], record["windows"], record["crops"])
    labels = model.classes if "labels" in record else None
    return model, config, labels


def with_classes(clips: Manifest, labels: tuple[str, ...] | None, classes: int) -> Manifest:
    """`clips` with the class ids of the model. `labels` None: the manifest's labels are the numbers of its outputs.

    Raises `ConfigError` for a label that the model does not know, or that is no number where only numbers can be known.
    """
    if labels is None:
        return Manifest(clips.clips, clips.root, numbered_classes(clips, classes))
    # The same letters may be written in either form of Unicode: of a file system, and of a list.
    names = {unicodedata.normalize("NFC", name): name for name in labels}
    renamed = {label: names.get(unicodedata.normalize("NFC", label), label) for label in clips.labels}
    if any(label != name for label, name in renamed.items()):
        several = (CAPTION_SEPARATOR.join(renamed[label] for label in clip.labels) or None for clip in clips)
        relabelled = (replace(clip, label=label) for clip, label in zip(clips, several, strict=True))
        clips = Manifest(tuple(relabelled), clips.root, labels, clips.notes)
    unknown = sorted({label for clip in clips for label in clip.labels} - set(labels))
    if unknown:
        raise ConfigError(
            f"{clips.root}: the model has no class {unknown[0]!r}"
            f"{f' (nor {len(unknown) - 1} more)' if unknown[1:] else ''}; it has: "
            f"{', '.join(labels[:10])}{', ...' if labels[10:] else ''}"
        )
    return Manifest(clips.clips, clips.root, labels)


def check_labels(clips: Manifest, loss: str) -> None:
    """Raises `ConfigError` unless every clip has a label, only one for softmax, and there are at least two classes."""
    without = [clip for clip in clips if not clip.labels]
    if without:
        raise ConfigError(
            f"{clips.root}: {len(without)} of {len(clips)} clips have no label, the first is "
            f"{without[0].name}; leave these rows out of the split, or label them"
            f"{''.join(f' ({note})' for note in clips.notes if 'label' in note)}"
        )
    several = [clip for clip in clips if len(clip.labels) > 1]
    if loss == "softmax" and several:
        raise ConfigError(
            f"{clips.root}: {several[0].name} has several labels ({several[0].label}); --loss sigmoid "
            "takes them, softmax takes one a clip"
        )
    if len(clips.labels) < 2:
        raise ConfigError(f"{clips.root}: {len(clips.labels)} classes, at least 2 are needed; the column is `label`")


def label_table(clips: Manifest, indices: list[int]) -> Tensor:
    """0/1 float32 [C,K] of the clips with these manifest indices; a row of zeros where a clip has no label."""
    ids, by_index = clips.label_ids, {clip.index: clip for clip in clips}
    table = torch.zeros(len(indices), len(clips.labels))
    for row, index in zip(table, indices, strict=True):
        row[[ids[label] for label in by_index[index].labels]] = 1.0
    return table


def score(logits: Tensor, labels: Tensor, loss: str) -> dict[str, float]:
    """Softmax: top-1, top-5 and mean accuracy of the classes; sigmoid: mAP, AUC and d-prime. labels 0/1 [C,K]."""
    if loss == "sigmoid":
        return multilabel_scores(logits, labels)
    target = labels.argmax(1)
    right = hits(logits, target, 1)
    present = target.unique()
    per_class = torch.stack([right[target == c].mean() for c in present])
    return classification_scores(logits, target) | {"mean_class_accuracy": per_class.mean().item()}


def classify(
    model: Classifier,
    clips: Manifest,
    config: ClassifyConfig,
    data: DataConfig,
    out: Path,
    autocast: Any,
    world: World = SINGLE_PROCESS,
) -> dict[str, Any]:
    """Classifies `clips` (class ids are the model's) and writes predictions, a table of classes and their confusion.

    All ranks of `world` classify, the first one writes; on the others this ends with `RankFinished`.

    Returns scores and counts; without any labelled clip there are no scores, and null stands for an infinite one.
    In `out`: predictions.csv (best classes of each clip), predictions.parquet (all logits; .npz without pyarrow),
    per_class.csv and, for single labels and with matplotlib, confusion.png.
    """
    dataset = ViewDataset(
        clips,
        data,
        model.backbone.config,
        config.task,
        config.windows,
        config.crops,
        batch_size=max(1, data.batch_size // config.views),
    )
    parts = out / "predictions.parts"
    identity = {
        "weights": weights_fingerprint(model),
        "clips": fingerprint(clips),
        "batch": dataset.batch_size,
        "model": to_dict(model.backbone.config),
        "augment": to_dict(data.augment),
        **asdict(config),
    }
    world.on_main(lambda: open_parts(parts, identity))
    predictions = predict(model, dataset, parts, autocast, world)
    world.only_main_continues()
    labels = label_table(clips, predictions.clips)
    write_predictions(out, clips, predictions.clips, predictions.logits, predictions.bad, config.loss)
    labelled = labels.any(1)
    result: dict[str, Any] = {
        "clips": len(predictions.clips),
        "labelled": int(labelled.sum()),
        "bad_clips": len(predictions.bad),
        "views": config.views,
    }
    if labelled.any():
        logits, labels = predictions.logits[labelled].double(), labels[labelled]
        try:
            scores = score(logits, labels, config.loss)
            result["scores"] = {name: x if math.isfinite(x) else None for name, x in scores.items()}
        except ValueError as error:
            result["no_scores"] = str(error)
        write_per_class(out / "per_class.csv", clips.labels, logits, labels, config.loss)
        if config.loss == "softmax":
            try:
                draw_confusion(out / "confusion.png", clips.labels, logits, labels)
            except ImportError:
                print("no confusion.png: matplotlib is missing, pip install -e '.[bench]' brings it")
    shutil.rmtree(parts)
    return result


def format_scores(result: dict[str, Any]) -> str:
    """One line for people."""
    scores = result.get("scores", {})
    values = "  ".join(
        f"{name} {'infinite' if value is None else format(value, '.4g')}" for name, value in scores.items()
    )
    counts = f"{result['labelled']} labelled of {result['clips']} clips, {result['views']} views each"
    return f"{values or result.get('no_scores', 'no labels, no scores')}  ({counts}, {result['bad_clips']} bad)"
