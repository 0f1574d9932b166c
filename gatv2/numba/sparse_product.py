"""The product of a sparse matrix and a projection's matrix, and its gradient.

A row of the result is a sum of rows of the other factor, and stays in registers while it grows.
"""

import numpy as np

from gatv2.numba.arguments import Floats, Index, Integers, Truth, VectorClasses
from gatv2.numba.compile import kernel
from gatv2.numba.memory import Array, empty
from gatv2.numba.rows import rows_of
from gatv2.numba.simd import broadcast, fma, load, splat, store
from gatv2.numba.team import share_out
from gatv2.numba.threads import Chunks, count_chunks, next_chunk, run_chunks
from gatv2.numba.tiles import Tiles, tiles_of

_CHEAPNESS = 4
"""So many elements take as long as one of attention: smaller chunks would wake threads in vain."""
_COLUMNS = 16  # that are turned at once: a cache line of each row


def product(ptr: Array, column: Array, value: Array, weight: Array, n_threads: int) -> Array:
    """`matrix @ weight.T`, `[n_rows, n_outputs]`, of a matrix in CSR.

    Args:
        ptr: `[n_rows + 1]`, where the values of each row start.
        column: `[n_stored]`, the column of each value, in range.
        value: `[n_stored]`, of the dtype of `weight`.
        weight: `[n_outputs, n_columns]`, contiguous.
        n_threads: at most so many work.

    Example:
        >>> ptr, column, value = np.array([0, 1, 1, 3]), np.array([1, 0, 1]), np.array([1.0, 2.0, 3.0])
        >>> product(ptr, column, value, np.array([[1.0, 10.0]]), 1).tolist()
        [[10.0], [0.0], [32.0]]
    """
    tiles = _tiles(weight.shape[0], weight.dtype)
    turned = _turned(weight, tiles.length)
    out = _product(tiles, ptr, column, column[:0], value, turned, n_threads)
    return out if tiles.length == weight.shape[0] else out[:, : weight.shape[0]].copy()


def gradient(
    ptr: Array, row: Array, stored: Array, value: Array, d_out: Array, n_threads: int
) -> Array:
    """The gradient of `weight` in :func:`product`, `[n_outputs, n_columns]`.

    Args:
        ptr: `[n_columns + 1]`, where the values of each column start.
        row: `[n_stored]`, the row of each value, by columns.
        stored: `[n_stored]`, where each is among the values of the matrix.
        value: those, by rows.
        d_out: `[n_rows, n_outputs]`, of the dtype of `value`.
        n_threads: at most so many work.
    """
    n_outputs = d_out.shape[1]
    tiles = _tiles(n_outputs, d_out.dtype)
    if tiles.length == n_outputs:
        rows = np.ascontiguousarray(d_out)
    else:
        rows = np.zeros((d_out.shape[0], tiles.length), d_out.dtype)
        rows[:, :n_outputs] = d_out
    turned = _product(tiles, ptr, row, stored, value, rows, n_threads)
    return _turned(turned, turned.shape[0])[:n_outputs]


@kernel
def is_matrix(ptr: Integers, column: Integers, n_columns: Index, n_stored: Index) -> Truth:
    """Whether these are pointers and columns of a matrix in CSR that stores so many values."""
    if ptr.size == 0 or ptr[0] != 0 or ptr[-1] != n_stored or column.size != n_stored:
        return False
    for i in range(ptr.size - 1):
        if ptr[i] > ptr[i + 1]:
            return False
    is_inside = True
    for p in range(column.size):
        is_inside &= 0 <= column[p] < n_columns
    return is_inside


def _tiles(width: int, dtype: np.dtype[np.generic]) -> Tiles:
    """How a row of the result is cut."""
    return tiles_of(1, width, dtype == np.float64)


def _product(
    tiles: Tiles,
    ptr: Array,
    column: Array,
    stored: Array,
    value: Array,
    rows: Array,
    n_threads: int,
) -> Array:
    """The product with `[n_columns, width]`, of whole tiles; `stored` is empty if it tells nothing."""
    out = empty((ptr.size - 1, tiles.length), rows.dtype)
    n_chunks = count_chunks((column.size + ptr.size) * tiles.length // _CHEAPNESS)
    run_chunks(
        _multiply,
        n_threads,
        n_chunks,
        tiles.vectors,
        tiles.length,
        *map(np.ascontiguousarray, (ptr, column, stored, value)),
        rows.ravel(),
        out.ravel(),
    )
    return out


def _turned(matrix: Array, length: int) -> Array:
    """The transposed matrix, its rows filled up with zeros to `length`."""
    make = empty if length == matrix.shape[0] else np.zeros
    out = make((matrix.shape[1], length), matrix.dtype)
    _turn(matrix.ravel(), matrix.shape[0], matrix.shape[1], length, out.ravel())
    return out


@kernel
def _turn(matrix: Floats, n_rows: Index, n_columns: Index, length: Index, out: Floats) -> None:
    for start in range(0, n_columns, _COLUMNS):
        if start + _COLUMNS <= n_columns:
            for i in range(n_rows):
                source, to = np.uint64(i * n_columns + start), np.uint64(start * length + i)
                for k in range(_COLUMNS):
                    out[to + np.uint64(k * length)] = matrix[source + np.uint64(k)]
        else:
            for i in range(n_rows):
                for j in range(start, n_columns):
                    out[j * length + i] = matrix[i * n_columns + j]


@kernel
def _multiply(
    chunks: Chunks,
    vectors: VectorClasses,
    length: Index,
    ptr: Integers,
    column: Integers,
    stored: Integers,
    value: Floats,
    rows: Floats,
    out: Floats,
) -> None:
    share_out(chunks)
    chunk = next_chunk(chunks)
    while chunk < chunks[1]:
        begin, end = rows_of(ptr, chunk, chunks)
        for i in range(begin, end):
            for at in range(0, length, vectors.tile.lanes):
                total = splat(vectors.tile, 0.0)
                for p in range(ptr[i], ptr[i + 1]):
                    factor = broadcast(vectors.tile, value, stored[p] if stored.size else p)
                    total = fma(factor, load(vectors.tile, rows, column[p] * length + at), total)
                store(out, i * length + at, total)
        chunk = next_chunk(chunks)
