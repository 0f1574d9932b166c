"""The products of a sparse matrix and the matrices of projections, and their gradients.

A row of a result is a sum of rows of the other factor. These are columns of a projection's matrix, which
is turned before, and its gradient after.

They are worked off by tiles of columns, of which a row stays in registers while it grows. Each thread
begins with tiles of its own, that it has turned itself: what it gathers rows from lies in its core's
cache, and not in another's.
"""

from collections.abc import Callable, Sequence

import numpy as np

from gatv2.numba.arguments import Floats, Index, Integers, Nothing, Plain, Truth, VectorClasses
from gatv2.numba.compile import inline, kernel
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
    n_outputs, n_columns = weights[0].shape
    tiles = tiles_of(1, n_outputs, value.dtype == np.float64)
    parts = _Parts(tiles, len(weights), ptr, column, n_columns, n_threads)
    turned = parts.rows(n_columns, is_filled=tiles.length == n_outputs)
    parts.run(_turn, n_outputs, n_columns, _flat(weights), _flat(turned))
    outs = parts.rows(ptr.size - 1)
    matrix = map(np.ascontiguousarray, (ptr, column, column[:0], value))
    parts.run(_multiply, *matrix, _flat(turned), _flat(outs), None)
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
    (n_rows, n_outputs), n_columns = d_outs[0].shape, ptr.size - 1
    tiles = tiles_of(1, n_outputs, value.dtype == np.float64)
    parts = _Parts(tiles, len(d_outs), ptr, row, n_columns, n_threads)
    if tiles.length != n_outputs:
        padded = parts.rows(n_rows, is_filled=False)
        for rows, d_out in zip(padded, d_outs, strict=True):
            rows[:, :n_outputs] = d_out
        d_outs = padded
    turned = parts.rows(n_columns)
    d_weights = [empty((tiles.length, n_columns), tiles.dtype) for _ in d_outs]
    matrix = map(np.ascontiguousarray, (ptr, row, stored, value))
    parts.run(_multiply, *matrix, _flat(d_outs), _flat(turned), _flat(d_weights))
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


class _Parts:
    """How the tiles of some products are shared out.

    Args:
        tiles: of a row of each.
        n_matrices: products.
        ptr: of the sparse matrix.
        column: of the sparse matrix.
        n_columns: that are turned.
        n_threads: at most so many work.
    """

    def __init__(
        self,
        tiles: Tiles,
        n_matrices: int,
        ptr: Array,
        column: Array,
        n_columns: int,
        n_threads: int,
    ) -> None:
        self._tiles, self._n_matrices = tiles, n_matrices
        self._n_tiles = n_matrices * tiles.length // tiles.lanes
        n_rows = (column.size + ptr.size) // _CHEAPNESS + n_columns
        n_chunks = count_chunks(n_rows * tiles.length * n_matrices)
        self._n_threads = n_threads if n_chunks > 1 else 1
        self._n_chunks = -(-n_chunks // max(self._n_tiles, 1))  # of a tile

    def rows(self, n_rows: int, *, is_filled: bool = True) -> list[Array]:
        """Rows for each product, of zeros unless they are filled up to the last column."""
        make = empty if is_filled else np.zeros
        shape, dtype = (n_rows, self._tiles.length), self._tiles.dtype
        return [make(shape, dtype) for _ in range(self._n_matrices)]

    def run(self, loop: Callable[..., None], *arguments: object) -> None:
        """Call `loop(chunks, taken, n_threads, vectors, length, *arguments)` on the threads."""
        run_chunks(
            loop,
            self._n_threads,
            self._n_chunks,
            np.zeros(self._n_tiles, np.int64),
            self._n_threads,
            self._tiles.vectors,
            self._tiles.length,
            *arguments,
            n_copies=self._n_tiles,
        )


def _flat(matrices: Sequence[Array]) -> tuple[Array, ...]:
    return tuple([matrix.ravel() for matrix in matrices])


@inline
def _tile_of(
    chunks: Chunks, taken: Integers, n_threads: Index, member: Index, k: Index
) -> tuple[Index, Chunks]:
    """The number of the tile that a member of the team works on as its `k`-th, and the chunks of it.

    `taken` counts those of each tile that are taken.
    """
    tile = (member * taken.size // n_threads + k) % taken.size
    return tile, (taken[tile:], chunks[2], chunks[2])


@kernel
def _turn(
    chunks: Chunks,
    taken: Integers,
    n_threads: Index,
    vectors: VectorClasses,
    length: Index,
    n_rows: Index,
    n_columns: Index,
    matrices: Plain,
    outs: Plain,
) -> None:
    member = share_out(chunks)
    n_tiles = length // vectors.tile.lanes
    for k in range(taken.size):
        tile, parts = _tile_of(chunks, taken, n_threads, member, k)
        matrix, out = matrices[tile // n_tiles], outs[tile // n_tiles]
        first = tile % n_tiles * vectors.tile.lanes
        stop = min(first + vectors.tile.lanes, n_rows)
        part = next_chunk(parts)
        while part < parts[1]:
            begin, end = n_columns * part // parts[1], n_columns * (part + 1) // parts[1]
            _turn_part(vectors, matrix, n_columns, first, stop, begin, end, out, length)
            part = next_chunk(parts)


@kernel
def _multiply(
    chunks: Chunks,
    taken: Integers,
    n_threads: Index,
    vectors: VectorClasses,
    length: Index,
    ptr: Integers,
    column: Integers,
    stored: Integers,
    value: Floats,
    rows: Plain,
    outs: Plain,
    turned: Plain | None,
) -> None:
    """Products with `rows`; also the transposed ones, if `turned` is given.

    `stored` is empty if it tells nothing.
    """
    member = share_out(chunks)
    n_tiles = length // vectors.tile.lanes
    for k in range(taken.size):
        tile, parts = _tile_of(chunks, taken, n_threads, member, k)
        factor, out = rows[tile // n_tiles], outs[tile // n_tiles]
        at = tile % n_tiles * vectors.tile.lanes
        part = next_chunk(parts)
        while part < parts[1]:
            begin, end = rows_of(ptr, part, parts)
            for i in range(begin, end):
                total = splat(vectors.tile, 0.0)
                for p in range(ptr[i], ptr[i + 1]):
                    number = broadcast(vectors.tile, value, stored[p] if stored.size else p)
                    row = load(vectors.tile, factor, column[p] * length + at)
                    total = fma(number, row, total)
                store(out, i * length + at, total)
            if turned is not None:
                to, n_rows = turned[tile // n_tiles], ptr.size - 1
                stop = at + vectors.tile.lanes
                _turn_part(vectors, out, length, begin, end, at, stop, to, n_rows)
            part = next_chunk(parts)


@inline
def _turn_part(
    vectors: VectorClasses,
    matrix: Floats,
    length: Index,
    first_row: Index,
    last_row: Index,
    first_column: Index,
    last_column: Index,
    out: Floats,
    out_length: Index,
) -> Nothing:
    """Rows and columns of a matrix to columns and rows of another one, each of so many columns."""
    side = vectors.line.lanes
    for j in range(first_column, last_column, side):
        for i in range(first_row, last_row, side):
            if i + side <= last_row and j + side <= last_column:
                source, to = i * length + j, j * out_length + i
                turn(vectors.line, matrix, source, length, out, to, out_length)
            else:
                for row in range(i, min(i + side, last_row)):
                    for column in range(j, min(j + side, last_column)):
                        out[column * out_length + row] = matrix[row * length + column]
