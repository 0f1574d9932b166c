"""The formula over a dense mask: :mod:`gatv2.dense.reference` in JAX, in blocks of keys.

e_ij = a_h . LeakyReLU(g_l[i] + g_r[j])
alpha_ij = softmax over the keys j of query i of e_ij
out_i = sum over j of dropout(alpha_ij) g_r[j]

With edge features: e_ij = a_h . LeakyReLU(g_l[i] + g_r[j] + W_e x[i, j]). With a bias of the scores
b[i, j] is added to e_ij; where it is -inf there is no edge. Of `[N, M, H, F]` no more than a block is
held; coefficients, `[N, M, H]`, are held whole.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from gatv2.jax.blocks import (
    compiled,
    count_blocks,
    from_blocks,
    into_blocks,
    lead,
    map_blocks,
    sum_blocks,
)
from gatv2.jax.edge_features import EdgeInputs
from gatv2.jax.precision import widened
from gatv2.jax.random import keep_mask
from gatv2.jax.sparse.reference import leaky_relu, score, vector_dot


def gatv2_attention(
    query: jax.Array,
    key: jax.Array,
    attn: jax.Array,
    mask: jax.Array,
    edges: EdgeInputs | None,
    *,
    negative_slope: float,
    dropout: float,
    seed: jax.Array | None,
    return_attention: bool,
    score_bias: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """GATv2 attention: `(out, lse, alpha)`.

    `lse` `[*B, N, H]` is the log-sum-exp of a query's scores, -inf without any, in float32 or float64;
    `alpha` `[*B, N, M, H]` is after the softmax and before dropout.

    Args:
        query: g_l `[*B, N, H, F]`.
        key: g_r `[*B, M, H, F]`.
        attn: a `[H, F]`.
        mask: `[*B, N, M, 1 or H]`, bool.
        edges: x `[*B, N, M, D]` and W_e `[H, F, D]`; or None.
        negative_slope: slope of LeakyReLU below zero.
        dropout: probability that a coefficient is dropped.
        seed: uint32 `[2]`, the seed of the dropout mask; None if `dropout` is 0.
        return_attention: whether to return alpha.
        score_bias: b `[*B, N, M, 1 or H]`; or None.
    """
    dtype, mask = query.dtype, without_removed(mask, score_bias)
    query, key, attn, edges, score_bias = widened((query, key, attn, edges, score_bias))
    scores = gatv2_scores(query, key, attn, mask, edges, negative_slope=negative_slope)
    scores = add_bias(scores, score_bias, mask)
    out, lse, alpha = attend(scores, key, mask, dropout=dropout, seed=seed)
    return out.astype(dtype), lse, alpha.astype(dtype) if return_attention else None


def without_removed(mask: jax.Array, score_bias: jax.Array | None) -> jax.Array:
    """The mask without the edges that a bias of -inf takes from a head: `[*B, N, M, 1 or H]`."""
    if score_bias is None:
        return mask
    return lead(mask, score_bias.ndim) & (score_bias != -math.inf)


def add_bias(scores: jax.Array, score_bias: jax.Array | None, mask: jax.Array) -> jax.Array:
    """Scores and their bias, of which nothing is read where the mask has no edge for a head."""
    if score_bias is None:
        return scores
    return scores + jnp.where(mask, score_bias, 0)


@compiled(static="negative_slope")
def gatv2_scores(
    query: jax.Array,
    key: jax.Array,
    attn: jax.Array,
    mask: jax.Array,
    edges: EdgeInputs | None = None,
    *,
    negative_slope: float,
) -> jax.Array:
    """e_ij for every pair of the mask, `[*B, N, M, H]`, of features in float32 or float64."""

    def scores_of(block: tuple[jax.Array, jax.Array, jax.Array | None]) -> jax.Array:
        key, used, x = block
        pair = query[..., :, None, :, :] + key[..., None, :, :, :]  # [*B, N, block, H, F]
        pair = _where_used(pair, used)
        if edges is not None and x is not None:
            pair = pair + edges.project(_where_used(x[..., None, :], used))
        return score(pair, attn, negative_slope)

    n_keys = key.shape[-3]
    n_blocks = count_blocks(n_keys, math.prod(query.shape))
    of_edges = None if edges is None else into_blocks(edges.features, -2, n_blocks)
    blocks = (into_blocks(key, -3, n_blocks), into_blocks(mask, -2, n_blocks), of_edges)
    return from_blocks(map_blocks(scores_of, blocks), -2, n_keys)


def gat_scores(
    query: jax.Array,
    key: jax.Array,
    attn_query: jax.Array,
    attn_key: jax.Array,
    mask: jax.Array,
    *,
    negative_slope: float,
) -> jax.Array:
    """e_ij of the static control, LeakyReLU(a_1 . g_l[i] + a_2 . g_r[j]): `[*B, N, M, H]`."""
    query_term = vector_dot(_where_used(query, mask.any(-2)), attn_query)
    key_term = vector_dot(_where_used(key, mask.any(-3)), attn_key)
    pair = query_term[..., :, None, :] + key_term[..., None, :, :]
    return leaky_relu(pair, negative_slope)


@compiled(static="dropout")
def attend(
    scores: jax.Array, value: jax.Array, mask: jax.Array, *, dropout: float, seed: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Softmax over each query's keys, dropout, weighted sum of `value`: `(out, lse, alpha)`."""
    lowest = np.finfo(scores.dtype).min  # not -inf: a row without keys stays finite
    mask = lead(mask, scores.ndim)
    scores = jnp.where(mask, scores, lowest)  # [*B, N, M, H]
    largest = jax.lax.stop_gradient(scores.max(axis=-2, keepdims=True, initial=lowest))
    numerator = jnp.where(mask, jnp.exp(scores - largest), 0)
    denominator = numerator.sum(axis=-2, keepdims=True)
    divisor = jnp.where(denominator == 0, 1, denominator)
    lse = jnp.where(denominator == 0, -math.inf, largest + jnp.log(divisor)).squeeze(-2)
    alpha = jnp.where(mask, numerator / divisor, 0)  # not 0 / NaN, either
    weight = alpha
    if seed is not None:
        weight = jnp.where(_keep(seed, dropout, scores), alpha, 0) / (1 - dropout)
    return _weighted_sum(weight, value), lse, alpha


