"""Parts of a graph's queries, which the backward pass works off over edges and over keys in turn.

What its first pass leaves for the second one, 70 bytes an edge, is then still in cache, and scratch is
that of one part.
"""

from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from gatv2.numba.arguments import Index, Integers, Plain, VectorClasses
from gatv2.numba.compile import inline, kernel
from gatv2.numba.memory import Array, empty
from gatv2.numba.rows import rows_of
from gatv2.numba.simd import bits_of, element, load, lowest_bit, splat, store
from gatv2.numba.team import share_out
from gatv2.numba.threads import Chunks, first_row, next_chunk, run_chunks
from gatv2.numba.vectors import Vectors

PART_BYTES = 1 << 23
"""That a part leaves for its second pass."""
_LEAST_EDGES = 8
"""Of a key in a part: with fewer, to add to its gradient takes longer than is saved."""
_LEAST_PARTS = 3
"""With fewer, to cut takes longer than is saved."""
_LEAST_CHUNKS = 16
"""Of a part, so that threads share them out evenly."""
_LANES = 16
"""Edges that are looked at together: as many as a key of a part often has."""


class Part(NamedTuple):
    """Queries, and their edges in both orders."""

    chunks: tuple[int, int] | None
    """The first of their chunks, and the one behind the last; None for all there are."""
    first_edge: int
    n_edges: int
    key_order: Plain
    """The elements of `gatv2.numba.arguments.KeyOrder`; edges count from the first one of the part."""


