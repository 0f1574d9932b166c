"""Counting sort of a graph's edges, by query and by key: O(edges), and no larger index than needed."""

from typing import Any

import numpy as np

from gatv2.numba.arguments import Index, Integers, Plain
from gatv2.numba.compile import inline, kernel
from gatv2.numba.memory import Array, empty
from gatv2.numba.team import runtime, share_out
from gatv2.numba.threads import Chunks, next_chunk, run_chunks

LARGE = 1 << 14
"""Edges: to sort them takes longer than to wake a team."""


def sort_edges(
    query: Array, key: Array, n_queries: int, n_keys: int
) -> tuple[Array, Array, Array, Array]:
    """Sort edges by (query, key), stably.

    Beside the results it needs the memory of one of them.

    Args:
        query: `[n_edges]`, any integers, values in [0, n_queries).
        key: `[n_edges]`, likewise in [0, n_keys).
        n_queries: number of queries.
        n_keys: number of keys.

    Returns:
        `query_ptr`, `key_index`, `query_index` and `edge_id` of a `gatv2.Graph`.

    Raises:
        IndexError: an index is out of range. Indices are read once, so that what another thread writes
            to them meanwhile changes the graph, but nothing else.

    Example:
        >>> query, key = np.array([2, 0, 0]), np.array([0, 1, 0])
        >>> [x.tolist() for x in sort_edges(query, key, n_queries=3, n_keys=2)]
        [[0, 2, 2, 3], [0, 1, 0], [0, 0, 2], [2, 1, 0]]
    """
    n_edges, dtype = query.size, _dtype(query.size, n_queries, n_keys)
    query_ptr, key_ptr = np.zeros(n_queries + 1, dtype), np.zeros(n_keys + 1, dtype)
    key_index, query_index, edge_id, own_key = _empty(4, n_edges, dtype)
    edges = query_ptr, key_index, query_index, edge_id
    _require_inside(_sort_edges(query, key, key_ptr, own_key, edges), n_queries, n_keys)
    return edges


