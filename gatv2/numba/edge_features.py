"""Edge features in the fused kernels: projected when an edge is read, never stored for all edges.

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
    Integers,
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
    broadcast_each,
    element,
    expand,
    fma,
    load,
    load_bits,
    prefetch,
    repeat,
    select,
    splat,
    store,
)

TOGETHER = 4  # edges, or features, summed at once, one by one below: what is loaded serves all
BATCH = 16  # edges whose de_ij s_ij are held at once


@inline
def first_x_of(edges: EdgeFeatures | None, place: Place) -> Index:
    """The row of edge 0 in x, which feature sets may share."""
    if edges is None:
        return 0
    return place.first_x % edges.n_rows


@inline
def prefetch_features(line: VectorClass, x: Floats, at: Index, n_features: Index) -> None:
    """Ask for the edge features, which start at `at`, ahead of their use."""
    for d in range(0, n_features, line.lanes):
        prefetch(line, x, at + d)


@inline
def add_projection(
    vectors: VectorClasses,
    edges: EdgeFeatures,
    first_x: Index,
    x_row: Integers,
    e: Index,
    first: Index,
    column: Index,
    length: Index,
    projected: Floats,
    total: Vector,
) -> Vector:
    """`total`, and the tile at `column` of W_e x of edge `e`.

    Unless features are few, the next edges of the list are projected with it, and kept in `projected`:
    so edges are asked for one after another, from `first` on, with one column.
    """
    tile, n_features = vectors.tile, edges.n_features
    if n_features < TOGETHER:
        at = (first_x + element(x_row, e)) * n_features
        for d in range(n_features):
            w = load(tile, edges.projection, column + d * length)
            total = fma(w, broadcast(tile, edges.x, at + d), total)
        return total
    k = (e - first) % TOGETHER
    if k == 0:
        _project(vectors, edges, first_x, x_row, e, column, length, projected)
    return total + load(tile, projected, k * tile.lanes)


@inline
def _project(
    vectors: VectorClasses,
    edges: EdgeFeatures,
    first_x: Index,
    x_row: Integers,
    e: Index,
    column: Index,
    length: Index,
    projected: Floats,
) -> None:
    """Write the tile at `column` of W_e x of edge `e` and the next three, or of the last one again."""
    piece, n_lanes, last = vectors.piece, vectors.tile.lanes, x_row.size - 1
    x, projection, n_features = edges.x, edges.projection, edges.n_features
    x0 = (first_x + element(x_row, e)) * n_features
    x1 = (first_x + element(x_row, min(e + 1, last))) * n_features
    x2 = (first_x + element(x_row, min(e + 2, last))) * n_features
    x3 = (first_x + element(x_row, min(e + 3, last))) * n_features
    for lane in range(0, n_lanes, piece.lanes):
        nothing = splat(piece, 0.0)
        t0, t1, t2, t3 = nothing, nothing, nothing, nothing
        for d in range(n_features):
            w = load(piece, projection, column + lane + d * length)
            t0 = fma(w, broadcast(piece, x, x0 + d), t0)
            t1 = fma(w, broadcast(piece, x, x1 + d), t1)
            t2 = fma(w, broadcast(piece, x, x2 + d), t2)
            t3 = fma(w, broadcast(piece, x, x3 + d), t3)
        store(projected, lane, t0)
        store(projected, lane + n_lanes, t1)
        store(projected, lane + 2 * n_lanes, t2)
        store(projected, lane + 3 * n_lanes, t3)


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
    tile, piece, first_x = vectors.tile, vectors.piece, first_x_of(edges, place)
    length, is_guarded = length_of(vectors, problem.layout), has_unused(head_mask)
    shares = EdgeGradients(*gradients.edges).shares
    x, x_row, n_features = edges.x, edge_list.x_row, edges.n_features
    n_whole = n_features // TOGETHER * TOGETHER
    first = gradients.chunk * n_features * length + column
    nothing = splat(piece, 0.0)
    for d in range(0, n_whole, TOGETHER):
        for lane in range(0, tile.lanes, piece.lanes):
            t0, t1, t2, t3 = nothing, nothing, nothing, nothing
            for e in range(batch.begin, batch.end):
                at = (first_x + element(x_row, e)) * n_features + d
                slope_de = load(piece, slopes_de, (e - batch.begin) * tile.lanes + lane)
                t0 = fma(slope_de, _guarded(slope_de, x, at, is_guarded), t0)
                t1 = fma(slope_de, _guarded(slope_de, x, at + 1, is_guarded), t1)
                t2 = fma(slope_de, _guarded(slope_de, x, at + 2, is_guarded), t2)
                t3 = fma(slope_de, _guarded(slope_de, x, at + 3, is_guarded), t3)
            at = first + d * length + lane
            store(shares, at, load(piece, shares, at) + t0)
            store(shares, at + length, load(piece, shares, at + length) + t1)
            store(shares, at + 2 * length, load(piece, shares, at + 2 * length) + t2)
            store(shares, at + 3 * length, load(piece, shares, at + 3 * length) + t3)
    for d in range(n_whole, n_features):
        share = splat(tile, 0.0)
        for e in range(batch.begin, batch.end):
            at = (first_x + element(x_row, e)) * n_features + d
            slope_de = load(tile, slopes_de, (e - batch.begin) * tile.lanes)
            share = fma(slope_de, _guarded(slope_de, x, at, is_guarded), share)
        at = first + d * length
        store(shares, at, load(tile, shares, at) + share)


@inline
def _guarded(slope_de: Vector, x: Floats, at: Index, is_guarded: bool) -> Vector:
    """A feature of an edge; of one that a head does not use, it may be NaN, but counts for nothing."""
    value = broadcast(slope_de, x, at)
    if is_guarded:
        nothing = splat(slope_de, 0.0)
        value = select(slope_de == nothing, nothing, value)
    return value


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
    line, n_lanes = vectors.line, vectors.line.lanes
    d_x, n_features = d_edges.d_x, edges.n_features
    by_lane, x_row = d_edges.by_lane, edge_list.x_row
    n = batch.end - batch.begin
    n_rows = vectors.lines.lanes // n_lanes
    for i in range(0, n, n_rows):
        for d in range(0, n_features, n_lanes):
            _write_lines(vectors, slopes_de, i, by_lane, column, n_features, d, total)
            for k in range(i, min(i + n_rows, n)):
                at = (place.first_x + element(x_row, batch.begin + k)) * n_features
                if d + n_lanes <= n_features:
                    shares = load(line, total, (k - i) * n_lanes)
                    if column > 0:
                        shares = load(line, d_x, at + d) + shares
                    store(d_x, at + d, shares)
                else:
                    for j in range(d, n_features):
                        share = total[(k - i) * n_lanes + j - d]
                        d_x[at + j] = d_x[at + j] + share if column > 0 else share


@inline
def _write_lines(
    vectors: VectorClasses,
    slopes_de: Floats,
    first: Index,
    by_lane: Floats,
    column: Index,
    n_features: Index,
    d: Index,
    total: Floats,
) -> None:
    """Write a line of the gradient of the features of some edges, `first` and on, to `total`.

    Rows of edges behind the batch have been left from before: nobody reads what comes of them.
    """
    line, lines, n_lanes = vectors.line, vectors.lines, vectors.tile.lanes
    length = (n_features + line.lanes - 1) // line.lanes * line.lanes
    sums, at = splat(lines, 0.0), first * n_lanes
    for lane in range(n_lanes):
        w = repeat(lines, load(line, by_lane, (column + lane) * length + d))
        sums = fma(w, broadcast_each(lines, line, slopes_de, at + lane, n_lanes), sums)
    store(total, 0, sums)
