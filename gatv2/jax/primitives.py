"""Attention as three primitives of JAX: what computes it is chosen when a program is lowered.

`attend_p` is attention. Its derivative along a direction is `tangent_p`, which is linear in the
direction, and whose transpose, the gradient, is `cotangent_p`. On the CPU `attend_p` and `cotangent_p`
are the fused kernels, elsewhere plain JAX, so that one traced function serves every platform and every
transformation:

    value        attend_p
    jvp          attend_p, tangent_p
    gradient     attend_p, cotangent_p
    more         the derivatives of plain JAX that is the same as `tangent_p` or `cotangent_p`

Under `vmap` a primitive says, level by level, which of its arguments are mapped over their first axis.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import compress
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir, xla

from gatv2.jax.adjacency import Adjacency
from gatv2.jax.dense import reference as dense
from gatv2.jax.edge_features import EdgeInputs
from gatv2.jax.graph import Graph
from gatv2.jax.numba import kernel as numba_kernel
from gatv2.jax.precision import computed_in
from gatv2.jax.sparse import reference as sparse
from gatv2.jax.sparse.tangent import Features, tangent

Arrays = tuple[Any, ...]
Mapped = tuple[tuple[bool, ...], ...]
"""For each `vmap`, the innermost first: which arguments it maps over, on their first axis."""


@dataclass(frozen=True)
class Call:
    """What is static in a call of attention.

    Attributes:
        adjacency: the structure of the graph's arrays.
        n_features: number of arrays that are differentiated by: 3, or 5 with features of edges.
        negative_slope: slope of LeakyReLU below zero.
        dropout: probability that a coefficient is dropped.
        with_alpha: whether the coefficients are wanted; else they are empty.
        must_fuse: whether anything but a fused kernel is an error.
    """

    adjacency: Any
    n_features: int
    negative_slope: float
    dropout: float
    with_alpha: bool
    must_fuse: bool

    @property
    def options(self) -> numba_kernel.Options:
        """What the fused kernels read."""
        return numba_kernel.Options(self.negative_slope, self.dropout, self.with_alpha)

    def features(self, arrays: Sequence[Any]) -> Features:
        """The first arrays, by name."""
        query, key, attn = arrays[:3]
        edges = EdgeInputs(*arrays[3:5]) if self.n_features == 5 else None
        return Features(query, key, attn, edges)

    def read(self, arrays: Sequence[Any]) -> tuple[Features, jax.Array, Adjacency]:
        """Features, seed and graph of the arguments of `attend_p`."""
        seed, *leaves = arrays[self.n_features :]
        adjacency: Adjacency = jax.tree.unflatten(self.adjacency, leaves)
        return self.features(arrays), seed, adjacency


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
    must_fuse: bool,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """GATv2 attention over a graph or a mask; see the `reference` of `gatv2.jax`'s backends."""
    leaves, structure = jax.tree.flatten(adjacency)
    features = (query, key, attn, *(edges or ()))
    call = Call(structure, len(features), negative_slope, dropout, return_attention, must_fuse)
    words = jnp.zeros(2, jnp.uint32) if seed is None else seed
    out, lse, alpha = attend_p.bind(*features, words, *leaves, call=call, mapped=())
    return out, lse, alpha if return_attention else None


# The same functions in plain JAX.


def _attend_plainly(*arrays: Any, call: Call) -> Arrays:
    features, seed, adjacency = call.read(arrays)
    reference: Any = sparse if isinstance(adjacency, Graph) else dense
    query, key, attn, edges = features
    out, lse, alpha = reference.gatv2_attention(
        query,
        key,
        attn,
        adjacency,
        edges,
        negative_slope=call.negative_slope,
        dropout=call.dropout,
        seed=seed if call.dropout > 0 else None,
        return_attention=call.with_alpha,
    )
    return out, lse, jnp.zeros(0, out.dtype) if alpha is None else alpha


