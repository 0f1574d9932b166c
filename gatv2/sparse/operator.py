"""The fused operator over a list of edges, on any device: same function as `gatv2.sparse.reference`."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from gatv2.graph import Graph
from gatv2.graph.edge_inputs import EdgeInputs
from gatv2.operator.arguments import Arguments
from gatv2.operator.define import Launcher, define
from gatv2.sparse import reference
from gatv2.triton.support import IS_INTERPRETED


class Adjacency(NamedTuple):
    """The tensors of a `Graph` that tell the kernels its edges."""

    query_ptr: Tensor
    key_index: Tensor
    key_ptr: Tensor | None
    """Where the edges of each key are, among the next two; all three are None for inference."""
    edges_by_key: Tensor | None
    queries_by_key: Tensor | None
    head_mask: Tensor | None
    edge_id: Tensor | None
    """Which row of features and of score_bias each edge has; None without them."""
    query_id: Tensor | None
    """Numbers of the queries, by which dropout knows them, and of the keys; None: their positions."""
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
    edges: EdgeInputs | None = None,
    score_bias: Tensor | None = None,
    is_interpreted: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """GATv2 attention without anything of `[E, H, F]`; see `gatv2.sparse.reference`.

    Forward keeps one log-sum-exp for each query and head, and backward recomputes the coefficients.
    On the CPU its scratch is two numbers for each edge and head, and one bit for each edge and feature.
    Edge features are projected while they are read. `is_interpreted`: on the CPU by Triton's
    interpreter, in a process that was started with TRITON_INTERPRET=1.
    """
    edge_features, edge_projection = edges or (None, None)
    features = (query, key, attn, edge_features, edge_projection, score_bias)
    is_differentiated = torch.is_grad_enabled() and any(
        x is not None and x.requires_grad for x in features
    )
    key_ptr, edges_by_key, queries_by_key = graph.by_key if is_differentiated else [None] * 3
    query_id, key_id = (None, None) if seed is None else _node_ids(graph)
    has_rows = edges is not None or score_bias is not None
    head_mask = graph.head_mask
    if score_bias is not None and head_mask is not None:  # kernels read one of the two
        used = graph.in_callers_order(head_mask, dim=-2)
        score_bias, head_mask = score_bias.where(used, -math.inf), None
    adjacency = Adjacency(
        graph.query_ptr,
        graph.key_index,
        key_ptr,
        edges_by_key,
        queries_by_key,
        head_mask,
        graph.edge_id if has_rows else None,
        query_id,
        key_id,
    )
    operator = _interpreted if is_interpreted else _attention
    out, lse, alpha = operator(
        Arguments(
            query,
            key,
            attn,
            edge_features,
            edge_projection,
            score_bias,
            adjacency,
            seed,
            graph.n_blocks,
            n_mapped=0,
            negative_slope=negative_slope,
            dropout=dropout,
            wants_rows=return_attention,
            wants_bias_rows=False,
        )
    )
    return out, lse, graph.in_callers_order(alpha, dim=-2) if return_attention else None


def _node_ids(graph: Graph) -> tuple[Tensor | None, Tensor | None]:
    """Numbers of queries and of keys for dropout: both, or none if they are the positions."""
    query_id, key_id = graph.query_id, graph.key_id
    if query_id is None and key_id is None:
        return None, None
    block_queries, block_keys = graph.block_shape
    if query_id is None:
        query_id = torch.arange(graph.n_queries, device=graph.device) % max(block_queries, 1)
    if key_id is None:
        key_id = torch.arange(graph.n_keys, device=graph.device) % max(block_keys, 1)
    return query_id, key_id


def _numba() -> Launcher:
    from gatv2.operator.on_arrays import OnArrays
    from gatv2.sparse import numba_kernel

    return OnArrays(numba_kernel)


def _triton() -> Launcher:
    from gatv2.sparse import triton_kernel

    return triton_kernel


def _reference(arguments: Arguments) -> tuple[Tensor, Tensor, Tensor | None]:
    edges = EdgeInputs.join(arguments.edge_features, arguments.edge_projection)
    edge_id, score_bias = arguments.adjacency.edge_id, arguments.score_bias
    if edges is not None and edge_id is not None:
        edges = edges._replace(features=edges.features.index_select(-2, edge_id))
    if score_bias is not None and edge_id is not None:
        score_bias = score_bias.index_select(-2, edge_id)
    return reference.gatv2_attention(
        arguments.query,
        arguments.key,
        arguments.attn,
        _graph_of(arguments),
        negative_slope=arguments.negative_slope,
        dropout=arguments.dropout,
        seed=arguments.seed,
        return_attention=True,
        edges=edges,
        score_bias=score_bias,
    )


def _graph_of(arguments: Arguments) -> Graph:
    """The graph, its edges numbered as they are sorted."""
    adjacency: Adjacency = arguments.adjacency
    query_ptr, key_index = adjacency.query_ptr, adjacency.key_index
    n_queries, n_edges = query_ptr.shape[0] - 1, key_index.shape[0]
    position = torch.arange(max(n_queries, n_edges), dtype=key_index.dtype, device=key_index.device)
    return Graph(
        query_ptr,
        key_index,
        query_index=position[:n_queries].repeat_interleave(query_ptr.diff(), output_size=n_edges),
        edge_id=position[:n_edges],
        n_keys=arguments.key.shape[-3],
        head_mask=adjacency.head_mask,
        n_blocks=arguments.n_blocks,
        query_id=adjacency.query_id,
        key_id=adjacency.key_id,
    )


def _alpha_shape(arguments: Arguments) -> tuple[int, ...]:
    *batch, _, n_heads, _ = arguments.query.shape
    return (*batch, arguments.adjacency.key_index.shape[0], n_heads)


_attention = define(
    "sparse_attention", Adjacency, {"CPU": _numba, "CUDA": _triton}, _reference, _alpha_shape
)
_interpreted = _attention
if IS_INTERPRETED:  # on the CPU too, by an operator of its own
    _interpreted = define(
        "sparse_attention_interpreted", Adjacency, {"CPU": _triton}, _reference, _alpha_shape
    )
