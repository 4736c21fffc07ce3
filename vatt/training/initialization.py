"""A run starts from a pre-trained model: its weights into a `Classifier` or a `VATT`, and a report of what differs.

As the release does it: the backbone of the classifier's modality is copied by name, position tables of another length
go through the spline, the class head starts fresh. Unlike the release, nothing that stays behind goes unsaid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from ..config.model import ModelConfig
from ..errors import ConfigError, RunError
from ..model.positions import resample_table
from ..model.vatt import VATT, Classifier


@dataclass
class Transfer:
    """What was done, by tensor name. `loaded`, `resampled`, `mismatched`, `fresh`: the model without its words."""

    loaded: list[str] = field(default_factory=list)
    resampled: list[tuple[str, int, int]] = field(default_factory=list)  # rows of the table before and after
    mismatched: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)  # theirs, ours
    fresh: list[str] = field(default_factory=list)  # what the source does not have, and a class head
    unused: list[str] = field(default_factory=list)  # of the source: other modalities, its head
    known_words: int = 0  # rows of the word table that were taken over
    words: list[str] = field(default_factory=list)  # lines on them

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
        return "\n".join([*lines, *self.words])


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
    report = _transfer(classifier, {name: x for name, x in weights.items() if not name.startswith("head.")})
    report.unused += [name for name in weights if name.startswith("head.")]
    if not any(name.startswith("backbone.encoder.") for name in report.loaded):
        names = sorted({".".join(name.split(".")[:3]) for name in weights if name.startswith("backbone.encoder.")})
        encoder = next(iter(classifier.backbone.encoder))
        raise RunError(
            f"{source}: no weights for backbone.encoder.{encoder} (it has: {', '.join(names) or 'no encoder'}); "
            "check model.kind, the modality and the sizes of the classifier"
        )
    return report


@torch.no_grad()
def _transfer(model: nn.Module, weights: Mapping[str, Tensor]) -> Transfer:
    """Copy what has the same name and shape, and position tables of other lengths through the spline."""
    report = Transfer()
    state = model.state_dict()
    for name, ours in state.items():
        value = weights.get(name)
        if value is None:
            report.fresh.append(name)
        elif value.shape == ours.shape:
            ours.copy_(value)
            report.loaded.append(name)
        elif resamples(name, tuple(value.shape), tuple(ours.shape)):
            ours.copy_(resample_table(value.to(ours.device), len(ours)))
            report.resampled.append((name, len(value), len(ours)))
        else:
            report.mismatched.append((name, tuple(value.shape), tuple(ours.shape)))
    report.unused = [name for name in weights if name not in state]
    return report


def resamples(name: str, theirs: tuple[int, ...], ours: tuple[int, ...]) -> bool:
    """Tell whether a tensor is a position table, which may have another length."""
    return ".position.tables." in name and theirs[1:] == ours[1:]


WORD_TABLE = "backbone.tokens.text.embedding.weight"


def require_start(init: str, theirs: Mapping[str, tuple[int, ...]], model: ModelConfig) -> None:
    """Check that a pre-training of these sizes can begin with weights of the shapes `theirs`, by name.

    Raises:
        ConfigError: a tensor that both have is of another size, or they have no encoder in common.
    """
    with torch.device("meta"):
        ours = {name: tuple(x.shape) for name, x in VATT(model).state_dict().items()}
    common = [name for name in ours if name in theirs]
    if not any(name.startswith("backbone.encoder.") for name in common):
        raise ConfigError(
            f"--init {init}: no encoder of it is one of the new run's, whose model.kind is {model.kind!r}"
        )
    for name in common:
        old, new = theirs[name], ours[name]
        words = name == WORD_TABLE and old[1:] == new[1:]
        if old != new and not words and not resamples(name, old, new):
            raise ConfigError(
                f"--init {init}: {name} has shape {list(old)} and here {list(new)}; without --preset and settings of "
                "the model the sizes are those of --init"
            )


def load_pretrained(
    model: VATT, weights: Mapping[str, Tensor], known: Sequence[str] | None, words: Sequence[str]
) -> Transfer:
    """Copies a pre-trained model, or what there is of one, into `model`, in place.

    Rows of the word table go by word.

    Args:
        known: the words of the source in the order of their ids, None where nobody knows them.
        words: those of the new run.
    """
    table = weights.get(WORD_TABLE)
    report = _transfer(model, {name: x for name, x in weights.items() if name != WORD_TABLE})
    if table is None:
        report.words.append("words: none taken over, as the source has no table of them")
        return report
    report.fresh.remove(WORD_TABLE)
    if known is None:
        report.words.append(
            f"words: none taken over, as the source has no list of them; --set data.vocabulary=FILE with {len(table)} "
            "words is taken for it"
        )
        return report
    rows = {word: row for row, word in enumerate(known) if row < len(table)}
    pairs = [(row, rows[word]) for row, word in enumerate(words) if word in rows]
    if pairs:
        ours, theirs = torch.tensor(pairs).T
        model.get_parameter(WORD_TABLE).data[ours] = table[theirs]
    fresh = [word for word in words if word not in rows]
    report.known_words = len(pairs)
    report.words.append(f"words: {len(pairs)} of {len(words)} taken over, {len(fresh)} start fresh")
    report.words += [f"fresh word: {word}" for word in fresh]
    return report
