"""The formula, literally, over a dense mask: what every other kernel is measured against.

e_ij = a_h . LeakyReLU(g_l[i] + g_r[j])
alpha_ij = softmax over the keys j of query i of e_ij
out_i = sum over j of dropout(alpha_ij) g_r[j]

With edge features: e_ij = a_h . LeakyReLU(g_l[i] + g_r[j] + W_e x[i, j]).
With a bias of the scores b[i, j] is added to e_ij; where it is -inf there is no edge.

Half precision is computed in float32 and rounded once. What a head does not use is replaced by zero
before anything is computed of it, so that NaN stays where it is used.
A pair whose score is -inf has no weight.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import leaky_relu, pad

from gatv2.graph.edge_inputs import EdgeInputs
from gatv2.precision import computed_in, without_autocast
from gatv2.random import keep_mask
from gatv2.scores import score


def gatv2_attention(
    query: Tensor,
    key: Tensor,
    attn: Tensor,
    mask: Tensor,
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
    `alpha` `[*B, N, M, H]` is after the softmax and before dropout.

    Args:
        query: g_l `[*B, N, H, F]`.
        key: g_r `[*B, M, H, F]`.
        attn: a `[H, F]`.
        mask: `[*B, N, M, 1 or H]`, bool.
        negative_slope: slope of LeakyReLU below zero.
        dropout: probability that a coefficient is dropped.
        seed: 0-d int64, the seed of the dropout mask; None if `dropout` is 0.
        return_attention: whether to return alpha.
        edges: features x `[*B, N, M, D]` and W_e `[H, F, D]`; or None.
        score_bias: b `[*B, N, M, 1 or H]`; or None.
    """
    mask = without_removed(mask, score_bias)
    scores = gatv2_scores(query, key, attn, mask, negative_slope=negative_slope, edges=edges)
    scores = add_bias(scores, score_bias, mask)
    out, lse, alpha = attend(scores, key, mask, dropout=dropout, seed=seed)
    return out, lse, alpha if return_attention else None


def without_removed(mask: Tensor, score_bias: Tensor | None) -> Tensor:
    """The mask without the pairs that a bias of -inf takes from a head."""
    return mask if score_bias is None else mask & (score_bias != -math.inf)


def add_bias(scores: Tensor, score_bias: Tensor | None, mask: Tensor) -> Tensor:
    """Scores and their bias, of which nothing is read but in the mask."""
    if score_bias is None:
        return scores
    return scores + torch.where(mask, score_bias.to(scores.dtype), 0.0)


def gatv2_scores(
    query: Tensor,
    key: Tensor,
    attn: Tensor,
    mask: Tensor,
    *,
    negative_slope: float,
    edges: EdgeInputs | None = None,
) -> Tensor:
    """e_ij of GATv2 for every pair of the mask: `[*B, N, M, H]`.

    In the dtype that is computed in.
    """
    dtype = computed_in(query.dtype)
    pair = query.to(dtype).unsqueeze(-3) + key.to(dtype).unsqueeze(-4)  # [*B, N, M, H, F]
    pair = _where_used(pair, mask)
    if edges is not None:
        features = _where_used(edges.features.to(dtype).unsqueeze(-2), mask)
        with without_autocast(features.device):
            pair = pair + torch.einsum("...hd,hfd->...hf", features, edges.projection.to(dtype))
    return score(pair, attn, negative_slope)


def gat_scores(
    query: Tensor,
    key: Tensor,
    attn_query: Tensor,
    attn_key: Tensor,
    mask: Tensor,
    *,
    negative_slope: float,
) -> Tensor:
    """e_ij of the static control, LeakyReLU(a_1 . g_l[i] + a_2 . g_r[j]): `[*B, N, M, H]`.

    In the dtype that is computed in.
    """
    query_term = (_used_rows(query, mask.any(-2)) * attn_query).sum(-1)
    key_term = (_used_rows(key, mask.any(-3)) * attn_key).sum(-1)
    return leaky_relu(query_term.unsqueeze(-2) + key_term.unsqueeze(-3), negative_slope)


def attend(
    scores: Tensor, value: Tensor, mask: Tensor, *, dropout: float, seed: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Softmax over the keys of the mask, dropout, weighted sum of `value`: `(out, lse, alpha)`.

    The scores are in the dtype that is computed in; out and alpha are in that of `value`.
    """
    lse, alpha = _masked_softmax(scores, mask)  # [*B, N, M, H]
    weight = alpha
    if seed is not None:
        weight = alpha * _keep(seed, dropout, scores) / (1 - dropout)
    is_edge = mask & (scores != -math.inf)
    values = _where_used(value.to(scores.dtype).unsqueeze(-4), is_edge)  # [*B, N, M, H, F]
    out = (weight.unsqueeze(-1) * values).sum(-3)
    return out.to(value.dtype), lse, alpha.to(value.dtype)


def _where_used(values: Tensor, mask: Tensor) -> Tensor:
    """Values of pairs `[*B, N, M, H, F]`, zero where a head does not use the pair."""
    return torch.where(mask.unsqueeze(-1), values, 0.0)


def _used_rows(rows: Tensor, is_used: Tensor) -> Tensor:
    """Rows in the dtype that is computed in, zero where no pair uses them."""
    return torch.where(is_used.unsqueeze(-1), rows.to(computed_in(rows.dtype)), 0.0)


def _masked_softmax(scores: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    scores = torch.where(mask, scores, -math.inf)
    # one more of -inf, as a maximum over nothing is an error
    largest = pad(scores.detach(), (0, 0, 0, 1), value=-math.inf).amax(-2, keepdim=True)
    is_empty = largest == -math.inf
    largest = largest.masked_fill(is_empty, 0.0)  # -inf - -inf would be NaN
    numerator = (scores - largest).exp()
    total = numerator.sum(-2, keepdim=True).masked_fill(is_empty, 1.0)
    lse = (largest + total.log()).masked_fill(is_empty, -math.inf)
    return lse.squeeze(-2), numerator / total


def _keep(seed: Tensor, dropout: float, scores: Tensor) -> Tensor:
    *batch_shape, n_queries, n_keys, n_heads = scores.shape
    device = scores.device
    n_batches = torch.Size(batch_shape).numel()
    return keep_mask(
        seed,
        dropout,
        torch.arange(n_queries, device=device).unsqueeze(-1),
        torch.arange(n_keys, device=device),
        n_heads,
        multiplicity=torch.zeros((), dtype=torch.int64, device=device),
        batch=torch.arange(n_batches, device=device).view(*batch_shape, 1, 1),
    )
