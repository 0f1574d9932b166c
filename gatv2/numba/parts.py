"""Parts of a graph's queries, which the backward pass works off over edges and over keys in turn.

What its first pass leaves for the second one, 70 bytes an edge, is then still in cache, and scratch is
that of one part.
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from gatv2.numba.arguments import Index, Integers, Plain
from gatv2.numba.compile import inline, kernel
from gatv2.numba.memory import Array, empty
from gatv2.numba.rows import rows_of
from gatv2.numba.simd import element
from gatv2.numba.team import share_out
from gatv2.numba.threads import Chunks, first_row, next_chunk, run_chunks

PART_BYTES = 1 << 23
"""That a part leaves for its second pass."""
_LEAST_EDGES = 8
"""Of a key in a part: with fewer, to add to its gradient takes longer than is saved."""
_LEAST_PARTS = 3
"""With fewer, to cut takes longer than is saved."""
_LEAST_CHUNKS = 16
"""Of a part, so that threads share them out evenly."""


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
    chunk = np.arange(n_parts + 1) * n_chunks // n_parts
    row = np.empty_like(chunk)
    _first_rows(query_ptr, chunk, n_chunks, row)
    edge = query_ptr[row]
    ptr = np.zeros((n_parts, key_ptr.size), key_ptr.dtype)
    cut_edges, cut_queries = (empty(edges.shape, edges.dtype) for _ in range(2))
    order, arguments = (key_ptr, edges, queries), (row, edge, ptr.ravel(), key_ptr.size)
    run_chunks(_count, n_threads, n_chunks, order, *arguments)
    np.cumsum(ptr, axis=1, out=ptr)
    if not np.array_equal(ptr[:, -1], np.diff(edge)):
        raise _of_other_edges()
    n_wrong = np.zeros(n_chunks, np.int64)
    run_chunks(_move, n_threads, n_chunks, order, *arguments, cut_edges, cut_queries, n_wrong)
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


@inline
def _end_of(queries: Integers, start: Index, stop: Index, end_query: Index) -> Index:
    """Where the edges of a key, which are sorted by query, come to a query that is not in a part."""
    while start < stop and element(queries, start) < end_query:
        start += 1
    return start


@kernel
def _count(
    chunks: Chunks, order: Plain, row: Integers, edge: Integers, ptr: Integers, width: Index
) -> None:
    """Write behind where each key stands in a part of `ptr` how many edges it has in it."""
    share_out(chunks)
    key_ptr, _, queries = order
    chunk = next_chunk(chunks)
    while chunk < chunks[1]:
        begin, end = rows_of(key_ptr, chunk, chunks)
        for j in range(begin, end):
            start = np.int64(key_ptr[j])
            for part in range(edge.size - 1):
                stop = _end_of(queries, start, np.int64(key_ptr[j + 1]), row[part + 1])
                ptr[part * width + j + 1] = stop - start
                start = stop
        chunk = next_chunk(chunks)


@kernel
def _move(
    chunks: Chunks,
    order: Plain,
    row: Integers,
    edge: Integers,
    ptr: Integers,
    width: Index,
    cut_edges: Integers,
    cut_queries: Integers,
    n_wrong: Integers,
) -> None:
    """Write the edges and queries of each part, by key, where `ptr` has them.

    Of each chunk, count the edges that are not of their part.
    """
    share_out(chunks)
    key_ptr, edges, queries = order
    chunk = next_chunk(chunks)
    while chunk < chunks[1]:
        begin, end = rows_of(key_ptr, chunk, chunks)
        for j in range(begin, end):
            i = np.int64(key_ptr[j])
            for part in range(edge.size - 1):
                first = np.int64(edge[part])
                n_edges = np.uint64(np.int64(edge[part + 1]) - first)
                for to in range(ptr[part * width + j], ptr[part * width + j + 1]):
                    number = np.int64(edges[i]) - first
                    n_wrong[chunk] += np.uint64(number) >= n_edges
                    cut_edges[first + to] = number
                    cut_queries[first + to] = queries[i]
                    i += 1
        chunk = next_chunk(chunks)
