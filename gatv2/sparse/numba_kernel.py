"""The fused kernels over a graph's edges, on arrays: chunks of queries (CSR) and of keys (CSC)."""

from functools import partial
from typing import NamedTuple

import numpy as np

from gatv2.numba.arguments import (
    Buffers,
    EdgeList,
    HeadMask,
    Integers,
    Plain,
    Results,
    VectorClasses,
    as_edge_features,
    as_node_ids,
    as_problem,
)
from gatv2.numba.call import ArrayArguments, ArrayCotangents, Launch
from gatv2.numba.compile import kernel
from gatv2.numba.counting_sort import transpose
from gatv2.numba.forward_row import forward_strip
from gatv2.numba.gradients import Gradients
from gatv2.numba.head_mask import as_head_mask
from gatv2.numba.memory import Array
from gatv2.numba.rows import rows_of, strip_of
from gatv2.numba.scores import own_buffers
from gatv2.numba.threads import Chunks, count_chunks, next_chunk, run_chunks


class Adjacency(NamedTuple):
    """A graph, as arrays; its edges are sorted by query, and then by key."""

    query_ptr: Array
    key_index: Array
    key_ptr: Array | None = None
    """With the next two the order by key, for backward, which makes it if it is None."""
    edges_by_key: Array | None = None
    queries_by_key: Array | None = None
    head_mask: Array | None = None
    edge_id: Array | None = None
    """Row of each edge in edge_features and score_bias; None without them."""
    query_id: Array | None = None
    """With the next one the numbers of nodes for dropout; None if they are the positions."""
    key_id: Array | None = None


def forward(arguments: ArrayArguments) -> tuple[Array, Array, Array]:
    """(out, log-sum-exp, alpha); alpha is empty unless it is wanted, and has the edges' order here."""
    graph = _graph(arguments)
    launch = Launch(arguments, edge_id=graph.edge_id)
    tiles, (*batch, n_queries, _, _) = launch.tiles, arguments.query.shape
    n_edges = graph.key_index.size
    out, lse, alpha, *_ = arguments.memory
    results = (
        tiles.empty(*batch, n_queries, given=out),
        tiles.empty_heads(*batch, n_queries),
        tiles.empty_heads(*batch, n_queries, given=lse),
        tiles.empty_heads(*batch, n_edges, given=alpha)
        if arguments.wants_rows
        else tiles.empty_heads(0),
    )
    run_chunks(
        _forward,
        arguments.n_threads,
        count_chunks((n_edges + n_queries) * tiles.length),
        tiles.vectors,
        launch.problem,
        launch.plain_edges,
        _node_ids(graph),
        graph.query_ptr,
        _edge_list(graph),
        _head_mask(launch, graph) if launch.bias is None else launch.plain_bias,
        tuple(x.ravel() for x in results),
        n_copies=launch.n_copies,
        scratch=partial(own_buffers, tiles),
    )
    return launch.results(*results)


def backward(cotangents: ArrayCotangents, arguments: ArrayArguments) -> tuple[Array, ...]:
    """Gradients of query, key, attn, edge_features, edge_projection, score_bias; empty for None."""
    graph = _graph(arguments)
    launch = Launch(arguments, edge_id=graph.edge_id)
    gradients = Gradients(launch, cotangents, graph.key_index.size)
    gradients.add(
        graph.query_ptr,
        _edge_list(graph),
        _key_order(graph, launch.n_keys),
        _head_mask(launch, graph),
        launch.tiles.pad_heads(cotangents.d_alpha),
        _node_ids(graph),
    )
    return gradients.results()


def _graph(arguments: ArrayArguments) -> Adjacency:
    """The graph in contiguous arrays, as all kernels read them."""
    arrays = [None if x is None else np.ascontiguousarray(x) for x in arguments.adjacency]
    return Adjacency(*arrays)  # type: ignore[arg-type]


def _edge_list(graph: Adjacency) -> Plain:
    return graph.key_index, graph.edge_id


def _key_order(graph: Adjacency, n_keys: int) -> Plain:
    if graph.key_ptr is None:  # made for an inference that was then differentiated
        return transpose(graph.query_ptr, graph.key_index, n_keys)
    return graph.key_ptr, graph.edges_by_key, graph.queries_by_key


def _head_mask(launch: Launch, graph: Adjacency) -> Array | None:
    return None if graph.head_mask is None else launch.tiles.pad_heads(graph.head_mask)


def _node_ids(graph: Adjacency) -> Plain | None:
    return None if graph.query_id is None else (graph.query_id, graph.key_id)


@kernel
def _forward(
    chunks: Chunks,
    buffers: Plain,
    vectors: VectorClasses,
    problem: Plain,
    edges: Plain | None,
    node_ids: Plain | None,
    query_ptr: Integers,
    edge_list: Plain,
    head_mask: HeadMask | None,
    results: Plain,
) -> None:
    problem, edges, node_ids = as_problem(problem), as_edge_features(edges), as_node_ids(node_ids)
    edge_list, head_mask = EdgeList(*edge_list), as_head_mask(head_mask)
    buffers, results = Buffers(*buffers), Results(*results)
    n_edges = edge_list.key.size
    chunk = next_chunk(chunks)
    while chunk < chunks[1]:
        copy = chunk // chunks[2]
        i, stop = rows_of(query_ptr, chunk, chunks)
        while i < stop:
            strip = strip_of(problem, node_ids, copy, query_ptr, 0, i, stop, n_edges)
            forward_strip(
                vectors,
                problem,
                edges,
                node_ids,
                strip,
                query_ptr,
                edge_list,
                head_mask,
                buffers,
                results,
            )
            i += strip.n_queries
        chunk = next_chunk(chunks)
