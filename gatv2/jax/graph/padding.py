"""A graph with padding behind its edges and nodes: graphs of several sizes, one compilation."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from gatv2.jax.arrays import NumPyArray, is_concrete
from gatv2.jax.graph.edge_index import NumberOfNodes, read_sizes
from gatv2.jax.graph.edges import Traced
from gatv2.jax.graph.sort import KeyOrder


def padded(graph: Traced, n_edges: int, n_nodes: NumberOfNodes | None = None) -> Traced:
    """The graph with `n_edges` edges and `n_nodes` nodes; see :meth:`gatv2.jax.Graph.padded`."""
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
    query_mask = np.ones(graph.n_queries, bool) if graph.query_mask is None else graph.query_mask
    is_padding = graph.query_index == graph.n_queries
    by_key, n_edges = graph.by_key, graph.query_ptr[-1:]
    return replace(
        graph,
        query_ptr=jnp.concatenate((graph.query_ptr, jnp.repeat(n_edges, more_queries))),
        key_index=jnp.where(is_padding, n_keys, graph.key_index),
        query_index=jnp.where(is_padding, n_queries, graph.query_index),
        by_key=KeyOrder(
            jnp.concatenate((by_key.ptr, jnp.repeat(n_edges, more_keys))),
            by_key.edge,
            jnp.where(by_key.query == graph.n_queries, n_queries, by_key.query),
        ),
        n_keys=n_keys,
        query_id=_extended_ids(graph.query_id, n_queries),
        key_id=_extended_ids(graph.key_id, n_keys),
        query_mask=_extended(jnp.asarray(query_mask), np.zeros(more_queries)),
    )


def _extended_ids(ids: jax.Array | None, n_nodes: int) -> jax.Array | None:
    return None if ids is None else _extended(ids, np.arange(ids.shape[0], n_nodes))


def _extended(array: jax.Array, tail: NumPyArray) -> jax.Array:
    tail = tail.astype(array.dtype)
    if is_concrete(array):  # with NumPy: nothing is compiled for the size of each graph
        return jnp.asarray(np.concatenate((array, tail)))
    return jnp.concatenate((array, tail))
