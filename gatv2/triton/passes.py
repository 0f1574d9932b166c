"""Forward and backward of a fused operator: which kernels run, and what they leave to one another."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gatv2.triton import arguments as of_kernel
from gatv2.triton import launch
from gatv2.triton.edge_pass import WIDTH, edge_kernel
from gatv2.triton.forward_pass import forward_kernel, join_kernel
from gatv2.triton.key_pass import join_keys_kernel, key_kernel
from gatv2.triton.launch import Call, Layout
from gatv2.triton.query_pass import join_queries_kernel, query_kernel
from gatv2.triton.shape import edge_tile

if TYPE_CHECKING:  # their fields are all that is read
    from gatv2.operator.arguments import Arguments, Cotangents


def forward(arguments: "Arguments", layout: Layout) -> tuple[Tensor, Tensor, Tensor | None]:
    """(out, log-sum-exp, alpha `[*batch, n_edges, n_heads]`); alpha is None unless it is wanted."""
    call = Call(arguments, layout)
    batch = arguments.query.shape[:-3]
    shape = call.row_shape(launch.ONE_ROW)
    graph = call.graph(shape)
    n_slots = call.n_copies * graph.order.n_slots
    scores = largest = total = None
    if arguments.wants_rows:
        # a mask leaves out what is no edge
        scores = call.empty(*batch, layout.n_edges, call.n_heads).fill_(-torch.inf)
        largest, total = (call.empty(*batch, call.n_queries, call.n_heads) for _ in range(2))
    results = of_kernel.ForwardResults(
        call.empty_results(*batch, call.n_queries),
        call.empty(*batch, call.n_queries, call.n_heads),
        scores,
        largest,
        total,
        *(call.empty_rows(n_slots), *(call.empty(n_slots, call.n_heads) for _ in range(2)))
        if n_slots
        else (None, None, None),
    )
    with launch.on_device_of(arguments.query):
        launch.run(
            forward_kernel,
            call.n_copies * launch.count_blocks(graph, shape),
            (call.features, graph, results, *call.scalars),
            shape,
        )
        launch.run(join_kernel, n_slots // shape.rows, (graph, results), shape)
    out = call.crop(results.out)
    if scores is None or largest is None or total is None:
        return out, results.lse, None
    return out, results.lse, _alpha(scores, largest, total, call).to(out.dtype)


def _alpha(scores: Tensor, largest: Tensor, total: Tensor, call: Call) -> Tensor:
    """The softmax of scores, in their memory."""
    query = call.layout.query()
    if query is None:
        by_query = scores.view(*largest.shape[:-1], call.n_keys, call.n_heads)
        by_query.sub_(largest.unsqueeze(-2)).exp_().div_(total.unsqueeze(-2))
        return scores
    return scores.sub_(largest.index_select(-2, query)).exp_().div_(total.index_select(-2, query))


def backward(
    cotangents: "Cotangents", arguments: "Arguments", layout: Layout
) -> tuple[Tensor | None, ...]:
    """Gradients of query, key, attn, edge_features, edge_projection and score_bias."""
    call = Call(arguments, layout)
    statistics = call.empty(call.n_copies * call.n_queries, 3, call.n_heads)
    given = of_kernel.Cotangents(
        call.pad(cotangents.d_out),
        None if cotangents.d_lse is None else cotangents.d_lse.contiguous(),
        None if cotangents.d_alpha is None else cotangents.d_alpha.contiguous(),
        cotangents.lse.contiguous(),
        statistics,
    )
    with launch.on_device_of(arguments.query):
        d_query = _over_queries(call, given)
        d_key, d_attn, d_bias = _over_keys(call, given)
        d_edge_features, d_edge_projection = _over_edges(call, given)
    return (
        call.crop(d_query),
        call.crop(d_key),
        call.crop(_total(d_attn, call)),
        d_edge_features,
        d_edge_projection,
        d_bias,
    )


def _over_queries(call: Call, given: of_kernel.Cotangents) -> Tensor:
    """d_query; fills in `given.statistics`."""
    shape = call.row_shape(launch.TWO_ROWS)
    graph = call.graph(shape)
    n_slots = call.n_copies * graph.order.n_slots
    results = of_kernel.QueryResults(
        call.empty_results(*call.arguments.query.shape[:-2]),
        *(call.empty_rows(n_slots), call.empty_rows(n_slots), call.empty(n_slots, 2, call.n_heads))
        if n_slots
        else (None, None, None),
    )
    launch.run(
        query_kernel,
        call.n_copies * launch.count_blocks(graph, shape),
        (call.features, graph, given, results, *call.scalars),
        shape,
    )
    arguments = (call.features, graph, given, results)
    launch.run(join_queries_kernel, n_slots // shape.rows, arguments, shape)
    d_query: Tensor = results.d_query
    return d_query


def _over_keys(call: Call, given: of_kernel.Cotangents) -> tuple[Tensor, Tensor, Tensor | None]:
    """d_key, the shares of d_attn, `[copies, shares, n_heads, n_hidden]`, and the gradient of a bias.

    The last is None if nobody wants it.
    """
    arguments = call.arguments
    d_bias = None
    if arguments.score_bias is not None and arguments.wants_bias_rows:
        d_bias = arguments.query.new_zeros(arguments.score_bias.shape)  # where a mask has no edge
    shape = call.row_shape(launch.TWO_ROWS, is_by_key=True)
    graph = call.graph(shape)
    n_slots = call.n_copies * graph.order.n_slots
    n_chunks = max(min(launch.count_blocks(graph, shape), launch.CHUNKS), 1)
    results = of_kernel.KeyResults(
        call.empty_results(*call.arguments.key.shape[:-2]),
        call.empty_rows(call.n_copies, n_chunks * shape.rows),
        call.empty_rows(n_slots) if n_slots else None,
        d_bias,
    )
    launch.run(
        key_kernel,
        call.n_copies * n_chunks,
        (call.features, graph, given, results, n_chunks, *call.scalars),
        shape,
    )
    launch.run(join_keys_kernel, n_slots // shape.rows, (graph, results), shape)
    return results.d_key, results.d_attn, d_bias


def _over_edges(call: Call, given: of_kernel.Cotangents) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of the edge features and of their projection; None where there are none."""
    arguments, layout = call.arguments, call.layout
    if arguments.edge_features is None or arguments.edge_projection is None:
        return None, None
    dtype = arguments.query.dtype
    tile = edge_tile(call.n_heads, call.padded_hidden, dtype, launch.TWO_ROWS)
    shape = call.shape(tile)
    shape = shape._replace(hidden=max(shape.hidden, WIDTH.value // shape.heads))
    graph = call.graph(shape)
    graph = graph._replace(edges=graph.edges._replace(query=layout.query()))
    n_features = arguments.edge_features.shape[-1]
    n_slices = -(-n_features // WIDTH.value)
    size = call.n_heads * call.padded_hidden * max(n_features, 1)
    n_chunks = max(min(-(-layout.n_edges // shape.rows), launch.EDGE_SHARES // size), 1)
    d_features = None
    if arguments.wants_rows:
        d_features = call.empty(*arguments.edge_features.shape, dtype=dtype)
    shares = call.empty(call.n_copies, n_chunks, call.n_heads, call.padded_hidden, n_features)
    launch.run(
        edge_kernel,
        call.n_copies * n_chunks * n_slices,
        (
            call.features,
            graph,
            given,
            of_kernel.EdgeResults(d_features, shares),
            n_chunks,
            *call.scalars,
        ),
        shape,
    )
    d_projection = _total(shares, call)[..., : call.n_hidden, :]
    return d_features, d_projection.to(arguments.query.dtype).contiguous()


def _total(shares: Tensor, call: Call) -> Tensor:
    """The sum of `[copies, shares, ...]` over shares and all feature sets that vmap does not map."""
    mapped = call.arguments.query.shape[: call.arguments.n_mapped]
    total = shares.sum(1).reshape(*mapped, call.n_unmapped, *shares.shape[2:])
    return total.sum(len(mapped))
