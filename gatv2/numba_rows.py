"""GATv2 attention of one query over its edges, and its backward pass: the fused inner loops.

A row of H x F features is cut into tiles of T lanes, one SIMD value each. Either a tile holds G heads
(F = T / G), or a head spans several tiles (G = 1). The caller pads heads and features with zeros, and
passes three vector types: `tile` (T lanes), `heads` (G lanes) and `flat`, for loops over the
[edges, G] coefficients of one group of heads. All arrays are contiguous and of one dimension.

Forward: scores of a block of edges, softmax, aggregation while the block's keys are still in cache;
blocks are joined as in an online softmax. What is kept is log-sum-exp, as the maximum and the sum.
Backward, with s = 1 where x = query + key is positive, else the negative slope:

    p = exp(e - lse),   dp = keep * (d_out . key) + d_alpha,   de = p * (dp - sum_j p dp)
    d_query_i = a * sum_j de_ij s_ij
    d_key_j = sum_i keep_ij p_ij d_out_i + a * sum_i de_ij s_ij
    d_attn = sum_i query_i * (sum_j de_ij s_ij) + sum_j key_j * (sum_i de_ij s_ij)

The pass over queries leaves keep * p, de and the sign of x (one bit) for the pass over keys, which so
gathers one row of features an edge, that of d_out, and neither query nor d_query.
"""

from typing import Any

import numpy as np

from gatv2.numba_philox import LANES, keep_factors
from gatv2.simd import (
    exp,
    expand,
    fma,
    fold,
    group_sum,
    inline,
    load,
    load_bits,
    load_mask,
    prefetch,
    select,
    splat,
    store,
    store_bits,
)
from gatv2.simd import tile as repeat

BLOCK = 1024  # edges whose scores are held at once
AHEAD = 24  # edges between the prefetch of a row and its use
MAX_WIDTH = 64  # lanes of `flat`, at most


@inline
def scratch(heads: Any, like: Any) -> Any:
    """What a thread needs beside its results: scores, their gradients, keep factors, counters."""
    size = BLOCK * heads.lanes + MAX_WIDTH
    return (
        np.empty(size, like.dtype),
        np.empty(size, like.dtype),
        np.empty(size, like.dtype),
        np.empty(2 * BLOCK + 6 * LANES, np.uint32),
    )


@inline
def forward_row(
    vectors: Any,
    shape: Any,
    features: Any,
    slope: Any,
    dropout: Any,
    place: Any,
    key_index: Any,
    head_mask: Any,
    start: Any,
    stop: Any,
    buffers: Any,
    out: Any,
    largest: Any,
    total: Any,
    alpha: Any,
) -> None:
    """Attention of one query: its row of `out`, its maximal score and its sum of exponentials.

    Args:
        vectors: see `gatv2.tiles.Tiles.vectors`.
        shape: (groups of heads, tiles a head spans).
        features: (query, key, attn).
        slope: negative slope.
        dropout: see `keep_factors`; none if the least word that is kept is 0.
        place: (row of the query, row of key 0, query and key 0 and batch as dropout counts them,
            first edge of alpha).
        key_index: key of each edge.
        head_mask: [edges, heads], or None.
        start: first edge of the query.
        stop: end of its edges.
        buffers: see `scratch`.
        out: [queries, heads, features].
        largest: [queries, heads].
        total: [queries, heads].
        alpha: [edges, heads], or empty if nobody wants it.
    """
    tile, heads, flat = vectors.tile, vectors.heads, vectors.flat
    n_groups, span = shape
    row, first_key, drop_query, drop_key, drop_word, first_edge = place
    scores, _, keep, counters = buffers
    key, n_lanes = features[1], heads.lanes
    zero, nothing = splat(heads, 0.0), splat(tile, 0.0)
    lowest = splat(heads, -np.inf)
    for group in range(n_groups):
        m, sum_exp = lowest, zero
        begin = start
        while True:
            end = min(begin + BLOCK, stop)
            m_before = m
            m = _score_block(
                vectors,
                shape,
                features,
                slope,
                place,
                key_index,
                head_mask,
                group,
                begin,
                end,
                None,
                None,
                scores,
                None,
                m,
            )
            m_used = select(m > lowest, m, zero)  # of a head without edges, and so without NaN
            rescale = exp(m_before - m_used)
            n = (end - begin) * n_lanes
            store(scores, n, splat(flat, -np.inf))
            if alpha.size > 0:
                for e in range(begin, end):
                    at = ((first_edge + e) * n_groups + group) * n_lanes
                    store(alpha, at, load(heads, scores, (e - begin) * n_lanes))
            m_flat, sum_flat = repeat(flat, m_used), splat(flat, 0.0)
            for at in range(0, n, flat.lanes):
                p = exp(load(flat, scores, at) - m_flat)
                store(scores, at, p)
                sum_flat = sum_flat + p
            sum_exp = fma(sum_exp, rescale, fold(heads, sum_flat))
            if dropout[0] > 0:
                keep_factors(
                    vectors.words,
                    dropout,
                    drop_query,
                    drop_word,
                    group * n_lanes,
                    n_lanes,
                    key_index,
                    drop_key,
                    start,
                    begin,
                    end,
                    counters,
                    keep,
                )
                for at in range(0, n, flat.lanes):
                    store(scores, at, load(flat, scores, at) * load(flat, keep, at))
            scale = splat(heads, 1.0)
            if end == stop:
                scale = select(sum_exp > zero, scale / sum_exp, sum_exp)
            for part in range(span):
                at_out = _column(tile, shape, row, group, part)
                acc = nothing
                if begin > start:
                    acc = load(tile, out, at_out) * expand(tile, rescale)
                for e in range(begin, end):
                    at_key = _column(tile, shape, first_key + key_index[e], group, part)
                    k = load(tile, key, at_key)
                    p_tile = expand(tile, load(heads, scores, (e - begin) * n_lanes))
                    if head_mask is not None:
                        k = select(p_tile > nothing, k, nothing)
                    acc = fma(p_tile, k, acc)
                store(out, at_out, acc * expand(tile, scale))
            begin = end
            if begin >= stop:
                break
        store(largest, (row * n_groups + group) * n_lanes, m)
        store(total, (row * n_groups + group) * n_lanes, sum_exp)
        if alpha.size > 0:
            m_used = select(m > lowest, m, zero)
            scale = select(sum_exp > zero, splat(heads, 1.0) / sum_exp, sum_exp)
            for e in range(start, stop):
                at = ((first_edge + e) * n_groups + group) * n_lanes
                store(alpha, at, exp(load(heads, alpha, at) - m_used) * scale)


