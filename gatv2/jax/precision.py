"""Which dtypes are computed in. Imports nothing of gatv2."""

from typing import Any

import jax.numpy as jnp


def computed_in(dtype: Any) -> Any:
    """The dtype of scores and sums: less than float32 is brought to it."""
    return jnp.dtype("float64" if dtype == "float64" else "float32")
