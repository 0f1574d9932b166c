"""An edge index and numbers of nodes: checked, and sorted with what knows the values."""

import operator
from collections.abc import Sequence
from typing import SupportsIndex, cast

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from gatv2.jax.arrays import ArrayLike, NumPyArray, is_concrete
from gatv2.jax.graph.sort import Sorted, sort_edges, sort_traced
from gatv2.options import Flow, by_role

NumberOfNodes = SupportsIndex | tuple[SupportsIndex, SupportsIndex]


def sort_edge_index(
    edge_index: ArrayLike, n_queries: int, n_keys: int, flow: Flow = "target_to_source"
) -> Sorted[jax.Array] | Sorted[NumPyArray]:
    """Sort an edge index, with NumPy where its values are known.

    Raises:
        IndexError: an index that is known is negative or past the end.
    """
    if is_concrete(edge_index):
        edge_index = np.asarray(edge_index)  # slicing an array of JAX would trace it under `jit`
    query, key = by_role(edge_index, flow)
    if isinstance(query, np.ndarray) and isinstance(key, np.ndarray):
        return sort_edges(query, key, n_queries, n_keys)
    return sort_traced(query, key, n_queries, n_keys)


def check_edge_index(edge_index: object) -> None:
    """Raise a TypeError or ValueError unless an array has an edge index's dtype and shape."""
    if not isinstance(edge_index, jax.Array | np.ndarray):
        raise TypeError(
            "an edge index must be an array of JAX or NumPy; "
            f"got {type(edge_index).__name__}: convert it with `np.asarray(edge_index)`"
        )
    if not jnp.issubdtype(edge_index.dtype, jnp.integer):
        raise TypeError(
            f"an edge index must hold integers; got {edge_index.dtype}: "
            "convert it with `edge_index.astype(int)`"
        )
    if edge_index.ndim != 2 or edge_index.shape[0] != 2:
        raise ValueError(
            f"an edge index must have shape (2, n_edges); got {tuple(edge_index.shape)}"
        )


def read_sizes(n_nodes: NumberOfNodes) -> tuple[int, int]:
    """Numbers of queries and of keys.

    Raises:
        TypeError: they are no integers.
        ValueError: one is negative.
    """
    pair = n_nodes if isinstance(n_nodes, Sequence) else (n_nodes, n_nodes)
    try:
        n_queries, n_keys = (
            # a size of a program that is exported for any size computes as an integer does
            cast(int, n) if jax.export.is_symbolic_dim(cast(int, n)) else operator.index(n)
            for n in pair
        )
    except (TypeError, ValueError):
        raise TypeError(
            "the number of nodes must be an integer, or a pair of them, (number of queries, number of "
            f"keys); got {n_nodes!r}"
        ) from None
    if n_queries < 0 or n_keys < 0:
        raise ValueError(f"numbers of nodes must not be negative; got {(n_queries, n_keys)}")
    return n_queries, n_keys
