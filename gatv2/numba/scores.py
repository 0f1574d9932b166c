"""The scores of queries over their edges: what the fused forward and backward pass share.

A row of H x F features is cut into tiles of T lanes, one SIMD value each. Either a tile holds G heads
(F = T / G), or a head spans several tiles (G = 1). The caller pads heads and features with zeros, and
passes three vector types: `tile` (T lanes), `heads` (G lanes) and `flat`, for loops over the
[edges, G] coefficients of one group of heads.

A long row is worked off in blocks of edges, so that no scratch grows with the graph. Short rows are
worked off together, in strips: each step is done for all of them before the next one. The steps of a
row wait for each other's results, those of different rows do not, and the CPU does them side by side.
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
    NodeIds,
    Place,
    Plain,
    Problem,
    Strip,
    Vector,
    VectorClass,
    VectorClasses,
)
from gatv2.numba.compile import inline
from gatv2.numba.edge_features import add_projection, first_x_of, prefetch_features
from gatv2.numba.head_mask import add_bias, bias_of, flags_of
from gatv2.numba.memory import empty_rows
from gatv2.numba.philox import LANES, keep_factors
from gatv2.numba.rows import AHEAD, BLOCK, ROWS_AHEAD, column_of, heads_at, length_of, signs_at
from gatv2.numba.simd import (
    element,
    group_sum,
    load,
    load_mask,
    prefetch,
    select,
    splat,
    store,
    store_bits,
)
from gatv2.numba.team import row_of
from gatv2.numba.tiles import Tiles

MAX_WIDTH = 64  # lanes of `flat`, at most


class _Buffers(threading.local):
    """Each thread's own."""

    def __init__(self) -> None:
        self.of_size: dict[tuple[int, np.dtype[np.floating]], Plain] = {}


_buffers = _Buffers()


def own_buffers(tiles: Tiles, n_threads: int) -> tuple[Plain]:
    """What threads need beside results, a row for each: kept by the one that calls for its next call."""
    size = tiles.group, tiles.dtype
    buffers = _buffers.of_size.get(size)
    if buffers is None or len(buffers[0]) < n_threads:
        width = BLOCK * tiles.group + MAX_WIDTH
        n_words = 3 * BLOCK + 7 * LANES
        buffers = (
            *(empty_rows(n_threads, width, tiles.dtype) for _ in range(3)),
            empty_rows(n_threads, n_words, np.uint32),
        )
        _buffers.of_size[size] = buffers
    return (buffers,)


@inline
def buffers_of(member: Index, buffers: Plain) -> Buffers:
    """The rows of one thread, named."""
    scores, d_scores, keep, counters = buffers
    return Buffers(
        row_of(scores, member),
        row_of(d_scores, member),
        row_of(keep, member),
        row_of(counters, member),
    )


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
    lse: Vector | None,
    d_out: Floats | None,
    signs: Bytes | None,
) -> Vector:
    """Write e of a query's edges in a block to `buffers.scores`; return the largest, `largest` included.

    With `d_out`, write e - lse, d_out . key to `buffers.d_scores`, and the signs of x to `signs`.
    """
    tile, heads = vectors.tile, vectors.heads
    group = block.group
    layout, last_part = problem.layout, problem.layout.span - 1
    length = length_of(vectors, layout)
    nothing, slopes = splat(tile, 0.0), splat(tile, problem.slope)
    keys, key_index, first_key = problem.key, edge_list.key, place.first_key
    scores, d_scores, last = buffers.scores, buffers.d_scores, key_index.size - 1
    flags, x_row = flags_of(head_mask), edge_list.x_row
    bias, bias_rows = bias_of(head_mask, place)
    if edges is not None:
        n_features, first_x = edges.n_features, first_x_of(edges, place)
        projected = buffers.keep  # which dropout fills later
        # a tile a head: what is projected serves the strip's next query, too; else its tile is another
        first_projected = block.first if layout.span == 1 else block.begin
    for part in range(layout.span):
        at_query = column_of(vectors, layout, place.row, group, part)
        column = column_of(vectors, layout, 0, group, part)
        q, a = load(tile, problem.query, at_query), load(tile, problem.attn, column)
        prefetch(tile, problem.query, at_query + ROWS_AHEAD * length)
        if d_out is not None:
            prefetch(tile, d_out, at_query + ROWS_AHEAD * length)
            d = load(tile, d_out, at_query)
        for e in range(block.begin, block.end):
            ahead = first_key + element(key_index, min(e + AHEAD, last))
            prefetch(tile, keys, column_of(vectors, layout, ahead, group, part))
            row = first_key + element(key_index, e)
            k = load(tile, keys, column_of(vectors, layout, row, group, part))
            x = q + k
            if edges is not None:
                at = (first_x + element(x_row, min(e + AHEAD, last))) * n_features
                prefetch_features(vectors.line, edges.x, at, n_features)
                x = add_projection(
                    vectors,
                    edges,
                    first_x,
                    x_row,
                    e,
                    first_projected,
                    column,
                    length,
                    projected,
                    x,
                )
            positive = x > nothing
            s = group_sum(heads, select(positive, x, x * slopes) * a)
            at = (e - block.first) * heads.lanes
            if part > 0:
                s = s + load(heads, scores, at)
            if part == last_part:
                s = _masked(vectors, layout, flags, e, group, s)
                s = add_bias(heads, bias, bias_rows, x_row, e, group * heads.lanes, s)
                s = _minus(heads, s, lse)
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
    node_ids: NodeIds | None,
    strip: Strip,
    ptr: Integers | None,
    keys: Integers,
    block: Block,
    buffers: Buffers,
    coefficients: Floats,
) -> None:
    """Write a block's coefficients times their factors, which are left in `buffers.keep`, to `d_scores`.

    What lies behind them, up to a whole `flat`, is overwritten with anything.
    """
    flat, n_lanes = vectors.flat, vectors.heads.lanes
    if problem.dropout.least_word > 0:
        keep_factors(
            vectors.words, problem.dropout, strip, ptr, node_ids, keys, block, n_lanes, buffers
        )
        for at in range(0, (block.end - block.begin) * n_lanes, flat.lanes):
            kept = load(flat, coefficients, at) * load(flat, buffers.keep, at)
            store(buffers.d_scores, at, kept)


@inline
def _minus(heads: VectorClass, scores: Vector, lse: Vector | None) -> Vector:
    """Scores less the log-sum-exp, if it is known; minus infinity stays, though lse may be that too."""
    if lse is None:
        return scores
    lowest = splat(heads, -np.inf)
    return select(scores == lowest, lowest, scores - lse)


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
