# mypy: disallow-incomplete-defs=False
"""What the Triton kernels of attention share: one call as they want it, where a tile lies, and what makes a score.

Legend: N tokens, H heads, D width of a head, total = all tokens of packed sequences (B N of dense ones).
Dense [B, N, H, D] and packed [total, H, D] are one code path: a program finds the batch row at which its sequence
begins, and how long it is. The relative bias is expanded once a launch to one number for each head and key - query:
beyond `max_distance` it is constant. Addresses are 64-bit up to the first element of a tile, 32-bit inside it.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import reference
from ..aot_case import AotCase
from ..tuning import tuned

LOG2E = math.log2(math.e)
WIDEST = 128  # of a head
FAR = 2**23  # elements between rows above which offsets inside a tile of 128 rows would leave 32 bits
SIZES = ["heads", "longest", "total", "reach", "scale", "threshold", "rescale"]


class AttentionLaunch(NamedTuple):
    """Queries and keys of a tile, warps, pipeline stages; `rate` on full tiles relative to the best alternative."""

    rows: int
    keys: int
    warps: int
    stages: int
    rate: float = 1.0


class Problem(NamedTuple):
    """One call, as the kernels want it."""

    sequences: int
    longest: int
    total: int
    heads: int
    width: int
    padded: int
    exact: bool  # float32
    edges: Tensor | None
    key_mask: Tensor | None
    diagonals: Tensor | None
    reach: int
    scale: float
    dropout_p: float
    dropout_version: int

    def arguments(self) -> dict[str, Any]:
        """What all kernels take by these names."""
        return {
            "key_mask": self.key_mask,
            "diagonals": self.diagonals,
            "edges": self.edges,
            "heads": self.heads,
            "longest": self.longest,
            "total": self.total,
            "reach": self.reach,
            "scale": self.scale * LOG2E,
            "threshold": reference.dropout_threshold(self.dropout_p, self.dropout_version),
            "rescale": reference.dropout_rescale(self.dropout_p, self.dropout_version),
            "WIDTH": self.width,
            "PADDED": self.padded,
            "DROPOUT": self.dropout_version if self.dropout_p else 0,
            "EXACT": self.exact,
        }

    def grid(self, tiles: int) -> tuple[int]:
        """One program for each tile of each head of each sequence, in one dimension: the others end at 65535."""
        return (self.sequences * self.heads * tiles,)


# Columns of the launch tables by the targets that read them: 80 (mma, smaller tiles), 90 (wgmma and after).
ARCHITECTURES = {80: (80,), 90: (90, 100, 942)}
# Tokens up to which a sequence is one tile, and the tile of small launches: of text, where a tile of 64 would be 7 %
# full; of a relative bias of more tokens, whose gather the pipeliner would give a tile of its own in shared memory; and
# of float32, whose exact products run on ordinary cores and spill in larger tiles.
ONE_TILE = 32


def column_of(padded: int) -> int:
    """Which width of the launch tables serves a padded width."""
    return 64 if padded <= 64 else 128


def measured_launch(kernel: str, launch: AttentionLaunch, padded: int, x: Tensor) -> AttentionLaunch:
    """What was measured for this GPU in place of `launch`; small ones, and those of float32, are not tuned."""
    if max(launch.rows, launch.keys) == ONE_TILE or x.dtype.itemsize != 2:
        return launch
    return tuned(f"attention {kernel} {column_of(padded)}", (launch,), x.device)[0]


def make_problem(
    q: Tensor,
    *,
    key_mask: Tensor | None,
    bias_table: Tensor | None,
    max_distance: int,
    cu_seqlens: Tensor | None,
    max_seqlen: int | None,
    scale: float,
    dropout_p: float,
    dropout_version: int,
) -> Problem:
    """Check limits and expand the bias.

    Raises:
        ValueError, TypeError: a width, a dtype or a missing `max_seqlen` that the kernels cannot serve.
    """
    heads, width = q.shape[-2:]
    if width > WIDEST:
        raise ValueError(f'attention: impl="triton" serves heads up to {WIDEST} wide, got {width}; use impl="portable"')
    if q.dtype not in (torch.bfloat16, torch.float16, torch.float32):
        raise TypeError(
            f'attention: impl="triton" takes bfloat16, float16, float32, got {q.dtype}; use impl="portable"'
        )
    total = q.shape[:-2].numel()
    if cu_seqlens is None:
        sequences, longest = q.shape[:2]
    elif max_seqlen is None:
        raise ValueError("attention: the kernels need max_seqlen for packed sequences")
    else:
        sequences, longest = len(cu_seqlens) - 1, max_seqlen
        cu_seqlens = cu_seqlens.to(q.device).contiguous()
    reach = min(max_distance, longest - 1)
    diagonals = None
    if bias_table is not None:
        distance = torch.arange(-reach, reach + 1, device=q.device)
        buckets = reference.relative_buckets(distance, bias_table.shape[0], max_distance)
        diagonals = (bias_table.float()[buckets] * LOG2E).T.contiguous()
    return Problem(
        sequences,
        longest,
        total,
        heads,
        width,
        max(16, triton.next_power_of_2(width)),
        q.dtype == torch.float32,
        cu_seqlens,
        None if key_mask is None else key_mask.contiguous().view(torch.uint8),
        diagonals,
        reach,
        scale,
        dropout_p,
        dropout_version,
    )


def readable(x: Tensor) -> Tensor:
    """Rows of neighbouring elements, near enough for 32-bit offsets inside a tile; a copy where they are not."""
    return x if x.stride(-1) == 1 and x.stride(-3) < FAR else x.contiguous()


def strides(x: Tensor) -> tuple[int, int, int]:
    """From sequence to sequence, token to token, head to head; packed sequences are addressed by their first token."""
    return (x.stride(0), x.stride(-3), x.stride(-2))


# device functions


@triton.jit
def half_mix(x):
    """`reference.mix` of uint32 but for its last step; products wrap, which TRITON_DEBUG=1 would take for a fault."""
    x ^= x >> 16
    x = tl.mul(x, 0x7FEB352D, sanitize_overflow=False)
    x ^= x >> 15
    return tl.mul(x, 0x846CA68B, sanitize_overflow=False)


@triton.jit
def mix(x):
    """`reference.mix` of uint32."""
    x = half_mix(x)
    return x ^ (x >> 16)


@triton.jit
def row_words(first, query, head, heads, seed):
    """`reference.dropout_keys` of queries, positions within the sequence that begins at batch row `first`."""
    whole = tl.load(seed)
    low, high = whole.to(tl.uint32), (whole >> 32).to(tl.uint32)
    row = tl.add(first.to(tl.uint32), query.to(tl.uint32), sanitize_overflow=False)
    row = tl.mul(row, heads.to(tl.uint32), sanitize_overflow=False)
    row = tl.add(row, head.to(tl.uint32), sanitize_overflow=False)
    return mix(mix(row ^ mix(low ^ 0x9E3779B9)) ^ mix(mix(low) ^ high)).to(tl.int32, bitcast=True)


@triton.jit
def kept(words, start, offset, threshold, DROPOUT: tl.constexpr):
    """`reference.dropout_keep` of keys `start + offset`, where `start` is a multiple of 16: words of rows and offsets,
    shaped to broadcast together. DROPOUT is the version.

    Two keys that share a word lie 8 apart: in a product's result one thread holds both, whether keys are its rows or
    its columns. What depends on `start` is kept apart so that the compiler sees that their words are one.
    """
    if DROPOUT == 1:
        word = mix(tl.add(words.to(tl.uint32, bitcast=True), (start + offset).to(tl.uint32), sanitize_overflow=False))
        return word.to(tl.int32, bitcast=True) >= threshold
    row = tl.add(words.to(tl.uint32, bitcast=True), tl.cast(start // 2, tl.uint32), sanitize_overflow=False)
    pair = ((offset >> 4) << 3) | (offset & 7)
    word = half_mix(tl.add(row, pair.to(tl.uint32), sanitize_overflow=False))
    upper = word >> 16  # the last step of `mix` changes the lower half alone
    half = tl.where((offset & 8) == 0, (word ^ upper) & 0xFFFF, upper)
    return half.to(tl.int32) >= threshold


@triton.jit
def locate(edges, heads, longest, tiles):
    """Of this program, one of `tiles` for each head of each sequence: tile, head, where the sequence begins (by the
    strides of inputs, and as batch row) and its length, which TRITON_DEBUG=1 holds against `longest`."""
    program = tl.program_id(0)
    tile = program % tiles
    head = (program // tiles % heads).to(tl.int64)
    sequence = (program // tiles // heads).to(tl.int64)
    if edges is None:
        origin = sequence
        first = sequence * longest
        length = longest
    else:
        first = tl.load(edges + sequence).to(tl.int64)
        origin = first
        length = (tl.load(edges + sequence + 1) - first).to(tl.int32)
        tl.device_assert((length >= 0) & (length <= longest), "a packed sequence is longer than max_seqlen")
    return tile, head, origin, first, length


@triton.jit
def tile_at(x, origin, start, head, by_sequence, by_row, by_head, ROWS: tl.constexpr, PADDED: tl.constexpr):
    """Pointers [ROWS, PADDED] to rows `start`... of one head of one sequence."""
    base = x + (origin * by_sequence + head * by_head + tl.cast(start, tl.int64) * by_row)
    return base + tl.arange(0, ROWS)[:, None] * by_row + tl.arange(0, PADDED)[None, :]


@triton.jit
def load_rows(pointers, rows, length, WIDTH: tl.constexpr, PADDED: tl.constexpr, CHECK: tl.constexpr):
    """A tile, zero outside the width of a head and, if CHECK, after the end of the sequence."""
    column = tl.arange(0, PADDED)
    if CHECK:
        tile = tl.load(pointers, mask=(rows[:, None] < length) & (column[None, :] < WIDTH), other=0.0)
    elif WIDTH < PADDED:
        tile = tl.load(pointers, mask=column[None, :] < WIDTH, other=0.0)
    else:
        tile = tl.load(pointers)
    return tile


@triton.jit
def load_at(
    x,
    origin,
    start,
    head,
    by_sequence,
    by_row,
    by_head,
    length,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
):
    """The tile of rows `start`..., zero after the end of the sequence."""
    pointers = tile_at(x, origin, start, head, by_sequence, by_row, by_head, ROWS, PADDED)
    return load_rows(pointers, start + tl.arange(0, ROWS), length, WIDTH, PADDED, True)


@triton.jit
def store_rows(x, tile, first, rows, length, head, by_row, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    """Store what lies inside the sequence, to [total, H, WIDTH] whose heads follow one another."""
    column = tl.arange(0, PADDED)
    pointers = x + ((first + rows) * by_row + head * WIDTH)[:, None] + column[None, :]
    inside = (rows[:, None] < length) & (column[None, :] < WIDTH)
    tl.store(pointers, tile.to(x.dtype.element_ty), mask=inside)


@triton.jit
def diagonal_bias(diagonals, head, reach, query, key):
    """The relative bias of (query, key), shaped to broadcast together, times log2(e)."""
    distance = tl.minimum(tl.maximum(key - query, -reach), reach)
    return tl.load(diagonals + head * (2 * reach + 1) + reach + distance)


# ahead of time

VARIANTS: dict[str, dict[str, bool]] = {  # which arguments are there
    "dense": {},
    "dense dropout": {"dropout": True},
    "packed": {"packed": True},
    "packed mask dropout": {"packed": True, "mask": True, "dropout": True},
    "biased": {"mask": True, "bias": True, "dropout": True},
}
TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class Setting(NamedTuple):
    """One point of what `aot_cases` covers."""

    type_name: str
    width: int
    architecture: int
    variant: str

    @property
    def has(self) -> dict[str, bool]:
        return {feature: VARIANTS[self.variant].get(feature, False) for feature in ("mask", "bias", "dropout")}


def settings() -> list[Setting]:
    """VATT's heads are 64 wide; of the widest heads the leanest and the fullest variant are covered."""
    return [
        Setting(type_name, width, column, variant)
        for type_name in TYPES
        for width in (64, WIDEST)
        for column in ARCHITECTURES
        for variant in VARIANTS
        if width == 64 or variant in ("dense", "packed mask dropout", "biased")
    ]


