"""Memory for the kernels: arrays that are not initialised."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

LINE_BYTES = 64
"""Of a cache line, where a large array starts."""
_LARGE_BYTES = 1 << 16


def empty(shape: tuple[int, ...], dtype: type[np.generic] | np.dtype[np.generic]) -> Array:
    """`np.empty`, but a large array starts with a cache line."""
    array = np.empty(shape, dtype)
    if array.nbytes < _LARGE_BYTES:
        return array
    memory = np.empty(array.nbytes + LINE_BYTES, np.uint8)
    start = -memory.__array_interface__["data"][0] % LINE_BYTES
    return np.ndarray(shape, dtype, memory, start)
