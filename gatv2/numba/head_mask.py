"""Which heads use an edge, and what is added to their scores.

What kernels know as `head_mask` is None if all heads use all edges, flags `[edges, heads]`, or a
`ScoreBias`, whose -inf is a flag that is not set. Numba compiles a kernel for each of the three, which
are told apart here alone: what there is none of costs nothing.
"""

import numpy as np
from numba import types

from gatv2.numba.arguments import (
    Flags,
    Floats,
    HeadMask,
    Index,
    Integers,
    Layout,
    Place,
    Plain,
    ScoreBias,
    Vector,
    VectorClass,
    VectorClasses,
)
from gatv2.numba.compile import inline, overload
from gatv2.numba.rows import AHEAD, heads_at
from gatv2.numba.simd import (
    broadcast,
    load,
    load_mask,
    prefetch,
    select,
    splat,
    store,
    sum_lanes,
)


def as_head_mask(head_mask: Plain | Flags | None) -> HeadMask:
    """Name what is added to scores, if `head_mask` is that."""
    raise NotImplementedError("for Numba only")


def flags_of(head_mask: HeadMask) -> Flags | None:
    """The flags, if there are any."""
    raise NotImplementedError("for Numba only")


def bias_of(head_mask: HeadMask) -> tuple[Floats | None, Floats | None, Index, Index]:
    """Values and gradient of a bias, or None; elements of an edge's row, and the number of rows."""
    raise NotImplementedError("for Numba only")


def has_unused(head_mask: HeadMask | None) -> bool:
    """Whether a head may not use an edge, of which then nothing is to be read, as it may be NaN."""
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


@overload(bias_of)
def _overload_bias_of(head_mask):  # type: ignore[no-untyped-def]
    if isinstance(head_mask, types.BaseTuple):
        return lambda head_mask: (
            head_mask.values,
            head_mask.gradient,
            head_mask.width,
            head_mask.n_rows,
        )
    return lambda head_mask: (None, None, 1, 1)


@overload(has_unused)
def _overload_has_unused(head_mask):  # type: ignore[no-untyped-def]
    if isinstance(head_mask, types.BaseTuple):
        return lambda head_mask: head_mask.removes
    is_there = not isinstance(head_mask, types.NoneType)
    return lambda head_mask: is_there


@inline
def masked(
    vectors: VectorClasses,
    layout: Layout,
    flags: Flags | None,
    e: Index,
    group: Index,
    scores: Vector,
) -> Vector:
    """The scores of edge `e`, minus infinity for the heads that do not use it."""
    if flags is None:
        return scores
    used = load_mask(vectors.heads, flags, heads_at(vectors, layout, e, group))
    return select(used, scores, splat(vectors.heads, -np.inf))


@inline
def biased(
    heads: VectorClass,
    values: Floats | None,
    width: Index,
    first_row: Index,
    x_row: Integers,
    e: Index,
    group: Index,
    scores: Vector,
) -> Vector:
    """The scores of edge `e` and its bias; where that is minus infinity, so is the sum."""
    if values is None:
        return scores
    ahead = (first_row + x_row[min(e + AHEAD, x_row.size - 1)]) * width
    prefetch(heads, values, ahead + group * heads.lanes)
    at = (first_row + x_row[e]) * width
    bias = broadcast(heads, values, at)
    if width > 1:
        bias = load(heads, values, at + group * heads.lanes)
    lowest = splat(heads, -np.inf)
    return select(bias == lowest, lowest, scores + bias)


@inline
def write_d_bias(
    heads: VectorClass,
    d_bias: Floats | None,
    width: Index,
    place: Place,
    x_row: Integers,
    e: Index,
    group: Index,
    de: Vector,
) -> None:
    """Write the gradient of the bias of edge `e`: de, or the sum of its heads."""
    if d_bias is None:
        return
    if d_bias.size > 0:
        ahead = (place.first_x + x_row[min(e + AHEAD, x_row.size - 1)]) * width
        prefetch(heads, d_bias, ahead + group * heads.lanes)
        at = (place.first_x + x_row[e]) * width
        if width > 1:
            store(d_bias, at + group * heads.lanes, de)
        else:
            share = sum_lanes(de)
            d_bias[at] = share if group == 0 else d_bias[at] + share
