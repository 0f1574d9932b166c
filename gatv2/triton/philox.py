"""Dropout in Triton: the keep factors of `gatv2.random.keep_mask`, drawn where they are needed.

Triton's own `philox` is Philox4x32-10, bit for bit that of `gatv2.random`.
"""

import triton
import triton.language as tl

from gatv2.triton.arguments import Problem
from gatv2.triton.rows import Rows, Tile, multiplicity_of


@triton.jit
def keep_factors(
    seed: tl.tensor,
    query: tl.tensor,
    key: tl.tensor,
    multiplicity: tl.tensor,
    batch: tl.tensor,
    threshold: tl.tensor,
    factor: tl.tensor,
    shape: tl.constexpr,
) -> tl.tensor:
    """The factor of each coefficient, zero or `factor`, as `[edges, rows, heads, 1]`.

    Args:
        seed: int64.
        query: index of each edge's query in its own graph, `[edges * rows]`, as are the next three.
        key: index of its key.
        multiplicity: 0 for the first of parallel edges, and so on.
        batch: index of its graph.
        threshold: a coefficient with a word below it is dropped.
        factor: of what is kept.
        shape: see `gatv2.triton.arguments.Shape`.
    """
    # a counter gives four words, which serve four heads
    n_counters: tl.constexpr = max(shape.heads // 4, 1)
    n_words: tl.constexpr = (shape.n_heads + 3) // 4
    n_edges: tl.constexpr = query.shape[0] // shape.rows
    counter = batch[:, None] * n_words + tl.arange(0, n_counters)[None, :]
    zero = tl.zeros_like(counter).to(tl.uint32)
    w0, w1, w2, w3 = tl.philox(
        seed,
        query[:, None].to(tl.uint32) + zero,
        key[:, None].to(tl.uint32) + zero,
        multiplicity[:, None].to(tl.uint32) + zero,
        counter.to(tl.uint32),
    )
    if shape.heads == 1:
        words = w0
    elif shape.heads == 2:
        words = tl.join(w0, w1)
    else:
        words = tl.join(tl.join(w0, w2), tl.join(w1, w3))
    words = tl.reshape(words, [n_edges, shape.rows, shape.heads, 1])
    return tl.where(words >= threshold, tl.full([1, 1, 1, 1], factor, shape.accumulator), 0.0)


@triton.jit
def keep_of(tile: Tile, rows: Rows, problem: Problem, shape: tl.constexpr) -> tl.tensor:
    """The keep factors of a tile's coefficients, as `[edges, rows, heads, 1]`."""
    graph, sizes = problem.graph, problem.graph.sizes
    block = tile.query // sizes.block_queries
    if graph.dropout.query_id is None:
        query, key = tile.query - block * sizes.block_queries, tile.key - block * sizes.block_keys
    else:
        query = tl.load(graph.dropout.query_id + tile.query, mask=tile.is_used, other=0)
        key = tl.load(graph.dropout.key_id + tile.key, mask=tile.is_used, other=0)
    return keep_factors(
        tl.load(graph.dropout.seed),
        query,
        key,
        multiplicity_of(tile, rows, graph.order, shape),
        problem.copy % sizes.n_batches + block,  # one of the two is zero
        problem.threshold,
        problem.factor,
        shape,
    )
