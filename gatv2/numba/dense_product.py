"""Products of features and projections' matrices, and their gradients, in the widest vectors of a CPU.

MKL, by which PyTorch multiplies on x86, has code for AVX-512 for Intel's processors alone. On AMD's it
takes twice as long as these do, and a layer's products more than all else of its step.

Four rows of a panel, some columns of the result, stay in registers while they are summed up. What they
are sums of stays in the first cache: some rows of a panel of the second factor.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numba.core.registry import cpu_target

from gatv2.numba.arguments import Floats, Index, Plain, Vector, VectorClasses
from gatv2.numba.compile import inline, kernel
from gatv2.numba.memory import Array, empty
from gatv2.numba.simd import broadcast, fma, load, splat, store
from gatv2.numba.team import share_out
from gatv2.numba.threads import Chunks, next_chunk, run_chunks
from gatv2.numba.tiles import sum_bytes
from gatv2.numba.vectors import Vectors

_ROWS = 4  # that are summed up at once, one by one below
_DEPTH = 128  # rows of the second factor that are multiplied at once
_CHUNK_ROWS = 64  # of the result
_CHUNK_WORK = 1 << 20  # products of two numbers: some 10 us
_MOST_SHARES = 1 << 17  # elements of all sums that are added up in the end


class Factor(NamedTuple):
    """A matrix of a product: where its elements are."""

    elements: Floats
    stride: Index
    """From a row of the first factor to the next, or from a panel of the second one."""
    step: Index
    """From a column of the first factor to the next, or from a row of the second one."""


class Range(NamedTuple):
    """Columns of the first factor, and rows of the second one, that are multiplied at once."""

    first: Index
    stop: Index
    is_start: bool
    """Whether these are the first ones of a sum: what they give is written, not added."""


def is_faster() -> bool:
    """Whether these products are faster than MKL's."""
    _, cpu, features = cpu_target.target_context.codegen().magic_tuple()
    return bool(cpu.startswith("znver") and "+avx512f" in features)


def can_multiply(n_rows: int, depth: int, width: int, itemsize: int) -> bool:
    """Whether a product `[n_rows, depth] @ [depth, width]` is of many, and whole, vectors."""
    return _is_worth_it(n_rows, depth, width) and _has_whole_panels(width, itemsize)


def can_multiply_columns(depth: int, n_outputs: int, n_inputs: int, itemsize: int) -> bool:
    """Whether `[depth, n_outputs].T @ [depth, n_inputs]` is, or the same turned."""
    return _is_worth_it(n_outputs, depth, n_inputs) and (
        _has_whole_panels(n_inputs, itemsize) or _has_whole_panels(n_outputs, itemsize)
    )


def project(h: Array, weight: Array, bias: Array | None, n_threads: int) -> Array:
    """`h @ weight.T + bias`, `[n_rows, n_outputs]`.

    Args:
        h: `[n_rows, n_inputs]`; matrices are contiguous, and of one dtype.
        weight: `[n_outputs, n_inputs]`.
        bias: `[n_outputs]`, or None.
        n_threads: at most so many work.

    Example:
        >>> h, weight = np.ones((256, 64)), np.full((64, 64), 0.5)
        >>> project(h, weight, np.ones(64), 1)[0, :3].tolist()
        [33.0, 33.0, 33.0]
    """
    (n_rows, depth), n_outputs, lanes = h.shape, len(weight), _lanes(len(weight), h.itemsize)
    panels = np.ascontiguousarray(weight.reshape(-1, lanes, depth).transpose(0, 2, 1))
    first, second = (h.ravel(), depth, 1), (panels.ravel(), depth * lanes, lanes)
    return _multiply(first, second, (n_rows, depth, n_outputs), bias, n_threads)


def gradient_of_h(d_out: Array, weight: Array, n_threads: int) -> Array:
    """`d_out @ weight`, the gradient of `h` in :func:`project`."""
    n_outputs, n_inputs = weight.shape
    lanes = _lanes(n_inputs, weight.itemsize)
    panels = np.ascontiguousarray(weight.reshape(n_outputs, -1, lanes).transpose(1, 0, 2))
    first, second = (d_out.ravel(), n_outputs, 1), (panels.ravel(), n_outputs * lanes, lanes)
    return _multiply(first, second, (len(d_out), n_outputs, n_inputs), None, n_threads)


def gradient_of_weight(d_out: Array, h: Array, n_threads: int) -> Array:
    """`d_out.T @ h`, the gradient of `weight` in :func:`project`."""
    n_outputs, n_inputs = d_out.shape[1], h.shape[1]
    # threads share rows of a result, and not columns: it has more of the former
    if _has_whole_panels(n_outputs, h.itemsize) and (
        n_inputs > n_outputs or not _has_whole_panels(n_inputs, h.itemsize)
    ):
        return np.ascontiguousarray(_multiply_columns(h, d_out, n_threads).T)
    return _multiply_columns(d_out, h, n_threads)


def _multiply_columns(a: Array, b: Array, n_threads: int) -> Array:
    """`a.T @ b`."""
    (depth, n_rows), width = a.shape, b.shape[1]
    first, second = (a.ravel(), 1, n_rows), (b.ravel(), _lanes(width, b.itemsize), width)
    return _multiply(first, second, (n_rows, depth, width), None, n_threads)


