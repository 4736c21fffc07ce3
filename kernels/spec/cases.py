"""The cases of `spec`: small ones of every kind that has gone wrong before, and the shapes of VATT.

Sizes of VATT: 32 frames of 224 x 224 (1568 voxels of 4 x 16 x 16) or 320 x 320 (3200), 153,600 samples (1200 patches of
128), 17 tokens a text with AGG; width 768 and 12 heads (Base), 1024 and 16 heads (Medium and Large), 512 and 8 heads
(Small: text). DropToken keeps int(share * tokens).
"""

from __future__ import annotations

from typing import Any, NamedTuple

DROPS = (0.0, 0.25, 0.5, 0.75)
WIDTHS = {"Base": 768, "Medium": 1024}  # a layer of Large has the sizes of Medium
HEADS = {"Base": 12, "Medium": 16}


class Case(NamedTuple):
    """One problem: a name for people, and the sizes that the functions of its spec read."""

    name: str
    sizes: dict[str, Any]


def kept_tokens(tokens: int, drop: float) -> int:
    return int((1 - drop) * tokens + 1e-9)


def smaller(case: Case, clips: int = 4, pairs: int = 2048) -> Case:
    """The case with at most `clips` clips, or at most `pairs` of a contrastive loss: float64 must fit into memory."""
    s = dict(case.sizes)
    if "candidates" in s:
        s["batch"], s["total"] = min(s["batch"], pairs), min(s["total"], pairs)
        s["offset"] = min(s["offset"], max(0, s["total"] - s["batch"]))
    elif s["batch"]:
        s["batch"] = min(s["batch"], clips)
    if s.get("lengths"):
        s["lengths"] = s["lengths"][:: max(1, len(s["lengths"]) // (2 * clips))]
    return Case(case.name, s)
