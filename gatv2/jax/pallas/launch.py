"""A kernel on a number of programs, and the types of what it writes."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
from jax.experimental import pallas
from jax.experimental.pallas import triton

from gatv2.jax.mesh import struct_like, vary_alike
from gatv2.jax.pallas.tiles import Shape

Arrays = tuple[jax.Array, ...]
Types = Sequence[jax.ShapeDtypeStruct]

CHUNKS = 4096
"""Programs that share rows or edges, at most; more than run at once on any GPU."""


class Run(Protocol):
    """Runs a number of programs, given what they read and the types of what they write."""

    def __call__(  # noqa: D102
        self, program: Callable[..., None], n_programs: int, inputs: tuple[Any, ...], results: Types
    ) -> Arrays: ...


def like(array: jax.Array) -> jax.ShapeDtypeStruct:
    """The type of an array."""
    return jax.ShapeDtypeStruct(array.shape, array.dtype)


def heads_of(n: int, shape: Shape) -> jax.ShapeDtypeStruct:
    """The type of numbers of heads, in the dtype that is computed in."""
    return jax.ShapeDtypeStruct((n, shape.heads), shape.dtype)


def run_by_triton(
    program: Callable[..., None],
    n_programs: int,
    inputs: tuple[Any, ...],
    results: Types,
    *,
    n_warps: int,
    interpret: bool,
) -> Arrays:
    """Run `program(number, *inputs, results)` for each number."""
    leaves, structure = jax.tree.flatten(inputs)
    arrays = vary_alike(*leaves)

    def kernel(*references: Any) -> None:
        read = jax.tree.unflatten(structure, references[: len(leaves)])
        program(pallas.program_id(0), *read, references[len(leaves) :])

    call = pallas.pallas_call(
        kernel,
        out_shape=[struct_like(jax.typeof(arrays[0]), x.shape, x.dtype) for x in results],
        grid=(n_programs,),
        compiler_params=triton.CompilerParams(num_warps=n_warps, num_stages=1),
        interpret=interpret,
    )
    return tuple(call(*arrays))
