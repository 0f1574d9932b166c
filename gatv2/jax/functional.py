"""Attention as pure functions: check the inputs, bring the graph to a backend's form, call a kernel."""

import math
from typing import Any, Literal, NamedTuple, TypedDict, Unpack, overload

import jax
import jax.numpy as jnp
import numpy as np

from gatv2.jax.adjacency import Adjacency, Sizes, as_adjacency, common_batch_shape
from gatv2.jax.dense import reference as dense
from gatv2.jax.dispatch import select_kernel
from gatv2.jax.graph import Graph
from gatv2.jax.random import as_seed
from gatv2.jax.sparse import reference as sparse
from gatv2.options import Backend, Flow, check_dropout, check_slope


class Options(TypedDict, total=False):
    """Options of attention; see :func:`gatv2_attention`."""

    negative_slope: float
    dropout: float
    seed: int | np.integer[Any] | jax.Array | None
    flow: Flow
    backend: Backend
    kernel: str


@overload
def gatv2_attention(
    query: jax.Array,
    key: jax.Array,
    attn: jax.Array,
    graph: object,
    *,
    return_attention: Literal[False] = ...,
    **options: Unpack[Options],
) -> jax.Array: ...
@overload
def gatv2_attention(
    query: jax.Array,
    key: jax.Array,
    attn: jax.Array,
    graph: object,
    *,
    return_attention: bool,
    **options: Unpack[Options],
) -> Any: ...


