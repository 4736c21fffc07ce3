# mypy: disallow-incomplete-defs=False
"""Kernels of the backward of flash attention; formulas and passes are in triton_backward.py.

`delta` is [H, total] float32, `lse` as the forward leaves it, scores are in units of log2. `grad`, `out` and what is
stored are contiguous [total, H, D]; q, k, v come with strides. EXACT is float32, and takes what time it needs
to be as accurate as a stored softmax: maximum and denominator are kept apart, S and dP are formed by the same sums in
all passes (a product of transposed operands may round differently), and delta is summed from P and dP in a sweep of its
own, so that it cancels against them where a row has one large probability.

Source: Dao 2023, "FlashAttention-2", algorithm 2.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_tiles import SIZES, diagonal_bias, kept, load_at, load_rows, locate, row_words, store_rows, tile_at

LN2 = tl.constexpr(0.6931471805599453)  # scores carry the scale times log2(e)


@triton.jit
def load_statistics(lse, here, inside, heads, total, EXACT: tl.constexpr, CHECK: tl.constexpr):
    """Of queries: what to subtract from scores (+inf outside, for a probability of 0), and a factor for EXACT."""
    if CHECK:
        statistic = tl.load(lse + here, mask=inside, other=float("inf"))
    else:
        statistic = tl.load(lse + here)
    factor = statistic
    if EXACT:
        factor = tl.load(lse + tl.cast(heads, tl.int64) * total + here, mask=inside, other=1.0)
    return statistic, factor


@triton.jit
def probabilities(scores, statistic, factor, query, key, diagonals, head, reach, scale, EXACT: tl.constexpr):
    """What the forward's softmax was; statistic, factor, query and key are shaped to broadcast to the tile."""
    scores = scores * scale
    if diagonals is not None:
        scores += diagonal_bias(diagonals, head, reach, query, key)
    weights = tl.exp2(scores - statistic)
    if EXACT:
        weights *= factor
    return weights


@triton.jit
def along_diagonals(tile, BLOCK: tl.constexpr):
    """[BLOCK, BLOCK] (query, key) -> [2 BLOCK]: element i sums key - query = i - (BLOCK - 1); the last one is 0."""
    key = tl.arange(0, 2 * BLOCK)[None, :] + tl.arange(0, BLOCK)[:, None] - (BLOCK - 1)
    lined_up = tl.gather(tile, tl.minimum(tl.maximum(key, 0), BLOCK - 1), axis=1)
    return tl.sum(tl.where((key >= 0) & (key < BLOCK), lined_up, 0.0), axis=0)


@triton.jit
def recompute(
    queries,
    keys,
    values,
    grads,
    statistic,
    factor,
    query,
    start,
    words,
    key_mask,
    diagonals,
    first,
    length,
    head,
    reach,
    scale,
    threshold,
    rescale,
    DROPOUT: tl.constexpr,
    EXACT: tl.constexpr,
    KEYS: tl.constexpr,
    CHECK: tl.constexpr,
):
    """Of a tile [queries, keys] whose first key is `start`: P, what dropout leaves of it but for `rescale`, and dP.

    Without CHECK all keys lie inside the sequence.
    """
    offset = tl.arange(0, KEYS)
    key = start + offset
    scores = tl.dot(queries, tl.trans(keys), input_precision="ieee")
    weight_grads = tl.dot(grads, tl.trans(values), input_precision="ieee")
    weights = probabilities(
        scores, statistic[:, None], factor[:, None], query[:, None], key[None, :], diagonals, head, reach, scale, EXACT
    )
    if key_mask is not None:
        visible = tl.load(key_mask + first + key, mask=key < length, other=0) != 0
        weights = tl.where(visible[None, :], weights, 0.0)
    elif CHECK:
        weights = tl.where(key[None, :] < length, weights, 0.0)
    dropped = weights
    if DROPOUT:
        keep = kept(words[:, None], start, offset[None, :], threshold, DROPOUT)
        dropped = tl.where(keep, weights, 0.0)
        weight_grads = tl.where(keep, weight_grads * rescale, 0.0)
    return weights, dropped, weight_grads


