"""The fused kernels over a dense mask, on arrays: compacted to lists of keys, some rows at a time."""

from functools import partial
from math import prod
from typing import NamedTuple

import numpy as np

from gatv2.dense.numba_mask import MASK_VECTORS, count_edges, list_keys, list_row
from gatv2.numba.arguments import (
    EdgeList,
    Flags,
    Floats,
    HeadMask,
    Index,
    Integers,
    Place,
    Plain,
    Problem,
    Results,
    Strip,
    VectorClasses,
    as_edge_features,
    as_problem,
)
from gatv2.numba.call import ArrayArguments, ArrayCotangents, Launch, Sizes
from gatv2.numba.compile import inline, kernel
from gatv2.numba.counting_sort import transpose
from gatv2.numba.forward_row import forward_strip
from gatv2.numba.gradients import Gradients
from gatv2.numba.head_mask import as_head_mask
from gatv2.numba.memory import LINE_BYTES, Array, empty, empty_rows
from gatv2.numba.rows import place_of
from gatv2.numba.scores import buffers_of, own_buffers
from gatv2.numba.team import row_of, share_out
from gatv2.numba.threads import Chunks, count_chunks, next_chunk, run_chunks

_BLOCK = 1 << 23  # coefficients whose gradients are held at once
_SPARSENESS = 8  # cells of an edge, as nobody has counted them


class Adjacency(NamedTuple):
    """A mask, as an array."""

    mask: Array
    """[queries, keys, 1 or heads], or with batch dimensions in front."""


