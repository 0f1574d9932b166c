"""The backward pass over a graph's edges: chunks of queries (CSR), then chunks of keys (CSC)."""

from functools import partial
from typing import Any

import numpy as np

from gatv2.numba.arguments import (
    EdgeFeatures,
    EdgeList,
    Floats,
    HeadMask,
    Incoming,
    Index,
    KeyGradients,
    KeyOrder,
    KeyPlace,
    PerEdge,
    Plain,
    QueryGradients,
    VectorClasses,
    as_edge_features,
    as_node_ids,
    as_problem,
)
from gatv2.numba.backward_row import backward_key_row, backward_strip
from gatv2.numba.call import ArrayCotangents, Launch
from gatv2.numba.compile import kernel
from gatv2.numba.edge_order import moved
from gatv2.numba.head_mask import as_head_mask
from gatv2.numba.memory import Array, empty, zeros
from gatv2.numba.parts import Part, count_parts, cut
from gatv2.numba.rows import rows_of, strip_of
from gatv2.numba.scores import buffers_of, own_buffers
from gatv2.numba.scratch import Scratch
from gatv2.numba.shares import sum_shares
from gatv2.numba.team import share_out
from gatv2.numba.threads import Chunks, next_chunk, run_chunks


class Gradients:
    """Gradients of the features, of one block of queries after another."""

    def __init__(self, launch: Launch, cotangents: ArrayCotangents, n_chunks: int) -> None:
        self.launch, tiles, call = launch, launch.tiles, launch.arguments
        n_threads = call.n_threads
        self.sizes = sizes = launch.sizes
        self.d_out = tiles.pad(cotangents.d_out, n_threads)
        # a head that is padding has no weights: a bias of all heads is added to its scores, too
        self.lse = tiles.pad_heads(cotangents.lse, n_threads, np.inf)
        self.d_lse = tiles.pad_heads(cotangents.d_lse, n_threads)
        d_query, _, _, d_features, _, d_bias = call.memory
        self.d_query = empty((*call.query.shape[:-2], *tiles.padded), tiles.dtype, d_query)
        self.d_key: Array | None = None  # until it is known whether keys are read again
        self.n_chunks = n_chunks
        self.edge_bytes = 2 * tiles.padded[0] * tiles.dtype.itemsize  # of an edge's weights
        self.d_attn = zeros((sizes.n_copies, self.n_chunks, tiles.length), tiles.dtype)
        self.edges: EdgeFeatureGradients | None = None
        if launch.edges is not None:
            self.edges = EdgeFeatureGradients(launch, launch.edges, self.n_chunks, d_features)
        self.d_bias = tiles.nothing
        if launch.bias is not None and call.wants_bias_rows:
            n_rows = sizes.n_copies * sizes.n_edge_rows
            self.d_bias = empty((n_rows, launch.bias.width), tiles.dtype, d_bias)
        self.first_query = 0

    def add(
        self,
        query_ptr: Array,
        edge_list: Plain,
        key_order: Plain,
        head_mask: Array | None,
        d_alpha: Array,
        node_ids: Plain | None = None,
    ) -> None:
        """Add the next queries, and their share of the gradients of keys and attn.

        Args:
            query_ptr: where the edges of each query start.
            edge_list: the elements of `EdgeList`.
            key_order: the elements of `KeyOrder`.
            head_mask: of each edge, padded; None if all heads use all edges, or with a score_bias.
            d_alpha: cotangent of alpha, padded; empty if there is none.
            node_ids: the elements of `NodeIds`; None if they are the positions.
        """
        launch, tiles, n_copies = self.launch, self.launch.tiles, self.sizes.n_copies
        parts = self._parts(query_ptr, edge_list[0].size, key_order, d_alpha)
        n_threads, n_edges = launch.arguments.n_threads, max([part.n_edges for part in parts])
        n_weights = n_copies * n_edges * self.edge_bytes
        n_signs = n_copies * n_edges * tiles.length // 8
        d_attn = self.d_attn.ravel()
        mask_or_bias: Any = head_mask
        if launch.bias is not None:
            mask_or_bias = tuple(launch.bias._replace(gradient=self.d_bias.ravel()))
            # of which the pass over keys asks only whether there is one
            head_mask = np.empty(0, np.bool_) if launch.bias.removes else None
        adds, end = self.first_query > 0, self.first_query + query_ptr.size - 1
        if self.d_key is None:
            self.d_key = self._empty_d_key(reads_again=len(parts) > 1 or end < self.sizes.n_queries)
        with Scratch(n_weights + n_signs) as memory:
            per_edge = memory[:n_weights].view(tiles.dtype), memory[n_weights:]
            for part in parts:
                run_chunks(
                    _backward_queries,
                    n_threads,
                    self.n_chunks,
                    tiles.vectors,
                    launch.problem,
                    launch.plain_edges,
                    node_ids,
                    (self.first_query, part.first_edge, query_ptr),
                    edge_list,
                    mask_or_bias,
                    (self.d_out, self.d_lse, d_alpha, self.lse),
                    per_edge,
                    (
                        self.d_query.ravel(),
                        d_attn,
                        None if self.edges is None else self.edges.plain,
                    ),
                    n_copies=n_copies,
                    part=part.chunks,
                    scratch=partial(own_buffers, tiles),
                )
                run_chunks(
                    _backward_keys,
                    n_threads,
                    self.n_chunks,
                    tiles.vectors,
                    launch.problem,
                    self.first_query,
                    part.key_order,
                    head_mask,
                    self.d_out,
                    per_edge,
                    (self.d_key.ravel(), adds, d_attn),
                    n_copies=n_copies,
                )
                adds = True
        self.first_query = end

    def _empty_d_key(self, *, reads_again: bool) -> Array:
        call, tiles = self.launch.arguments, self.launch.tiles
        _, given, *_ = call.memory
        if reads_again and given is call.key:
            given = None
        return empty((*call.key.shape[:-2], *tiles.padded), tiles.dtype, given)

    def _parts(
        self, query_ptr: Array, n_edges: int, key_order: Plain, d_alpha: Array
    ) -> list[Part]:
        sizes, n_parts = self.sizes, 1
        if sizes.n_copies == 1 and d_alpha.size == 0:
            n_bytes = n_edges * self.edge_bytes
            n_parts = count_parts(n_bytes, n_edges, sizes.n_keys, self.n_chunks)
        if n_parts == 1:
            return [Part(None, 0, n_edges, key_order)]
        return cut(n_parts, self.n_chunks, query_ptr, key_order, self.launch.arguments.n_threads)

    def results(self) -> tuple[Array | None, ...]:
        """Of query, key, attn, edge_features, edge_projection, score_bias.

        None for what is None or not wanted.
        """
        tiles, edges = self.launch.tiles, self.edges
        of_edges = None if edges is None else edges.shares
        d_attn, d_projection = sum_shares(self.launch, self.d_attn, of_edges)
        d_features = None if edges is None else edges.d_features()
        d_key = self.d_key
        if d_key is None:  # of no queries
            d_key = self._empty_d_key(reads_again=False)
            d_key.fill(0)
        of_nodes = self.d_query, d_key, d_attn
        if tiles.is_padded:
            call = self.launch.arguments
            of_nodes = (
                tiles.crop(self.d_query, call.n_threads, call.memory[0]),
                tiles.crop(d_key, call.n_threads, call.memory[1]),
                tiles.crop(d_attn, 1, call.memory[2]),
            )
        bias, d_bias = self.launch.arguments.score_bias, None
        if bias is not None and self.launch.arguments.wants_bias_rows:
            d_bias = self._d_bias(bias)
        return *of_nodes, d_features, d_projection, d_bias

    def _d_bias(self, bias: Array) -> Array:
        launch, d_bias = self.launch, self.d_bias
        if bias.shape[-1] > 1:
            call = launch.arguments
            d_bias = launch.tiles.crop_heads(d_bias, call.n_threads, call.memory[5])
        elif launch.bias_order is not None:
            n_threads = launch.arguments.n_threads
            d_bias = moved(d_bias.ravel(), launch.bias_order, n_threads, goes_back=True)
        return d_bias.reshape(bias.shape)


