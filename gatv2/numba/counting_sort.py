"""Counting sort of a graph's edges, by query and by key: O(edges), and no larger index than needed."""

from typing import Any

import torch
from torch import Tensor

from gatv2.numba.compile import inline, kernel
from gatv2.numba.tiles import as_array, empty
from gatv2.torch_internals import without_transforms


def sort_edges(
    query: Tensor, key: Tensor, n_queries: int, n_keys: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sort edges by (query, key), stably.

    Beside the results it needs the memory of one of them.

    Args:
        query: `[n_edges]`, any integers on the CPU, values in [0, n_queries).
        key: `[n_edges]`, likewise in [0, n_keys).
        n_queries: number of queries.
        n_keys: number of keys.

    Returns:
        `query_ptr`, `key_index`, `query_index` and `edge_id` of a `gatv2.Graph`.

    Example:
        >>> query, key = torch.tensor([2, 0, 0]), torch.tensor([0, 1, 0])
        >>> [x.tolist() for x in sort_edges(query, key, n_queries=3, n_keys=2)]
        [[0, 2, 2, 3], [0, 1, 0], [0, 0, 2], [2, 1, 0]]
    """
    n_edges = query.shape[0]
    dtype = torch.int32 if max(n_edges, n_queries, n_keys) < 2**31 else torch.int64
    with without_transforms():
        ptr, key_ptr = (torch.zeros(n + 1, dtype=dtype) for n in (n_queries, n_keys))
        key_index, edge_id = (empty((n_edges,), dtype) for _ in range(2))
        by_key = empty((2 * n_edges,), dtype)  # (edge, query) of each edge
        arrays = [as_array(x) for x in (ptr, key_ptr, by_key, key_index, edge_id)]
        _sort_edges(query.detach().numpy(), key.detach().numpy(), *arrays)
        del by_key, arrays  # before there is more
        query_index = empty((n_edges,), dtype)
        _repeat(as_array(ptr), as_array(query_index))
    return ptr, key_index, query_index, edge_id


def transpose(query_ptr: Tensor, key_index: Tensor, n_keys: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sort edges, which are sorted by (query, key), by (key, query), stably.

    Returns:
        `ptr`, `edge` and `query` of a `gatv2.graph.KeyOrder`.

    Example:
        >>> [x.tolist() for x in transpose(torch.tensor([0, 2, 2, 3]), torch.tensor([0, 1, 0]), 2)]
        [[0, 2, 3], [0, 2, 1], [0, 2, 0]]
    """
    with without_transforms():
        ptr = torch.zeros(n_keys + 1, dtype=key_index.dtype)
        edge, query = (empty(tuple(key_index.shape), key_index.dtype) for _ in range(2))
        _transpose(*(as_array(x) for x in (query_ptr, key_index, ptr, edge, query)))
    return ptr, edge, query


@inline
def _starts(counts: Any) -> None:
    """Turn counts into where each bucket starts."""
    total = 0
    for i in range(counts.size):
        count = counts[i]
        counts[i] = total
        total += count


@inline
def _rewind(ends: Any) -> None:
    """Turn where each bucket ends, but for the last number, into where it starts."""
    for i in range(ends.size - 1, 0, -1):
        ends[i] = ends[i - 1]
    ends[0] = 0


@kernel
def _sort_edges(
    query: Any,
    key: Any,
    query_ptr: Any,
    key_ptr: Any,
    by_key: Any,
    key_index: Any,
    edge_id: Any,
) -> None:
    for e in range(query.size):
        query_ptr[query[e]] += 1
        key_ptr[key[e]] += 1
    _starts(query_ptr)
    _starts(key_ptr)
    for e in range(query.size):
        to = key_ptr[key[e]]
        key_ptr[key[e]] += 1
        by_key[2 * to] = e
        by_key[2 * to + 1] = query[e]
    _rewind(key_ptr)
    for j in range(key_ptr.size - 1):
        for position in range(key_ptr[j], key_ptr[j + 1]):
            i = by_key[2 * position + 1]
            to = query_ptr[i]
            query_ptr[i] += 1
            edge_id[to] = by_key[2 * position]
            key_index[to] = j
    _rewind(query_ptr)


@kernel
def _repeat(query_ptr: Any, query_index: Any) -> None:
    for i in range(query_ptr.size - 1):
        query_index[query_ptr[i] : query_ptr[i + 1]] = i


@kernel
def _transpose(query_ptr: Any, key_index: Any, ptr: Any, edge: Any, query: Any) -> None:
    for e in range(key_index.size):
        ptr[key_index[e]] += 1
    _starts(ptr)
    for i in range(query_ptr.size - 1):
        for e in range(query_ptr[i], query_ptr[i + 1]):
            to = ptr[key_index[e]]
            ptr[key_index[e]] += 1
            edge[to] = e
            query[to] = i
    _rewind(ptr)
