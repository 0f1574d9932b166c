"""The formula over a list of edges: :mod:`gatv2.sparse.reference` in JAX.

e_ij = a_h . LeakyReLU(g_l[i] + g_r[j])      for each edge (i, j)
alpha_ij = softmax over the edges of query i of e_ij
out_i = sum over the edges of query i of dropout(alpha_ij) g_r[j]
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from gatv2.jax.dense.reference import score
from gatv2.jax.graph import Graph
from gatv2.jax.random import keep_mask


def gatv2_attention(
    query: jax.Array,
    key: jax.Array,
    attn: jax.Array,
    graph: Graph,
    *,
    negative_slope: float,
    dropout: float,
    seed: jax.Array | None,
    return_attention: bool,
) -> tuple[jax.Array, jax.Array | None]:
    """GATv2 attention: `(out, alpha)`, alpha `[*B, E, H]` after the softmax and before dropout.

    Args:
        query: g_l `[*B, N, H, F]`.
        key: g_r `[*B, M, H, F]`.
        attn: a `[H, F]`.
        graph: the edges.
        negative_slope: slope of LeakyReLU below zero.
        dropout: probability that a coefficient is dropped.
        seed: uint32 `[2]`, the seed of the dropout mask; None if `dropout` is 0.
        return_attention: whether to return alpha, in the caller's order of edges.
    """
    scores = gatv2_scores(query, key, attn, graph, negative_slope=negative_slope)
    alpha = _softmax(scores, graph)
    weight = alpha
    if seed is not None:
        weight = alpha * _keep(seed, dropout, scores, graph) / (1 - dropout)
    message = weight[..., None] * _gather(key, graph.key_index, axis=-3)  # [*B, E, H, F]
    out = _scatter_sum(message, graph, axis=-3).astype(query.dtype)
    if not return_attention:
        return out, None
    return out, graph.in_callers_order(alpha, axis=-2).astype(query.dtype)


def gatv2_scores(
    query: jax.Array, key: jax.Array, attn: jax.Array, graph: Graph, *, negative_slope: float
) -> jax.Array:
    """e_ij for every edge, `[*B, E, H]`, in float32 or the wider dtype of the features."""
    of_query = _gather(query, graph.query_index, axis=-3)
    of_key = _gather(key, graph.key_index, axis=-3)
    return score(of_query + of_key, attn, negative_slope)


def _softmax(scores: jax.Array, graph: Graph) -> jax.Array:
    lowest = np.finfo(scores.dtype).min  # not -inf: a head without edges stays finite
    is_used = graph.head_mask
    if is_used is not None:
        scores = jnp.where(is_used, scores, lowest)
    shape = (*scores.shape[:-2], graph.n_queries, scores.shape[-1])
    largest = (
        jnp.full(shape, lowest)
        .at[..., graph.query_index, :]
        .max(jax.lax.stop_gradient(scores), mode="drop", indices_are_sorted=True)
    )
    # padding reads infinity as its largest score, and becomes zero
    numerator = jnp.exp(scores - _gather(largest, graph.query_index, axis=-2, fill_value=jnp.inf))
    if is_used is not None:
        numerator = jnp.where(is_used, numerator, 0)
    denominator = _gather(_scatter_sum(numerator, graph, axis=-2), graph.query_index, axis=-2)
    return numerator / jnp.where(denominator == 0, 1, denominator)


def _gather(values: jax.Array, index: jax.Array, axis: int, fill_value: float = 0) -> jax.Array:
    return jnp.take(values, index, axis=axis, mode="fill", fill_value=fill_value)


def _scatter_sum(values: jax.Array, graph: Graph, axis: int) -> jax.Array:
    shape = list(values.shape)
    shape[axis] = graph.n_queries
    behind = (slice(None),) * (-1 - axis)
    total = jnp.zeros(shape, values.dtype).at[(..., graph.query_index, *behind)]
    return total.add(values, mode="drop", indices_are_sorted=True)


def _keep(seed: jax.Array, dropout: float, scores: jax.Array, graph: Graph) -> jax.Array:
    *batch_shape, _, n_heads = scores.shape
    block_queries, block_keys = graph.block_shape
    query, key = graph.query_index, graph.key_index
    if graph.n_blocks > 1:
        batch = query // block_queries
        query, key = query % block_queries, key % block_keys
    else:
        batch = jnp.arange(math.prod(batch_shape)).reshape(*batch_shape, 1)
    if graph.query_id is not None:
        query = _gather(graph.query_id, graph.query_index, axis=0)
    if graph.key_id is not None:
        key = _gather(graph.key_id, graph.key_index, axis=0)
    return keep_mask(
        seed, dropout, query, key, n_heads, multiplicity=graph.multiplicity(), batch=batch
    )