class EdgeFeatureGradients:
    """Gradients of the edge features and of their projection.

    Attributes:
        d_x: `[copies * rows, D]`, without rows if nobody wants it.
        plain: the elements of `gatv2.numba.arguments.EdgeGradients`.
    """

    def __init__(
        self, launch: Launch, edges: EdgeFeatures, n_chunks: int, d_features: Array | None
    ) -> None:
        self.launch, tiles = launch, launch.tiles
        n_features = edges.n_features
        shape = launch.sizes.n_copies, n_chunks, n_features, *tiles.padded
        self.shares = zeros(shape, tiles.dtype)
        n_rows = launch.sizes.n_copies * launch.sizes.n_edge_rows
        n_rows = n_rows if launch.arguments.wants_rows else 0
        self.d_x = empty((n_rows, n_features), tiles.dtype, d_features)
        by_lane = tiles.nothing
        if n_rows > 0:
            n_padded = n_features + -n_features % tiles.line
            by_lane = np.zeros((tiles.length, n_padded), tiles.dtype)
            projection = edges.projection.reshape(n_features, tiles.length)
            by_lane[:, :n_features] = (launch.attn * projection).T
        self.plain: Plain = (self.d_x.ravel(), self.shares.ravel(), by_lane.ravel())

    def d_features(self) -> Array | None:
        """Of edge_features; None if nobody wants it."""
        arguments = self.launch.arguments
        if arguments.edge_features is None or not arguments.wants_rows:
            return None
        return self.d_x.reshape(arguments.edge_features.shape)


