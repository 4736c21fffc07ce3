# mypy: disallow-incomplete-defs=False
"""DropToken in Triton: Philox words, gathering of kept rows, and its gradient without atomics.

    keys[r, i] = philox(counter (i, r, offset), key seed)[0] * 2**31 + i, whose `kept` smallest are the draw
    y[b, i]    = x[b, keep[b, i]]
    dx[b, n]   = sum of dy[b, i] over all i with keep[b, i] = n

The gradient is a sum over segments: a stable sort of the keep list says which rows of dy belong to a token, one program
adds these in order and writes the token's row once. So equal indices add up, tokens that were dropped get their zeros
from the same launch, and two runs agree to the last bit. The projection's gradient of its position table is the same
sum with other row numbers (`segment_sum`).

Legend: B batch, N tokens, K kept tokens, D width. FLOPs: none that count.
Bytes: 2 B K D values forward, B (K + N) D backward, 8 B N for the keys of a draw.
Limits: values of at most 8 bytes; gradients accumulate in float32 (float64 for float64).
Source: as `tokens`. All launch choices here were chosen offline: no GPU measured them.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..aot_case import AotCase
from ..registration import differentiable, operator, seed_tensor, signed64

KEYS = 1024  # keys a program: 8 each for 128 threads
GATHERED_ROWS = 8  # rows a program: with 256 columns 16 bytes a thread and row in 16-bit dtypes, 4 loads in flight
COLUMNS = 256
WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # a gather moves bits, whatever they mean


@triton.jit(do_not_specialize=["offset_low", "offset_high"])
def draw_kernel(OUT, SEED, tokens, offset_low, offset_high, BLOCK: tl.constexpr):
    """One row of [rows, tokens] int64: a 32-bit Philox word above 31 bits of index."""
    seed = tl.load(SEED)
    blocks = tl.cdiv(tokens, BLOCK)
    row = tl.program_id(0) // blocks
    index = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    zero = tl.zeros([BLOCK], tl.int32)
    word, _, _, _ = tl.philox_impl(
        index.to(tl.uint32),
        (zero + row).to(tl.uint32),
        (zero + offset_low).to(tl.uint32),
        (zero + offset_high).to(tl.uint32),
        (zero + seed.to(tl.int32)).to(tl.uint32),
        (zero + (seed >> 32).to(tl.int32)).to(tl.uint32),
    )
    key = (word.to(tl.int64) << 31) | index.to(tl.int64)
    tl.store(OUT + row.to(tl.int64) * tokens + index, key, mask=index < tokens)


@triton.jit(do_not_specialize=["tokens"])
def gather_kernel(
    X,
    KEEP,
    Y,
    rows,
    kept,
    width,
    keep_stride,
    stride_b,
    stride_n,
    stride_d,
    tokens,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """ROWS x BLOCK values of y; `rows` is B * K, `keep_stride` 0 where all samples share a draw.

    Under TRITON_DEBUG=1 an index that no token has stops the kernel.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    valid = row < rows
    sample = row // kept
    token = tl.load(KEEP + sample.to(tl.int64) * keep_stride + row % kept, mask=valid, other=0)
    tl.device_assert((token >= 0) & (token < tokens), "keep holds an index that no token has", mask=valid)
    source = sample.to(tl.int64) * stride_b + token.to(tl.int64) * stride_n
    inside = valid[:, None] & (column < width)[None, :]
    value = tl.load(X + source[:, None] + (column.to(tl.int64) * stride_d)[None, :], mask=inside)
    tl.store(Y + row.to(tl.int64)[:, None] * width + column[None, :], value, mask=inside)


