"""Attention over a part of a graph: over local and over remote keys, joined by their log-sum-exp."""

from typing import Literal, TypedDict, Unpack, overload

import torch
from torch import Tensor

from gatv2 import functional
from gatv2.checks import check_projections
from gatv2.dispatch import select_kernel
from gatv2.distributed.agreement import place_in
from gatv2.distributed.call import Call
from gatv2.distributed.halo import Exchange, finish, start
from gatv2.distributed.part import PartData
from gatv2.functional import Attended
from gatv2.graph import Graph
from gatv2.graph.edge_inputs import (
    EdgeInputs,
    check_edge_inputs,
    check_score_bias,
    given_of_edges,
)
from gatv2.graph.part import AttendOptions
from gatv2.options import Backend, as_dropout, as_slope
from gatv2.precision import largest_in
from gatv2.random import as_seed
from gatv2.torch_internals import is_inspectable


class Options(TypedDict, total=False):
    """Options of :func:`gatv2.distributed.gatv2_attention`."""

    edge_features: Tensor | None
    edge_projection: Tensor | None
    score_bias: Tensor | None
    negative_slope: float
    dropout: float
    seed: int | Tensor | None
    backend: Backend
    kernel: str


@overload
def gatv2_attention(
    query: Tensor,
    key: Tensor,
    attn: Tensor,
    partition: PartData,
    *,
    return_attention: Literal[False] = ...,
    **options: Unpack[Options],
) -> Tensor: ...
@overload
def gatv2_attention(
    query: Tensor,
    key: Tensor,
    attn: Tensor,
    partition: PartData,
    *,
    return_attention: Literal[True],
    **options: Unpack[Options],
) -> tuple[Tensor, Tensor]: ...
@overload
def gatv2_attention(
    query: Tensor,
    key: Tensor,
    attn: Tensor,
    partition: PartData,
    *,
    return_attention: bool,
    **options: Unpack[Options],
) -> Tensor | tuple[Tensor, Tensor]: ...


