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


# projection

# `integers`: bytes or 16-bit samples; else floating point, which with `leaf` has a gradient that no training asks for.
CLIP = {"integers": True, "leaf": True, "kept": None, "per_sample": False, "extras": True, "layout": "contiguous",
        "weights": "contiguous"}  # fmt: skip


def voxels(name: str, **sizes: Any) -> Case:
    """A grid of 2 x 3 x 2 voxels; the borders of the clip fill none."""
    small = {"batch": 2, "frames": 5, "rows": 13, "columns": 9, "patch": (2, 4, 4), "width": 7}
    return Case(name, small | CLIP | sizes)


def waveform(name: str, **sizes: Any) -> Case:
    return Case(name, {"batch": 2, "samples": 200, "patch": 16, "width": 9} | CLIP | sizes)


VOXELS = (
    voxels("all voxels"),
    voxels("some kept", kept=5),
    voxels("some kept of each clip", kept=5, per_sample=True),
    voxels("K = 0", kept=0),
    voxels("K = 0 of each clip", kept=0, per_sample=True),
    voxels("K = N", kept=12, per_sample=True),
    voxels("one clip, one voxel", batch=1, kept=1, width=1),
    voxels("no bias, no position", kept=5, extras=False),
    voxels("strided clip and weights", kept=5, layout="strided", weights="strided"),
    voxels("expanded clip", kept=5, layout="expanded"),
    voxels("strided gradient", kept=5, gradient="strided"),
    voxels("expanded gradient", kept=5, gradient="expanded"),
    voxels("floating-point clip", kept=5, per_sample=True, integers=False),
    voxels("strided floating-point clip", integers=False, layout="strided", gradient="strided"),
    voxels("voxels of 4 x 16 x 16, odd width", frames=8, rows=32, columns=48, patch=(4, 16, 16), width=33, kept=7),
    voxels("130 rows of width 63", batch=10, frames=4, rows=16, columns=20, width=63, kept=13, per_sample=True),
)
WAVEFORM = (
    waveform("all of 12 patches, 16-bit", samples=200),
    waveform("floating point, kept of each", integers=False, kept=5, per_sample=True),
    waveform("floating point without its gradient", integers=False, leaf=False, kept=5),
    waveform("N = 63", samples=63 * 16 + 3, kept=31, width=63),
    waveform("N = 1", batch=1, samples=17),
    waveform("N = 17", samples=17 * 16, kept=17, width=130),
    waveform("N = 130", samples=130 * 16, kept=65, width=17),
    waveform("K = 0", kept=0),
    waveform("strided samples", kept=5, layout="strided", weights="strided", gradient="strided"),
    waveform("expanded samples and gradient", integers=False, kept=5, layout="expanded", gradient="expanded"),
    waveform("patches of 128", samples=128 * 20, patch=128, kept=9, width=40),
)


def _vatt_voxels(size: int, batch: int, tokens: int) -> list[Case]:
    return [
        voxels(f"{model} {size}, {drop:.0%} dropped", batch=batch, frames=32, rows=size, columns=size,
               patch=(4, 16, 16), width=width, kept=kept_tokens(tokens, drop) if drop else None)
        for model, width in WIDTHS.items()
        for drop in (0.5, 0.75, 0.0, 0.25)
    ]  # fmt: skip


VOXELS_VATT = (*_vatt_voxels(224, 32, 1568), *_vatt_voxels(320, 8, 3200))
WAVEFORM_VATT = tuple(
    waveform(f"{model}, {drop:.0%} dropped", batch=32, samples=153_600, patch=128, width=width, integers=False,
             leaf=False, kept=kept_tokens(1200, drop) if drop else None)
    for model, width in WIDTHS.items()
    for drop in (0.5, 0.75, 0.0, 0.25)
)  # fmt: skip

# tokens


def sample(tokens: int, kept: int, batch: int | None = None, seed: int = 0, offset: int = 0) -> Case:
    rows = "one draw" if batch is None else f"{batch} draws"
    name = f"{kept} of {tokens}, {rows}, seed {seed}, offset {offset}"
    return Case(name, {"tokens": tokens, "kept": kept, "batch": batch, "seed": seed, "offset": offset})


def gather(name: str, **sizes: Any) -> Case:
    small = {"batch": 3, "tokens": 17, "kept": 5, "width": 13, "per_sample": False, "repeated": False}
    return Case(name, small | {"layout": "contiguous"} | sizes)


SAMPLE = (
    sample(63, 31),
    sample(130, 65, batch=3, seed=-5, offset=3),
    sample(17, 0, batch=2),
    sample(17, 17, batch=2),
    sample(1, 1, seed=2**40, offset=2**33),
    sample(1568, 784, batch=2, seed=7),
)
GATHER = (
    gather("shared draw"),
    gather("draw for each", per_sample=True),
    gather("one sample, N = 63", batch=1, tokens=63, kept=31, width=130),
    gather("N = 1", tokens=1, kept=1),
    gather("K = 0", kept=0),
    gather("K = N", kept=17, per_sample=True),
    gather("repeated indices", kept=17, per_sample=True, repeated=True),
    gather("strided", layout="strided", gradient="strided"),
    gather("expanded", layout="expanded", gradient="expanded", per_sample=True),
)
SAMPLE_VATT = tuple(
    sample(tokens, kept_tokens(tokens, drop), batch) for tokens in (1568, 3200, 1200)
    for drop in (0.5, 0.75) for batch in (None, 32)
)  # fmt: skip
GATHER_VATT = tuple(
    gather(f"agnostic Medium, {tokens} tokens, {drop:.0%} dropped", batch=32, tokens=tokens, width=1024,
           kept=kept_tokens(tokens, drop))
    for tokens in (1568, 1200)
    for drop in (0.5, 0.75)
)  # fmt: skip

