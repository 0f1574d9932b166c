"""How a primitive is made of functions: batched, lowered to plain JAX or to a fused kernel."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, NotRequired, Protocol, TypedDict, Unpack

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir, xla

from gatv2.jax.mesh import is_all_manual
from gatv2.jax.pallas.support import device_failure
from gatv2.jax.primitives.call import Arrays, Call
from gatv2.jax.primitives.mapped import Mapped, vmapped
from gatv2.numba.support import import_failure

if TYPE_CHECKING:
    from jax.extend.mlir import ir

    Values = Sequence[ir.Value[ir.Type]]


KERNEL_OF = {"cpu": "numba", "cuda": "pallas", "rocm": "pallas"}
"""The fused kernel of each platform."""
RUNS_ON = {"numba": "the CPU", "pallas": "GPUs"}


class Static(TypedDict):
    """What is static in a primitive's call, besides what `vmap` maps over."""

    call: Call
    wanted: NotRequired[tuple[bool, ...]]
    """Of `cotangent_p`: which gradients are wanted; kernels leave out those of what edges have."""


class Lowered(Static):
    """All that is static in a primitive's call."""

    mapped: Mapped


class Bound(Protocol):
    """A primitive of JAX, as it is called here."""

    def bind(  # noqa: D102
        self, *arrays: jax.Array, mapped: Mapped, **params: Unpack[Static]
    ) -> list[jax.Array]: ...


def define(
    name: str,
    avals: Callable[..., object],
    jvp: Callable[..., object],
    plainly: Callable[..., Arrays],
    fused: Mapping[str, Callable[..., Arrays]] | None = None,
    transpose: Callable[..., object] | None = None,
) -> Bound:
    """A primitive of JAX with all its rules.

    `fused` are its kernels, by their names; without them plain JAX is what it is everywhere.
    """
    primitive = Primitive(f"gatv2_{name}")
    primitive.multiple_results = True
    primitive.def_impl(partial(xla.apply_primitive, primitive))
    primitive.def_abstract_eval(avals)
    ad.primitive_jvps[primitive] = jvp
    if transpose is not None:
        ad.primitive_transposes[primitive] = transpose
    batching.primitive_batchers[primitive] = partial(_batch, primitive)
    if fused is None:
        mlir.register_lowering(primitive, partial(_lower, plainly))
    else:
        mlir.register_lowering(primitive, partial(_lower_for, None, plainly, plainly))
        for platform, name in KERNEL_OF.items():
            rule = partial(_lower_for, platform, plainly, fused[name])
            mlir.register_lowering(primitive, rule, platform=platform)
    return primitive


def run(
    function: Callable[..., Arrays],
    *arrays: jax.Array,
    mapped: Mapped,
    **params: Unpack[Static],
) -> Arrays:
    """A function of one call, for all that `vmap` added."""
    return vmapped(partial(function, **params), mapped)(*arrays)


def _batch(
    primitive: Bound,
    arrays: Sequence[jax.Array],
    axes: Sequence[int | None],
    *,
    mapped: Mapped,
    **params: Unpack[Static],
) -> tuple[Sequence[jax.Array], tuple[int, ...]]:
    level = tuple(axis is not None for axis in axes)
    arrays = [
        array if axis is None else jnp.moveaxis(array, axis, 0)
        for array, axis in zip(arrays, axes, strict=True)
    ]
    results = primitive.bind(*arrays, mapped=(*mapped, level), **params)
    return results, (0,) * len(results)


def _lower_for(
    platform: str | None,
    plainly: Callable[..., Arrays],
    fused: Callable[..., Arrays],
    context: mlir.LoweringRuleContext,
    *values: object,
    **params: Unpack[Lowered],
) -> "Values":
    """The fused kernel of a platform, or plain JAX.

    "auto" is plain JAX where the kernel can't serve the call, in a program that is exported, or that XLA
    cuts up for several devices, on GPUs that are too old, and without a Numba that works.
    """
    module, call = context.module_context, params["call"]
    own = None if platform is None else KERNEL_OF[platform]
    kernel, is_of_one_device = call.kernel, is_all_manual(module.axis_context)
    failure = _failure_on(platform)
    if kernel not in ("auto", own):
        (*platforms,) = module.platforms
        raise ValueError(
            f"kernel={kernel!r} runs on {RUNS_ON[kernel]} only, and the program is for "
            f"{', '.join(platforms)}: kernel='auto' and kernel='jax' run everywhere"
        )
    if kernel != "auto" and not is_of_one_device:
        raise ValueError(
            f"kernel={kernel!r} is of one device, and XLA can't cut it up over the several devices of "
            "the program: call it in `jax.shard_map`, or use kernel='auto', which is plain JAX here"
        )
    if kernel != "auto" and failure:
        raise ValueError(
            f"kernel={kernel!r} {failure}: kernel='auto' and kernel='jax' run everywhere"
        )
    is_whole = is_of_one_device and not module.lowering_parameters.for_export
    is_fused = kernel != "auto" or (own in call.fused and is_whole and not failure)
    return _lower(fused if is_fused else plainly, context, *values, **params)


def _failure_on(platform: str | None) -> str | None:
    """Why the fused kernel of a platform can't run here, to be said after its name."""
    if platform == "cpu":
        failure = import_failure()  # imports Numba, which the program needs
        return None if failure is None else f"can't run, as Numba can't be used: {failure}"
    return None if platform is None else device_failure(platform)


def _lower(
    function: Callable[..., Arrays],
    context: mlir.LoweringRuleContext,
    *values: object,
    **params: Unpack[Lowered],
) -> "Values":
    rule = mlir.lower_fun(partial(run, function), multiple_results=True)
    results: Values = rule(context, *values, **params)
    return results