@inline
def backward_query_row(
    vectors: Any,
    shape: Any,
    features: Any,
    slope: Any,
    dropout: Any,
    place: Any,
    key_index: Any,
    head_mask: Any,
    start: Any,
    stop: Any,
    buffers: Any,
    lse: Any,
    d_out: Any,
    d_alpha: Any,
    weights: Any,
    signs: Any,
    d_query: Any,
    d_attn: Any,
    chunk: Any,
) -> None:
    """Backward of one query: its row of `d_query`, its share of `d_attn`; `weights` and `signs`.

    Args beyond those of `forward_row`:
        lse: [queries, heads], log-sum-exp of the scores.
        d_out: cotangent of `out`.
        d_alpha: cotangent of `alpha`, or empty.
        weights: (keep * p, de) of each edge, [edges, groups, 2, G].
        signs: whether query + key is positive, in bits, [edges, heads, features].
        d_query: gradient of `query`.
        d_attn: [chunks, heads, features], summed into.
        chunk: where in `d_attn`.
    """
    tile, heads, flat = vectors.tile, vectors.heads, vectors.flat
    n_groups, span = shape
    row, _, drop_query, drop_key, drop_word, first_edge = place
    scores, d_scores, keep, counters = buffers
    query, _, attn = features
    n_lanes, n_tiles = heads.lanes, n_groups * span
    zero, nothing = splat(heads, 0.0), splat(tile, 0.0)
    slopes, rest = splat(tile, slope), splat(tile, 1.0 - slope)
    for group in range(n_groups):
        lse_row = load(heads, lse, (row * n_groups + group) * n_lanes)
        lse_flat = repeat(flat, lse_row)
        delta, sum_p, sum_de = zero, zero, zero
        n_blocks = (stop - start + BLOCK - 1) // BLOCK
        # the first sweep sums p dp; a single block is still in the buffers when the second one starts
        for sweep in range(2):
            for block in range(n_blocks):
                begin = start + block * BLOCK
                end = min(begin + BLOCK, stop)
                n = (end - begin) * n_lanes
                if sweep == 0 or n_blocks > 1:
                    _score_block(
                        vectors,
                        shape,
                        features,
                        slope,
                        place,
                        key_index,
                        head_mask,
                        group,
                        begin,
                        end,
                        d_out,
                        signs,
                        scores,
                        d_scores,
                        zero,
                    )
                    store(scores, n, splat(flat, -np.inf))
                    store(d_scores, n, splat(flat, 0.0))
                    if dropout[0] > 0:
                        keep_factors(
                            vectors.words,
                            dropout,
                            drop_query,
                            drop_word,
                            group * n_lanes,
                            n_lanes,
                            key_index,
                            drop_key,
                            start,
                            begin,
                            end,
                            counters,
                            keep,
                        )
                        for at in range(0, n, n_lanes):
                            d = load(heads, d_scores, at) * load(heads, keep, at)
                            store(d_scores, at, d)
                    if d_alpha.size > 0:
                        for e in range(begin, end):
                            at = (e - begin) * n_lanes
                            outer = ((first_edge + e) * n_groups + group) * n_lanes
                            d = load(heads, d_scores, at) + load(heads, d_alpha, outer)
                            store(d_scores, at, d)
                    delta_flat, p_flat = splat(flat, 0.0), splat(flat, 0.0)
                    for at in range(0, n, flat.lanes):
                        s = load(flat, scores, at)
                        p = exp(s - lse_flat)
                        d = load(flat, d_scores, at)
                        if head_mask is not None:  # of a head without edges lse is -inf
                            used = s > splat(flat, -np.inf)
                            p = select(used, p, splat(flat, 0.0))
                            d = select(used, d, splat(flat, 0.0))
                            store(d_scores, at, d)
                        store(scores, at, p)
                        p_flat = p_flat + p
                        delta_flat = fma(p, d, delta_flat)
                    if sweep == 0:
                        sum_p = sum_p + fold(heads, p_flat)
                        delta = delta + fold(heads, delta_flat)
                if sweep == 1:
                    if block == 0:
                        inverse = select(sum_p > zero, splat(heads, 1.0) / sum_p, sum_p)
                        delta = delta * inverse
                    for e in range(begin, end):
                        at = (e - begin) * n_lanes
                        p = load(heads, scores, at) * inverse
                        de = p * (load(heads, d_scores, at) - delta)
                        if dropout[0] > 0:
                            p = p * load(heads, keep, at)
                        outer = ((first_edge + e) * n_groups + group) * 2 * n_lanes
                        store(weights, outer, p)
                        store(weights, outer + n_lanes, de)
                        sum_de = sum_de + de
                    for part in range(span):
                        at_out = _column(tile, shape, row, group, part)
                        acc = nothing
                        if block > 0:
                            acc = load(tile, d_query, at_out)
                        for e in range(begin, end):
                            edge = first_edge + e
                            de = load(
                                heads, weights, (edge * n_groups + group) * 2 * n_lanes + n_lanes
                            )
                            bits = load_bits(
                                tile, signs, (edge * n_tiles + group * span + part) * tile.bytes
                            )
                            acc = acc + select(bits, expand(tile, de), nothing)
                        store(d_query, at_out, acc)
        for part in range(span):
            at_out = _column(tile, shape, row, group, part)
            if start == stop:
                store(d_query, at_out, nothing)
                continue
            total = fma(load(tile, d_query, at_out), rest, expand(tile, sum_de) * slopes)
            at = _column(tile, shape, 0, group, part)
            store(d_query, at_out, total * load(tile, attn, at))
            at_chunk = _column(tile, shape, chunk, group, part)
            share = total * load(tile, query, at_out)
            if head_mask is not None:  # a head without edges may hold NaN
                share = select(total == nothing, nothing, share)
            store(d_attn, at_chunk, load(tile, d_attn, at_chunk) + share)