def gatv2_attention(
    query: Tensor,
    key: Tensor,
    attn: Tensor,
    partition: PartData,
    *,
    edge_features: Tensor | None = None,
    edge_projection: Tensor | None = None,
    score_bias: Tensor | None = None,
    negative_slope: float = 0.2,
    dropout: float = 0.0,
    seed: int | Tensor | None = None,
    backend: Backend = "auto",
    kernel: str = "auto",
    return_attention: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Graph Attention v2 over one process's part of a graph; all processes call it together.

    The result is that of :func:`gatv2.functional.gatv2_attention` over the whole graph, for the part's
    own nodes, and so are all gradients. All processes pass the same dtype, numbers of heads and
    features, parameters and options, which are compared before rows are sent. Attention over local keys
    runs while the rows of the halo travel, and so does its backward pass while their gradients do. The
    two parts k of the keys join:

    .. math::

        \begin{aligned}
        \mathrm{out}_i &= \sum_k \exp(\mathrm{lse}_{ik} - \mathrm{lse}_i)\, \mathrm{out}_{ik} \\
        \mathrm{lse}_{ik} &= \log \sum_{j \in N_i^k} \exp e_{ij} \\
        \mathrm{lse}_i &= \log \sum_k \exp \mathrm{lse}_{ik}
        \end{aligned}

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
        score_bias: `[*batch, n_edges, 1 or n_heads]`, in the part's order of edges.
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
        ValueError: shapes, devices or options do not fit, or differ between processes; raised in all of
            them, and before rows are sent.
        RuntimeError: the group is not the partition's, another process raised before it came to this
            call, or ended, or does something else, or did not answer in the group's timeout; or the call
            stands under `torch.func`.

    Example:
        One part of one needs no other process:

        >>> from gatv2 import Graph
        >>> from gatv2.distributed import Partition
        >>> graph = Graph.from_edge_index(torch.tensor([[0, 0, 1], [1, 2, 2]]), n_nodes=3)
        >>> (partition,) = Partition.split(graph, n_parts=1)
        >>> query, key = torch.randn(3, 2, 4), torch.randn(3, 2, 4)
        >>> gatv2_attention(query, key, torch.randn(2, 4), partition).shape
        torch.Size([3, 2, 4])

    Source: the merge is that of Milakov, Gimelshein, "Online normalizer calculation for softmax", 2018,
    section 3.1.
    """
    if not isinstance(partition, PartData):
        raise TypeError(
            f"`partition` must be a gatv2.distributed.Partition; got {type(partition).__name__}: make "
            "one with `Partition.from_graph(graph)`, or pass a graph to gatv2.functional.gatv2_attention"
        )
    edges = partition.told(lambda: EdgeInputs.join(edge_features, edge_projection))
    out, alpha = attend(
        query,
        key,
        attn,
        partition,
        edges=edges,
        score_bias=score_bias,
        negative_slope=negative_slope,
        dropout=dropout,
        seed=seed,
        backend=backend,
        kernel=kernel,
        return_attention=return_attention,
    )
    return out if alpha is None else (out, alpha)


def attend(
    query: Tensor, key: Tensor, attn: Tensor, part: PartData, **options: Unpack[AttendOptions]
) -> tuple[Tensor, Tensor | None]:
    """As :func:`gatv2_attention`: output, and coefficients or None."""
    # called and not a decorator, which would load the compiler whenever this file is imported
    uncompiled = torch.compiler.disable(_attend) if torch.compiler.is_compiling() else _attend
    return uncompiled(query, key, attn, part, **options)


def _attend(
    query: Tensor, key: Tensor, attn: Tensor, part: PartData, **options: Unpack[AttendOptions]
) -> tuple[Tensor, Tensor | None]:
    return part.told(lambda: _attend_together(query, key, attn, part, **options))


def _attend_together(
    query: Tensor,
    key: Tensor,
    attn: Tensor,
    part: PartData,
    *,
    edges: EdgeInputs | None,
    score_bias: Tensor | None,
    negative_slope: float,
    dropout: float,
    seed: int | Tensor | None,
    backend: Backend,
    kernel: str,
    return_attention: bool,
) -> tuple[Tensor, Tensor | None]:
    _check(query, key, attn, part, edges, score_bias, backend)
    negative_slope = as_slope(negative_slope, largest=largest_in(query.dtype))
    dropout = as_dropout(dropout)
    has_seed = seed is not None
    # all processes draw, so that their generators stay alike
    common_seed = as_seed(seed, query.device) if dropout > 0 else None

    def attend_to(key: Tensor, graph: Graph, chosen: Tensor | None) -> Attended:
        return functional.attend(
            query,
            key,
            attn,
            graph,
            edges=edges
            if edges is None
            else edges._replace(features=_chosen(edges.features, chosen)),
            score_bias=None if score_bias is None else _chosen(score_bias, chosen),
            negative_slope=negative_slope,
            dropout=dropout,
            seed=common_seed,
            flow="target_to_source",
            backend="auto",
            kernel=kernel,
            return_attention=return_attention,
        )

    if part.n_parts == 1:
        out, alpha, _ = attend_to(key, part.local, None)
        return out, alpha
    features, projection = edges or (None, None)
    select_kernel(
        query,
        key,
        attn,
        part.local,
        edge_features=features,
        edge_projection=projection,
        score_bias=score_bias,
        kernel=kernel,
    )
    call = Call.of(
        key,
        part,
        edges,
        score_bias,
        negative_slope=negative_slope,
        dropout=dropout,
        has_seed=has_seed,
        kernel=kernel,
    )
    meeting = call.meet(attn, common_seed, part)
    rows = key.index_select(-3, part.sent).movedim(-3, 0)
    common_seed = as_seed(call.common_seed(meeting.agreed()), query.device)
    exchange = Exchange(part.sent_counts, part.halo_counts, part.group, number=meeting.number)
    token = start(rows, exchange)
    local = attend_to(key, part.local, part.is_local)
    halo = finish(token, exchange).movedim(0, -3)
    remote = attend_to(halo, part.remote, ~part.is_local)
    return _join(local, remote, part, query.dtype)


def _chosen(of_edges: Tensor, is_chosen: Tensor | None) -> Tensor:
    return of_edges if is_chosen is None else of_edges[..., is_chosen, :]


def _join(
    local: Attended, remote: Attended, part: PartData, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """Attention over all keys of the part's queries, of that over local and over remote ones."""
    share, remote_share = _shares(local.lse, remote.lse)
    out = share.unsqueeze(-1) * local.out + remote_share.unsqueeze(-1) * remote.out
    out = out.to(dtype)
    if local.alpha is None or remote.alpha is None:
        return out, None
    alphas = (
        share.index_select(-2, part.local.edge_index[0]) * local.alpha,
        remote_share.index_select(-2, part.remote.edge_index[0]) * remote.alpha,
    )
    joined = torch.cat(alphas, dim=-2).to(dtype)
    position = torch.cat((part.is_local.nonzero(), (~part.is_local).nonzero())).squeeze(1)
    return out, torch.empty_like(joined).index_copy(-2, position, joined)


def _shares(*lse: Tensor) -> Tensor:
    """What each part of the keys has of the whole, exp(lse_k - log sum_l exp lse_l)."""
    stacked = torch.stack(lse)
    # a query without any keys has -inf in all parts, of which softmax would make NaN
    return stacked.clamp(min=torch.finfo(stacked.dtype).min).softmax(0)


def _check(
    query: Tensor,
    key: Tensor,
    attn: Tensor,
    part: PartData,
    edges: EdgeInputs | None,
    score_bias: Tensor | None,
    backend: Backend,
) -> None:
    check_projections(query, key, attn=attn)
    check_edge_inputs(edges, query)
    check_score_bias(score_bias, query, query.shape[-2])
    if backend not in ("auto", "sparse"):
        raise ValueError(
            f"a Partition is a list of edges: it needs backend='sparse' or 'auto'; got {backend!r}"
        )
    for name, of_nodes in (("query", query), ("key", key)):
        if of_nodes.shape[-3] != part.n_own:
            raise ValueError(
                f"`{name}` must have a row for each of the {part.n_own} nodes of rank "
                f"{part.rank}, `partition.own`; got {tuple(of_nodes.shape)}"
            )
    for name, of_edges in given_of_edges(edges and edges.features, score_bias).items():
        if of_edges.shape[-2] != part.n_edges:
            raise ValueError(
                f"`{name}` must have a row for each of the {part.n_edges} edges of rank "
                f"{part.rank}, `partition.edge_id`; got {tuple(of_edges.shape)}"
            )
    if part.n_parts == 1:
        return
    place = place_in(part.group)
    if place != (part.rank, part.n_parts):
        raise ValueError(
            f"the partition is that of rank {part.rank} of {part.n_parts}, but this process "
            f"is rank {place[0]} of {place[1]}: make or load it in each process of the group"
        )
    if not all(is_inspectable(x) for x in (query, key, attn)):
        raise RuntimeError(
            "attention over several processes needs tensors with values, and no transform of torch.func "
            "goes across processes: differentiate with `backward` or `torch.autograd.grad`, twice too"
        )
