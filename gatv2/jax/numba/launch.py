"""The fused kernels, on arrays as XLA has them.

Imported when a kernel is first called, as it imports Numba.
"""

import os
from collections.abc import Iterable
from itertools import compress
from types import ModuleType
from typing import TypedDict

import numpy as np

from gatv2.dense import numba_kernel as dense
from gatv2.jax.arrays import NumPyArray as Array
from gatv2.numba.call import ArrayArguments, ArrayCotangents
from gatv2.sparse import numba_kernel as sparse


class Options(TypedDict):
    """What a call says besides arrays."""

    seed: int | None
    n_blocks: int
    negative_slope: float
    dropout: float
    wants_rows: bool
    wants_bias_rows: bool


_KERNELS: dict[str, ModuleType] = {"sparse": sparse, "dense": dense}


def forward(
    backend: str,
    outputs: list[Array],
    inputs: tuple[Array, ...],
    arrays: dict[str, Array],
    options: Options,
) -> None:
    """Write (out, log-sum-exp, alpha) to the outputs; inputs are query, key and attn."""
    arguments = _arguments(backend, inputs, arrays, options)._replace(memory=tuple(outputs))
    _write(outputs, _KERNELS[backend].Plan(arguments).forward(arguments))


def backward(
    backend: str,
    outputs: list[Array],
    cotangents: tuple[Array, ...],
    inputs: tuple[Array, ...],
    arrays: dict[str, Array],
    options: Options,
) -> None:
    """Write the gradients of the features to the outputs.

    Cotangents are of (out, log-sum-exp, alpha), and then the second itself.
    """
    edges, bias = "edge_features" in arrays, "score_bias" in arrays
    is_there = (True, True, True, edges, edges, bias)
    given = iter(outputs)
    arguments = _arguments(backend, inputs, arrays, options)._replace(
        memory=tuple(next(given) if there else None for there in is_there)
    )
    wide = ArrayCotangents(*map(_wide, cotangents))
    gradients = _KERNELS[backend].Plan(arguments).backward(wide, arguments)
    _write(outputs, compress(gradients, is_there))


def _write(outputs: list[Array], results: Iterable[Array]) -> None:
    """Copy what a kernel could not write to XLA's memory: padded, or in another precision."""
    for output, result in zip(outputs, results, strict=True):
        if output.size and not np.may_share_memory(output, result):
            with np.errstate(over="ignore"):  # of half precision: what is too large is infinite
                output[...] = result


def _arguments(
    backend: str, inputs: tuple[Array, ...], arrays: dict[str, Array], options: Options
) -> ArrayArguments:
    query, key, attn = map(_wide, inputs)
    rows, projection, bias = (
        _wide(arrays[name]) if name in arrays else None
        for name in ("edge_features", "edge_projection", "score_bias")
    )
    if backend == "dense":
        adjacency: dense.Adjacency | sparse.Adjacency = dense.Adjacency(arrays["mask"])
    else:
        named = {name: arrays[name] for name in sparse.Adjacency._fields if name in arrays}
        for name in ("query_id", "key_id"):
            if name in named:
                named[name] = named[name].astype(np.int64)
        adjacency = sparse.Adjacency(**named)
    return ArrayArguments(
        query=query,
        key=key,
        attn=attn,
        edge_features=rows,
        edge_projection=projection,
        score_bias=bias,
        adjacency=adjacency,
        n_mapped=0,
        n_threads=len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count() or 1,
        **options,
    )


def _wide(array: Array) -> Array:
    """Half precision as float32, which kernels compute it in."""
    return array.astype(np.float32) if array.dtype.itemsize == 2 else array
