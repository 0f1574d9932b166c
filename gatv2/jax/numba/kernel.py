"""The fused CPU kernels as calls of XLA's foreign function interface; `gatv2.jax.primitives` binds them.

Nothing of `[E, H, F]` is made, forward or backward.
"""

from functools import lru_cache
from importlib.util import find_spec
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from gatv2.jax.adjacency import Adjacency
from gatv2.jax.fused import Options
from gatv2.jax.graph import Graph
from gatv2.jax.mesh import vary_alike
from gatv2.jax.numba.targets import FOR_BACKWARD, given, target
from gatv2.jax.precision import computed_in
from gatv2.jax.sparse.tangent import Features

Arrays = tuple[jax.Array, ...]


def unsupported(features: Features, adjacency: Adjacency) -> list[str]:
    """The reasons why a fused CPU kernel can't serve a call; the platform is seen later."""
    reasons = []
    if features.query.dtype not in ("float16", "bfloat16", "float32", "float64"):
        reasons.append(f"it does not compute in {features.query.dtype}")
    if not _is_numba_there():
        reasons.append("Numba is not installed")  # not imported yet: that takes a while
    return reasons


@lru_cache
def _is_numba_there() -> bool:
    try:
        return find_spec("numba") is not None
    except ValueError:  # what stands in for it in `sys.modules` has no specification
        return False


def forward(features: Features, seed: jax.Array, adjacency: Adjacency, options: Options) -> Arrays:
    """(out, log-sum-exp, alpha), alpha in the graph's order of edges, and empty unless asked for."""
    query = features.query
    backend, all_arrays, n_blocks = _as_kernel_reads(adjacency, features)
    arrays = {name: array for name, array in all_arrays.items() if name not in FOR_BACKWARD}
    *batch_shape, n_queries, n_heads, _ = query.shape
    of_graph = adjacency.key_index.shape if isinstance(adjacency, Graph) else adjacency.shape[-3:-1]
    call = jax.ffi.ffi_call(
        target(backend, "forward"),
        (
            jax.ShapeDtypeStruct(query.shape, query.dtype),
            jax.ShapeDtypeStruct((*batch_shape, n_queries, n_heads), computed_in(query.dtype)),
            jax.ShapeDtypeStruct(
                (*batch_shape, *of_graph, n_heads) if options.with_alpha else (0,), query.dtype
            ),
        ),
        vmap_method="expand_dims",
    )
    out, lse, alpha = call(
        *vary_alike(*features[:3], seed, *arrays.values()),
        **_attributes(backend, arrays, n_blocks, options),
    )
    if options.with_alpha and isinstance(adjacency, Graph):
        alpha = jnp.where(adjacency.is_edge[:, None], alpha, 0)  # padding is not written
    return out, lse, alpha


def backward(
    cotangents: Arrays,
    features: Features,
    seed: jax.Array,
    adjacency: Adjacency,
    options: Options,
    wanted: tuple[bool, ...],
) -> Arrays:
    """Gradients of the features; cotangents are of (out, lse, alpha), then the log-sum-exp itself.

    Those of what edges have are zeros unless they are `wanted`.
    """
    backend, arrays, n_blocks = _as_kernel_reads(adjacency, features)
    edges, bias = features.edges, features.score_bias
    flat: Arrays = (*features[:3], *(edges or ()), *(() if bias is None else (bias,)))
    of_edges = [*([] if edges is None else [3]), *([] if bias is None else [len(flat) - 1])]
    like = [
        jnp.zeros(0, x.dtype) if i in of_edges and not wanted[i] else x for i, x in enumerate(flat)
    ]
    call = jax.ffi.ffi_call(
        target(backend, "backward"),
        tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in like),
        vmap_method="expand_dims",
    )
    gradients = call(
        *vary_alike(*features[:3], seed, *cotangents, *arrays.values()),
        **_attributes(backend, arrays, n_blocks, options),
    )
    results = list(gradients)
    for i in of_edges:
        if not wanted[i]:
            results[i] = jnp.zeros_like(flat[i])
        elif isinstance(adjacency, Graph):
            is_edge = adjacency.in_callers_order(adjacency.is_edge, axis=0)
            results[i] = jnp.where(is_edge[:, None], results[i], 0)  # padding is not written
    return tuple(results)


def _attributes(
    backend: str, arrays: dict[str, jax.Array], n_blocks: int, options: Options
) -> dict[str, np.float64 | np.int64]:
    return {
        "negative_slope": np.float64(options.negative_slope),
        "dropout": np.float64(options.dropout),
        "n_blocks": np.int64(n_blocks),
        "given": np.int64(given(backend, set(arrays))),
    }


def _as_kernel_reads(
    adjacency: Adjacency, features: Features
) -> tuple[Literal["sparse", "dense"], dict[str, jax.Array], int]:
    """The backend, its arrays as `gatv2.jax.numba.targets.ARRAYS` has them, the number of blocks."""
    edges = {}
    if features.edges is not None:
        edges = {
            "edge_features": features.edges.features,
            "edge_projection": features.edges.projection,
        }
    if features.score_bias is not None:
        edges["score_bias"] = features.score_bias
    if not isinstance(adjacency, Graph):
        return "dense", {"mask": adjacency} | edges, 1
    by_key = adjacency.by_key
    arrays = {
        "query_ptr": adjacency.query_ptr,
        "key_index": adjacency.key_index,
        "key_ptr": by_key.ptr,
        "edges_by_key": by_key.edge,
        "queries_by_key": by_key.query,
        "head_mask": adjacency.head_mask,
        "edge_id": adjacency.edge_id if edges else None,
    }
    if adjacency.query_id is not None or adjacency.key_id is not None:
        arrays["query_id"] = _ids(adjacency.query_id, adjacency.n_queries, adjacency.block_shape[0])
        arrays["key_id"] = _ids(adjacency.key_id, adjacency.n_keys, adjacency.block_shape[1])
    there = {name: array for name, array in arrays.items() if array is not None}
    return "sparse", there | edges, adjacency.n_blocks


def _ids(own: jax.Array | None, n_nodes: int, n_in_block: int) -> jax.Array:
    """Numbers of nodes for dropout: their own, or the positions in their block."""
    return jnp.arange(n_nodes) % max(n_in_block, 1) if own is None else own
