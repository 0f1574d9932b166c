"""The fused kernels over a dense mask: it is compacted to lists of keys, some rows at a time."""

from typing import Any

import numpy as np
import torch
from numba import types
from torch import Tensor

from gatv2.numba.call import Call
from gatv2.numba.compile import Vectors, inline, kernel, overload
from gatv2.numba.counting_sort import transpose
from gatv2.numba.forward_row import forward_row
from gatv2.numba.scores import scratch
from gatv2.numba.simd import bits_of, count_bits, load_mask, lowest_bit
from gatv2.numba.threads import count_chunks, next_chunk, run_chunks
from gatv2.numba.tiles import MASK_LANES, as_array, empty
from gatv2.operator.arguments import Arguments, Cotangents, flatten
from gatv2.sparse.numba_kernel import Gradients, place

_VECTORS = Vectors(word=(np.uint32, MASK_LANES))  # only the number of lanes matters
_BLOCK = 1 << 23  # coefficients whose gradients are held at once


def forward(arguments: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    """(out, log-sum-exp, alpha)."""
    call = Call(*flatten(arguments))
    mask, tiles = _fold(call), call.tiles
    shape = call.query.shape[:-2]
    out, largest, total = tiles.empty(*shape), tiles.empty_heads(*shape), tiles.empty_heads(*shape)
    n_keys = mask.shape[-2]
    alpha = tiles.empty_heads(*shape, n_keys) if call.wants_rows else tiles.empty_heads(0)
    n_rows = call.n_copies * call.n_queries
    n_chunks = min(count_chunks(n_rows * n_keys * tiles.length), max(n_rows, 1))
    results = (out, largest, total, alpha)
    run_chunks(
        _forward,
        n_chunks,
        *call.arguments,
        call.edges,
        n_rows,
        as_array(mask),
        None if mask.shape[-1] == 1 else mask.shape[-1],
        *map(as_array, results),
    )
    return call.results(*results)


def backward(cotangents: Cotangents, arguments: Arguments) -> tuple[Tensor, ...]:
    """Gradients of the features."""
    d_out, d_lse, d_alpha, lse = cotangents
    call = Call(*flatten(arguments))
    mask, tiles = _fold(call), call.tiles
    n_keys, n_heads = mask.shape[-2:]
    rows, ptr = as_array(mask), np.zeros(call.n_queries + 1, np.int64)
    n_chunks = min(count_chunks(rows.size * 8), max(call.n_queries, 1))
    run_chunks(_count_edges, n_chunks, _VECTORS, rows, n_keys * n_heads, n_heads, ptr)
    np.cumsum(ptr, out=ptr)
    limit = max(_BLOCK // tiles.padded[0], 1)
    gradients = Gradients(call, d_out, d_lse, lse, min(int(ptr[-1]), limit))
    if gradients.d_edge_features is not None:
        gradients.d_edge_features.zero_()
    begin = 0
    while begin < call.n_queries:
        end = max(int(np.searchsorted(ptr, ptr[begin] + limit, side="right")) - 1, begin + 1)
        block = torch.from_numpy(ptr[begin : end + 1] - ptr[begin]).int()
        key_index = empty((int(block[-1]),), torch.int32)
        head_mask = empty((key_index.numel(), n_heads), torch.bool) if n_heads > 1 else None
        run_chunks(
            _list_keys,
            min(n_chunks, end - begin),
            _VECTORS,
            rows,
            n_keys,
            n_heads,
            call.n_queries // call.n_blocks,
            begin,
            as_array(block),
            as_array(key_index),
            None if head_mask is None else as_array(head_mask),
        )
        heads = None if head_mask is None else tiles.pad_heads(head_mask)
        edge_d_alpha, edge_id = d_alpha, None
        if d_alpha.numel() or call.edges is not None:
            cells = _cells(call, begin, block, key_index)
            if d_alpha.numel():
                pairs = d_alpha.reshape(call.n_copies, -1, d_alpha.shape[-1])
                edge_d_alpha = pairs.index_select(1, cells)
            if call.edges is not None:
                edge_id = as_array(cells)
        csc = transpose(block, key_index, call.n_keys)
        gradients.add(
            (as_array(block), as_array(key_index), edge_id, heads),
            (*map(as_array, csc), None if heads is None else True),
            tiles.pad_heads(edge_d_alpha),
        )
        begin = end
    if call.n_queries == 0:
        gradients.d_key.zero_()
    return gradients.results()


def _fold(call: Call) -> Tensor:
    """The mask; if each feature set has its own, the call becomes one of a block-diagonal graph."""
    mask: Tensor = call.adjacency[0]
    if mask.shape[:-3].numel() > 1:
        mask = mask.expand(*call.query.shape[call.n_mapped : -3], *mask.shape[-3:])
        call.fold_batch()
    return mask


def _cells(call: Call, begin: int, ptr: Tensor, key_index: Tensor) -> Tensor:
    """Where the edges of a block of queries stand in a mask without heads."""
    n_keys = call.n_keys // call.n_blocks
    query = torch.arange(begin, begin + ptr.numel() - 1).repeat_interleave(ptr.diff())
    cells: Tensor = query * n_keys + key_index % n_keys
    return cells.int() if call.n_queries * n_keys < 2**31 else cells  # as a `Graph` has them


@kernel
def _forward(
    chunks: Any,
    vectors: Any,
    shape: Any,
    sizes: Any,
    features: Any,
    slope: Any,
    dropout: Any,
    edges: Any,
    n_rows: Any,
    mask: Any,
    mask_heads: Any,
    out: Any,
    largest: Any,
    total: Any,
    alpha: Any,
) -> None:
    n_queries, block_keys = sizes[0], sizes[4]
    n_heads = shape[0] * vectors.heads.lanes
    buffers = scratch(vectors.heads, out)
    keys = np.empty(block_keys, np.int32)
    row_alpha = np.empty(block_keys * n_heads if alpha.size > 0 else 0, alpha.dtype)
    head_mask = _row_head_mask(mask_heads, block_keys * n_heads)
    chunk = next_chunk(chunks)
    while chunk < chunks[1]:
        for row in range(n_rows * chunk // chunks[1], n_rows * (chunk + 1) // chunks[1]):
            i = row % n_queries
            if mask_heads is None:
                n = _keys_of_row(vectors, mask, i * block_keys, block_keys, keys, 0, 0)
            else:
                n = _keys_of_heads(
                    mask,
                    i * block_keys * mask_heads,
                    block_keys,
                    mask_heads,
                    keys,
                    0,
                    0,
                    head_mask,
                    n_heads,
                )
            row, first_key, drop_query, block_key, drop_word, _, first_pair, no_ids = place(
                sizes, 0, row // n_queries, i, None
            )
            forward_row(
                vectors,
                shape,
                features,
                edges,
                slope,
                dropout,
                (
                    row,
                    first_key + block_key,
                    drop_query,
                    0,
                    drop_word,
                    0,
                    first_pair + i * block_keys,
                    no_ids,
                ),
                keys[:n],
                keys[:n],
                head_mask,
                0,
                n,
                buffers,
                out,
                largest,
                total,
                row_alpha,
            )
            if alpha.size > 0:
                begin = row * block_keys * n_heads
                alpha[begin : begin + block_keys * n_heads] = 0.0
                for e in range(n):
                    for head in range(n_heads):
                        alpha[begin + keys[e] * n_heads + head] = row_alpha[e * n_heads + head]
        chunk = next_chunk(chunks)


def _row_head_mask(mask_heads: Any, size: Any) -> Any:
    """Where a row's head mask goes, if there is one."""
    raise NotImplementedError("for Numba only")


@overload(_row_head_mask)
def _overload_row_head_mask(mask_heads, size):  # type: ignore[no-untyped-def]
    if isinstance(mask_heads, types.NoneType):
        return lambda mask_heads, size: None
    return lambda mask_heads, size: np.zeros(size, np.bool_)


@kernel
def _count_edges(
    chunks: Any, vectors: Any, mask: Any, stride: Any, n_heads: Any, counts: Any
) -> None:
    """Write the number of keys of query i to `counts[i + 1]`."""
    n_rows = counts.size - 1
    chunk = next_chunk(chunks)
    while chunk < chunks[1]:
        for i in range(n_rows * chunk // chunks[1], n_rows * (chunk + 1) // chunks[1]):
            begin = i * stride
            count = 0
            if n_heads == 1:
                whole = stride // MASK_LANES * MASK_LANES
                for at in range(begin, begin + whole, MASK_LANES):
                    count += count_bits(bits_of(load_mask(vectors.word, mask, at)))
                for at in range(begin + whole, begin + stride):
                    count += mask[at]
            else:
                for at in range(begin, begin + stride, n_heads):
                    count += _any(mask, at, n_heads)
            counts[i + 1] = count
        chunk = next_chunk(chunks)


@kernel
def _list_keys(
    chunks: Any,
    vectors: Any,
    mask: Any,
    n_keys: Any,
    n_heads: Any,
    block_queries: Any,
    first_query: Any,
    ptr: Any,
    key_index: Any,
    head_mask: Any,
) -> None:
    """List the keys of the queries from `first_query` on, and which heads use them."""
    n_rows = ptr.size - 1
    chunk = next_chunk(chunks)
    while chunk < chunks[1]:
        for i in range(n_rows * chunk // chunks[1], n_rows * (chunk + 1) // chunks[1]):
            query = first_query + i
            begin, first_key = query * n_keys * n_heads, query // block_queries * n_keys
            if head_mask is None:
                _keys_of_row(vectors, mask, begin, n_keys, key_index, ptr[i], first_key)
            else:
                _keys_of_heads(
                    mask,
                    begin,
                    n_keys,
                    n_heads,
                    key_index,
                    ptr[i],
                    first_key,
                    head_mask,
                    n_heads,
                )
        chunk = next_chunk(chunks)


@inline
def _keys_of_row(
    vectors: Any, mask: Any, begin: Any, n_keys: Any, keys: Any, to: Any, first_key: Any
) -> Any:
    """List the true elements of a row of the mask, and return where the list ends."""
    whole = n_keys // MASK_LANES * MASK_LANES
    for j in range(0, whole, MASK_LANES):
        bits = bits_of(load_mask(vectors.word, mask, begin + j))
        while bits != 0:
            keys[to] = first_key + j + lowest_bit(bits)
            to += 1
            bits &= bits - np.uint64(1)
    for j in range(whole, n_keys):
        if mask[begin + j]:
            keys[to] = first_key + j
            to += 1
    return to


@inline
def _keys_of_heads(
    mask: Any,
    begin: Any,
    n_keys: Any,
    n_heads: Any,
    keys: Any,
    to: Any,
    first_key: Any,
    head_mask: Any,
    stride: Any,
) -> Any:
    """List the keys that any head uses, with the heads that do, and return where the list ends."""
    for j in range(n_keys):
        at = begin + j * n_heads
        if _any(mask, at, n_heads):
            keys[to] = first_key + j
            for head in range(n_heads):
                head_mask[to * stride + head] = mask[at + head]
            to += 1
    return to


@inline
def _any(mask: Any, begin: Any, n: Any) -> Any:
    is_set = False
    for at in range(begin, begin + n):
        is_set |= mask[at]
    return is_set
