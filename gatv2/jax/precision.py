"""Which dtypes are computed in."""

from typing import TypeVar

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from gatv2.jax.arrays import DType

Arrays = TypeVar("Arrays")
"""A pytree of arrays."""


def computed_in(dtype: DTypeLike) -> DType:
    """The dtype of scores and sums: less than float32 is brought to it."""
    return jnp.dtype("float64" if dtype == "float64" else "float32")


def widened(arrays: Arrays) -> Arrays:
    """The same in the dtype that is computed in, whatever is a floating-point number.

    What is computed of it has a gradient that is summed in that dtype too, and rounded once.

    Example:
        >>> [x.dtype.name for x in widened([jnp.ones(2, "bfloat16"), jnp.ones(2, bool)])]
        ['float32', 'bool']
    """

    def wide(array: jax.Array) -> jax.Array:
        is_number = jnp.issubdtype(array.dtype, jnp.floating)
        return array.astype(computed_in(array.dtype)) if is_number else array

    results: Arrays = jax.tree.map(wide, arrays)
    return results
