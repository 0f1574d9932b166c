"""The kernels: a program for each row and, ahead of them, one for each part of rows of many edges."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.experimental import pallas
from jax.experimental.pallas import triton

from gatv2.jax.mesh import struct_like, vary_alike
from gatv2.jax.pallas import tiles
from gatv2.jax.pallas.passes import (
    FORWARD,
    OVER_KEYS,
    OVER_QUERIES,
    Arguments,
    Pass,
    empty,
    finite,
    sum_part,
    sum_rows,
)
from gatv2.jax.pallas.tiles import Shape

Arrays = tuple[jax.Array, ...]
Types = Sequence[jax.ShapeDtypeStruct]

CHUNKS = 4096
"""Shares of d_attn, at most; more than programs that run at once on any GPU."""


class Run(Protocol):
    """Runs a number of programs, given what they read and the types of what they write."""

    def __call__(  # noqa: D102
        self, program: Callable[..., None], n_programs: int, inputs: tuple[Any, ...], results: Types
    ) -> Arrays: ...


def attend(arguments: Arguments, shape: Shape, run: Run) -> Arrays:
    """(out `[n_queries, heads * hidden]`, log-sum-exp `[n_queries, heads]`)."""

    def program(row: jax.Array, arguments: Arguments, slots: Any, results: Any) -> None:
        sums = sum_rows(FORWARD, row, arguments, slots, shape)
        is_empty = sums.total == 0
        total = jnp.where(is_empty, 1, sums.total)
        out, lse = results
        tiles.store(out, row, sums.values / total[:, None])
        lse_of_row = jnp.where(is_empty, -jnp.inf, finite(sums.largest) + jnp.log(total))
        tiles.store(lse, row, lse_of_row)

    query = arguments.nodes.query
    results = [like(query), heads_of(query.shape[0], shape)]
    slots = sum_parts(FORWARD, arguments, shape, run)
    return run(program, query.shape[0], (arguments, slots), results)


def differentiate_queries(arguments: Arguments, shape: Shape, run: Run) -> Arrays:
    """d_query, and what the pass over keys reads: log-sum-exp, 1 / the sum of p, and delta."""

    def program(row: jax.Array, arguments: Arguments, slots: Any, results: Any) -> None:
        cotangents = arguments.cotangents
        assert cotangents is not None
        sums = sum_rows(OVER_QUERIES, row, arguments, slots, shape)
        inverse = jnp.where(sums.total == 0, 0, 1 / jnp.where(sums.total == 0, 1, sums.total))
        delta = sums.total_d * inverse
        if cotangents.d_lse is not None:
            delta -= tiles.load(cotangents.d_lse, row, shape.heads)
        attn = tiles.load_vector(arguments.nodes.attn, shape)
        scaled = (sums.d_slopes - delta[:, None] * sums.slopes) * inverse[:, None]
        lse = finite(tiles.load(cotangents.lse, row, shape.heads))
        for result, values in zip(results, (attn * scaled, lse, inverse, delta), strict=True):
            tiles.store(result, row, values)

    query = arguments.nodes.query
    results = [like(query), *[heads_of(query.shape[0], shape)] * 3]
    slots = sum_parts(OVER_QUERIES, arguments, shape, run)
    return run(program, query.shape[0], (arguments, slots), results)


def differentiate_keys(arguments: Arguments, shape: Shape, run: Run) -> Arrays:
    """d_key, and shares of d_attn, `[shares, heads * hidden]`: not one for each key."""
    key = arguments.nodes.key
    n_keys, n_chunks = key.shape[0], min(key.shape[0], CHUNKS)

    def program(chunk: jax.Array, arguments: Arguments, slots: Any, results: Any) -> None:
        d_keys, shares = results

        def add_row(i: jax.Array, d_attn: jax.Array) -> jax.Array:
            row = chunk + i * n_chunks
            sums = sum_rows(OVER_KEYS, row, arguments, slots, shape)
            tiles.store(d_keys, row, sums.d_key)
            total: jax.Array = d_attn + sums.d_attn
            return total

        n_rows = (n_keys - chunk + n_chunks - 1) // n_chunks
        tiles.store(shares, chunk, jax.lax.fori_loop(0, n_rows, add_row, empty(shape)[0]))

    shares = jax.ShapeDtypeStruct((n_chunks, key.shape[1]), shape.dtype)
    slots = sum_parts(OVER_KEYS, arguments, shape, run)
    return run(program, n_chunks, (arguments, slots), [like(key), shares])


def sum_parts(way: Pass, arguments: Arguments, shape: Shape, run: Run) -> Arrays | None:
    """What a pass sums over each part of a row; None if no row has parts."""
    if arguments.order.window_rows is None:
        return None

    def program(slot: jax.Array, arguments: Arguments, results: Any) -> None:
        sums = sum_part(way, slot, arguments, shape)
        for result, values in zip(results, sums, strict=True):
            tiles.store(result, slot, values)

    n_slots = arguments.order.window_rows.shape[0]
    results = [
        jax.ShapeDtypeStruct((n_slots, x.size), x.dtype)
        for x in jax.eval_shape(lambda: way.nothing(shape))
    ]
    return run(program, n_slots, (arguments,), results)


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
