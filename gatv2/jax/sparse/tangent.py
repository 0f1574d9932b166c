"""The derivative of attention over edges along a direction, given its log-sum-exp and its result.

With p_ij = exp(e_ij - lse_i), and d for the derivative:

dlse_i = sum over j of p_ij de_ij
dout_i = sum over j of dropout(p_ij) (de_ij g_r[j] + dg_r[j]) - dlse_i out_i
dalpha_ij = p_ij (de_ij - dlse_i)

It is linear in the direction, and differentiable in everything.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gatv2.jax.blocks import from_blocks, lead, map_blocks, sum_blocks
from gatv2.jax.edge_features import EdgeInputs
from gatv2.jax.graph import Graph
from gatv2.jax.precision import widened
from gatv2.jax.sparse.reference import (
    Block,
    add_to_rows,
    edge_blocks,
    features_of,
    gather,
    keep_of,
    only_used,
    rows_of_queries,
    score,
    without_removed,
)


class Features(NamedTuple):
    """What attention is differentiated by, or a direction of it."""

    query: jax.Array
    key: jax.Array
    attn: jax.Array
    edges: EdgeInputs | None
    score_bias: jax.Array | None


def tangent(
    features: Features,
    direction: Features,
    lse: jax.Array,
    out: jax.Array,
    graph: Graph,
    *,
    negative_slope: float,
    dropout: float,
    seed: jax.Array | None,
    with_alpha: bool,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """The derivatives of (out, lse, alpha); arguments as of `gatv2.jax.sparse.reference`."""
    dtype = out.dtype
    features, direction, out = widened((features, direction, out))
    finite_lse = jnp.where(jnp.isfinite(lse), lse, 0)  # a head without edges: masked below
    edges, d_edges = features.edges, direction.edges
    bias, d_bias = features.score_bias, direction.score_bias
    graph = without_removed(graph, bias)
    rows = rows_of_queries(graph)
    query, d_query = (rows.spread(x, axis=-3) for x in (features.query, direction.query))
    # padding reads infinity, and becomes zero
    lse_of_row = rows.spread(finite_lse, axis=-2, fill_value=math.inf)

    def scores_of(pair: jax.Array, attn: jax.Array) -> jax.Array:
        return score(pair, attn, negative_slope)

    def weights_of(at: Block) -> tuple[jax.Array, ...]:
        """p, its derivative, and the values of a block and theirs."""
        value, d_value = (
            only_used(gather(x, at.key, axis=-3), at) for x in (features.key, direction.key)
        )
        pair = gather(query, at.row, axis=-3) + value
        d_pair = gather(d_query, at.row, axis=-3) + d_value
        if edges is not None and d_edges is not None:
            x, d_x = (features_of(of, at) for of in (edges, d_edges))
            pair = pair + edges.project(x)
            d_pair = d_pair + edges.project(d_x) + d_edges.project(x)
        pair, d_pair = only_used(pair, at), only_used(d_pair, at)
        scores, d_scores = jax.jvp(scores_of, (pair, features.attn), (d_pair, direction.attn))
        is_used = at.is_used
        if bias is not None and d_bias is not None and is_used is not None:
            of_block = (gather(b, at.edge, axis=-2) for b in (bias, d_bias))
            b, d_b = (jnp.where(is_used, b, 0) for b in of_block)
            scores, d_scores = scores + b, d_scores + d_b
        p = jnp.exp(scores - gather(lse_of_row, at.row, axis=-2, fill_value=math.inf))
        if is_used is not None:
            p = jnp.where(lead(is_used, p.ndim), p, 0)
        return p, p * d_scores, value, d_value

    def add(totals: tuple[jax.Array, jax.Array], at: Block) -> tuple[jax.Array, jax.Array]:
        total, d_lse = totals
        p, d_p, value, d_value = weights_of(at)
        d_lse = add_to_rows(d_lse, at.row, d_p, axis=-2)
        if seed is not None:
            keep = keep_of(graph, rows, at, seed, dropout, p)
            p, d_p = jnp.where(keep, p, 0), jnp.where(keep, d_p, 0)
        # without weight there may be NaN, or infinity
        value, d_value = (jnp.where((p != 0)[..., None], x, 0) for x in (value, d_value))
        message = d_p[..., None] * value + p[..., None] * d_value
        return add_to_rows(total, at.row, message, axis=-3), d_lse

    blocks = edge_blocks(graph, rows, features.query)
    nothing = rows.spread(jnp.zeros_like(out), axis=-3), rows.spread(jnp.zeros_like(lse), axis=-2)
    total, d_lse = sum_blocks(add, nothing, blocks)
    total, d_lse = rows.joined(total, axis=-3), rows.joined(d_lse, axis=-2)
    d_out = total / (1 - dropout) - d_lse[..., None] * out
    d_alpha = None
    if with_alpha:
        p, d_p = (
            from_blocks(x, -2, graph.n_edges)
            for x in map_blocks(lambda block: weights_of(block)[:2], blocks)
        )
        d_alpha = d_p - p * rows.read(d_lse, axis=-2)
        d_alpha = d_alpha.astype(dtype)
    return d_out.astype(dtype), d_lse, d_alpha
