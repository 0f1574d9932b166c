"""The sorted edges of many graphs as those of one: numbers of nodes and of edges go on."""

import numpy as np

from gatv2.numba.arguments import Integers
from gatv2.numba.compile import kernel
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

    Example:
        >>> parts = np.array([0, 1, 0, 0, 0, 1, 0, 1, 0])
        >>> counts = np.array([[2, 1, 2], [2, 2, 1]])
        >>> [x.tolist() for x in join_edges(parts, counts, 4, np.int32)]
        [[0, 1, 2, 3, 3], [0, 0, 2], [0, 1, 2], [0, 1, 2]]
    """
    ptr, n_edges = np.zeros(n_queries + 1, dtype), parts.size // 3
    key_index, query_index, edge_id = (empty((n_edges,), dtype) for _ in range(3))
    _join_edges(parts, counts.ravel(), ptr, key_index, query_index, edge_id)
    return ptr, key_index, query_index, edge_id


@kernel
def _join_edges(
    parts: Integers,
    counts: Integers,
    query_ptr: Integers,
    key_index: Integers,
    query_index: Integers,
    edge_id: Integers,
) -> None:
    """Fill the last three, and count into `query_ptr`, which is zero."""
    n_edges = edge_id.size
    first_query, first_key, first_edge = 0, 0, 0
    for graph in range(0, counts.size, 3):
        for e in range(first_edge, first_edge + counts[graph + 2]):
            query_index[e] = parts[e] + first_query
            key_index[e] = parts[n_edges + e] + first_key
            edge_id[e] = parts[2 * n_edges + e] + first_edge
        first_query += counts[graph]
        first_key += counts[graph + 1]
        first_edge += counts[graph + 2]
    for e in range(n_edges):
        query_ptr[query_index[e] + 1] += 1
    for i in range(1, query_ptr.size):
        query_ptr[i] += query_ptr[i - 1]