@triton.jit(do_not_specialize=SIZES)
def queries_kernel(
    q,
    k,
    v,
    out,
    grad,
    lse,
    delta,
    words,
    dq,
    q_sequence,
    q_row,
    q_head,
    k_sequence,
    k_row,
    k_head,
    v_sequence,
    v_row,
    v_head,
    key_mask,
    diagonals,
    edges,
    seed,
    d_row,
    heads,
    longest,
    total,
    reach,
    scale,
    threshold,
    rescale,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    DROPOUT: tl.constexpr,
    EXACT: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
):
    """First pass: delta, words of rows for dropout, and dq of one tile of queries; without `dq` it ends before that."""
    tile, head, origin, first, length = locate(edges, heads, longest, tl.cdiv(longest, ROWS))
    start = tile * ROWS
    if start >= length:
        return
    query = start + tl.arange(0, ROWS)
    row = heads * WIDTH
    queries = load_at(q, origin, start, head, q_sequence, q_row, q_head, length, ROWS, WIDTH, PADDED)
    grads = load_at(grad, first, start, head, row, row, WIDTH, length, ROWS, WIDTH, PADDED)
    here = head * total + first + query
    statistic, factor = load_statistics(lse, here, query < length, heads, total, EXACT, True)
    lines = query
    if DROPOUT:
        lines = row_words(first, query, head, heads, seed)
        tl.store(words + here, lines, mask=query < length)
    k_tile = tile_at(k, origin, 0, head, k_sequence, k_row, k_head, KEYS, PADDED)
    v_tile = tile_at(v, origin, 0, head, v_sequence, v_row, v_head, KEYS, PADDED)
    if EXACT:
        part = tl.zeros([ROWS], dtype=tl.float32)
        for n in range(0, length, KEYS):
            keys = load_at(k, origin, n, head, k_sequence, k_row, k_head, length, KEYS, WIDTH, PADDED)
            values = load_at(v, origin, n, head, v_sequence, v_row, v_head, length, KEYS, WIDTH, PADDED)
            weights, _, weight_grads = recompute(
                queries,
                keys,
                values,
                grads,
                statistic,
                factor,
                query,
                n,
                lines,
                key_mask,
                diagonals,
                first,
                length,
                head,
                reach,
                scale,
                threshold,
                rescale,
                DROPOUT,
                EXACT,
                KEYS,
                True,
            )
            part += tl.sum(weights * weight_grads, axis=1)
    else:
        outs = load_at(out, first, start, head, row, row, WIDTH, length, ROWS, WIDTH, PADDED)
        part = tl.sum(outs.to(tl.float32) * grads.to(tl.float32), axis=1)
    tl.store(delta + here, part, mask=query < length)
    if dq is not None:  # a return would not end what Triton compiles
        acc = tl.zeros([ROWS, PADDED], dtype=tl.float32)
        whole = length // KEYS * KEYS
        for n in range(0, whole, KEYS):
            key = n + tl.arange(0, KEYS)
            keys = load_rows(k_tile, key, length, WIDTH, PADDED, False)
            values = load_rows(v_tile, key, length, WIDTH, PADDED, False)
            weights, _, weight_grads = recompute(
                queries,
                keys,
                values,
                grads,
                statistic,
                factor,
                query,
                n,
                lines,
                key_mask,
                diagonals,
                first,
                length,
                head,
                reach,
                scale,
                threshold,
                rescale,
                DROPOUT,
                EXACT,
                KEYS,
                False,
            )
            ds = weights * (weight_grads - part[:, None])
            acc = tl.dot(ds.to(keys.dtype), keys, acc, input_precision="ieee")
            k_tile += KEYS * k_row
            v_tile += KEYS * v_row
        if whole < length:
            key = whole + tl.arange(0, KEYS)
            keys = load_rows(k_tile, key, length, WIDTH, PADDED, True)
            values = load_rows(v_tile, key, length, WIDTH, PADDED, True)
            weights, _, weight_grads = recompute(
                queries,
                keys,
                values,
                grads,
                statistic,
                factor,
                query,
                whole,
                lines,
                key_mask,
                diagonals,
                first,
                length,
                head,
                reach,
                scale,
                threshold,
                rescale,
                DROPOUT,
                EXACT,
                KEYS,
                True,
            )
            ds = weights * (weight_grads - part[:, None])
            acc = tl.dot(ds.to(keys.dtype), keys, acc, input_precision="ieee")
        store_rows(dq, acc * (scale * LN2), first, query, length, head, d_row, WIDTH, PADDED)


