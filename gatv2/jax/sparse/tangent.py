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

from gatv2.jax.blocks import from_blocks, into_blocks, lead, map_blocks, sum_blocks
from gatv2.jax.edge_features import EdgeInputs
from gatv2.jax.graph import Graph
from gatv2.jax.sparse.reference import (
    Block,
    add_to_queries,
    edge_blocks,
    gather,
    keep_of,
    score,
)


class Features(NamedTuple):
    """What attention is differentiated by, or a direction of it."""

    query: jax.Array
    key: jax.Array
    attn: jax.Array
    edges: EdgeInputs | None


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
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The derivatives of (out, lse, alpha); arguments as of `gatv2.jax.sparse.reference`."""
    finite_lse = jnp.where(jnp.isfinite(lse), lse, 0)  # a head without edges: masked below
    query, key, attn, edges = features

    def weights_of(block: Block) -> tuple[jax.Array, jax.Array]:
        def scores_of(pair: jax.Array, attn: jax.Array) -> jax.Array:
            return score(pair, attn, negative_slope)

        pair, d_pair = (
            gather(of.query, block.query, axis=-3) + gather(of.key, block.key, axis=-3)
            for of in (features, direction)
        )
        if edges is not None and direction.edges is not None:
            x, d_x = (gather(of.features, block.edge, axis=-2) for of in (edges, direction.edges))
            pair = pair + edges.project(x)
            d_pair = d_pair + edges.project(d_x) + direction.edges.project(x)
        scores, d_scores = jax.jvp(scores_of, (pair, attn), (d_pair, direction.attn))
        # padding reads infinity, and becomes zero
        p = jnp.exp(scores - gather(finite_lse, block.query, axis=-2, fill_value=math.inf))
        return p, d_scores

    blocks = edge_blocks(graph, query)
    p, d_scores = (from_blocks(x, -2, graph.n_edges) for x in map_blocks(weights_of, blocks))
    if graph.head_mask is not None:
        p = jnp.where(lead(graph.head_mask, p.ndim), p, 0)
    d_p = p * d_scores
    d_lse = add_to_queries(jnp.zeros(lse.shape, p.dtype), graph.query_index, d_p, axis=-2)
    d_alpha = d_p - p * gather(d_lse, graph.query_index, axis=-2)

    def add(total: jax.Array, block: tuple[Block, jax.Array, jax.Array]) -> jax.Array:
        at, weight, d_weight = block
        if seed is not None:
            keep = keep_of(graph, at, seed, dropout, weight)
            weight, d_weight = jnp.where(keep, weight, 0), jnp.where(keep, d_weight, 0)
        value, d_value = (gather(x, at.key, axis=-3) for x in (key, direction.key))
        message = d_weight[..., None] * value.astype(weight.dtype)
        message = message + weight[..., None] * d_value.astype(weight.dtype)
        return add_to_queries(total, at.query, message, axis=-3)

    weights = (into_blocks(x, -2, blocks.query.shape[0]) for x in (p, d_p))
    total = sum_blocks(add, jnp.zeros(out.shape, p.dtype), (blocks, *weights))
    d_out = total / (1 - dropout) - d_lse[..., None] * out.astype(p.dtype)
    return d_out.astype(out.dtype), d_lse, d_alpha.astype(out.dtype)
