# mypy: disallow-incomplete-defs=False
"""The kernels of `triton_launch`, whose docstring has their formulas, legend and limits.

Both products have the patches as second operand (y.T = W.T x.T, dW.T = dy.T x): the conversion of bytes then goes from
16-byte asynchronous copies through registers into shared memory, and no product has to wait for its fragments.
"""

import triton
import triton.language as tl


@triton.jit
def as_operand(x, TYPE: tl.constexpr):
    """x - 128 for bytes, else x, in TYPE. Bytes become mantissa bits of a float, which spares the slow conversion."""
    if x.dtype == tl.uint8:
        if tl.float16 == TYPE:
            return (x.to(tl.int16) | 0x6400).to(tl.float16, bitcast=True) - 1152.0  # 1024 + x - 1152
        return ((x.to(tl.int32) | 0x4B000000).to(tl.float32, bitcast=True) - 8388736.0).to(TYPE)  # 2**23 + x - ...
    return x.to(TYPE)


@triton.jit
def kept_token(row, KEEP, kept, keep_stride, tokens, HAS_KEEP: tl.constexpr):
    """Place in the grid, of `tokens`, of row (sample, place in the keep list); TRITON_DEBUG=1 holds it to its range."""
    token = row % kept
    if HAS_KEEP:
        token = tl.load(KEEP + (row // kept).to(tl.int64) * keep_stride + token).to(tl.int32)
        tl.device_assert((token >= 0) & (token < tokens), "keep holds an index that no token has")
    return token


@triton.jit
def patch_start(
    row,
    token,
    kept,
    grid_h,
    grid_w,
    stride_b,
    stride_t,
    stride_h,
    T: tl.constexpr,
    H: tl.constexpr,
    RUN: tl.constexpr,
):
    """Offset of the first value of a row's patch."""
    sample = (row // kept).to(tl.int64)
    at_w = (token % grid_w).to(tl.int64)
    at_h = (token // grid_w % grid_h).to(tl.int64)
    at_t = (token // (grid_w * grid_h)).to(tl.int64)
    return sample * stride_b + at_t * T * stride_t + at_h * H * stride_h + at_w * RUN


@triton.jit
def value_offset(value, stride_t, stride_h, H: tl.constexpr, RUN: tl.constexpr):
    """Offset within a patch of its value number `value`."""
    line = (value // RUN).to(tl.int64)
    return line // H * stride_t + line % H * stride_h + value % RUN


@triton.jit
def store_tokens(
    acc, Y, EXTRA, POSITION, row, token, column, rows, width, scale, HAS_EXTRA: tl.constexpr, HAS_POSITION: tl.constexpr
):
    """Normalise and write acc [columns, rows] as y [rows, columns]."""
    inside = (row < rows)[:, None] & (column < width)[None, :]
    result = tl.trans(acc) * scale
    if HAS_EXTRA:
        result += tl.load(EXTRA + column, mask=column < width, other=0.0)[None, :]
    if HAS_POSITION:
        pointers = POSITION + token.to(tl.int64)[:, None] * width + column[None, :]
        result += tl.load(pointers, mask=inside, other=0.0).to(tl.float32)
    tl.store(Y + row.to(tl.int64)[:, None] * width + column[None, :], result.to(Y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["tokens"])
def project_kernel(
    X,
    W,
    EXTRA,
    POSITION,
    KEEP,
    Y,
    rows,
    kept,
    keep_stride,
    width,
    tokens,
    grid_h,
    grid_w,
    stride_b,
    stride_t,
    stride_h,
    scale,
    T: tl.constexpr,
    H: tl.constexpr,
    RUN: tl.constexpr,
    HAS_KEEP: tl.constexpr,
    HAS_EXTRA: tl.constexpr,
    HAS_POSITION: tl.constexpr,
    TYPE: tl.constexpr,
    COLUMNS: tl.constexpr,
    TOKENS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """COLUMNS columns of TOKENS rows of y. Programs of one group of rows are neighbours and share its bytes in L2."""
    VALUES: tl.constexpr = T * H * RUN
    tiles = tl.cdiv(width, COLUMNS)
    column = tl.program_id(0) % tiles * COLUMNS + tl.arange(0, COLUMNS)
    first_row = tl.program_id(0) // tiles * TOKENS
    # rows beyond the last repeat it, so that no load of patches needs a mask
    row = tl.minimum(first_row + tl.arange(0, TOKENS), rows - 1)
    token = kept_token(row, KEEP, kept, keep_stride, tokens, HAS_KEEP)
    start = patch_start(row, token, kept, grid_h, grid_w, stride_b, stride_t, stride_h, T, H, RUN)
    acc = tl.zeros([COLUMNS, TOKENS], tl.float32)
    for first in range(0, VALUES, DEPTH):
        value = first + tl.arange(0, DEPTH)
        offset = value_offset(value, stride_t, stride_h, H, RUN)
        weights = W + value.to(tl.int64)[None, :] * width + column[:, None]
        if VALUES % DEPTH == 0:
            x = tl.load(X + (start[None, :] + offset[:, None]))
            w = tl.load(weights, mask=(column < width)[:, None], other=0.0)
        else:
            x = tl.load(X + (start[None, :] + offset[:, None]), mask=(value < VALUES)[:, None], other=0)
            w = tl.load(weights, mask=(column < width)[:, None] & (value < VALUES)[None, :], other=0.0)
        acc = tl.dot(w, as_operand(x, TYPE), acc, input_precision="ieee")
    if TOKENS >= 256:
        # halves, one after the other, so that a whole tile of positions is never in registers
        HALF: tl.constexpr = TOKENS // 2
        low, high = tl.split(tl.permute(tl.reshape(acc, (COLUMNS, 2, HALF)), (0, 2, 1)))
        for half in tl.static_range(2):
            row = first_row + half * HALF + tl.arange(0, HALF)
            token = kept_token(tl.minimum(row, rows - 1), KEEP, kept, keep_stride, tokens, HAS_KEEP)
            part = low if half == 0 else high
            store_tokens(part, Y, EXTRA, POSITION, row, token, column, rows, width, scale, HAS_EXTRA, HAS_POSITION)
    else:
        row = first_row + tl.arange(0, TOKENS)
        store_tokens(acc, Y, EXTRA, POSITION, row, token, column, rows, width, scale, HAS_EXTRA, HAS_POSITION)


@triton.jit(do_not_specialize=["tokens"])
def starts_kernel(
    KEEP,
    STARTS,
    rows,
    kept,
    keep_stride,
    tokens,
    grid_h,
    grid_w,
    stride_b,
    stride_t,
    stride_h,
    T: tl.constexpr,
    H: tl.constexpr,
    RUN: tl.constexpr,
    HAS_KEEP: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The offset of each row's first value in units of UNIT values, once for all programs of `weight_kernel`."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    token = kept_token(tl.minimum(row, rows - 1), KEEP, kept, keep_stride, tokens, HAS_KEEP)
    start = patch_start(row, token, kept, grid_h, grid_w, stride_b, stride_t, stride_h, T, H, RUN)
    tl.store(STARTS + row, start // UNIT, mask=row < rows)


@triton.jit
def weight_kernel(
    X,
    DY,
    EXTRA,
    STARTS,
    DW,
    rows,
    width,
    stride_t,
    stride_h,
    scale,
    per_split,
    T: tl.constexpr,
    H: tl.constexpr,
    RUN: tl.constexpr,
    UNIT: tl.constexpr,
    HAS_EXTRA: tl.constexpr,
    TYPE: tl.constexpr,
    COLUMNS: tl.constexpr,
    VALUE_BLOCK: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """One tile of one part of dW [splits, P, d]: the sum over `per_split` rows."""
    VALUES: tl.constexpr = T * H * RUN
    tiles = tl.cdiv(width, COLUMNS)
    column = tl.program_id(0) % tiles * COLUMNS + tl.arange(0, COLUMNS)
    value = tl.program_id(0) // tiles * VALUE_BLOCK + tl.arange(0, VALUE_BLOCK)
    split = tl.program_id(1)
    offset = value_offset(value, stride_t, stride_h, H, RUN)
    acc = tl.zeros([COLUMNS, VALUE_BLOCK], tl.float32)
    for first in range(split * per_split, tl.minimum((split + 1) * per_split, rows), DEPTH):
        row = first + tl.arange(0, DEPTH)
        # Rows beyond the last repeat it: what they read is finite wherever the sum is, and their dy is 0.
        # A factor on the loaded number keeps what is known of its divisibility, and with it the wide loads.
        start = tl.load(STARTS + tl.minimum(row, rows - 1)) * UNIT
        if VALUES % VALUE_BLOCK == 0:
            x = tl.load(X + (start[:, None] + offset[None, :]))
        else:
            x = tl.load(X + (start[:, None] + offset[None, :]), mask=(value < VALUES)[None, :], other=0)
        dy = tl.load(
            DY + row.to(tl.int64)[:, None] * width + column[None, :],
            mask=(row < rows)[:, None] & (column < width)[None, :],
            other=0.0,
        )
        acc = tl.dot(tl.trans(dy), as_operand(x, TYPE), acc, input_precision="ieee")
    result = tl.trans(acc) * scale
    if HAS_EXTRA:
        extra = tl.load(EXTRA + column, mask=column < width, other=0.0)
        result += tl.where(split == 0, extra, 0.0)[None, :]
    offsets = (split.to(tl.int64) * VALUES + value)[:, None] * width + column[None, :]
    inside = (value < VALUES)[:, None] & (column < width)[None, :]
    tl.store(DW + offsets, result.to(DW.dtype.element_ty), mask=inside)