def _tangent_plainly(*arrays: Any, call: Call) -> Arrays:
    """The arguments are (lse, out), those of `attend_p`, and a direction for each feature."""
    (lse, out), direction = arrays[:2], arrays[-call.n_features :]
    arrays = arrays[2 : -call.n_features]
    features, seed, adjacency = call.read(arrays)
    if isinstance(adjacency, Graph):
        d_out, d_lse, d_alpha = tangent(
            features,
            call.features(direction),
            lse,
            out,
            adjacency,
            negative_slope=call.negative_slope,
            dropout=call.dropout,
            seed=seed if call.dropout > 0 else None,
            with_alpha=call.with_alpha,
        )
        return d_out, d_lse, jnp.zeros(0, out.dtype) if d_alpha is None else d_alpha

    def of_features(*features: Any) -> Arrays:
        return _attend_plainly(*features, *arrays[call.n_features :], call=call)

    tangents: Arrays = jax.jvp(of_features, arrays[: call.n_features], direction)[1]
    return tangents


def _cotangent_plainly(*arrays: Any, call: Call, with_d_edge_features: bool) -> Arrays:
    """The arguments are (lse, out), those of `attend_p`, and cotangents of (out, lse, alpha)."""
    cotangents, arrays = arrays[-3:], arrays[2:-3]

    def of_features(*features: Any) -> Arrays:
        return _attend_plainly(*features, *arrays[call.n_features :], call=call)

    results, pullback = jax.vjp(of_features, *arrays[: call.n_features])
    gradients: Arrays = pullback(
        tuple(
            jnp.zeros_like(result) if cotangent.shape != result.shape else cotangent
            for result, cotangent in zip(results, cotangents, strict=True)
        )
    )
    return gradients


# The same functions by the fused kernels.


def _attend_fused(*arrays: Any, call: Call) -> Arrays:
    features, seed, adjacency = call.read(arrays)
    return numba_kernel.forward(features, seed, adjacency, call.options)


def _cotangent_fused(*arrays: Any, call: Call, with_d_edge_features: bool) -> Arrays:
    lse, cotangents = arrays[0], arrays[-3:]
    features, seed, adjacency = call.read(arrays[2:-3])
    return numba_kernel.backward(
        (*cotangents, lse), features, seed, adjacency, call.options, with_d_edge_features
    )


# Shapes.


def _lead(mapped: Mapped, avals: Sequence[Any]) -> tuple[int, ...]:
    """The sizes of the axes that `vmap` added, the outermost first."""
    sizes = []
    for level in reversed(range(len(mapped))):
        i = mapped[level].index(True)
        place = sum(outer[i] for outer in mapped[level + 1 :])
        sizes.append(avals[i].shape[place])
    return tuple(sizes)


def _shape(mapped: Mapped, avals: Sequence[Any], i: int) -> tuple[int, ...]:
    """The shape of an argument without the axes that `vmap` added."""
    shape: tuple[int, ...] = avals[i].shape[sum(level[i] for level in mapped) :]
    return shape


def _result_avals(
    avals: Sequence[Any], call: Call, mapped: Mapped, first: int
) -> list[jax.core.ShapedArray]:
    """Of (out, lse, alpha), given the arguments and the place of the first feature."""
    query = _shape(mapped, avals, first)
    dtype = avals[first].dtype
    alpha: tuple[int, ...] = (0,)
    if call.with_alpha:
        begin = first + call.n_features + 1
        leaves = [
            jax.core.ShapedArray(_shape(mapped, avals, i), avals[i].dtype)
            for i in range(begin, begin + call.adjacency.num_leaves)
        ]
        adjacency = jax.tree.unflatten(call.adjacency, leaves)
        of_graph = (
            adjacency.key_index.shape if isinstance(adjacency, Graph) else adjacency.shape[-3:-1]
        )
        alpha = (*query[:-3], *of_graph, query[-2])
    lead = _lead(mapped, avals)
    wide = computed_in(dtype)
    shapes = ((query, dtype), (query[:-1], wide), (alpha, dtype))
    return [jax.core.ShapedArray((*lead, *shape), dtype) for shape, dtype in shapes]


def _attend_avals(*avals: Any, call: Call, mapped: Mapped) -> Any:
    return _result_avals(avals, call, mapped, 0)


def _tangent_avals(*avals: Any, call: Call, mapped: Mapped) -> Any:
    return _result_avals(avals, call, mapped, 2)


def _cotangent_avals(*avals: Any, call: Call, mapped: Mapped, with_d_edge_features: bool) -> Any:
    lead = _lead(mapped, avals)
    return [
        jax.core.ShapedArray((*lead, *_shape(mapped, avals, 2 + i)), avals[2 + i].dtype)
        for i in range(call.n_features)
    ]


