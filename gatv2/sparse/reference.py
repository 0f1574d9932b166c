"""The formula over a list of edges: gather, scatter-softmax, scatter-sum.

e_ij = a_h . LeakyReLU(g_l[i] + g_r[j])      for each edge (i, j)
alpha_ij = softmax over the edges of query i of e_ij
out_i = sum over the edges of query i of dropout(alpha_ij) g_r[j]

With edge features: e_ij = a_h . LeakyReLU(g_l[i] + g_r[j] + W_e x[i, j]).
With a bias of the scores b[i, j] is added to e_ij; where it is -inf there is no edge.

Half precision is computed in float32 and rounded once. What a head does not use is replaced by zero
before anything is computed of it, so that NaN stays where it is used.
An edge whose score is -inf has no weight.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import leaky_relu

from gatv2.graph import Graph
from gatv2.graph.edge_inputs import EdgeInputs
from gatv2.graph.edges import changed
from gatv2.precision import computed_in, summed_in, without_autocast
from gatv2.random import keep_mask
from gatv2.scores import score


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
    score_bias: Tensor | None = None,
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
        edges: features x `[*B, E, D]`, in the caller's order of edges, and W_e `[H, F, D]`; or None.
        score_bias: b `[*B, E, 1 or H]`, in the caller's order of edges; or None.
    """
    graph = without_removed(graph, score_bias)
    scores = gatv2_scores(query, key, attn, graph, negative_slope=negative_slope, edges=edges)
    scores = add_bias(scores, score_bias, graph)
    out, lse, alpha = attend(scores, key, graph, dropout=dropout, seed=seed)
    return out, lse, graph.in_callers_order(alpha, dim=-2) if return_attention else None


def without_removed(graph: Graph, score_bias: Tensor | None) -> Graph:
    """The graph without the edges that a bias of -inf takes from a head.

    Its head mask is `[*B, E, 1 or H]`, which is what the functions of this file read.
    """
    if score_bias is None:
        return graph
    is_left = score_bias.index_select(-2, graph.edge_id) != -math.inf
    used = is_left if graph.head_mask is None else is_left & graph.head_mask
    return changed(graph, head_mask=used)


def add_bias(scores: Tensor, score_bias: Tensor | None, graph: Graph) -> Tensor:
    """Scores and their bias, of which nothing is read where the graph has no edge for a head."""
    if score_bias is None:
        return scores
    bias = score_bias.index_select(-2, graph.edge_id).to(scores.dtype)
    if graph.head_mask is not None:
        bias = bias.masked_fill(~graph.head_mask, 0.0)
    return scores + bias


def gatv2_scores(
    query: Tensor,
    key: Tensor,
    attn: Tensor,
    graph: Graph,
    *,
    negative_slope: float,
    edges: EdgeInputs | None = None,
) -> Tensor:
    """e_ij of GATv2 for every edge, in the graph's order: `[*B, E, H]`.

    In the dtype that is computed in.
    """
    pair = _gather_used(query, graph.query_index, graph)
    pair = pair + _gather_used(key, graph.key_index, graph)
    if edges is not None:
        pair = pair + _projected(edges, graph)
    return score(pair, attn, negative_slope)  # pair: [*B, E, H, F]


def gat_scores(
    query: Tensor,
    key: Tensor,
    attn_query: Tensor,
    attn_key: Tensor,
    graph: Graph,
    *,
    negative_slope: float,
) -> Tensor:
    """e_ij of the static control, LeakyReLU(a_1 . g_l[i] + a_2 . g_r[j]): `[*B, E, H]`.

    In the dtype that is computed in.
    """
    query_term = (_used_rows(query, graph.query_index, graph) * attn_query).sum(-1, keepdim=True)
    key_term = (_used_rows(key, graph.key_index, graph) * attn_key).sum(-1, keepdim=True)
    pair = _gather(query_term, graph.query_index) + _gather(key_term, graph.key_index)
    return leaky_relu(pair.squeeze(-1), negative_slope)


