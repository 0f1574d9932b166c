"""Which heads use an edge, and what is added to their scores.

What kernels know as `head_mask` is None if all heads use all edges, flags `[edges, heads]`, or a
`ScoreBias`, whose -inf is a flag that is not set. Numba compiles a kernel for each of the three, which
are told apart here alone: what there is none of costs nothing.
"""

import numpy as np
from numba import types

from gatv2.numba.arguments import (
    Block,
    EdgeList,
    Flags,
    Floats,
    HeadMask,
    Layout,
    Place,
    Plain,
    ScoreBias,
    Vector,
    VectorClasses,
)
from gatv2.numba.compile import inline, overload
from gatv2.numba.rows import AHEAD, weights_at
from gatv2.numba.simd import broadcast, load, prefetch, select, splat, store, sum_lanes


def as_head_mask(head_mask: Plain | Flags | None) -> HeadMask:
    """Name what is added to scores, if `head_mask` is that."""
    raise NotImplementedError("for Numba only")


def flags_of(head_mask: HeadMask | None) -> Flags | None:
    """The flags, if there are any."""
    raise NotImplementedError("for Numba only")


def has_unused(head_mask: HeadMask | None) -> bool:
    """Whether a head may not use an edge, of which then nothing is to be read, as it may be NaN."""
    raise NotImplementedError("for Numba only")


def add_bias(
    vectors: VectorClasses,
    head_mask: HeadMask | None,
    place: Place,
    edge_list: EdgeList,
    block: Block,
    scores: Floats,
    before: Vector,
    largest: Vector,
) -> Vector:
    """Add a bias to a block's scores, if there is one, and return the largest, `before` included.

    `largest` is the largest without a bias.
    """
    raise NotImplementedError("for Numba only")


def write_d_bias(
    vectors: VectorClasses,
    head_mask: HeadMask | None,
    layout: Layout,
    place: Place,
    edge_list: EdgeList,
    block: Block,
    weights: Floats,
) -> None:
    """Write the gradient of a bias, if there is one and somebody wants it: de of a block's edges."""
    raise NotImplementedError("for Numba only")


@overload(as_head_mask)
def _overload_as_head_mask(head_mask):  # type: ignore[no-untyped-def]
    if isinstance(head_mask, types.BaseTuple):
        return lambda head_mask: ScoreBias(*head_mask)
    return lambda head_mask: head_mask


@overload(flags_of)
def _overload_flags_of(head_mask):  # type: ignore[no-untyped-def]
    if isinstance(head_mask, types.BaseTuple):
        return lambda head_mask: None
    return lambda head_mask: head_mask


@overload(has_unused)
def _overload_has_unused(head_mask):  # type: ignore[no-untyped-def]
    if isinstance(head_mask, types.BaseTuple):
        return lambda head_mask: head_mask.removes
    is_there = not isinstance(head_mask, types.NoneType)
    return lambda head_mask: is_there


@overload(add_bias)
def _overload_add_bias(vectors, head_mask, place, edge_list, block, scores, before, largest):  # type: ignore[no-untyped-def]
    def add(vectors, head_mask, place, edge_list, block, scores, before, largest):  # type: ignore[no-untyped-def]
        return _add_bias(vectors, head_mask, place, edge_list, block, scores, before)

    def add_nothing(vectors, head_mask, place, edge_list, block, scores, before, largest):  # type: ignore[no-untyped-def]
        return largest

    return add if isinstance(head_mask, types.BaseTuple) else add_nothing


@overload(write_d_bias)
def _overload_write_d_bias(vectors, head_mask, layout, place, edge_list, block, weights):  # type: ignore[no-untyped-def]
    def write(vectors, head_mask, layout, place, edge_list, block, weights):  # type: ignore[no-untyped-def]
        _write_d_bias(vectors, head_mask, layout, place, edge_list, block, weights)

    def write_nothing(vectors, head_mask, layout, place, edge_list, block, weights):  # type: ignore[no-untyped-def]
        pass

    return write if isinstance(head_mask, types.BaseTuple) else write_nothing


@inline
def _add_bias(
    vectors: VectorClasses,
    bias: ScoreBias,
    place: Place,
    edge_list: EdgeList,
    block: Block,
    scores: Floats,
    largest: Vector,
) -> Vector:
    heads, lowest = vectors.heads, splat(vectors.heads, -np.inf)
    values, width, x_row = bias.values, bias.width, edge_list.x_row
    first, last, column = place.first_x % bias.n_rows, x_row.size - 1, block.group * heads.lanes
    for e in range(block.begin, block.end):
        prefetch(heads, values, (first + x_row[min(e + AHEAD, last)]) * width)
        at_edge, at = (first + x_row[e]) * width, (e - block.begin) * heads.lanes
        added = broadcast(heads, values, at_edge)
        if width > 1:
            added = load(heads, values, at_edge + column)
        s = load(heads, scores, at) + added
        s = select(added == lowest, lowest, s)  # whatever the score is
        largest = select(s > largest, s, largest)
        store(scores, at, s)
    return largest


@inline
def _write_d_bias(
    vectors: VectorClasses,
    bias: ScoreBias,
    layout: Layout,
    place: Place,
    edge_list: EdgeList,
    block: Block,
    weights: Floats,
) -> None:
    heads, first, group = vectors.heads, place.first_x, block.group
    d_bias, width, x_row = bias.gradient, bias.width, edge_list.x_row
    last, column = x_row.size - 1, group * heads.lanes
    if d_bias.size > 0:
        for e in range(block.begin, block.end):
            prefetch(heads, d_bias, (first + x_row[min(e + AHEAD, last)]) * width)
            at = weights_at(vectors, layout, place.first_edge + e, group) + heads.lanes
            de, at = load(heads, weights, at), (first + x_row[e]) * width
            if width > 1:
                store(d_bias, at + column, de)
            else:
                share = sum_lanes(de)
                d_bias[at] = share if group == 0 else d_bias[at] + share
