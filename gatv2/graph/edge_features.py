"""Edge features, laid out as the caller's graph, brought to the layout of a backend.

They are laid out as the graph that comes with them: with a mask `[*batch, n_queries, n_keys, D]`,
entry for entry; with a list of edges (an edge index, a `Graph`, a sparse matrix) `[*batch, n_edges, D]`,
in the caller's order of the edges. A backend that reads the other form gets them converted. A bias of
the scores is laid out as they are, with 1 or n_heads in the place of D.
"""

import torch
from torch import Tensor

from gatv2.graph.adjacency import Adjacency, Sizes
from gatv2.graph.graph import Graph
from gatv2.options import Flow, by_role, how_to_expand

_LAST = {"edge_features": "D", "score_bias": "1 or n_heads"}


def is_mask(adj_mat: object) -> bool:
    """Whether a form of a graph that `gatv2.graph.as_adjacency` reads is a mask."""
    return (
        isinstance(adj_mat, Tensor)
        and adj_mat.layout == torch.strided
        and (adj_mat.ndim != 2 or adj_mat.dtype == torch.bool)
    )


def broadcast_batch(
    edge_features: Tensor,
    adj_mat: object,
    batch_shape: torch.Size,
    name: str = "edge_features",
) -> torch.Size:
    """The batch shape of the result, of edge features and of whatever has `batch_shape`.

    `name` is what errors call the features.

    Raises:
        ValueError: the two do not broadcast, or a batch of graphs has features with a batch.
    """
    own = edge_features.shape[: -3 if is_mask(adj_mat) else -2]
    if isinstance(adj_mat, Graph) and adj_mat.batch_dims and own:
        raise ValueError(
            f"the graph is a batch of {adj_mat.n_blocks} graphs: `{name}` must have shape "
            f"(n_edges, {_LAST[name]})=({adj_mat.n_edges}, {edge_features.shape[-1]}), the edges of all "
            f"of them; got {tuple(edge_features.shape)}"
        )
    try:
        return torch.Size(torch.broadcast_shapes(own, batch_shape))
    except RuntimeError:
        raise ValueError(
            f"the batch dimensions of `{name}`, {tuple(own)}, do not broadcast with those of "
            f"the nodes' features and the graph, {tuple(batch_shape)}"
        ) from None


def as_backend_reads(
    edge_features: Tensor,
    graph: object,
    adjacency: Adjacency,
    sizes: Sizes,
    flow: Flow,
    name: str = "edge_features",
) -> Tensor:
    """Edge features as the backend of `adjacency` reads them.

    Args:
        edge_features: laid out as `graph`.
        graph: the caller's mask, or a `Graph` that holds the caller's list of edges.
        adjacency: what the backend reads, made of `graph`.
        sizes: the sizes that both fit.
        flow: how `graph` was read, if it is a mask.
        name: what errors call the features.

    Returns:
        `[*batch, n_edges, D]` (`[n_edges, D]` for a batch of graphs) in the order of `edge_id`, or
        `[*batch, n_queries, n_keys, D]`.

    Raises:
        ValueError: the layout is another one.
    """
    if isinstance(graph, Graph):
        return _from_list(edge_features, graph, adjacency, sizes, name)
    return _from_mask(edge_features, adjacency, sizes, flow, name)


def _from_list(
    values: Tensor, graph: Graph, adjacency: Adjacency, sizes: Sizes, name: str
) -> Tensor:
    n_features = values.shape[-1]
    if values.shape[-2] != graph.n_edges:
        raise ValueError(
            f"`{name}` must have shape (*batch, n_edges={graph.n_edges}, {_last(name, values)}), "
            "in the order of the edges, as the graph is a list of edges (with a mask, the shape is "
            f"(*batch, n_queries, n_keys, {_LAST[name]})); got {tuple(values.shape)}"
        )
    if not graph.batch_dims and values.shape[:-2] != sizes.batch_shape:
        values = values.expand(*sizes.batch_shape, *values.shape[-2:])
    if isinstance(adjacency, Graph):
        return values
    edge_index, n_keys = graph.edge_index, sizes.n_keys
    cell = edge_index[0] * n_keys + edge_index[1] % n_keys if n_keys else edge_index[0]
    n_cells = graph.n_queries * n_keys
    pairs = values.new_zeros(*values.shape[:-2], n_cells, n_features).index_add(-2, cell, values)
    return pairs.reshape(*sizes.batch_shape, sizes.n_queries, n_keys, n_features)


def _from_mask(values: Tensor, adjacency: Adjacency, sizes: Sizes, flow: Flow, name: str) -> Tensor:
    pair = (sizes.n_queries, sizes.n_keys)
    expected = by_role(pair, flow)
    if values.ndim < 3 or values.shape[-3:-1] != expected:
        raise ValueError(
            f"`{name}` must have shape (*batch, {expected[0]}, {expected[1]}, "
            f"{_last(name, values)}), entry for entry as the mask (with a list of edges, the shape "
            f"is (*batch, n_edges, {_LAST[name]})); got {tuple(values.shape)}"
            f"{how_to_expand(values.shape, expected)}"
        )
    if flow == "source_to_target":
        values = values.transpose(-3, -2)
    values = values.expand(*sizes.batch_shape, *values.shape[-3:])
    if not isinstance(adjacency, Graph):
        return values
    query, key = adjacency.query_index.long(), adjacency.key_index.long()
    if not adjacency.batch_dims:
        return values[..., query, key, :]  # a mask's edges are numbered as they are sorted
    blocks = values.reshape(adjacency.n_blocks, *values.shape[-3:])
    return blocks[query // pair[0], query % pair[0], key % pair[1]]


def _last(name: str, values: Tensor) -> str:
    """The last dimension of values, with its name and, unless that says it, its size."""
    return f"D={values.shape[-1]}" if name == "edge_features" else _LAST[name]
