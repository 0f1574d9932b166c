"""The formula, literally, over a dense mask: what every other kernel is measured against.

e_ij = a_h . LeakyReLU(g_l[i] + g_r[j])
alpha_ij = softmax over the keys j of query i of e_ij
out_i = sum over j of dropout(alpha_ij) g_r[j]

With features of edges: e_ij = a_h . LeakyReLU(g_l[i] + g_r[j] + W_e x[i, j]).
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import leaky_relu

from gatv2.graph.edge_inputs import EdgeInputs
from gatv2.precision import computed_in
from gatv2.random import keep_mask


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
        edges: x `[*B, N, M, D]` and W_e `[H, F, D]`; or None.
    """
    query, key = _without_padding(query, key, mask)
    if edges is not None:
        x = edges.features.masked_fill(~mask.any(-1, keepdim=True), 0.0)
        edges = edges._replace(features=x)
    scores = gatv2_scores(
        query,
        key,
        attn,
        negative_slope=negative_slope,
        edges=edges,
    )
    out, lse, alpha = attend(scores, key, mask, dropout=dropout, seed=seed)
    return out, lse, alpha if return_attention else None


def gatv2_scores(
    query: Tensor,
    key: Tensor,
    attn: Tensor,
    *,
    negative_slope: float,
    edges: EdgeInputs | None = None,
) -> Tensor:
    """e_ij of GATv2 for every pair: `[*B, N, M, H]`."""
    pair = query.unsqueeze(-3) + key.unsqueeze(-4)  # [*B, N, M, H, F]
    if edges is not None:
        pair = pair + torch.einsum("...d,hfd->...hf", *edges)
    return (leaky_relu(pair, negative_slope) * attn).sum(-1)


def gat_scores(
    query: Tensor, key: Tensor, attn_query: Tensor, attn_key: Tensor, *, negative_slope: float
) -> Tensor:
    """e_ij of the static control, LeakyReLU(a_1 . g_l[i] + a_2 . g_r[j]): `[*B, N, M, H]`."""
    of_query, of_key = (query * attn_query).sum(-1), (key * attn_key).sum(-1)
    return leaky_relu(of_query.unsqueeze(-2) + of_key.unsqueeze(-3), negative_slope)


def attend(
    scores: Tensor, value: Tensor, mask: Tensor, *, dropout: float, seed: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Softmax over the keys of the mask, dropout, weighted sum of `value`: `(out, lse, alpha)`."""
    # finfo.min, not -inf: a row without keys stays finite, and the second fill makes it exactly zero
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    alpha = scores.softmax(dim=-2).masked_fill(~mask, 0.0)  # [*B, N, M, H]
    weight = alpha
    if seed is not None:
        weight = alpha * _keep(seed, dropout, scores) / (1 - dropout)
    lse = scores.logsumexp(dim=-2).masked_fill(~mask.any(-2), -math.inf)
    return (
        torch.einsum("...ijh,...jhf->...ihf", weight, value),
        lse.to(computed_in(lse.dtype)),
        alpha,
    )


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


def _without_padding(query: Tensor, key: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Zero the queries and keys without an edge: padding may hold NaN, and 0 * NaN is NaN."""
    has_key, is_key = mask.any(-2).unsqueeze(-1), mask.any(-3).unsqueeze(-1)
    return query.masked_fill(~has_key, 0.0), key.masked_fill(~is_key, 0.0)