@inline
def backward_key_row(
    vectors: Any,
    shape: Any,
    features: Any,
    slope: Any,
    row: Any,
    first_query: Any,
    first_edge: Any,
    edges: Any,
    queries: Any,
    head_mask: Any,
    start: Any,
    stop: Any,
    d_out: Any,
    weights: Any,
    signs: Any,
    d_key: Any,
    adds: Any,
    d_attn: Any,
    chunk: Any,
) -> None:
    """Backward of one key: its row of `d_key`, and its share of `d_attn`.

    Args beyond those of `backward_query_row`:
        row: row of the key.
        first_query: row of query 0.
        edges: where the key's edges stand in `weights` and `signs`.
        queries: the queries of its edges.
        start: its first edge, in `edges` and `queries`.
        stop: end of its edges.
        d_key: gradient of `key`.
        adds: whether to add to it.
    """
    tile, heads = vectors.tile, vectors.heads
    n_groups, span = shape
    _, key, attn = features
    n_lanes, n_tiles = heads.lanes, n_groups * span
    nothing = splat(tile, 0.0)
    last = queries.size - 1
    for group in range(n_groups):
        for part in range(span):
            values, slopes, sum_de = nothing, nothing, splat(heads, 0.0)
            for at in range(start, stop):
                ahead = min(at + AHEAD, last)
                edge = first_edge + edges[ahead]
                prefetch(
                    tile,
                    d_out,
                    _column(tile, shape, first_query + queries[ahead], group, part),
                )
                prefetch(heads, weights, (edge * n_groups + group) * 2 * n_lanes)
                prefetch(heads, signs, (edge * n_tiles + group * span + part) * tile.bytes)
                edge = first_edge + edges[at]
                outer = (edge * n_groups + group) * 2 * n_lanes
                p, de = load(heads, weights, outer), load(heads, weights, outer + n_lanes)
                d = load(tile, d_out, _column(tile, shape, first_query + queries[at], group, part))
                p_tile = expand(tile, p)
                if head_mask is not None:
                    d = select(p_tile > nothing, d, nothing)
                values = fma(p_tile, d, values)
                bits = load_bits(tile, signs, (edge * n_tiles + group * span + part) * tile.bytes)
                slopes = slopes + select(bits, expand(tile, de), nothing)
                sum_de = sum_de + de
            total = fma(slopes, splat(tile, 1.0 - slope), expand(tile, sum_de) * splat(tile, slope))
            at_key = _column(tile, shape, row, group, part)
            a = load(tile, attn, _column(tile, shape, 0, group, part))
            total_key = fma(a, total, values)
            if adds:
                total_key = total_key + load(tile, d_key, at_key)
            store(d_key, at_key, total_key)
            if start == stop:
                continue
            share = total * load(tile, key, at_key)
            if head_mask is not None:
                share = select(total == nothing, nothing, share)
            at_chunk = _column(tile, shape, chunk, group, part)
            store(d_attn, at_chunk, load(tile, d_attn, at_chunk) + share)


