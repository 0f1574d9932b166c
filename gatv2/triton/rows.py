"""Which rows a program works on, and which edges: whole rows, or parts of those with many edges.

A row is a query (by query) or a key (by key). The list of edges is cut into windows of `split` edges. A
row that has more edges than a window is worked on in parts, one for each window that it meets: so a node
of many edges is the work of many programs, and what they leave is joined in order by another kernel.

As such a row is longer than a window, a window meets two of them at most: that of its first edge and
that of its last. So each window has two slots, and how many there are is known from the number of edges.
Slots come ahead of the rows, as what takes longest is to start first.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from gatv2.triton.arguments import Order, Problem


class Rows(NamedTuple):
    """The rows of a program, each `[rows]`."""

    row: tl.tensor
    first: tl.tensor
    """The row's first edge, and the end of its edges, whatever its part has."""
    end: tl.tensor
    start: tl.tensor
    """Where its edges, or those of the part, start."""
    stop: tl.tensor
    is_whole: tl.tensor
    """Whether it is a row, all of whose edges are worked on here."""
    is_part: tl.tensor
    """Whether it is a part of a row."""
    slot: tl.tensor
    """Where the part leaves what it has."""


class Tile(NamedTuple):
    """Some edges of each row, each `[edges * rows]`."""

    at: tl.tensor
    """Where the edge stands in this order."""
    number: tl.tensor
    """Where it stands by query."""
    query: tl.tensor
    key: tl.tensor
    is_used: tl.tensor
    """Whether it is there: rows are of different lengths."""


@triton.jit
def count_blocks(order: Order, shape: tl.constexpr) -> tl.tensor:
    """Blocks of rows, and of parts, of one feature set."""
    return order.n_slots // shape.rows + tl.cdiv(order.n_rows, shape.rows)


