"""Memory for the kernels: arrays that are not initialised."""

import ctypes
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

LINE_BYTES = 64
"""Of a cache line, where a large array starts."""
_LARGE_BYTES = 1 << 16


def empty(
    shape: tuple[int, ...],
    dtype: type[np.generic] | np.dtype[np.generic],
    given: Array | None = None,
) -> Array:
    """`np.empty`, but a large array starts with a cache line; in the memory of `given`, if that fits."""
    if given is not None and given.size == prod(shape) and given.dtype == dtype:
        return given.reshape(shape)
    if np.dtype(dtype).itemsize * prod(shape) < _LARGE_BYTES:
        return np.empty(shape, dtype)
    return aligned(shape, dtype)


def aligned(shape: tuple[int, ...], dtype: type[np.generic] | np.dtype[np.generic]) -> Array:
    """`np.empty` that starts with a cache line: no vector of one lies in two."""
    n_bytes = np.dtype(dtype).itemsize * prod(shape)
    return _from_a_line(np.empty(n_bytes + LINE_BYTES, np.uint8), shape, dtype)


def zeros(shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> Array:
    """`np.zeros` of `[copies, chunks, ...]`, whose chunks can be added to side by side.

    It starts with a cache line. Two threads that write to one line, each to its own part, wait for it in
    turn.
    """
    if shape[:2] == (1, 1):  # for one thread alone
        return np.zeros(shape, dtype)
    return _from_a_line(np.zeros(dtype.itemsize * prod(shape) + LINE_BYTES, np.uint8), shape, dtype)


def _from_a_line(
    memory: Array, shape: tuple[int, ...], dtype: type[np.generic] | np.dtype[np.generic]
) -> Array:
    # a fourth of the time that the array itself takes to tell
    address = ctypes.addressof(ctypes.c_byte.from_buffer(memory.data))
    return np.ndarray(shape, dtype, memory, -address % LINE_BYTES)


def empty_rows(n_rows: int, width: int, dtype: type[np.generic] | np.dtype[np.generic]) -> Array:
    """A row for each of some threads, aligned, a cache line from the next one; empty if `width` is 0."""
    of_a_line = LINE_BYTES // np.dtype(dtype).itemsize
    n_lines = -(-width // of_a_line) + 1 if width else 0
    return aligned((n_rows, n_lines * of_a_line), dtype)
