"""The fused forward pass: a program has a block of queries, and gathers one key an edge.

Scores, an online softmax over tiles of edges, and the weighted sum while the keys are in registers: a
key is also the value, so that one load serves both.
"""

import triton
import triton.language as tl

from gatv2.triton.arguments import Features, ForwardResults, Graph, Problem
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


@triton.jit(do_not_specialize=["graph"])
def forward_kernel(
    features: Features,
    graph: Graph,
    results: ForwardResults,
    slope: "fp64",  # type: ignore[name-defined]  # noqa: F821
    threshold: "u32",  # type: ignore[name-defined]  # noqa: F821
    factor: "fp64",  # type: ignore[name-defined]  # noqa: F821
    shape: tl.constexpr,
) -> None:
    """Attention of a block of queries, or of parts of them."""
    order, sizes = graph.order, graph.sizes
    n_blocks = count_blocks(order, shape)
    copy, block = (tl.program_id(0) // n_blocks).to(tl.int64), tl.program_id(0) % n_blocks
    slope = tl.full([1, 1, 1, 1], slope, shape.accumulator)
    attn = load_vector(features.attn, shape)
    problem = Problem(features, graph, attn, slope, threshold, factor, copy)
    rows = rows_of(block, order, shape)
    values, largest, total = attend(rows, problem, results, shape)
    if order.window_rows is not None:
        slot = copy * order.n_slots + rows.slot
        store_rows(results.part_values, slot, rows.is_part, values, shape)
        store_heads(results.part_largest, slot, rows.is_part, largest, shape)
        store_heads(results.part_total, slot, rows.is_part, total, shape)
    row = copy * sizes.n_queries + rows.row
    finish(values, largest, total, row, rows.is_whole, results, shape)


@triton.jit
def attend(
    rows: Rows, problem: Problem, results: ForwardResults, shape: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """The sum of p times value, the largest score and the sum of p, where p = exp(score - largest)."""
    features, graph, copy = problem.features, problem.graph, problem.copy
    first_query, first_key = copy * graph.sizes.n_queries, copy * graph.sizes.n_keys
    query = load_rows(features.query, first_query + rows.row, rows.stop > rows.start, shape)
    largest, total = empty_heads(float("-inf"), shape), empty_heads(0.0, shape)
    values = empty_rows(shape)
    for begin in range(0, longest(rows), shape.edges):
        tile = tile_of(rows, begin, problem, shape)
        is_used, bias = heads_of(tile, problem, shape)
        key = load_rows(features.key, first_key + tile.key, tile.is_used, shape)
        scores = score(
            pair_of(query, key, tile, problem, shape), is_used, bias, problem.attn, problem.slope
        )
        if results.scores is not None:
            edge = copy * graph.sizes.n_edges + tile.number
            store_heads(results.scores, edge, tile.is_used, scores, shape)
        before = largest
        largest = tl.maximum(largest, tl.max(scores, axis=0, keep_dims=True))
        subtracted = tl.where(largest > float("-inf"), largest, 0.0)  # of no edges yet: no NaN
        rescale = tl.exp(before - subtracted)
        p = tl.exp(scores - subtracted)
        total = total * rescale + tl.sum(p, axis=0, keep_dims=True)
        if graph.dropout.seed is not None:
            p *= keep_of(tile, rows, problem, shape)
        if shape.has_unused:  # what a head does not use may hold NaN
            key = tl.where(is_used, key, 0.0)
        values = values * rescale + tl.sum(p * key, axis=0, keep_dims=True)
    return values, largest, total


@triton.jit
def finish(
    values: tl.tensor,
    largest: tl.tensor,
    total: tl.tensor,
    row: tl.tensor,
    is_there: tl.tensor,
    results: ForwardResults,
    shape: tl.constexpr,
) -> None:
    """Write the results of whole rows."""
    is_empty = total == 0.0
    largest, total = tl.where(is_empty, 0.0, largest), tl.where(is_empty, 1.0, total)
    store_rows(results.out, row, is_there, values / total, shape)
    lse = tl.where(is_empty, float("-inf"), largest + tl.log(total))
    store_heads(results.lse, row, is_there, lse, shape)
    if results.scores is not None:
        store_heads(results.largest, row, is_there, largest, shape)
        store_heads(results.total, row, is_there, total, shape)


@triton.jit(do_not_specialize=["graph"])
def join_kernel(graph: Graph, results: ForwardResults, shape: tl.constexpr) -> None:
    """Join the parts of rows, in order, as tiles of edges are joined."""
    order = graph.order
    n_blocks = order.n_slots // shape.rows
    copy, block = (tl.program_id(0) // n_blocks).to(tl.int64), tl.program_id(0) % n_blocks
    rows = rows_of(block, order, shape)
    largest, total = empty_heads(float("-inf"), shape), empty_heads(0.0, shape)
    values = empty_rows(shape)
    for part in range(count_parts(rows, shape)):
        slot, is_there = slot_of_part(rows, part, shape)
        slot += copy * order.n_slots
        before = largest
        part_largest = load_heads(results.part_largest, slot, is_there, float("-inf"), shape)
        largest = tl.maximum(largest, part_largest)
        subtracted = tl.where(largest > float("-inf"), largest, 0.0)
        rescale, weight = tl.exp(before - subtracted), tl.exp(part_largest - subtracted)
        part_total = load_heads(results.part_total, slot, is_there, 0.0, shape)
        part_values = load_rows(results.part_values, slot, is_there, shape)
        total = total * rescale + part_total * weight
        values = values * rescale + part_values * weight
    row = copy * graph.sizes.n_queries + rows.row
    finish(values, largest, total, row, is_first_part(rows), results, shape)
