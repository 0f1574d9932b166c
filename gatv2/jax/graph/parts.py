"""Many graphs as one, and one as many: batches, and parts for as many devices."""

from collections.abc import Sequence
from itertools import pairwise

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
from gatv2.options import Flow


def batch(kind: type[Traced], graphs: Sequence[Traced]) -> Traced:
    """The block-diagonal union of graphs of any sizes; see :meth:`gatv2.jax.Graph.batch`."""
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
        flow=_common_flow(graphs),
        is_bipartite=any(
            graph.is_bipartite or graph.block_shape[0] != graph.block_shape[1] for graph in graphs
        ),
    )


def split(graph: Traced, n_parts: int) -> Traced:
    """The queries split evenly, parts stacked; see :meth:`gatv2.jax.Graph.split`."""
    require_concrete(graph, "split")
    if graph.batch_dims or graph.n_queries % n_parts:
        raise ValueError(
            f"only one graph whose queries divide by {n_parts} can be split so; got {graph}"
        )
    size, host = graph.n_queries // n_parts, as_numpy(graph)
    bounds = host.query_ptr[:: max(size, 1)] if size else np.zeros(n_parts + 1, int)
    largest = int(np.diff(bounds).max())
    query_id = np.arange(graph.n_queries) if host.query_id is None else host.query_id
    parts = []
    for part, (begin, end) in enumerate(pairwise(bounds)):
        queries = slice(part * size, (part + 1) * size)
        own = of_sorted(
            type(graph),
            sort_edges(
                host.query_index[begin:end] - part * size,
                host.key_index[begin:end],
                size,
                graph.n_keys,
            ),
            graph.n_keys,
            head_mask=None if host.head_mask is None else host.head_mask[begin:end],
            query_id=narrow(query_id[queries]),
            key_id=host.key_id,
            query_mask=None if host.query_mask is None else host.query_mask[queries],
            flow=graph.flow,
        )
        parts.append(padded(own, largest))
    stacked: Traced = jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)
    return stacked


def narrow(ids: NumPyArray) -> NumPyArray:
    """Numbers of nodes as int32, if they fit."""
    fits = ids.size == 0 or (ids.min() >= -(2**31) and ids.max() < 2**31)
    return ids.astype(np.int32) if fits else ids


def _common_flow(graphs: Sequence[SortedEdges[jax.Array]]) -> Flow:
    flows = {graph.flow for graph in graphs}
    if len(flows) > 1:
        raise ValueError(
            f"graphs of a batch must be made with one flow; got {sorted(flows)}: make all of them with "
            "the `flow` of the layer"
        )
    return flows.pop()


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