@kernel
def _backward_queries(
    chunks: Chunks,
    buffers: Plain,
    vectors: VectorClasses,
    problem: Plain,
    edges: Plain | None,
    node_ids: Plain | None,
    queries: Plain,
    edge_list: Plain,
    head_mask: HeadMask | None,
    incoming: Plain,
    per_edge: Plain,
    gradients: Plain,
) -> None:
    member = share_out(chunks)
    problem, edges, node_ids = as_problem(problem), as_edge_features(edges), as_node_ids(node_ids)
    (first_query, first_edge, query_ptr), edge_list = queries, EdgeList(*edge_list)
    head_mask = as_head_mask(head_mask)
    buffers, incoming, per_edge = (
        buffers_of(member, buffers),
        Incoming(*incoming),
        PerEdge(*per_edge),
    )
    n_edges = edge_list.key.size
    chunk = next_chunk(chunks)
    while chunk < chunks[1]:
        copy = chunk // chunks[2]
        i, stop = rows_of(query_ptr, chunk, chunks)
        while i < stop:
            at = copy * n_edges - first_edge
            strip = strip_of(problem, node_ids, copy, query_ptr, first_query, i, stop, at)
            backward_strip(
                vectors,
                problem,
                edges,
                node_ids,
                strip,
                query_ptr,
                edge_list,
                head_mask,
                buffers,
                incoming,
                per_edge,
                QueryGradients(chunk, *gradients),
            )
            i += strip.n_queries
        chunk = next_chunk(chunks)


@kernel
def _backward_keys(
    chunks: Chunks,
    vectors: VectorClasses,
    problem: Plain,
    first_query: Index,
    key_order: Plain,
    head_mask: HeadMask | None,
    d_out: Floats,
    per_edge: Plain,
    gradients: Plain,
) -> None:
    share_out(chunks)
    problem, key_order, per_edge = as_problem(problem), KeyOrder(*key_order), PerEdge(*per_edge)
    key_ptr, n_edges, adds = key_order.ptr, key_order.edge.size, gradients[1]
    chunk = next_chunk(chunks)
    while chunk < chunks[1]:
        copy = chunk // chunks[2]
        begin, end = rows_of(key_ptr, chunk, chunks)
        for j in range(begin, end):
            if adds and key_ptr[j] == key_ptr[j + 1]:
                continue
            place = KeyPlace(
                copy * problem.n_keys + j,
                np.int64(key_ptr[j]),
                np.int64(key_ptr[j + 1]),
                copy * problem.n_queries + first_query,
                copy * n_edges,
            )
            backward_key_row(
                vectors,
                problem,
                place,
                key_order,
                head_mask,
                d_out,
                per_edge,
                KeyGradients(chunk, *gradients),
            )
        chunk = next_chunk(chunks)
