"""The sorted edges of many graphs as those of one: numbers of nodes and of edges go on."""

import numpy as np

from gatv2.numba.arguments import Integers, Truth
from gatv2.numba.compile import kernel
from gatv2.numba.counting_sort import to_starts
from gatv2.numba.memory import Array, empty


def join_edges(
    parts: Array, counts: Array, n_queries: int, dtype: type[np.generic]
) -> tuple[Array, ...]:
    """Join the edges of graphs.

    Args:
        parts: `query_index` of one graph after another, then `key_index`, then `edge_id`, flat.
        counts: `[n_graphs, 3]`, numbers of queries, keys and edges of each.
        n_queries: of all graphs.
        dtype: of the results.

    Returns:
        `query_ptr`, `key_index`, `query_index` and `edge_id` of the joined graph.

    Raises:
        IndexError: a query is none of its graph's, which has been written to.

    Example:
        >>> parts = np.array([0, 1, 0, 0, 0, 1, 0, 1, 0])
        >>> counts = np.array([[2, 1, 2], [2, 2, 1]])
        >>> [x.tolist() for x in join_edges(parts, counts, 4, np.int32)]
        [[0, 1, 2, 3, 3], [0, 0, 2], [0, 1, 2], [0, 1, 2]]
    """
    ptr, n_edges = np.zeros(n_queries + 1, dtype), parts.size // 3
    key_index, query_index, edge_id = (empty((n_edges,), dtype) for _ in range(3))
    is_whole = counts[:, 2].sum() == n_edges
    if not (is_whole and _join_edges(parts, counts.ravel(), ptr, key_index, query_index, edge_id)):
        raise IndexError(
            "`query_index` of a graph has a query out of range, as one that has been written to may "
            "have: `graph.check()` tells more"
        )
    return ptr, key_index, query_index, edge_id


@kernel
def _join_edges(
    parts: Integers,
    counts: Integers,
    query_ptr: Integers,
    key_index: Integers,
    query_index: Integers,
    edge_id: Integers,
) -> Truth:
    """Fill the last three, and `query_ptr`, which is zero; whether all queries were in range."""
    n_edges = np.uint64(edge_id.size)
    first_query, first_key, start = 0, 0, 0
    for graph in range(0, counts.size, 3):
        stop = start + counts[graph + 2]
        for e in range(np.uint64(start), np.uint64(stop)):
            if np.uint64(parts[e]) >= np.uint64(counts[graph]):
                return False
            i = parts[e] + first_query
            query_index[e] = i
            query_ptr[np.uint64(i)] += 1
        for e in range(np.uint64(start), np.uint64(stop)):
            key_index[e] = parts[n_edges + e] + first_key
        for e in range(np.uint64(start), np.uint64(stop)):
            edge_id[e] = parts[n_edges + n_edges + e] + start
        first_query += counts[graph]
        first_key += counts[graph + 1]
        start = stop
    to_starts(query_ptr)
    return True
