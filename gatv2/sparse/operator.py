"""The fused operator over a list of edges, on any device: same function as `gatv2.sparse.reference`."""

import math
from functools import partial
from typing import NamedTuple, NotRequired, TypedDict, Unpack

import torch
from torch import Tensor

from gatv2.graph import Graph
from gatv2.graph.edge_inputs import EdgeInputs
from gatv2.operator.arguments import Arguments, is_differentiated
from gatv2.operator.define import define
from gatv2.operator.shortcut import Bound, Kernels, Outputs
from gatv2.sparse import reference
from gatv2.triton.support import IS_INTERPRETED


class Options(TypedDict):
    """What every kernel is told; see `gatv2.dispatch.Attention`."""

    negative_slope: float
    dropout: float
    seed: Tensor | None
    return_attention: bool
    edges: NotRequired[EdgeInputs | None]
    score_bias: NotRequired[Tensor | None]


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
    is_interpreted: bool = False,
    **options: Unpack[Options],
) -> tuple[Tensor, Tensor, Tensor | None]:
    """GATv2 attention without anything of `[E, H, F]`; see `gatv2.sparse.reference`.

    Forward keeps one log-sum-exp for each query and head, and backward recomputes the coefficients.
    On the CPU its scratch is two numbers for each edge and head, and one bit for each edge and feature,
    of a part of the edges where there are many.
    Edge features are projected while they are read. `is_interpreted`: on the CPU by Triton's
    interpreter, in a process that was started with TRITON_INTERPRET=1.
    """
    operator = _interpreted if is_interpreted else _attention
    of_edges = *(options.get("edges") or ()), options.get("score_bias")
    needs_gradient = is_differentiated((query, key, attn, *of_edges))
    results = operator(_arguments(query, key, attn, graph, options, needs_gradient))
    return _as_caller_sees(results, graph, options["return_attention"])


class BoundAttention:
    """:func:`gatv2_attention` for calls of one kind, with their graph and their numbers.

    Attributes:
        bound: the operator; see also `gatv2.operator.projected`.
    """

    def __init__(self, bound: Bound) -> None:
        self.bound = bound

    def __call__(
        self, query: Tensor, key: Tensor, attn: Tensor, graph: Graph, **options: Unpack[Options]
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """(out, log-sum-exp, alpha)."""
        seed, edges, score_bias = options["seed"], options.get("edges"), options.get("score_bias")
        if seed is None and edges is None and score_bias is None:
            results = self.bound(query, key, attn)
        else:
            if score_bias is not None:
                score_bias = _of_used_heads(score_bias, graph)
            results = self.bound(query, key, attn, *(edges or (None, None)), score_bias, seed)
        return _as_caller_sees(results, graph, options["return_attention"])


def bind(
    graph: Graph,
    *,
    is_differentiated: bool,
    is_interpreted: bool = False,
    **options: Unpack[Options],
) -> BoundAttention:
    """What serves calls of a graph with these options.

    `is_differentiated`: whether autograd wants a gradient. The seed and what edges have are not kept:
    what counts is whether there are any.
    """
    operator = _interpreted if is_interpreted else _attention
    adjacency = _adjacency(graph, options, is_differentiated)
    device = graph.device.type
    return BoundAttention(
        operator.bind(adjacency, _numbers(graph, options), device, is_differentiated)
    )


def _arguments(
    query: Tensor,
    key: Tensor,
    attn: Tensor,
    graph: Graph,
    options: Options,
    is_differentiated: bool,
) -> Arguments:
    seed, edges, score_bias = options["seed"], options.get("edges"), options.get("score_bias")
    edge_features, edge_projection = edges or (None, None)
    return Arguments(
        query,
        key,
        attn,
        edge_features,
        edge_projection,
        None if score_bias is None else _of_used_heads(score_bias, graph),
        _adjacency(graph, options, is_differentiated),
        seed,
        *_numbers(graph, options),
    )


def _adjacency(graph: Graph, options: Options, is_differentiated: bool) -> Adjacency:
    seed, edges, score_bias = options["seed"], options.get("edges"), options.get("score_bias")
    key_ptr, edges_by_key, queries_by_key = (
        graph.by_key if is_differentiated else (None, None, None)
    )
    query_id, key_id = (None, None) if seed is None else _node_ids(graph)
    has_rows = edges is not None or score_bias is not None
    return Adjacency(
        graph.query_ptr,
        graph.key_index,
        key_ptr,
        edges_by_key,
        queries_by_key,
        graph.head_mask if score_bias is None else None,  # kernels read one of the two
        graph.edge_id if has_rows else None,
        query_id,
        key_id,
    )


def _numbers(graph: Graph, options: Options) -> tuple[int, int, float, float, bool, bool]:
    """The arguments behind the seed."""
    slope, dropout = options["negative_slope"], options["dropout"]
    return graph.n_blocks, 0, slope, dropout, options["return_attention"], False


def _of_used_heads(score_bias: Tensor, graph: Graph) -> Tensor:
    """A bias that takes from heads what the graph's mask of heads takes from them."""
    if graph.head_mask is None:
        return score_bias
    return score_bias.where(graph.in_callers_order(graph.head_mask, dim=-2), -math.inf)


def _as_caller_sees(
    results: Outputs, graph: Graph, return_attention: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    out, lse, alpha = results
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


def _numba() -> Kernels:
    from gatv2.operator.on_arrays import OnArrays
    from gatv2.sparse import numba_kernel

    return partial(OnArrays, numba_kernel)


def _triton() -> Kernels:
    from gatv2.sparse import triton_kernel

    return lambda: triton_kernel


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


def _check_edges(arguments: Arguments) -> None:
    """Raise an IndexError for an edge of nodes that there are not.

    What compiles or maps a call sorts an edge index that nobody may look at; kernels trust every index.
    """
    ptr, key_index = arguments.adjacency.query_ptr, arguments.adjacency.key_index
    n_keys = arguments.key.shape[-3]
    if key_index.numel():
        smallest, largest = (int(key) for key in key_index.aminmax())
        if smallest < 0 or largest >= n_keys:
            raise IndexError(
                f"an edge has key {smallest if smallest < 0 else largest}, but there are {n_keys} key "
                f"nodes: indices must lie in [0, {n_keys})"
            )
    n_queries, first, last = ptr.shape[0] - 1, int(ptr[0]), int(ptr[-1])
    if (first, last) != (0, key_index.shape[0]):  # it counts those that are negative before query 0
        raise IndexError(
            f"the edges of {n_queries} query nodes go from {first} to {last} of "
            f"{key_index.shape[0]}: indices of queries must lie in [0, {n_queries})"
        )


_attention = define(
    "sparse_attention",
    Adjacency,
    {"CPU": _numba, "CUDA": _triton},
    _reference,
    _alpha_shape,
    _check_edges,
)
_interpreted = _attention
if IS_INTERPRETED:  # on the CPU too, by an operator of its own
    _interpreted = define(
        "sparse_attention_interpreted",
        Adjacency,
        {"CPU": _triton},
        _reference,
        _alpha_shape,
        _check_edges,
    )
