"""Attention as pure functions: check the inputs, bring the graph to a backend's form, call a kernel."""

from typing import Literal, TypedDict, Unpack, overload

import jax
import numpy as np

from gatv2.jax.arrays import ArrayLike
from gatv2.jax.checks import as_features, check_projections, check_static
from gatv2.jax.dense import reference as dense
from gatv2.jax.dispatch import select_kernel
from gatv2.jax.graph import Graph
from gatv2.jax.precision import computed_in, widened
from gatv2.jax.prepared import Prepared
from gatv2.jax.random import Seed, as_seed
from gatv2.jax.sparse import reference as sparse
from gatv2.options import Backend, Flow, as_dropout, as_slope


class Options(TypedDict, total=False):
    """Options of attention; see :func:`gatv2_attention`."""

    negative_slope: float
    dropout: float
    seed: Seed
    flow: Flow
    backend: Backend
    score_bias: ArrayLike | None


class KernelOptions(Options, total=False):
    """Further options of :func:`gatv2_attention`."""

    edge_features: ArrayLike | None
    edge_projection: ArrayLike | None
    kernel: str


@overload
def gatv2_attention(
    query: ArrayLike,
    key: ArrayLike,
    attn: ArrayLike,
    graph: object,
    *,
    return_attention: Literal[False] = ...,
    return_lse: Literal[False] = ...,
    **options: Unpack[KernelOptions],
) -> jax.Array: ...
@overload
def gatv2_attention(
    query: ArrayLike,
    key: ArrayLike,
    attn: ArrayLike,
    graph: object,
    *,
    return_attention: Literal[True],
    return_lse: Literal[False] = ...,
    **options: Unpack[KernelOptions],
) -> tuple[jax.Array, jax.Array]: ...
@overload
def gatv2_attention(
    query: ArrayLike,
    key: ArrayLike,
    attn: ArrayLike,
    graph: object,
    *,
    return_attention: Literal[False] = ...,
    return_lse: Literal[True],
    **options: Unpack[KernelOptions],
) -> tuple[jax.Array, jax.Array]: ...
@overload
def gatv2_attention(
    query: ArrayLike,
    key: ArrayLike,
    attn: ArrayLike,
    graph: object,
    *,
    return_attention: Literal[True],
    return_lse: Literal[True],
    **options: Unpack[KernelOptions],
) -> tuple[jax.Array, jax.Array, jax.Array]: ...
@overload
def gatv2_attention(
    query: ArrayLike,
    key: ArrayLike,
    attn: ArrayLike,
    graph: object,
    *,
    return_attention: bool,
    return_lse: Literal[False] = ...,
    **options: Unpack[KernelOptions],
) -> jax.Array | tuple[jax.Array, jax.Array]: ...
@overload
def gatv2_attention(
    query: ArrayLike,
    key: ArrayLike,
    attn: ArrayLike,
    graph: object,
    *,
    return_attention: bool = ...,
    return_lse: bool,
    **options: Unpack[KernelOptions],
) -> jax.Array | tuple[jax.Array, ...]: ...


