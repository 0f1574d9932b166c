"""The fused kernels over a graph's edges: chunks of queries (CSR) and of keys (CSC)."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from gatv2.numba.backward_row import backward_key_row, backward_query_row
from gatv2.numba.call import Call
from gatv2.numba.compile import inline, kernel
from gatv2.numba.counting_sort import transpose
from gatv2.numba.forward_row import forward_row
from gatv2.numba.scores import scratch
from gatv2.numba.threads import count_chunks, first_row, next_chunk, run_chunks
from gatv2.numba.tiles import Array, as_array, empty
from gatv2.operator.arguments import Arguments, Cotangents, flatten


def forward(arguments: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    """(out, log-sum-exp, alpha)."""
    call = Call(*flatten(arguments))
    tiles, csr = call.tiles, _csr(call)
    *batch, n_queries, _, _ = call.query.shape
    n_edges = call.adjacency[1].shape[0]
    out = tiles.empty(*batch, n_queries)
    largest, total = tiles.empty_heads(*batch, n_queries), tiles.empty_heads(*batch, n_queries)
    alpha = tiles.empty_heads(*batch, n_edges) if call.wants_rows else tiles.empty_heads(0)
    n_chunks = count_chunks((n_edges + n_queries) * tiles.length)
    results = (out, largest, total, alpha)
    run_chunks(
        _forward,
        n_chunks * call.n_copies,
        n_chunks,
        *call.arguments,
        call.edges,
        _node_ids(call),
        *csr,
        *map(as_array, results),
    )
    return call.results(*results)


def backward(cotangents: Cotangents, arguments: Arguments) -> tuple[Tensor, ...]:
    """Gradients of the features."""
    d_out, d_lse, d_alpha, lse = cotangents
    call = Call(*flatten(arguments))
    gradients = Gradients(call, d_out, d_lse, lse, call.adjacency[1].shape[0])
    gradients.add(_csr(call), _csc(call), call.tiles.pad_heads(d_alpha), _node_ids(call))
    return gradients.results()


class Gradients:
    """Gradients of the features, of one block of queries after another."""

    def __init__(self, call: Call, d_out: Tensor, d_lse: Tensor, lse: Tensor, n_edges: int) -> None:
        self.call, tiles = call, call.tiles
        self.d_out, self.lse = tiles.pad(d_out), (tiles.pad_heads(lse), tiles.pad_heads(d_lse))
        self.d_query = tiles.empty(*call.query.shape[:-2])
        self.d_key = tiles.empty(*call.key.shape[:-2])
        n_rows = max(call.n_queries, call.n_keys)
        self.n_chunks = count_chunks((n_edges + n_rows) * tiles.length)
        self.d_attn = np.zeros((call.n_copies, self.n_chunks, tiles.length), self.d_out.dtype)
        self.d_edge_features: Tensor | None = None
        self.d_edge_projection: Tensor | None = None
        self.d_edges: tuple[Array, ...] | None = None
        if call.edges is not None:
            n_features = call.edges[2]
            shape = (call.n_copies, self.n_chunks, n_features)
            self.d_edge_projection = tiles.empty(*shape).zero_()
            n_rows = call.n_copies * call.n_edge_rows if call.wants_rows else 0
            self.d_edge_features = empty((n_rows, n_features), tiles.dtype)
            of_edges = (self.d_edge_features, self.d_edge_projection, call.projection_by_lane)
            self.d_edges = tuple(map(as_array, of_edges))
        self.first_query = 0

    def add(
        self,
        csr: tuple[Any, ...],
        csc: tuple[Any, ...],
        d_alpha: Array,
        node_ids: tuple[Array, Array] | None = None,
    ) -> None:
        """Add the next queries, and their share of the gradients of keys and attn.

        Args:
            csr: pointers of the queries, key of each edge, its row of features, head mask; the last
                two may be None.
            csc: pointers of the keys, edges and queries by key; None if there is no head mask.
            d_alpha: cotangent of alpha, padded; empty if there is none.
            node_ids: numbers of queries and keys for dropout; None if they are the positions.
        """
        call, tiles = self.call, self.call.tiles
        n_edges = csr[1].size
        weights = tiles.empty_heads(call.n_copies, n_edges, 2)
        signs = empty((call.n_copies * n_edges * tiles.length // 8,), torch.uint8)
        left, d_attn = [as_array(x) for x in (weights, signs)], self.d_attn.reshape(-1)
        common = (call.n_copies * self.n_chunks, self.n_chunks, *call.arguments, self.first_query)
        run_chunks(
            _backward_queries,
            *common,
            call.edges,
            node_ids,
            *csr,
            self.lse,
            self.d_out,
            d_alpha,
            *left,
            as_array(self.d_query),
            d_attn,
            self.d_edges,
        )
        is_first = self.first_query == 0
        run_chunks(
            _backward_keys,
            *common,
            *csc,
            self.d_out,
            *left,
            as_array(self.d_key),
            not is_first,
            d_attn,
        )
        self.first_query += csr[0].size - 1

    def results(self) -> tuple[Tensor, ...]:
        """Gradients of the features."""
        return self.call.gradients(
            self.d_query, self.d_key, self.d_attn, self.d_edge_features, self.d_edge_projection
        )


def _csr(call: Call) -> tuple[Any, ...]:
    query_ptr, key_index, *_, head_mask, edge_id, _, _ = call.adjacency
    if head_mask is not None:
        head_mask = call.tiles.pad_heads(head_mask)
    if edge_id is not None:
        edge_id = as_array(edge_id)
    return as_array(query_ptr), as_array(key_index), edge_id, head_mask


def _csc(call: Call) -> tuple[Any, ...]:
    query_ptr, key_index, *by_key, head_mask, _, _, _ = call.adjacency
    has_none = by_key[0] is None  # made for an inference that was then differentiated
    csc = transpose(query_ptr, key_index, call.n_keys) if has_none else by_key
    return *map(as_array, csc), None if head_mask is None else True


def _node_ids(call: Call) -> tuple[Array, Array] | None:
    query_id, key_id = call.adjacency[-2:]
    return None if query_id is None else (as_array(query_id), as_array(key_id))


@kernel
def _forward(
    chunks: Any,
    n_chunks: Any,
    vectors: Any,
    shape: Any,
    sizes: Any,
    features: Any,
    slope: Any,
    dropout: Any,
    edges: Any,
    node_ids: Any,
    query_ptr: Any,
    key_index: Any,
    edge_id: Any,
    head_mask: Any,
    out: Any,
    largest: Any,
    total: Any,
    alpha: Any,
) -> None:
    buffers = scratch(vectors.heads, out)
    chunk = next_chunk(chunks)
    while chunk < chunks[1]:
        for i in _rows(query_ptr, chunk, n_chunks):
            forward_row(
                vectors,
                shape,
                features,
                edges,
                slope,
                dropout,
                place(sizes, key_index.size, chunk // n_chunks, i, node_ids),
                key_index,
                edge_id,
                head_mask,
                query_ptr[i],
                query_ptr[i + 1],
                buffers,
                out,
                largest,
                total,
                alpha,
            )
        chunk = next_chunk(chunks)


@kernel
def _backward_queries(
    chunks: Any,
    n_chunks: Any,
    vectors: Any,
    shape: Any,
    sizes: Any,
    features: Any,
    slope: Any,
    dropout: Any,
    first_query: Any,
    edges: Any,
    node_ids: Any,
    query_ptr: Any,
    key_index: Any,
    edge_id: Any,
    head_mask: Any,
    lse: Any,
    d_out: Any,
    d_alpha: Any,
    weights: Any,
    signs: Any,
    d_query: Any,
    d_attn: Any,
    d_edges: Any,
) -> None:
    buffers = scratch(vectors.heads, d_out)
    chunk = next_chunk(chunks)
    while chunk < chunks[1]:
        for i in _rows(query_ptr, chunk, n_chunks):
            backward_query_row(
                vectors,
                shape,
                features,
                edges,
                slope,
                dropout,
                place(sizes, key_index.size, chunk // n_chunks, first_query + i, node_ids),
                key_index,
                edge_id,
                head_mask,
                query_ptr[i],
                query_ptr[i + 1],
                buffers,
                lse,
                d_out,
                d_alpha,
                weights,
                signs,
                d_query,
                d_attn,
                d_edges,
                chunk,
            )
        chunk = next_chunk(chunks)


@kernel
def _backward_keys(
    chunks: Any,
    n_chunks: Any,
    vectors: Any,
    shape: Any,
    sizes: Any,
    features: Any,
    slope: Any,
    _dropout: Any,
    first_query: Any,
    key_ptr: Any,
    edges: Any,
    queries: Any,
    head_mask: Any,
    d_out: Any,
    weights: Any,
    signs: Any,
    d_key: Any,
    adds: Any,
    d_attn: Any,
) -> None:
    n_queries, n_keys = sizes[:2]
    chunk = next_chunk(chunks)
    while chunk < chunks[1]:
        copy = chunk // n_chunks
        for j in _rows(key_ptr, chunk, n_chunks):
            backward_key_row(
                vectors,
                shape,
                features,
                slope,
                copy * n_keys + j,
                copy * n_queries + first_query,
                copy * edges.size,
                edges,
                queries,
                head_mask,
                key_ptr[j],
                key_ptr[j + 1],
                d_out,
                weights,
                signs,
                d_key,
                adds,
                d_attn,
                chunk,
            )
        chunk = next_chunk(chunks)


@inline
def _rows(ptr: Any, chunk: Any, n_chunks: Any) -> Any:
    """The rows of a chunk."""
    part = chunk % n_chunks
    return range(first_row(ptr, part, n_chunks), first_row(ptr, part + 1, n_chunks))


@inline
def place(sizes: Any, n_edges: Any, copy: Any, i: Any, node_ids: Any) -> Any:
    """Where query i of a copy stands; see `forward_row`."""
    n_queries, n_keys, n_batches, block_queries, block_keys, n_words, n_edge_rows = sizes
    block = i // block_queries if block_queries < n_queries else 0
    batch = copy % n_batches + block  # one of the two is zero
    return (
        copy * n_queries + i,
        copy * n_keys,
        i - block * block_queries if node_ids is None else node_ids[0][i],
        block * block_keys,
        batch * n_words,
        copy * n_edges,
        copy * n_edge_rows,
        None if node_ids is None else node_ids[1],
    )