def _multiply(
    a: Plain, b: Plain, sizes: tuple[int, int, int], bias: Array | None, n_threads: int
) -> Array:
    """`a @ b + bias`, of the elements of two `Factor`s, and `[n_rows, depth] @ [depth, width]`."""
    (n_rows, depth, width), dtype = sizes, a[0].dtype
    n_parts = -(-n_rows // _CHUNK_ROWS)
    n_shares = min(
        n_rows * depth * width // (n_parts * _CHUNK_WORK), _MOST_SHARES // (n_rows * width), depth
    )
    shares = empty((max(n_shares, 1), n_rows, width), dtype)
    run_chunks(
        _multiply_chunks,
        n_threads,
        n_parts,
        _vectors(dtype, _lanes(width, dtype.itemsize)),
        sizes,
        a,
        b,
        np.zeros(width, dtype) if bias is None else bias,
        shares.ravel(),
        n_copies=len(shares),
    )
    total: Array = shares[0] if len(shares) == 1 else np.add.reduce(shares)
    return total


def _is_worth_it(n_rows: int, depth: int, width: int) -> bool:
    return n_rows * depth * width >= _CHUNK_WORK


def _has_whole_panels(width: int, itemsize: int) -> bool:
    return width % _least_lanes(itemsize) == 0


def _least_lanes(itemsize: int) -> int:
    """Lanes of two registers: four rows of them are as many sums as a CPU can add to in turn."""
    return sum_bytes() // (2 * _ROWS * itemsize)


def _lanes(width: int, itemsize: int) -> int:
    """Lanes of a panel."""
    least = _least_lanes(itemsize)
    return least if width % (2 * least) else 2 * least


@lru_cache
def _vectors(dtype: np.dtype[np.floating], lanes: int) -> Vectors:
    return Vectors(panel=(dtype.type, lanes))


@kernel
def _multiply_chunks(
    chunks: Chunks,
    vectors: VectorClasses,
    sizes: Plain,
    a: Plain,
    b: Plain,
    bias: Floats,
    shares: Floats,
) -> None:
    """Write shares of a product, `[copies, n_rows, width]`; the bias is one of the first share."""
    share_out(chunks)
    (n_rows, depth, width), a, b = sizes, Factor(*a), Factor(*b)
    n_parts, lanes = chunks[2], vectors.panel.lanes
    n_shares = chunks[1] // n_parts
    chunk = next_chunk(chunks)
    while chunk < chunks[1]:
        share, part = chunk // n_parts, chunk % n_parts
        begin, end = depth * share // n_shares, depth * (share + 1) // n_shares
        first_row = part * _CHUNK_ROWS
        last_row = min(first_row + _CHUNK_ROWS, n_rows) - 1
        for first in range(begin, end, _DEPTH):
            block = Range(first, min(first + _DEPTH, end), first == begin)
            for column in range(0, width, lanes):
                out = share * n_rows * width + column
                panel = column // lanes * b.stride
                start = splat(vectors.panel, 0.0)
                if first == 0:
                    start = load(vectors.panel, bias, column)
                for row in range(first_row, last_row + 1, _ROWS):
                    _add_block(
                        vectors, block, a, row, last_row, b, panel, start, shares, out, width
                    )
        chunk = next_chunk(chunks)


@inline
def _add_block(
    vectors: VectorClasses,
    block: Range,
    a: Factor,
    row: Index,
    last_row: Index,
    b: Factor,
    panel: Index,
    start: Vector,
    shares: Floats,
    out: Index,
    width: Index,
) -> None:
    """Add products to the columns of a panel, in four rows from `row` on, or the last one again.

    Args:
        vectors: of which a `panel` has the columns.
        block: what is multiplied.
        a: the first factor.
        row: the first row.
        last_row: that there is.
        b: the second factor.
        panel: where the panel is in it.
        start: what the sum of these products starts with.
        shares: where the sums are.
        out: where the panel is in them, in row 0.
        width: columns of the sums.
    """
    row_1, row_2, row_3 = min(row + 1, last_row), min(row + 2, last_row), min(row + 3, last_row)
    out_0, out_1 = out + row * width, out + row_1 * width
    out_2, out_3 = out + row_2 * width, out + row_3 * width
    t0, t1, t2, t3 = start, start, start, start
    for k in range(block.first, block.stop):
        factor, at = load(vectors.panel, b.elements, panel + k * b.step), k * a.step
        t0 = fma(broadcast(factor, a.elements, at + row * a.stride), factor, t0)
        t1 = fma(broadcast(factor, a.elements, at + row_1 * a.stride), factor, t1)
        t2 = fma(broadcast(factor, a.elements, at + row_2 * a.stride), factor, t2)
        t3 = fma(broadcast(factor, a.elements, at + row_3 * a.stride), factor, t3)
    # not before: a sum of sums of some products each rounds less than one of all of them in a row
    if not block.is_start:
        # the last row again is read before it is written
        t0, t1 = t0 + load(vectors.panel, shares, out_0), t1 + load(vectors.panel, shares, out_1)
        t2, t3 = t2 + load(vectors.panel, shares, out_2), t3 + load(vectors.panel, shares, out_3)
    store(shares, out_0, t0)
    store(shares, out_1, t1)
    store(shares, out_2, t2)
    store(shares, out_3, t3)
