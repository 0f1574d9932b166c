"""What XLA calls for kernel="numba": the fused kernels, on XLA's own buffers.

They become known to XLA when a kernel is first asked for; Numba is imported when it is first called.
"""

from collections.abc import Iterator
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Literal

import jax
import numpy as np

from gatv2.jax.arrays import NumPyArray as Array
from gatv2.jax.numba.xla_ffi import Attributes, register

if TYPE_CHECKING:
    from gatv2.jax.numba.launch import Options

ARRAYS = {
    "sparse": (
        "query_ptr",
        "key_index",
        "key_ptr",
        "edges_by_key",
        "queries_by_key",
        "head_mask",
        "edge_id",
        "query_id",
        "key_id",
        "edge_features",
        "edge_projection",
        "score_bias",
    ),
    "dense": ("mask", "edge_features", "edge_projection", "score_bias"),
}
"""Arrays that follow the features and the seed in a call, whose attribute `given` has a bit for each."""

FOR_BACKWARD = frozenset(("key_ptr", "edges_by_key", "queries_by_key"))
"""Arrays that only the backward pass reads."""

Arrays = dict[str, Array]


def given(backend: str, names: set[str]) -> int:
    """The attribute that says which of a backend's arrays a call has."""
    return sum(1 << i for i, name in enumerate(ARRAYS[backend]) if name in names)


def _forward(
    backend: str, inputs: list[Array], outputs: list[Array], attributes: Attributes
) -> None:
    from gatv2.jax.numba import launch

    for (query, key, attn, seed, *rest), results in _mapped(inputs, outputs):
        arrays = _named(backend, rest, attributes)
        _check(arrays, key.shape[-3])
        options = _options(seed, attributes, wants_rows=results[-1].size > 0)
        launch.forward(backend, results, (query, key, attn), arrays, options)


def _backward(
    backend: str, inputs: list[Array], outputs: list[Array], attributes: Attributes
) -> None:
    from gatv2.jax.numba import launch

    for call, gradients in _mapped(inputs, outputs):
        query, key, attn, seed, d_out, d_lse, d_alpha, lse, *rest = call
        arrays = _named(backend, rest, attributes)
        _check(arrays, key.shape[-3])
        options = _options(
            seed,
            attributes,
            wants_rows="edge_features" in arrays and gradients[3].size > 0,
            wants_bias_rows="score_bias" in arrays and gradients[-1].size > 0,
        )
        cotangents = (d_out, d_lse, d_alpha, lse)
        features = (query, key, attn)
        launch.backward(backend, gradients, cotangents, features, arrays, options)


def _named(backend: str, arrays: list[Array], attributes: Attributes) -> Arrays:
    names = [name for i, name in enumerate(ARRAYS[backend]) if attributes["given"] >> i & 1]
    return dict(zip(names, arrays, strict=True))


def _check(arrays: Arrays, n_keys: int) -> None:
    """Raise a ValueError for indices that point outside of the arrays: kernels trust every one.

    A graph that was built by `Graph` has none; one that was put together by hand may.
    """
    if "key_index" not in arrays:
        return
    n_queries, n_listed = arrays["query_ptr"].size - 1, arrays["key_index"].size
    rows = {
        "edge_id": n_listed,
        "head_mask": n_listed,
        "edges_by_key": n_listed,
        "queries_by_key": n_listed,
        "key_ptr": n_keys + 1,
        "query_id": n_queries,
        "key_id": n_keys,
    }
    for name in rows.keys() & arrays.keys():
        if arrays[name].shape[0] != rows[name]:
            raise ValueError(
                f"`{name}` of the graph must have {rows[name]} rows; got {arrays[name].shape[0]}: "
                "make graphs with `Graph`"
            )
    n_edges = _check_pointers("query_ptr", arrays["query_ptr"], n_listed)
    _check_index("key_index", arrays["key_index"][:n_edges], n_keys)
    if "edge_id" in arrays:
        _check_index("edge_id", arrays["edge_id"], n_listed)  # also what padding has is looked up
    if "key_ptr" in arrays:
        n_edges = _check_pointers("key_ptr", arrays["key_ptr"], n_listed)
        _check_index("by_key.edge", arrays["edges_by_key"][:n_edges], n_listed)
        _check_index("by_key.query", arrays["queries_by_key"][:n_edges], n_queries)


def _check_pointers(name: str, pointers: Array, n_edges: int) -> int:
    if pointers[0] != 0 or pointers[-1] > n_edges or (pointers[1:] < pointers[:-1]).any():
        raise ValueError(
            f"`{name}` of the graph must ascend from 0 to at most {n_edges}, the edges"
        )
    return int(pointers[-1])


def _check_index(name: str, index: Array, size: int) -> None:
    unsigned = index.view(f"u{index.itemsize}")  # of what is negative: larger than any size
    if index.size and unsigned.max() >= size:
        raise ValueError(f"`{name}` of the graph must lie in [0, {size}); make graphs with `Graph`")


def _options(
    seed: Array, attributes: Attributes, *, wants_rows: bool, wants_bias_rows: bool = False
) -> "Options":
    low, high = seed.tolist()
    if high >= 2**31:
        high -= 2**32  # the sign of an int64
    return {
        "seed": high << 32 | low if attributes["dropout"] > 0 else None,
        "n_blocks": attributes["n_blocks"],
        "negative_slope": attributes["negative_slope"],
        "dropout": attributes["dropout"],
        "wants_rows": wants_rows,
        "wants_bias_rows": wants_bias_rows,
    }


def _mapped(inputs: list[Array], outputs: list[Array]) -> Iterator[tuple[list[Array], list[Array]]]:
    """The calls that `vmap` put together: it gives every input as many more dimensions, 1 or all."""
    n_mapped = inputs[2].ndim - 2  # attn
    shape = outputs[0].shape[:n_mapped]
    for index in np.ndindex(*shape):

        def select(array: Array, index: tuple[int, ...] = index) -> Array:
            sizes = array.shape[:n_mapped]
            at = tuple(i if n > 1 else 0 for i, n in zip(index, sizes, strict=True))
            selected: Array = array[at]
            return selected

        yield [select(x) for x in inputs], [select(x) for x in outputs]


@lru_cache
def target(backend: str, direction: Literal["forward", "backward"]) -> str:
    """The name under which XLA knows a kernel, from the first time that it is asked for."""
    jax.devices("cpu")  # a target that XLA rejects must not keep JAX from starting
    name = f"gatv2_{backend}_{direction}"
    register(name, partial(_forward if direction == "forward" else _backward, backend))
    return name


def register_kernels() -> None:
    """Make the fused CPU kernels known to XLA, for a compiled program that is to be loaded.

    Nothing else needs it: what this process traces knows its kernels. A program that another process
    compiled, and `jax.experimental.serialize_executable` wrote, only has their names.

    Example:
        >>> from jax.experimental import serialize_executable
        >>> program = jax.jit(lambda x: x + 1).lower(1.0).compile()
        >>> written = serialize_executable.serialize(program)
        >>> register_kernels()  # in the process that loads it
        >>> serialize_executable.deserialize_and_load(*written)(1.0)
        Array(2., dtype=float32, weak_type=True)
    """
    for backend in ARRAYS:
        target(backend, "forward")
        target(backend, "backward")
