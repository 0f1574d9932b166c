"""The sorted edges of many graphs as those of one: numbers of nodes and of edges go on."""

import numpy as np

from gatv2.numba.arguments import Index, Integers, Plain, Truth
from gatv2.numba.compile import kernel, python_kernel
from gatv2.numba.dlpack import ask, integers_at
from gatv2.numba.memory import Array, empty

# A table has a row for each graph: where its `query_index`, `key_index` and `edge_id` are, how many
# queries, keys and edges it has, and what kind it is, in bits.
_N_PARTS, _N_QUERIES, _N_KEYS, _N_EDGES, _KIND, N_COLUMNS = 3, 3, 4, 5, 6, 7


@python_kernel
def find_edges(function: Index, table: Integers) -> Plain:
    """Turn the parts of a table, addresses of tensors, into those of what is in them.

    Returns:
        Whether all tensors are as the table says, and then the numbers of queries, of keys and of edges
        of all graphs together, and bits that some kind has, and that each has.
    """
    n_queries, n_keys, n_edges, some, each = 0, 0, 0, 0, -1
    for row in range(0, table.size, N_COLUMNS):
        for part in range(row, row + _N_PARTS):
            if table[part] == 0:
                return False, 0, 0, 0, 0, 0
            address, size = ask(function, table[part])
            if size != table[row + _N_EDGES]:
                return False, 0, 0, 0, 0, 0
            table[part] = address
        n_queries += table[row + _N_QUERIES]
        n_keys += table[row + _N_KEYS]
        n_edges += table[row + _N_EDGES]
        some |= table[row + _KIND]
        each &= table[row + _KIND]
    return True, n_queries, n_keys, n_edges, some, each


def table_of(parts: Array, counts: Array) -> Array:
    """The table of graphs whose edges are in one array.

    Args:
        parts: `query_index` of one graph after another, then `key_index`, then `edge_id`, flat.
        counts: `[n_graphs, 3]`, numbers of queries, keys and edges of each.

    Raises:
        IndexError: there are more or fewer numbers.
    """
    stop = counts[:, 2].cumsum()
    if 3 * stop[-1] != parts.size:
        raise _written_to()
    table = np.zeros((len(counts), N_COLUMNS), np.int64)
    first = stop - counts[:, 2] + np.arange(_N_PARTS).reshape(-1, 1) * stop[-1]
    table[:, :_N_PARTS] = parts.ctypes.data + first.T * parts.itemsize
    table[:, _N_QUERIES : _N_EDGES + 1] = counts
    return table.ravel()


def join_edges(
    table: Array,
    n_queries: int,
    n_edges: int,
    dtype: type[np.generic],
    *,
    like: Array | None = None,
) -> tuple[Array, ...]:
    """Join the edges of graphs.

    Args:
        table: where they are, which must be there as long as this runs.
        n_queries: of all graphs.
        n_edges: of all graphs.
        dtype: of the results.
        like: an array of the dtype that the edges have, unless that is the same.

    Returns:
        `query_ptr`, `key_index`, `query_index` and `edge_id` of the joined graph.

    Raises:
        IndexError: a query, a key or a number of an edge is none of its graph's, or queries are out of
            order: the graph has been written to.

    Example:
        >>> parts = np.array([0, 1, 0, 0, 0, 1, 0, 1, 0])
        >>> table = table_of(parts, np.array([[2, 1, 2], [2, 2, 1]]))
        >>> [x.tolist() for x in join_edges(table, 4, 3, np.int32, like=parts)]
        [[0, 1, 2, 3, 3], [0, 0, 2], [0, 1, 2], [0, 1, 2]]
    """
    shape = (n_edges,)
    ptr = np.zeros(n_queries + 1, dtype)
    key_index, query_index, edge_id = empty(shape, dtype), empty(shape, dtype), empty(shape, dtype)
    like = ptr if like is None else like
    if not _join_edges(table, like, ptr, key_index, query_index, edge_id):
        raise _written_to()
    return ptr, key_index, query_index, edge_id


def _written_to() -> IndexError:
    return IndexError(
        "a graph has a query, a key or a number of an edge out of range, or queries out of order, as "
        "one that has been written to may have: `graph.check()` tells more"
    )


@kernel
def _join_edges(
    table: Integers,
    like: Integers,
    query_ptr: Integers,
    key_index: Integers,
    query_index: Integers,
    edge_id: Integers,
) -> Truth:
    """Fill the last three, and `query_ptr`, which is zero; whether all fit, and queries ascend."""
    first_query, first_key, start = 0, 0, np.uint64(0)
    for row in range(0, table.size, N_COLUMNS):
        n_queries, n_keys = table[row + _N_QUERIES], table[row + _N_KEYS]
        n_edges = np.uint64(table[row + _N_EDGES])
        queries = integers_at(table[row], n_edges, like)
        keys = integers_at(table[row + 1], n_edges, like)
        ids = integers_at(table[row + 2], n_edges, like)
        n_wrong: Index = 0
        before: Index = 0
        for e in range(n_edges):
            i = queries[e]
            n_wrong += (np.uint64(i) >= np.uint64(n_queries)) | (i < before)
            query_index[start + e] = i + first_query
            before = i
        for e in range(n_edges):
            n_wrong += np.uint64(keys[e]) >= np.uint64(n_keys)
            key_index[start + e] = keys[e] + first_key
        for e in range(n_edges):
            n_wrong += np.uint64(ids[e]) >= n_edges
            edge_id[start + e] = ids[e] + start
        if n_wrong > 0:
            return False
        for e in range(start, start + n_edges):
            query_ptr[np.uint64(query_index[e]) + np.uint64(1)] = e + np.uint64(1)
        first_query += n_queries
        first_key += n_keys
        start += n_edges
    stop = query_ptr[0]
    for i in range(1, query_ptr.size):  # of a query without edges, where those before it end
        stop = max(stop, query_ptr[i])
        query_ptr[i] = stop
    return True