def attend(
    scores: Tensor, value: Tensor, graph: Graph, *, dropout: float, seed: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Softmax over each query's edges, dropout, weighted sum of `value`: `(out, lse, alpha)`.

    The scores are in the dtype that is computed in; out and alpha are in that of `value`.
    """
    lse, alpha = _scatter_softmax(scores, graph)
    weight = alpha
    if seed is not None:
        weight = alpha * _keep(seed, dropout, scores, graph) / (1 - dropout)
    is_edge = scores != -math.inf
    if graph.head_mask is not None:
        is_edge = is_edge & graph.head_mask
    values = _gather(value, graph.key_index).masked_fill(~is_edge.unsqueeze(-1), 0.0)
    message = weight.unsqueeze(-1) * values  # [*B, E, H, F]
    out = _scatter_sum(message, graph, dim=-3)
    return out.to(value.dtype), lse, alpha.to(value.dtype)


def _projected(edges: EdgeInputs, graph: Graph) -> Tensor:
    """W_e x of each edge: `[*B, E, H, F]`."""
    dtype = computed_in(edges.features.dtype)
    features = edges.features.index_select(-2, graph.edge_id).to(dtype)
    with without_autocast(features.device):
        if graph.head_mask is None:
            return torch.einsum("...d,hfd->...hf", features, edges.projection.to(dtype))
        of_heads = features.unsqueeze(-2).masked_fill(~graph.head_mask.unsqueeze(-1), 0.0)
        return torch.einsum("...hd,hfd->...hf", of_heads, edges.projection.to(dtype))


def _gather_used(rows: Tensor, index: Tensor, graph: Graph) -> Tensor:
    """The row of each edge, zero where a head does not use it: `[*B, E, H, F]`."""
    gathered = _gather(rows, index)
    if graph.head_mask is None:
        return gathered
    return gathered.masked_fill(~graph.head_mask.unsqueeze(-1), 0.0)


def _gather(rows: Tensor, index: Tensor) -> Tensor:
    """The row of each edge, in the dtype that is computed in; a row's gradient is a sum over edges."""
    index = _refused_if_negative(index.long(), rows.shape[-3])
    return rows.to(summed_in(rows)).index_select(-3, index).to(computed_in(rows.dtype))


def _refused_if_negative(index: Tensor, n_rows: int) -> Tensor:
    """The same indices: compiled code takes -1 for the last row in any function but `gather`."""
    if not torch.compiler.is_compiling() or torch.compiler.is_exporting():
        return index
    return torch.arange(n_rows, device=index.device).gather(0, index)


def _used_rows(rows: Tensor, index: Tensor, graph: Graph) -> Tensor:
    """Rows in the dtype that is computed in, zero where no edge uses them."""
    rows = rows.to(computed_in(rows.dtype))
    uses = rows.new_ones(graph.n_edges, 1) if graph.head_mask is None else graph.head_mask.to(rows)
    shape = (*uses.shape[:-2], rows.shape[-3], uses.shape[-1])
    n_uses = rows.new_zeros(shape).index_add(-2, index.long(), uses)
    return rows.masked_fill((n_uses == 0).unsqueeze(-1), 0.0)


def _scatter_softmax(scores: Tensor, graph: Graph) -> tuple[Tensor, Tensor]:
    if graph.head_mask is not None:
        scores = scores.masked_fill(~graph.head_mask, -math.inf)
    query_index = graph.query_index.long()
    largest = scores.new_full((*scores.shape[:-2], graph.n_queries, scores.shape[-1]), -math.inf)
    index = query_index.unsqueeze(-1).expand(scores.shape)
    largest = largest.scatter_reduce(-2, index, scores.detach(), "amax")
    is_empty = largest == -math.inf
    largest = largest.masked_fill(is_empty, 0.0)  # -inf - -inf would be NaN
    numerator = (scores - largest.index_select(-2, query_index)).exp()
    denominator = _scatter_sum(numerator, graph, dim=-2).masked_fill(is_empty, 1.0)
    alpha = numerator / _gather(denominator.unsqueeze(-1), graph.query_index).squeeze(-1)
    return (largest + denominator.log()).masked_fill(is_empty, -math.inf), alpha


def _scatter_sum(values: Tensor, graph: Graph, dim: int) -> Tensor:
    shape = list(values.shape)
    shape[dim] = graph.n_queries
    total = values.new_zeros(shape, dtype=summed_in(values))
    total = total.index_add(dim, graph.query_index.long(), values.to(total.dtype))
    return total.to(values.dtype)


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
