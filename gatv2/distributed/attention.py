"""Attention over a part of a graph: over local and over remote keys, joined by their log-sum-exp."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gatv2 import functional
from gatv2.checks import check_projections
from gatv2.dispatch import select_kernel
from gatv2.distributed.agreement import place_in
from gatv2.distributed.halo import Exchange, finish, start
from gatv2.distributed.partition import Partition
from gatv2.graph import Graph
from gatv2.graph.edge_features import check_edge_features
from gatv2.options import Backend, check_dropout, check_slope
from gatv2.random import as_seed
from gatv2.torch_internals import is_inspectable


@torch.compiler.disable  # type: ignore[untyped-decorator]
def gatv2_attention(
    query: Tensor,
    key: Tensor,
    attn: Tensor,
    partition: Partition,
    *,
    edge_features: Tensor | None = None,
    edge_projection: Tensor | None = None,
    negative_slope: float = 0.2,
    dropout: float = 0.0,
    seed: int | Tensor | None = None,
    backend: Backend = "auto",
    kernel: str = "auto",
    return_attention: bool = False,
) -> Any:
    r"""Graph Attention v2 over one process's part of a graph; all processes call it together.

    The result is that of :func:`gatv2.functional.gatv2_attention` over the whole graph, for the part's
    own nodes, and so are all gradients. All processes pass the same dtype, numbers of heads and
    features, and options, which are not compared. Attention over local keys runs while the rows of the
    halo travel, and so does its backward pass while their gradients do. The two parts k of the keys
    join:

    .. math::

        \mathrm{out}_i = \sum_k \exp\!\big(\mathrm{lse}_{ik} - \mathrm{lse}_i\big)\, \mathrm{out}_{ik},
        \qquad \mathrm{lse}_{ik} = \log \sum_{j \in N_i^k} \exp e_{ij}, \qquad
        \mathrm{lse}_i = \log \sum_k \exp \mathrm{lse}_{ik}

    A forward pass sends `n_sent * n_heads * n_hidden` elements of `key` from this process and fetches
    `n_halo * n_heads * n_hidden`; a backward pass sends as many gradients as were fetched, and fetches
    as many as were sent.

    Args:
        query: :math:`g^l` of own nodes, `[*batch, n_own, n_heads, n_hidden]`.
        key: :math:`g^r` of own nodes, likewise; its dtype is one that the group's backend can send.
        attn: :math:`a`, `[n_heads, n_hidden]`, the same in all processes.
        partition: this process's part.
        edge_features: `[*batch, n_edges, D]`, in the part's order of edges.
        edge_projection: :math:`W_e`, `[n_heads, n_hidden, D]`; given if `edge_features` are.
        negative_slope: slope of LeakyReLU below zero.
        dropout: probability, in [0, 1), that a coefficient is dropped.
        seed: what the dropout mask is a function of, the same in all processes; if None, rank 0 draws it
            from PyTorch's generator, as does one process alone.
        backend: "sparse" or "auto"; a part is a list of edges.
        kernel: as in :func:`gatv2.functional.gatv2_attention`.
        return_attention: whether to return the coefficients too, before dropout.

    Returns:
        `[*batch, n_own, n_heads, n_hidden]`; with `return_attention` the pair of it and the
        coefficients, `[*batch, n_edges, n_heads]` in the part's order of edges.

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: shapes, devices or options do not fit; raised before anything is sent.
        RuntimeError: the group is not the partition's, another process ended or did not answer in
            the group's timeout, or the call stands under `torch.func`.

    Example:
        One part of one needs no other process:

        >>> from gatv2 import Graph
        >>> graph = Graph.from_edge_index(torch.tensor([[0, 0, 1], [1, 2, 2]]), n_nodes=3)
        >>> (partition,) = Partition.split(graph, n_parts=1)
        >>> query, key = torch.randn(3, 2, 4), torch.randn(3, 2, 4)
        >>> gatv2_attention(query, key, torch.randn(2, 4), partition).shape
        torch.Size([3, 2, 4])

    Source: the merge is that of Milakov, Gimelshein, "Online normalizer calculation for softmax", 2018,
    section 3.1.
    """
    edges = (edge_features, edge_projection)
    _check(query, key, attn, partition, edges, backend)
    check_slope(negative_slope)
    check_dropout(dropout)
    if partition.n_parts > 1:
        named = {"edge_features": edge_features, "edge_projection": edge_projection}
        select_kernel(query, key, attn, partition.local, kernel=kernel, **named)
    is_local = partition.is_local
    options: Any = {
        "negative_slope": negative_slope,
        "dropout": dropout,
        "seed": _common_seed(seed, partition, query.device) if dropout > 0 else None,
        "kernel": kernel,
        "return_attention": return_attention,
        "edge_projection": edge_projection,
    }
    if partition.n_parts == 1:
        return functional.gatv2_attention(
            query, key, attn, partition.local, edge_features=edge_features, **options
        )

    def attend(key: Tensor, graph: Graph, chosen: Tensor) -> Any:
        features = None if edge_features is None else edge_features[..., chosen, :]
        return functional.gatv2_attention(
            query, key, attn, graph, edge_features=features, return_lse=True, **options
        )

    exchange = Exchange(partition.sent_counts, partition.halo_counts, partition.group)
    token = start(key.index_select(-3, partition.sent).movedim(-3, 0), exchange)
    out, *alpha, lse = attend(key, partition.local, is_local)
    halo = finish(token, exchange).movedim(0, -3)
    remote_out, *remote_alpha, remote_lse = attend(halo, partition.remote, ~is_local)

    share, remote_share = _shares(lse, remote_lse)
    out = share.unsqueeze(-1) * out + remote_share.unsqueeze(-1) * remote_out
    out = out.to(query.dtype)
    if not return_attention:
        return out
    coefficients = [
        share.index_select(-2, graph.edge_index[0]) * of_part
        for share, graph, (of_part,) in (
            (share, partition.local, alpha),
            (remote_share, partition.remote, remote_alpha),
        )
    ]
    joined = torch.cat(coefficients, dim=-2).to(query.dtype)
    position = torch.cat((is_local.nonzero(), (~is_local).nonzero())).squeeze(1)
    return out, torch.empty_like(joined).index_copy(-2, position, joined)


def _shares(*lse: Tensor) -> Tensor:
    """What each part of the keys has of the whole, exp(lse_k - log sum_l exp lse_l)."""
    stacked = torch.stack(lse)
    # a query without any keys has -inf in all parts, of which softmax would make NaN
    return stacked.clamp(min=torch.finfo(stacked.dtype).min).softmax(0)


def _common_seed(seed: int | Tensor | None, partition: Partition, device: torch.device) -> Tensor:
    common = as_seed(seed, device)  # all processes draw, so that their generators stay alike
    if seed is None and partition.n_parts > 1:
        group: Any = partition.group or dist.group.WORLD
        dist.broadcast(common, src=dist.get_global_rank(group, 0), group=group)
    return common


def _check(
    query: Tensor,
    key: Tensor,
    attn: Tensor,
    partition: Partition,
    edges: tuple[Tensor | None, Tensor | None],
    backend: Backend,
) -> None:
    check_projections(query, key, attn=attn)
    check_edge_features(*edges, query)
    if backend not in ("auto", "sparse"):
        raise ValueError(
            f"a Partition is a list of edges: it needs backend='sparse' or 'auto'; got {backend!r}"
        )
    for name, of_nodes in (("query", query), ("key", key)):
        if of_nodes.shape[-3] != partition.n_own:
            raise ValueError(
                f"`{name}` must have a row for each of the {partition.n_own} nodes of rank "
                f"{partition.rank}, `partition.own`; got {tuple(of_nodes.shape)}"
            )
    edge_features, _ = edges
    if edge_features is not None and edge_features.shape[-2] != partition.n_edges:
        raise ValueError(
            f"`edge_features` must have a row for each of the {partition.n_edges} edges of rank "
            f"{partition.rank}, `partition.edge_id`; got {tuple(edge_features.shape)}"
        )
    if partition.n_parts == 1:
        return
    place = place_in(partition.group)
    if place != (partition.rank, partition.n_parts):
        raise ValueError(
            f"the partition is that of rank {partition.rank} of {partition.n_parts}, but this process "
            f"is rank {place[0]} of {place[1]}: make or load it in each process of the group"
        )
    if not all(is_inspectable(x) for x in (query, key, attn)):
        raise RuntimeError(
            "attention over several processes needs tensors with values, and no transform of torch.func "
            "goes across processes: differentiate with `backward` or `torch.autograd.grad`, twice too"
        )
