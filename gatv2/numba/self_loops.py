"""Self-loops of a graph whose edges are sorted: each row is copied, with its own node put between.

Their features are made of those of the node's other edges, which are copied, too.
"""

from functools import partial
from typing import Literal

import numpy as np

from gatv2.numba.arguments import Flags, Floats, Index, Integers, Truth
from gatv2.numba.compile import kernel
from gatv2.numba.memory import Array, empty, empty_rows
from gatv2.numba.rows import rows_of
from gatv2.numba.sparse_product import is_matrix
from gatv2.numba.team import row_of, share_out
from gatv2.numba.threads import Chunks, count_chunks, next_chunk, run_chunks


def add_self_loops(
    query_ptr: Array, key_index: Array, edge_id: Array, n_keys: int, n_loops: int
) -> tuple[Array, ...]:
    """Put one self-loop at each of the first nodes, in the place of any that there are.

    The caller's numbers of the edges are those of the others, in their order, and then of the loops.

    Args:
        query_ptr: of a `gatv2.Graph`, as the next two.
        key_index: keys.
        edge_id: the caller's numbers.
        n_keys: number of keys.
        n_loops: number of nodes with a loop, of those that are queries and keys.

    Returns:
        `query_ptr`, `key_index`, `query_index` and `edge_id` of the graph with self-loops; the caller's
        numbers of the edges that are no self-loops, ascending, and their queries, in int64.

    Raises:
        ValueError: the first three are of no graph.

    Example:
        >>> added = add_self_loops(np.array([0, 1, 3]), np.array([1, 0, 1]), np.arange(3), 2, 2)
        >>> [x.tolist() for x in added]
        [[0, 2, 4], [0, 1, 0, 1], [0, 0, 1, 1], [2, 0, 1, 3], [0, 1], [0, 1]]
    """
    n_edges = key_index.size
    queries, rank = empty((n_edges,), key_index.dtype), empty((n_edges,), key_index.dtype)
    n_kept = _find_loops(query_ptr, key_index, edge_id, n_keys, queries)
    if n_kept < 0:
        raise ValueError(
            f"not a graph: `query_ptr` must ascend from 0 to {n_edges}, `key_index` must lie in "
            f"[0, {n_keys}), and `edge_id` must have each number of an edge once"
        )
    n_edges = n_kept + n_loops
    dtype = np.int32 if max(n_edges, query_ptr.size - 1, n_keys) < 2**31 else np.int64
    kept, query = empty((n_kept,), np.int64), empty((n_kept,), np.int64)
    _list_kept(queries, kept, query, rank)
    del queries  # before there is more
    edges = tuple(empty((n,), dtype) for n in (query_ptr.size, n_edges, n_edges, n_edges))
    _merge(query_ptr, key_index, edge_id, rank, n_kept, n_loops, *edges)
    return *edges, kept, query


def fill_features(
    features: Array,
    kept: Array,
    query_ptr: Array,
    edge_id: Array,
    n_loops: int,
    filling: Array | Literal["mean", "sum"],
    n_threads: int,
) -> Array | None:
    """Edge features, and behind them those of self-loops.

    Sums are made in float64. None if a number is out of range, as in a graph that has been written to.

    Args:
        features: `[n_edges, D]`, of the edges before loops were added.
        kept: the numbers of those that are no self-loops.
        query_ptr: of the graph with self-loops.
        edge_id: of the graph with self-loops, the numbers of its edges; those of loops come last.
        n_loops: how many nodes have a loop, the first ones.
        filling: `[D]`, features of each loop, or how those of the node's other edges are reduced.
        n_threads: at most so many work.

    Example:
        >>> features, kept = np.array([[1.0], [9.0], [4.0]]), np.array([0, 2])
        >>> ptr, edge_id = np.array([0, 3, 4]), np.array([0, 1, 2, 3])
        >>> fill_features(features, kept, ptr, edge_id, 2, "mean", 1).tolist()
        [[1.0], [4.0], [2.5], [0.0]]
    """
    n_kept, n_features = kept.size, features.shape[1]
    if not is_matrix(query_ptr, edge_id, n_kept + n_loops, edge_id.size):
        return None
    out = empty((n_kept + n_loops, n_features), features.dtype)
    n_chunks = count_chunks(2 * out.size)
    is_right = np.ones(n_chunks, np.bool_)
    constant = features.ravel()[:0] if isinstance(filling, str) else np.ascontiguousarray(filling)
    run_chunks(
        _fill,
        n_threads,
        n_chunks,
        features.ravel(),
        n_features,
        kept,
        query_ptr,
        edge_id,
        n_loops,
        filling == "mean" if isinstance(filling, str) else None,
        constant,
        out.ravel(),
        is_right,
        scratch=partial(_totals, n_features),
    )
    return out if is_right.all() else None


