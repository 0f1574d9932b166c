"""Which edges a program works on: those of a row, or a part of a row that has many.

A row is a query (edges by query) or a key (edges by key). The list of edges is cut into windows of
`SPLIT` edges. A row with more edges than that is worked on in parts, one for each window that it meets,
and joined in order: so a node of many edges is the work of many programs. As such a row is longer than a
window, a window meets two of them at most: that of its first edge and that of its last. So each window
has two slots for parts, and how many there are is known from the number of edges.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.experimental.pallas import triton

Sums = TypeVar("Sums")
Reference = Any
"""An array at the call, a reference to it in a kernel; None where there is none."""

SPLIT = 1024


class Order(NamedTuple):
    """The edges, by query or by key."""

    ptr: Reference
    """The edges of row r are `ptr[r]:ptr[r + 1]`."""
    other: Reference
    """`[n_edges]`: the node at the edge's other end."""
    number: Reference
    """`[n_edges]`: where the edge stands by query; None if that is here."""
    feature_row: Reference
    """`[n_edges]`: the row of its features and of its bias; None if it has neither."""
    multiplicity: Reference
    """`[n_edges]`: how many edges before it have the same ends; None without dropout."""
    window_rows: Reference
    """`[2 * windows]`: rows of the first and the last edge of each window; None if there is one."""


class Part(NamedTuple):
    """A row, or a part of it: its edges are `start:stop`."""

    row: jax.Array
    start: jax.Array
    stop: jax.Array


def window_rows_of(ptr: jax.Array, n_edges: int, split: int) -> jax.Array | None:
    """Which rows windows of edges meet, as `Order` has them."""
    if n_edges <= split:  # no row can have more
        return None
    first = jnp.arange(0, n_edges, split)
    last = jnp.minimum(first + split, n_edges) - 1
    edges = jnp.stack((first, last), axis=1).reshape(-1).astype(ptr.dtype)
    rows = jnp.searchsorted(ptr, edges, side="right") - 1
    return rows.astype(jnp.int32)


def bounds(order: Order, row: jax.Array) -> tuple[jax.Array, jax.Array]:
    """First edge of a row, and the end of its edges; padding behind all edges is the row of none."""
    last = order.ptr.shape[0] - 1
    return (triton.load(order.ptr.at[jnp.minimum(row + i, last)]) for i in (0, 1))  # type: ignore[return-value]


def part_in(slot: jax.Array, order: Order, split: int) -> Part:
    """The part of a row that belongs to a slot; of no edges if there is none."""
    row = triton.load(order.window_rows.at[slot])
    first, end = bounds(order, row)
    window = (slot // 2 * split).astype(first.dtype)
    # the second slot is for a row that starts within the window
    is_part = (end - first > split) & ((slot % 2 == 0) | (first > window))
    start = jnp.maximum(first, window)
    return Part(row, start, jnp.where(is_part, jnp.minimum(end, window + split), start))


def whole(row: jax.Array, order: Order, split: int) -> Part:
    """A row with all its edges; with none if they are worked on in parts."""
    first, end = bounds(order, row)
    is_whole = (order.window_rows is None) | (end - first <= split)
    return Part(row, first, jnp.where(is_whole, end, first))


def with_parts(
    part: Part, order: Order, sums: Sums, join: Callable[[Sums, jax.Array], Sums], split: int
) -> Sums:
    """Join what the parts of a row have left, in order: `join(sums, slot)` for one after another."""
    if order.window_rows is None:
        return sums
    first, end = bounds(order, part.row)
    window = first // split
    n_parts = jnp.where(end - first > split, (end - 1) // split - window + 1, 0)

    def step(i: jax.Array, sums: Sums) -> Sums:
        is_second = (i == 0) & (first > window * split)
        return join(sums, 2 * (window + i) + is_second)

    joined: Sums = jax.lax.fori_loop(0, n_parts, step, sums)
    return joined
