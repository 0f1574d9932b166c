"""Features of edges in the fused kernels: projected while an edge is read, never stored projected.

Of edge (i, j) with features x_ij `[D]`, W_e x_ij is added to query_i + key_j before LeakyReLU. The
projection lies as `[D, heads, features]`, padded, so that each feature of an edge scales a whole tile.

With de_ij and s_ij as in `gatv2.numba.backward_row`, feature by feature of the row:

    G_d = sum_ij de_ij s_ij x_ij[d]
    d_x_ij[d] = sum over lanes of a * de_ij s_ij * W_e[d]
    d_W_e[d] = a * G_d,     and d_attn gets sum_d W_e[d] * G_d
"""

from typing import Any

from gatv2.numba.compile import inline
from gatv2.numba.simd import (
    broadcast,
    expand,
    fma,
    load,
    load_bits,
    prefetch,
    select,
    splat,
    store,
)

BATCH = 16  # edges whose de_ij s_ij are held at once


@inline
def add_projection(vectors: Any, edges: Any, at: Any, column: Any, stride: Any, total: Any) -> Any:
    """`total` and a tile of W_e x of one edge.

    Args:
        vectors: see `gatv2.numba.tiles.Tiles.vectors`.
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
    edges: Any,
    slope: Any,
    first_row: Any,
    edge_id: Any,
    first_edge: Any,
    group: Any,
    part: Any,
    begin: Any,
    end: Any,
    buffers: Any,
    weights: Any,
    signs: Any,
    d_edges: Any,
    chunk: Any,
) -> None:
    """Backward of the features of the edges from `begin` to `end`, through one tile.

    Args beyond those of `gatv2.numba.backward_row.backward_query_row`:
        edges: (x, W_e, D, rows of x).
        first_row: row of edge 0 in the gradient of x; in x it is taken modulo the rows of x, which
            feature sets may share.
        buffers: two scratch arrays, as `gatv2.numba.scores.scratch` makes them.
        d_edges: (d_x, or empty if nobody wants it; G of each chunk, `[chunks, D, heads, features]`,
            summed into; a * W_e, transposed to `[heads, features, D]`, D padded to whole lines).
    """
    tile, heads = vectors.tile, vectors.heads
    n_groups, span = shape
    x, _, n_features, n_rows = edges
    d_x, d_weight, transposed = d_edges
    column, stride = (group * span + part) * tile.lanes, n_groups * span * tile.lanes
    first_x, slopes = first_row % n_rows, splat(tile, slope)
    slopes_de, total = buffers
    for first in range(begin, end, BATCH):
        n = min(BATCH, end - first)
        for i in range(n):
            edge = first_edge + first + i
            de = load(heads, weights, (edge * n_groups + group) * 2 * heads.lanes + heads.lanes)
            bits = load_bits(tile, signs, (edge * stride + column) // tile.lanes * tile.bytes)
            de_tile = expand(tile, de)
            store(slopes_de, i * tile.lanes, select(bits, de_tile, de_tile * slopes))
        for d in range(n_features):
            at = (chunk * n_features + d) * stride + column
            share = load(tile, d_weight, at)
            for i in range(n):
                of_edge = (first_x + edge_id[first + i]) * n_features + d
                share = fma(
                    load(tile, slopes_de, i * tile.lanes), broadcast(tile, x, of_edge), share
                )
            store(d_weight, at, share)
        if d_x.size > 0:
            for i in range(0, n, 4):
                for d in range(0, n_features, vectors.line.lanes):
                    _four_rows(vectors, slopes_de, i, transposed, column, n_features, d, total)
                    for k in range(i, min(i + 4, n)):
                        at = (first_row + edge_id[first + k]) * n_features
                        for j in range(d, min(d + vectors.line.lanes, n_features)):
                            share = total[(k - i) * vectors.line.lanes + j - d]
                            d_x[at + j] = share if column == 0 else d_x[at + j] + share


@inline
def _four_rows(
    vectors: Any,
    slopes_de: Any,
    first: Any,
    transposed: Any,
    column: Any,
    n_features: Any,
    d: Any,
    total: Any,
) -> None:
    """Write a line of the gradient of the features of four edges, `first` and on, to `total`."""
    line, n_lanes = vectors.line, vectors.tile.lanes
    length = (n_features + line.lanes - 1) // line.lanes * line.lanes
    nothing = splat(line, 0.0)
    # four sums, as one would wait for itself
    t0, t1, t2, t3 = nothing, nothing, nothing, nothing
    at = first * n_lanes
    for lane in range(n_lanes):
        w = load(line, transposed, (column + lane) * length + d)
        t0 = fma(w, broadcast(line, slopes_de, at + lane), t0)
        t1 = fma(w, broadcast(line, slopes_de, at + n_lanes + lane), t1)
        t2 = fma(w, broadcast(line, slopes_de, at + 2 * n_lanes + lane), t2)
        t3 = fma(w, broadcast(line, slopes_de, at + 3 * n_lanes + lane), t3)
    store(total, 0, t0)
    store(total, line.lanes, t1)
    store(total, 2 * line.lanes, t2)
    store(total, 3 * line.lanes, t3)
