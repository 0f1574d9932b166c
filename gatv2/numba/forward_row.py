"""The fused forward pass of one query; see `gatv2.numba.scores` for how a row is cut.

Scores of a block of edges, their softmax, and the weighted sum while the block's keys are still in
cache; blocks are joined as in an online softmax. What the backward pass needs of it is kept: the
log-sum-exp, as the largest score and the sum of exponentials.
"""

from typing import Any

import numpy as np

from gatv2.numba.compile import inline
from gatv2.numba.exp import exp
from gatv2.numba.philox import keep_factors
from gatv2.numba.scores import BLOCK, column_of, score_block
from gatv2.numba.simd import expand, fma, fold, load, select, splat, store
from gatv2.numba.simd import tile as repeat


@inline
def forward_row(
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
    out: Any,
    largest: Any,
    total: Any,
    alpha: Any,
) -> None:
    """Attention of one query: its row of `out`, its maximal score and its sum of exponentials.

    Args:
        vectors: see `gatv2.numba.tiles.Tiles.vectors`.
        shape: (groups of heads, tiles a head spans).
        features: (query, key, attn).
        edges: (x, W_e, D, rows of x) of the features of edges, or None.
        slope: negative slope.
        dropout: see `keep_factors`; none if the least word that is kept is 0.
        place: (row of the query, row of key 0, query and key 0 and batch as dropout counts them,
            first edge of alpha, first row of x, numbers of the keys for dropout or None).
        key_index: key of each edge.
        edge_id: row of each edge in x, or anything if there is none.
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
    row, first_key, drop_query, drop_key, drop_word, first_edge, _, key_id = place
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
            m = score_block(
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
                    key_id,
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
                at_out = column_of(tile, shape, row, group, part)
                acc = nothing
                if begin > start:
                    acc = load(tile, out, at_out) * expand(tile, rescale)
                for e in range(begin, end):
                    at_key = column_of(tile, shape, first_key + key_index[e], group, part)
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
