"""Fine-tuning starts from a pre-trained model: its weights into a `Classifier`, and a report of what differs.

As the release does it: the backbone of the classifier's modality is copied by name, position tables of another length
go through the spline, the class head starts fresh. Unlike the release, nothing that stays behind goes unsaid.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..errors import RunError
from ..model.positions import resample_table
from ..model.vatt import Classifier


@dataclass
class Transfer:
    """What `load_backbone` did, by tensor name. `loaded` + `resampled` + `mismatched` + `fresh` is the classifier."""

    loaded: list[str] = field(default_factory=list)
    resampled: list[tuple[str, int, int]] = field(default_factory=list)  # rows of the table before and after
    mismatched: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)  # theirs, ours
    fresh: list[str] = field(default_factory=list)  # the class head, and what the source does not have
    unused: list[str] = field(default_factory=list)  # of the source: other modalities, its head

    def __str__(self) -> str:
        lines = [f"{len(self.loaded)} tensors loaded"]
        lines += [f"resampled {name}: {old} -> {new} rows" for name, old, new in self.resampled]
        lines += [
            f"NOT loaded {name}: shape {list(theirs)}, here {list(ours)}" for name, theirs, ours in self.mismatched
        ]
        lines += [f"starts fresh: {name}" for name in self.fresh]
        groups: dict[str, int] = {}
        for name in self.unused:
            group = ".".join(name.split(".")[: 3 if name.startswith("backbone.") else 1])
            groups[group] = groups.get(group, 0) + 1
        lines += [f"not used: {group} ({count} tensors)" for group, count in sorted(groups.items())]
        return "\n".join(lines)


@torch.no_grad()
def load_backbone(classifier: Classifier, weights: Mapping[str, Tensor], source: str | Path) -> Transfer:
    """Copy the backbone of a pre-trained (or fine-tuned) model into `classifier`, in place; its head starts fresh.

    Args:
        weights: by the names of the model they are of.
        source: what messages call it.

    Returns:
        What became of every tensor; print it.

    Raises:
        RunError: the encoder finds no weights at all, e.g. those of a modality-agnostic model for a specific one.
    """
    report = Transfer()
    for name, ours in classifier.state_dict().items():
        value = weights.get(name)
        if value is None or name.startswith("head."):
            report.fresh.append(name)
        elif value.shape == ours.shape:
            ours.copy_(value)
            report.loaded.append(name)
        elif ".position.tables." in name and value.shape[1:] == ours.shape[1:]:
            ours.copy_(resample_table(value.to(ours.device), len(ours)))
            report.resampled.append((name, len(value), len(ours)))
        else:
            report.mismatched.append((name, tuple(value.shape), tuple(ours.shape)))
    report.unused = [name for name in weights if name in report.fresh or name not in classifier.state_dict()]
    if not any(name.startswith("backbone.encoder.") for name in report.loaded):
        names = sorted({".".join(name.split(".")[:3]) for name in weights if name.startswith("backbone.encoder.")})
        encoder = next(iter(classifier.backbone.encoder))
        raise RunError(
            f"{source}: no weights for backbone.encoder.{encoder} (it has: {', '.join(names) or 'no encoder'}); "
            "check model.kind, the modality and the sizes of the classifier"
        )
    return report
