"""Features of edges in the fused kernels: projected while an edge is read, never stored projected.

Of edge (i, j) with features x_ij `[D]`, W_e x_ij is added to query_i + key_j before LeakyReLU. The
projection lies as `[D, heads, features]`, padded, so that each feature of an edge scales a whole tile.

With de_ij and s_ij as in `gatv2.numba_backward`, feature by feature of the row:

    G_d = sum_ij de_ij s_ij x_ij[d]
    d_x_ij[d] = sum over lanes of a * de_ij s_ij * W_e[d]
    d_W_e[d] = a * G_d,     and d_attn gets sum_d W_e[d] * G_d
"""

from typing import Any

from gatv2.numba_vectors import inline
from gatv2.simd import (
    broadcast,
    expand,
    fma,
    group_sum,
    load,
    load_bits,
    prefetch,
    select,
    splat,
    store,
)


@inline
def add_projection(vectors: Any, edges: Any, at: Any, column: Any, stride: Any, total: Any) -> Any:
    """`total` and a tile of W_e x of one edge.

    Args:
        vectors: see `gatv2.tiles.Tiles.vectors`.
        edges: (x, W_e, D, rows of x).
        at: where the edge's features start.
        column: where the tile stands in a row of W_e.
        stride: length of a row of W_e.
        total: a tile.
    """
    x, weight, n_features, _ = edges
    for d in range(n_features):
        w = load(vectors.tile, weight, column + d * stride)
        total = fma(w, broadcast(vectors.tile, x, at + d), total)
    return total


@inline
def prefetch_edge(vectors: Any, edges: Any, at: Any) -> None:
    """Ask for the features of an edge, which start at `at`, ahead of their use."""
    for d in range(0, edges[2], vectors.flat.lanes):
        prefetch(vectors.flat, edges[0], at + d)


@inline
def backward_edges(
    vectors: Any,
    shape: Any,
    attn: Any,
    edges: Any,
    slope: Any,
    first_row: Any,
    edge_id: Any,
    first_edge: Any,
    group: Any,
    part: Any,
    begin: Any,
    end: Any,
    weights: Any,
    signs: Any,
    d_edges: Any,
    chunk: Any,
) -> None:
    """Backward of the features of the edges from `begin` to `end`, through one tile.

    Args beyond those of `gatv2.numba_backward.backward_query_row`:
        edges: (x, W_e, D, rows of x).
        first_row: row of edge 0 in the gradient of x; in x it is taken modulo the rows of x, which
            feature sets may share.
        d_edges: (d_x, or empty if nobody wants it; [chunks, D, heads, features], summed into: G).
    """
    tile, heads, one = vectors.tile, vectors.heads, vectors.one
    n_groups, span = shape
    x, weight, n_features, n_rows = edges
    d_x, d_weight = d_edges
    column, stride = (group * span + part) * tile.lanes, n_groups * span * tile.lanes
    first_x, slopes = first_row % n_rows, splat(tile, slope)
    a = load(tile, attn, column)
    for e in range(begin, end):
        edge = first_edge + e
        de = load(heads, weights, (edge * n_groups + group) * 2 * heads.lanes + heads.lanes)
        bits = load_bits(tile, signs, (edge * n_groups * span + group * span + part) * tile.bytes)
        de_tile = expand(tile, de)
        de_tile = select(bits, de_tile, de_tile * slopes)
        at = (first_x + edge_id[e]) * n_features
        for d in range(n_features):
            at_weight = (chunk * n_features + d) * stride + column
            share = fma(de_tile, broadcast(tile, x, at + d), load(tile, d_weight, at_weight))
            store(d_weight, at_weight, share)
        if d_x.size > 0:
            at, de_tile = (first_row + edge_id[e]) * n_features, de_tile * a
            for d in range(n_features):
                total = group_sum(one, de_tile * load(tile, weight, column + d * stride))
                if column > 0:
                    total = total + load(one, d_x, at + d)
                store(d_x, at + d, total)
