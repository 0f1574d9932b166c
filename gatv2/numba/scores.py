"""The scores of one query over its edges: what the fused forward and backward pass share.

A row of H x F features is cut into tiles of T lanes, one SIMD value each. Either a tile holds G heads
(F = T / G), or a head spans several tiles (G = 1). The caller pads heads and features with zeros, and
passes three vector types: `tile` (T lanes), `heads` (G lanes) and `flat`, for loops over the
[edges, G] coefficients of one group of heads.

A long row is worked off in blocks of edges, so that no scratch grows with the graph.
"""

import threading

import numpy as np

from gatv2.numba.arguments import (
    Block,
    Buffers,
    Bytes,
    EdgeFeatures,
    EdgeList,
    Flags,
    Floats,
    HeadMask,
    Index,
    Integers,
    Layout,
    Place,
    Plain,
    Problem,
    Vector,
    VectorClasses,
)
from gatv2.numba.compile import inline
from gatv2.numba.edge_features import add_projection, first_x_of, prefetch_features
from gatv2.numba.head_mask import add_bias, bias_of, flags_of
from gatv2.numba.memory import empty
from gatv2.numba.philox import LANES, keep_factors
from gatv2.numba.rows import AHEAD, column_of, heads_at, length_of, signs_at
from gatv2.numba.simd import group_sum, load, load_mask, prefetch, select, splat, store, store_bits
from gatv2.numba.tiles import Tiles

BLOCK = 1024  # edges whose scores are held at once
MAX_WIDTH = 64  # lanes of `flat`, at most


class _Buffers(threading.local):
    """Each thread's own."""

    def __init__(self) -> None:
        self.of_size: dict[tuple[int, np.dtype[np.floating]], Plain] = {}


_buffers = _Buffers()


def own_buffers(tiles: Tiles) -> tuple[Plain]:
    """What the calling thread needs beside its results, kept for the next call: a `Buffers`, plain."""
    size = tiles.group, tiles.dtype
    buffers = _buffers.of_size.get(size)
    if buffers is None:
        coefficients = (empty((BLOCK * tiles.group + MAX_WIDTH,), tiles.dtype) for _ in range(3))
        buffers = *coefficients, empty((2 * BLOCK + 6 * LANES,), np.uint32)
        _buffers.of_size[size] = buffers
    return (buffers,)


@inline
def score_block(
    vectors: VectorClasses,
    problem: Problem,
    edges: EdgeFeatures | None,
    place: Place,
    edge_list: EdgeList,
    head_mask: HeadMask | None,
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
    layout, last_part = problem.layout, problem.layout.span - 1
    nothing, slopes = splat(tile, 0.0), splat(tile, problem.slope)
    keys, key_index, first_key = problem.key, edge_list.key, place.first_key
    scores, d_scores, last = buffers.scores, buffers.d_scores, key_index.size - 1
    flags, x_row = flags_of(head_mask), edge_list.x_row
    bias, bias_rows = bias_of(head_mask, place)
    if edges is not None:
        features, projection = edges.x, edges.projection
        n_features, first_x = edges.n_features, first_x_of(edges, place)
        length = length_of(vectors, layout)
    for part in range(layout.span):
        at_query = column_of(vectors, layout, place.row, group, part)
        column = column_of(vectors, layout, 0, group, part)
        q, a = load(tile, problem.query, at_query), load(tile, problem.attn, column)
        if d_out is not None:
            d = load(tile, d_out, at_query)
        for e in range(begin, block.end):
            ahead = first_key + key_index[min(e + AHEAD, last)]
            prefetch(tile, keys, column_of(vectors, layout, ahead, group, part))
            row = first_key + key_index[e]
            k = load(tile, keys, column_of(vectors, layout, row, group, part))
            x = q + k
            if edges is not None:
                at = (first_x + x_row[min(e + AHEAD, last)]) * n_features
                prefetch_features(vectors.flat, features, at, n_features)
                at = (first_x + x_row[e]) * n_features
                x = add_projection(tile, features, at, n_features, projection, column, length, x)
            positive = x > nothing
            s = group_sum(heads, select(positive, x, x * slopes) * a)
            at = (e - begin) * heads.lanes
            if part > 0:
                s = s + load(heads, scores, at)
            if part == last_part:
                s = _masked(vectors, layout, flags, e, group, s)
                s = add_bias(heads, bias, bias_rows, x_row, e, group * heads.lanes, s)
            store(scores, at, s)
            if part == last_part:
                largest = select(s > largest, s, largest)
            if d_out is not None:
                at_signs = signs_at(vectors, layout, place.first_edge + e, group, part)
                store_bits(signs, at_signs, positive)
                ds = group_sum(heads, d * k)
                if part > 0:
                    ds = ds + load(heads, d_scores, at)
                store(d_scores, at, ds)
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
def _masked(
    vectors: VectorClasses,
    layout: Layout,
    flags: Flags | None,
    e: Index,
    group: Index,
    scores: Vector,
) -> Vector:
    """Minus infinity for the heads that do not use edge `e`."""
    if flags is None:
        return scores
    used = load_mask(vectors.heads, flags, heads_at(vectors, layout, e, group))
    return select(used, scores, splat(vectors.heads, -np.inf))
