"""The scores of one query over its edges: what the fused forward and backward pass share.

A row of H x F features is cut into tiles of T lanes, one SIMD value each. Either a tile holds G heads
(F = T / G), or a head spans several tiles (G = 1). The caller pads heads and features with zeros, and
passes three vector types: `tile` (T lanes), `heads` (G lanes) and `flat`, for loops over the
[edges, G] coefficients of one group of heads. All arrays are contiguous and of one dimension.

A long row is worked off in blocks of edges, so that no scratch grows with the graph.
"""

from typing import Any

import numpy as np

from gatv2.numba.compile import inline
from gatv2.numba.edge_features import add_projection, prefetch_edge
from gatv2.numba.philox import LANES
from gatv2.numba.simd import group_sum, load, load_mask, prefetch, select, splat, store, store_bits

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
def column_of(tile: Any, shape: Any, row: Any, group: Any, part: Any) -> Any:
    """Where a tile of a row of features starts."""
    n_groups, span = shape
    return ((row * n_groups + group) * span + part) * tile.lanes


@inline
def score_block(
    vectors: Any,
    shape: Any,
    features: Any,
    edges: Any,
    slope: Any,
    place: Any,
    key_index: Any,
    edge_id: Any,
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
    row, first_key, first_edge, first_row = place[0], place[1], place[5], place[6]
    n_lanes, n_tiles = heads.lanes, n_groups * span
    last = key_index.size - 1
    nothing, slopes = splat(tile, 0.0), splat(tile, slope)
    if edges is not None:
        n_features, first_x = edges[2], first_row % edges[3]
    for part in range(span):
        at_query = column_of(tile, shape, row, group, part)
        q, a = load(tile, query, at_query), load(tile, attn, column_of(tile, shape, 0, group, part))
        if d_out is not None:
            d = load(tile, d_out, at_query)
        for e in range(begin, end):
            ahead = first_key + key_index[min(e + AHEAD, last)]
            prefetch(tile, key, column_of(tile, shape, ahead, group, part))
            k = load(tile, key, column_of(tile, shape, first_key + key_index[e], group, part))
            x = q + k
            if edges is not None:
                ahead = first_x + edge_id[min(e + AHEAD, last)]
                prefetch_edge(vectors, edges, ahead * n_features)
                x = add_projection(
                    vectors,
                    edges,
                    (first_x + edge_id[e]) * n_features,
                    column_of(tile, shape, 0, group, part),
                    column_of(tile, shape, 1, 0, 0),
                    x,
                )
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