def gatv2_attention(
    query: jax.Array,
    key: jax.Array,
    attn: jax.Array,
    graph: object,
    *,
    negative_slope: float = 0.2,
    dropout: float = 0.0,
    seed: int | np.integer[Any] | jax.Array | None = None,
    flow: Flow = "target_to_source",
    backend: Backend = "auto",
    kernel: str = "auto",
    return_attention: bool = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    r"""Graph Attention v2: each query attends to the keys of its edges.

    .. math::

        e_{ij} = a_h \cdot \mathrm{LeakyReLU}(g^l_i + g^r_j), \qquad
        \alpha_{ij} = \mathrm{softmax}_{j \in N_i}(e_{ij}), \qquad
        \mathrm{out}_i = \sum_{j \in N_i} \mathrm{dropout}(\alpha_{ij}) \, g^r_j

    A query without keys gives zeros, with zero gradients. For bfloat16 and float16, scores and sums are
    computed in float32.

    Args:
        query: :math:`g^l`, `[*batch, n_queries, n_heads, n_hidden]`, floating point.
        key: :math:`g^r`, `[*batch, n_keys, n_heads, n_hidden]`, also the values.
        attn: :math:`a`, one vector a head, `[n_heads, n_hidden]`.
        graph: who attends to whom, in any form that :func:`gatv2.jax.adjacency.as_adjacency` reads;
            `graph[i][j]` lets query i attend to key j. Prepare a :class:`gatv2.jax.Graph` once for
            edges: a raw edge index is sorted in every call.
        negative_slope: slope of LeakyReLU below zero; static.
        dropout: probability, in [0, 1), that a coefficient is dropped. It acts whenever it is not
            zero; static.
        seed: what the dropout mask is a function of, with the position: an int of 64 bits, which drops
            the same edges as in PyTorch, or what :func:`gatv2.jax.seed_from_key` draws. Under `vmap`
            every element of the batch has the mask of batch element 0, unless it has its own seed.
        flow: "source_to_target", PyTorch Geometric's default, turns `graph` round.
        backend: "dense" (mask), "sparse" (edges), or "auto": by the form of `graph`.
        kernel: "jax" (plain JAX: any platform, every transformation), "numba" (fused, CPU, no forward
            mode), or "auto" for "jax"; see :mod:`gatv2.jax.dispatch` for why.
        return_attention: whether to return :math:`\alpha` too, before dropout.

    Returns:
        `[*batch, n_queries, n_heads, n_hidden]`; with `return_attention` the pair of it and the
        coefficients: `[*batch, n_edges, n_heads]` in the order of the caller's edges (sparse), or
        `[*batch, n_queries, n_keys, n_heads]` (dense).

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: shapes or options do not fit, or `dropout` has no `seed`.
        IndexError: an index of an edge is out of range, where it can be seen.

    Example:
        >>> query, key = jnp.ones((3, 2, 4)), jnp.ones((3, 2, 4))
        >>> edge_index = jnp.array([[0, 0, 1], [1, 2, 2]])
        >>> out, alpha = gatv2_attention(
        ...     query, key, jnp.ones((2, 4)), edge_index, return_attention=True
        ... )
        >>> alpha
        Array([[0.5, 0.5],
               [0.5, 0.5],
               [1. , 1. ]], dtype=float32)
        >>> out.sum(axis=(1, 2))  # query 2 has no keys
        Array([8., 8., 0.], dtype=float32)

    Source: Brody, Alon, Yahav, "How Attentive are Graph Attention Networks?", ICLR 2022, equation 7.
    """
    _check_projections(query, key, attn)
    check_slope(negative_slope)
    check_dropout(dropout)
    if dropout > 0 and seed is None:
        raise ValueError(
            f"`dropout`={dropout} needs a `seed`: an int, or `gatv2.jax.seed_from_key(rng)` of a JAX key"
        )
    call = _Call.prepare(query, key, graph, flow=flow, backend=backend)
    selected = select_kernel(call.query, call.key, attn, call.adjacency, kernel=kernel)
    out, alpha = selected.attention(
        call.query,
        call.key,
        attn,
        call.adjacency,
        negative_slope=negative_slope,
        dropout=dropout,
        seed=as_seed(seed) if dropout > 0 and seed is not None else None,
        return_attention=return_attention,
    )
    out = out.reshape(call.out_shape)
    return out if alpha is None else (out, alpha)


def gatv2_scores(
    query: jax.Array,
    key: jax.Array,
    attn: jax.Array,
    graph: object,
    *,
    negative_slope: float = 0.2,
    flow: Flow = "target_to_source",
    backend: Backend = "auto",
) -> jax.Array:
    """The scores :math:`e_{ij}` of :func:`gatv2_attention`, before the softmax.

    Returns:
        `[*batch, n_edges, n_heads]` in the order of the caller's edges (sparse), or
        `[*batch, n_queries, n_keys, n_heads]` (dense); -inf where a head has no edge.

    Example:
        >>> query, key = jnp.array([[[1.0]], [[-3.0]]]), jnp.array([[[2.0]], [[-1.0]]])
        >>> edge_index = jnp.array([[0, 1, 0], [0, 0, 1]])
        >>> gatv2_scores(query, key, jnp.ones((1, 1)), edge_index).squeeze()
        Array([ 3. , -0.2,  0. ], dtype=float32)
    """
    _check_projections(query, key, attn)
    check_slope(negative_slope)
    call = _Call.prepare(query, key, graph, flow=flow, backend=backend)
    if isinstance(call.adjacency, Graph):
        scores = sparse.gatv2_scores(
            call.query, call.key, attn, call.adjacency, negative_slope=negative_slope
        )
        if call.adjacency.head_mask is not None:
            scores = jnp.where(call.adjacency.head_mask, scores, -math.inf)
        scores = call.adjacency.in_callers_order(scores, axis=-2)
    else:
        scores = dense.gatv2_scores(call.query, call.key, attn, negative_slope=negative_slope)
        scores = jnp.where(call.adjacency, scores, -math.inf)
    return scores.astype(query.dtype)


class _Call(NamedTuple):
    """Features and a graph, in the form that kernels read."""

    query: jax.Array
    key: jax.Array
    adjacency: Adjacency
    out_shape: tuple[int, ...]

    @classmethod
    def prepare(
        cls, query: jax.Array, key: jax.Array, graph: object, *, flow: Flow, backend: Backend
    ) -> "_Call":
        batch_shape = common_batch_shape(graph, query.shape[:-3])
        n_queries, n_heads, n_hidden = query.shape[-3:]
        sizes = Sizes(n_queries, key.shape[-3], n_heads, batch_shape)
        adjacency = as_adjacency(graph, sizes, flow=flow, backend=backend)
        query = jnp.broadcast_to(query, (*batch_shape, *query.shape[-3:]))
        key = jnp.broadcast_to(key, (*batch_shape, *key.shape[-3:]))
        out_shape = query.shape
        if isinstance(adjacency, Graph) and adjacency.n_blocks != 1:
            query, key = (
                x.reshape(math.prod(x.shape[:-2]), n_heads, n_hidden) for x in (query, key)
            )
        return cls(query, key, adjacency, out_shape)


def _check_projections(query: jax.Array, key: jax.Array, attn: jax.Array) -> None:
    arrays = {"query": query, "key": key, "attn": attn}
    for name, array in arrays.items():
        if not isinstance(array, jax.Array):
            raise TypeError(
                f"`{name}` must be a jax.Array; got {type(array).__name__}: "
                "convert it with `jnp.asarray`, or `gatv2.jax.as_jax` if it is one of PyTorch"
            )
        if not jnp.issubdtype(array.dtype, jnp.floating) or array.dtype != query.dtype:
            dtypes = ", ".join(f"{name}: {array.dtype}" for name, array in arrays.items())
            raise TypeError(f"query, key, attn must have one floating-point dtype; got {dtypes}")
    if query.ndim < 3:
        raise ValueError(
            f"`query` must have shape (*batch, n_queries, n_heads, n_hidden); got {query.shape}"
        )
    if key.ndim != query.ndim or (key.shape[:-3], key.shape[-2:]) != (
        query.shape[:-3],
        query.shape[-2:],
    ):
        raise ValueError(
            "`key` must have the shape of `query` but for the number of nodes; "
            f"got {key.shape} and {query.shape}"
        )
    if attn.shape != query.shape[-2:]:
        raise ValueError(
            f"`attn` must have shape (n_heads, n_hidden)={query.shape[-2:]}; got {attn.shape}"
        )