def count_parts(n_bytes: int, n_edges: int, n_keys: int, n_chunks: int) -> int:
    """Into how many parts to cut edges that leave so many bytes, of which some chunks are made."""
    of_key = n_edges // max(_LEAST_EDGES * n_keys, 1)
    n_parts = min(n_bytes // PART_BYTES, of_key, n_chunks // _LEAST_CHUNKS)
    return n_parts if n_parts >= _LEAST_PARTS else 1


def cut(
    n_parts: int, n_chunks: int, query_ptr: Array, key_order: Plain, n_threads: int
) -> list[Part]:
    """Cut a graph into parts.

    Args:
        n_parts: how many.
        n_chunks: chunks of its queries; a part has whole ones.
        query_ptr: where the edges of each query start.
        key_order: the elements of `gatv2.numba.arguments.KeyOrder`.
        n_threads: at most so many work.

    Raises:
        ValueError: the order of keys is that of other edges.
    """
    key_ptr, edges, queries = key_order
    vectors = _vectors(edges.dtype, queries.dtype)
    chunk = np.arange(n_parts + 1) * n_chunks // n_parts
    row = np.empty_like(chunk)
    _first_rows(query_ptr, chunk, n_chunks, row)
    edge = query_ptr[row]
    ptr = np.zeros((n_parts, key_ptr.size), key_ptr.dtype)
    part_ptr, width = ptr.ravel(), key_ptr.size
    run_chunks(_count, n_threads, n_chunks, vectors, key_order, edge, part_ptr, width)
    _sum_up(part_ptr, width)
    if not np.array_equal(ptr[:, -1], np.diff(edge)):
        raise _of_other_edges()
    cut_edges, cut_queries = empty(edges.shape, edges.dtype), empty(queries.shape, queries.dtype)
    n_wrong = np.zeros(n_chunks, np.int64)
    run_chunks(
        _move,
        n_threads,
        n_chunks,
        vectors,
        key_order,
        (row, edge),
        (part_ptr, cut_edges, cut_queries),
        width,
        n_wrong,
    )
    if n_wrong.any():
        raise _of_other_edges()
    ends = [slice(begin, end) for begin, end in pairwise(edge)]
    return [
        Part(
            (int(chunk[i]), int(chunk[i + 1])),
            int(edge[i]),
            int(edge[i + 1] - edge[i]),
            (ptr[i], cut_edges[ends[i]], cut_queries[ends[i]]),
        )
        for i in range(n_parts)
    ]


@lru_cache
def _vectors(edge: np.dtype[np.generic], query: np.dtype[np.generic]) -> Vectors:
    """Vectors of both dtypes, without a sign: one comparison tells whether a number is in a range."""

    def unsigned(dtype: np.dtype[np.generic]) -> tuple[type[np.generic], int]:
        return np.dtype(f"u{dtype.itemsize}").type, _LANES

    return Vectors(edge=unsigned(edge), query=unsigned(query))


def _of_other_edges() -> ValueError:
    return ValueError(
        "`by_key` of a graph is not the order of its edges, as it has been written to: `graph.check()` "
        "makes it anew"
    )


@kernel
def _first_rows(query_ptr: Integers, chunk: Integers, n_chunks: Index, row: Integers) -> None:
    """Write where chunks start."""
    for i in range(chunk.size):
        row[i] = first_row(query_ptr, chunk[i], n_chunks)


@kernel
def _count(
    chunks: Chunks,
    vectors: VectorClasses,
    order: Plain,
    edge: Integers,
    ptr: Integers,
    width: Index,
) -> None:
    """Write behind where each key stands in a part of `ptr` how many edges it has in it."""
    share_out(chunks)
    key_ptr, edges, _ = order
    chunk = next_chunk(chunks)
    while chunk < chunks[1]:
        begin, end = rows_of(key_ptr, chunk, chunks)
        for j in range(begin, end):
            start, stop = max(element(key_ptr, j), 0), min(element(key_ptr, j + 1), edges.size)
            for part in range(edge.size - 1):
                end_of_part = _end_of(vectors, edges, start, stop, element(edge, part + 1))
                ptr[part * width + j + 1] = end_of_part - start
                start = end_of_part
        chunk = next_chunk(chunks)


@inline
def _end_of(
    vectors: VectorClasses, edges: Integers, start: Index, stop: Index, end_edge: Index
) -> Index:
    """Where the edges of a key, which ascend, come to one that is not in a part."""
    lanes = vectors.edge.lanes
    while start < stop and start + lanes <= edges.size:
        n = lowest_bit(~bits_of(load(vectors.edge, edges, start) < splat(vectors.edge, end_edge)))
        if n < lanes:
            return min(start + n, stop)
        start += lanes
    start = min(start, stop)
    while start < stop and np.uint64(element(edges, start)) < np.uint64(end_edge):
        start += 1
    return start


@kernel
def _sum_up(ptr: Integers, width: Index) -> None:
    """Turn the numbers of edges of the keys of each part into where these start."""
    for part in range(0, ptr.size, width):
        total = 0
        for at in range(part, part + width):
            total += ptr[at]
            ptr[at] = total


@kernel
def _move(
    chunks: Chunks,
    vectors: VectorClasses,
    order: Plain,
    starts: Plain,
    parts: Plain,
    width: Index,
    n_wrong: Integers,
) -> None:
    """Write the edges and queries of each part, by key, where `ptr` has them.

    Of each chunk, count the edges and queries that are not of their part. What is behind the edges of a
    key is written with them, where the chunk's next keys are written later.
    """
    share_out(chunks)
    (key_ptr, edges, queries), (row, edge), (ptr, cut_edges, cut_queries) = order, starts, parts
    lanes = vectors.edge.lanes
    chunk = next_chunk(chunks)
    while chunk < chunks[1]:
        begin, end = rows_of(key_ptr, chunk, chunks)
        wrong: Index = 0
        for j in range(begin, end):
            i = max(element(key_ptr, j), 0)
            for part in range(edge.size - 1):
                first, first_query = element(edge, part), element(row, part)
                n_edges = element(edge, part + 1) - first
                n_queries = element(row, part + 1) - first_query
                own = part * width
                to, stop = element(ptr, own + j), element(ptr, own + j + 1)
                end_of_chunk = element(ptr, own + end)
                while to < stop:
                    if i + lanes <= edges.size and to + lanes <= end_of_chunk:
                        n = min(stop - to, lanes)
                        number = load(vectors.edge, edges, i) - splat(vectors.edge, first)
                        query = load(vectors.query, queries, i)
                        store(cut_edges, first + to, number)
                        store(cut_queries, first + to, query)
                        is_right = bits_of(number < splat(vectors.edge, n_edges)) & bits_of(
                            query - splat(vectors.query, first_query)
                            < splat(vectors.query, n_queries)
                        )
                        wrong += lowest_bit(~is_right) < n
                    else:
                        n = 1
                        number, query = element(edges, i) - first, element(queries, i)
                        cut_edges[first + to], cut_queries[first + to] = number, query
                        wrong += np.uint64(number) >= np.uint64(n_edges)
                        wrong += np.uint64(query - first_query) >= np.uint64(n_queries)
                    i += n
                    to += n
        n_wrong[chunk] = wrong
        chunk = next_chunk(chunks)
