"""Fixed chunks of rows on a few threads: the same bits on any number of them.

The threads are PyTorch's (`gatv2.numba.team`), or Python's where there are none of it to be had.

Not Numba's `parallel=True`: its first parallel call resets the number of PyTorch's OpenMP threads,
its `workqueue` layer aborts the process when two threads call at once, its `omp` layer after a fork.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from llvmlite import ir
from numba import types

from gatv2.numba.arguments import Index, Integers, Plain
from gatv2.numba.compile import (
    Builder,
    Context,
    Signature,
    Typing,
    Value,
    Values,
    field_of,
    inline,
    intrinsic,
)
from gatv2.numba.team import STATE_SIZE, ask_for_team, look_at

Chunks: TypeAlias = Plain
"""(Numbers that threads share, number of chunks, number of those of one copy.)

The first number is how many chunks are taken; `gatv2.numba.team` has the others.
"""

_CHUNK_WORK = 1 << 16  # elements: some 15 us, more than it takes to wake a team
_WORTH_A_HELPER = 16  # chunks: more than it takes to wake a thread of Python
_MAX_CHUNKS = 256


def count_chunks(work: int) -> int:
    """Number of chunks for a loop over `work` elements: a function of the problem, not of threads."""
    return min(max(work // _CHUNK_WORK, 1), _MAX_CHUNKS)


def _no_scratch(_n_threads: int) -> Plain:
    return ()


def run_chunks(
    loop: Callable[..., None],
    n_threads: int,
    n_chunks: int,
    *arguments: object,
    n_copies: int = 1,
    part: tuple[int, int] | None = None,
    scratch: Callable[[int], Plain] = _no_scratch,
) -> None:
    """Call `loop(chunks, *scratch(n), *arguments)` on several threads: they share out the chunks.

    The calling thread works too. If PyTorch has a team of threads, the loop calls itself on them;
    else it is called on Python's, and the calling thread finishes it if these are busy elsewhere.

    Args:
        loop: a kernel; `chunks` is a `Chunks`.
        n_threads: at most so many work.
        n_chunks: chunks of a copy.
        arguments: of the kernel.
        n_copies: how often its rows are worked off, for one feature set after another.
        part: the first chunk that is to be taken, and the one before which to end; all, if it is None.
        scratch: gives arrays of which each of `n` threads has a row for itself.
    """
    first, end = part or (0, n_chunks * n_copies)
    n_all = end - first
    state = np.zeros(STATE_SIZE, np.int64)
    state[0] = first
    chunks = state, end, n_chunks
    if n_threads == 1 or n_all <= 1:
        loop(chunks, *scratch(1), *arguments)
    elif ask_for_team(state, n_threads):
        loop(chunks, *scratch(n_threads), *arguments)
        look_at(state)
    else:
        _run_with_helpers(
            lambda: loop(chunks, *scratch(1), *arguments), _count_helpers(n_threads, n_all)
        )


def _run_with_helpers(work: Callable[[], None], n_helpers: int) -> None:
    """Call `work` here and on threads of Python."""
    if n_helpers == 0:
        work()
        return
    helpers: list[Future[None]] = []
    try:
        # once the main thread has ended, nobody can be called for help
        with suppress(RuntimeError):
            submit = _pool(os.getpid()).submit
            helpers.extend(submit(work) for _ in range(n_helpers))
        work()
    finally:
        _wait_for([helper for helper in helpers if not helper.cancel()])


def _count_helpers(n_threads: int, n_chunks: int) -> int:
    """Threads of Python that it pays to wake; more chunks than there may be are of any size."""
    n_busy = n_threads if n_chunks >= _MAX_CHUNKS else n_chunks // _WORTH_A_HELPER
    return max(min(n_threads, n_busy) - 1, 0)


def _wait_for(helpers: Sequence[Future[None]]) -> None:
    """Wait until no helper works, also if a signal's handler raises: they write to a caller's memory."""
    try:
        for helper in helpers:
            helper.result()
    except BaseException:
        _wait_for([helper for helper in helpers if not helper.done()])
        raise


@lru_cache(maxsize=1)
def _pool(_process: int) -> ThreadPoolExecutor:
    """The helpers of this process: a forked child has none of its parent's threads."""
    return ThreadPoolExecutor(max(os.cpu_count() or 1, 64), thread_name_prefix="gatv2")


@intrinsic
def next_chunk(_typing: Typing, chunks: Chunks) -> Index:
    """The number of the next chunk that no thread has taken yet."""

    def lower(context: Context, builder: Builder, sig: Signature, args: Values) -> Value:
        counter = builder.extract_value(args[0], 0)
        data = field_of(context, builder, chunks.types[0], counter, "data")
        return builder.atomic_rmw("add", data, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(chunks), lower


@inline
def first_row(ptr: Integers, chunk: Index, n_chunks: Index) -> Index:
    """Where a chunk starts in the rows of a CSR: chunks have equal numbers of edges and rows."""
    n_rows = ptr.size - 1
    work = (ptr[n_rows] + n_rows) * chunk // n_chunks
    low, high = 0, n_rows
    while low < high:
        middle = (low + high) // 2
        if ptr[middle] + middle < work:
            low = middle + 1
        else:
            high = middle
    return low
