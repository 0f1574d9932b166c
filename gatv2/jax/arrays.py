"""Arrays of NumPy, whose values are known, and of JAX, whose values may be traced."""

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import jax
import numpy as np

from gatv2.numba.memory import Array as NumPyArray

if TYPE_CHECKING:
    import torch

__all__ = [
    "ArrayLike",
    "DType",
    "NumPyArray",
    "check_width",
    "computed_where",
    "is_concrete",
    "on_device",
]

ArrayLike = jax.Array | NumPyArray
DType = np.dtype[np.generic]


def is_concrete(array: object) -> bool:
    """Whether an array holds values of its own, and is not traced by a transformation."""
    return not isinstance(array, jax.core.Tracer)


def computed_where(*arrays: object) -> AbstractContextManager[None]:
    """A context for what follows from arrays, which is known there where all of them are.

    Otherwise every operation of JAX is traced where a program is, also of what it closes over.
    """
    is_known = all(map(is_concrete, arrays))
    return jax.ensure_compile_time_eval() if is_known else nullcontext()


def on_device(values: ArrayLike) -> jax.Array:
    """An array of NumPy as a JAX array, which shares its memory where it can; a traced one as it is.

    Raises:
        TypeError: the dtype has 64 bits and JAX does not have them enabled.
    """
    if isinstance(values, jax.Array):
        return values
    check_width(values.dtype, "convert the values, `.float()` or `.int()`")
    with jax.ensure_compile_time_eval():  # what is known stays known where a program is traced
        # unlike DLPack, this does not tie the array to a device: others may join it on theirs
        array: jax.Array = jax.device_put(np.asarray(values, order="C"))
    return array


def check_width(dtype: "DType | torch.dtype", instead: str) -> None:
    """Raise a TypeError, with what else can be done, for 64 bits if JAX does not have them enabled."""
    if dtype.itemsize == 8 and not jax.config.jax_enable_x64:  # type: ignore[attr-defined]
        raise TypeError(
            f"JAX would cut {dtype} to 32 bits: enable 64 bits with "
            f"`jax.config.update('jax_enable_x64', True)`, or {instead}"
        )
