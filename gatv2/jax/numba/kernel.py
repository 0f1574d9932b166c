"""The fused CPU kernels of PyTorch serve JAX: called by XLA through its foreign function interface.

Nothing of `[E, H, F]` is made, forward or backward. Differentiation is in reverse mode, to any order:
the derivative of the gradient goes through the plain JAX reference. Forward mode (`jvp`, `jacfwd`,
`hessian`) needs kernel="jax"; JAX says so with "can't apply forward-mode differentiation".
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from gatv2.jax.adjacency import Adjacency
from gatv2.jax.dense import reference as dense
from gatv2.jax.graph import Graph
from gatv2.jax.numba.targets import given, target
from gatv2.jax.sparse import reference as sparse

Arrays = tuple[jax.Array, ...]


@dataclass(frozen=True)
class _Options:
    """What is static in a call."""

    negative_slope: float
    dropout: float
    with_alpha: bool


def gatv2_attention(
    query: jax.Array,
    key: jax.Array,
    attn: jax.Array,
    adjacency: Adjacency,
    *,
    negative_slope: float,
    dropout: float,
    seed: jax.Array | None,
    return_attention: bool,
) -> tuple[jax.Array, jax.Array | None]:
    """GATv2 attention over a graph or a mask; see the `reference` of `gatv2.jax`'s backends."""
    options = _Options(negative_slope, dropout, return_attention)
    words = jnp.zeros(2, jnp.uint32) if seed is None else seed
    out, _, alpha = _attention(options, query, key, attn, adjacency, words)
    if not return_attention:
        return out, None
    if isinstance(adjacency, Graph):
        is_edge = adjacency.query_index < adjacency.n_queries  # the kernel does not write padding
        alpha = adjacency.in_callers_order(jnp.where(is_edge[:, None], alpha, 0), axis=-2)
    return out, alpha


def unsupported(
    query: jax.Array, key: jax.Array, attn: jax.Array, adjacency: Adjacency
) -> list[str]:
    """The reasons why a fused CPU kernel can't serve these inputs."""
    reasons = []
    if (platform := jax.default_backend()) != "cpu":
        reasons.append(f"it runs on the CPU only, and JAX runs on {platform}")
    if query.dtype not in ("float16", "bfloat16", "float32", "float64"):
        reasons.append(f"it does not compute in {query.dtype}")
    return reasons


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(
    options: _Options,
    query: jax.Array,
    key: jax.Array,
    attn: jax.Array,
    adjacency: Adjacency,
    seed: jax.Array,
) -> Arrays:
    """(out, log-sum-exp, alpha), alpha in the kernel's order of edges, and empty unless asked for."""
    backend, named, n_blocks = _as_kernel_reads(adjacency)
    arrays = tuple(named.values())
    *batch_shape, n_queries, n_heads, _ = query.shape
    n_edges = arrays[1].shape[:1] if backend == "sparse" else arrays[0].shape[-3:-1]
    call = jax.ffi.ffi_call(
        target(backend, "forward"),
        (
            _array(query.shape, query.dtype),
            _array((*batch_shape, n_queries, n_heads), jnp.promote_types(query.dtype, jnp.float32)),
            _array((*batch_shape, *n_edges, n_heads) if options.with_alpha else (0,), query.dtype),
        ),
        vmap_method="expand_dims",
    )
    results = call(
        query,
        key,
        attn,
        seed,
        *arrays,
        negative_slope=np.float64(options.negative_slope),
        dropout=np.float64(options.dropout),
        n_blocks=np.int64(n_blocks),
        given=np.int64(given(backend, set(named))),
    )
    return tuple(results)


def _attention_forward(options: _Options, *inputs: Any) -> tuple[Arrays, Any]:
    # through the function itself, which a derivative of the derivative can see through
    out, lse, alpha = _attention(options, *inputs)
    return (out, lse, alpha), (lse, *inputs)


def _attention_backward(options: _Options, residuals: Any, cotangents: Any) -> Any:
    d_out, _, d_alpha = cotangents  # nothing but `_gradients` reads the log-sum-exp
    return *_gradients(options, d_out, d_alpha, *residuals), None, None