# Derivatives.


def _attend_jvp(primals: Any, tangents: Any, *, call: Call, mapped: Mapped) -> Any:
    out, lse, alpha = attend_p.bind(*primals, call=call, mapped=mapped)
    direction = map(ad.instantiate_zeros, tangents[: call.n_features])
    results = tangent_p.bind(
        lse,
        out,
        *primals,
        *direction,
        call=call,
        mapped=_with_results(mapped, primals_behind=len(primals), call=call),
    )
    return (out, lse, alpha), results


def _with_results(mapped: Mapped, primals_behind: int, call: Call) -> Mapped:
    """Which arguments of `tangent_p` are mapped, given those of `attend_p`: results always are."""
    return tuple((True, True, *level, *level[: call.n_features]) for level in mapped)


def _tangent_jvp(primals: Any, tangents: Any, *, call: Call, mapped: Mapped) -> Any:
    n_fixed = len(primals) - call.n_features
    return _jvp_of_linear(
        tangent_p, _tangent_plainly, n_fixed, primals, tangents, mapped, {"call": call}
    )


def _cotangent_jvp(primals: Any, tangents: Any, *, mapped: Mapped, **params: Any) -> Any:
    n_fixed = len(primals) - 3
    return _jvp_of_linear(
        cotangent_p, _cotangent_plainly, n_fixed, primals, tangents, mapped, params
    )


def _jvp_of_linear(
    primitive: Any,
    plainly: Callable[..., Arrays],
    n_fixed: int,
    primals: Any,
    tangents: Any,
    mapped: Mapped,
    params: dict[str, Any],
) -> Any:
    """The derivative of a primitive that is linear in its last arguments."""
    results = primitive.bind(*primals, mapped=mapped, **params)
    is_used = [type(tangent) is not ad.Zero for tangent in tangents]
    if not any(is_used[:n_fixed]):
        direction = map(ad.instantiate_zeros, tangents[n_fixed:])
        return results, primitive.bind(*primals[:n_fixed], *direction, mapped=mapped, **params)

    def of_used(*used: Any) -> Arrays:
        values = iter(used)
        arrays = [
            next(values) if is_one else array
            for is_one, array in zip(is_used, primals, strict=True)
        ]
        return _vmapped(partial(plainly, **params), mapped)(*arrays)

    used = tuple(compress(primals, is_used)), tuple(compress(tangents, is_used))
    return results, jax.jvp(of_used, *used)[1]


def _is_undefined(array: Any) -> bool:
    """Whether it is an argument by which a linear function is transposed."""
    return isinstance(array, ad.UndefinedPrimal)


def _dtype_of(zero: Any) -> Any:
    """The dtype of a cotangent that is zero."""
    return zero.aval.dtype


def _tangent_transpose(cotangents: Any, *arrays: Any, call: Call, mapped: Mapped) -> Any:
    fixed, direction = arrays[: -call.n_features], arrays[-call.n_features :]
    n_fixed = len(fixed)
    is_wanted = [_is_undefined(x) for x in direction]
    d_out, d_lse, d_alpha = cotangents
    given = [
        *map(ad.instantiate_zeros, [d_out]),
        *(jnp.zeros(0, _dtype_of(d)) if type(d) is ad.Zero else d for d in (d_lse, d_alpha)),
    ]
    is_zero = [False, type(d_lse) is ad.Zero, type(d_alpha) is ad.Zero]
    of_cotangents = tuple((*level[:n_fixed], *(not zero for zero in is_zero)) for level in mapped)
    gradients = cotangent_p.bind(
        *fixed,
        *given,
        call=call,
        mapped=of_cotangents,
        with_d_edge_features=call.n_features == 5 and is_wanted[3],
    )
    return [None] * n_fixed + [
        _summed(gradient, [level[n_fixed + i] for level in mapped]) if wanted else None
        for i, (gradient, wanted) in enumerate(zip(gradients, is_wanted, strict=True))
    ]