def aot_case(
    name: str, kernel: Any, tensors: str, launch: AttentionLaunch, blocks: dict[str, Any], setting: Setting, shape: str
) -> AotCase:
    """`tensors`: the kernel's pointers of the inputs' dtype, blanks between; `blocks`: its tiles, and what is None."""
    has, own = VARIANTS[setting.variant], f"*{setting.type_name}"
    optional = {
        "key_mask": ("mask", "*u8"),
        "diagonals": ("bias", "*fp32"),
        "edges": ("packed", "*i32"),
        "seed": ("dropout", "*i64"),
        "words": ("dropout", "*i32"),
    }
    constexprs: dict[str, object] = {
        "WIDTH": setting.width,
        "PADDED": setting.width,
        "DROPOUT": reference.DROPOUT if has.get("dropout") else 0,
        "EXACT": setting.type_name == "fp32",
        **blocks,
        **{name: None for name, (feature, _) in optional.items() if not has.get(feature)},
    }
    types = {name: type_ for name, (_, type_) in optional.items()} | {"scale": "fp32", "rescale": "fp32"}
    types |= dict.fromkeys(tensors.split(), own) | dict.fromkeys(("lse", "delta", "sums", "acc"), "*fp32")
    names: list[str] = kernel.arg_names
    signature = {arg: "constexpr" if arg in constexprs else types.get(arg, "i32") for arg in names}
    step = ("_sequence", "_row", "_head")
    return AotCase(
        name=f"attention {name} {setting.variant} {setting.type_name} D={setting.width}",
        kernel=kernel,
        signature=signature,
        constexprs={arg: value for arg, value in constexprs.items() if arg in names},
        divisible=tuple(arg for arg, type_ in signature.items() if type_.startswith("*") or arg.endswith(step)),
        warps=launch.warps,
        stages=launch.stages,
        tiles_of_64=min(size for size in blocks.values() if size) >= 64 and setting.type_name != "fp32",
        shape=shape,
        archs=ARCHITECTURES[setting.architecture],
    )
