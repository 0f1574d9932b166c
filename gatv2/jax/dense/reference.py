"""The formula, literally, over a dense mask: :mod:`gatv2.dense.reference` in JAX.

e_ij = a_h . LeakyReLU(g_l[i] + g_r[j])
alpha_ij = softmax over the keys j of query i of e_ij
out_i = sum over j of dropout(alpha_ij) g_r[j]
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from gatv2.jax.random import keep_mask


def gatv2_attention(
    query: jax.Array,
    key: jax.Array,
    attn: jax.Array,
    mask: jax.Array,
    *,
    negative_slope: float,
    dropout: float,
    seed: jax.Array | None,
    return_attention: bool,
) -> tuple[jax.Array, jax.Array | None]:
    """GATv2 attention: `(out, alpha)`, alpha `[*B, N, M, H]` after the softmax and before dropout.

    Args:
        query: g_l `[*B, N, H, F]`.
        key: g_r `[*B, M, H, F]`.
        attn: a `[H, F]`.
        mask: `[*B, N, M, 1 or H]`, bool.
        negative_slope: slope of LeakyReLU below zero.
        dropout: probability that a coefficient is dropped.
        seed: uint32 `[2]`, the seed of the dropout mask; None if `dropout` is 0.
        return_attention: whether to return alpha.
    """
    query, key = _without_padding(query, key, mask)
    scores = gatv2_scores(query, key, attn, negative_slope=negative_slope)
    lowest = np.finfo(scores.dtype).min  # not -inf: a row without keys stays finite
    scores = jnp.where(mask, scores, lowest)  # [*B, N, M, H]
    largest = jax.lax.stop_gradient(scores.max(axis=-2, keepdims=True, initial=lowest))
    numerator = jnp.where(mask, jnp.exp(scores - largest), 0)
    denominator = numerator.sum(axis=-2, keepdims=True)
    alpha = numerator / jnp.where(denominator == 0, 1, denominator)
    weight = alpha
    if seed is not None:
        weight = alpha * _keep(seed, dropout, scores) / (1 - dropout)
    out = jnp.einsum("...ijh,...jhf->...ihf", weight, key).astype(query.dtype)
    return out, alpha.astype(query.dtype) if return_attention else None


def gatv2_scores(
    query: jax.Array, key: jax.Array, attn: jax.Array, *, negative_slope: float
) -> jax.Array:
    """e_ij for every pair, `[*B, N, M, H]`, in float32 or the wider dtype of the features."""
    pair = query[..., :, None, :, :] + key[..., None, :, :, :]  # [*B, N, M, H, F]
    return score(pair, attn, negative_slope)


def score(pair: jax.Array, attn: jax.Array, negative_slope: float) -> jax.Array:
    """a_h . LeakyReLU(pair); not `jax.nn.leaky_relu`, whose slope at zero is not PyTorch's."""
    dtype = jnp.promote_types(pair.dtype, jnp.float32)
    return jnp.sum(jnp.where(pair > 0, pair, negative_slope * pair) * attn, axis=-1, dtype=dtype)


def _keep(seed: jax.Array, dropout: float, scores: jax.Array) -> jax.Array:
    *batch_shape, n_queries, n_keys, n_heads = scores.shape
    return keep_mask(
        seed,
        dropout,
        jnp.arange(n_queries)[:, None],
        jnp.arange(n_keys),
        n_heads,
        multiplicity=jnp.uint32(0),
        batch=jnp.arange(math.prod(batch_shape)).reshape(*batch_shape, 1, 1),
    )


def _without_padding(
    query: jax.Array, key: jax.Array, mask: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Zero the queries and keys without an edge: padding may hold NaN, and 0 * NaN is NaN."""
    has_key, is_key = mask.any(-2)[..., None], mask.any(-3)[..., None]
    return jnp.where(has_key, query, 0), jnp.where(is_key, key, 0)
