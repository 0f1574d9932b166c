"""Edges sorted by query and by key: with NumPy where their values are known, with JAX under `jit`.

Where values are known, a bad index is an error. Under `jit` nothing can be raised, and its edge is
dropped: it becomes padding, behind all others, which no kernel reads.
"""

from typing import Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from gatv2.jax.arrays import NumPyArray
from gatv2.numba.support import import_failure

_LARGE = 1 << 16  # edges for which it is worth to import Numba and its counting sort

Array = TypeVar("Array", jax.Array, NumPyArray)


class Edges(NamedTuple, Generic[Array]):
    """What a `Graph` holds of its edges, sorted by (query, key)."""

    query_ptr: Array
    key_index: Array
    query_index: Array
    edge_id: Array


class KeyOrder(NamedTuple, Generic[Array]):
    """The edges of a graph in the order (key, query): CSC, which the backward pass reads."""

    ptr: Array
    """`[n_keys + 1]`: the edges of key j are `ptr[j]:ptr[j + 1]`."""
    edge: Array
    """`[n_edges]`: position of the edge in the graph's own order, by query."""
    query: Array
    """`[n_edges]`: query of the edge."""


Sorted = tuple[Edges[Array], KeyOrder[Array]]


def sort_edges(
    query: NumPyArray, key: NumPyArray, n_queries: int, n_keys: int
) -> Sorted[NumPyArray]:
    """Sort edges stably, by (query, key) and by (key, query).

    Raises:
        IndexError: an index is negative or past the end.

    Example:
        >>> edges, by_key = sort_edges(np.array([2, 0, 0]), np.array([0, 1, 0]), 3, 2)
        >>> [x.tolist() for x in edges]
        [[0, 2, 2, 3], [0, 1, 0], [0, 0, 2], [2, 1, 0]]
        >>> [x.tolist() for x in by_key]
        [[0, 2, 3], [0, 2, 1], [0, 2, 0]]
    """
    _check_range(query, n_queries, "query")
    _check_range(key, n_keys, "key")
    if query.shape[0] >= _LARGE and import_failure() is None:
        from gatv2.numba import counting_sort

        edges = Edges(*counting_sort.sort_edges(query, key, n_queries, n_keys))
        transposed = counting_sort.transpose(edges.query_ptr, edges.key_index, n_keys)
        return edges, KeyOrder(*transposed)
    dtype = np.int32 if max(query.shape[0], n_queries, n_keys) < 2**31 else np.int64
    query, key = query.astype(dtype), key.astype(dtype)
    edge_id = np.lexsort((key, query)).astype(dtype)
    edges = Edges(_pointers(query, n_queries), key[edge_id], query[edge_id], edge_id)
    edge = np.argsort(edges.key_index, kind="stable").astype(dtype)
    return edges, KeyOrder(_pointers(key, n_keys), edge, edges.query_index[edge])


def sort_traced(query: jax.Array, key: jax.Array, n_queries: int, n_keys: int) -> Sorted[jax.Array]:
    """Sort edges whose values are traced; one with a bad index becomes padding, behind all others."""
    is_edge = _is_index(query, n_queries) & _is_index(key, n_keys)
    query = jnp.where(is_edge, query.astype(jnp.int32), n_queries)
    key = jnp.where(is_edge, key.astype(jnp.int32), n_keys)
    edge_id = jnp.lexsort((key, query)).astype(jnp.int32)
    query_index, key_index = query[edge_id], key[edge_id]
    edge = jnp.argsort(key_index, stable=True).astype(jnp.int32)
    edges = Edges(_traced_pointers(query_index, n_queries), key_index, query_index, edge_id)
    return edges, KeyOrder(_traced_pointers(key_index, n_keys), edge, query_index[edge])


def _check_range(index: NumPyArray, n_nodes: int, role: str) -> None:
    is_bad = (index < 0) | (index >= n_nodes)
    if is_bad.any():
        edge = int(is_bad.argmax())
        raise IndexError(
            f"edge {edge} has {role} {index[edge]}, but there are {n_nodes} {role} nodes: "
            f"indices must lie in [0, {n_nodes})"
        )


def _is_index(index: jax.Array, n_nodes: int) -> jax.Array:
    # in the index's own dtype, before 64 bits are cut; a short one could not hold `n_nodes`
    wide = index.astype(jnp.int32) if index.dtype.itemsize < 4 else index
    is_index: jax.Array = (wide >= 0) & (wide < n_nodes)
    return is_index


def _pointers(index: NumPyArray, n_nodes: int) -> NumPyArray:
    pointers = np.zeros(n_nodes + 1, index.dtype)
    np.cumsum(np.bincount(index, minlength=n_nodes), out=pointers[1:])
    return pointers


def _traced_pointers(index: jax.Array, n_nodes: int) -> jax.Array:
    # not `searchsorted`, which can't be exported for any number of edges
    counts = jnp.zeros(n_nodes + 1, jnp.int32).at[index + 1].add(1, mode="drop")
    pointers: jax.Array = jnp.cumsum(counts, dtype=jnp.int32)
    return pointers
