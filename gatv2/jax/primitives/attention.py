"""The three primitives of attention: their shapes, their derivatives, and what calls them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import compress
from typing import Unpack

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.interpreters import ad

from gatv2.jax.adjacency import Adjacency
from gatv2.jax.arrays import DType
from gatv2.jax.blocks import lead
from gatv2.jax.edge_features import EdgeInputs
from gatv2.jax.graph import Graph
from gatv2.jax.mesh import aval_like, vary_alike
from gatv2.jax.precision import computed_in
from gatv2.jax.primitives.call import (
    UNSUPPORTED,
    Arrays,
    Call,
    attend_by_numba,
    attend_by_pallas,
    attend_plainly,
    cotangent_by_numba,
    cotangent_by_pallas,
    cotangent_plainly,
    tangent_plainly,
)
from gatv2.jax.primitives.define import Bound, Static, define, run
from gatv2.jax.primitives.mapped import Mapped, mapped_sizes, shape_of, summed
from gatv2.jax.sparse.tangent import Features

Tangents = Sequence[jax.Array | ad.Zero]
Derivative = tuple[Sequence[jax.Array], Sequence[jax.Array]]
"""Results, and their derivatives."""
Transposed = jax.Array | ad.UndefinedPrimal
"""An argument of a linear function that is transposed: a value, or one that it is linear in."""


def attend(
    query: jax.Array,
    key: jax.Array,
    attn: jax.Array,
    adjacency: Adjacency,
    edges: EdgeInputs | None,
    *,
    negative_slope: float,
    dropout: float,
    seed: jax.Array | None,
    return_attention: bool,
    kernel: str,
    score_bias: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """GATv2 attention over a graph or a mask; see the `reference` of `gatv2.jax`'s backends."""
    features: tuple[jax.Array, ...] = (query, key, attn, *(edges or ()))
    if score_bias is not None:
        score_bias, adjacency = _without_head_mask(score_bias, adjacency)
        features = (*features, score_bias)
    leaves, structure = jax.tree.flatten(adjacency)
    read = Features(query, key, attn, edges, score_bias)
    fused = tuple(
        name for name, unsupported in UNSUPPORTED.items() if not unsupported(read, adjacency)
    )
    call = Call(structure, len(features), negative_slope, dropout, return_attention, kernel, fused)
    words = jnp.zeros(2, jnp.uint32) if seed is None else seed
    arrays = vary_alike(*features, words, *leaves)
    out, lse, alpha = attend_p.bind(*arrays, call=call, mapped=())
    return out, lse, alpha if return_attention else None


def _without_head_mask(score_bias: jax.Array, adjacency: Adjacency) -> tuple[jax.Array, Adjacency]:
    """A bias that is -inf where a head has no edge, and a graph for all heads: kernels read one mask."""
    if not isinstance(adjacency, Graph):
        if adjacency.shape[-1] == 1:
            return score_bias, adjacency
        used, adjacency = lead(adjacency, score_bias.ndim), adjacency.any(-1, keepdims=True)
        return jnp.where(used, score_bias, -math.inf), adjacency
    if adjacency.head_mask is None:
        return score_bias, adjacency
    used = adjacency.in_callers_order(adjacency.head_mask, axis=-2)
    score_bias = jnp.where(lead(used, score_bias.ndim), score_bias, -math.inf)
    return score_bias, replace(adjacency, head_mask=None)


def _avals_of_results(
    avals: Sequence[ShapedArray], call: Call, mapped: Mapped, first: int
) -> list[ShapedArray]:
    """Of (out, lse, alpha), given the arguments and the place of the first feature."""
    query = shape_of(mapped, avals, first)
    dtype = avals[first].dtype
    alpha: tuple[int, ...] = (0,)
    if call.with_alpha:
        begin = first + call.n_features + 1
        leaves = [
            ShapedArray(shape_of(mapped, avals, i), avals[i].dtype)
            for i in range(begin, begin + call.adjacency.num_leaves)
        ]
        adjacency = jax.tree.unflatten(call.adjacency, leaves)
        of_graph = (
            adjacency.key_index.shape if isinstance(adjacency, Graph) else adjacency.shape[-3:-1]
        )
        alpha = (*query[:-3], *of_graph, query[-2])
    sizes = mapped_sizes(mapped, avals)
    wide = computed_in(dtype)
    shapes = ((query, dtype), (query[:-1], wide), (alpha, dtype))
    return [aval_like(avals[first], (*sizes, *shape), dtype) for shape, dtype in shapes]


def _attend_avals(*avals: ShapedArray, call: Call, mapped: Mapped) -> list[ShapedArray]:
    return _avals_of_results(avals, call, mapped, 0)


def _tangent_avals(*avals: ShapedArray, call: Call, mapped: Mapped) -> list[ShapedArray]:
    return _avals_of_results(avals, call, mapped, 2)


def _cotangent_avals(
    *avals: ShapedArray, call: Call, mapped: Mapped, wanted: tuple[bool, ...]
) -> list[ShapedArray]:
    sizes = mapped_sizes(mapped, avals)
    return [
        aval_like(avals[2 + i], (*sizes, *shape_of(mapped, avals, 2 + i)), avals[2 + i].dtype)
        for i in range(call.n_features)
    ]


