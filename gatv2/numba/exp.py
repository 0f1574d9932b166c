"""The exponential function of SIMD vectors, with the coefficients of Moshier's Cephes library."""

from collections.abc import Callable

from llvmlite import ir
from numba import types

from gatv2.numba.arguments import Vector
from gatv2.numba.compile import (
    Builder,
    Context,
    Signature,
    Typing,
    Value,
    Values,
    intrinsic,
    overload,
)
from gatv2.numba.simd import fma, select, splat


@intrinsic
def _times_power_of_two(_typing: Typing, value: Vector, shifted: Vector) -> Vector:
    """`value * 2**n` for integers n that stand in the lowest bits of the mantissa of `shifted`."""

    def lower(_context: Context, builder: Builder, _sig: Signature, args: Values) -> Value:
        bits, mantissa, bias = (32, 23, 127) if value.dtype == types.float32 else (64, 52, 1023)
        integers = ir.VectorType(ir.IntType(bits), value.lanes)
        exponent = builder.add(
            builder.bitcast(args[1], integers), ir.Constant(integers, [bias] * value.lanes)
        )
        power = builder.shl(exponent, ir.Constant(integers, [mantissa] * value.lanes))
        return builder.fmul(args[0], builder.bitcast(power, value.llvm))

    return value(value, shifted), lower


def exp(x: Vector) -> Vector:
    """e**x lane by lane, for x not above zero by much; a result that is not a normal number is zero."""
    raise NotImplementedError("for Numba only")


@overload(exp)
def _overload_exp(x: Vector) -> Callable[[Vector], Vector]:
    return _exp_float32 if x.dtype == types.float32 else _exp_float64


def _exp_float32(x: Vector) -> Vector:
    shift = splat(x, 12582912.0)  # 1.5 * 2**23: adding it rounds to an integer
    shifted = fma(x, splat(x, 1.44269504088896341), shift)
    n = shifted - shift
    r = fma(n, splat(x, 2.12194440e-4), fma(n, splat(x, -0.693359375), x))
    y = fma(splat(x, 1.9875691500e-4), r, splat(x, 1.3981999507e-3))
    y = fma(y, r, splat(x, 8.3334519073e-3))
    y = fma(y, r, splat(x, 4.1665795894e-2))
    y = fma(y, r, splat(x, 1.6666665459e-1))
    y = fma(y, r, splat(x, 5.0000001201e-1))
    y = fma(y, r * r, r) + splat(x, 1.0)
    return select(x < splat(x, -87.3), splat(x, 0.0), _times_power_of_two(y, shifted))


def _exp_float64(x: Vector) -> Vector:
    shift = splat(x, 6755399441055744.0)  # 1.5 * 2**52
    shifted = fma(x, splat(x, 1.4426950408889634073599), shift)
    n = shifted - shift
    r = fma(n, splat(x, -1.42860682030941723212e-6), fma(n, splat(x, -6.93145751953125e-1), x))
    s = r * r
    p = fma(splat(x, 1.26177193074810590878e-4), s, splat(x, 3.02994407707441961300e-2))
    p = fma(p, s, splat(x, 9.99999999999999999910e-1)) * r
    q = fma(splat(x, 3.00198505138664455042e-6), s, splat(x, 2.52448340349684104192e-3))
    q = fma(fma(q, s, splat(x, 2.27265548208155028766e-1)), s, splat(x, 2.0))
    y = fma(splat(x, 2.0), p / (q - p), splat(x, 1.0))
    return select(x < splat(x, -708.0), splat(x, 0.0), _times_power_of_two(y, shifted))
