"""The products of a sparse matrix and the matrices of projections, and their gradients.

A row of a result is a sum of rows of the other factor, and stays in registers while it grows. These rows
are columns of a projection's matrix, which is turned before, and its gradient after.
"""

from collections.abc import Sequence

import numpy as np

from gatv2.numba.arguments import Floats, Index, Integers, Plain, Truth, VectorClasses
from gatv2.numba.compile import kernel
from gatv2.numba.memory import Array, empty
from gatv2.numba.rows import rows_of
from gatv2.numba.simd import broadcast, fma, load, splat, store, turn
from gatv2.numba.team import share_out
from gatv2.numba.threads import Chunks, count_chunks, next_chunk, run_chunks
from gatv2.numba.tiles import Tiles, tiles_of

_CHEAPNESS = 4
"""So many elements take as long as one of attention: smaller chunks would wake threads in vain."""


def products(
    ptr: Array, column: Array, value: Array, weights: Sequence[Array], n_threads: int
) -> list[Array]:
    """`matrix @ weight.T`, `[n_rows, n_outputs]`, of a matrix in CSR and each weight.

    Args:
        ptr: `[n_rows + 1]`, where the values of each row start.
        column: `[n_stored]`, the column of each value, in range.
        value: `[n_stored]`, of the dtype of the weights.
        weights: each `[n_outputs, n_columns]`.
        n_threads: at most so many work.

    Example:
        >>> ptr, column, value = np.array([0, 1, 1, 3]), np.array([1, 0, 1]), np.array([1.0, 2.0, 3.0])
        >>> [out] = products(ptr, column, value, [np.array([[1.0, 10.0]])], 1)
        >>> out.tolist()
        [[10.0], [0.0], [32.0]]
    """
    n_outputs = weights[0].shape[0]
    tiles = _tiles(n_outputs, weights[0].dtype)
    rows = _turned(tiles, weights, tiles.length, n_threads)
    outs = _products(tiles, ptr, column, column[:0], value, rows, n_threads)
    return outs if tiles.length == n_outputs else [out[:, :n_outputs].copy() for out in outs]


def gradients(
    ptr: Array,
    row: Array,
    stored: Array,
    value: Array,
    d_outs: Sequence[Array],
    n_threads: int,
) -> list[Array]:
    """The gradients of the weights in :func:`products`, each `[n_outputs, n_columns]`.

    Args:
        ptr: `[n_columns + 1]`, where the values of each column start.
        row: `[n_stored]`, the row of each value, by columns.
        stored: `[n_stored]`, where each is among the values of the matrix.
        value: those, by rows.
        d_outs: each `[n_rows, n_outputs]`, of the dtype of `value`.
        n_threads: at most so many work.
    """
    n_outputs = d_outs[0].shape[1]
    tiles = _tiles(n_outputs, value.dtype)
    rows = [_padded(d_out, tiles.length) for d_out in d_outs]
    turned = _products(tiles, ptr, row, stored, value, rows, n_threads)
    d_weights = _turned(tiles, turned, ptr.size - 1, n_threads)
    return [d_weight[:n_outputs] for d_weight in d_weights]


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


def _products(
    tiles: Tiles,
    ptr: Array,
    column: Array,
    stored: Array,
    value: Array,
    rows: Sequence[Array],
    n_threads: int,
) -> list[Array]:
    """The products with each `[n_columns, width]`, of whole tiles; `stored` is empty if it tells nothing."""
    outs = [empty((ptr.size - 1, tiles.length), tiles.dtype) for _ in rows]
    n_chunks = count_chunks((column.size + ptr.size) * tiles.length * len(rows) // _CHEAPNESS)
    run_chunks(
        _multiply,
        n_threads,
        n_chunks,
        tiles.vectors,
        tiles.length,
        *map(np.ascontiguousarray, (ptr, column, stored, value)),
        _flat(rows),
        _flat(outs),
    )
    return outs


def _padded(rows: Array, length: int) -> Array:
    """Rows filled up with zeros to `length`."""
    if rows.shape[1] == length:
        return rows
    padded = np.zeros((rows.shape[0], length), rows.dtype)
    padded[:, : rows.shape[1]] = rows
    return padded


def _turned(tiles: Tiles, matrices: Sequence[Array], length: int, n_threads: int) -> list[Array]:
    """The transposed matrices, their rows filled up with zeros to `length`."""
    n_rows, n_columns = matrices[0].shape
    make = empty if length == n_rows else np.zeros
    outs = [make((n_columns, length), tiles.dtype) for _ in matrices]
    n_chunks = count_chunks(n_rows * n_columns * len(matrices))
    run_chunks(
        *(_turn, n_threads, n_chunks, tiles.vectors, n_rows, n_columns, length),
        *(_flat(matrices), _flat(outs)),
    )
    return outs


def _flat(matrices: Sequence[Array]) -> tuple[Array, ...]:
    return tuple([matrix.ravel() for matrix in matrices])


@kernel
def _turn(
    chunks: Chunks,
    vectors: VectorClasses,
    n_rows: Index,
    n_columns: Index,
    length: Index,
    matrices: Plain,
    outs: Plain,
) -> None:
    share_out(chunks)
    side = vectors.line.lanes  # of a square block
    n_across = -(-n_columns // side)
    n_blocks = -(-n_rows // side) * n_across
    chunk = next_chunk(chunks)
    while chunk < chunks[1]:
        for k in range(len(matrices)):
            for block in range(n_blocks * chunk // chunks[1], n_blocks * (chunk + 1) // chunks[1]):
                i, j = block // n_across * side, block % n_across * side
                if i + side <= n_rows and j + side <= n_columns:
                    source, to = i * n_columns + j, j * length + i
                    turn(vectors.line, matrices[k], source, n_columns, outs[k], to, length)
                else:
                    for row in range(i, min(i + side, n_rows)):
                        for column in range(j, min(j + side, n_columns)):
                            outs[k][column * length + row] = matrices[k][row * n_columns + column]
        chunk = next_chunk(chunks)


@kernel
def _multiply(
    chunks: Chunks,
    vectors: VectorClasses,
    length: Index,
    ptr: Integers,
    column: Integers,
    stored: Integers,
    value: Floats,
    rows: Plain,
    outs: Plain,
) -> None:
    share_out(chunks)
    chunk = next_chunk(chunks)
    while chunk < chunks[1]:
        begin, end = rows_of(ptr, chunk, chunks)
        for i in range(begin, end):
            for k in range(len(rows)):
                for at in range(0, length, vectors.tile.lanes):
                    total = splat(vectors.tile, 0.0)
                    for p in range(ptr[i], ptr[i + 1]):
                        factor = broadcast(vectors.tile, value, stored[p] if stored.size else p)
                        row = load(vectors.tile, rows[k], column[p] * length + at)
                        total = fma(factor, row, total)
                    store(outs[k], i * length + at, total)
        chunk = next_chunk(chunks)