@triton.jit
def gather_queries(
    dk,
    dv,
    keys,
    values,
    q_tile,
    g_tile,
    lse,
    delta,
    words,
    query,
    start,
    key,
    diagonals,
    length,
    head,
    heads,
    total,
    reach,
    scale,
    threshold,
    rescale,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    DROPOUT: tl.constexpr,
    EXACT: tl.constexpr,
    KEYS: tl.constexpr,
    LAST: tl.constexpr,
):
    """One step of the second pass, on transposed tiles (key, query). `lse`, `delta`, `words` point at position 0."""
    queries = load_rows(q_tile, query, length, WIDTH, PADDED, LAST)
    grads = load_rows(g_tile, query, length, WIDTH, PADDED, LAST)
    statistic, factor = load_statistics(lse, query, query < length, heads, total, EXACT, LAST)
    if LAST:
        part = tl.load(delta + query, mask=query < length, other=0.0)
    else:
        part = tl.load(delta + query)
    if EXACT:
        scores = tl.trans(tl.dot(queries, tl.trans(keys), input_precision="ieee"))
        weight_grads = tl.trans(tl.dot(grads, tl.trans(values), input_precision="ieee"))
    else:
        scores = tl.dot(keys, tl.trans(queries), input_precision="ieee")
        weight_grads = tl.dot(values, tl.trans(grads), input_precision="ieee")
    weights = probabilities(
        scores, statistic[None, :], factor[None, :], query[None, :], key[:, None], diagonals, head, reach, scale, EXACT
    )
    dropped = weights
    if DROPOUT:
        if LAST:
            lines = tl.load(words + query, mask=query < length, other=0)
        else:
            lines = tl.load(words + query)
        keep = kept(lines[None, :], start, tl.arange(0, KEYS)[:, None], threshold, DROPOUT)
        dropped = tl.where(keep, weights, 0.0)
        weight_grads = tl.where(keep, weight_grads * rescale, 0.0)
    dv = tl.dot(dropped.to(grads.dtype), grads, dv, input_precision="ieee")
    ds = weights * (weight_grads - part[None, :])
    dk = tl.dot(ds.to(queries.dtype), queries, dk, input_precision="ieee")
    return dk, dv


@triton.jit(do_not_specialize=SIZES)
def keys_kernel(
    q,
    k,
    v,
    grad,
    lse,
    delta,
    words,
    dk,
    dv,
    q_sequence,
    q_row,
    q_head,
    k_sequence,
    k_row,
    k_head,
    v_sequence,
    v_row,
    v_head,
    key_mask,
    diagonals,
    edges,
    d_row,
    heads,
    longest,
    total,
    reach,
    scale,
    threshold,
    rescale,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    DROPOUT: tl.constexpr,
    EXACT: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
):
    """Second pass: dk and dv of one tile of keys. A key's numbers meet no other key's, so what is masked or after the
    end is cleared once, when the loop is over."""
    tile, head, origin, first, length = locate(edges, heads, longest, tl.cdiv(longest, KEYS))
    start = tile * KEYS
    if start >= length:
        return
    key = start + tl.arange(0, KEYS)
    row = heads * WIDTH
    keys = load_at(k, origin, start, head, k_sequence, k_row, k_head, length, KEYS, WIDTH, PADDED)
    values = load_at(v, origin, start, head, v_sequence, v_row, v_head, length, KEYS, WIDTH, PADDED)
    q_tile = tile_at(q, origin, 0, head, q_sequence, q_row, q_head, ROWS, PADDED)
    g_tile = tile_at(grad, first, 0, head, row, row, WIDTH, ROWS, PADDED)
    lse += head * total + first
    delta += head * total + first
    if DROPOUT:
        words += head * total + first
    k_acc = tl.zeros([KEYS, PADDED], dtype=tl.float32)
    v_acc = tl.zeros([KEYS, PADDED], dtype=tl.float32)
    whole = length // ROWS * ROWS
    for m in range(0, whole, ROWS):
        k_acc, v_acc = gather_queries(
            k_acc,
            v_acc,
            keys,
            values,
            q_tile,
            g_tile,
            lse,
            delta,
            words,
            m + tl.arange(0, ROWS),
            start,
            key,
            diagonals,
            length,
            head,
            heads,
            total,
            reach,
            scale,
            threshold,
            rescale,
            WIDTH,
            PADDED,
            DROPOUT,
            EXACT,
            KEYS,
            False,
        )
        q_tile += ROWS * q_row
        g_tile += ROWS * row
    if whole < length:
        k_acc, v_acc = gather_queries(
            k_acc,
            v_acc,
            keys,
            values,
            q_tile,
            g_tile,
            lse,
            delta,
            words,
            whole + tl.arange(0, ROWS),
            start,
            key,
            diagonals,
            length,
            head,
            heads,
            total,
            reach,
            scale,
            threshold,
            rescale,
            WIDTH,
            PADDED,
            DROPOUT,
            EXACT,
            KEYS,
            True,
        )
    k_acc *= scale * LN2
    v_acc *= rescale
    if key_mask is not None:
        visible = tl.load(key_mask + first + key, mask=key < length, other=0) != 0
        k_acc = tl.where(visible[:, None], k_acc, 0.0)
        v_acc = tl.where(visible[:, None], v_acc, 0.0)
    store_rows(dk, k_acc, first, key, length, head, d_row, WIDTH, PADDED)
    store_rows(dv, v_acc, first, key, length, head, d_row, WIDTH, PADDED)


