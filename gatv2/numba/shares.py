"""What each chunk of edges adds to the gradients that all edges share, summed in the order of chunks."""

from functools import lru_cache

import numpy as np

from gatv2.numba.arguments import Floats, Index, Plain, Vector, VectorClass, VectorClasses
from gatv2.numba.call import Launch
from gatv2.numba.compile import inline, kernel
from gatv2.numba.memory import LINE_BYTES, Array, empty
from gatv2.numba.simd import fma, load, splat, store
from gatv2.numba.vectors import Vectors


def sum_shares(
    launch: Launch, of_nodes: Array, of_edges: Array | None
) -> tuple[Array, Array | None]:
    """The gradients of attn, padded, and of edge_projection, None without edge features.

    Both have the `n_mapped` leading dimensions.

    Args:
        launch: of the call.
        of_nodes: shares of attn, `[copies, chunks, lanes]`.
        of_edges: shares of G, `[copies, chunks, D, lanes]`, see `gatv2.numba.edge_features`.
    """
    arguments, tiles = launch.arguments, launch.tiles
    mapped = arguments.query.shape[: arguments.n_mapped]
    edges, d_projection = launch.edges, None
    if edges is None and of_nodes.shape[:2] == (1, 1):
        return of_nodes.reshape(*mapped, *tiles.padded), None
    d_attn = empty((*mapped, *tiles.padded), tiles.dtype)
    plain_edges: Plain | None = None
    if edges is not None and of_edges is not None:
        d_projection = empty((*d_attn.shape, edges.n_features), tiles.dtype)
        plain_edges = (
            edges.n_features,
            of_edges.ravel(),
            edges.projection,
            launch.attn,
            d_projection.ravel(),
            np.empty(tiles.line, tiles.dtype),
        )
    _sum_shares(
        _vectors(tiles.dtype),
        (launch.sizes.n_batches, of_nodes.shape[1], tiles.length),
        of_nodes.ravel(),
        plain_edges,
        d_attn.ravel(),
    )
    if d_projection is not None and tiles.is_padded:
        of_caller = d_projection[..., : tiles.n_heads, : tiles.n_hidden, :]
        d_projection = np.ascontiguousarray(of_caller)
    return d_attn, d_projection


@lru_cache
def _vectors(dtype: np.dtype[np.floating]) -> Vectors:
    """A cache line alone, so that one compiled loop serves all tiles."""
    return Vectors(line=(dtype.type, LINE_BYTES // dtype.itemsize))


@kernel
def _sum_shares(
    vectors: VectorClasses, sizes: Plain, of_nodes: Floats, edges: Plain | None, d_attn: Floats
) -> None:
    line, (n_batches, n_chunks, length) = vectors.line, sizes
    for first in range(0, d_attn.size, length):
        shares = first * n_batches * n_chunks
        for lane in range(0, length, line.lanes):
            total = _total(line, of_nodes, shares + lane, n_batches, n_chunks, length)
            if edges is not None:
                total = total + _sum_edges(line, sizes, first, lane, edges)
            store(d_attn, first + lane, total)


@inline
def _sum_edges(line: VectorClass, sizes: Plain, first: Index, lane: Index, edges: Plain) -> Vector:
    """Write some lanes of d_W_e; return those of what attn gets of it."""
    (n_batches, n_chunks, length), n_lanes = sizes, line.lanes
    n_features, shares, projection, attn, d_projection, numbers = edges
    a, of_attn = load(line, attn, lane), splat(line, 0.0)
    for d in range(n_features):
        at = first * n_batches * n_chunks * n_features + d * length + lane
        g = _total(line, shares, at, n_batches, n_chunks, n_features * length)
        of_attn = fma(load(line, projection, d * length + lane), g, of_attn)
        store(numbers, 0, a * g)
        for k in range(n_lanes):
            d_projection[(first + lane + k) * n_features + d] = numbers[k]
    return of_attn


@inline
def _total(
    line: VectorClass,
    shares: Floats,
    first: Index,
    n_batches: Index,
    n_chunks: Index,
    stride: Index,
) -> Vector:
    """The sum of a line of each share, batch by batch."""
    total = splat(line, 0.0)
    for batch in range(n_batches):
        of_batch = splat(line, 0.0)
        for chunk in range(batch * n_chunks, (batch + 1) * n_chunks):
            of_batch = of_batch + load(line, shares, first + chunk * stride)
        total = total + of_batch
    return total