@triton.jit
def bounds(order: Order, row: tl.tensor, is_there: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """First edge of each row, and the end of its edges."""
    if order.ptr is None:
        first = row.to(tl.int64) * order.n_others
        end = first + tl.where(is_there, order.n_others, 0)
    else:
        first = tl.load(order.ptr + row, mask=is_there, other=0)
        end = tl.load(order.ptr + row + 1, mask=is_there, other=0)
    return first, end


@triton.jit
def rows_of(block: tl.tensor, order: Order, shape: tl.constexpr) -> Rows:
    """The rows that a program works on."""
    slot = block * shape.rows + tl.arange(0, shape.rows)
    row = slot - order.n_slots
    in_slots = row < 0
    if order.window_rows is not None:
        row = tl.where(in_slots, tl.load(order.window_rows + slot, mask=in_slots, other=0), row)
    is_there = row < order.n_rows
    first, end = bounds(order, row, is_there)
    if order.window_rows is None:  # no row can have so many edges
        start, stop, is_whole, is_part = first, end, is_there, in_slots
    else:
        window = slot.to(first.dtype) // 2 * shape.split
        is_long = end - first > shape.split
        is_whole = is_there & ~in_slots & ~is_long
        # the second slot is for a row that starts within the window
        is_part = is_there & in_slots & is_long & ((slot % 2 == 0) | (first > window))
        start = tl.where(is_part, tl.maximum(first, window), first)
        stop = tl.where(is_part, tl.minimum(end, window + shape.split), end)
        stop = tl.where(is_part | is_whole, stop, start)
    return Rows(row, first, end, start, stop, is_whole, is_part, slot)


@triton.jit
def longest(rows: Rows) -> tl.tensor:
    """Edges of the longest of a program's rows."""
    return tl.max(rows.stop - rows.start, axis=0)


@triton.jit
def tile_of(rows: Rows, begin: tl.tensor, problem: Problem, shape: tl.constexpr) -> Tile:
    """The next edges of each row, from its `begin`-th on."""
    order = problem.graph.order
    size: tl.constexpr = shape.edges * shape.rows
    # edges first: lanes of a warp are for the rows, and each of them has all edges of the tile
    at = rows.start[None, :] + begin + tl.arange(0, shape.edges)[:, None]
    is_used = tl.reshape(at < rows.stop[None, :], [size])
    row = tl.reshape(tl.broadcast_to(rows.row[None, :], [shape.edges, shape.rows]), [size])
    if order.other is None:
        other = tl.reshape(at - rows.first[None, :], [size])
        at = tl.reshape(at, [size])
        number = other * order.n_rows + row if shape.is_by_key else at
    else:
        at = tl.reshape(at, [size])
        other = tl.load(order.other + at, mask=is_used, other=0)
        number = at
        if order.number is not None:
            number = tl.load(order.number + at, mask=is_used, other=0)
    if shape.mask_heads == 1:
        is_used = tl.load(mask_of(problem) + number, mask=is_used, other=0).to(tl.int1)
    query, key = (other, row) if shape.is_by_key else (row, other)
    return Tile(at, number, query, key, is_used)


@triton.jit
def mask_of(problem: Problem) -> tl.tensor:
    """The mask of a feature set."""
    sizes = problem.graph.sizes
    return problem.graph.edges.mask + problem.copy % sizes.n_batches * sizes.mask_step


@triton.jit
def in_mask(tile: Tile, problem: Problem, shape: tl.constexpr) -> tl.tensor:
    """Which heads the mask lets use an edge, as `[edges, rows, 1 or heads, 1]`."""
    if shape.mask_heads <= 1:
        is_used = tl.reshape(tile.is_used, [shape.edges, shape.rows, 1, 1])
    else:
        head = tl.arange(0, shape.heads)
        at = tile.number.to(tl.int64)[:, None] * shape.n_heads + head[None, :]
        is_there = tile.is_used[:, None] & (head < shape.n_heads)[None, :]
        is_used = tl.load(mask_of(problem) + at, mask=is_there, other=0).to(tl.int1)
        is_used = tl.reshape(is_used, [shape.edges, shape.rows, shape.heads, 1])
    return is_used


@triton.jit
def feature_rows(
    number: tl.tensor, is_there: tl.tensor, step: tl.tensor, problem: Problem
) -> tl.tensor:
    """The row of each edge in what edges have, int64; `step` is between those of two feature sets."""
    row, edges = number.to(tl.int64), problem.graph.edges
    if edges.feature_row is not None:
        row = tl.load(edges.feature_row + row, mask=is_there, other=0).to(tl.int64)
    return row + problem.copy * step


@triton.jit
def multiplicity_of(tile: Tile, rows: Rows, order: Order, shape: tl.constexpr) -> tl.tensor:
    """How many edges before this one have the same ends: parallel edges are neighbours in a row."""
    size: tl.constexpr = shape.edges * shape.rows
    count = tl.full([size], 0, tl.int32)
    if order.other is not None:
        other = tile.query if shape.is_by_key else tile.key
        first = tl.broadcast_to(rows.first[None, :], [shape.edges, shape.rows])
        before = tile.at - tl.reshape(first, [size])
        is_same = tile.is_used
        while tl.max(is_same.to(tl.int32), axis=0) > 0:
            back = count + 1
            is_same &= back <= before
            is_same &= tl.load(order.other + tile.at - back, mask=is_same, other=-1) == other
            count += is_same.to(tl.int32)
    return count


@triton.jit
def count_parts(rows: Rows, shape: tl.constexpr) -> tl.tensor:
    """Of slots: the most parts that a row has whose first part one of them is."""
    n_parts = tl.cdiv(rows.end, shape.split) - rows.first // shape.split
    return tl.max(tl.where(is_first_part(rows), n_parts, 0), axis=0)


@triton.jit
def is_first_part(rows: Rows) -> tl.tensor:
    """Of slots: those that hold the first part of a row, whose parts are joined there."""
    return rows.is_part & (rows.start == rows.first)


@triton.jit
def slot_of_part(rows: Rows, part: tl.tensor, shape: tl.constexpr) -> tuple[tl.tensor, tl.tensor]:
    """Of first parts: the slot of the row's `part`-th part, and whether there is one."""
    window = rows.first // shape.split + part
    slot = tl.where(part == 0, rows.slot, 2 * window)
    return slot, is_first_part(rows) & (window * shape.split < rows.end)
