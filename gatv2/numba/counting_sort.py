"""Counting sort of a graph's edges, by query and by key: O(edges), and no larger index than needed."""

from typing import Any

import numpy as np

from gatv2.numba.arguments import Integers
from gatv2.numba.compile import inline, kernel
from gatv2.numba.memory import Array


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
    key_index, query_index, edge_id = (
        np.empty(n_edges, dtype),
        np.empty(n_edges, dtype),
        np.empty(n_edges, dtype),
    )
    edges = query_ptr, key_index, query_index, edge_id
    _require_inside(
        _sort_edges(query, key, key_ptr, np.empty(n_edges, dtype), *edges), n_queries, n_keys
    )
    return edges


def sort_both_ways(query: Array, key: Array, n_queries: int, n_keys: int) -> tuple[Array, ...]:
    """Sort edges by (query, key) and by (key, query), which is faster than one after the other.

    Takes no memory beside the results.

    Returns:
        `query_ptr`, `key_index`, `query_index` and `edge_id` of a `gatv2.Graph`, and `ptr`, `edge` and
        `query` of its `gatv2.graph.KeyOrder`.

    Raises:
        IndexError: as :func:`sort_edges`.

    Example:
        >>> query, key = np.array([2, 0, 0]), np.array([0, 1, 0])
        >>> [x.tolist() for x in sort_both_ways(query, key, n_queries=3, n_keys=2)]
        [[0, 2, 2, 3], [0, 1, 0], [0, 0, 2], [2, 1, 0], [0, 2, 3], [0, 2, 1], [0, 2, 0]]
    """
    n_edges, dtype = query.size, _dtype(query.size, n_queries, n_keys)
    results = (
        np.zeros(n_queries + 1, dtype),
        np.empty(n_edges, dtype),
        np.empty(n_edges, dtype),
        np.empty(n_edges, dtype),
        np.zeros(n_keys + 1, dtype),
        np.empty(n_edges, dtype),
        np.empty(n_edges, dtype),
    )
    _require_inside(_sort_both_ways(query, key, *results), n_queries, n_keys)
    return results


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
    edge, query = (np.empty(key_index.shape, key_index.dtype) for _ in range(2))
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
    query: Integers,
    key: Integers,
    key_ptr: Integers,
    own_key: Integers,
    query_ptr: Integers,
    key_index: Integers,
    query_index: Integers,
    edge_id: Integers,
) -> int:
    """Fill the last four; the number of the first edge that is out of range, or -1.

    Pointers are zero at first; nothing that is needed is left in `key_ptr` and `own_key`.
    """
    return _by_query(query, key, key_ptr, own_key, query_ptr, key_index, query_index, edge_id)


@kernel
def _sort_both_ways(
    query: Integers,
    key: Integers,
    query_ptr: Integers,
    key_index: Integers,
    query_index: Integers,
    edge_id: Integers,
    key_ptr: Integers,
    edge: Integers,
    query_by_key: Integers,
) -> int:
    """Fill all but the first two; otherwise as `_sort_edges`."""
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
    for place in range(edge.size):
        query_by_key[place] = query_index[np.uint64(edge[place])]
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
) -> int:
    """What `_sort_edges` says; `key_ptr` tells then where each key starts.

    A random place is read in a fraction of the time that it takes to write to one. So what is sorted is
    the number of an edge alone, and the rest of an edge is looked up.
    """
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
    for e in range(query.size):
        by_key[np.uint64(key_ptr[np.uint64(own_key[e])] + rank[e])] = e
    for place in range(query.size):
        e = by_key[place]
        i = np.uint64(own_query[np.uint64(e)])
        edge_id[np.uint64(query_ptr[i])] = e
        query_ptr[i] += 1
    _rewind(query_ptr)
    for position in range(query.size):
        key_index[position] = own_key[np.uint64(edge_id[position])]
    for e in range(query.size):
        own_key[e] = own_query[e]
    for position in range(query.size):
        query_index[position] = own_key[np.uint64(edge_id[position])]
    return -1


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