def gatv2_attention(
    query: ArrayLike,
    key: ArrayLike,
    attn: ArrayLike,
    graph: object,
    *,
    edge_features: ArrayLike | None = None,
    edge_projection: ArrayLike | None = None,
    score_bias: ArrayLike | None = None,
    negative_slope: float = 0.2,
    dropout: float = 0.0,
    seed: Seed = None,
    flow: Flow = "target_to_source",
    backend: Backend = "auto",
    kernel: str = "auto",
    return_attention: bool = False,
    return_lse: bool = False,
) -> jax.Array | tuple[jax.Array, ...]:
    r"""Graph Attention v2: each query attends to the keys of its edges.

    .. math::

        \begin{aligned}
        e_{ij} &= a_h \cdot \mathrm{LeakyReLU}(g^l_i + g^r_j) \\
        \alpha_{ij} &= \mathrm{softmax}_{j \in N_i}(e_{ij}) \\
        \mathrm{out}_i &= \sum_{j \in N_i} \mathrm{dropout}(\alpha_{ij}) \, g^r_j
        \end{aligned}

    A query without keys gives zeros, with zero gradients. Where a score is -inf, also by overflow, there
    is no edge. With edge features :math:`x_{ij}` and a bias :math:`b_{ij}` the score is
    :math:`e_{ij} = a_h \cdot \mathrm{LeakyReLU}(g^l_i + g^r_j + W_e x_{ij}) + b_{ij}`. So edges of
    weights :math:`w_{ij} \geq 0` have coefficients proportional to :math:`w_{ij} \exp e_{ij}` with
    `score_bias=jnp.log(weight)`. For bfloat16 and float16, scores and sums are computed in float32.

    Args:
        query: :math:`g^l`, `[*batch, n_queries, n_heads, n_hidden]`, floating point.
        key: :math:`g^r`, `[*batch, n_keys, n_heads, n_hidden]`, also the values.
        attn: :math:`a`, one vector a head, `[n_heads, n_hidden]`.
        graph: who attends to whom, in any form that :func:`gatv2.jax.adjacency.as_adjacency` reads;
            `graph[i][j]` lets query i attend to key j. Prepare a :class:`gatv2.jax.Graph` once for
            edges: a raw edge index is sorted in every call. Under `jit` an edge whose index is out of
            range is dropped; outside it is an error. None, with a `score_bias` laid out as a mask: every
            query to every key.
        edge_features: :math:`x`, laid out as `graph`, whatever the backend: with a list of edges
            `[*batch, n_edges, D]` in its order, then padding (one list for a batch of graphs in one
            `Graph`), with a mask `[*batch, n_queries, n_keys, D]`, entry for entry (what has no edge is
            not read).
        edge_projection: :math:`W_e`, `[n_heads, n_hidden, D]`; given if `edge_features` are.
        score_bias: :math:`b`, laid out as `edge_features` are, with 1 or n_heads in the place of D.
            Where it is -inf a head has no edge; NaN and +inf make a row of NaN, of their query and head.
        negative_slope: slope of LeakyReLU below zero; static.
        dropout: probability, in [0, 1), that a coefficient is dropped. It acts whenever it is not
            zero; static.
        seed: what the dropout mask is a function of, with the position: an int of 64 bits, which drops
            the same edges as in PyTorch, or what :func:`gatv2.jax.seed_from_key` draws. Under `vmap`
            every element of the batch has the mask of batch element 0, unless it has its own seed.
        flow: "source_to_target", PyTorch Geometric's default, turns `graph` round.
        backend: "dense" (mask), "sparse" (edges), or "auto": by the form of `graph`.
        kernel: "jax" (plain JAX, for any platform), "numba" (fused, for the CPU), "pallas" (fused, over
            edges, for GPUs; not measured on one yet), or "auto": the fused one of the platform that a
            program is compiled for, plain JAX where there is none; see :mod:`gatv2.jax.dispatch`.
        return_attention: whether to return :math:`\alpha` too, before dropout.
        return_lse: whether to return :math:`\log \sum_{j \in N_i} \exp e_{ij}` too, which joins
            attention over parts of the keys; see :func:`gatv2.functional.gatv2_attention`.

    Returns:
        `[*batch, n_queries, n_heads, n_hidden]`; with `return_attention` and `return_lse` a tuple of it,
        the coefficients, `[*batch, n_edges, n_heads]` in the order of the caller's edges (sparse) or
        `[*batch, n_queries, n_keys, n_heads]` (dense), and the log-sum-exp of the scores,
        `[*batch, n_queries, n_heads]`, in float32 or float64, -inf for a query without keys.

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: shapes or options do not fit, or `dropout` has no `seed`.
        IndexError: an index of an edge is out of range, where it can be seen.

    Example:
        >>> import jax.numpy as jnp
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
    query, key, attn = as_features(query=query, key=key, attn=attn)
    check_projections(query, key, attn=attn)
    negative_slope, dropout = _read_options(
        query, negative_slope, dropout, return_attention=return_attention, return_lse=return_lse
    )
    of_edges = (edge_features, edge_projection, score_bias)
    call = Prepared.of(query, key, graph, *of_edges, flow=flow, backend=backend)
    selected = select_kernel(
        call.query,
        call.key,
        attn,
        call.adjacency,
        edges=call.edges,
        score_bias=call.score_bias,
        kernel=kernel,
    )

    def attend(
        call: Prepared, attn: jax.Array, seed: jax.Array | None
    ) -> jax.Array | tuple[jax.Array, ...]:
        call = call.batched()
        out, lse, alpha = selected.attention(
            call.query,
            call.key,
            attn,
            call.adjacency,
            call.edges,
            negative_slope=negative_slope,
            dropout=dropout,
            seed=seed,
            return_attention=return_attention,
            score_bias=call.score_bias,
        )
        return call.results(out, lse if return_lse else None, alpha)

    is_wanted = {"out": True, "alpha": return_attention, "lse": return_lse}
    wanted = tuple(name for name, is_one in is_wanted.items() if is_one)
    return call.on_auto_axes(attend, wanted)(call, attn, _seed_of(dropout, seed))


def gatv2_scores(
    query: ArrayLike,
    key: ArrayLike,
    attn: ArrayLike,
    graph: object,
    *,
    edge_features: ArrayLike | None = None,
    edge_projection: ArrayLike | None = None,
    score_bias: ArrayLike | None = None,
    negative_slope: float = 0.2,
    flow: Flow = "target_to_source",
    backend: Backend = "auto",
) -> jax.Array:
    """The scores :math:`e_{ij}` of :func:`gatv2_attention`, before the softmax, with their bias.

    Returns:
        `[*batch, n_edges, n_heads]` in the order of the caller's edges (sparse), or
        `[*batch, n_queries, n_keys, n_heads]` (dense); -inf where a head has no edge.

    Example:
        >>> import jax.numpy as jnp
        >>> query, key = jnp.array([[[1.0]], [[-3.0]]]), jnp.array([[[2.0]], [[-1.0]]])
        >>> edge_index = jnp.array([[0, 1, 0], [0, 0, 1]])
        >>> gatv2_scores(query, key, jnp.ones((1, 1)), edge_index).squeeze()
        Array([ 3. , -0.2,  0. ], dtype=float32)
    """
    query, key, attn = as_features(query=query, key=key, attn=attn)
    check_projections(query, key, attn=attn)
    negative_slope, _ = _read_options(query, negative_slope)
    of_edges = (edge_features, edge_projection, score_bias)
    call = Prepared.of(query, key, graph, *of_edges, flow=flow, backend=backend)

    def score(call: Prepared, attn: jax.Array) -> jax.Array:
        call = call.batched().without_removed()
        call, attn = widened((call, attn))
        features = (call.query, call.key, attn)
        adjacency, slope = call.adjacency, negative_slope
        if isinstance(adjacency, Graph):
            scores = sparse.gatv2_scores(*features, adjacency, call.edges, negative_slope=slope)
        else:
            scores = dense.gatv2_scores(*features, adjacency, call.edges, negative_slope=slope)
        return call.scores(scores).astype(query.dtype)

    return call.on_auto_axes(score, ("alpha",))(call, attn)


@overload
def gat_attention(
    query: ArrayLike,
    key: ArrayLike,
    attn_query: ArrayLike,
    attn_key: ArrayLike,
    graph: object,
    *,
    return_attention: Literal[False] = ...,
    **options: Unpack[Options],
) -> jax.Array: ...
@overload
def gat_attention(
    query: ArrayLike,
    key: ArrayLike,
    attn_query: ArrayLike,
    attn_key: ArrayLike,
    graph: object,
    *,
    return_attention: Literal[True],
    **options: Unpack[Options],
) -> tuple[jax.Array, jax.Array]: ...
@overload
def gat_attention(
    query: ArrayLike,
    key: ArrayLike,
    attn_query: ArrayLike,
    attn_key: ArrayLike,
    graph: object,
    *,
    return_attention: bool,
    **options: Unpack[Options],
) -> jax.Array | tuple[jax.Array, jax.Array]: ...


def gat_attention(
    query: ArrayLike,
    key: ArrayLike,
    attn_query: ArrayLike,
    attn_key: ArrayLike,
    graph: object,
    *,
    score_bias: ArrayLike | None = None,
    negative_slope: float = 0.2,
    dropout: float = 0.0,
    seed: Seed = None,
    flow: Flow = "target_to_source",
    backend: Backend = "auto",
    return_attention: bool = False,
) -> jax.Array | tuple[jax.Array, ...]:
    r"""Static attention of the original GAT, the control of :func:`gatv2_attention`.

    .. math:: e_{ij} = \mathrm{LeakyReLU}(a_1 \cdot g^l_i + a_2 \cdot g^r_j)

    The rest, arguments and results alike, is as in :func:`gatv2_attention`; `attn_query` and
    `attn_key` are :math:`a_1` and :math:`a_2`, each `[n_heads, n_hidden]`. Computed with plain JAX.

    Example:
        >>> import jax.numpy as jnp
        >>> features, a = jnp.ones((3, 2, 4)), jnp.ones((2, 4))
        >>> gat_attention(features, features, a, a, jnp.array([[0, 0, 1], [1, 2, 2]])).shape
        (3, 2, 4)

    Source: Velickovic et al., "Graph Attention Networks", ICLR 2018, equations 1 to 6.
    """
    call, *vectors = _prepare_static(
        query, key, attn_query, attn_key, graph, score_bias, flow=flow, backend=backend
    )
    negative_slope, dropout = _read_options(
        call.query, negative_slope, dropout, return_attention=return_attention
    )

    def attend(
        call: Prepared, attn_query: jax.Array, attn_key: jax.Array, seed: jax.Array | None
    ) -> jax.Array | tuple[jax.Array, ...]:
        dtype = call.query.dtype
        call, attn_query, attn_key = widened(
            (call.batched().without_removed(), attn_query, attn_key)
        )
        scores = call.add_bias(_score_statically(call, attn_query, attn_key, negative_slope))
        adjacency = call.adjacency
        if isinstance(adjacency, Graph):
            out, _, alpha = sparse.attend(scores, call.key, adjacency, dropout=dropout, seed=seed)
        else:
            out, _, alpha = dense.attend(scores, call.key, adjacency, dropout=dropout, seed=seed)
        wanted_alpha = alpha.astype(dtype) if return_attention else None
        return call.results(out.astype(dtype), None, wanted_alpha)

    wanted = ("out", "alpha") if return_attention else ("out",)
    return call.on_auto_axes(attend, wanted)(call, *vectors, _seed_of(dropout, seed))


def gat_scores(
    query: ArrayLike,
    key: ArrayLike,
    attn_query: ArrayLike,
    attn_key: ArrayLike,
    graph: object,
    *,
    score_bias: ArrayLike | None = None,
    negative_slope: float = 0.2,
    flow: Flow = "target_to_source",
    backend: Backend = "auto",
) -> jax.Array:
    """The scores :math:`e_{ij}` of :func:`gat_attention`, as :func:`gatv2_scores` returns them.

    Example:
        >>> import jax.numpy as jnp
        >>> query, key = jnp.array([[[1.0]], [[-3.0]]]), jnp.array([[[2.0]], [[-1.0]]])
        >>> one = jnp.ones((1, 1))
        >>> gat_scores(query, key, one, one, jnp.array([[0, 1, 0], [0, 0, 1]])).squeeze()
        Array([ 3. , -0.2,  0. ], dtype=float32)
    """
    call, *vectors = _prepare_static(
        query, key, attn_query, attn_key, graph, score_bias, flow=flow, backend=backend
    )
    negative_slope, _ = _read_options(call.query, negative_slope)

    def score(call: Prepared, attn_query: jax.Array, attn_key: jax.Array) -> jax.Array:
        dtype = call.query.dtype
        call, attn_query, attn_key = widened(
            (call.batched().without_removed(), attn_query, attn_key)
        )
        scores = _score_statically(call, attn_query, attn_key, negative_slope)
        return call.scores(scores).astype(dtype)

    return call.on_auto_axes(score, ("alpha",))(call, *vectors)


def _prepare_static(
    query: ArrayLike,
    key: ArrayLike,
    attn_query: ArrayLike,
    attn_key: ArrayLike,
    graph: object,
    score_bias: ArrayLike | None,
    *,
    flow: Flow,
    backend: Backend,
) -> tuple[Prepared, jax.Array, jax.Array]:
    query, key, attn_query, attn_key = as_features(
        query=query, key=key, attn_query=attn_query, attn_key=attn_key
    )
    check_projections(query, key, attn_query=attn_query, attn_key=attn_key)
    call = Prepared.of(query, key, graph, score_bias=score_bias, flow=flow, backend=backend)
    return call, attn_query, attn_key


def _score_statically(
    call: Prepared, attn_query: jax.Array, attn_key: jax.Array, negative_slope: float
) -> jax.Array:
    """Scores of the static control, of what kernels read."""
    features, adjacency = (call.query, call.key, attn_query, attn_key), call.adjacency
    if isinstance(adjacency, Graph):
        return sparse.gat_scores(*features, adjacency, negative_slope=negative_slope)
    return dense.gat_scores(*features, adjacency, negative_slope=negative_slope)


def _read_options(
    features: jax.Array, negative_slope: float, dropout: float = 0.0, **flags: bool
) -> tuple[float, float]:
    """Slope and dropout as numbers of Python, which hash as an array does not; all must be known."""
    check_static(negative_slope=negative_slope, dropout=dropout, **flags)
    largest = float(np.finfo(computed_in(features.dtype).name).max)
    return as_slope(negative_slope, largest=largest), as_dropout(dropout)


def _seed_of(dropout: float, seed: Seed) -> jax.Array | None:
    """The seed as words; None without dropout."""
    if dropout == 0:
        return None
    if seed is None:
        raise ValueError(
            f"`dropout`={dropout} needs a `seed`: an int, or `gatv2.jax.seed_from_key(rng)` of a JAX key"
        )
    return as_seed(seed)
