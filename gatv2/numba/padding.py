"""Rows of `[heads, features]` with padding, and without it again.

NumPy copies what is cut out of rows number by number, where the features of a head are one vector.
"""

from functools import lru_cache
from math import prod

import numpy as np

from gatv2.numba.arguments import Index, Number, Plain, VectorClasses
from gatv2.numba.compile import kernel
from gatv2.numba.memory import LINE_BYTES, Array, empty
from gatv2.numba.simd import load_first, splat, store_first
from gatv2.numba.team import share_out
from gatv2.numba.threads import Chunks, count_chunks, next_chunk, run_chunks
from gatv2.numba.vectors import Vectors

_MOST_LANES = 16
_FEW_HEADS = 512
"""With fewer, in all rows, NumPy is done before a kernel has been called."""


def reshaped(
    rows: Array,
    n_heads: int,
    n_features: int,
    *,
    filling: float = 0,
    memory: Array | None = None,
    n_threads: int,
) -> Array:
    """Rows `[..., heads, features]` with other numbers of both: the first ones, and `filling` for more.

    Args:
        rows: the rows, contiguous.
        n_heads: heads of the result.
        n_features: features of a head of the result.
        filling: what is behind the heads and features that there are.
        memory: for the result, contiguous; what fits is written to, and returned.
        n_threads: at most so many work.

    Example:
        >>> rows = np.array([[[1.0, 2.0], [3.0, 4.0]]])
        >>> reshaped(rows, 2, 3, n_threads=1).tolist()
        [[[1.0, 2.0, 0.0], [3.0, 4.0, 0.0]]]
        >>> reshaped(rows, 1, 1, n_threads=1).tolist()
        [[[1.0]]]
    """
    *leading, n_heads_given, n_features_given = rows.shape
    result = empty((*leading, n_heads, n_features), rows.dtype, memory)
    if prod(leading) * n_heads < _FEW_HEADS:
        if n_heads > n_heads_given or n_features > n_features_given:
            result.fill(filling)
        result[..., :n_heads_given, :n_features_given] = rows[..., :n_heads, :n_features]
        return result
    source, target = (_as_numbers(x) for x in (rows, result))
    run_chunks(
        _reshape,
        n_threads,
        count_chunks(max(source.size, target.size)),
        _vectors(source.dtype),
        prod(leading),
        (source, n_heads_given, n_features_given),
        (target, n_heads, n_features),
        filling,
    )
    return result


def _as_numbers(rows: Array) -> Array:
    """Rows, flat; flags are bytes."""
    return rows.ravel().view(np.uint8) if rows.dtype == np.bool_ else rows.ravel()


@lru_cache
def _vectors(dtype: np.dtype[np.generic]) -> Vectors:
    """As many lanes for all rows, so that one compiled loop serves them."""
    return Vectors(part=(dtype.type, min(LINE_BYTES // dtype.itemsize, _MOST_LANES)))


@kernel
def _reshape(
    chunks: Chunks,
    vectors: VectorClasses,
    n_rows: Index,
    source: Plain,
    target: Plain,
    filling: Number,
) -> None:
    share_out(chunks)
    part, (given, n_given, width_given), (out, n_heads, width) = vectors.part, source, target
    rest = splat(part, filling)
    chunk = next_chunk(chunks)
    while chunk < chunks[1]:
        for row in range(n_rows * chunk // chunks[1], n_rows * (chunk + 1) // chunks[1]):
            for head in range(n_heads):
                begin = (row * n_given + head) * width_given
                to = (row * n_heads + head) * width
                n = width_given if head < n_given else 0
                for at in range(0, width, part.lanes):
                    features = load_first(part, given, begin + at, n - at, rest)
                    store_first(out, to + at, features, width - at)
        chunk = next_chunk(chunks)