class Plan:
    """Calls of one kind: the sizes that they have in common, and how they run.

    Args:
        arguments: of such a call, of which arrays are only looked at.
    """

    def __init__(self, arguments: ArrayArguments) -> None:
        mask: Array = arguments.adjacency.mask
        # if each feature set has its own, they are one of a block-diagonal graph
        self._has_batch = prod(mask.shape[:-3]) > 1
        self._n_keys, self._n_mask_heads = mask.shape[-2:]
        self._sizes = Sizes(arguments, folds_batch=self._has_batch)
        self._rows = arguments.query.shape[:-2]

    def forward(self, arguments: ArrayArguments) -> tuple[Array, Array, Array | None]:
        """(out, log-sum-exp, alpha, which is None unless it is wanted)."""
        launch, sizes = Launch(arguments, self._sizes), self._sizes
        tiles, rows, n_keys = sizes.tiles, self._rows, self._n_keys
        results = launch.empty_results(rows, (*rows, n_keys))
        n_rows = sizes.n_copies * sizes.n_queries
        run_chunks(
            _forward,
            arguments.n_threads,
            min(count_chunks(n_rows * n_keys * tiles.length // _SPARSENESS), max(n_rows, 1)),
            tiles.vectors,
            launch.problem,
            launch.plain_edges,
            n_rows,
            self._mask(arguments),
            None if self._n_mask_heads == 1 else self._n_mask_heads,
            tuple(x.ravel() for x in results),
            scratch=partial(_row_buffers, launch, n_keys, self._n_mask_heads),
        )
        return launch.results(results)

    def backward(
        self, cotangents: ArrayCotangents, arguments: ArrayArguments
    ) -> tuple[Array | None, ...]:
        """Gradients of query, key, attn, edge_features, edge_projection, score_bias; None for None."""
        launch, sizes, n_heads = Launch(arguments, self._sizes), self._sizes, self._n_mask_heads
        tiles, n_queries = launch.tiles, sizes.n_queries
        mask = self._mask(arguments)
        ptr = self._pointers(mask, arguments.n_threads)
        limit = max(_BLOCK // tiles.padded[0], 1)
        n_chunks = sizes.count_chunks(min(int(ptr[-1]), limit))
        gradients = Gradients(launch, cotangents, n_chunks)
        if gradients.edges is not None:
            gradients.edges.d_x.fill(0)
        gradients.d_bias.fill(0)
        begin = 0
        while begin < n_queries:
            end = max(int(np.searchsorted(ptr, ptr[begin] + limit, side="right")) - 1, begin + 1)
            block = (ptr[begin : end + 1] - ptr[begin]).astype(np.int32)
            key_index = empty((int(block[-1]),), np.int32)
            head_mask = empty((key_index.size, n_heads), np.bool_) if n_heads > 1 else None
            run_chunks(
                list_keys,
                arguments.n_threads,
                min(self._count_row_chunks(mask), end - begin),
                MASK_VECTORS,
                mask,
                self._n_keys,
                n_heads,
                n_queries // sizes.n_blocks,
                begin,
                block,
                key_index,
                None if head_mask is None else head_mask.ravel(),
            )
            d_alpha, edge_id = _of_edges(launch, cotangents.d_alpha, begin, block, key_index)
            gradients.add(
                block,
                (key_index, edge_id),
                transpose(block, key_index, sizes.n_keys),
                None if head_mask is None else tiles.pad_heads(head_mask, arguments.n_threads),
                d_alpha,
            )
            begin = end
        return gradients.results()

    def _mask(self, arguments: ArrayArguments) -> Array:
        """The mask, of all blocks, flat."""
        mask: Array = arguments.adjacency.mask
        batch = arguments.query.shape[arguments.n_mapped : -3]
        # what is broadcast can't be written to, and a kernel would be compiled for that once more
        if self._has_batch and mask.shape[:-3] != batch:
            mask = np.broadcast_to(mask, (*batch, *mask.shape[-3:]))
        return mask.ravel()

    def _count_row_chunks(self, mask: Array) -> int:
        n_chunks: int = min(count_chunks(mask.size), max(self._sizes.n_queries, 1))
        return n_chunks

    def _pointers(self, mask: Array, n_threads: int) -> Array:
        """Where the edges of each query start."""
        n_heads = self._n_mask_heads
        ptr = np.zeros(self._sizes.n_queries + 1, np.int64)
        run_chunks(
            count_edges,
            n_threads,
            self._count_row_chunks(mask),
            MASK_VECTORS,
            mask,
            self._n_keys * n_heads,
            n_heads,
            ptr,
        )
        return np.cumsum(ptr, out=ptr)


def _row_buffers(
    launch: Launch, n_keys: int, n_mask_heads: int, n_threads: int
) -> tuple[Plain, ...]:
    """What threads need for one row each: buffers, keys, their alpha, and which heads use them."""
    tiles = launch.tiles
    n_heads = tiles.padded[0]
    head_mask: HeadMask = launch.plain_bias
    if n_mask_heads > 1:
        head_mask = np.zeros((n_threads, n_keys * n_heads + LINE_BYTES), np.bool_)
    n_alpha = n_keys * n_heads if launch.arguments.wants_rows else 0
    keys, alpha = (
        empty_rows(n_threads, n_keys, np.int32),
        empty_rows(n_threads, n_alpha, tiles.dtype),
    )
    return *own_buffers(tiles, n_threads), keys, alpha, head_mask


def _of_edges(
    launch: Launch, d_alpha: Array | None, begin: int, ptr: Array, key_index: Array
) -> tuple[Array, Array | None]:
    """The cotangent of alpha for a block's edges, padded; the row of each in what edges have."""
    has_rows = launch.edges is not None or launch.bias is not None
    has_cotangent = d_alpha is not None and d_alpha.size > 0
    if not has_cotangent and not has_rows:
        return launch.tiles.nothing, None
    sizes = launch.sizes
    n_keys = sizes.n_keys // sizes.n_blocks
    query = np.repeat(np.arange(begin, begin + ptr.size - 1), np.diff(ptr))
    cells = query * n_keys + key_index % max(n_keys, 1)
    if sizes.n_queries * n_keys < 2**31:  # as a `Graph` has them
        cells = cells.astype(np.int32)
    of_edges = launch.tiles.nothing
    if d_alpha is not None and has_cotangent:
        pairs = d_alpha.reshape(sizes.n_copies, -1, d_alpha.shape[-1])
        of_edges = launch.tiles.pad_heads(pairs.take(cells, axis=1), launch.arguments.n_threads)
    return of_edges, cells if has_rows else None


@kernel
def _forward(
    chunks: Chunks,
    buffers: Plain,
    keys: Integers,
    row_alpha: Floats,
    head_mask: HeadMask | None,
    vectors: VectorClasses,
    problem: Plain,
    edges: Plain | None,
    n_rows: Index,
    mask: Flags,
    n_mask_heads: Index | None,
    results: Plain,
) -> None:
    member = share_out(chunks)
    problem, edges = as_problem(problem), as_edge_features(edges)
    head_mask = as_head_mask(row_of(head_mask, member))
    buffers, results = buffers_of(member, buffers), Results(*results)
    keys, row_alpha = row_of(keys, member), row_of(row_alpha, member)
    n_keys, n_heads = problem.block_keys, problem.layout.n_groups * vectors.heads.lanes
    alpha = results.alpha
    row_results = Results(results.out, results.lse, results.total, row_alpha)
    chunk = next_chunk(chunks)
    while chunk < chunks[1]:
        for row in range(n_rows * chunk // chunks[1], n_rows * (chunk + 1) // chunks[1]):
            i = row % problem.n_queries
            n = list_row(vectors, mask, i, n_keys, n_mask_heads, keys, head_mask, n_heads)
            listed = keys[:n]
            forward_strip(
                vectors,
                problem,
                edges,
                None,
                Strip(_place_of(problem, row, n), i, 0, 1, 0, n),
                None,
                EdgeList(listed, listed),
                head_mask,
                buffers,
                row_results,
            )
            if alpha.size > 0:
                _write_alpha(alpha, row * n_keys * n_heads, n_keys, n_heads, listed, row_alpha)
        chunk = next_chunk(chunks)


@inline
def _place_of(problem: Problem, row: Index, n: Index) -> Place:
    """Where a query stands, of whose block and its cells keys are listed: the first `n` of the list."""
    i, first = row % problem.n_queries, np.int64(0)  # a literal has a type of its own to compile
    place = place_of(problem, None, row // problem.n_queries, i, first, first, n)
    return Place(
        place.row,
        0,
        n,
        place.first_key + place.drop_key,
        0,
        place.first_x + i * problem.block_keys,
        place.drop_query,
        0,
        place.drop_word,
    )


@inline
def _write_alpha(
    alpha: Floats,
    begin: Index,
    n_keys: Index,
    n_heads: Index,
    keys: Integers,
    row_alpha: Floats,
) -> None:
    """Write a row of coefficients: zero where there is no edge."""
    for at in range(begin, begin + n_keys * n_heads):
        alpha[at] = 0.0
    for e in range(keys.size):
        for head in range(n_heads):
            alpha[begin + keys[e] * n_heads + head] = row_alpha[e * n_heads + head]
