"""Edge features in the fused kernels: projected while an edge is read, never stored projected.

Of edge (i, j) with features x_ij `[D]`, W_e x_ij is added to query_i + key_j before LeakyReLU. The
projection lies as `[D, heads, features]`, padded, so that each feature of an edge scales a whole tile.

With de_ij and s_ij as in `gatv2.numba.backward_row`, feature by feature of the row:

    G_d = sum_ij de_ij s_ij x_ij[d]
    d_x_ij[d] = sum over lanes of a * de_ij s_ij * W_e[d]
    d_W_e[d] = a * G_d,     and d_attn gets sum_d W_e[d] * G_d
"""

from gatv2.numba.arguments import (
    Block,
    Buffers,
    EdgeFeatures,
    EdgeGradients,
    EdgeList,
    Floats,
    HeadMask,
    Index,
    PerEdge,
    Place,
    Problem,
    QueryGradients,
    Vector,
    VectorClass,
    VectorClasses,
)
from gatv2.numba.compile import inline
from gatv2.numba.head_mask import has_unused
from gatv2.numba.rows import column_of, length_of, signs_at, weights_at
from gatv2.numba.simd import (
    broadcast,
    element,
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
def first_x_of(edges: EdgeFeatures | None, place: Place) -> Index:
    """The row of edge 0 in x, which feature sets may share."""
    if edges is None:
        return 0
    return place.first_x % edges.n_rows


@inline
def prefetch_features(flat: VectorClass, x: Floats, at: Index, n_features: Index) -> None:
    """Ask for the edge features, which start at `at`, ahead of their use."""
    for d in range(0, n_features, flat.lanes):
        prefetch(flat, x, at + d)


@inline
def add_projection(
    tile: VectorClass,
    x: Floats,
    at: Index,
    n_features: Index,
    projection: Floats,
    column: Index,
    length: Index,
    total: Vector,
) -> Vector:
    """`total`, and the tile at `column` of W_e x, of the edge whose features start at `at`."""
    for d in range(n_features):
        w = load(tile, projection, column + d * length)
        total = fma(w, broadcast(tile, x, at + d), total)
    return total


@inline
def backward_edges(
    vectors: VectorClasses,
    problem: Problem,
    edges: EdgeFeatures | None,
    place: Place,
    edge_list: EdgeList,
    block: Block,
    buffers: Buffers,
    per_edge: PerEdge,
    gradients: QueryGradients,
    head_mask: HeadMask | None,
) -> None:
    """Backward of the features of a block's edges, whose queries need not be one; overwrites `buffers`.

    Of `place` is read only what all queries of a feature set share.
    """
    if edges is not None:
        d_edges, slopes_de = EdgeGradients(*gradients.edges), buffers.d_scores
        for part in range(problem.layout.span):
            column = column_of(vectors, problem.layout, 0, block.group, part)
            for begin in range(block.begin, block.end, BATCH):
                batch = Block(block.group, begin, min(begin + BATCH, block.end), begin)
                _write_slopes_de(vectors, problem, place, batch, part, per_edge, slopes_de)
                _add_to_projection(
                    vectors,
                    problem,
                    edges,
                    place,
                    edge_list,
                    head_mask,
                    batch,
                    column,
                    slopes_de,
                    gradients,
                )
                if d_edges.d_x.size > 0:
                    _add_to_features(
                        vectors,
                        edges,
                        place,
                        edge_list,
                        batch,
                        column,
                        slopes_de,
                        buffers.scores,
                        d_edges,
                    )


@inline
def _write_slopes_de(
    vectors: VectorClasses,
    problem: Problem,
    place: Place,
    batch: Block,
    part: Index,
    per_edge: PerEdge,
    slopes_de: Floats,
) -> None:
    """Write a tile of de_ij s_ij for each edge."""
    tile, heads, layout = vectors.tile, vectors.heads, problem.layout
    weights, signs = per_edge.weights, per_edge.signs
    slopes = splat(tile, problem.slope)
    for e in range(batch.begin, batch.end):
        edge = place.first_edge + e
        at = weights_at(vectors, layout, edge, batch.group) + heads.lanes
        de = expand(tile, load(heads, weights, at))
        at = signs_at(vectors, layout, edge, batch.group, part)
        bits = load_bits(tile, signs, at)
        store(slopes_de, (e - batch.begin) * tile.lanes, select(bits, de, de * slopes))


@inline
def _add_to_projection(
    vectors: VectorClasses,
    problem: Problem,
    edges: EdgeFeatures,
    place: Place,
    edge_list: EdgeList,
    head_mask: HeadMask | None,
    batch: Block,
    column: Index,
    slopes_de: Floats,
    gradients: QueryGradients,
) -> None:
    """Add the edges' share of G to that of the chunk."""
    tile, first_x = vectors.tile, first_x_of(edges, place)
    nothing, length = splat(tile, 0.0), length_of(vectors, problem.layout)
    is_guarded = has_unused(head_mask)
    shares = EdgeGradients(*gradients.edges).shares
    x, x_row, n_features = edges.x, edge_list.x_row, edges.n_features
    for d in range(n_features):
        at = (gradients.chunk * n_features + d) * length + column
        share = nothing
        for e in range(batch.begin, batch.end):
            of_edge = (first_x + element(x_row, e)) * n_features + d
            slope_de = load(tile, slopes_de, (e - batch.begin) * tile.lanes)
            value = broadcast(tile, x, of_edge)
            if is_guarded:  # of an edge that a head does not use, x may be NaN
                value = select(slope_de == nothing, nothing, value)
            share = fma(slope_de, value, share)
        store(shares, at, load(tile, shares, at) + share)


@inline
def _add_to_features(
    vectors: VectorClasses,
    edges: EdgeFeatures,
    place: Place,
    edge_list: EdgeList,
    batch: Block,
    column: Index,
    slopes_de: Floats,
    total: Floats,
    d_edges: EdgeGradients,
) -> None:
    """Add what comes through a tile to the gradient of x; the first tile writes it."""
    d_x, n_features, n_lanes = d_edges.d_x, edges.n_features, vectors.line.lanes
    by_lane, x_row = d_edges.by_lane, edge_list.x_row
    n = batch.end - batch.begin
    for i in range(0, n, 4):
        for d in range(0, n_features, n_lanes):
            _four_rows(vectors, slopes_de, i, by_lane, column, n_features, d, total)
            for k in range(i, min(i + 4, n)):
                at = (place.first_x + element(x_row, batch.begin + k)) * n_features
                for j in range(d, min(d + n_lanes, n_features)):
                    share = total[(k - i) * n_lanes + j - d]
                    d_x[at + j] = share if column == 0 else d_x[at + j] + share


@inline
def _four_rows(
    vectors: VectorClasses,
    slopes_de: Floats,
    first: Index,
    by_lane: Floats,
    column: Index,
    n_features: Index,
    d: Index,
    total: Floats,
) -> None:
    """Write a line of the gradient of the features of four edges, `first` and on, to `total`."""
    line, n_lanes = vectors.line, vectors.tile.lanes
    length = (n_features + line.lanes - 1) // line.lanes * line.lanes
    nothing = splat(line, 0.0)
    # four sums, as one would wait for itself
    t0, t1, t2, t3 = nothing, nothing, nothing, nothing
    at = first * n_lanes
    for lane in range(n_lanes):
        w = load(line, by_lane, (column + lane) * length + d)
        t0 = fma(w, broadcast(line, slopes_de, at + lane), t0)
        t1 = fma(w, broadcast(line, slopes_de, at + n_lanes + lane), t1)
        t2 = fma(w, broadcast(line, slopes_de, at + 2 * n_lanes + lane), t2)
        t3 = fma(w, broadcast(line, slopes_de, at + 3 * n_lanes + lane), t3)
    store(total, 0, t0)
    store(total, line.lanes, t1)
    store(total, 2 * line.lanes, t2)
    store(total, 3 * line.lanes, t3)