def _attend_jvp(primals: Arrays, tangents: Tangents, *, call: Call, mapped: Mapped) -> Derivative:
    out, lse, alpha = attend_p.bind(*primals, call=call, mapped=mapped)
    direction = map(ad.instantiate_zeros, tangents[: call.n_features])
    results = tangent_p.bind(
        lse,
        out,
        *primals,
        *direction,
        call=call,
        mapped=_with_results(mapped, call),
    )
    return (out, lse, alpha), results


def _with_results(mapped: Mapped, call: Call) -> Mapped:
    """Which arguments of `tangent_p` are mapped, given those of `attend_p`: results always are."""
    return tuple((True, True, *level, *level[: call.n_features]) for level in mapped)


def _tangent_jvp(primals: Arrays, tangents: Tangents, *, call: Call, mapped: Mapped) -> Derivative:
    n_fixed = len(primals) - call.n_features
    return _jvp_of_linear(
        tangent_p, tangent_plainly, n_fixed, primals, tangents, mapped, {"call": call}
    )


def _cotangent_jvp(
    primals: Arrays, tangents: Tangents, *, mapped: Mapped, **params: Unpack[Static]
) -> Derivative:
    n_fixed = len(primals) - 3
    return _jvp_of_linear(
        cotangent_p, cotangent_plainly, n_fixed, primals, tangents, mapped, params
    )


def _jvp_of_linear(
    primitive: Bound,
    plainly: Callable[..., Arrays],
    n_fixed: int,
    primals: Arrays,
    tangents: Tangents,
    mapped: Mapped,
    params: Static,
) -> Derivative:
    """The derivative of a primitive that is linear in its last arguments."""
    results = primitive.bind(*primals, mapped=mapped, **params)
    is_used = [not isinstance(tangent, ad.Zero) for tangent in tangents]
    if not any(is_used[:n_fixed]):
        direction = map(ad.instantiate_zeros, tangents[n_fixed:])
        return results, primitive.bind(*primals[:n_fixed], *direction, mapped=mapped, **params)

    def of_used(*used: jax.Array) -> Arrays:
        values = iter(used)
        arrays = [
            next(values) if is_one else array
            for is_one, array in zip(is_used, primals, strict=True)
        ]
        return run(plainly, *arrays, mapped=mapped, **params)

    used = tuple(compress(primals, is_used)), tuple(compress(tangents, is_used))
    return results, jax.jvp(of_used, *used)[1]


def _tangent_transpose(
    cotangents: Tangents, *arrays: Transposed, call: Call, mapped: Mapped
) -> list[jax.Array | None]:
    fixed, direction = _known(arrays[: -call.n_features]), arrays[-call.n_features :]
    n_fixed = len(fixed)
    is_wanted = [isinstance(x, ad.UndefinedPrimal) for x in direction]
    d_out, d_lse, d_alpha = cotangents
    given = [
        ad.instantiate_zeros(d_out),
        *(jnp.zeros(0, _dtype_of(d)) if isinstance(d, ad.Zero) else d for d in (d_lse, d_alpha)),
    ]
    is_zero = [False, isinstance(d_lse, ad.Zero), isinstance(d_alpha, ad.Zero)]
    of_cotangents = tuple((*level[:n_fixed], *(not zero for zero in is_zero)) for level in mapped)
    gradients = cotangent_p.bind(
        *vary_alike(*fixed, *given),
        call=call,
        mapped=of_cotangents,
        wanted=tuple(is_wanted),
    )
    return [None] * n_fixed + [
        summed(gradient, [level[n_fixed + i] for level in mapped]) if wanted else None
        for i, (gradient, wanted) in enumerate(zip(gradients, is_wanted, strict=True))
    ]


def _cotangent_transpose(
    cotangents: Tangents,
    *arrays: Transposed,
    call: Call,
    mapped: Mapped,
    wanted: tuple[bool, ...],
) -> list[jax.Array | None]:
    fixed, own = _known(arrays[:-3]), arrays[-3:]
    n_fixed = len(fixed)
    is_wanted = [isinstance(x, ad.UndefinedPrimal) for x in own]
    direction = map(ad.instantiate_zeros, cotangents)
    of_direction = tuple((*level[:-3], *(True,) * call.n_features) for level in mapped)
    results = tangent_p.bind(*fixed, *direction, call=call, mapped=of_direction)
    return [None] * n_fixed + [
        summed(result, [level[n_fixed + i] for level in mapped]) if wanted else None
        for i, (result, wanted) in enumerate(zip(results, is_wanted, strict=True))
    ]


def _known(arrays: tuple[Transposed, ...]) -> Arrays:
    """Arguments that have values, as all have that a primitive is not linear in."""
    return tuple(x for x in arrays if not isinstance(x, ad.UndefinedPrimal))


def _dtype_of(zero: ad.Zero) -> DType:
    """The dtype of a cotangent that is zero."""
    assert isinstance(zero.aval, ShapedArray)
    dtype: DType = zero.aval.dtype
    return dtype


attend_p = define(
    "attend",
    _attend_avals,
    _attend_jvp,
    attend_plainly,
    {"numba": attend_by_numba, "pallas": attend_by_pallas},
)
tangent_p = define(
    "tangent", _tangent_avals, _tangent_jvp, tangent_plainly, transpose=_tangent_transpose
)
cotangent_p = define(
    "cotangent",
    _cotangent_avals,
    _cotangent_jvp,
    cotangent_plainly,
    {"numba": cotangent_by_numba, "pallas": cotangent_by_pallas},
    _cotangent_transpose,
)
