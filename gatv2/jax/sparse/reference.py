"""The formula over a list of edges: :mod:`gatv2.sparse.reference` in JAX, in blocks of edges.

e_ij = a_h . LeakyReLU(g_l[i] + g_r[j])      for each edge (i, j)
alpha_ij = softmax over the edges of query i of e_ij
out_i = sum over the edges of query i of dropout(alpha_ij) g_r[j]

With edge features: e_ij = a_h . LeakyReLU(g_l[i] + g_r[j] + W_e x[i, j]). With a bias of the scores
b[i, j] is added to e_ij; where it is -inf there is no edge. Of `[E, H, F]` no more than a block is held;
coefficients, `[E, H]`, are held whole.
"""

import math
from dataclasses import replace
from typing import NamedTuple

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
from gatv2.jax.graph import Graph
from gatv2.jax.precision import widened
from gatv2.jax.random import keep_mask

_PIECE = 512  # edges, of whose sum in float32 few digits are lost


class Rows(NamedTuple):
    """Rows of queries, none of so many edges that a sum over them loses digits.

    A million terms of float32, added one after another, are off in the second digit. So the list of
    edges is cut into pieces, and a query whose edges go on in another piece has a row there too, behind
    the first rows of all queries. Edges read rows and add to them, and gradients go the same way back.
    """

    of_edge: jax.Array
    """`[n_edges]`"""
    owner: jax.Array
    """The query that goes on in each piece, past the end if none does; empty for a short list."""

    def read(self, values: jax.Array, axis: int, fill_value: float = 0) -> jax.Array:
        """Values of queries, along `axis`, at their edges; padding reads `fill_value`."""
        return gather(self.spread(values, axis, fill_value), self.of_edge, axis, fill_value)

    def spread(self, values: jax.Array, axis: int, fill_value: float = 0) -> jax.Array:
        """Values of queries, along `axis`, at their rows."""
        if self.owner.shape[0] == 0:
            return values
        more = gather(values, self.owner, axis, fill_value)
        return jnp.concatenate((values, more), axis)

    def joined(self, sums: jax.Array, axis: int) -> jax.Array:
        """Sums of rows, along `axis`, added up for their queries."""
        if self.owner.shape[0] == 0:
            return sums
        first, more = jnp.split(sums, (sums.shape[axis] - self.owner.shape[0],), axis)
        return add_to_rows(first, self.owner, more, axis)


def rows_of_queries(graph: Graph) -> Rows:
    """The rows of a graph's queries: a row has at most 512 edges, or as many as a query has rows."""
    index, n_edges = graph.query_index, graph.n_edges
    size = _PIECE
    if isinstance(n_edges, int):  # and not of a program that is exported for any size
        size = max(size, math.isqrt(n_edges))
        if n_edges <= size:
            return Rows(index, index[:0])
    # the query of the edge before each piece; before the first there is none, and its row is padding's
    before = index[size - 1 : -1 : size]
    owner = jnp.concatenate((jnp.full(1, graph.n_queries, index.dtype), before))
    row = graph.n_queries + jnp.arange(owner.shape[0], dtype=index.dtype)
    owner_of_edge, row_of_edge = (jnp.repeat(x, size)[:n_edges] for x in (owner, row))
    return Rows(jnp.where(index == owner_of_edge, row_of_edge, index), owner)


class Block(NamedTuple):
    """A block of edges: indices `[n]`, of which those of padding are past the end."""

    row: jax.Array
    """Of the query, as in `Rows`."""
    key: jax.Array
    edge: jax.Array
    """The caller's number."""
    repeat: jax.Array
    """0 for the first of parallel edges, 1 for the second, and so on."""
    is_used: jax.Array | None
    """`[*B, n, 1 or H]`, the heads that use an edge; None if all do."""


