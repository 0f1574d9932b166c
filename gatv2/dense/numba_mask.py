"""A dense mask, as the fused kernels read it: counted, and compacted to lists of keys."""

import numpy as np

from gatv2.numba.arguments import Flags, HeadMask, Index, Integers, VectorClass, VectorClasses
from gatv2.numba.compile import inline, kernel
from gatv2.numba.simd import bits_of, count_bits, element, load_mask, lowest_bit
from gatv2.numba.team import share_out
from gatv2.numba.threads import Chunks, next_chunk
from gatv2.numba.tiles import MASK_LANES
from gatv2.numba.vectors import Vectors

MASK_VECTORS = Vectors(word=(np.uint32, MASK_LANES))  # only the number of lanes matters


@kernel
def count_edges(
    chunks: Chunks,
    vectors: VectorClasses,
    mask: Flags,
    stride: Index,
    n_heads: Index,
    counts: Integers,
) -> None:
    """Write the number of keys of query i to `counts[i + 1]`.

    Args:
        chunks: of the queries.
        vectors: `MASK_VECTORS`.
        mask: [queries, keys, heads].
        stride: elements of a query.
        n_heads: 1, or heads.
        counts: one more than queries.
    """
    share_out(chunks)
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
def list_keys(
    chunks: Chunks,
    vectors: VectorClasses,
    mask: Flags,
    n_keys: Index,
    n_heads: Index,
    block_queries: Index,
    first_query: Index,
    ptr: Integers,
    key_index: Integers,
    head_mask: Flags | None,
) -> None:
    """List the keys of the queries from `first_query` on, and which heads use them.

    Args:
        chunks: of the queries.
        vectors: `MASK_VECTORS`.
        mask: [queries, keys, heads].
        n_keys: of a block.
        n_heads: 1, or heads.
        block_queries: queries of a block of a block-diagonal graph.
        first_query: the query that `ptr` starts with.
        ptr: where the list of each query starts.
        key_index: the lists.
        head_mask: [edges, heads], written; None if the mask is the same for all heads.
    """
    share_out(chunks)
    n_rows = ptr.size - 1
    chunk = next_chunk(chunks)
    while chunk < chunks[1]:
        for i in range(n_rows * chunk // chunks[1], n_rows * (chunk + 1) // chunks[1]):
            query = first_query + i
            begin, first_key = query * n_keys * n_heads, query // block_queries * n_keys
            if head_mask is None:
                _keys_of_row(
                    vectors.word, mask, begin, n_keys, key_index, element(ptr, i), first_key
                )
            else:
                _keys_of_heads(
                    mask,
                    begin,
                    n_keys,
                    n_heads,
                    key_index,
                    element(ptr, i),
                    first_key,
                    head_mask,
                    n_heads,
                )
        chunk = next_chunk(chunks)


@inline
def list_row(
    vectors: VectorClasses,
    mask: Flags,
    i: Index,
    n_keys: Index,
    n_mask_heads: Index | None,
    keys: Integers,
    head_mask: HeadMask | None,
    n_heads: Index,
) -> Index:
    """List the keys of query `i`, and which of the padded heads use them; return their number."""
    first = np.int64(0)  # a literal has a type of its own to compile
    if n_mask_heads is None:
        return _keys_of_row(vectors.word, mask, i * n_keys, n_keys, keys, first, first)
    begin = i * n_keys * n_mask_heads
    return _keys_of_heads(mask, begin, n_keys, n_mask_heads, keys, first, first, head_mask, n_heads)


@inline
def _keys_of_row(
    word: VectorClass,
    mask: Flags,
    begin: Index,
    n_keys: Index,
    keys: Integers,
    to: Index,
    first_key: Index,
) -> Index:
    """List the true elements of a row of the mask, and return where the list ends."""
    whole = n_keys // MASK_LANES * MASK_LANES
    for j in range(0, whole, MASK_LANES):
        bits = bits_of(load_mask(word, mask, begin + j))
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
    mask: Flags,
    begin: Index,
    n_keys: Index,
    n_heads: Index,
    keys: Integers,
    to: Index,
    first_key: Index,
    head_mask: Flags,
    stride: Index,
) -> Index:
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
def _any(mask: Flags, begin: Index, n: Index) -> bool:
    is_set = False
    for at in range(begin, begin + n):
        is_set |= mask[at]
    return is_set
