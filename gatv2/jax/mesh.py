"""What types say of a mesh of devices, and what kernels need them to say.

In `jax.shard_map` each device has arrays of its own, and the type of an array says over which axes of
the mesh it varies: kernels are called with arrays that vary alike. On a mesh with Explicit axes a type
says how an array is cut up: there attention is computed as on Auto axes, and cut up by XLA.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax.core import ShapedArray
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

Results = TypeVar("Results")


def vary_alike(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """The arrays, each varying over all axes that one of them varies over: results vary so too."""
    axes = [_axes_of(jax.typeof(array)) for array in arrays]
    union = frozenset[str]().union(*axes)
    return tuple(
        _vary(array, tuple(sorted(union - own))) if union - own else array
        for array, own in zip(arrays, axes, strict=True)
    )


def _vary(array: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    if hasattr(jax.lax, "pcast"):
        varying: jax.Array = jax.lax.pcast(array, axes, to="varying")
    else:  # in 0.8
        varying = getattr(jax.lax, "pvary")(array, axes)  # noqa: B009
    return varying


def _axes_of(aval: Any) -> frozenset[str]:
    axes: frozenset[str] = (
        aval.vma
        if hasattr(aval, "vma")
        else aval.manual_axis_type.varying  # before 0.10, and since
    )
    return axes


def aval_like(aval: ShapedArray, shape: tuple[int, ...], dtype: DTypeLike) -> ShapedArray:
    """The type of another array that varies as one of type `aval` does."""
    sharding = NamedSharding(aval.sharding.mesh, PartitionSpec())
    like: ShapedArray = aval.update(shape=shape, dtype=dtype, weak_type=False, sharding=sharding)
    return like


def struct_like(aval: object, shape: tuple[int, ...], dtype: DTypeLike) -> jax.ShapeDtypeStruct:
    """The same as is told to what JAX knows no type of."""
    name = "vma" if hasattr(aval, "vma") else "manual_axis_type"  # before 0.10, and since
    return jax.ShapeDtypeStruct(shape, dtype, **{name: getattr(aval, name)})


def on_auto_axes(
    function: Callable[..., Results], like: jax.Array, specs: Callable[[PartitionSpec], object]
) -> Callable[..., Results]:
    """The function, computed as on a mesh with Auto axes wherever `like` is on one with Explicit axes.

    Args:
        function: of arrays, or pytrees of them.
        like: the array whose type says how the results are cut up.
        specs: given how `like` is cut up, how each result is.
    """
    sharding = jax.typeof(like).sharding
    kinds = zip(sharding.mesh.axis_names, sharding.mesh.axis_types, strict=True)
    explicit = tuple(name for name, kind in kinds if kind == AxisType.Explicit)
    if not explicit:
        return function
    out_sharding = jax.tree.map(
        lambda spec: NamedSharding(sharding.mesh, spec),
        specs(sharding.spec),
        is_leaf=lambda spec: isinstance(spec, PartitionSpec),
    )
    computed: Callable[..., Results] = jax.sharding.auto_axes(
        function, axes=explicit, out_sharding=out_sharding
    )
    return computed


def is_all_manual(axis_context: object) -> bool:
    """Whether a program is lowered for one device, or for each of many by itself, in `shard_map`."""
    mesh = getattr(axis_context, "mesh", None)
    if mesh is None:
        return (getattr(axis_context, "num_devices", 1) or 1) == 1
    manual: frozenset[str] = getattr(axis_context, "manual_axes", frozenset())
    return mesh.size == 1 or manual == frozenset(mesh.axis_names)
