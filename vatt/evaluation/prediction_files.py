"""What a classification leaves behind: predictions, a table of classes, the confusion matrix, the training curve.

predictions.csv      a row a clip: path, start, end, label (several separated by ` | `), predicted (the most likely
                     class), right (1 where it is a label of the clip, 0 where not, a share where classes tie, empty
                     without a label), class_1, probability_1, ... class_5, probability_5, best first; row (of the
                     manifest), split, reason (why the clip could not be used), and best, which is those five in one
                     cell as `class 0.912 | class 0.05 | ...`
predictions.parquet  a row a clip that could be used: path, row, start, end, split, label, logits (list of float32); the
                     schema metadata holds the class names under "labels". Without pyarrow predictions.npz: row [C],
                     logits [C,K], labels [K]
per_class.csv        single label: class, clips, right, accuracy, precision, most_confused_with
                     several labels: class, clips, AP, AUC, d-prime
"""

from __future__ import annotations

import io
import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.clip import Clip, Manifest
from ..inference.npz import write_npz
from ..runtime.files import pyplot, write_atomically, write_csv, write_figure
from .metrics import average_precision, roc_area

log = logging.getLogger(__name__)

BEST = 5
MOST_NAMES = 50  # more class names on an axis cannot be read


def write_predictions(
    out: Path,
    clips: Manifest,
    indices: list[int],
    logits: Tensor,
    labels: Tensor,
    bad: list[tuple[int, str]],
    loss: str,
) -> None:
    """Write predictions.csv and predictions.parquet (or .npz).

    Args:
        clips: those that were classified, and those that could not be used.
        indices: manifest indices of the C clips of `logits` [C,K] and `labels` 0/1 [C,K].
        bad: manifest index and reason of the others.
        loss: "softmax", whose probabilities of a clip add up to 1, or "sigmoid".
    """
    by_index = {clip.index: clip for clip in clips}
    probabilities = logits.softmax(1) if loss == "softmax" else logits.sigmoid()
    best = probabilities.topk(min(BEST, probabilities.shape[1]), dim=1)
    shares = rightness(logits, labels).tolist()
    rows: dict[int, list[Any]] = {index: [""] * (2 + 2 * BEST) + [reason, ""] for index, reason in bad}
    for index, right, values, places in zip(indices, shares, best.values.tolist(), best.indices.tolist(), strict=True):
        found = [(clips.labels[place], value) for value, place in zip(values, places, strict=True)]
        cells = [cell for pair in found for cell in pair] + [""] * 2 * (BEST - len(found))
        said = " | ".join(f"{name} {value:.4g}" for name, value in found)
        rows[index] = [found[0][0], right if by_index[index].labels else "", *cells, "", said]
    columns = ["path", "start", "end", "label", "predicted", "right"]
    columns += [name for number in range(1, BEST + 1) for name in (f"class_{number}", f"probability_{number}")]
    columns += ["row", "split", "reason", "best"]
    lines = []
    for index in sorted(rows):
        about, cells = _about(by_index[index]), rows[index]
        first = [about[name] for name in columns[:4]]
        lines.append([*first, *cells[:-2], about["row"], about["split"], *cells[-2:]])
    _write_csv(out / "predictions.csv", columns, lines)
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        arrays = {"row": np.array(indices, np.int64), "logits": logits.numpy(), "labels": np.array(clips.labels, str)}
        write_npz(out / "predictions.npz", arrays.items())
        return
    fields = [("path", pa.string()), ("row", pa.int64()), ("start", pa.float64()), ("end", pa.float64())]
    fields += [("split", pa.string()), ("label", pa.string()), ("logits", pa.list_(pa.float32(), logits.shape[1]))]
    schema = pa.schema(fields).with_metadata({"labels": json.dumps(clips.labels), "loss": loss})
    table = [{**_about(by_index[i]), "logits": row} for i, row in zip(indices, logits.numpy(), strict=True)]
    sink = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(table, schema=schema), sink)
    write_atomically(out / "predictions.parquet", sink.getvalue())


def rightness(logits: Tensor, labels: Tensor) -> Tensor:
    """Return [C]: 1 where the best class of logits [C,K] is one of labels 0/1 [C,K], else 0; a share where some tie."""
    best = (logits == logits.amax(1, keepdim=True)).double()
    return (best * labels).sum(1) / best.sum(1).clamp(min=1)


