"""A graph with one self-loop at each node, traced or not."""

from dataclasses import replace
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np

from gatv2.jax.arrays import computed_where, on_device
from gatv2.jax.graph.edge_index import sort_edge_index
from gatv2.jax.graph.edges import Traced, is_known, of_sorted, with_nodes_of
from gatv2.options import check_has_self_loops


def with_self_loops(graph: Traced) -> tuple[Traced, jax.Array, jax.Array, jax.Array]:
    """What :class:`gatv2.jax.graph.SelfLoops` holds."""
    edges_and_nodes = replace(graph, head_mask=None)  # which takes no edge from the list
    with computed_where(*jax.tree.leaves(edges_and_nodes)):
        return _with_self_loops(graph, np if is_known(edges_and_nodes) else jnp)


def _with_self_loops(
    graph: Traced, xp: ModuleType
) -> tuple[Traced, jax.Array, jax.Array, jax.Array]:
    check_has_self_loops(*graph.block_shape, is_bipartite=graph.is_bipartite)
    n_nodes = graph.n_queries
    query, key = xp.asarray(graph.edge_index)
    is_edge = xp.asarray(graph.in_callers_order(graph.is_edge, axis=0))
    is_other = is_edge & (query != key)
    kept = xp.arange(graph.n_edges, dtype=graph.edge_id.dtype)
    if xp is np:
        kept = kept[is_other]
        query, key, is_other = query[kept], key[kept], is_other[kept]
    query = xp.where(is_other, query, -1)  # a traced edge that is no other one is dropped
    node = xp.arange(n_nodes, dtype=query.dtype)
    if graph.query_mask is not None:
        is_node = xp.asarray(graph.query_mask)
        node = node[is_node] if xp is np else xp.where(is_node, node, -1)
    edge_index = xp.stack((xp.concatenate((query, node)), xp.concatenate((key, node))))
    sorted_edges = sort_edge_index(edge_index, n_nodes, n_nodes)
    result = with_nodes_of(graph, of_sorted(type(graph), sorted_edges, n_nodes))
    head_mask = graph.head_mask
    if head_mask is not None:
        of_kept = graph.in_callers_order(head_mask, axis=0)[kept]
        of_loops = jnp.ones((node.shape[0], head_mask.shape[1]), bool)
        result = replace(result, head_mask=jnp.concatenate((of_kept, of_loops))[result.edge_id])
    return result, on_device(kept), on_device(is_other), on_device(query)