@inline
def _column(tile: Any, shape: Any, row: Any, group: Any, part: Any) -> Any:
    """Where a tile of a row of features starts."""
    n_groups, span = shape
    return ((row * n_groups + group) * span + part) * tile.lanes


@inline
def _score_block(
    vectors: Any,
    shape: Any,
    features: Any,
    slope: Any,
    place: Any,
    key_index: Any,
    head_mask: Any,
    group: Any,
    begin: Any,
    end: Any,
    d_out: Any,
    signs: Any,
    scores: Any,
    d_scores: Any,
    largest: Any,
) -> Any:
    """Write e of the edges from `begin` to `end` to `scores`; return the largest, `largest` included.

    With `d_out`, write d_out . key to `d_scores` and the signs of query + key to `signs` as well.
    """
    tile, heads = vectors.tile, vectors.heads
    n_groups, span = shape
    query, key, attn = features
    row, first_key, first_edge = place[0], place[1], place[5]
    n_lanes, n_tiles = heads.lanes, n_groups * span
    last = key_index.size - 1
    nothing, slopes = splat(tile, 0.0), splat(tile, slope)
    for part in range(span):
        at_query = _column(tile, shape, row, group, part)
        q, a = load(tile, query, at_query), load(tile, attn, _column(tile, shape, 0, group, part))
        if d_out is not None:
            d = load(tile, d_out, at_query)
        for e in range(begin, end):
            ahead = first_key + key_index[min(e + AHEAD, last)]
            prefetch(tile, key, _column(tile, shape, ahead, group, part))
            k = load(tile, key, _column(tile, shape, first_key + key_index[e], group, part))
            x = q + k
            positive = x > nothing
            s = group_sum(heads, select(positive, x, x * slopes) * a)
            at = (e - begin) * n_lanes
            if part > 0:
                s = s + load(heads, scores, at)
            if head_mask is not None and part == span - 1:
                used = load_mask(heads, head_mask, (e * n_groups + group) * n_lanes)
                s = select(used, s, splat(heads, -np.inf))
            store(scores, at, s)
            if part == span - 1:
                largest = select(s > largest, s, largest)
            if d_out is not None:
                edge = first_edge + e
                store_bits(signs, (edge * n_tiles + group * span + part) * tile.bytes, positive)
                ds = group_sum(heads, d * k)
                if part > 0:
                    ds = ds + load(heads, d_scores, at)
                store(d_scores, at, ds)
    return largest