def _weighted_sum(weight: jax.Array, value: jax.Array) -> jax.Array:
    """The sum of each query's values: what has no weight may be NaN."""

    def add(total: jax.Array, block: tuple[jax.Array, jax.Array]) -> jax.Array:
        weight, value = block
        values = jnp.where((weight != 0)[..., None], value[..., None, :, :, :], 0)
        return total + (weight[..., None] * values).sum(-3)

    shape = (*weight.shape[:-2], *value.shape[-2:])
    n_blocks = count_blocks(value.shape[-3], math.prod(shape))
    values = into_blocks(value, -3, n_blocks)
    blocks = (into_blocks(weight, -2, n_blocks), values)
    total: jax.Array = sum_blocks(add, jnp.zeros(shape, weight.dtype), blocks)
    return total


def _keep(seed: jax.Array, dropout: float, scores: jax.Array) -> jax.Array:
    *batch_shape, n_queries, n_keys, n_heads = scores.shape
    ndim = scores.ndim - 1
    return keep_mask(
        seed,
        dropout,
        lead(jnp.arange(n_queries)[:, None], ndim),
        lead(jnp.arange(n_keys), ndim),
        n_heads,
        multiplicity=jnp.zeros((1,) * ndim, jnp.uint32),
        batch=jnp.arange(math.prod(batch_shape)).reshape(*batch_shape, 1, 1),
    )


def _where_used(values: jax.Array, used: jax.Array) -> jax.Array:
    """Values `[..., H, F]`, zero where a head does not use them: they may be NaN."""
    return jnp.where(lead(used[..., None], values.ndim), values, 0)
