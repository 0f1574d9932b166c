"""The natural logarithm of SIMD vectors, with the coefficients of Moshier's Cephes library."""

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

_ROOT = {32: 0x3F3504F3, 64: 0x3FE6A09E667F3BCD}
"""The bits of the square root of one half."""
_MANTISSA = {32: 23, 64: 52}
"""Bits of a mantissa."""


def _split(builder: Builder, value: Vector, x: Value) -> tuple[Value, Value, Value]:
    """(e, bits of x, bits of a mantissa): x is 2**e times a number from sqrt(1/2) to sqrt(2)."""
    size = value.dtype.bitwidth
    integers = ir.VectorType(ir.IntType(size), value.lanes)
    bits = builder.bitcast(x, integers)
    root, mantissa = (ir.Constant(integers, [n[size]] * value.lanes) for n in (_ROOT, _MANTISSA))
    return builder.ashr(builder.sub(bits, root), mantissa), bits, mantissa


@intrinsic
def _exponent(_typing: Typing, value: Vector) -> Vector:
    """The e of x = 2**e * m, where m lies between sqrt(1/2) and sqrt(2)."""

    def lower(_context: Context, builder: Builder, _sig: Signature, args: Values) -> Value:
        e, _, _ = _split(builder, value, args[0])
        return builder.sitofp(e, value.llvm)

    return value(value), lower


@intrinsic
def _mantissa(_typing: Typing, value: Vector) -> Vector:
    """The m of x = 2**e * m."""

    def lower(_context: Context, builder: Builder, _sig: Signature, args: Values) -> Value:
        e, bits, mantissa = _split(builder, value, args[0])
        return builder.bitcast(builder.sub(bits, builder.shl(e, mantissa)), value.llvm)

    return value(value), lower


def log(x: Vector) -> Vector:
    """Ln x lane by lane, for normal numbers above zero and NaN; for zero it is some finite number."""
    raise NotImplementedError("for Numba only")


@overload(log)
def _overload_log(x: Vector) -> Callable[[Vector], Vector]:
    return _log_float32 if x.dtype == types.float32 else _log_float64


def _log_float32(x: Vector) -> Vector:
    e, f = _exponent(x), _mantissa(x) - splat(x, 1.0)
    y = fma(splat(x, 7.0376836292e-2), f, splat(x, -1.1514610310e-1))
    y = fma(y, f, splat(x, 1.1676998740e-1))
    y = fma(y, f, splat(x, -1.2420140846e-1))
    y = fma(y, f, splat(x, 1.4249322787e-1))
    y = fma(y, f, splat(x, -1.6668057665e-1))
    y = fma(y, f, splat(x, 2.0000714765e-1))
    y = fma(y, f, splat(x, -2.4999993993e-1))
    y = fma(y, f, splat(x, 3.3333331174e-1))
    s = f * f
    y = fma(e, splat(x, -2.12194440e-4), fma(s, splat(x, -0.5), y * f * s))
    y = fma(e, splat(x, 0.693359375), f + y)
    return select(x == x, y, x)


def _log_float64(x: Vector) -> Vector:
    e, f = _exponent(x), _mantissa(x) - splat(x, 1.0)
    p = fma(splat(x, 1.01875663804580931796e-4), f, splat(x, 4.97494994976747001425e-1))
    p = fma(p, f, splat(x, 4.70579119878881725854))
    p = fma(p, f, splat(x, 14.4989225341610930846))
    p = fma(p, f, splat(x, 17.9368678507819816313))
    p = fma(p, f, splat(x, 7.70838733755885391666))
    q = f + splat(x, 11.2873587189167450590)
    q = fma(q, f, splat(x, 45.2279145837532221105))
    q = fma(q, f, splat(x, 82.9875266912776603211))
    q = fma(q, f, splat(x, 71.1544750618563894466))
    q = fma(q, f, splat(x, 23.1251620126765340583))
    s = f * f
    y = fma(e, splat(x, -2.121944400546905827679e-4), fma(s, splat(x, -0.5), f * s * (p / q)))
    y = fma(e, splat(x, 0.693359375), f + y)
    return select(x == x, y, x)