def _cotangent_transpose(
    cotangents: Any, *arrays: Any, call: Call, mapped: Mapped, with_d_edge_features: bool
) -> Any:
    fixed, own = arrays[:-3], arrays[-3:]
    direction = map(ad.instantiate_zeros, cotangents)
    of_direction = tuple((*level[:-3], *(True,) * call.n_features) for level in mapped)
    results = tangent_p.bind(*fixed, *direction, call=call, mapped=of_direction)
    return [None] * len(fixed) + [
        _summed(result, [level[len(fixed) + i] for level in mapped]) if _is_undefined(x) else None
        for i, (result, x) in enumerate(zip(results, own, strict=True))
    ]


def _summed(value: Any, is_mapped: list[bool]) -> Any:
    """The sum over the axes that `vmap` added, but those of an argument that is mapped there."""
    axes = [i for i, mapped in enumerate(reversed(is_mapped)) if not mapped]
    return value.sum(axes) if axes else value


# Batches and programs.


def _vmapped(function: Callable[..., Arrays], mapped: Mapped) -> Callable[..., Arrays]:
    for level in mapped:
        function = jax.vmap(function, in_axes=tuple(0 if one else None for one in level))
    return function


def _batch(primitive: Any, arrays: Any, axes: Any, *, mapped: Mapped, **params: Any) -> Any:
    level = tuple(axis is not None for axis in axes)
    arrays = [
        jnp.moveaxis(array, axis, 0) if one else array
        for array, axis, one in zip(arrays, axes, level, strict=True)
    ]
    results = primitive.bind(*arrays, mapped=(*mapped, level), **params)
    return results, (0,) * len(results)


def _run(function: Callable[..., Arrays], *arrays: Any, mapped: Mapped, **params: Any) -> Arrays:
    return _vmapped(partial(function, **params), mapped)(*arrays)


def _lower_anywhere(
    plainly: Callable[..., Arrays], context: Any, *values: Any, **params: Any
) -> Any:
    if params["call"].must_fuse:
        (*platforms,) = context.module_context.platforms
        raise ValueError(
            f"kernel='numba' runs on the CPU only, and the program is for {', '.join(platforms)}: "
            "kernel='auto' runs there, with plain operations, and kernel='jax' everywhere"
        )
    return mlir.lower_fun(partial(_run, plainly), multiple_results=True)(context, *values, **params)


def _lower_on_cpu(
    plainly: Callable[..., Arrays],
    fused: Callable[..., Arrays],
    context: Any,
    *values: Any,
    **params: Any,
) -> Any:
    """The fused kernel, but for a program that is exported, or cut up for several devices."""
    module = context.module_context
    n_devices = getattr(module.axis_context, "num_devices", 1) or 1
    is_fused = params["call"].must_fuse or (
        n_devices == 1 and not module.lowering_parameters.for_export
    )
    function = fused if is_fused else plainly
    return mlir.lower_fun(partial(_run, function), multiple_results=True)(
        context, *values, **params
    )


def _define(
    name: str,
    avals: Callable[..., Any],
    jvp: Callable[..., Any],
    plainly: Callable[..., Arrays],
    fused: Callable[..., Arrays] | None = None,
    transpose: Callable[..., Any] | None = None,
) -> Any:
    primitive: Any = Primitive(f"gatv2_{name}")
    primitive.multiple_results = True
    primitive.def_impl(partial(xla.apply_primitive, primitive))
    primitive.def_abstract_eval(avals)
    ad.primitive_jvps[primitive] = jvp
    if transpose is not None:
        ad.primitive_transposes[primitive] = transpose
    batching.primitive_batchers[primitive] = partial(_batch, primitive)
    if fused is None:
        lower = mlir.lower_fun(partial(_run, plainly), multiple_results=True)
        mlir.register_lowering(primitive, lower)
    else:
        mlir.register_lowering(primitive, partial(_lower_anywhere, plainly))
        on_cpu = partial(_lower_on_cpu, plainly, fused)
        mlir.register_lowering(primitive, on_cpu, platform="cpu")
    return primitive


attend_p = _define("attend", _attend_avals, _attend_jvp, _attend_plainly, _attend_fused)
tangent_p = _define(
    "tangent", _tangent_avals, _tangent_jvp, _tangent_plainly, transpose=_tangent_transpose
)
cotangent_p = _define(
    "cotangent",
    _cotangent_avals,
    _cotangent_jvp,
    _cotangent_plainly,
    _cotangent_fused,
    _cotangent_transpose,
)