def write_per_class(path: Path, names: tuple[str, ...], logits: Tensor, labels: Tensor, loss: str) -> None:
    """Write a row for each class, those that most need looking at first. logits [C,K], labels 0/1 [C,K]."""
    rows: list[list[Any]] = []
    if loss == "softmax":
        confusion = confusion_matrix(logits, labels)
        predicted, clips = confusion.sum(0).tolist(), confusion.sum(1).tolist()
        for c, name in enumerate(names):
            right = confusion[c, c].item()
            wrong = confusion[c].clone()
            wrong[c] = 0
            other = names[int(wrong.argmax())] if wrong.any() else ""
            rows.append([name, clips[c], right, _share(right, clips[c]), _share(right, predicted[c]), other])
        rows.sort(key=lambda row: math.inf if row[3] is None else row[3])
        _write_csv(path, ("class", "clips", "right", "accuracy", "precision", "most_confused_with"), rows)
        return
    for c, name in enumerate(names):
        clips_with = int(labels[:, c].sum())
        if 0 < clips_with < len(labels):
            area = roc_area(logits[:, c], labels[:, c])
            d_prime = math.sqrt(2) * torch.special.ndtri(torch.tensor(area, dtype=torch.float64)).item()
            rows.append([name, clips_with, average_precision(logits[:, c], labels[:, c]), area, d_prime])
        else:
            rows.append([name, clips_with, None, None, None])
    rows.sort(key=lambda row: math.inf if row[2] is None else row[2])
    _write_csv(path, ("class", "clips", "AP", "AUC", "d-prime"), rows)


def confusion_matrix(logits: Tensor, labels: Tensor) -> Tensor:
    """Return float64 [K,K]: clips of class (row) that were taken for class (column); equal logits share their clip."""
    best = F.one_hot(logits.argmax(1), logits.shape[1]).bool() | (logits == logits.amax(1, keepdim=True))
    shares = best.double() / best.sum(1, keepdim=True)
    return torch.zeros(labels.shape[1], labels.shape[1], dtype=torch.float64).index_add_(0, labels.argmax(1), shares)


def draw_confusion(path: Path, names: tuple[str, ...], logits: Tensor, labels: Tensor) -> None:
    """Draw the confusion matrix, each row as shares of its class; without matplotlib say so and go on."""
    try:
        plt = pyplot()
    except ImportError:
        log.info("no %s: matplotlib is missing, pip install -e '.[bench]' brings it", path.name)
        return
    matrix = confusion_matrix(logits, labels)
    shares = (matrix / matrix.sum(1, keepdim=True).clamp(min=1)).numpy()
    side = min(max(4.5, 0.32 * len(names) + 2), 16)
    figure, axes = plt.subplots(figsize=(side + 1, side), layout="constrained")
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="viridis")
    figure.colorbar(image, label="share of the class's clips", shrink=0.8)
    axes.set(xlabel="predicted class", ylabel="class", title=f"Confusion of {len(labels)} clips")
    if len(names) <= MOST_NAMES:
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
        axes.set_yticks(range(len(names)), names, fontsize=8)
    write_figure(figure, path)


def draw_training(records: list[dict[str, Any]], path: Path) -> None:
    """Draw loss and gradient norm over steps as a PNG. Raises ImportError without matplotlib."""
    plt = pyplot()
    records = [r for r in records if r["updated"]]
    steps = [r["step"] for r in records]
    figure, panels = plt.subplots(2, 1, figsize=(7, 5), sharex=True, layout="constrained")
    unlabelled = [r for r in records if r.get("pretraining")]
    panels[0].plot(
        steps[len(unlabelled) :], [r["loss"] for r in records[len(unlabelled) :]], color="black", linewidth=1
    )
    if unlabelled:
        panels[0].plot(steps[: len(unlabelled)], [r["loss"] for r in unlabelled], color="gray", label="without labels")
        panels[0].legend()
    panels[0].set(ylabel="loss (nats)", title="Fine-tuning")
    panels[1].plot(steps, [r["gradient_norm"] for r in records], color="#0072b2", linewidth=1, label="backbone")
    panels[1].plot(steps, [r["head_gradient_norm"] for r in records], color="#d55e00", linewidth=1, label="class head")
    panels[1].set(xlabel="step", ylabel="gradient norm")
    panels[1].legend()
    for axes in panels:
        axes.grid(alpha=0.3)
    write_figure(figure, path)


def _about(clip: Clip) -> dict[str, Any]:
    return {
        "path": str(clip.path),
        "row": clip.index,
        "start": clip.start,
        "end": clip.end,
        "split": clip.split,
        "label": clip.label,
    }


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _write_csv(path: Path, columns: Sequence[str], rows: list[list[Any]]) -> None:
    write_csv(path, columns, ([f"{cell:.6g}" if isinstance(cell, float) else cell for cell in row] for row in rows))
