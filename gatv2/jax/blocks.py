"""Long axes in blocks, one after another, so that nothing as long is held with all features.

Each block is computed again for the backward pass. A problem that is small enough has one block.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp

Block = TypeVar("Block")
Result = TypeVar("Result")
Function = TypeVar("Function", bound=Callable[..., Any])

_MOST = 16
_SMALLEST = 1 << 18  # elements of a block


def compiled(static: str) -> Callable[[Function], Function]:
    """A decorator of a function that works in blocks, with the name of its static argument.

    A loop over blocks is a program of its own, and outside of `jit` a new one in each call.
    """

    def decorate(function: Function) -> Function:
        return cast(Function, jax.jit(function, static_argnames=static))

    return decorate


def count_blocks(length: object, elements: object) -> int:
    """Number of blocks of an axis with `elements` numbers at each place."""
    if not (isinstance(length, int) and isinstance(elements, int)):
        return 1  # of a program that is exported for any size
    return max(min(length * elements // _SMALLEST, _MOST, length), 1)


def into_blocks(values: jax.Array, axis: int, n_blocks: int, fill: int = 0) -> jax.Array:
    """Cut an axis, given from behind, into blocks, which become the first axis; padded with `fill`."""
    length = values.shape[axis]
    if n_blocks == 1:
        return values[None]
    size = -(-length // n_blocks)
    padding = [(0, 0)] * values.ndim
    padding[axis] = (0, n_blocks * size - length)
    padded = jnp.pad(values, padding, constant_values=fill)
    shape = (*values.shape[:axis], n_blocks, size, *padded.shape[values.ndim + axis + 1 :])
    return jnp.moveaxis(padded.reshape(shape), axis - 1, 0)


def from_blocks(blocks: jax.Array, axis: int, length: int) -> jax.Array:
    """Undo `into_blocks`."""
    if blocks.shape[0] == 1:
        return blocks[0]
    joined = jnp.moveaxis(blocks, 0, axis - 1)
    at = joined.ndim + axis
    shape = (
        *joined.shape[: at - 1],
        joined.shape[at - 1] * joined.shape[at],
        *joined.shape[at + 1 :],
    )
    return jax.lax.slice_in_dim(joined.reshape(shape), 0, length, axis=at - 1)


def map_blocks(function: Callable[[Block], Result], blocks: Block) -> Result:
    """`function` of each block, stacked; `blocks` is a pytree of arrays with blocks in front."""
    if jax.tree.leaves(blocks)[0].shape[0] == 1:
        only: Block = jax.tree.map(lambda x: x[0], blocks)
        results: Result = jax.tree.map(lambda x: x[None], function(only))
    else:
        results = jax.lax.map(jax.checkpoint(function), blocks)
    return results


def sum_blocks(add: Callable[[Result, Block], Result], totals: Result, blocks: Block) -> Result:
    """`add(totals, block)` for one block after another."""
    first, rest = (
        jax.tree.map(lambda x, part=part: x[part], blocks) for part in (0, slice(1, None))
    )
    totals = add(totals, first)  # has the type of a sum, also where that varies over devices
    if not jax.tree.leaves(rest)[0].shape[0]:
        return totals
    step = jax.checkpoint(add)
    sums: Result
    sums, _ = jax.lax.scan(lambda totals, block: (step(totals, block), None), totals, rest)
    return sums


def lead(values: jax.Array, ndim: int) -> jax.Array:
    """`values` with as many dimensions, new ones in front: no rank is promoted unseen."""
    return values.reshape((1,) * (ndim - values.ndim) + values.shape)
