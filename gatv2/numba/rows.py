"""Where things stand: the rows of a chunk, queries among all, tiles and edges in their arrays."""

import numpy as np

from gatv2.numba.arguments import (
    Block,
    Index,
    Integers,
    Layout,
    NodeIds,
    Place,
    Problem,
    Strip,
    VectorClasses,
)
from gatv2.numba.compile import inline
from gatv2.numba.simd import element
from gatv2.numba.threads import Chunks, first_row

AHEAD = 24  # edges between the prefetch of a row and its use
ROWS_AHEAD = 8  # queries between the prefetch of one and its use
BLOCK = 1024  # edges whose scores are held at once
STRIP = 32  # edges of several queries that are worked off together, at most


@inline
def rows_of(ptr: Integers, chunk: Index, chunks: Chunks) -> tuple[Index, Index]:
    """Where the rows of a chunk of a CSR begin and end; the chunks of each feature set are the same."""
    n_chunks = chunks[2]
    part = chunk % n_chunks
    return first_row(ptr, part, n_chunks), first_row(ptr, part + 1, n_chunks)


@inline
def place_of(
    problem: Problem,
    node_ids: NodeIds | None,
    copy: Index,
    i: Index,
    first_edge: Index,
    start: Index,
    stop: Index,
) -> Place:
    """Where query `i` of feature set `copy` stands, whose edges go from `start` to `stop`.

    Args:
        problem: the call.
        node_ids: numbers of the nodes for dropout; None if they are the positions.
        copy: number of the feature set.
        i: number of the query in it.
        first_edge: where edge 0 stands in what has a row for each edge.
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
        first_edge,
        copy * problem.n_edge_rows,
        i - block * problem.block_queries if node_ids is None else element(node_ids.query, i),
        block * problem.block_keys,
        batch * problem.n_counters,
    )


@inline
def strip_of(
    problem: Problem,
    node_ids: NodeIds | None,
    copy: Index,
    ptr: Integers,
    first_query: Index,
    i: Index,
    stop: Index,
    first_edge: Index,
) -> Strip:
    """The strip that starts with query `first_query + i` of feature set `copy`.

    Args:
        problem: the call.
        node_ids: numbers of the nodes for dropout; None if they are the positions.
        copy: number of the feature set.
        ptr: where the edges of each query start, from `first_query` on.
        first_query: number of the first query of `ptr`.
        i: number of the strip's first query in `ptr`.
        stop: the query of `ptr` before which it ends.
        first_edge: where edge 0 stands in what has a row for each edge.
    """
    begin, end = element(ptr, i), element(ptr, i + 1)
    query = first_query + i
    place = place_of(problem, node_ids, copy, query, first_edge, begin, end)
    # the other queries of a block of a block-diagonal graph have their places beside the first one's
    stop = min(stop, i + problem.block_queries - query % problem.block_queries)
    n = 1
    while i + n < stop and element(ptr, i + n + 1) - begin <= STRIP:
        n += 1
    return Strip(place, query, i, n, begin, element(ptr, i + n))


@inline
def place_in(strip: Strip, ptr: Integers | None, node_ids: NodeIds | None, k: Index) -> Place:
    """Where query `k` of a strip stands; `ptr` is None for a strip of one."""
    place = strip.place
    if ptr is None:
        return place
    return Place(
        place.row + k,
        element(ptr, strip.first + k),
        element(ptr, strip.first + k + 1),
        place.first_key,
        place.first_edge,
        place.first_x,
        place.drop_query + k if node_ids is None else element(node_ids.query, strip.query + k),
        place.drop_key,
        place.drop_word,
    )


@inline
def n_blocks_of(strip: Strip) -> Index:
    """Number of the blocks that a strip is worked off in: one, unless it is of one long row."""
    return max((strip.end - strip.begin + BLOCK - 1) // BLOCK, 1)


@inline
def block_of(strip: Strip, group: Index, i: Index) -> Block:
    """Block `i` of a strip."""
    begin = strip.begin + i * BLOCK
    return Block(group, begin, min(begin + BLOCK, strip.end), begin)


@inline
def part_of(block: Block, place: Place) -> Block:
    """What of a block belongs to one of its queries."""
    begin, end = max(block.begin, place.start), min(block.end, place.stop)
    return Block(block.group, begin, end, block.first)


@inline
def length_of(vectors: VectorClasses, layout: Layout) -> Index:
    """Elements of a row of features."""
    return layout.n_groups * layout.span * vectors.tile.lanes


@inline
def column_of(
    vectors: VectorClasses, layout: Layout, row: Index, group: Index, part: Index
) -> Index:
    """Where a tile of a row of features starts."""
    in_row = (group * layout.span + part) * vectors.tile.lanes
    return row * length_of(vectors, layout) + in_row


@inline
def heads_at(vectors: VectorClasses, layout: Layout, row: Index, group: Index) -> Index:
    """Where a group starts in what has a number for each head: of a query, or of an edge."""
    return row * (layout.n_groups * vectors.heads.lanes) + group * vectors.heads.lanes


@inline
def weights_at(vectors: VectorClasses, layout: Layout, edge: Index, group: Index) -> Index:
    """Where a group starts in `PerEdge.weights`: keep * p, and a vector further on de."""
    lanes = 2 * vectors.heads.lanes
    return edge * (layout.n_groups * lanes) + group * lanes


@inline
def signs_at(
    vectors: VectorClasses, layout: Layout, edge: Index, group: Index, part: Index
) -> Index:
    """Where a tile starts in `PerEdge.signs`."""
    in_row = (group * layout.span + part) * vectors.tile.bytes
    return edge * (layout.n_groups * layout.span * vectors.tile.bytes) + in_row
