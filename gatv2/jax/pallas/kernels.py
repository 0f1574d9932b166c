"""The kernels: a program for each row and, ahead of them, one for each part of rows of many edges."""

from typing import Any

import jax
import jax.numpy as jnp

from gatv2.jax.pallas import tiles
from gatv2.jax.pallas.launch import CHUNKS, Arrays, Run, heads_of, like
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


def attend(arguments: Arguments, shape: Shape, run: Run, *, with_alpha: bool) -> Arrays:
    """(out `[n_queries, heads * hidden]`, log-sum-exp `[n_queries, heads]`).

    With alpha also what its pass reads: the largest score and 1 / the sum of p, `[n_queries, heads]`.
    """

    def program(row: jax.Array, arguments: Arguments, slots: Any, results: Any) -> None:
        sums = sum_rows(FORWARD, row, arguments, slots, shape)
        is_empty = sums.total == 0
        total = jnp.where(is_empty, 1, sums.total)
        largest = finite(sums.largest)
        lse = jnp.where(is_empty, -jnp.inf, largest + jnp.log(total))
        values = (sums.values / total[:, None], lse, largest, 1 / total)
        for result, value in zip(results, values, strict=False):
            tiles.store(result, row, value)

    query = arguments.features.query
    results = [like(query), *[heads_of(query.shape[0], shape)] * (3 if with_alpha else 1)]
    slots = sum_parts(FORWARD, arguments, shape, run)
    return run(program, query.shape[0], (arguments, slots), results)


def differentiate_queries(arguments: Arguments, shape: Shape, run: Run) -> Arrays:
    """d_query, and the `Statistics` that other passes read: log-sum-exp, 1 / the sum of p, and delta."""

    def program(row: jax.Array, arguments: Arguments, slots: Any, results: Any) -> None:
        features, _, _, cotangents, statistics = arguments
        sums = sum_rows(OVER_QUERIES, row, arguments, slots, shape)
        inverse = jnp.where(sums.total == 0, 0, 1 / jnp.where(sums.total == 0, 1, sums.total))
        delta = sums.total_d * inverse
        if cotangents.d_lse is not None:
            delta -= tiles.load(cotangents.d_lse, row, shape.heads)
        attn = tiles.load_vector(features.attn, shape)
        scaled = (sums.d_slopes - delta[:, None] * sums.slopes) * inverse[:, None]
        lse = finite(tiles.load(statistics.lse, row, shape.heads))
        for result, values in zip(results, (attn * scaled, lse, inverse, delta), strict=True):
            tiles.store(result, row, values)

    query = arguments.features.query
    results = [like(query), *[heads_of(query.shape[0], shape)] * 3]
    slots = sum_parts(OVER_QUERIES, arguments, shape, run)
    return run(program, query.shape[0], (arguments, slots), results)


def differentiate_keys(arguments: Arguments, shape: Shape, run: Run) -> Arrays:
    """d_key, and shares of d_attn, `[shares, heads * hidden]`: not one for each key."""
    key = arguments.features.key
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
