"""A graph with padding behind its edges and nodes: graphs of several sizes, one compilation."""

from dataclasses import replace
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np

from gatv2.jax.arrays import ArrayLike, NumPyArray, is_concrete, on_device
from gatv2.jax.graph.edge_index import NumberOfNodes, read_sizes
from gatv2.jax.graph.edges import Traced
from gatv2.jax.graph.sort import KeyOrder
from gatv2.options import as_int


def padded(graph: Traced, n_edges: int, n_nodes: NumberOfNodes | None = None) -> Traced:
    """The graph with `n_edges` edges and `n_nodes` nodes; see :meth:`gatv2.jax.Graph.padded`."""
    n_edges = as_int(n_edges, "n_edges")
    extra = n_edges - graph.n_edges
    if extra < 0:
        raise ValueError(f"the graph has {graph.n_edges} edges: it can't be padded to {n_edges}")
    numbers = np.arange(graph.n_edges, n_edges)
    if n_nodes is not None:
        graph = _with_nodes(graph, *read_sizes(n_nodes))
    no_query, no_key = np.full(extra, graph.n_queries), np.full(extra, graph.n_keys)
    head_mask = graph.head_mask
    if head_mask is not None:
        head_mask = _extended(head_mask, np.zeros((extra, head_mask.shape[1])))
    by_key = graph.by_key
    return replace(
        graph,
        key_index=_extended(graph.key_index, no_key),
        query_index=_extended(graph.query_index, no_query),
        edge_id=_extended(graph.edge_id, numbers),
        by_key=KeyOrder(
            by_key.ptr, _extended(by_key.edge, numbers), _extended(by_key.query, no_query)
        ),
        head_mask=head_mask,
    )


def _with_nodes(graph: Traced, n_queries: int, n_keys: int) -> Traced:
    """The graph with nodes that are padding; edges that are padding point past them."""
    more_queries, more_keys = n_queries - graph.n_queries, n_keys - graph.n_keys
    if more_queries < 0 or more_keys < 0 or graph.n_blocks != 1:
        raise ValueError(
            f"{graph} can't be padded to {n_queries} queries and {n_keys} keys: it has more, or is a "
            "batch of graphs of one size"
        )
    query_mask = graph.query_mask
    if query_mask is None:
        query_mask = on_device(np.ones(graph.n_queries, bool))
    by_key = graph.by_key
    return replace(
        graph,
        query_ptr=_repeated(graph.query_ptr, more_queries),
        key_index=_moved(graph.key_index, graph.n_keys, n_keys),
        query_index=_moved(graph.query_index, graph.n_queries, n_queries),
        by_key=KeyOrder(
            _repeated(by_key.ptr, more_keys),
            by_key.edge,
            _moved(by_key.query, graph.n_queries, n_queries),
        ),
        n_keys=n_keys,
        query_id=_extended_ids(graph.query_id, n_queries),
        key_id=_extended_ids(graph.key_id, n_keys),
        query_mask=_extended(query_mask, np.zeros(more_queries)),
    )


def _extended_ids(ids: jax.Array | None, n_nodes: int) -> jax.Array | None:
    return None if ids is None else _extended(ids, np.arange(ids.shape[0], n_nodes))


def _extended(array: jax.Array, tail: NumPyArray) -> jax.Array:
    """An array with more behind it."""
    xp, values = _with_what_knows(array)
    return on_device(xp.concatenate((values, tail.astype(array.dtype))))


def _repeated(pointers: jax.Array, times: int) -> jax.Array:
    """Pointers with the last repeated: of nodes without edges."""
    xp, values = _with_what_knows(pointers)
    return on_device(xp.concatenate((values, xp.repeat(values[-1:], times))))


def _moved(index: jax.Array, end: int, new_end: int) -> jax.Array:
    """Indices of nodes, of which those of padding point past the end."""
    xp, values = _with_what_knows(index)
    return on_device(xp.where(values == end, xp.asarray(new_end, index.dtype), values))


def _with_what_knows(array: jax.Array) -> tuple[ModuleType, ArrayLike]:
    """NumPy for an array whose values are known: nothing is compiled for the size of each graph."""
    return (np, np.asarray(array)) if is_concrete(array) else (jnp, array)