@triton.jit
def segment_sum_kernel(
    DY, ORDER, BOUNDS, OUT, segments, kept, width, repeats, ROWS: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr
):
    """One row of the result: rows (sample * kept + ORDER[j]) of dy for j in the segment, for `repeats` samples each."""
    target = tl.program_id(0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = (column < width)[None, :]
    segment = target % segments
    first_sample = (target // segments).to(tl.int64)
    begin = tl.load(BOUNDS + segment)
    count = (tl.load(BOUNDS + segment + 1) - begin) * repeats
    total = tl.zeros([ROWS, BLOCK], ACC)
    for start in range(0, count, ROWS):
        number = start + tl.arange(0, ROWS)
        valid = number < count
        token = tl.load(ORDER + begin + number // repeats, mask=valid, other=0)
        row = (first_sample + number % repeats) * kept + token
        total += tl.load(DY + row[:, None] * width + column[None, :], mask=valid[:, None] & inside, other=0.0).to(ACC)
    result = tl.sum(total, axis=0)
    tl.store(OUT + target.to(tl.int64) * width + column, result, mask=column < width)


def signed32(word: int) -> int:
    """The low 32 bits as a signed number, so that a launch argument has one type whatever its value."""
    return ((word & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000


def _draw(tokens: int, kept: int, seed: Tensor, offset: int, batch: int | None, device: torch.device) -> Tensor:
    """The keys in one launch, the selection on the device as in `portable`: keys differ, so there are no ties."""
    rows = 1 if batch is None else batch
    keys = torch.empty(rows, tokens, dtype=torch.int64, device=device)
    if keys.numel():
        grid = (rows * triton.cdiv(tokens, KEYS),)
        with torch.cuda.device_of(keys):
            draw_kernel[grid](keys, seed, tokens, signed32(offset), signed32(offset >> 32), BLOCK=KEYS, num_warps=4)
    chosen = keys.topk(kept, dim=1, largest=False, sorted=False).values & (2**31 - 1)
    keep = chosen.sort(dim=1).values.int()
    return keep[0] if batch is None else keep


def _fake_draw(tokens: int, kept: int, seed: Tensor, offset: int, batch: int | None, device: torch.device) -> Tensor:
    shape = (kept,) if batch is None else (batch, kept)
    return torch.empty(shape, dtype=torch.int32, device=device)


_sample_keep = operator(
    "sample_keep(SymInt tokens, SymInt kept, Tensor seed, SymInt offset, SymInt? batch, Device device) -> Tensor",
    _draw,
    _fake_draw,
)


def sample_keep(
    tokens: int, kept: int, *, seed: int | Tensor, offset: int, batch: int | None, device: torch.device
) -> Tensor:
    keep: Tensor = _sample_keep(tokens, kept, seed_tensor(seed, device), signed64(offset), batch, device)
    return keep


def gather_forward(x: Tensor, keep: Tensor) -> Tensor:
    """x [B, N, D] of any strides, keep [K] or [B, K] -> [B, K, D]."""
    batch, _, width = x.shape
    kept = keep.shape[-1]
    y = torch.empty(batch, kept, width, dtype=x.dtype, device=x.device)
    if y.numel():
        word = WORDS[x.element_size()]
        keep = keep.contiguous()
        grid = (triton.cdiv(batch * kept, GATHERED_ROWS), triton.cdiv(width, COLUMNS))
        with torch.cuda.device_of(y):
            gather_kernel[grid](
                x.view(word),
                keep,
                y.view(word),
                batch * kept,
                kept,
                width,
                kept if keep.ndim == 2 else 0,
                *x.stride(),
                x.shape[1],
                ROWS=GATHERED_ROWS,
                BLOCK=COLUMNS,
                num_warps=4,
            )
    return y


def segment_sum(dy: Tensor, keep: Tensor, tokens: int, *, over_batch: bool) -> Tensor:
    """Rows of dy [B, K, D] added up by token: [B, N, D] in its dtype, or `over_batch` too: [N, D] in float32.

    `keep` [K] or [B, K] may hold an index more than once. Float64 stays float64. Nothing waits for the device.
    """
    batch, kept, width = dy.shape
    wide = torch.float64 if dy.dtype == torch.float64 else torch.float32
    shape, dtype = ((tokens, width), wide) if over_batch else ((batch, tokens, width), dy.dtype)
    out = torch.empty(shape, dtype=dtype, device=dy.device)
    if not out.numel():
        return out
    shared = keep.ndim == 1
    bins = keep.long()
    segments = tokens
    if not shared and not over_batch:  # each sample has segments of its own
        segments = batch * tokens
        bins = bins + torch.arange(batch, device=keep.device)[:, None] * tokens
    ordered, order = bins.flatten().sort(stable=True)
    bounds = torch.searchsorted(ordered, torch.arange(segments + 1, device=keep.device))
    repeats = batch if shared and over_batch else 1
    grid = (out.numel() // width, triton.cdiv(width, COLUMNS))
    with torch.cuda.device_of(out):
        segment_sum_kernel[grid](
            dy.contiguous(),
            order,
            bounds,
            out,
            segments,
            kept,
            width,
            repeats,
            ROWS=summed_rows(over_batch),
            BLOCK=COLUMNS,
            ACC=tl.float64 if wide == torch.float64 else tl.float32,
            num_warps=4,
        )
    return out


def summed_rows(over_batch: bool) -> int:
    """Rows added at a time: a token of one sample has one row or none, a token of the batch has many."""
    return 8 if over_batch else 1


def _fake_gather(x: Tensor, keep: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], keep.shape[-1], x.shape[2])


def _scatter(grad: Tensor, keep: Tensor, tokens: int) -> Tensor:
    return segment_sum(grad, keep, tokens, over_batch=False)


def _fake_scatter(grad: Tensor, keep: Tensor, tokens: int) -> Tensor:
    return grad.new_empty(grad.shape[0], tokens, grad.shape[2])


_gather_tokens = operator("gather_tokens(Tensor x, Tensor keep) -> Tensor", gather_forward, _fake_gather)
_scatter_tokens = operator(
    "gather_tokens_backward(Tensor grad, Tensor keep, SymInt tokens) -> Tensor", _scatter, _fake_scatter
)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])
    ctx.tokens = inputs[0].shape[1]


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    return _scatter_tokens(grad, ctx.saved_tensors[0], ctx.tokens), None


differentiable(_gather_tokens, _save, _gradients, _scatter_tokens)


def gather_tokens(x: Tensor, keep: Tensor) -> Tensor:
    if x.element_size() not in WORDS or x.is_complex():
        raise TypeError(f'gather_tokens: impl="triton" takes real values, got {x.dtype}; use impl="portable"')
    y: Tensor = _gather_tokens(x, keep)
    return y


def aot_cases() -> list[AotCase]:
    """The kernels at the shapes of a VATT video tower; only the dtype of the gradient changes their code."""
    integers = ("rows", "kept", "width", "keep_stride", "stride_b", "stride_n")
    cases = [
        AotCase(
            "tokens draw",
            draw_kernel,
            {
                "OUT": "*i64",
                "tokens": "i32",
                "offset_low": "i32",
                "offset_high": "i32",
                "SEED": "*i64",
                "BLOCK": "constexpr",
            },
            {"BLOCK": KEYS},
            ("OUT", "tokens"),
            4,
            3,
            False,
            "1568 tokens, 32 rows",
        ),
        AotCase(
            "tokens gather 16-bit",
            gather_kernel,
            {
                "X": "*i16",
                "KEEP": "*i32",
                "Y": "*i16",
                **dict.fromkeys(integers, "i32"),
                "stride_d": "constexpr",
                "tokens": "i32",
                "ROWS": "constexpr",
                "BLOCK": "constexpr",
            },
            {"stride_d": 1, "ROWS": GATHERED_ROWS, "BLOCK": COLUMNS},
            ("X", "KEEP", "Y", *integers),
            4,
            3,
            False,
            "[32, 1568, 1024] -> [32, 784, 1024]",
        ),
    ]
    for dtype in ("bf16", "fp16", "fp32"):
        for over_batch in (False, True):
            sizes: dict[str, object] = {
                "ROWS": summed_rows(over_batch),
                "BLOCK": COLUMNS,
                "ACC": tl.float32,
            }
            signature = {
                "DY": f"*{dtype}",
                "ORDER": "*i64",
                "BOUNDS": "*i64",
                "OUT": "*fp32" if over_batch else f"*{dtype}",
                "segments": "i32",
                "kept": "i32",
                "width": "i32",
                "repeats": "i32",
            }
            if not over_batch:
                signature["repeats"] = "constexpr"
                sizes["repeats"] = 1
            cases.append(
                AotCase(
                    f"tokens segment sum {dtype}{' over the batch' if over_batch else ''}",
                    segment_sum_kernel,
                    signature | dict.fromkeys(("ROWS", "BLOCK", "ACC"), "constexpr"),
                    sizes,
                    ("DY", "ORDER", "BOUNDS", "OUT", "segments", "kept", "width"),
                    4,
                    3,
                    False,
                    "[32, 784, 768] -> [32, 1568, 768] or [1568, 768]",
                )
            )
    return cases
