"""Every form in which a user may hold a graph, brought to the two that kernels read.

The forms and their meaning are those of :func:`gatv2.graph.as_adjacency`. Arrays of JAX and NumPy are
read here, by shape and dtype alone, so that they may be traced; what only PyTorch or SciPy can hold is
read there.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from gatv2 import graph as torch_graph
from gatv2.graph import adjacency as torch_adjacency
from gatv2.jax.graph import ArrayLike, Graph, is_concrete
from gatv2.jax.interop import as_jax
from gatv2.options import BACKENDS, Backend, Flow, check_flow

Adjacency = Graph | jax.Array
"""A prepared graph, or a bool mask `[*batch, n_queries, n_keys, 1 or n_heads]`."""


@dataclass(frozen=True)
class Sizes:
    """What a graph has to fit; `batch_shape` is the result's."""

    n_queries: int
    n_keys: int
    n_heads: int
    batch_shape: tuple[int, ...]


def common_batch_shape(adj_mat: object, batch_shape: tuple[int, ...]) -> tuple[int, ...]:
    """The batch shape of the result, of a graph and of features that may both have batches.

    Raises:
        ValueError: the two do not broadcast.
    """
    if isinstance(adj_mat, Graph | torch_graph.Graph) and adj_mat.n_blocks > 1 and not batch_shape:
        return (adj_mat.n_blocks,)
    if not isinstance(adj_mat, jax.Array | np.ndarray | torch.Tensor) or adj_mat.ndim <= 3:
        return batch_shape
    try:
        return np.broadcast_shapes(tuple(adj_mat.shape[:-3]), batch_shape)
    except ValueError:
        raise ValueError(
            f"the batch dimensions of `adj_mat`, {tuple(adj_mat.shape[:-3])}, do not broadcast with "
            f"those of the features, {batch_shape}"
        ) from None


def as_adjacency(adj_mat: object, sizes: Sizes, *, flow: Flow, backend: Backend) -> Adjacency:
    """Bring any form of a graph to the form of a backend, checked against the sizes.

    Args:
        adj_mat: a :class:`gatv2.jax.Graph`, a mask `[*batch, n_queries, n_keys, 1 or n_heads]` of any
            number type (non-zero is an edge), a bool mask `[n_queries, n_keys]`, an integer edge index
            `[2, n_edges]`; or any other form that :func:`gatv2.graph.as_adjacency` reads.
        sizes: the sizes that the graph has to fit.
        flow: "source_to_target" turns every form but a `Graph` round.
        backend: "dense" or "sparse"; "auto" takes dense for a mask and sparse for the rest.

    Raises:
        TypeError: `adj_mat` is of an unknown type, of a dtype that its shape does not allow, or traced
            where its values are needed.
        ValueError: shapes or sizes do not fit, or `adj_mat` could be two things.
        IndexError: an index of an edge is out of range.
    """
    check_flow(flow)
    if backend not in BACKENDS:
        raise ValueError(f"`backend` must be one of {BACKENDS}; got {backend!r}")
    if isinstance(adj_mat, Graph):
        adjacency: Graph | ArrayLike = _checked_graph(adj_mat, sizes)
    elif isinstance(adj_mat, jax.Array | np.ndarray):
        adjacency = _read_array(adj_mat, sizes, flow)
    else:
        adjacency = _read_with_torch(adj_mat, sizes, flow)
    if isinstance(adjacency, Graph):
        return _to_mask(adjacency) if backend == "dense" else adjacency
    return Graph.from_mask(adjacency) if backend == "sparse" else jnp.asarray(adjacency)


def _checked_graph(graph: Graph, sizes: Sizes) -> Graph:
    has, wants = graph.block_shape, (sizes.n_queries, sizes.n_keys)
    if has != wants:
        raise ValueError(
            f"the graph has {has[0]} queries and {has[1]} keys, "
            f"but the features have {wants[0]} queries and {wants[1]} keys"
        )
    if graph.n_blocks > 1 and math.prod(sizes.batch_shape) != graph.n_blocks:
        raise ValueError(
            f"the graph is a batch of {graph.n_blocks} graphs, "
            f"but the features have batch dimensions {sizes.batch_shape}"
        )
    if graph.head_mask is not None and graph.head_mask.shape[1] != sizes.n_heads:
        raise ValueError(
            f"the graph's mask is for {graph.head_mask.shape[1]} heads, "
            f"but there are {sizes.n_heads} heads"
        )
    return graph


