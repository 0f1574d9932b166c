"""The fused kernels over a graph's edges, on arrays: chunks of queries (CSR) and of keys (CSC)."""

from functools import partial
from typing import NamedTuple

import numpy as np

from gatv2.numba.arguments import (
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
from gatv2.numba.call import ArrayArguments, ArrayCotangents, Launch, Sizes
from gatv2.numba.compile import kernel
from gatv2.numba.counting_sort import transpose
from gatv2.numba.forward_row import forward_strip
from gatv2.numba.gradients import Gradients
from gatv2.numba.head_mask import as_head_mask
from gatv2.numba.memory import Array
from gatv2.numba.rows import rows_of, strip_of
from gatv2.numba.scores import buffers_of, own_buffers
from gatv2.numba.team import share_out
from gatv2.numba.threads import Chunks, next_chunk, run_chunks


class Adjacency(NamedTuple):
    """A graph, as contiguous arrays; its edges are sorted by query, and then by key."""

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


class Plan:
    """Calls of one kind: the sizes that they have in common, and how they run.

    Args:
        arguments: of such a call, of which arrays are only looked at.
    """

    def __init__(self, arguments: ArrayArguments) -> None:
        self._sizes = sizes = Sizes(arguments)
        self._rows = arguments.query.shape[:-2]
        self._n_chunks = sizes.count_chunks(arguments.adjacency.key_index.size)
        self._buffers = partial(own_buffers, sizes.tiles)

    def forward(self, arguments: ArrayArguments) -> tuple[Array, Array, Array | None]:
        """(out, log-sum-exp, alpha in the order of the graph's edges, or None if nobody wants it)."""
        graph, rows = arguments.adjacency, self._rows
        launch = Launch(arguments, self._sizes, edge_id=graph.edge_id)
        results = launch.empty_results(rows, (*rows[:-1], graph.key_index.size))
        run_chunks(
            _forward,
            arguments.n_threads,
            self._n_chunks,
            launch.tiles.vectors,
            launch.problem,
            launch.plain_edges,
            _node_ids(graph),
            graph.query_ptr,
            (graph.key_index, graph.edge_id),
            launch.plain_bias or self._head_mask(graph, arguments.n_threads),
            tuple([x.ravel() for x in results]),
            n_copies=self._sizes.n_copies,
            scratch=self._buffers,
        )
        return launch.results(results)

    def backward(
        self, cotangents: ArrayCotangents, arguments: ArrayArguments
    ) -> tuple[Array | None, ...]:
        """Gradients of query, key, attn, edge_features, edge_projection, score_bias; None for None."""
        graph = arguments.adjacency
        launch = Launch(arguments, self._sizes, edge_id=graph.edge_id)
        gradients = Gradients(launch, cotangents, self._n_chunks)
        gradients.add(
            graph.query_ptr,
            (graph.key_index, graph.edge_id),
            self._key_order(graph),
            self._head_mask(graph, arguments.n_threads),
            launch.tiles.pad_heads(cotangents.d_alpha, arguments.n_threads),
            _node_ids(graph),
        )
        return gradients.results()

    def _key_order(self, graph: Adjacency) -> Plain:
        if graph.key_ptr is None:  # made for an inference that was then differentiated
            return transpose(graph.query_ptr, graph.key_index, self._sizes.n_keys)
        return graph.key_ptr, graph.edges_by_key, graph.queries_by_key

    def _head_mask(self, graph: Adjacency, n_threads: int) -> Array | None:
        mask = graph.head_mask
        return None if mask is None else self._sizes.tiles.pad_heads(mask, n_threads)


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
    member = share_out(chunks)
    problem, edges, node_ids = as_problem(problem), as_edge_features(edges), as_node_ids(node_ids)
    edge_list, head_mask = EdgeList(*edge_list), as_head_mask(head_mask)
    buffers, results = buffers_of(member, buffers), Results(*results)
    n_edges, first = edge_list.key.size, np.int64(0)  # a literal has a type of its own to compile
    chunk = next_chunk(chunks)
    while chunk < chunks[1]:
        copy = chunk // chunks[2]
        i, stop = rows_of(query_ptr, chunk, chunks)
        while i < stop:
            strip = strip_of(problem, node_ids, copy, query_ptr, first, i, stop, copy * n_edges)
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
