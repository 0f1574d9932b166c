"""Self-loops: each node attends to itself, once, whatever self-loops there were; as in PyTorch.

Where a graph is traced, self-loops that there were become padding, since the number of edges must be
known.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from gatv2.jax.adjacency import is_one_value, on_jax
from gatv2.jax.arrays import ArrayLike, computed_where
from gatv2.jax.blocks import lead
from gatv2.jax.config import FillValue
from gatv2.jax.graph import Graph, SelfLoops
from gatv2.jax.precision import computed_in
from gatv2.options import check_has_self_loops

_NEUTRAL = {"mul": 1.0, "min": np.inf, "max": -np.inf}


def add_self_loops(
    adjacency: Graph | ArrayLike,
    edge_features: jax.Array | None = None,
    fill_value: FillValue = "mean",
    *,
    is_bias: bool = False,
) -> tuple[Graph | ArrayLike, jax.Array | None]:
    """A graph or mask with one self-loop at each node, and edge features that fit it.

    Args:
        adjacency: a `Graph`, or a bool mask.
        edge_features: `[*batch, n_edges, D]` in the caller's order of the graph's edges, or
            `[*batch, n, n, D]` with a mask; None for edges without features.
        fill_value: features of the self-loops: a number, D of them, or a reduction of the features of
            the edges by which a node attends to others. For a node without any they are zero, with "mul"
            one.
        is_bias: whether `edge_features` is a `score_bias`, with 1 or n_heads in the place of D. An edge
            whose bias is -inf is none for that head, and is not reduced.

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
        _check_rows(edge_features, -2, adjacency.n_edges, is_bias)
        return loops.graph, _of_edges(loops, edge_features, fill_value, is_bias)
    with_loops, loop = _with_loops(adjacency), jnp.eye(n_queries, dtype=bool)[..., None]
    if edge_features is None:
        return with_loops, None
    adjacency = on_jax(adjacency)
    _check_rows(edge_features, -3, n_queries, is_bias)
    _check_rows(edge_features, -2, n_keys, is_bias)
    if isinstance(fill_value, str):
        is_other = adjacency.any(-1, keepdims=True) & ~lead(loop, adjacency.ndim)
        is_other = lead(is_other, edge_features.ndim)
        if is_bias:
            is_other = is_other & (edge_features != -jnp.inf)
        filled = _reduce_masked(edge_features, is_other, fill_value)
        filled = filled[..., None, :]
    else:
        filled = _as_features(fill_value, edge_features, is_bias)
    return with_loops, jnp.where(lead(loop, edge_features.ndim), filled, edge_features)


def _with_loops(mask: ArrayLike) -> ArrayLike:
    """A mask with one self-loop at each node, known where the mask is."""
    if is_one_value(mask) and mask.flat[0]:
        return mask
    with computed_where(mask):
        loop = jnp.eye(mask.shape[-3], dtype=bool)[..., None]
        return jnp.asarray(mask) | lead(loop, mask.ndim)


def _of_edges(
    loops: SelfLoops, values: jax.Array, fill_value: FillValue, is_bias: bool
) -> jax.Array:
    kept = jnp.take(values, loops.kept, axis=-2)
    kept = jnp.where(loops.is_other[:, None], kept, 0)
    n_loops = loops.graph.n_edges - loops.kept.shape[0]
    shape = (*kept.shape[:-2], loops.graph.n_queries, kept.shape[-1])
    if isinstance(fill_value, str):
        is_used = kept != -jnp.inf if is_bias else None
        filled = _reduce_by_query(kept, loops.query, shape, fill_value, is_used)
        if n_loops != loops.graph.n_queries:  # nodes that are padding have none
            filled = filled[..., np.flatnonzero(np.asarray(loops.graph.query_mask)), :]
    else:
        filled = _as_features(fill_value, kept, is_bias)
        filled = jnp.broadcast_to(filled, (*shape[:-2], n_loops, shape[-1]))
    return jnp.concatenate((kept, filled), axis=-2)


def _as_features(
    fill_value: float | tuple[float, ...], edge_features: jax.Array, is_bias: bool
) -> jax.Array:
    filled, n_features = jnp.asarray(fill_value, edge_features.dtype), edge_features.shape[-1]
    if filled.shape not in ((), (1,), (n_features,)):
        raise ValueError(
            f"`{'loop_bias' if is_bias else 'fill_value'}` must be a number or {n_features} of them, as "
            f"`{_name(is_bias)}` has; got {filled.shape[0]}"
        )
    return jnp.broadcast_to(filled, (1,) * (edge_features.ndim - 1) + (n_features,))


