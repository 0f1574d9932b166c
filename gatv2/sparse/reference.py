"""The formula over a list of edges: gather, scatter-softmax, scatter-sum.

e_ij = a_h . LeakyReLU(g_l[i] + g_r[j])      for each edge (i, j)
alpha_ij = softmax over the edges of query i of e_ij
out_i = sum over the edges of query i of dropout(alpha_ij) g_r[j]

With features of edges: e_ij = a_h . LeakyReLU(g_l[i] + g_r[j] + W_e x[i, j]).
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import leaky_relu

from gatv2.graph import Graph
from gatv2.graph.edge_inputs import EdgeInputs
from gatv2.precision import computed_in
from gatv2.random import keep_mask


def gatv2_attention(
    query: Tensor,
    key: Tensor,
    attn: Tensor,
    graph: Graph,
    *,
    negative_slope: float,
    dropout: float,
    seed: Tensor | None,
    return_attention: bool,
    edges: EdgeInputs | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """GATv2 attention: `(out, lse, alpha)`.

    `lse` `[*B, N, H]` is the log-sum-exp of a query's scores, -inf without any, in float32 or float64;
    `alpha` `[*B, E, H]` is after the softmax and before dropout.

    Args:
        query: g_l `[*B, N, H, F]`.
        key: g_r `[*B, M, H, F]`.
        attn: a `[H, F]`.
        graph: the edges.
        negative_slope: slope of LeakyReLU below zero.
        dropout: probability that a coefficient is dropped.
        seed: 0-d int64, the seed of the dropout mask; None if `dropout` is 0.
        return_attention: whether to return alpha, in the caller's order of edges.
        edges: x `[*B, E, D]`, in the caller's order of edges, and W_e `[H, F, D]`; or None.
    """
    scores = gatv2_scores(
        query,
        key,
        attn,
        graph,
        negative_slope=negative_slope,
        edges=edges,
    )
    out, lse, alpha = attend(scores, key, graph, dropout=dropout, seed=seed)
    return out, lse, graph.in_callers_order(alpha, dim=-2) if return_attention else None


def gatv2_scores(
    query: Tensor,
    key: Tensor,
    attn: Tensor,
    graph: Graph,
    *,
    negative_slope: float,
    edges: EdgeInputs | None = None,
) -> Tensor:
    """e_ij of GATv2 for every edge, in the graph's order: `[*B, E, H]`."""
    pair = query.index_select(-3, graph.query_index) + key.index_select(-3, graph.key_index)
    if edges is not None:
        x = edges.features.index_select(-2, graph.edge_id)
        pair = pair + torch.einsum("...d,hfd->...hf", x, edges.projection)
    return (leaky_relu(pair, negative_slope) * attn).sum(-1)  # pair: [*B, E, H, F]


def gat_scores(
    query: Tensor,
    key: Tensor,
    attn_query: Tensor,
    attn_key: Tensor,
    graph: Graph,
    *,
    negative_slope: float,
) -> Tensor:
    """e_ij of the static control, LeakyReLU(a_1 . g_l[i] + a_2 . g_r[j]): `[*B, E, H]`."""
    of_query, of_key = (query * attn_query).sum(-1), (key * attn_key).sum(-1)
    return leaky_relu(
        of_query.index_select(-2, graph.query_index) + of_key.index_select(-2, graph.key_index),
        negative_slope,
    )


def attend(
    scores: Tensor, value: Tensor, graph: Graph, *, dropout: float, seed: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Softmax over each query's edges, dropout, weighted sum of `value`: `(out, lse, alpha)`."""
    lse, alpha = _scatter_softmax(scores, graph)
    weight = alpha
    if seed is not None:
        weight = alpha * _keep(seed, dropout, scores, graph) / (1 - dropout)
    message = weight.unsqueeze(-1) * value.index_select(-3, graph.key_index)  # [*B, E, H, F]
    return _scatter_sum(message, graph, dim=-3), lse, alpha


def _scatter_softmax(scores: Tensor, graph: Graph) -> tuple[Tensor, Tensor]:
    if graph.head_mask is not None:
        # finfo.min, not -inf: a head without edges stays finite, and the last fill makes it zero
        scores = scores.masked_fill(~graph.head_mask, torch.finfo(scores.dtype).min)
    query_index = graph.query_index.long().unsqueeze(-1).expand(scores.shape)
    largest = scores.new_zeros(*scores.shape[:-2], graph.n_queries, scores.shape[-1])
    largest = largest.scatter_reduce(-2, query_index, scores.detach(), "amax", include_self=False)
    numerator = (scores - largest.index_select(-2, graph.query_index)).exp()
    denominator = _scatter_sum(numerator, graph, dim=-2)
    alpha = numerator / denominator.index_select(-2, graph.query_index)
    is_empty = (denominator == 0) | (largest == torch.finfo(scores.dtype).min)
    lse = (largest + denominator.masked_fill(is_empty, 1.0).log()).masked_fill(is_empty, -math.inf)
    if graph.head_mask is not None:
        alpha = alpha.masked_fill(~graph.head_mask, 0.0)
    return lse.to(computed_in(lse.dtype)), alpha


def _scatter_sum(values: Tensor, graph: Graph, dim: int) -> Tensor:
    shape = list(values.shape)
    shape[dim] = graph.n_queries
    return values.new_zeros(shape).index_add(dim, graph.query_index, values)


def _keep(seed: Tensor, dropout: float, scores: Tensor, graph: Graph) -> Tensor:
    *batch_shape, _, n_heads = scores.shape
    block_queries, block_keys = graph.block_shape
    query_index, key_index = graph.query_index.long(), graph.key_index.long()
    query, key = query_index, key_index
    if graph.n_blocks > 1:
        batch = query_index // block_queries
        query, key = query_index % block_queries, key_index % block_keys
    else:
        n_batches = torch.Size(batch_shape).numel()
        batch = torch.arange(n_batches, device=scores.device).view(*batch_shape, 1)
    if graph.query_id is not None:
        query = graph.query_id.index_select(0, query_index)
    if graph.key_id is not None:
        key = graph.key_id.index_select(0, key_index)
    return keep_mask(
        seed, dropout, query, key, n_heads, multiplicity=graph.multiplicity, batch=batch
    )