def sort_both_ways(
    query: Array, key: Array, n_queries: int, n_keys: int, n_threads: int = 1
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """Sort edges by (query, key) and by (key, query), on two threads or on one.

    Side by side they need the memory of two of the results, beside these; else nothing.

    Returns:
        `query_ptr`, `key_index`, `query_index` and `edge_id` of a `gatv2.Graph`; `ptr`, `edge` and
        `query` of its `gatv2.graph.KeyOrder`.

    Raises:
        IndexError: as :func:`sort_edges`.

    Example:
        >>> query, key = np.array([2, 0, 0]), np.array([0, 1, 0])
        >>> edges, by_key = sort_both_ways(query, key, n_queries=3, n_keys=2)
        >>> [x.tolist() for x in edges]
        [[0, 2, 2, 3], [0, 1, 0], [0, 0, 2], [2, 1, 0]]
        >>> [x.tolist() for x in by_key]
        [[0, 2, 3], [0, 2, 1], [0, 2, 0]]
    """
    n_edges, dtype = query.size, _dtype(query.size, n_queries, n_keys)
    query_ptr, key_ptr = np.zeros(n_queries + 1, dtype), np.zeros(n_keys + 1, dtype)
    key_index, query_index, edge_id, edge, query_by_key = _empty(5, n_edges, dtype)
    edges, by_key = (query_ptr, key_index, query_index, edge_id), (key_ptr, edge, query_by_key)
    if n_threads > 1 and n_edges >= LARGE and runtime().parallel:
        outside = _sort_side_by_side(query, key, edges, by_key, n_threads)
    else:
        outside = _sort_both_ways(query, key, edges, by_key)
    _require_inside(outside, n_queries, n_keys)
    return edges, by_key


def _sort_side_by_side(
    query: Array, key: Array, edges: tuple[Array, ...], by_key: tuple[Array, ...], n_threads: int
) -> int:
    """As `_sort_both_ways`: each thread makes one order, by itself, from the edges as they came.

    To make one of the other is less work, but nothing that two threads could share out: what they write
    to random places of one array is never in the cache of the one that needs it next.
    """
    (query_ptr, key_index, *_), dtype = edges, edges[0].dtype
    own = np.empty(key_index.shape, dtype), np.empty(key_index.shape, dtype)
    outside = np.empty(2, np.int64)
    run_chunks(_read_rows, n_threads, 2, query, key, own, edges, by_key, outside)
    if outside.max() >= 0:
        return int(outside[outside >= 0].min())
    most = max(query_ptr.size, by_key[0].size)
    ends = np.empty(query_ptr.size, dtype), np.empty(most, dtype)
    run_chunks(_sort_rows, n_threads, 2, own, ends, edges, by_key)
    return -1


def _empty(
    n_arrays: int, n_edges: int, dtype: type[np.generic] | np.dtype[np.generic]
) -> list[Array]:
    """Arrays of a number for each edge; large ones start with a cache line: JAX copies others."""
    make = np.empty if n_edges < LARGE else empty
    return [make((n_edges,), dtype) for _ in range(n_arrays)]


def _dtype(n_edges: int, n_queries: int, n_keys: int) -> type[np.signedinteger[Any]]:
    """The smallest that holds every index and count."""
    return np.int32 if max(n_edges, n_queries, n_keys) < 2**31 else np.int64


def _require_inside(outside: int, n_queries: int, n_keys: int) -> None:
    if outside >= 0:
        raise IndexError(
            f"edge {outside} is out of range: queries must lie in [0, {n_queries}), "
            f"keys in [0, {n_keys})"
        )


def transpose(query_ptr: Array, key_index: Array, n_keys: int) -> tuple[Array, Array, Array]:
    """Sort edges, which are sorted by (query, key), by (key, query), stably.

    Returns:
        `ptr`, `edge` and `query` of a `gatv2.graph.KeyOrder`.

    Raises:
        ValueError: pointers do not ascend from 0 to the number of edges, or a key is out of range.

    Example:
        >>> [x.tolist() for x in transpose(np.array([0, 2, 2, 3]), np.array([0, 1, 0]), 2)]
        [[0, 2, 3], [0, 2, 1], [0, 2, 0]]
    """
    ptr = np.zeros(n_keys + 1, key_index.dtype)
    edge, query = _empty(2, key_index.size, key_index.dtype)
    if not _transpose(query_ptr, key_index, ptr, edge, query):
        raise ValueError(
            f"not a graph: `query_ptr` must ascend from 0 to {key_index.size}, and `key_index` must lie "
            f"in [0, {n_keys})"
        )
    return ptr, edge, query


@inline
def to_starts(counts: Integers) -> None:
    """Turn counts into where each bucket starts."""
    total = 0
    for i in range(counts.size):
        count = counts[i]
        counts[i] = total
        total += count


@inline
def _rewind(ends: Integers) -> None:
    """Turn where each bucket ends, but for the last number, into where it starts."""
    for i in range(ends.size - 1, 0, -1):
        ends[i] = ends[i - 1]
    ends[0] = 0


# Indices are unsigned here: Numba counts negative ones from the end, which takes time, and what is
# negative becomes too large, so that one comparison tells whether an index is in range.


@kernel
def _sort_edges(
    query: Integers, key: Integers, key_ptr: Integers, own_key: Integers, edges: Plain
) -> Index:
    """Fill the last arrays; the number of the first edge that is out of range, or -1.

    Pointers are zero at first. Those of keys are left behind, too.
    """
    query_ptr, key_index, query_index, edge_id = edges
    return _by_query(query, key, key_ptr, own_key, query_ptr, key_index, query_index, edge_id)


@kernel
def _sort_both_ways(query: Integers, key: Integers, edges: Plain, by_key: Plain) -> Index:
    """Fill the last two; otherwise as `_sort_edges`."""
    (query_ptr, key_index, query_index, edge_id), (key_ptr, edge, query_by_key) = edges, by_key
    outside = _by_query(query, key, key_ptr, edge, query_ptr, key_index, query_index, edge_id)
    if outside >= 0:
        return outside
    place_of = query_by_key  # until there is what belongs there
    for position in range(edge.size):
        j = np.uint64(key_index[position])
        place_of[position] = key_ptr[j]
        key_ptr[j] += 1
    _rewind(key_ptr)
    for position in range(edge.size):
        edge[np.uint64(place_of[position])] = position
    _look_up(query_index, edge, query_by_key)
    return -1


@inline
def _by_query(
    query: Integers,
    key: Integers,
    key_ptr: Integers,
    own_key: Integers,
    query_ptr: Integers,
    key_index: Integers,
    query_index: Integers,
    edge_id: Integers,
) -> Index:
    """What `_sort_edges` says."""
    # until there is what belongs there
    own_query, by_key, rank = query_index, key_index, edge_id
    n_queries, n_keys = np.uint64(query_ptr.size - 1), np.uint64(key_ptr.size - 1)
    for e in range(query.size):
        i, j = np.uint64(query[e]), np.uint64(key[e])
        if i >= n_queries or j >= n_keys:
            return e
        own_query[e] = i
        own_key[e] = j
        rank[e] = key_ptr[j]
        query_ptr[i] += 1
        key_ptr[j] += 1
    to_starts(query_ptr)
    to_starts(key_ptr)
    _sort(own_key, key_ptr, by_key, own_query, query_ptr, edge_id)
    _rewind(query_ptr)
    _look_up(own_key, edge_id, key_index)
    _copy(own_query, own_key)
    _look_up(own_key, edge_id, query_index)
    return -1


@kernel
def _read_rows(
    chunks: Chunks,
    query: Integers,
    key: Integers,
    own: Plain,
    edges: Plain,
    by_key: Plain,
    outside: Integers,
) -> None:
    """The first half of `_sort_side_by_side`: own copies of rows, and where each node's edges start."""
    share_out(chunks)
    chunk = next_chunk(chunks)
    while chunk < chunks[1]:
        if chunk == 0:
            outside[0] = _read(query, edges[0], own[0], by_key[1])
        else:
            outside[1] = _read(key, by_key[0], own[1], edges[3])
        chunk = next_chunk(chunks)


@kernel
def _sort_rows(chunks: Chunks, own: Plain, ends: Plain, edges: Plain, by_key: Plain) -> None:
    """The second half."""
    share_out(chunks)
    chunk = next_chunk(chunks)
    while chunk < chunks[1]:
        if chunk == 0:
            _sort_by_query(own, ends, edges, by_key)
        else:
            _sort_by_key(own, ends, edges, by_key)
        chunk = next_chunk(chunks)


@inline
def _sort_by_query(own: Plain, ends: Plain, edges: Plain, by_key: Plain) -> None:
    (own_query, own_key), (query_ptr, key_index, query_index, edge_id) = own, edges
    _copy(query_ptr, ends[0])
    _sort(own_key, by_key[0], key_index, own_query, ends[0], edge_id)
    _look_up(own_key, edge_id, key_index)
    _look_up(own_query, edge_id, query_index)


@inline
def _sort_by_key(own: Plain, ends: Plain, edges: Plain, by_key: Plain) -> None:
    (own_query, own_key), query_ptr, (key_ptr, edge, query) = own, edges[0], by_key
    ends = ends[1]
    _copy(key_ptr, ends)
    _sort(own_query, query_ptr, query, own_key, ends, edge)
    _look_up(own_query, edge, query)
    _copy(query_ptr, ends)
    for place in range(edge.size):  # a query's edges come in the order of its keys
        i = np.uint64(query[place])
        edge[place] = ends[i]
        ends[i] += 1


@inline
def _read(row: Integers, ptr: Integers, own: Integers, rank: Integers) -> Index:
    """Copy a row of the edge index; find where the edges of each node start, and which of these it is.

    Returns:
        The number of the first edge that is out of range, or -1.
    """
    n_nodes = np.uint64(ptr.size - 1)
    for e in range(row.size):
        i = np.uint64(row[e])
        if i >= n_nodes:
            return e
        own[e] = i
        rank[e] = ptr[i]
        ptr[i] += 1
    to_starts(ptr)
    return -1


@inline
def _sort(
    minor: Integers,
    minor_ptr: Integers,
    by_minor: Integers,
    major: Integers,
    ends: Integers,
    edge: Integers,
) -> None:
    """Sort the numbers of edges by (major, minor), stably.

    Args:
        minor: of each edge.
        minor_ptr: where the edges of each start.
        by_minor: memory for the edges sorted by this alone.
        major: of each edge.
        ends: where the edges of each start; at last, where they end.
        edge: which of its minor's each edge is; at last, the edges as they are sorted.

    A random place is read in a fraction of the time that it takes to write to one. So nothing else of an
    edge is sorted: it is looked up.
    """
    for e in range(edge.size):
        by_minor[np.uint64(minor_ptr[np.uint64(minor[e])] + edge[e])] = e
    for place in range(edge.size):
        e = by_minor[place]
        i = np.uint64(major[np.uint64(e)])
        edge[np.uint64(ends[i])] = e
        ends[i] += 1


@inline
def _copy(source: Integers, target: Integers) -> None:
    for i in range(source.size):
        target[i] = source[i]


@inline
def _look_up(of_edge: Integers, edge: Integers, found: Integers) -> None:
    for place in range(edge.size):
        found[place] = of_edge[np.uint64(edge[place])]


@kernel
def _transpose(
    query_ptr: Integers, key_index: Integers, ptr: Integers, edge: Integers, query: Integers
) -> bool:
    """Fill the last three; False if the first two are of no graph."""
    if query_ptr[0] != 0 or query_ptr[-1] != key_index.size:
        return False
    for i in range(query_ptr.size - 1):
        if query_ptr[i] > query_ptr[i + 1]:
            return False
    n_keys = np.uint64(ptr.size - 1)
    for e in range(key_index.size):
        j = np.uint64(key_index[e])
        if j >= n_keys:
            return False
        ptr[j] += 1
    to_starts(ptr)
    _by_key(query_ptr, key_index, ptr, edge, query)
    return True


@inline
def _by_key(
    query_ptr: Integers, key_index: Integers, ptr: Integers, edge: Integers, query: Integers
) -> None:
    """Fill the last two."""
    for i in range(query_ptr.size - 1):
        for e in range(query_ptr[i], query_ptr[i + 1]):
            j = np.uint64(key_index[e])
            to = np.uint64(ptr[j])
            ptr[j] += 1
            edge[to] = e
            query[to] = i
    _rewind(ptr)
