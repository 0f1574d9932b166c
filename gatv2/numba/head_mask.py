"""Which heads use an edge, and what is added to their scores.

What kernels know as `head_mask` is None if all heads use all edges, flags `[edges, heads]`, or a
`ScoreBias`, whose -inf is a flag that is not set. Numba compiles a kernel for each of the three, which
are told apart here alone: what there is none of costs nothing.
"""

import numpy as np
from numba import types

from gatv2.numba.arguments import (
    BiasRows,
    Flags,
    Floats,
    HeadMask,
    Index,
    Integers,
    Place,
    Plain,
    ScoreBias,
    Vector,
    VectorClass,
)
from gatv2.numba.compile import inline, overload
from gatv2.numba.rows import AHEAD
from gatv2.numba.simd import broadcast, element, load, prefetch, select, splat, store, sum_lanes


def as_head_mask(head_mask: Plain | Flags | None) -> HeadMask:
    """Name what is added to scores, if `head_mask` is that."""
    raise NotImplementedError("for Numba only")


def flags_of(head_mask: HeadMask | None) -> Flags | None:
    """The flags, if there are any."""
    raise NotImplementedError("for Numba only")


def has_unused(head_mask: HeadMask | None) -> bool:
    """Whether a head may not use an edge, of which then nothing is to be read, as it may be NaN."""
    raise NotImplementedError("for Numba only")


def bias_of(head_mask: HeadMask | None, place: Place) -> tuple[Floats | None, BiasRows]:
    """What is added to the scores of a query's edges, or None, and where its rows are.

    Taken out of `head_mask` before a loop over edges, as `gatv2.numba.scores` says of arrays.
    """
    raise NotImplementedError("for Numba only")


def gradient_of(head_mask: HeadMask | None, place: Place) -> tuple[Floats | None, BiasRows]:
    """The gradient of what is added, empty if nobody wants it, or None, and where its rows are."""
    raise NotImplementedError("for Numba only")


@inline
def add_bias(
    heads: VectorClass,
    bias: Floats | None,
    rows: BiasRows,
    x_row: Integers,
    e: Index,
    column: Index,
    scores: Vector,
) -> Vector:
    """The scores of edge `e`, of the heads from `column` on, and their bias, if there is one."""
    if bias is None:
        return scores
    at, lowest = _bias_at(heads, bias, rows, x_row, e), splat(heads, -np.inf)
    added = broadcast(heads, bias, at)
    if rows.width > 1:
        added = load(heads, bias, at + column)
    return select(added == lowest, lowest, scores + added)  # whatever the score is


@inline
def write_d_bias(
    d_bias: Floats | None, rows: BiasRows, x_row: Integers, e: Index, column: Index, de: Vector
) -> None:
    """Write the gradient of the bias of edge `e`, for the heads from `column` on, if it is wanted."""
    if d_bias is None:
        return
    if d_bias.size > 0:
        at = _bias_at(de, d_bias, rows, x_row, e)
        if rows.width > 1:
            store(d_bias, at + column, de)
        else:
            share = sum_lanes(de)
            d_bias[at] = share if column == 0 else d_bias[at] + share


@inline
def _bias_at(
    heads: VectorClass | Vector, array: Floats, rows: BiasRows, x_row: Integers, e: Index
) -> Index:
    """Where the row of edge `e` starts; one that will be looked up is asked for ahead."""
    if rows.is_listed:
        return (rows.first + e) * rows.width
    ahead = element(x_row, min(e + AHEAD, x_row.size - 1))
    prefetch(heads, array, (rows.first + ahead) * rows.width)
    return (rows.first + element(x_row, e)) * rows.width


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


@overload(bias_of)
def _overload_bias_of(head_mask, place):  # type: ignore[no-untyped-def]
    def of_edges(head_mask, place):  # type: ignore[no-untyped-def]
        first = place.first_x % head_mask.n_rows
        return head_mask.values, BiasRows(first, head_mask.width, head_mask.is_listed)

    return of_edges if isinstance(head_mask, types.BaseTuple) else _no_bias


@overload(gradient_of)
def _overload_gradient_of(head_mask, place):  # type: ignore[no-untyped-def]
    def of_edges(head_mask, place):  # type: ignore[no-untyped-def]
        return head_mask.gradient, BiasRows(place.first_x, head_mask.width, head_mask.is_listed)

    return of_edges if isinstance(head_mask, types.BaseTuple) else _no_bias


def _no_bias(head_mask, place):  # type: ignore[no-untyped-def]
    return None, BiasRows(0, 0, True)
