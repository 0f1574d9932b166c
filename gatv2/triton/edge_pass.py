"""The backward pass over edges with features: their gradient, and that of their projection.

With the names of `gatv2.triton.key_pass`, and g_ij = a * de_ij s_ij, a row of heads and features,

    d_x_ij = W_e^T g_ij,   d_W_e = sum_ij g_ij x_ij^T

both products of matrices, once g of a tile of edges is known. Edges are taken in their order by query,
as many in each program: nothing is summed over a row, so hubs are nothing special here.
"""

import triton
import triton.language as tl

from gatv2.triton.arguments import Cotangents, EdgeResults, Features, Graph, Problem
from gatv2.triton.key_pass import statistics_of, weights_of
from gatv2.triton.rows import Rows, Tile, bounds, feature_rows, tile_of
from gatv2.triton.tiles import columns, heads_of, load_rows, load_vector, pair_of, score

WIDTH = tl.constexpr(16)
"""Edge features whose gradients a program makes; the least that a product of matrices takes."""


@triton.jit(do_not_specialize=["graph", "n_chunks"])
def edge_kernel(
    features: Features,
    graph: Graph,
    cotangents: Cotangents,
    results: EdgeResults,
    n_chunks: tl.tensor,
    slope: "fp64",  # type: ignore[name-defined]  # noqa: F821
    threshold: "u32",  # type: ignore[name-defined]  # noqa: F821
    factor: "fp64",  # type: ignore[name-defined]  # noqa: F821
    shape: tl.constexpr,
) -> None:
    """Backward of a chunk of edges, every `n_chunks`-th tile, through `WIDTH` of their features."""
    n_features = graph.sizes.n_features
    n_slices = tl.cdiv(n_features, WIDTH)
    first = tl.program_id(0) % n_slices * WIDTH
    chunk = tl.program_id(0) // n_slices % n_chunks
    copy = (tl.program_id(0) // n_slices // n_chunks).to(tl.int64)
    slope = tl.full([1, 1, 1, 1], slope, shape.accumulator)
    attn = load_vector(features.attn, shape)
    problem = Problem(features, graph, attn, slope, threshold, factor, copy)
    column, is_column = columns(shape)
    feature = first + tl.arange(0, WIDTH)
    is_feature = feature < n_features
    projection = tl.load(
        features.projection + column[:, None] + feature[None, :] * (shape.n_heads * shape.n_hidden),
        mask=is_column[:, None] & is_feature[None, :],
        other=0.0,
    ).to(shape.accumulator)
    d_projection = tl.full([shape.heads * shape.hidden, WIDTH], 0.0, shape.accumulator)
    for begin in range(chunk * shape.rows, graph.sizes.n_edges, n_chunks * shape.rows):
        rows = edges_as_rows(begin, graph, shape)
        tile = tile_of(rows, 0, problem, shape)
        g = slopes_of(tile, rows, problem, cotangents, shape)
        x_row = feature_rows(tile.number, rows.is_whole, graph.sizes.feature_step, problem)
        is_there = tile.is_used[:, None] & is_feature[None, :]
        at = x_row[:, None] * n_features + feature[None, :]
        x = tl.load(features.of_edges + at, mask=is_there, other=0.0).to(shape.accumulator)
        if shape.has_unused:  # 0 * NaN is not 0; where a head does use it, g is NaN
            x = tl.where(x - x == 0.0, x, 0.0)
        d_projection += tl.dot(tl.trans(g), x, input_precision="ieee", out_dtype=shape.accumulator)
        if results.d_features is not None:
            d_x = tl.dot(g, projection, input_precision="ieee", out_dtype=shape.accumulator)
            at += (copy * (graph.sizes.n_edges - graph.sizes.feature_step)) * n_features
            is_there = rows.is_whole[:, None] & is_feature[None, :]  # zero where it is not used
            tl.store(results.d_features + at, d_x, mask=is_there)
    share = (copy * n_chunks + chunk) * (shape.n_heads * shape.n_hidden)
    at = (share + column[:, None]) * n_features + feature[None, :]
    tl.store(results.d_projection + at, d_projection, mask=is_column[:, None] & is_feature[None, :])


@triton.jit
def edges_as_rows(begin: tl.tensor, graph: Graph, shape: tl.constexpr) -> Rows:
    """The edges from `begin` on, each as a row: that of its query, of which it is the one edge."""
    edge = begin + tl.arange(0, shape.rows)
    is_there = edge < graph.sizes.n_edges
    if graph.edges.query is None:
        row = (edge // graph.order.n_others).to(tl.int32)
    else:
        row = tl.load(graph.edges.query + edge, mask=is_there, other=0)
    first, end = bounds(graph.order, row, is_there)
    stop = edge + is_there.to(edge.dtype)
    return Rows(row, first, end, edge, stop, is_there, is_there, edge)


@triton.jit
def slopes_of(
    tile: Tile, rows: Rows, problem: Problem, cotangents: Cotangents, shape: tl.constexpr
) -> tl.tensor:
    """A * de * s of each edge, `[edges, heads * hidden]`."""
    features, sizes, copy = problem.features, problem.graph.sizes, problem.copy
    query_row, key_row = copy * sizes.n_queries + tile.query, copy * sizes.n_keys + tile.key
    statistics = statistics_of(query_row, tile, problem, cotangents, shape)
    query = load_rows(features.query, query_row, tile.is_used, shape)
    key = load_rows(features.key, key_row, tile.is_used, shape)
    d_out = load_rows(cotangents.d_out, query_row, tile.is_used, shape)
    is_used, bias = heads_of(tile, problem, shape)
    pair = pair_of(query, key, tile, problem, shape)
    scores = score(pair, is_used, bias, problem.attn, problem.slope)
    d = tl.sum(d_out * key, axis=3, keep_dims=True)
    _, de = weights_of(scores, d, statistics, tile, is_used, rows, problem, shape)
    g = problem.attn * tl.where(pair > 0, de, de * problem.slope)
    # of one edge, the sum is itself: from what is before it the compiler would take how a product is
    # laid out, which of a mask of bytes no product of float64 can be
    return tl.reshape(tl.sum(g, axis=0), [shape.rows, shape.heads * shape.hidden])
