"""The scores of one query over its edges: what the fused forward and backward pass share.

A row of H x F features is cut into tiles of T lanes, one SIMD value each. Either a tile holds G heads
(F = T / G), or a head spans several tiles (G = 1). The caller pads heads and features with zeros, and
passes three vector types: `tile` (T lanes), `heads` (G lanes) and `flat`, for loops over the
[edges, G] coefficients of one group of heads.

A long row is worked off in blocks of edges, so that no scratch grows with the graph.
"""

import numpy as np

from gatv2.numba.arguments import (
    Block,
    Buffers,
    Bytes,
    EdgeFeatures,
    EdgeList,
    Flags,
    Floats,
    Index,
    Integers,
    Place,
    Problem,
    Vector,
    VectorClass,
    VectorClasses,
)
from gatv2.numba.compile import inline
from gatv2.numba.edge_features import AHEAD, add_projection, first_x_of
from gatv2.numba.philox import LANES, keep_factors
from gatv2.numba.rows import column_of, heads_at, signs_at
from gatv2.numba.simd import group_sum, load, load_mask, prefetch, select, splat, store, store_bits

BLOCK = 1024  # edges whose scores are held at once
MAX_WIDTH = 64  # lanes of `flat`, at most


@inline
def new_buffers(heads: VectorClass, like: Floats) -> Buffers:
    """What a thread needs beside its results, in the dtype of `like`."""
    size = BLOCK * heads.lanes + MAX_WIDTH
    return Buffers(
        np.empty(size, like.dtype),
        np.empty(size, like.dtype),
        np.empty(size, like.dtype),
        np.empty(2 * BLOCK + 6 * LANES, np.uint32),
    )


@inline
def score_block(
    vectors: VectorClasses,
    problem: Problem,
    edges: EdgeFeatures | None,
    place: Place,
    edge_list: EdgeList,
    head_mask: Flags | None,
    block: Block,
    largest: Vector,
    buffers: Buffers,
    d_out: Floats | None,
    signs: Bytes | None,
) -> Vector:
    """Write e of a block's edges to `buffers.scores`; return the largest, `largest` included.

    With `d_out`, write d_out . key to `buffers.d_scores`, and the signs of x to `signs` as well.
    """
    tile, heads = vectors.tile, vectors.heads
    group, begin = block.group, block.begin
    key_index, first_key, last_part = edge_list.key, place.first_key, problem.span - 1
    last, first_x = key_index.size - 1, first_x_of(edges, place)
    nothing, slopes = splat(tile, 0.0), splat(tile, problem.slope)
    for part in range(problem.span):
        at_query = column_of(vectors, problem, place.row, group, part)
        column = column_of(vectors, problem, 0, group, part)
        q, a = load(tile, problem.query, at_query), load(tile, problem.attn, column)
        if d_out is not None:
            d = load(tile, d_out, at_query)
        for e in range(begin, block.end):
            ahead = first_key + key_index[min(e + AHEAD, last)]
            prefetch(tile, problem.key, column_of(vectors, problem, ahead, group, part))
            row = first_key + key_index[e]
            k = load(tile, problem.key, column_of(vectors, problem, row, group, part))
            x = add_projection(vectors, problem, edges, edge_list, first_x, e, column, q + k)
            positive = x > nothing
            s = group_sum(heads, select(positive, x, x * slopes) * a)
            at = (e - begin) * heads.lanes
            s = _plus_earlier(heads, buffers.scores, at, part, s)
            if part == last_part:
                s = _masked(vectors, problem, head_mask, e, group, s)
            store(buffers.scores, at, s)
            if part == last_part:
                largest = select(s > largest, s, largest)
            if d_out is not None:
                at_signs = signs_at(vectors, problem, place.first_edge + e, group, part)
                store_bits(signs, at_signs, positive)
                ds = group_sum(heads, d * k)
                store(buffers.d_scores, at, _plus_earlier(heads, buffers.d_scores, at, part, ds))
    return largest


@inline
def apply_dropout(
    vectors: VectorClasses,
    problem: Problem,
    place: Place,
    edge_list: EdgeList,
    key_id: Integers | None,
    block: Block,
    buffers: Buffers,
    coefficients: Floats,
) -> None:
    """Multiply a block's coefficients by their factors, which are left in `buffers.keep`.

    What lies behind them, up to a whole `flat`, is overwritten with anything.
    """
    flat, n_lanes = vectors.flat, vectors.heads.lanes
    if problem.dropout.least_word > 0:
        keep_factors(
            vectors.words, problem.dropout, place, edge_list, key_id, block, n_lanes, buffers
        )
        for at in range(0, (block.end - block.begin) * n_lanes, flat.lanes):
            kept = load(flat, coefficients, at) * load(flat, buffers.keep, at)
            store(coefficients, at, kept)


@inline
def _plus_earlier(
    heads: VectorClass, sums: Floats, at: Index, part: Index, value: Vector
) -> Vector:
    """`value`, and what earlier tiles of the same head have summed."""
    if part > 0:
        value = value + load(heads, sums, at)
    return value


@inline
def _masked(
    vectors: VectorClasses,
    problem: Problem,
    head_mask: Flags | None,
    e: Index,
    group: Index,
    scores: Vector,
) -> Vector:
    """Minus infinity for the heads that do not use edge `e`."""
    if head_mask is None:
        return scores
    used = load_mask(vectors.heads, head_mask, heads_at(vectors, problem, e, group))
    return select(used, scores, splat(vectors.heads, -np.inf))
