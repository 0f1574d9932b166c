"""The floor of attention on a GPU: a kernel that walks the edges and only sums the gathered rows."""

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from gatv2 import Graph
from gatv2.operator.arguments import Arguments
from gatv2.sparse.operator import Adjacency
from gatv2.sparse.triton_kernel import layout_of
from gatv2.triton import arguments as of_kernel
from gatv2.triton import launch
from gatv2.triton.rows import longest, rows_of, tile_of
from gatv2.triton.tiles import empty_rows, load_rows, load_vector, store_rows


@triton.jit(do_not_specialize=["graph"])
def walk_kernel(
    features: of_kernel.Features,
    graph: of_kernel.Graph,
    second: tl.tensor,
    out: tl.tensor,
    shape: tl.constexpr,
) -> None:
    """For each row, the sum of the rows of `features.key` (and of `second`) at its edges' other ends."""
    attn = load_vector(features.attn, shape)
    problem = of_kernel.Problem(features, graph, attn, 0.0, 0, 0.0, 0)
    rows = rows_of(tl.program_id(0), graph.order, shape)
    total = empty_rows(shape)
    for begin in range(0, longest(rows), shape.edges):
        tile = tile_of(rows, begin, problem, shape)
        other = tile.query if shape.is_by_key else tile.key
        total += tl.sum(load_rows(features.key, other, tile.is_used, shape), axis=0, keep_dims=True)
        if second is not None:
            total += tl.sum(load_rows(second, other, tile.is_used, shape), axis=0, keep_dims=True)
    # parts of a row are not joined, and none of them is stored: what matters is the walk
    store_rows(out, rows.row, rows.is_whole, total, shape)


def floors(query: Tensor, key: Tensor, attn: Tensor, graph: Graph) -> dict[str, Callable[[], None]]:
    """What forward, and forward and backward, can't do without: one row an edge, and three more."""
    adjacency = Adjacency(graph.query_ptr, graph.key_index, *graph.by_key, *[None] * 4)
    arguments = Arguments(
        query, key, attn, None, None, None, adjacency, None, 1, 0, 0.2, 0.0, False, False
    )
    call = launch.Call(arguments, layout_of(arguments))
    by_query, by_key = (
        call.row_shape(launch.ONE_ROW),
        call.row_shape(launch.TWO_ROWS, is_by_key=True),
    )
    graphs = call.graph(by_query), call.graph(by_key)
    queries = of_kernel.Features(key, query, attn, None, None)  # by key, the other end is a query
    out_query, out_key = torch.empty_like(query), torch.empty_like(key)

    def forward() -> None:
        n_programs = launch.count_blocks(graphs[0], by_query)
        walk = (call.features, graphs[0], None, out_query)
        launch.run(walk_kernel, n_programs, walk, by_query)

    def step() -> None:
        forward()
        forward()
        n_programs = launch.count_blocks(graphs[1], by_key)
        launch.run(walk_kernel, n_programs, (queries, graphs[1], query, out_key), by_key)

    return {"forward": forward, "step": step}
