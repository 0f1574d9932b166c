"""Which arguments `vmap` maps over: a primitive says it, level by level.

An argument that is mapped at a level has the axis of that level in front of those of the levels below.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
from jax.core import ShapedArray

Result = TypeVar("Result")

Mapped = tuple[tuple[bool, ...], ...]
"""For each `vmap`, the innermost first: which arguments it maps over, on their first axis."""


def mapped_sizes(mapped: Mapped, avals: Sequence[ShapedArray]) -> tuple[int, ...]:
    """The sizes of the axes that `vmap` added, the outermost first."""
    sizes = []
    for level in reversed(range(len(mapped))):
        i = mapped[level].index(True)
        place = sum(outer[i] for outer in mapped[level + 1 :])
        sizes.append(avals[i].shape[place])
    return tuple(sizes)


def shape_of(mapped: Mapped, avals: Sequence[ShapedArray], i: int) -> tuple[int, ...]:
    """The shape of an argument without the axes that `vmap` added."""
    shape: tuple[int, ...] = avals[i].shape[sum(level[i] for level in mapped) :]
    return shape


def summed(value: jax.Array, is_mapped: list[bool]) -> jax.Array:
    """The sum over the axes that `vmap` added, but those of an argument that is mapped there."""
    axes = [i for i, mapped in enumerate(reversed(is_mapped)) if not mapped]
    return value.sum(axes) if axes else value


def vmapped(function: Callable[..., Result], mapped: Mapped) -> Callable[..., Result]:
    """The function, mapped over the axes that `vmap` added, the innermost first."""
    for level in mapped:
        function = jax.vmap(function, in_axes=tuple(0 if one else None for one in level))
    return function
