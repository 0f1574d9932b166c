"""The fused CPU kernel over a list of edges: same function as `gatv2.sparse.reference`."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gatv2.graph import Graph
from gatv2.operator.define import Launcher, define, unsupported
from gatv2.sparse import reference

__all__ = ["gatv2_attention", "unsupported"]


class Adjacency(NamedTuple):
    """What tells the kernels the graph: that of a `Graph`."""

    query_ptr: Tensor
    key_index: Tensor
    key_ptr: Tensor | None
    """Where each key's edges begin; like the next two, None where no gradient is expected."""
    edges_by_key: Tensor | None
    queries_by_key: Tensor | None
    head_mask: Tensor | None
    edge_id: Tensor | None
    """The row of features of each edge; None without features of edges."""
    query_id: Tensor | None
    """Numbers of queries for dropout; None, like those of keys, if they are the positions."""
    key_id: Tensor | None


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
    edge_features: Tensor | None = None,
    edge_projection: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """GATv2 attention without anything of `[E, H, F]`; see `gatv2.sparse.reference`.

    Forward keeps one log-sum-exp for each query and head, and backward recomputes the coefficients.
    Its scratch is two numbers for each edge and head, and one bit for each edge and feature. Features
    of edges are projected while they are read.
    """
    features = [query, key, attn]
    features += [x for x in (edge_features, edge_projection) if x is not None]
    by_key: Sequence[Tensor | None] = (None, None, None)
    if torch.is_grad_enabled() and any(x.requires_grad for x in features):
        by_key = graph.by_key
    out, lse, alpha = _attention(
        query,
        key,
        attn,
        edge_features,
        edge_projection,
        graph.query_ptr,
        graph.key_index,
        *by_key,
        graph.head_mask,
        None if edge_features is None else graph.edge_id,
        *((None, None) if seed is None else _node_ids(graph)),
        seed,
        graph.n_blocks,
        0,
        negative_slope,
        dropout,
        return_attention,
    )
    return out, lse, graph.in_callers_order(alpha, dim=-2) if return_attention else None


def _node_ids(graph: Graph) -> tuple[Tensor | None, Tensor | None]:
    """Numbers of queries and of keys for dropout: both, or none if they are the positions."""
    if graph.query_id is None and graph.key_id is None:
        return None, None
    block_queries, block_keys = graph.block_shape
    query_id, key_id = graph.query_id, graph.key_id
    if query_id is None:
        query_id = torch.arange(graph.n_queries) % max(block_queries, 1)
    if key_id is None:
        key_id = torch.arange(graph.n_keys) % max(block_keys, 1)
    return query_id, key_id


def _numba() -> Launcher:
    from gatv2.operator.on_arrays import OnArrays
    from gatv2.sparse import numba_kernel

    return OnArrays(numba_kernel)


def _reference(
    query: Tensor,
    key: Tensor,
    attn: Tensor,
    adjacency: Sequence[Tensor | None],
    seed: Tensor | None,
    n_blocks: int,
    negative_slope: float,
    dropout: float,
    edge_features: Tensor | None,
    edge_projection: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    query_ptr, key_index, *_, head_mask, edge_id, query_id, key_id = adjacency
    assert query_ptr is not None
    assert key_index is not None
    n_queries, n_edges = query_ptr.shape[0] - 1, key_index.shape[0]
    position = torch.arange(max(n_queries, n_edges), dtype=key_index.dtype)
    graph = Graph(
        query_ptr,
        key_index,
        query_index=position[:n_queries].repeat_interleave(query_ptr.diff(), output_size=n_edges),
        edge_id=position[:n_edges],
        n_keys=key.shape[-3],
        head_mask=head_mask,
        n_blocks=n_blocks,
        query_id=query_id,
        key_id=key_id,
    )
    if edge_features is not None and edge_id is not None:
        edge_features = edge_features.index_select(-2, edge_id)
    return reference.gatv2_attention(
        query,
        key,
        attn,
        graph,
        negative_slope=negative_slope,
        dropout=dropout,
        seed=seed,
        return_attention=True,
        edge_features=edge_features,
        edge_projection=edge_projection,
    )


def _alpha_shape(query: Tensor, _key: Tensor, *adjacency: Tensor) -> tuple[int, ...]:
    return (*query.shape[:-3], adjacency[1].shape[0], query.shape[-2])


_attention = define("sparse_attention", Adjacency, {"CPU": _numba}, _reference, _alpha_shape)
