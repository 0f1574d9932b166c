"""Many graphs as one, and one as many: batches, and parts for as many devices."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from gatv2.jax.arrays import NumPyArray
from gatv2.jax.graph.edges import (
    SortedEdges,
    Traced,
    as_numpy,
    of_sorted,
    require_concrete,
    require_unpadded,
)
from gatv2.jax.graph.padding import padded
from gatv2.jax.graph.sort import Edges, KeyOrder, sort_edges
from gatv2.options import check_sizes, common_flow

Side = Literal["queries", "keys"]


def batch(kind: type[Traced], graphs: Iterable[Traced]) -> Traced:
    """The block-diagonal union of graphs of any sizes; see :meth:`gatv2.jax.Graph.batch`."""
    graphs = tuple(graphs)  # which are looked at more than once
    if not graphs:
        raise ValueError("a batch needs at least one graph; got none")
    hosts = []
    for graph in graphs:
        require_concrete(graph, "batch")
        require_unpadded(graph, "a batch", "pad the batch")
        hosts.append(as_numpy(graph))
    counts = [(graph.n_queries, graph.n_keys, graph.n_edges) for graph in hosts]
    offsets = np.cumsum([(0, 0, 0), *counts], axis=0)
    dtype = np.int32 if offsets[-1].max() < 2**31 else np.int64

    def joined(arrays: Sequence[NumPyArray], by: int) -> NumPyArray:
        return np.concatenate(
            [
                array.astype(dtype) + offset[by]
                for array, offset in zip(arrays, offsets, strict=False)
            ]
        ).astype(dtype)

    end = offsets[-1:, 2].astype(dtype)
    edges = Edges(
        np.append(joined([host.query_ptr[:-1] for host in hosts], 2), end),
        joined([host.key_index for host in hosts], 1),
        joined([host.query_index for host in hosts], 0),
        joined([host.edge_id for host in hosts], 2),
    )
    by_key = KeyOrder(
        np.append(joined([host.by_key.ptr[:-1] for host in hosts], 2), end),
        joined([host.by_key.edge for host in hosts], 2),
        joined([host.by_key.query for host in hosts], 0),
    )
    return of_sorted(
        kind,
        (edges, by_key),
        int(offsets[-1, 1]),
        head_mask=_join_head_masks(hosts),
        query_id=_join_ids([host.query_id for host in hosts], offsets[:, 0]),
        key_id=_join_ids([host.key_id for host in hosts], offsets[:, 1]),
        flow=common_flow(graph.flow for graph in graphs),
        is_bipartite=any(
            graph.is_bipartite or graph.block_shape[0] != graph.block_shape[1] for graph in graphs
        ),
    )


def split(graph: Traced, n_parts: int, side: Side) -> Traced:
    """The queries or the keys split evenly, parts stacked; see :meth:`gatv2.jax.Graph.split`."""
    host, size, positions = _edges_of_parts(graph, n_parts, side)
    is_of_queries = side == "queries"
    n_nodes = host.n_queries if is_of_queries else host.n_keys
    own_ids = host.query_id if is_of_queries else host.key_id
    ids = np.arange(n_nodes) if own_ids is None else own_ids
    parts = []
    for part, edges in enumerate(positions):
        first, nodes = part * size, slice(part * size, (part + 1) * size)
        query, key = host.query_index[edges], host.key_index[edges]
        pair = (query - first, key) if is_of_queries else (query, key - first)
        n_queries, n_keys = (size, host.n_keys) if is_of_queries else (host.n_queries, size)
        of_nodes = narrow(ids[nodes])
        query_mask = host.query_mask
        if query_mask is not None and is_of_queries:
            query_mask = query_mask[nodes]
        own = of_sorted(
            type(graph),
            sort_edges(*pair, n_queries, n_keys),
            n_keys,
            head_mask=None if host.head_mask is None else host.head_mask[edges],
            query_id=of_nodes if is_of_queries else host.query_id,
            key_id=host.key_id if is_of_queries else of_nodes,
            query_mask=query_mask,
            flow=graph.flow,
        )
        parts.append(padded(own, max(map(len, positions))))
    stacked: Traced = jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)
    return stacked


def split_edges(graph: Traced, values: jax.Array, n_parts: int, side: Side) -> jax.Array:
    """What edges have, split as the graph is; see :meth:`gatv2.jax.Graph.split_edges`."""
    host, _, positions = _edges_of_parts(graph, n_parts, side)
    edges = np.full((n_parts, max(map(len, positions))), graph.n_edges)
    for own, part in zip(edges, positions, strict=True):
        own[: len(part)] = host.edge_id[part]
    split_values = jnp.take(values, edges, axis=-2, mode="fill", fill_value=0)
    return jnp.moveaxis(split_values, -3, 0)


def _edges_of_parts(
    graph: Traced, n_parts: int, side: Side
) -> tuple[SortedEdges[NumPyArray], int, list[NumPyArray]]:
    """The graph on the host, the nodes of a part, and where each part's edges stand, ascending."""
    if side not in ("queries", "keys"):
        raise ValueError(f"`side` must be 'queries' or 'keys'; got {side!r}")
    check_sizes(n_parts=n_parts)
    require_concrete(graph, "split")
    n_nodes = graph.n_queries if side == "queries" else graph.n_keys
    if graph.batch_dims or n_nodes % n_parts:
        raise ValueError(
            f"only one graph whose {side} divide by {n_parts} can be split so; got {graph}"
        )
    size, host = n_nodes // n_parts, as_numpy(graph)
    part = (host.query_index if side == "queries" else host.key_index) // max(size, 1)
    return host, size, [np.flatnonzero(host.is_edge & (part == i)) for i in range(n_parts)]


def narrow(ids: NumPyArray) -> NumPyArray:
    """Numbers of nodes as int32, if they fit."""
    fits = ids.size == 0 or (ids.min() >= -(2**31) and ids.max() < 2**31)
    return ids.astype(np.int32) if fits else ids


def _join_head_masks(graphs: Sequence[SortedEdges[NumPyArray]]) -> NumPyArray | None:
    masks = [graph.head_mask for graph in graphs if graph.head_mask is not None]
    if not masks:
        return None
    heads = {mask.shape[1] for mask in masks}
    if len(heads) > 1:
        raise ValueError(f"masks in a batch must be for one number of heads; got {sorted(heads)}")
    return np.concatenate(
        [
            np.ones((graph.n_edges, *heads), bool) if graph.head_mask is None else graph.head_mask
            for graph in graphs
        ]
    )


def _join_ids(ids: Sequence[NumPyArray | None], offsets: NumPyArray) -> NumPyArray | None:
    """Numbers of the nodes of a batch: those that a graph gives them, else their positions."""
    if all(own is None for own in ids):
        return None
    bounds = pairwise(offsets)
    return narrow(
        np.concatenate(
            [
                np.arange(*bound) if own is None else own
                for own, bound in zip(ids, bounds, strict=True)
            ]
        )
    )