@triton.jit
def add_queries(
    dk,
    dv,
    keys,
    values,
    q_tile,
    g_tile,
    lse,
    delta,
    words,
    acc,
    query,
    start,
    key_mask,
    diagonals,
    first,
    length,
    head,
    heads,
    total,
    reach,
    scale,
    threshold,
    rescale,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    DROPOUT: tl.constexpr,
    KEYS: tl.constexpr,
    LAST: tl.constexpr,
):
    """One step of the only pass. `lse`, `delta`, `words` and `acc` point at position 0; dk and dv are transposed.

    P and dS are second operands of products, as they are, or the first one, as it is: a product's transposed result as
    the first operand is misread by some releases of Triton.
    """
    queries = load_rows(q_tile, query, length, WIDTH, PADDED, LAST)
    grads = load_rows(g_tile, query, length, WIDTH, PADDED, LAST)
    statistic, factor = load_statistics(lse, query, query < length, heads, total, False, LAST)
    lines = query
    if LAST:
        part = tl.load(delta + query, mask=query < length, other=0.0)
        if DROPOUT:
            lines = tl.load(words + query, mask=query < length, other=0)
    else:
        part = tl.load(delta + query)
        if DROPOUT:
            lines = tl.load(words + query)
    weights, dropped, weight_grads = recompute(
        queries,
        keys,
        values,
        grads,
        statistic,
        factor,
        query,
        start,
        lines,
        key_mask,
        diagonals,
        first,
        length,
        head,
        reach,
        scale,
        threshold,
        rescale,
        DROPOUT,
        False,
        KEYS,
        False,
    )
    dv = tl.dot(tl.trans(grads), dropped.to(grads.dtype), dv, input_precision="ieee")
    ds = (weights * (weight_grads - part[:, None])).to(queries.dtype)
    dk = tl.dot(tl.trans(queries), ds, dk, input_precision="ieee")
    inside = (start + tl.arange(0, KEYS)) < length
    q_grad = tl.dot(ds, tl.where(inside[:, None], keys, 0.0), input_precision="ieee") * (scale * LN2)
    column = tl.arange(0, PADDED)
    pointers = acc + (query * heads * WIDTH)[:, None] + column[None, :]
    if LAST or WIDTH < PADDED:
        tl.atomic_add(pointers, q_grad, mask=(query[:, None] < length) & (column[None, :] < WIDTH), sem="relaxed")
    else:
        tl.atomic_add(pointers, q_grad, sem="relaxed")
    return dk, dv