def _reduce_by_query(
    values: jax.Array,
    query: jax.Array,
    shape: tuple[int, ...],
    how: str,
    is_used: jax.Array | None,
) -> jax.Array:
    """Values of edges, those alone that are used if not all are, reduced to rows of their queries."""
    dtype, values = values.dtype, values.astype(computed_in(values.dtype))
    index = jnp.where(query < 0, shape[-2], query)  # dropped
    if is_used is not None:
        values = jnp.where(is_used, values, _NEUTRAL.get(how, 0.0))
    if how in ("sum", "add", "mean"):
        total = jnp.zeros(shape, values.dtype).at[..., index, :].add(values, mode="drop")
        if how == "mean":
            total = total / jnp.maximum(_count_by_query(values, index, shape, is_used), 1)
        return total.astype(dtype)
    if how == "mul":
        return _multiply_by_query(shape, index, values).astype(dtype)
    start = jnp.full(shape, _NEUTRAL[how], values.dtype)
    at = start.at[..., index, :]
    extreme = at.min(values, mode="drop") if how == "min" else at.max(values, mode="drop")
    extreme = jnp.where(_count_by_query(values, index, shape, is_used) > 0, extreme, 0)
    return extreme.astype(dtype)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _multiply_by_query(shape: tuple[int, ...], index: jax.Array, values: jax.Array) -> jax.Array:
    """Products of rows, of which JAX has no gradient."""
    return jnp.ones(shape, values.dtype).at[..., index, :].multiply(values, mode="drop")


@_multiply_by_query.defjvp
def _tangent_of_products(
    shape: tuple[int, ...],
    primals: tuple[jax.Array, jax.Array],
    tangents: tuple[jax.Array, jax.Array],
) -> tuple[jax.Array, jax.Array]:
    """Each value's tangent times the product of the others, which is not 0 for the only zero."""
    index, values = primals

    def sum_by_query(rows: jax.Array) -> jax.Array:
        return jnp.zeros(shape, values.dtype).at[..., index, :].add(rows, mode="drop")

    def of_query(reduced: jax.Array) -> jax.Array:
        return jnp.take(reduced, index, axis=-2, mode="clip")

    is_zero = values == 0
    factors = jnp.where(is_zero, 1, values)
    others = of_query(_multiply_by_query(shape, index, factors)) / factors
    n_zeros = of_query(sum_by_query(is_zero.astype(values.dtype)))
    others = jnp.where(n_zeros == is_zero, others, 0)
    return _multiply_by_query(shape, index, values), sum_by_query(others * tangents[1])


def _count_by_query(
    values: jax.Array, index: jax.Array, shape: tuple[int, ...], is_used: jax.Array | None
) -> jax.Array:
    if is_used is not None:
        ones = is_used.astype(values.dtype)
        return jnp.zeros(shape, values.dtype).at[..., index, :].add(ones, mode="drop")
    count = (
        jnp.zeros(shape[-2], values.dtype)
        .at[index]
        .add(jnp.ones(index.shape, values.dtype), mode="drop")
    )
    return lead(count[:, None], len(shape))


def _reduce_masked(values: jax.Array, is_other: jax.Array, how: str) -> jax.Array:
    if not values.shape[-2]:
        return values.sum(-2)
    count, dtype = is_other.sum(-2, dtype=jnp.int32), values.dtype
    values = values.astype(computed_in(dtype))
    if how == "mul":
        return jnp.where(is_other, values, 1).prod(-2).astype(dtype)
    if how in ("min", "max"):
        others = jnp.where(is_other, values, _NEUTRAL[how])
        extreme = others.min(-2) if how == "min" else others.max(-2)
        return jnp.where(count > 0, extreme, 0).astype(dtype)
    total = jnp.where(is_other, values, 0).sum(-2)
    if how == "mean":
        total = total / jnp.maximum(count, 1).astype(total.dtype)
    return total.astype(dtype)


def _check_rows(edge_features: jax.Array, axis: int, expected: int, is_bias: bool) -> None:
    if edge_features.ndim < -axis or edge_features.shape[axis] != expected:
        raise ValueError(
            f"`{_name(is_bias)}` must have {expected} as dimension {axis}, to be laid out as the graph; "
            f"got {edge_features.shape}"
        )


def _name(is_bias: bool) -> str:
    return "score_bias" if is_bias else "edge_features"
