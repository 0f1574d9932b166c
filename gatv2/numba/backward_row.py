"""The fused backward pass, over queries and then over keys; see `gatv2.numba.scores`.

With x = query_i + key_j, and s_ij = 1 where x is positive, else the negative slope:

    p = exp(e - lse),   dp = keep * (d_out . key) + d_alpha,   de = p * (dp - sum_j p dp + d_lse)
    d_query_i = a * sum_j de_ij s_ij
    d_key_j = sum_i keep_ij p_ij d_out_i + a * sum_i de_ij s_ij
    d_attn = sum_i query_i * (sum_j de_ij s_ij) + sum_j key_j * (sum_i de_ij s_ij)

The pass over queries leaves keep * p, de and the sign of x, one bit a feature. So the pass over keys
gathers only d_out: neither a query, nor the scores again.
"""

from typing import Any

import numpy as np

from gatv2.numba.compile import inline
from gatv2.numba.edge_features import backward_edges
from gatv2.numba.exp import exp
from gatv2.numba.philox import keep_factors
from gatv2.numba.scores import AHEAD, BLOCK, column_of, score_block
from gatv2.numba.simd import expand, fma, fold, load, load_bits, prefetch, select, splat, store
from gatv2.numba.simd import tile as repeat


@inline
def backward_query_row(
    vectors: Any,
    shape: Any,
    features: Any,
    edges: Any,
    slope: Any,
    dropout: Any,
    place: Any,
    key_index: Any,
    edge_id: Any,
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
    d_edges: Any,
    chunk: Any,
) -> None:
    """Backward of one query: its row of `d_query`, its share of `d_attn`; `weights` and `signs`.

    Args beyond those of `forward_row`:
        lse: log-sum-exp of the scores, [queries, heads], and its cotangent, or empty.
        d_out: cotangent of `out`.
        d_alpha: cotangent of `alpha`, or empty.
        weights: (keep * p, de) of each edge, [edges, groups, 2, G].
        signs: whether query + key is positive, in bits, [edges, heads, features].
        d_query: gradient of `query`.
        d_attn: [chunks, heads, features], summed into.
        d_edges: see `gatv2.numba.edge_features.backward_edges`; None if edges have no features.
        chunk: where in `d_attn`.
    """
    tile, heads, flat = vectors.tile, vectors.heads, vectors.flat
    n_groups, span = shape
    row, _, drop_query, drop_key, drop_word, first_edge, first_row, key_id = place
    scores, d_scores, keep, counters = buffers
    query, _, attn = features
    n_lanes, n_tiles = heads.lanes, n_groups * span
    zero, nothing = splat(heads, 0.0), splat(tile, 0.0)
    slopes, rest = splat(tile, slope), splat(tile, 1.0 - slope)
    for group in range(n_groups):
        lse_row = load(heads, lse[0], (row * n_groups + group) * n_lanes)
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
                    score_block(
                        vectors,
                        shape,
                        features,
                        edges,
                        slope,
                        place,
                        key_index,
                        edge_id,
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
                            key_id,
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
                        if lse[1].size > 0:
                            delta = delta - load(heads, lse[1], (row * n_groups + group) * n_lanes)
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
                        at_out = column_of(tile, shape, row, group, part)
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
                        if edges is not None:
                            backward_edges(
                                vectors,
                                shape,
                                edges,
                                slope,
                                first_row,
                                edge_id,
                                first_edge,
                                group,
                                part,
                                begin,
                                end,
                                (d_scores, scores),  # not needed any more
                                weights,
                                signs,
                                d_edges,
                                chunk,
                            )
        for part in range(span):
            at_out = column_of(tile, shape, row, group, part)
            if start == stop:
                store(d_query, at_out, nothing)
                continue
            total = fma(load(tile, d_query, at_out), rest, expand(tile, sum_de) * slopes)
            at = column_of(tile, shape, 0, group, part)
            store(d_query, at_out, total * load(tile, attn, at))
            at_chunk = column_of(tile, shape, chunk, group, part)
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
                    column_of(tile, shape, first_query + queries[ahead], group, part),
                )
                prefetch(heads, weights, (edge * n_groups + group) * 2 * n_lanes)
                prefetch(heads, signs, (edge * n_tiles + group * span + part) * tile.bytes)
                edge = first_edge + edges[at]
                outer = (edge * n_groups + group) * 2 * n_lanes
                p, de = load(heads, weights, outer), load(heads, weights, outer + n_lanes)
                d = load(
                    tile, d_out, column_of(tile, shape, first_query + queries[at], group, part)
                )
                p_tile = expand(tile, p)
                if head_mask is not None:
                    d = select(p_tile > nothing, d, nothing)
                values = fma(p_tile, d, values)
                bits = load_bits(tile, signs, (edge * n_tiles + group * span + part) * tile.bytes)
                slopes = slopes + select(bits, expand(tile, de), nothing)
                sum_de = sum_de + de
            total = fma(slopes, splat(tile, 1.0 - slope), expand(tile, sum_de) * splat(tile, slope))
            at_key = column_of(tile, shape, row, group, part)
            a = load(tile, attn, column_of(tile, shape, 0, group, part))
            total_key = fma(a, total, values)
            if adds:
                total_key = total_key + load(tile, d_key, at_key)
            store(d_key, at_key, total_key)
            if start == stop:
                continue
            share = total * load(tile, key, at_key)
            if head_mask is not None:
                share = select(total == nothing, nothing, share)
            at_chunk = column_of(tile, shape, chunk, group, part)
            store(d_attn, at_chunk, load(tile, d_attn, at_chunk) + share)