@triton.jit(do_not_specialize=SIZES)
def one_pass_kernel(
    q,
    k,
    v,
    grad,
    lse,
    delta,
    words,
    acc,
    dk,
    dv,
    q_sequence,
    q_row,
    q_head,
    k_sequence,
    k_row,
    k_head,
    v_sequence,
    v_row,
    v_head,
    key_mask,
    diagonals,
    edges,
    d_row,
    heads,
    longest,
    total,
    reach,
    scale,
    threshold,
    rescale,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    DROPOUT: tl.constexpr,
    EXACT: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
):
    """dk and dv of one tile of keys, and what it adds to dq, float32 [total, H, WIDTH].

    A key after the end is a copy of the last one, so that its probabilities are finite, and 0 where dq is made.
    """
    tile, head, origin, first, length = locate(edges, heads, longest, tl.cdiv(longest, KEYS))
    start = tile * KEYS
    if start >= length:
        return
    key = start + tl.arange(0, KEYS)
    row = heads * WIDTH
    pointers = tile_at(k, origin, start, head, k_sequence, k_row, k_head, KEYS, PADDED)
    beyond = (key - tl.minimum(key, length - 1)) * k_row
    keys = load_rows(pointers - beyond[:, None], key, length, WIDTH, PADDED, False)
    values = load_at(v, origin, start, head, v_sequence, v_row, v_head, length, KEYS, WIDTH, PADDED)
    q_tile = tile_at(q, origin, 0, head, q_sequence, q_row, q_head, ROWS, PADDED)
    g_tile = tile_at(grad, first, 0, head, row, row, WIDTH, ROWS, PADDED)
    lse += head * total + first
    delta += head * total + first
    if DROPOUT:
        words += head * total + first
    acc += (first * heads + head) * WIDTH
    k_acc = tl.zeros([PADDED, KEYS], dtype=tl.float32)
    v_acc = tl.zeros([PADDED, KEYS], dtype=tl.float32)
    whole = length // ROWS * ROWS
    for m in range(0, whole, ROWS):
        k_acc, v_acc = add_queries(
            k_acc,
            v_acc,
            keys,
            values,
            q_tile,
            g_tile,
            lse,
            delta,
            words,
            acc,
            m + tl.arange(0, ROWS),
            start,
            key_mask,
            diagonals,
            first,
            length,
            head,
            heads,
            total,
            reach,
            scale,
            threshold,
            rescale,
            WIDTH,
            PADDED,
            DROPOUT,
            KEYS,
            False,
        )
        q_tile += ROWS * q_row
        g_tile += ROWS * row
    if whole < length:
        k_acc, v_acc = add_queries(
            k_acc,
            v_acc,
            keys,
            values,
            q_tile,
            g_tile,
            lse,
            delta,
            words,
            acc,
            whole + tl.arange(0, ROWS),
            start,
            key_mask,
            diagonals,
            first,
            length,
            head,
            heads,
            total,
            reach,
            scale,
            threshold,
            rescale,
            WIDTH,
            PADDED,
            DROPOUT,
            KEYS,
            True,
        )
    k_grad = tl.trans(k_acc) * (scale * LN2)
    v_grad = tl.trans(v_acc) * rescale
    store_rows(dk, k_grad, first, key, length, head, d_row, WIDTH, PADDED)
    store_rows(dv, v_grad, first, key, length, head, d_row, WIDTH, PADDED)