def gatv2_attention(
    query: jax.Array,
    key: jax.Array,
    attn: jax.Array,
    graph: Graph,
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
    `alpha` `[*B, E, H]` is after the softmax and before dropout, in the graph's own order of edges.

    Args:
        query: g_l `[*B, N, H, F]`.
        key: g_r `[*B, M, H, F]`.
        attn: a `[H, F]`.
        graph: the edges.
        edges: x `[*B, E, D]`, in the caller's order of edges, and W_e `[H, F, D]`; or None.
        negative_slope: slope of LeakyReLU below zero.
        dropout: probability that a coefficient is dropped.
        seed: uint32 `[2]`, the seed of the dropout mask; None if `dropout` is 0.
        return_attention: whether to return alpha.
        score_bias: b `[*B, E, 1 or H]`, in the caller's order of edges; or None.
    """
    dtype, graph = query.dtype, without_removed(graph, score_bias)
    query, key, attn, edges, score_bias = widened((query, key, attn, edges, score_bias))
    scores = gatv2_scores(query, key, attn, graph, edges, negative_slope=negative_slope)
    scores = add_bias(scores, score_bias, graph)
    out, lse, alpha = attend(scores, key, graph, dropout=dropout, seed=seed)
    return out.astype(dtype), lse, alpha.astype(dtype) if return_attention else None


def without_removed(graph: Graph, score_bias: jax.Array | None) -> Graph:
    """The graph without the edges that a bias of -inf takes from a head.

    Its head mask is `[*B, E, 1 or H]`, which is what the functions of this file read.
    """
    if score_bias is None:
        return graph
    used = of_edges(graph, score_bias) != -math.inf
    return replace(graph, head_mask=used if graph.head_mask is None else used & graph.head_mask)


def add_bias(scores: jax.Array, score_bias: jax.Array | None, graph: Graph) -> jax.Array:
    """Scores and their bias, of which nothing is read where the graph has no edge for a head."""
    if score_bias is None:
        return scores
    bias = of_edges(graph, score_bias)
    if graph.head_mask is not None:
        bias = jnp.where(lead(graph.head_mask, bias.ndim), bias, 0)
    return scores + bias


def of_edges(graph: Graph, values: jax.Array) -> jax.Array:
    """Values `[*B, E, ...]` of the caller's edges in the graph's own order; zero for padding."""
    number = jnp.where(graph.is_edge, graph.edge_id, graph.n_edges)
    return gather(values, number, axis=-2)


@compiled(static="negative_slope")
def gatv2_scores(
    query: jax.Array,
    key: jax.Array,
    attn: jax.Array,
    graph: Graph,
    edges: EdgeInputs | None = None,
    *,
    negative_slope: float,
) -> jax.Array:
    """e_ij for every edge, `[*B, E, H]`, of features in float32 or float64."""

    def scores_of(block: Block) -> jax.Array:
        pair = gather(queries, block.row, axis=-3) + gather(key, block.key, axis=-3)
        if edges is not None:
            pair = pair + edges.project(features_of(edges, block))
        return score(only_used(pair, block), attn, negative_slope)

    rows = rows_of_queries(graph)
    queries, blocks = rows.spread(query, axis=-3), edge_blocks(graph, rows, query)
    return from_blocks(map_blocks(scores_of, blocks), -2, graph.n_edges)


def gat_scores(
    query: jax.Array,
    key: jax.Array,
    attn_query: jax.Array,
    attn_key: jax.Array,
    graph: Graph,
    *,
    negative_slope: float,
) -> jax.Array:
    """e_ij of the static control, LeakyReLU(a_1 . g_l[i] + a_2 . g_r[j]): `[*B, E, H]`."""
    query_term = vector_dot(_used_rows(query, graph.query_index, graph), attn_query)
    key_term = vector_dot(_used_rows(key, graph.key_index, graph), attn_key)
    of_query = rows_of_queries(graph).read(query_term, axis=-2)
    of_key = gather(key_term, graph.key_index, axis=-2)
    return leaky_relu(of_query + of_key, negative_slope)


def _used_rows(rows: jax.Array, index: jax.Array, graph: Graph) -> jax.Array:
    """Rows of nodes, zero where no edge uses them: they may be NaN."""
    is_used = graph.is_edge[:, None]
    if graph.head_mask is not None:
        is_used = is_used & graph.head_mask
    n_uses = jnp.zeros((*is_used.shape[:-2], rows.shape[-3], is_used.shape[-1]), jnp.int32)
    n_uses = n_uses.at[..., index, :].add(is_used.astype(jnp.int32), mode="drop")
    return jnp.where(lead((n_uses > 0)[..., None], rows.ndim), rows, 0)


@compiled(static="dropout")
def attend(
    scores: jax.Array, value: jax.Array, graph: Graph, *, dropout: float, seed: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Softmax over each query's edges, dropout, weighted sum of `value`: `(out, lse, alpha)`."""
    lowest = np.finfo(scores.dtype).min  # not -inf: a head without edges stays finite
    is_used = None if graph.head_mask is None else lead(graph.head_mask, scores.ndim)
    if is_used is not None:
        scores = jnp.where(is_used, scores, lowest)
    rows = rows_of_queries(graph)
    shape = (*scores.shape[:-2], graph.n_queries, scores.shape[-1])
    largest = (
        jnp.full(shape, lowest, scores.dtype)
        .at[..., graph.query_index, :]
        .max(jax.lax.stop_gradient(scores), mode="drop", indices_are_sorted=True)
    )
    # padding reads infinity as its largest score, and becomes zero
    numerator = jnp.exp(scores - gather(largest, graph.query_index, axis=-2, fill_value=math.inf))
    if is_used is not None:
        numerator = jnp.where(is_used, numerator, 0)
    nothing = rows.spread(jnp.zeros(shape, scores.dtype), axis=-2)
    denominator = rows.joined(add_to_rows(nothing, rows.of_edge, numerator, axis=-2), axis=-2)
    divisor = jnp.where(denominator == 0, 1, denominator)
    lse = jnp.where(denominator == 0, -math.inf, largest + jnp.log(divisor))
    total = _weighted_sum(numerator, value, graph, rows, dropout, seed)
    alpha = numerator / rows.read(divisor, axis=-2, fill_value=1)
    if is_used is not None:
        alpha = jnp.where(is_used, alpha, 0)  # not 0 / NaN, either
    return total / (divisor * (1 - dropout))[..., None], lse, alpha


def _weighted_sum(
    weight: jax.Array,
    value: jax.Array,
    graph: Graph,
    rows: Rows,
    dropout: float,
    seed: jax.Array | None,
) -> jax.Array:
    """The sum over each query's edges that are kept: `[*B, N, H, F]`."""

    def add(total: jax.Array, block: tuple[Block, jax.Array]) -> jax.Array:
        at, weights = block
        if seed is not None:  # of a block too: coefficients that are dropped are not held twice
            weights = jnp.where(keep_of(graph, rows, at, seed, dropout, weights), weights, 0)
        values = gather(value, at.key, axis=-3)
        # without weight there may be NaN, or infinity
        message = weights[..., None] * jnp.where((weights != 0)[..., None], values, 0)
        return add_to_rows(total, at.row, message, axis=-3)

    blocks = edge_blocks(graph, rows, value)
    weights = into_blocks(weight, -2, blocks.row.shape[0])
    shape = (*value.shape[:-3], graph.n_queries, *value.shape[-2:])
    nothing = rows.spread(jnp.zeros(shape, weight.dtype), axis=-3)
    return rows.joined(sum_blocks(add, nothing, (blocks, weights)), axis=-3)


def edge_blocks(graph: Graph, rows: Rows, features: jax.Array) -> Block:
    """The indices of the edges in as many blocks as the features ask for."""
    elements = math.prod(features.shape[:-3]) * math.prod(features.shape[-2:])
    n_blocks = count_blocks(graph.n_edges, elements)
    return Block(
        into_blocks(rows.of_edge, -1, n_blocks, graph.n_queries),
        into_blocks(graph.key_index, -1, n_blocks, graph.n_keys),
        # an edge that was dropped has a number too, whose features are not read
        into_blocks(
            jnp.where(graph.is_edge, graph.edge_id, graph.n_edges), -1, n_blocks, graph.n_edges
        ),
        into_blocks(graph.multiplicity(), -1, n_blocks),
        None if graph.head_mask is None else into_blocks(graph.head_mask, -2, n_blocks),
    )


def only_used(values: jax.Array, block: Block) -> jax.Array:
    """Values of a block's edges, `[*B, n, H, F]`; zero where a head does not use one: it may be NaN."""
    if block.is_used is None:
        return values
    return jnp.where(lead(block.is_used[..., None], values.ndim), values, 0)


def features_of(edges: EdgeInputs, block: Block) -> jax.Array:
    """Features of a block's edges, `[*B, n, 1 or H, D]`, zero where a head does not use one."""
    return only_used(gather(edges.features, block.edge, axis=-2)[..., None, :], block)


def score(pair: jax.Array, attn: jax.Array, negative_slope: float) -> jax.Array:
    """a_h . LeakyReLU(pair).

    Where it is -inf there is no edge, and no gradient: 0 times an infinite feature would be NaN.
    """
    activated = leaky_relu(pair, negative_slope)
    is_edge = vector_dot(*jax.lax.stop_gradient((activated, attn))) != -math.inf
    scores = vector_dot(jnp.where(is_edge[..., None], activated, 0), attn)
    return jnp.where(is_edge, scores, -math.inf)


def vector_dot(values: jax.Array, vector: jax.Array) -> jax.Array:
    """`[..., H, F]` and `[H, F]` to `[..., H]`."""
    return jnp.sum(values * lead(vector, values.ndim), axis=-1)


def leaky_relu(values: jax.Array, negative_slope: float) -> jax.Array:
    """LeakyReLU; not `jax.nn.leaky_relu`, whose slope at zero is not PyTorch's."""
    return jnp.where(values > 0, values, negative_slope * values)


def gather(values: jax.Array, index: jax.Array, axis: int, fill_value: float = 0) -> jax.Array:
    """Rows of `values`; padding reads `fill_value`."""
    if values.shape[axis] == 0:  # of which `take` refuses to read padding
        shape = list(values.shape)
        shape[axis] = 1
        values = jnp.full(shape, fill_value, values.dtype)
    return jnp.take(values, index, axis=axis, mode="fill", fill_value=fill_value)


def add_to_rows(total: jax.Array, row: jax.Array, values: jax.Array, axis: int) -> jax.Array:
    """Add values, along `axis`, to their rows; padding is dropped."""
    if total.shape[axis] == 0:  # the derivative would read from nothing
        return total
    behind = (slice(None),) * (-1 - axis)
    return total.at[(..., row, *behind)].add(values, mode="drop")


def keep_of(
    graph: Graph,
    rows: Rows,
    block: Block,
    seed: jax.Array,
    dropout: float,
    weights: jax.Array,
) -> jax.Array:
    """Which coefficients of a block survive dropout, in the shape of `weights`, `[*B, n, H]`."""
    *batch_shape, _, n_heads = weights.shape
    block_queries, block_keys = graph.block_shape
    query_of_row = rows.spread(jnp.arange(graph.n_queries, dtype=block.row.dtype), -1)
    query, key = gather(query_of_row, block.row, axis=-1), block.key
    if graph.n_blocks > 1:
        batch = query // block_queries
        query, key = query % block_queries, key % block_keys
    else:
        batch = jnp.arange(math.prod(batch_shape)).reshape(*batch_shape, 1)
    if graph.query_id is not None:
        query = gather(graph.query_id, query, axis=0)
    if graph.key_id is not None:
        key = gather(graph.key_id, block.key, axis=0)
    return keep_mask(seed, dropout, query, key, n_heads, multiplicity=block.repeat, batch=batch)
