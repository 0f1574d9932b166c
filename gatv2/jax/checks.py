"""Do features and attention vectors fit one another, and is static what must be static?"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np


def as_features(**arrays: object) -> tuple[jax.Array, ...]:
    """Arrays of JAX or NumPy as arrays of JAX.

    Raises:
        TypeError: something else.
    """
    return tuple(as_array(name, array) for name, array in arrays.items())


def as_array(name: str, array: object) -> jax.Array:
    """An array of JAX or NumPy as an array of JAX.

    Raises:
        TypeError: something else.
    """
    if not isinstance(array, jax.Array | np.ndarray):
        raise TypeError(
            f"`{name}` must be an array of JAX or NumPy; got {type(array).__name__}: convert it with "
            "`jnp.asarray`, or `gatv2.jax.as_jax` if it is one of PyTorch"
        )
    return jnp.asarray(array)


def check_projections(query: jax.Array, key: jax.Array, **attention_vectors: jax.Array) -> None:
    """Raise unless features of queries and keys, and vectors that score their pairs, fit one another.

    Raises:
        TypeError: not one floating-point dtype.
        ValueError: shapes do not fit.
    """
    arrays = {"query": query, "key": key, **attention_vectors}
    for array in arrays.values():
        if not jnp.issubdtype(array.dtype, jnp.floating) or array.dtype != query.dtype:
            dtypes = ", ".join(f"{name}: {array.dtype}" for name, array in arrays.items())
            raise TypeError(f"{', '.join(arrays)} must have one floating-point dtype; got {dtypes}")
    if query.ndim < 3:
        raise ValueError(
            f"`query` must have shape (*batch, n_queries, n_heads, n_hidden); got {query.shape}"
        )
    if key.ndim != query.ndim or (key.shape[:-3], key.shape[-2:]) != (
        query.shape[:-3],
        query.shape[-2:],
    ):
        raise ValueError(
            "`key` must have the shape of `query` but for the number of nodes; "
            f"got {key.shape} and {query.shape}"
        )
    for name, vector in attention_vectors.items():
        if vector.shape != query.shape[-2:]:
            raise ValueError(
                f"`{name}` must have shape (n_heads, n_hidden)={query.shape[-2:]}; got {vector.shape}"
            )


def check_params(params: object, call: str) -> None:
    """Raise a TypeError, with the call that was meant, unless parameters are a dict."""
    if not isinstance(params, Mapping):
        raise TypeError(
            f"`params` must be a dict of arrays by their names; got {type(params).__name__}: "
            f"call `{call}` with what `init` draws"
        )


def check_static(**options: object) -> None:
    """Raise a TypeError for an option that is traced, and whose value must be known."""
    for name, value in options.items():
        if isinstance(value, jax.core.Tracer):
            raise TypeError(
                f"`{name}` must be known when a function is traced; got a traced array: make it a "
                f"static argument, `jax.jit(..., static_argnames='{name}')`, or a constant"
            )