@triton.jit(do_not_specialize=SIZES)
def diagonals_kernel(
    q,
    k,
    v,
    grad,
    lse,
    delta,
    words,
    sums,
    q_sequence,
    q_row,
    q_head,
    k_sequence,
    k_row,
    k_head,
    v_sequence,
    v_row,
    v_head,
    key_mask,
    diagonals,
    edges,
    heads,
    longest,
    total,
    reach,
    scale,
    threshold,
    rescale,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    DROPOUT: tl.constexpr,
    EXACT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Third pass, with a bias only: sums [programs, 2 BLOCK] of dS along the diagonals of one diagonal of tiles."""
    tiles = tl.cdiv(longest, BLOCK)
    tile, head, origin, first, length = locate(edges, heads, longest, 2 * tiles - 1)
    ahead = (tile - (tiles - 1)) * BLOCK  # of the first key to the first query
    row = heads * WIDTH
    acc = tl.zeros([BLOCK, BLOCK], dtype=tl.float32)
    for m in range(tl.maximum(0, -ahead), tl.minimum(length, length - ahead), BLOCK):
        query = m + tl.arange(0, BLOCK)
        queries = load_at(q, origin, m, head, q_sequence, q_row, q_head, length, BLOCK, WIDTH, PADDED)
        grads = load_at(grad, first, m, head, row, row, WIDTH, length, BLOCK, WIDTH, PADDED)
        keys = load_at(k, origin, m + ahead, head, k_sequence, k_row, k_head, length, BLOCK, WIDTH, PADDED)
        values = load_at(v, origin, m + ahead, head, v_sequence, v_row, v_head, length, BLOCK, WIDTH, PADDED)
        here = head * total + first + query
        statistic, factor = load_statistics(lse, here, query < length, heads, total, EXACT, True)
        part = tl.load(delta + here, mask=query < length, other=0.0)
        lines = query
        if DROPOUT:
            lines = tl.load(words + here, mask=query < length, other=0)
        weights, _, weight_grads = recompute(
            queries,
            keys,
            values,
            grads,
            statistic,
            factor,
            query,
            m + ahead,
            lines,
            key_mask,
            diagonals,
            first,
            length,
            head,
            reach,
            scale,
            threshold,
            rescale,
            DROPOUT,
            EXACT,
            BLOCK,
            True,
        )
        acc += weights * (weight_grads - part[:, None])
    offsets = tl.program_id(0).to(tl.int64) * (2 * BLOCK) + tl.arange(0, 2 * BLOCK)
    tl.store(sums + offsets, along_diagonals(acc, BLOCK))


@triton.jit(do_not_specialize=SIZES)
def one_tile_kernel(
    q,
    k,
    v,
    grad,
    lse,
    sums,
    dq,
    dk,
    dv,
    q_sequence,
    q_row,
    q_head,
    k_sequence,
    k_row,
    k_head,
    v_sequence,
    v_row,
    v_head,
    key_mask,
    diagonals,
    edges,
    seed,
    d_row,
    heads,
    longest,
    total,
    reach,
    scale,
    threshold,
    rescale,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    DROPOUT: tl.constexpr,
    EXACT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Everything at once, for one head of a sequence of at most BLOCK tokens."""
    _, head, origin, first, length = locate(edges, heads, longest, 1)
    position = tl.arange(0, BLOCK)
    row = heads * WIDTH
    queries = load_at(q, origin, 0, head, q_sequence, q_row, q_head, length, BLOCK, WIDTH, PADDED)
    keys = load_at(k, origin, 0, head, k_sequence, k_row, k_head, length, BLOCK, WIDTH, PADDED)
    values = load_at(v, origin, 0, head, v_sequence, v_row, v_head, length, BLOCK, WIDTH, PADDED)
    grads = load_at(grad, first, 0, head, row, row, WIDTH, length, BLOCK, WIDTH, PADDED)
    statistic, factor = load_statistics(
        lse, head * total + first + position, position < length, heads, total, EXACT, True
    )
    visible = position < length
    if key_mask is not None:
        visible = tl.load(key_mask + first + position, mask=visible, other=0) != 0
    scores = tl.dot(queries, tl.trans(keys), input_precision="ieee")
    weight_grads = tl.dot(grads, tl.trans(values), input_precision="ieee")
    weights = probabilities(
        scores,
        statistic[:, None],
        factor[:, None],
        position[:, None],
        position[None, :],
        diagonals,
        head,
        reach,
        scale,
        EXACT,
    )
    weights = tl.where(visible[None, :], weights, 0.0)
    norm = tl.sum(weights, axis=1)  # the row is complete: what rounding lse cost can be taken back
    weights *= (1.0 / tl.where(norm > 0, norm, 1.0))[:, None]
    dropped = weights
    if DROPOUT:
        words = row_words(first, position, head, heads, seed)
        keep = kept(words[:, None], 0, position[None, :], threshold, DROPOUT)
        dropped = tl.where(keep, weights * rescale, 0.0)
        weight_grads = tl.where(keep, weight_grads * rescale, 0.0)
    ds = weights * (weight_grads - tl.sum(weights * weight_grads, axis=1)[:, None])
    v_grad = tl.dot(tl.trans(dropped.to(grads.dtype)), grads, input_precision="ieee")
    k_grad = tl.dot(tl.trans(ds.to(queries.dtype)), queries, input_precision="ieee")
    q_grad = tl.dot(ds.to(keys.dtype), keys, input_precision="ieee")
    store_rows(dv, v_grad, first, position, length, head, d_row, WIDTH, PADDED)
    store_rows(dk, k_grad * (scale * LN2), first, position, length, head, d_row, WIDTH, PADDED)
    store_rows(dq, q_grad * (scale * LN2), first, position, length, head, d_row, WIDTH, PADDED)
    if diagonals is not None:
        here = tl.program_id(0).to(tl.int64) * (2 * BLOCK) + tl.arange(0, 2 * BLOCK)
        tl.store(sums + here, along_diagonals(ds, BLOCK))
