"""The fused kernels over a graph's edges on the GPU: those of `gatv2.triton`, by its lists of edges."""

import torch
from torch import Tensor

from gatv2.graph.sort import sort_by_key
from gatv2.operator.arguments import Arguments, Cotangents
from gatv2.triton import passes
from gatv2.triton.launch import Layout, Lists


def forward(arguments: Arguments) -> tuple[Tensor, Tensor, Tensor | None]:
    """(out, log-sum-exp, alpha), as `gatv2.operator.shortcut.Launcher` says."""
    return passes.forward(arguments, layout_of(arguments))


def backward(
    cotangents: Cotangents, arguments: Arguments, *, overwrites: bool = False
) -> tuple[Tensor | None, ...]:
    """Gradients of the features, as `gatv2.operator.shortcut.Launcher` says; overwrites nothing."""
    return passes.backward(cotangents, arguments, layout_of(arguments))


def layout_of(arguments: Arguments) -> Layout:
    """The graph, as the kernels are given it."""
    graph = arguments.adjacency
    n_queries, n_edges = graph.query_ptr.shape[0] - 1, graph.key_index.shape[0]

    def query() -> Tensor:
        # told how long the result is, it need not wait for the device
        row = torch.arange(n_queries, dtype=graph.key_index.dtype, device=graph.key_index.device)
        return row.repeat_interleave(graph.query_ptr.diff(), output_size=n_edges)

    def by_key() -> Lists:
        if graph.key_ptr is not None:
            return Lists(graph.key_ptr, graph.queries_by_key, graph.edges_by_key)
        # made for an inference that was then differentiated
        n_keys = arguments.key.shape[-3]
        ptr, edge, query_index = sort_by_key(graph.query_ptr, graph.key_index, query(), n_keys)
        return Lists(ptr, query_index, edge)

    return Layout(
        n_edges=n_edges,
        by_query=Lists(graph.query_ptr, graph.key_index, None),
        by_key=by_key,
        query=query,
        mask=graph.head_mask,
        feature_row=graph.edge_id,
        query_id=graph.query_id,
        key_id=graph.key_id,
    )
