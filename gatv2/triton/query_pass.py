"""The backward pass over queries: d_query, and of each query what the pass over keys needs of it.

With x = query_i + key_j, s_ij = 1 where x is positive, else the negative slope, and p before it is
divided by its sum,

    p_ij = exp(e_ij - lse_i),   dp_ij = keep_ij * (d_out_i . key_j) + d_alpha_ij
    delta_i = sum_j p dp / sum_j p - d_lse_i
    d_query_i = a * sum_j p (dp - delta_i) s / sum_j p
              = a * (sum_j p dp s - delta_i sum_j p s) / sum_j p

so one sweep over the edges makes all sums before delta is known, and leaves nothing of an edge. `lse` is
rounded: that p is divided by its own sum makes up for it.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from gatv2.triton.arguments import Cotangents, Features, Graph, Problem, QueryResults
from gatv2.triton.philox import keep_of
from gatv2.triton.rows import (
    Rows,
    count_blocks,
    count_parts,
    is_first_part,
    longest,
    rows_of,
    slot_of_part,
    tile_of,
)
from gatv2.triton.tiles import (
    empty_heads,
    empty_rows,
    heads_of,
    load_heads,
    load_rows,
    load_vector,
    pair_of,
    score,
    store_heads,
    store_rows,
)


class Sums(NamedTuple):
    """Over the edges of each row."""

    slopes: tl.tensor
    """Of p s."""
    d_slopes: tl.tensor
    """Of p dp s."""
    total: tl.tensor
    """Of p."""
    total_d: tl.tensor
    """Of p dp."""


@triton.jit(do_not_specialize=["graph"])
def query_kernel(
    features: Features,
    graph: Graph,
    cotangents: Cotangents,
    results: QueryResults,
    slope: "fp64",  # type: ignore[name-defined]  # noqa: F821
    threshold: "u32",  # type: ignore[name-defined]  # noqa: F821
    factor: "fp64",  # type: ignore[name-defined]  # noqa: F821
    shape: tl.constexpr,
) -> None:
    """Backward of a block of queries, or of parts of them."""
    order = graph.order
    n_blocks = count_blocks(order, shape)
    copy, block = (tl.program_id(0) // n_blocks).to(tl.int64), tl.program_id(0) % n_blocks
    slope = tl.full([1, 1, 1, 1], slope, shape.accumulator)
    attn = load_vector(features.attn, shape)
    problem = Problem(features, graph, attn, slope, threshold, factor, copy)
    rows = rows_of(block, order, shape)
    row = copy * graph.sizes.n_queries + rows.row
    sums = sum_edges(rows, row, problem, cotangents, shape)
    if order.window_rows is not None:
        slot = copy * order.n_slots + rows.slot
        store_rows(results.part_slopes, slot, rows.is_part, sums.slopes, shape)
        store_rows(results.part_d_slopes, slot, rows.is_part, sums.d_slopes, shape)
        store_heads(results.part_sums, 2 * slot, rows.is_part, sums.total, shape)
        store_heads(results.part_sums, 2 * slot + 1, rows.is_part, sums.total_d, shape)
    finish(sums, row, rows.is_whole, attn, cotangents, results, shape)


@triton.jit
def sum_edges(
    rows: Rows, row: tl.tensor, problem: Problem, cotangents: Cotangents, shape: tl.constexpr
) -> Sums:
    """Sum over the edges of each row."""
    features, graph, copy = problem.features, problem.graph, problem.copy
    has_edges = rows.stop > rows.start
    query = load_rows(features.query, row, has_edges, shape)
    d_out = load_rows(cotangents.d_out, row, has_edges, shape)
    lse = finite_lse(cotangents.lse, row, has_edges, shape)
    slopes, d_slopes = empty_rows(shape), empty_rows(shape)
    total, total_d = empty_heads(0.0, shape), empty_heads(0.0, shape)
    for begin in range(0, longest(rows), shape.edges):
        tile = tile_of(rows, begin, problem, shape)
        is_used, bias = heads_of(tile, problem, shape)
        at = copy * graph.sizes.n_keys + tile.key
        if cotangents.d_alpha is not None:
            edge = copy * graph.sizes.n_edges + tile.number
            d_alpha = load_heads(cotangents.d_alpha, edge, tile.is_used, 0.0, shape)
        key = load_rows(features.key, at, tile.is_used, shape)
        pair = pair_of(query, key, tile, problem, shape)
        p = tl.exp(score(pair, is_used, bias, problem.attn, problem.slope) - lse)
        d = tl.sum(d_out * key, axis=3, keep_dims=True)
        if graph.dropout.seed is not None:
            d *= keep_of(tile, rows, problem, shape)
        if cotangents.d_alpha is not None:
            d += d_alpha
        if shape.has_unused:  # what a head does not use may hold NaN
            d = tl.where(is_used, d, 0.0)
        total += tl.sum(p, axis=0, keep_dims=True)
        total_d += tl.sum(p * d, axis=0, keep_dims=True)
        weight = tl.where(pair > 0, p, p * problem.slope)
        slopes += tl.sum(weight, axis=0, keep_dims=True)
        d_slopes += tl.sum(weight * d, axis=0, keep_dims=True)
    return Sums(slopes, d_slopes, total, total_d)


@triton.jit
def finite_lse(
    pointer: tl.tensor, row: tl.tensor, is_there: tl.tensor, shape: tl.constexpr
) -> tl.tensor:
    """The log-sum-exp of each row and head, zero without edges."""
    lse = load_heads(pointer, row, is_there, 0.0, shape)
    return tl.where(lse > float("-inf"), lse, 0.0)


@triton.jit
def finish(
    sums: Sums,
    row: tl.tensor,
    is_there: tl.tensor,
    attn: tl.tensor,
    cotangents: Cotangents,
    results: QueryResults,
    shape: tl.constexpr,
) -> None:
    """Write the gradient of whole rows, and what the pass over keys reads of them."""
    total = sums.total
    inverse = tl.where(total == 0.0, 0.0, 1.0 / tl.where(total == 0.0, 1.0, total))
    delta = sums.total_d * inverse
    if cotangents.d_lse is not None:
        delta -= load_heads(cotangents.d_lse, row, is_there, 0.0, shape)
    d_query = attn * ((sums.d_slopes - delta * sums.slopes) * inverse)
    store_rows(results.d_query, row, is_there, d_query, shape)
    lse = finite_lse(cotangents.lse, row, is_there, shape)
    store_heads(cotangents.statistics, 3 * row, is_there, lse, shape)
    store_heads(cotangents.statistics, 3 * row + 1, is_there, inverse, shape)
    store_heads(cotangents.statistics, 3 * row + 2, is_there, delta, shape)


@triton.jit(do_not_specialize=["graph"])
def join_queries_kernel(
    features: Features,
    graph: Graph,
    cotangents: Cotangents,
    results: QueryResults,
    shape: tl.constexpr,
) -> None:
    """Join the parts of rows, in order."""
    order = graph.order
    n_blocks = order.n_slots // shape.rows
    copy, block = (tl.program_id(0) // n_blocks).to(tl.int64), tl.program_id(0) % n_blocks
    rows = rows_of(block, order, shape)
    slopes, d_slopes = empty_rows(shape), empty_rows(shape)
    total, total_d = empty_heads(0.0, shape), empty_heads(0.0, shape)
    for part in range(count_parts(rows, shape)):
        slot, is_there = slot_of_part(rows, part, shape)
        slot += copy * order.n_slots
        slopes += load_rows(results.part_slopes, slot, is_there, shape)
        d_slopes += load_rows(results.part_d_slopes, slot, is_there, shape)
        total += load_heads(results.part_sums, 2 * slot, is_there, 0.0, shape)
        total_d += load_heads(results.part_sums, 2 * slot + 1, is_there, 0.0, shape)
    sums = Sums(slopes, d_slopes, total, total_d)
    row = copy * graph.sizes.n_queries + rows.row
    attn = load_vector(features.attn, shape)
    finish(sums, row, is_first_part(rows), attn, cotangents, results, shape)