def _read_array(array: ArrayLike, sizes: Sizes, flow: Flow) -> Graph | ArrayLike:
    pair = (sizes.n_queries, sizes.n_keys)
    if array.ndim == 2 and array.dtype != bool:
        looks_like_edges = array.shape[0] == 2 and jnp.issubdtype(array.dtype, jnp.integer)
        if array.shape == pair or not looks_like_edges:
            is_both = looks_like_edges and array.shape == pair
            problem = "could be an edge index or a mask" if is_both else "is neither"
            raise ValueError(
                "a 2-D `adj_mat` must be an integer edge index of shape (2, n_edges) or a bool mask "
                f"of shape {pair}; got {array.dtype} with shape {array.shape}, which {problem}: "
                "pass `Graph.from_edge_index(adj_mat, n_nodes)` for an edge index, "
                "`(adj_mat != 0)[..., None]` for a mask"
            )
        return Graph.from_edge_index(array, pair, flow=flow)
    return _as_mask(array, sizes, flow)


def _as_mask(array: ArrayLike, sizes: Sizes, flow: Flow) -> ArrayLike:
    xp: Any = jnp if isinstance(array, jax.Array) else np  # jnp would trace what NumPy knows
    mask: ArrayLike = array[..., None] if array.ndim == 2 else array
    is_float = jnp.issubdtype(mask.dtype, jnp.floating)
    if is_float and is_concrete(mask) and not xp.isfinite(mask).all():
        raise ValueError(
            "`adj_mat` has entries that are not finite. Non-zero entries are edges: "
            "for an additive mask of 0 and -inf pass `adj_mat == 0`"
        )
    if mask.dtype != bool:
        mask = mask != 0
    if flow == "source_to_target" and mask.ndim >= 3:
        mask = xp.swapaxes(mask, -3, -2)
    n, m, heads = sizes.n_queries, sizes.n_keys, sizes.n_heads
    if mask.ndim < 3 or mask.shape[-3:] not in ((n, m, 1), (n, m, heads)):
        sides = f"n={n}" if n == m else f"{n} queries and {m} keys"
        raise ValueError(
            f"`adj_mat` must have shape ({n}, {m}, 1) or ({n}, {m}, {heads}) with {sides} and "
            f"{heads} heads, batch dimensions in front, or be a bool mask of shape ({n}, {m}) or an "
            f"integer edge index of shape (2, n_edges); got {array.dtype} with shape {array.shape}"
        )
    if mask.ndim > 3:
        mask = xp.broadcast_to(mask, (*sizes.batch_shape, *mask.shape[-3:]))
    return mask


def _read_with_torch(adj_mat: object, sizes: Sizes, flow: Flow) -> Adjacency:
    torch_sizes = torch_adjacency.Sizes(
        sizes.n_queries,
        sizes.n_keys,
        sizes.n_heads,
        torch.Size(sizes.batch_shape),
        torch.device("cpu"),
    )
    adjacency = torch_adjacency.as_adjacency(adj_mat, torch_sizes, flow=flow, backend="auto")
    if isinstance(adjacency, torch.Tensor):
        return as_jax(adjacency)
    return Graph.from_torch(adjacency)


def _to_mask(graph: Graph) -> jax.Array:
    if not is_concrete(graph.query_ptr):
        raise TypeError(
            "backend='dense' needs a mask where the graph is traced: parallel edges, which a mask "
            "can't hold, are not seen there. Pass the mask, or use backend='sparse'"
        )
    if (graph.multiplicity() * (graph.query_index < graph.n_queries) > 0).any():
        raise ValueError(
            "the graph has parallel edges, which a dense mask cannot hold: use backend='sparse', "
            "or merge them with `gatv2.Graph.coalesce()` before `Graph.from_torch`"
        )
    block_queries, block_keys = graph.block_shape
    n_heads = 1 if graph.head_mask is None else graph.head_mask.shape[1]
    cell = jnp.zeros((graph.n_blocks, block_queries, block_keys, n_heads), bool).at[
        graph.query_index // max(block_queries, 1),
        graph.query_index % max(block_queries, 1),
        graph.key_index % max(block_keys, 1),
    ]
    mask = cell.set(True if graph.head_mask is None else graph.head_mask, mode="drop")
    return mask if graph.n_blocks > 1 else mask[0]
