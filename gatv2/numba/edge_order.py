"""Numbers that a caller gives of edges, brought to the order of the list of edges, and back.

A kernel that looked up each where it reads the edge would wait for memory, forward and backward, as
features of nodes have pushed them out of the cache. A pass that does nothing else does not wait. It is
no faster for rows of half a cache line or more, so those are looked up.
"""

from gatv2.numba.arguments import Floats, Integers, Truth
from gatv2.numba.compile import kernel
from gatv2.numba.memory import Array, empty
from gatv2.numba.team import share_out
from gatv2.numba.threads import Chunks, count_chunks, next_chunk, run_chunks


@kernel
def is_identity(edge_id: Integers) -> Truth:
    """Whether edges are listed as the caller gave them, so that there is nothing to bring anywhere."""
    e = 0
    while e < edge_id.size and edge_id[e] == e:
        e += 1
    return e == edge_id.size


def moved(numbers: Array, edge_id: Array, n_threads: int, *, goes_back: bool) -> Array:
    """Numbers in the order of the list of edges, or if it `goes_back` such ones in the caller's order.

    Args:
        numbers: one of each edge, of one feature set after another, flat.
        edge_id: the caller's number of each edge of the list.
        n_threads: at most so many work.
        goes_back: which way.
    """
    out = empty(numbers.shape, numbers.dtype)
    run_chunks(
        _move,
        n_threads,
        count_chunks(edge_id.size),
        numbers,
        edge_id,
        goes_back,
        out,
        n_copies=numbers.size // max(edge_id.size, 1),
    )
    return out


@kernel
def _move(
    chunks: Chunks, numbers: Floats, edge_id: Integers, goes_back: Truth, out: Floats
) -> None:
    share_out(chunks)
    n_edges = edge_id.size
    chunk = next_chunk(chunks)
    while chunk < chunks[1]:
        first, part = chunk // chunks[2] * n_edges, chunk % chunks[2]
        for e in range(n_edges * part // chunks[2], n_edges * (part + 1) // chunks[2]):
            if goes_back:
                out[first + edge_id[e]] = numbers[first + e]
            else:
                out[first + e] = numbers[first + edge_id[e]]
        chunk = next_chunk(chunks)
