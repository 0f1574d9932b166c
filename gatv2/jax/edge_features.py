"""What edges have, laid out as the caller's graph, brought to the layout of a backend.

Features `edge_features`, or a bias `score_bias` with 1 or n_heads in the place of D; `name` is which.
As in PyTorch, with a mask `[*batch, n_queries, n_keys, D]`, entry for entry; with a list of edges
`[*batch, n_edges, D]`, in the caller's order of the edges, then padding.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gatv2.jax.adjacency import Adjacency, Sizes, is_graph, is_mask
from gatv2.jax.arrays import ArrayLike
from gatv2.jax.checks import as_array
from gatv2.jax.graph import Graph
from gatv2.options import BOOL_BIAS, Flow, by_role, how_to_add_heads, how_to_expand

_LAST = {"edge_features": "D", "score_bias": "1 or n_heads"}


class EdgeInputs(NamedTuple):
    """Edge features and what projects them to heads."""

    features: jax.Array
    """x, `[*B, n_edges, D]` or `[*B, N, M, D]`."""
    projection: jax.Array
    """W_e, `[H, F, D]`."""

    def project(self, features: jax.Array) -> jax.Array:
        """W_e x, `[..., H, F]`, of features `[..., 1 or H, D]`, those of all heads or of each."""
        if features.shape[-2] == 1:
            return jnp.einsum("...d,hfd->...hf", features.squeeze(-2), self.projection)
        return jnp.einsum("...hd,hfd->...hf", features, self.projection)


def as_edge_inputs(
    edge_features: ArrayLike | None, edge_projection: ArrayLike | None, query: jax.Array
) -> EdgeInputs | None:
    """Both as arrays of JAX, or None; raises unless both are given or neither, and fit the queries.

    Raises:
        TypeError: of another dtype than `query`.
        ValueError: one without the other, or sizes that do not fit.
    """
    if edge_features is None or edge_projection is None:
        given = {"edge_features": edge_features, "edge_projection": edge_projection}
        for name, array in given.items():
            if array is not None:
                raise ValueError(f"`edge_features` come with `edge_projection`; got only `{name}`")
        return None
    edges = EdgeInputs(jnp.asarray(edge_features), jnp.asarray(edge_projection))
    for name, array in (("edge_features", edges.features), ("edge_projection", edges.projection)):
        if array.dtype != query.dtype:
            raise TypeError(
                f"`{name}` must have the dtype of `query`, {query.dtype}; got {array.dtype}: "
                "convert it with `.astype(query.dtype)`"
            )
    if edges.projection.ndim != 3 or edges.projection.shape[:2] != query.shape[-2:]:
        n_heads, n_hidden = query.shape[-2:]
        raise ValueError(
            f"`edge_projection` must have shape (n_heads, n_hidden, D)=({n_heads}, {n_hidden}, D); "
            f"got {edges.projection.shape}"
        )
    n_features = edges.projection.shape[2]
    if edges.features.ndim < 2 or edges.features.shape[-1] != n_features:
        raise ValueError(
            f"the last dimension of `edge_features` must be D={n_features}, as `edge_projection` "
            f"has it; got shape {edges.features.shape}"
        )
    return edges


def refuse_bool_bias(score_bias: jax.Array) -> None:
    """Raise a TypeError for a mask of bools, which would be added as 0 and 1 once it was converted."""
    if score_bias.dtype == bool:
        raise TypeError(BOOL_BIAS)


def as_score_bias(
    score_bias: ArrayLike | None, nodes: jax.Array, n_heads: int, name: str = "query"
) -> jax.Array | None:
    """A bias of the scores as an array of JAX, or None; raises unless it fits features of nodes.

    Raises:
        TypeError: no array, or of another dtype than the nodes, which errors call `name`.
        ValueError: its last dimension is not that of heads.
    """
    if score_bias is None:
        return None
    array = as_array("score_bias", score_bias)
    refuse_bool_bias(array)
    if array.dtype != nodes.dtype:
        raise TypeError(
            f"`score_bias` must have the dtype of `{name}`, {nodes.dtype}; got {array.dtype}: "
            f"convert it with `.astype({name}.dtype)`"
        )
    if array.ndim < 2 or array.shape[-1] not in (1, n_heads):
        raise ValueError(
            f"the last dimension of `score_bias` must be of heads, 1 or {n_heads}; got shape "
            f"{array.shape}: {how_to_add_heads(array.shape, n_heads, 'jax')}"
        )
    return array


def broadcast_batch(
    values: jax.Array, adj_mat: object, batch_shape: tuple[int, ...], name: str = "edge_features"
) -> tuple[int, ...]:
    """The batch shape of the result, of what edges have and of whatever has `batch_shape`.

    Raises:
        ValueError: the two do not broadcast, or a batch of graphs has features with a batch.
    """
    own = values.shape[: -3 if is_mask(adj_mat) else -2]
    if own and is_graph(adj_mat) and adj_mat.batch_dims:
        raise ValueError(
            f"the graph is a batch of {adj_mat.n_blocks} graphs: `{name}` must have shape "
            f"(n_edges, {_LAST[name]})=({adj_mat.n_edges}, {values.shape[-1]}), the edges of all of "
            f"them; got {values.shape}"
        )
    try:
        return jnp.broadcast_shapes(own, batch_shape)
    except ValueError:
        raise ValueError(
            f"the batch dimensions of `{name}`, {own}, do not broadcast with those of "
            f"the nodes' features and the graph, {batch_shape}"
        ) from None


def as_backend_reads(
    values: jax.Array,
    graph: object,
    adjacency: Adjacency,
    sizes: Sizes,
    flow: Flow,
    name: str = "edge_features",
) -> jax.Array:
    """What edges have as the backend of `adjacency` reads it.

    Args:
        values: laid out as `graph`.
        graph: the caller's mask, or a `Graph` that holds the caller's list of edges.
        adjacency: what the backend reads, made of `graph`.
        sizes: the sizes that both fit.
        flow: how `graph` was read, if it is a mask.
        name: what errors call the values.

    Returns:
        `[*batch, n_edges, D]` (`[n_edges, D]` for a batch of graphs) in the order of `edge_id`, or
        `[*batch, n_queries, n_keys, D]`, with the batch that the values have.

    Raises:
        ValueError: the layout is another one.
    """
    if isinstance(graph, Graph):
        return _of_list(values, graph, adjacency, sizes, name)
    return _of_mask(values, adjacency, sizes, flow, name)


def _of_list(
    values: jax.Array, graph: Graph, adjacency: Adjacency, sizes: Sizes, name: str
) -> jax.Array:
    n_features = values.shape[-1]
    if values.shape[-2] != graph.n_edges:
        raise ValueError(
            f"`{name}` must have shape (*batch, n_edges={graph.n_edges}, {_last(name, values)}), in "
            "the order of the edges, then padding, as the graph is a list of edges (with a mask, the "
            f"shape is (*batch, n_queries, n_keys, {_LAST[name]})); got {values.shape}"
        )
    if isinstance(adjacency, Graph):
        return values
    block_queries, block_keys = max(sizes.n_queries, 1), max(sizes.n_keys, 1)
    shape = (graph.n_blocks, sizes.n_queries, sizes.n_keys, n_features)
    sorted_values = jnp.take(values, graph.edge_id, axis=-2)
    batch = values.shape[:-2]
    cell = jnp.zeros((*batch, *shape), values.dtype).at[
        ...,
        graph.query_index // block_queries,
        graph.query_index % block_queries,
        graph.key_index % block_keys,
        :,
    ]
    pairs: jax.Array = cell.set(sorted_values, mode="drop")
    return pairs.reshape(*(batch if not graph.batch_dims else sizes.batch_shape), *shape[1:])


def _of_mask(
    values: jax.Array, adjacency: Adjacency, sizes: Sizes, flow: Flow, name: str
) -> jax.Array:
    pair = (sizes.n_queries, sizes.n_keys)
    expected = by_role(pair, flow)
    if values.ndim < 3 or values.shape[-3:-1] != expected:
        raise ValueError(
            f"`{name}` must have shape (*batch, {expected[0]}, {expected[1]}, "
            f"{_last(name, values)}), entry for entry as the mask (with a list of edges, the shape is "
            f"(*batch, n_edges, {_LAST[name]})); got {values.shape}"
            f"{how_to_expand(values.shape, expected, 'jax')}"
        )
    if flow == "source_to_target":
        values = jnp.swapaxes(values, -3, -2)
    if not isinstance(adjacency, Graph):
        return values
    query, key = adjacency.query_index, adjacency.key_index
    if not adjacency.batch_dims:
        return values[..., query, key, :]  # a mask's edges are numbered as they are sorted
    values = jnp.broadcast_to(values, (*sizes.batch_shape, *values.shape[-3:]))
    blocks = values.reshape(adjacency.n_blocks, *values.shape[-3:])
    return blocks[query // pair[0], query % pair[0], key % pair[1]]


def _last(name: str, values: jax.Array) -> str:
    """The last dimension of values, with its name and its size."""
    return f"{_LAST[name]}={values.shape[-1]}" if name == "edge_features" else _LAST[name]