def _totals(n_features: int, n_threads: int) -> tuple[Array]:
    return (empty_rows(n_threads, n_features, np.float64),)


@kernel
def _fill(
    chunks: Chunks,
    totals: Floats,
    features: Floats,
    n_features: Index,
    kept: Integers,
    query_ptr: Integers,
    edge_id: Integers,
    n_loops: Index,
    is_mean: Truth | None,
    constant: Floats,
    out: Floats,
    is_right: Flags,
) -> None:
    """`is_mean` is None where each loop has the same features, which are given."""
    total = row_of(totals, share_out(chunks))
    n_kept, n_edges = np.uint64(kept.size), np.uint64(features.size // max(n_features, 1))
    chunk = next_chunk(chunks)
    while chunk < chunks[1]:
        for e in range(kept.size * chunk // chunks[1], kept.size * (chunk + 1) // chunks[1]):
            if np.uint64(kept[e]) >= n_edges:
                is_right[chunk] = False
                continue
            for d in range(n_features):
                out[e * n_features + d] = features[kept[e] * n_features + d]
        begin, end = rows_of(query_ptr, chunk, chunks)
        for i in range(begin, min(end, n_loops)):
            first = (kept.size + i) * n_features
            if is_mean is None:
                for d in range(n_features):
                    out[first + d] = constant[d]
                continue
            total[:n_features] = 0.0
            count = 0
            for p in range(query_ptr[i], query_ptr[i + 1]):
                own = edge_id[p]
                if np.uint64(own) >= n_kept:
                    continue  # the loop
                if np.uint64(kept[own]) >= n_edges:
                    is_right[chunk] = False
                    continue
                count += 1
                for d in range(n_features):
                    total[d] += features[kept[own] * n_features + d]
            divisor = max(count, 1) if is_mean else 1
            for d in range(n_features):
                out[first + d] = total[d] / divisor
        chunk = next_chunk(chunks)


@kernel
def _find_loops(
    query_ptr: Integers, key_index: Integers, edge_id: Integers, n_keys: Index, queries: Integers
) -> int:
    """Fill the last with the query of each of the caller's edges, -1 of a self-loop; count the others.

    -1 if the first three are of no graph.
    """
    n_edges, n_keys = np.uint64(edge_id.size), np.uint64(n_keys)
    if query_ptr[0] != 0 or query_ptr[-1] != edge_id.size:
        return -1
    for number in range(edge_id.size):
        queries[number] = -2
    for i in range(query_ptr.size - 1):
        if query_ptr[i] > query_ptr[i + 1]:
            return -1
        for e in range(query_ptr[i], query_ptr[i + 1]):
            own = np.uint64(edge_id[e])
            if own >= n_edges or np.uint64(key_index[e]) >= n_keys:
                return -1
            queries[own] = -1 if key_index[e] == i else i
    n_kept = 0
    for number in range(edge_id.size):
        if queries[number] == -2:  # nobody's
            return -1
        n_kept += queries[number] >= 0
    return n_kept


@kernel
def _list_kept(queries: Integers, kept: Integers, query: Integers, rank: Integers) -> None:
    """Fill the last three: the edges that are no self-loops, and which of them each edge is."""
    n = 0
    for number in range(queries.size):
        rank[number] = n
        if queries[number] >= 0:
            kept[n] = number
            query[n] = queries[number]
            n += 1


@kernel
def _merge(
    query_ptr: Integers,
    key_index: Integers,
    edge_id: Integers,
    rank: Integers,
    n_kept: Index,
    n_loops: Index,
    new_ptr: Integers,
    new_key: Integers,
    new_query: Integers,
    new_id: Integers,
) -> None:
    """Fill the last four."""
    to = 0
    for i in range(query_ptr.size - 1):
        new_ptr[i] = to
        has_loop = i >= n_loops  # or needs none
        for e in range(query_ptr[i], query_ptr[i + 1]):
            j = key_index[e]
            if j > i and not has_loop:
                new_key[to], new_query[to], new_id[to] = i, i, n_kept + i
                to, has_loop = to + 1, True
            if j != i:
                new_key[to], new_query[to], new_id[to] = j, i, rank[edge_id[e]]
                to += 1
        if not has_loop:
            new_key[to], new_query[to], new_id[to] = i, i, n_kept + i
            to += 1
    new_ptr[query_ptr.size - 1] = to
