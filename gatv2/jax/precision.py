"""Which dtypes are computed in."""

import jax.numpy as jnp
from jax.typing import DTypeLike

from gatv2.jax.arrays import DType


def computed_in(dtype: DTypeLike) -> DType:
    """The dtype of scores and sums: less than float32 is brought to it."""
    return jnp.dtype("float64" if dtype == "float64" else "float32")
