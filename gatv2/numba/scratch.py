"""Memory that a call needs for itself, and the next one again: kept, and the system's if it needs it.

A backward pass holds some numbers for each edge. Memory of that size comes from the system page by page,
each filled with zeros, and goes back to it: a fourth of the time of a step. What is kept here is marked
as free meanwhile, where the system knows such a mark, and taken away when memory is short. The first
32 MB are not marked: that would take a thirtieth of the time of a small step.
"""

import mmap
import os
from contextlib import suppress
from threading import Lock

import numpy as np

from gatv2.numba.memory import Array, empty

_HUGE_PAGE = 1 << 21
"""Bytes. Whole ones are marked, and asked for, at once; what is left over goes page by page."""
_LEAST_KEPT = _HUGE_PAGE
"""Bytes. Less comes from the heap, which keeps it."""
_MOST_UNMARKED = 1 << 25
"""Bytes of all that is kept and not marked as free."""
MOST_KEPT = 1 << 30
"""Bytes of all that is kept."""

_kept: list[mmap.mmap] = []
_lock = Lock()


class Scratch:
    """Bytes that are not initialised, and that belong to nobody else as long as the context lasts.

    Args:
        n_bytes: how many.
    """

    def __init__(self, n_bytes: int) -> None:
        self._n_bytes = n_bytes
        self._memory: mmap.mmap | None = None

    def __enter__(self) -> Array:
        if self._n_bytes < _LEAST_KEPT:
            return empty((self._n_bytes,), np.uint8)
        self._memory = _take(self._n_bytes)
        return np.frombuffer(self._memory, np.uint8, self._n_bytes)

    def __exit__(self, *_: object) -> None:
        memory, self._memory = self._memory, None
        if memory is not None:
            _give_back(memory)


def release_scratch() -> None:
    """Give the memory that is kept between calls back to the system.

    Example:
        >>> release_scratch()
    """
    with _lock:
        _kept.clear()


def _take(n_bytes: int) -> mmap.mmap:
    """The smallest memory that is kept and large enough, or new memory in the place of the largest."""
    with _lock:
        fitting = [memory for memory in _kept if len(memory) >= n_bytes]
        if fitting:
            memory = min(fitting, key=len)
            _kept.remove(memory)
            return memory
        if _kept:
            _kept.remove(max(_kept, key=len))
    return _new(n_bytes + -n_bytes % _HUGE_PAGE)


def _new(n_bytes: int) -> mmap.mmap:
    if not hasattr(mmap, "MAP_PRIVATE"):
        return mmap.mmap(-1, n_bytes)
    # a forked child gets a copy of private memory, as of all other
    memory = mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    _advise(memory, "MADV_HUGEPAGE")
    return memory


def _give_back(memory: mmap.mmap) -> None:
    with _lock:
        if sum(map(len, _kept)) + len(memory) > _MOST_UNMARKED:
            _advise(memory, "MADV_FREE")
        _kept.append(memory)
        while sum(map(len, _kept)) > MOST_KEPT:
            del _kept[0]


def _advise(memory: mmap.mmap, advice: str) -> None:
    # a kernel may not know what Python knows, and locked memory can't be marked
    with suppress(AttributeError, OSError):
        memory.madvise(getattr(mmap, advice))


def _forget_the_lock() -> None:
    """Of a parent, of which another thread may have held it when it forked."""
    global _lock
    _lock = Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_the_lock)
