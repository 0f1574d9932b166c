"""The backward pass over keys: d_key and d_attn.

With the names of `gatv2.triton.query_pass`, and p and delta as that pass left them,

    de_ij = p_ij (dp_ij - delta_i)
    d_key_j = sum_i keep_ij p_ij d_out_i + a * sum_i de_ij s_ij
    d_attn = sum_ij de_ij LeakyReLU(x_ij)

Scores are computed again: an edge costs two gathered rows, and nothing of an edge is ever written, but
for the gradient of a bias of the scores, de.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from gatv2.triton.arguments import Cotangents, Features, Graph, KeyResults, Problem
from gatv2.triton.philox import keep_of
from gatv2.triton.rows import (
    Rows,
    Tile,
    count_blocks,
    count_parts,
    is_first_part,
    longest,
    rows_of,
    slot_of_part,
    tile_of,
)
from gatv2.triton.tiles import (
    empty_rows,
    heads_of,
    leaky_relu,
    load_heads,
    load_rows,
    load_vector,
    pair_of,
    score,
    store_d_bias,
    store_rows,
)


class Statistics(NamedTuple):
    """Of the queries of a tile's edges, each `[edges, rows, heads, 1]`."""

    lse: tl.tensor
    inverse: tl.tensor
    """1 / the sum of p."""
    delta: tl.tensor
    d_alpha: tl.tensor
    """Of the edges themselves; None if it is zero."""


@triton.jit(do_not_specialize=["graph", "n_chunks"])
def key_kernel(
    features: Features,
    graph: Graph,
    cotangents: Cotangents,
    results: KeyResults,
    n_chunks: tl.tensor,
    slope: "fp64",  # type: ignore[name-defined]  # noqa: F821
    threshold: "u32",  # type: ignore[name-defined]  # noqa: F821
    factor: "fp64",  # type: ignore[name-defined]  # noqa: F821
    shape: tl.constexpr,
) -> None:
    """Backward of a chunk of keys: every `n_chunks`-th block of them, or of parts of them.

    Of d_attn each row of a chunk's tile has a share, and there are not more chunks than fill a GPU some
    times over: one a block would take as much memory as d_key.
    """
    order, sizes = graph.order, graph.sizes
    copy, chunk = (tl.program_id(0) // n_chunks).to(tl.int64), tl.program_id(0) % n_chunks
    slope = tl.full([1, 1, 1, 1], slope, shape.accumulator)
    attn = load_vector(features.attn, shape)
    problem = Problem(features, graph, attn, slope, threshold, factor, copy)
    d_attn = empty_rows(shape)
    for block in range(chunk, count_blocks(order, shape), n_chunks):
        rows = rows_of(block, order, shape)
        row = copy * sizes.n_keys + rows.row
        d_key, d_attn = add_edges(rows, row, problem, cotangents, results, d_attn, shape)
        if order.window_rows is not None:
            slot = copy * order.n_slots + rows.slot
            store_rows(results.part_d_key, slot, rows.is_part, d_key, shape)
        store_rows(results.d_key, row, rows.is_whole, d_key, shape)
    share = (copy * n_chunks + chunk) * shape.rows + tl.arange(0, shape.rows)
    store_rows(results.d_attn, share, share >= 0, d_attn, shape)


@triton.jit(do_not_specialize=["graph"])
def join_keys_kernel(graph: Graph, results: KeyResults, shape: tl.constexpr) -> None:
    """Join the parts of rows, in order."""
    order = graph.order
    n_blocks = order.n_slots // shape.rows
    copy, block = (tl.program_id(0) // n_blocks).to(tl.int64), tl.program_id(0) % n_blocks
    rows = rows_of(block, order, shape)
    d_key = empty_rows(shape)
    for part in range(count_parts(rows, shape)):
        slot, is_there = slot_of_part(rows, part, shape)
        d_key += load_rows(results.part_d_key, copy * order.n_slots + slot, is_there, shape)
    row = copy * graph.sizes.n_keys + rows.row
    store_rows(results.d_key, row, is_first_part(rows), d_key, shape)


@triton.jit
def add_edges(
    rows: Rows,
    row: tl.tensor,
    problem: Problem,
    cotangents: Cotangents,
    results: KeyResults,
    d_attn: tl.tensor,
    shape: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """The gradient of each key, of the edges of its row, and `d_attn` with their share.

    That of a bias is written.
    """
    features, copy = problem.features, problem.copy
    key = load_rows(features.key, row, rows.stop > rows.start, shape)
    values, slopes = empty_rows(shape), empty_rows(shape)
    for begin in range(0, longest(rows), shape.edges):
        tile = tile_of(rows, begin, problem, shape)
        is_used, bias = heads_of(tile, problem, shape)
        at = copy * problem.graph.sizes.n_queries + tile.query
        statistics = statistics_of(at, tile, problem, cotangents, shape)
        query = load_rows(features.query, at, tile.is_used, shape)
        d_out = load_rows(cotangents.d_out, at, tile.is_used, shape)
        pair = pair_of(query, key, tile, problem, shape)
        if shape.has_unused:  # what a head does not use may hold NaN
            pair = tl.where(is_used, pair, 0.0)
        d = tl.sum(d_out * key, axis=3, keep_dims=True)
        scores = score(pair, is_used, bias, problem.attn, problem.slope)
        kept, de = weights_of(scores, d, statistics, tile, is_used, rows, problem, shape)
        if results.d_bias is not None:
            store_d_bias(results.d_bias, tile, de, problem, shape)
        values += tl.sum(kept * d_out, axis=0, keep_dims=True)
        slopes += tl.sum(tl.where(pair > 0, de, de * problem.slope), axis=0, keep_dims=True)
        d_attn += tl.sum(de * leaky_relu(pair, problem.slope), axis=0, keep_dims=True)
    return values + problem.attn * slopes, d_attn


@triton.jit
def statistics_of(
    query_row: tl.tensor, tile: Tile, problem: Problem, cotangents: Cotangents, shape: tl.constexpr
) -> Statistics:
    """What is known of the queries of a tile's edges, and the cotangent of their coefficients."""
    is_used, pointer = tile.is_used, cotangents.statistics
    d_alpha = None
    if cotangents.d_alpha is not None:
        edge = problem.copy * problem.graph.sizes.n_edges + tile.number
        d_alpha = load_heads(cotangents.d_alpha, edge, is_used, 0.0, shape)
    return Statistics(
        load_heads(pointer, 3 * query_row, is_used, 0.0, shape),
        load_heads(pointer, 3 * query_row + 1, is_used, 0.0, shape),
        load_heads(pointer, 3 * query_row + 2, is_used, 0.0, shape),
        d_alpha,
    )


@triton.jit
def weights_of(
    scores: tl.tensor,
    d: tl.tensor,
    statistics: Statistics,
    tile: Tile,
    is_used: tl.tensor,
    rows: Rows,
    problem: Problem,
    shape: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Keep * p and de of a tile's edges, of their scores and d_out . key."""
    p = tl.exp(scores - statistics.lse) * statistics.inverse
    kept = p
    if problem.graph.dropout.seed is not None:
        keep = keep_of(tile, rows, problem, shape)
        kept, d = p * keep, d * keep
    if statistics.d_alpha is not None:
        d += statistics.d_alpha
    if shape.has_unused:  # what a head does not use may hold NaN
        d = tl.where(is_used, d, 0.0)
    de = p * (d - statistics.delta)
    if shape.has_unused:  # NaN of the row is not that of an edge that a head does not use
        kept, de = tl.where(is_used, kept, 0.0), tl.where(is_used, de, 0.0)
    return kept, de
