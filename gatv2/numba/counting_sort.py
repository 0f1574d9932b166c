"""Counting sort of a graph's edges, by query and by key: O(edges), and no larger index than needed."""

import numpy as np

from gatv2.numba.arguments import Integers
from gatv2.numba.compile import inline, kernel
from gatv2.numba.memory import Array, empty


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
    n_edges = query.size
    dtype = np.int32 if max(n_edges, n_queries, n_keys) < 2**31 else np.int64
    ptr, key_ptr = (np.zeros(n + 1, dtype) for n in (n_queries, n_keys))
    key_index, edge_id = (empty((n_edges,), dtype) for _ in range(2))
    by_key = empty((2 * n_edges,), dtype)  # (edge, query) of each edge
    outside = _sort_edges(query, key, ptr, key_ptr, by_key, key_index, edge_id)
    if outside >= 0:
        raise IndexError(
            f"edge {outside} is out of range: queries must lie in [0, {n_queries}), "
            f"keys in [0, {n_keys})"
        )
    del by_key  # before there is more
    query_index = empty((n_edges,), dtype)
    _repeat(ptr, query_index)
    return ptr, key_index, query_index, edge_id


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
    edge, query = (empty(key_index.shape, key_index.dtype) for _ in range(2))
    if not _transpose(query_ptr, key_index, ptr, edge, query):
        raise ValueError(
            f"not a graph: `query_ptr` must ascend from 0 to {key_index.size}, and `key_index` must lie "
            f"in [0, {n_keys})"
        )
    return ptr, edge, query


@inline
def _starts(counts: Integers) -> None:
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


@kernel
def _sort_edges(
    query: Integers,
    key: Integers,
    query_ptr: Integers,
    key_ptr: Integers,
    by_key: Integers,
    key_index: Integers,
    edge_id: Integers,
) -> int:
    """Fill all but the first two; the number of the first edge that is out of range, or -1."""
    own_query, own_key = edge_id, key_index  # until there is what belongs there
    for e in range(query.size):
        i, j = query[e], key[e]
        if not (0 <= i < query_ptr.size - 1 and 0 <= j < key_ptr.size - 1):
            return e
        own_query[e] = i
        own_key[e] = j
        query_ptr[i] += 1
        key_ptr[j] += 1
    _starts(query_ptr)
    _starts(key_ptr)
    for e in range(query.size):
        j = own_key[e]
        to = key_ptr[j]
        key_ptr[j] += 1
        by_key[2 * to] = e
        by_key[2 * to + 1] = own_query[e]
    _rewind(key_ptr)
    for j in range(key_ptr.size - 1):
        for position in range(key_ptr[j], key_ptr[j + 1]):
            i = by_key[2 * position + 1]
            to = query_ptr[i]
            query_ptr[i] += 1
            edge_id[to] = by_key[2 * position]
            key_index[to] = j
    _rewind(query_ptr)
    return -1


@kernel
def _repeat(query_ptr: Integers, query_index: Integers) -> None:
    for i in range(query_ptr.size - 1):
        query_index[query_ptr[i] : query_ptr[i + 1]] = i


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
    for e in range(key_index.size):
        if not 0 <= key_index[e] < ptr.size - 1:
            return False
        ptr[key_index[e]] += 1
    _starts(ptr)
    for i in range(query_ptr.size - 1):
        for e in range(query_ptr[i], query_ptr[i + 1]):
            to = ptr[key_index[e]]
            ptr[key_index[e]] += 1
            edge[to] = e
            query[to] = i
    _rewind(ptr)
    return True