_attention.defvjp(_attention_forward, _attention_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gradients(
    options: _Options,
    d_out: jax.Array,
    d_alpha: jax.Array,
    lse: jax.Array,
    query: jax.Array,
    key: jax.Array,
    attn: jax.Array,
    adjacency: Adjacency,
    seed: jax.Array,
) -> Arrays:
    backend, named, n_blocks = _as_kernel_reads(adjacency)
    arrays = tuple(named.values())
    call = jax.ffi.ffi_call(
        target(backend, "backward"),
        tuple(_array(x.shape, x.dtype) for x in (query, key, attn)),
        vmap_method="expand_dims",
    )
    gradients = call(
        query,
        key,
        attn,
        seed,
        d_out,
        jnp.zeros(0, lse.dtype),
        d_alpha,
        lse,
        *arrays,
        negative_slope=np.float64(options.negative_slope),
        dropout=np.float64(options.dropout),
        n_blocks=np.int64(n_blocks),
        given=np.int64(given(backend, set(named))),
    )
    return tuple(gradients)


def _gradients_forward(options: _Options, *inputs: Any) -> tuple[Arrays, Any]:
    return _gradients(options, *inputs), inputs


def _gradients_backward(options: _Options, inputs: Any, cotangents: Arrays) -> Any:
    """The derivative of the gradient, by the reference."""
    d_out, d_alpha, _, query, key, attn, adjacency, seed = inputs

    def gradients(
        d_out: jax.Array, d_alpha: jax.Array, query: jax.Array, key: jax.Array, attn: jax.Array
    ) -> Any:
        attend = partial(_reference, options, adjacency=adjacency, seed=seed)
        return jax.vjp(attend, query, key, attn)[1]((d_out, d_alpha))

    _, pullback = jax.vjp(gradients, d_out, d_alpha, query, key, attn)
    to_d_out, to_d_alpha, *to_features = pullback(tuple(cotangents))
    return to_d_out, to_d_alpha, None, *to_features, None, None


_gradients.defvjp(_gradients_forward, _gradients_backward)


def _reference(
    options: _Options,
    query: jax.Array,
    key: jax.Array,
    attn: jax.Array,
    *,
    adjacency: Adjacency,
    seed: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    if isinstance(adjacency, Graph):
        adjacency = replace(adjacency, edge_id=jnp.arange(adjacency.n_edges, dtype=jnp.int32))
    reference: Any = sparse if isinstance(adjacency, Graph) else dense
    out, alpha = reference.gatv2_attention(
        query,
        key,
        attn,
        adjacency,
        negative_slope=options.negative_slope,
        dropout=options.dropout,
        seed=seed if options.dropout > 0 else None,
        return_attention=True,
    )
    return out, alpha if options.with_alpha else jnp.zeros(0, query.dtype)


def _array(shape: tuple[int, ...], dtype: Any) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype)  # type: ignore[no-untyped-call]


def _as_kernel_reads(
    adjacency: Adjacency,
) -> tuple[Literal["sparse", "dense"], dict[str, jax.Array], int]:
    """The backend, its arrays as `gatv2.jax.numba.targets.ARRAYS` has them, the number of blocks."""
    if not isinstance(adjacency, Graph):
        return "dense", {"mask": adjacency}, 1
    by_key = adjacency.by_key
    arrays = {
        "query_ptr": adjacency.query_ptr,
        "key_index": adjacency.key_index,
        "key_ptr": by_key.ptr,
        "edges_by_key": by_key.edge,
        "queries_by_key": by_key.query,
    }
    if adjacency.head_mask is not None:
        arrays["head_mask"] = adjacency.head_mask
    if adjacency.query_id is not None or adjacency.key_id is not None:
        block_queries, block_keys = adjacency.block_shape
        query_id, key_id = adjacency.query_id, adjacency.key_id
        arrays["query_id"] = (
            jnp.arange(adjacency.n_queries) % max(block_queries, 1) if query_id is None else query_id
        )
        arrays["key_id"] = (
            jnp.arange(adjacency.n_keys) % max(block_keys, 1) if key_id is None else key_id
        )
    return "sparse", arrays, adjacency.n_blocks