# attention


def attend(name: str, **sizes: Any) -> Case:
    """`mask`: None, "some" keys hidden, "one blind" sequence that sees no key, "all blind". `lengths`: packed."""
    small = {"batch": 2, "tokens": 17, "heads": 2, "width": 16, "mask": None, "buckets": 0, "dropout": 0.0,
             "lengths": None, "scale": None, "layout": "model"}  # fmt: skip
    return Case(name, small | sizes)


PACKED = [5, 17, 0, 1, 40]
ATTENTION = (
    attend("plain"),
    attend("plain, N = 63", tokens=63, heads=1),
    attend("plain, N = 0", tokens=0),
    attend("plain, N = 1", batch=1, tokens=1, heads=1, width=5),
    attend("T5 bias and dropout, N = 1", tokens=1, buckets=32, scale=1.0, dropout=0.3),
    attend("packed, all N = 1", lengths=[1, 0, 1]),
    attend("plain, N = 130", batch=1, tokens=130, heads=1, width=64),
    attend("plain, N = 65, D = 128", batch=1, tokens=65, heads=1, width=128),
    attend("plain, D = 24", tokens=33, width=24),
    attend("strided, with gradient", tokens=40, layout="strided", gradient="strided"),
    attend("expanded, with gradient", tokens=40, layout="expanded", gradient="expanded"),
    attend("key mask", mask="some"),
    attend("key mask, a blind sequence", tokens=63, heads=1, mask="one blind"),
    attend("key mask, all blind", mask="all blind"),
    attend("T5 bias and key mask", mask="some", buckets=32, scale=1.0),
    attend("T5 bias, far keys", batch=1, tokens=130, heads=1, buckets=32, scale=1.0),
    attend("dropout", dropout=0.3),
    attend("dropout, N = 65, D = 64", batch=1, tokens=65, heads=1, width=64, dropout=0.1),
    attend("dropout and key mask", tokens=63, heads=1, mask="one blind", dropout=0.3),
    attend("packed", lengths=PACKED),
    attend("packed, key mask", lengths=PACKED, mask="one blind", heads=1),
    attend("packed, everything", lengths=PACKED, mask="one blind", buckets=32, dropout=0.3, heads=1),
)
ATTENTION_VATT = (
    *(
        attend(f"{model} {size}, {drop:.0%} dropped", batch=batch, heads=heads, width=64,
               tokens=kept_tokens(tokens, drop) + 1)
        for size, batch, tokens in ((224, 32, 1568), (320, 8, 3200))
        for model, heads in HEADS.items()
        for drop in (0.5, 0.75, 0.0, 0.25)
    ),
    attend("text, T5 bias and key mask", batch=160, tokens=17, heads=8, width=64, mask="some", buckets=32, scale=1.0),
    *(
        attend(f"Base audio, {drop:.0%} dropped", batch=32, heads=12, width=64, tokens=kept_tokens(1200, drop) + 1)
        for drop in (0.5, 0.0)
    ),
    *(
        attend(f"Medium 224, {drop:.0%} dropped, dropout 0.1", batch=32, heads=16, width=64, dropout=0.1,
               tokens=kept_tokens(1568, drop) + 1)
        for drop in (0.5, 0.0)
    ),
    attend("Medium 224, 50% dropped, key mask", batch=32, heads=16, width=64, tokens=785, mask="some"),
    attend("packed, three modalities of the agnostic Medium", heads=16, width=64,
           lengths=[785] * 16 + [601] * 16 + [17] * 80),
)  # fmt: skip

# contrastive loss


def nce(name: str, **sizes: Any) -> Case:
    """`total`: clips of all ranks, 0 where this one is alone. `mask`: None, "some" or "nothing" valid."""
    small = {"batch": 7, "candidates": 5, "width": 16, "total": 0, "offset": 0, "mask": None, "symmetric": False,
             "temperature": 0.07, "layout": "contiguous"}  # fmt: skip
    return Case(name, small | sizes)


LOSS = (
    nce("MIL-NCE"),
    nce("NCE", candidates=1),
    nce("one clip", batch=1),
    nce("63 clips", batch=63, candidates=2, width=40),
    nce("130 clips, width 63", batch=130, candidates=1, width=63),
    nce("17 clips, width 256", batch=17, width=256),
    nce("masked", mask="some"),
    nce("nothing valid", mask="nothing"),
    nce("symmetric", symmetric=True),
    nce("symmetric, masked", symmetric=True, mask="some", candidates=1),
    nce("gathered", total=20, offset=9),
    nce("gathered, masked", total=20, offset=13, mask="some"),
    nce("gathered, symmetric, masked", total=66, offset=0, batch=33, symmetric=True, mask="some"),
    nce("strided vectors, expanded gradient", layout="strided", gradient="expanded"),
    nce("expanded vectors, strided gradient", layout="expanded", gradient="strided"),
    nce("low temperature", temperature=0.02),
)
LOSS_VATT = (
    nce("MIL-NCE, 2048 clips", batch=2048, width=256),
    nce("NCE, 2048 clips", batch=2048, candidates=1, width=512),
    nce("MIL-NCE, 65536 clips", batch=65_536, width=256),
    nce("MIL-NCE, 8192 clips", batch=8192, width=256),
    nce("MIL-NCE, 256 clips of 2048 gathered", batch=256, total=2048, offset=256, width=256),
    nce("NCE, 256 clips of 2048 gathered", batch=256, total=2048, offset=256, candidates=1, width=512),
    nce("MIL-NCE, 16384 clips", batch=16_384, width=256),
    nce("NCE, 16384 clips", batch=16_384, candidates=1, width=512),
)
