"""Self-loops: each node attends to itself, once, whatever self-loops there were; as in PyTorch.

Where a graph is traced, self-loops that there were become padding, since the number of edges must be
known.
"""

import jax
import jax.numpy as jnp
import numpy as np

from gatv2.jax.adjacency import on_jax
from gatv2.jax.arrays import ArrayLike
from gatv2.jax.blocks import lead
from gatv2.jax.config import FillValue
from gatv2.jax.graph import Graph, SelfLoops
from gatv2.jax.graph.loops import check_has_self_loops


def add_self_loops(
    adjacency: Graph | ArrayLike,
    edge_features: jax.Array | None = None,
    fill_value: FillValue = "mean",
    *,
    name: str = "edge_features",
) -> tuple[Graph | ArrayLike, jax.Array | None]:
    """A graph or mask with one self-loop at each node, and edge features that fit it.

    Args:
        adjacency: a `Graph`, or a bool mask.
        edge_features: `[*batch, n_edges, D]` in the caller's order of the graph's edges, or
            `[*batch, n, n, D]` with a mask; None for edges without features.
        fill_value: features of the self-loops: a number, D of them, or a reduction of the features of
            the edges by which a node attends to others. For a node without any they are zero, with "mul"
            one.
        name: what errors call the features, which may be a bias of the scores.

    Returns:
        The graph, whose edges are, in the caller's order, those that are no self-loops and then the
        self-loops of node 0, 1, and so on; or the mask; and the features. If the graph is traced, all
        its edges come first, and those that are self-loops or padding have no part in attention.

    Raises:
        ValueError: there are not as many queries as keys, or sizes do not fit.

    Example:
        >>> graph = Graph.from_edge_index(np.array([[0, 1, 0], [1, 1, 2]]), n_nodes=3)
        >>> graph, features = add_self_loops(graph, jnp.array([[1.0], [2.0], [5.0]]))
        >>> graph.edge_index
        Array([[0, 0, 0, 1, 2],
               [1, 2, 0, 1, 2]], dtype=int32)
        >>> features.squeeze(1)
        Array([1., 5., 3., 0., 0.], dtype=float32)

    Source: torch_geometric.utils.add_self_loops, after remove_self_loops.
    """
    n_queries, n_keys = (
        adjacency.block_shape if isinstance(adjacency, Graph) else adjacency.shape[-3:-1]
    )
    check_has_self_loops(n_queries, n_keys)
    if isinstance(adjacency, Graph):
        loops = adjacency.self_loops()
        if edge_features is None:
            return loops.graph, None
        _check_rows(edge_features, -2, adjacency.n_edges, name)
        return loops.graph, _of_edges(loops, edge_features, fill_value)
    adjacency, loop = on_jax(adjacency), jnp.eye(n_queries, dtype=bool)[..., None]
    if edge_features is None:
        return adjacency | lead(loop, adjacency.ndim), None
    _check_rows(edge_features, -3, n_queries, name)
    _check_rows(edge_features, -2, n_keys, name)
    if isinstance(fill_value, str):
        is_other = adjacency.any(-1, keepdims=True) & ~lead(loop, adjacency.ndim)
        filled = _reduce_masked(edge_features, lead(is_other, edge_features.ndim), fill_value)
        filled = filled[..., None, :]
    else:
        filled = _as_features(fill_value, edge_features)
    loop_of_features = lead(loop, edge_features.ndim)
    return adjacency | lead(loop, adjacency.ndim), jnp.where(
        loop_of_features, filled, edge_features
    )


def _of_edges(loops: SelfLoops, values: jax.Array, fill_value: FillValue) -> jax.Array:
    kept = jnp.take(values, loops.kept, axis=-2)
    kept = jnp.where(loops.is_other[:, None], kept, 0)
    n_loops = loops.graph.n_edges - loops.kept.shape[0]
    shape = (*kept.shape[:-2], loops.graph.n_queries, kept.shape[-1])
    if isinstance(fill_value, str):
        filled = _reduce_by_query(kept, loops.query, shape, fill_value)
        if n_loops != loops.graph.n_queries:  # nodes that are padding have none
            filled = filled[..., np.flatnonzero(np.asarray(loops.graph.query_mask)), :]
    else:
        filled = jnp.broadcast_to(_as_features(fill_value, kept), (*shape[:-2], n_loops, shape[-1]))
    return jnp.concatenate((kept, filled), axis=-2)


def _as_features(fill_value: float | tuple[float, ...], edge_features: jax.Array) -> jax.Array:
    filled, n_features = jnp.asarray(fill_value, edge_features.dtype), edge_features.shape[-1]
    if filled.shape not in ((), (1,), (n_features,)):
        raise ValueError(
            f"`fill_value` must be a number or {n_features} of them, as `edge_features` have; "
            f"got {filled.shape[0]}"
        )
    return jnp.broadcast_to(filled, (1,) * (edge_features.ndim - 1) + (n_features,))


def _reduce_by_query(
    values: jax.Array, query: jax.Array, shape: tuple[int, ...], how: str
) -> jax.Array:
    index = jnp.where(query < 0, shape[-2], query)  # dropped
    if how in ("sum", "add", "mean"):
        total = jnp.zeros(shape, values.dtype).at[..., index, :].add(values, mode="drop")
        if how != "mean":
            return total
        ones = jnp.ones(index.shape, values.dtype)
        count = jnp.zeros(shape[-2], values.dtype).at[index].add(ones, mode="drop")
        mean: jax.Array = total / lead(jnp.maximum(count, 1)[:, None], total.ndim)
        return mean
    if how == "mul":
        return jnp.ones(shape, values.dtype).at[..., index, :].multiply(values, mode="drop")
    start = jnp.full(shape, jnp.inf if how == "min" else -jnp.inf, values.dtype)
    at = start.at[..., index, :]
    extreme = at.min(values, mode="drop") if how == "min" else at.max(values, mode="drop")
    has_other = jnp.zeros(shape[-2], bool).at[index].set(True, mode="drop")
    return jnp.where(lead(has_other[:, None], extreme.ndim), extreme, 0)


def _reduce_masked(values: jax.Array, is_other: jax.Array, how: str) -> jax.Array:
    if not values.shape[-2]:
        return values.sum(-2)
    count = is_other.sum(-2, dtype=jnp.int32)
    if how == "mul":
        return jnp.where(is_other, values, 1).prod(-2)
    if how in ("min", "max"):
        worst = jnp.inf if how == "min" else -jnp.inf
        others = jnp.where(is_other, values, worst)
        extreme = others.min(-2) if how == "min" else others.max(-2)
        return jnp.where(count > 0, extreme, 0)
    total = jnp.where(is_other, values, 0).sum(-2)
    return total / jnp.maximum(count, 1).astype(total.dtype) if how == "mean" else total


def _check_rows(edge_features: jax.Array, axis: int, expected: int, name: str) -> None:
    if edge_features.ndim < -axis or edge_features.shape[axis] != expected:
        raise ValueError(
            f"`{name}` must have {expected} as dimension {axis}, to be laid out as the graph; "
            f"got {edge_features.shape}"
        )
