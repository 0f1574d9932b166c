"""Where things stand: the rows of a chunk, a query among all, tiles and edges in their arrays."""

import numpy as np

from gatv2.numba.arguments import Index, Integers, Layout, NodeIds, Place, Problem, VectorClasses
from gatv2.numba.compile import inline
from gatv2.numba.threads import Chunks, first_row

AHEAD = 24  # edges between the prefetch of a row and its use


@inline
def rows_of(ptr: Integers, chunk: Index, chunks: Chunks) -> range:
    """The rows of a chunk of a CSR; the chunks of each feature set are the same."""
    n_chunks = chunks[2]
    part = chunk % n_chunks
    return range(first_row(ptr, part, n_chunks), first_row(ptr, part + 1, n_chunks))


@inline
def place_of(
    problem: Problem,
    node_ids: NodeIds | None,
    copy: Index,
    i: Index,
    n_edges: Index,
    start: Index,
    stop: Index,
) -> Place:
    """Where query `i` of feature set `copy` stands, whose edges go from `start` to `stop`.

    Args:
        problem: the call.
        node_ids: numbers of the nodes for dropout; None if they are the positions.
        copy: number of the feature set.
        i: number of the query in it.
        n_edges: edges of a feature set.
        start: the query's first edge.
        stop: end of its edges.
    """
    block = i // problem.block_queries if problem.block_queries < problem.n_queries else 0
    batch = copy % problem.n_batches + block  # one of the two is zero
    return Place(
        copy * problem.n_queries + i,
        np.int64(start),
        np.int64(stop),
        copy * problem.n_keys,
        copy * n_edges,
        copy * problem.n_edge_rows,
        i - block * problem.block_queries if node_ids is None else node_ids.query[i],
        block * problem.block_keys,
        batch * problem.n_counters,
    )


@inline
def length_of(vectors: VectorClasses, layout: Layout) -> Index:
    """Elements of a row of features."""
    return layout.n_groups * layout.span * vectors.tile.lanes


@inline
def column_of(
    vectors: VectorClasses, layout: Layout, row: Index, group: Index, part: Index
) -> Index:
    """Where a tile of a row of features starts."""
    return ((row * layout.n_groups + group) * layout.span + part) * vectors.tile.lanes


@inline
def heads_at(vectors: VectorClasses, layout: Layout, row: Index, group: Index) -> Index:
    """Where a group starts in what has a number for each head: of a query, or of an edge."""
    return (row * layout.n_groups + group) * vectors.heads.lanes


@inline
def weights_at(vectors: VectorClasses, layout: Layout, edge: Index, group: Index) -> Index:
    """Where a group starts in `PerEdge.weights`: keep * p, and a vector further on de."""
    return (edge * layout.n_groups + group) * 2 * vectors.heads.lanes


@inline
def signs_at(
    vectors: VectorClasses, layout: Layout, edge: Index, group: Index, part: Index
) -> Index:
    """Where a tile starts in `PerEdge.signs`."""
    return ((edge * layout.n_groups + group) * layout.span + part) * vectors.tile.bytes
