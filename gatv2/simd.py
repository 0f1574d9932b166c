"""Portable SIMD vectors for Numba: a value type whose data model is an LLVM vector.

LLVM vectorises a loop over eight features badly, and knows nothing of heads. Here a row of features
is one LLVM value of any number of lanes, which LLVM splits over the registers of the CPU that it
compiles for: the same code is right on every machine, and as good as one would write it by hand.
"""

import hashlib
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils, extending
from numba.core.datamodel import models
from numba.core.typing.templates import AttributeTemplate
from numba.np.arrayobj import make_array

Function = TypeVar("Function", bound=Callable[..., Any])
Decorator = Callable[[Callable[..., Any]], Any]

# Numba has no types
intrinsic: Decorator = extending.intrinsic
infer_getattr: Decorator = extending.infer_getattr
lower_builtin: Callable[..., Decorator] = extending.lower_builtin
lower_getattr_generic: Callable[..., Decorator] = extending.lower_getattr_generic
overload: Callable[..., Decorator] = extending.overload
register_model: Callable[..., Decorator] = extending.register_model
type_callable: Callable[..., Decorator] = extending.type_callable
unbox: Callable[..., Decorator] = extending.unbox

# Numba's cache asks for the age of the file of the function it compiled, and of no other. `Vectors`
# carry a digest of all the sources that end up in a kernel, so that stale code is never loaded.
_HERE = Path(__file__)
_SOURCES = [_HERE, _HERE.with_name("parallel.py"), *sorted(_HERE.parent.glob("**/numba_*.py"))]
_DIGEST = hashlib.blake2b(b"".join(p.read_bytes() for p in _SOURCES), digest_size=8).hexdigest()

_ELEMENTS: dict[Any, ir.Type] = {
    types.float32: ir.FloatType(),
    types.float64: ir.DoubleType(),
    types.int32: ir.IntType(32),
    types.uint32: ir.IntType(32),
    types.boolean: ir.IntType(1),
}


class VectorType(types.Type):  # type: ignore[misc]
    """Numba's type of a vector of `lanes` scalars of one type."""

    def __init__(self, dtype: Any, lanes: int) -> None:
        self.dtype, self.lanes = dtype, lanes
        super().__init__(name=f"Vector({dtype}, {lanes})")

    @property
    def llvm(self) -> ir.VectorType:
        """The LLVM type."""
        return ir.VectorType(_ELEMENTS[self.dtype], self.lanes)

    @property
    def mask(self) -> "VectorType":
        """Type of a comparison."""
        return VectorType(types.boolean, self.lanes)

    @property
    def is_float(self) -> bool:
        """Whether the lanes are floating point."""
        return isinstance(self.dtype, types.Float)


class VectorClassType(types.Type):  # type: ignore[misc]
    """Numba's type of a vector type, as a value: its `lanes`, and `bytes` for a bit of each."""

    def __init__(self, vector: VectorType) -> None:
        self.vector = vector
        self.constants = {"lanes": vector.lanes, "bytes": _mask_bytes(vector)}
        super().__init__(name=f"type of {vector.name}")


class VectorsType(types.Type):  # type: ignore[misc]
    """Numba's type of `Vectors`."""

    def __init__(self, members: dict[str, VectorType]) -> None:
        self.members = {name: VectorClassType(vector) for name, vector in members.items()}
        super().__init__(name=f"Vectors({members}, {_DIGEST})")


class Vectors:
    """Names vector types to a kernel: passed as an argument, it compiles the kernel for them.

    Args:
        members: of each type its name, NumPy's float32, float64, int32 or uint32, and its lanes.
    """

    def __init__(self, **members: tuple[Any, int]) -> None:
        self._numba_type_ = VectorsType(
            {
                name: VectorType(getattr(types, np.dtype(dtype).name), lanes)
                for name, (dtype, lanes) in members.items()
            }
        )


@register_model(VectorType)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, fe_type: VectorType) -> None:
        super().__init__(manager, fe_type, fe_type.llvm)


register_model(VectorClassType)(models.OpaqueModel)
register_model(VectorsType)(models.OpaqueModel)


@unbox(VectorsType)
def _unbox(_typ: VectorsType, _value: object, c: Any) -> Any:
    return extending.NativeValue(c.context.get_dummy_value())


@infer_getattr
class _VectorsAttribute(AttributeTemplate):  # type: ignore[misc]
    key = VectorsType

    def generic_resolve(self, typ: VectorsType, name: str) -> VectorClassType | None:
        return typ.members.get(name)


@lower_getattr_generic(VectorsType)
def _get_member(context: Any, _builder: Any, _typ: Any, _value: Any, _name: str) -> Any:
    return context.get_dummy_value()


@infer_getattr
class _VectorClassAttribute(AttributeTemplate):  # type: ignore[misc]
    key = VectorClassType

    def generic_resolve(self, typ: VectorClassType, name: str) -> Any:
        return types.intp if name in typ.constants else None


@lower_getattr_generic(VectorClassType)
def _get_constant(context: Any, _builder: Any, typ: Any, _value: Any, name: str) -> Any:
    return context.get_constant(types.intp, typ.constants[name])


def kernel(function: Function) -> Function:
    """`numba.njit` for kernels: without the GIL, cached on disk where a directory can be written."""
    try:
        return njit(nogil=True, error_model="numpy", cache=True)(function)  # type: ignore[no-any-return]
    except RuntimeError:  # neither beside the source nor in the user's cache directory
        return njit(nogil=True, error_model="numpy")(function)  # type: ignore[no-any-return]


def inline(function: Function) -> Function:
    """`numba.njit` for the parts of a kernel: LLVM always inlines them."""
    return njit(nogil=True, error_model="numpy", forceinline=True)(function)  # type: ignore[no-any-return]


# Arithmetic: lane by lane, on two vectors of one type.


def _declare(function: Callable[..., Any], result: Callable[[VectorType], VectorType]) -> None:
    @type_callable(function)
    def typing(_context: Any) -> Callable[..., Any]:
        def typer(a: Any, b: Any) -> VectorType | None:
            return result(a) if isinstance(a, VectorType) and a == b else None

        return typer


def _arithmetic(function: Callable[..., Any], name: str) -> None:
    _declare(function, lambda vector: vector)

    @lower_builtin(function, VectorType, VectorType)
    def lower(_context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return getattr(builder, f"f{name}" if sig.return_type.is_float else name)(*args)


def _comparison(function: Callable[..., Any], predicate: str) -> None:
    _declare(function, lambda vector: vector.mask)

    @lower_builtin(function, VectorType, VectorType)
    def lower(_context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if sig.args[0].is_float:
            return builder.fcmp_ordered(predicate, *args)
        return builder.icmp_unsigned(predicate, *args)


for _function, _name in {
    operator.add: "add",
    operator.sub: "sub",
    operator.mul: "mul",
    operator.truediv: "div",
    operator.xor: "xor",
}.items():
    _arithmetic(_function, _name)
_comparison(operator.gt, ">")
_comparison(operator.lt, "<")
_comparison(operator.eq, "==")


@intrinsic
def fma(_typing: Any, a: Any, b: Any, c: Any) -> Any:
    """`a * b + c`, fused where the CPU can."""

    def lower(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        # llvmlite can't derive the name of an intrinsic on vectors
        name = f"llvm.fmuladd.v{a.lanes}f{a.dtype.bitwidth}"
        fnty = ir.FunctionType(a.llvm, [a.llvm] * 3)
        return builder.call(cgutils.get_or_insert_function(builder.module, fnty, name), args)

    return a(a, b, c), lower


@intrinsic
def select(_typing: Any, mask: Any, a: Any, b: Any) -> Any:
    """`a` in the lanes where the mask is true, else `b`."""

    def lower(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        return builder.select(*args)

    return a(mask, a, b), lower


@intrinsic
def splat(_typing: Any, like: Any, value: Any) -> Any:
    """A scalar in every lane; the type is given by a vector class, or by a vector."""
    vector = _vector(like)

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        scalar = context.cast(builder, args[1], value, vector.dtype)
        if vector.dtype == types.boolean:
            scalar = builder.trunc(scalar, ir.IntType(1))
        undefined = ir.Constant(vector.llvm, ir.Undefined)
        first = builder.insert_element(undefined, scalar, ir.Constant(ir.IntType(32), 0))
        return _shuffle(builder, first, [0] * vector.lanes)

    return vector(like, value), lower


@intrinsic
def high_product(_typing: Any, a: Any, b: Any) -> Any:
    """The high 32 bits of the products of two uint32 vectors."""

    def lower(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        wide = ir.VectorType(ir.IntType(64), a.lanes)
        product = builder.mul(*(builder.zext(arg, wide) for arg in args))
        shift = ir.Constant(wide, [32] * a.lanes)
        return builder.trunc(builder.lshr(product, shift), a.llvm)

    return a(a, b), lower


# Memory: arrays are contiguous and of one dimension, indices count their elements.


@intrinsic
def load(_typing: Any, cls: Any, array: Any, index: Any) -> Any:
    """The vector of class `cls` that starts at `array[index]`."""
    vector = _vector(cls)

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = _pointer(context, builder, sig, args, 1, vector.lanes)
        llvm = ir.VectorType(context.get_data_type(array.dtype), vector.lanes)
        value = builder.load(builder.bitcast(pointer, llvm.as_pointer()), align=_alignment(array))
        return builder.trunc(value, vector.llvm) if _is_narrower(vector, array) else value

    return vector(cls, array, types.intp), lower


@intrinsic
def store(_typing: Any, array: Any, index: Any, value: Any) -> Any:
    """Store a vector from `array[index]` on."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = _pointer(context, builder, sig, args, 0, value.lanes)
        pointer = builder.bitcast(pointer, value.llvm.as_pointer())
        builder.store(args[2], pointer, align=_alignment(array))
        return context.get_dummy_value()

    return types.void(array, types.intp, value), lower


@intrinsic
def load_mask(_typing: Any, cls: Any, array: Any, index: Any) -> Any:
    """A mask as long as a `cls`, from the bool values that start at `array[index]`."""
    mask = _vector(cls).mask

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = _pointer(context, builder, sig, args, 1, mask.lanes)
        llvm = ir.VectorType(ir.IntType(8), mask.lanes)
        value = builder.load(builder.bitcast(pointer, llvm.as_pointer()), align=1)
        return builder.icmp_unsigned("!=", value, ir.Constant(llvm, [0] * mask.lanes))

    return mask(cls, array, types.intp), lower


@intrinsic
def load_bits(_typing: Any, cls: Any, array: Any, index: Any) -> Any:
    """A mask as long as a `cls`, one bit a lane, from the bytes that start at `array[index]`."""
    mask = _vector(cls).mask

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = _pointer(context, builder, sig, args, 1, _mask_bytes(mask))
        llvm = ir.IntType(8 * _mask_bytes(mask))
        bits = builder.load(builder.bitcast(pointer, llvm.as_pointer()), align=1)
        if mask.lanes < llvm.width:
            bits = builder.trunc(bits, ir.IntType(mask.lanes))
        return builder.bitcast(bits, mask.llvm)

    return mask(cls, array, types.intp), lower


@intrinsic
def store_bits(_typing: Any, array: Any, index: Any, mask: Any) -> Any:
    """Store a mask, one bit a lane, in the bytes from `array[index]` on."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = _pointer(context, builder, sig, args, 0, _mask_bytes(mask))
        llvm = ir.IntType(8 * _mask_bytes(mask))
        bits = builder.bitcast(args[2], ir.IntType(mask.lanes))
        if mask.lanes < llvm.width:
            bits = builder.zext(bits, llvm)
        builder.store(bits, builder.bitcast(pointer, llvm.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(array, types.intp, mask), lower


@intrinsic
def bits_of(_typing: Any, mask: Any) -> Any:
    """A mask of 64 lanes as an integer, lane 0 in the lowest bit."""

    def lower(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.IntType(64))

    return types.uint64(mask), lower


@intrinsic
def lowest_bit(_typing: Any, bits: Any) -> Any:
    """Position of the lowest bit that is set, in an integer that is not zero."""

    def lower(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), lower


@intrinsic
def count_bits(_typing: Any, bits: Any) -> Any:
    """Number of bits that are set."""

    def lower(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        return builder.ctpop(args[0])

    return types.int64(types.uint64), lower


@intrinsic
def prefetch(_typing: Any, cls: Any, array: Any, index: Any) -> Any:
    """Ask for the vector of class `cls` at `array[index]` ahead of its use."""
    vector = _vector(cls)

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = _pointer(context, builder, sig, args, 1, 0)
        byte_pointer = ir.IntType(8).as_pointer()
        pointer = builder.bitcast(pointer, byte_pointer)
        int32 = ir.IntType(32)
        fnty = ir.FunctionType(ir.VoidType(), [byte_pointer, int32, int32, int32])
        function = cgutils.get_or_insert_function(builder.module, fnty, "llvm.prefetch.p0")
        read, keep, data = (ir.Constant(int32, flag) for flag in (0, 3, 1))
        for line in range(0, max(vector.lanes * array.dtype.bitwidth // 8, 1), 64):
            address = builder.gep(pointer, [ir.Constant(ir.IntType(64), line)])
            builder.call(function, [address, read, keep, data])
        return context.get_dummy_value()

    return types.void(cls, array, types.intp), lower


# Lanes: a vector of T lanes holds G groups of T / G neighbours, one group a head.


@intrinsic
def group_sum(_typing: Any, cls: Any, value: Any) -> Any:
    """The sum of each group of neighbouring lanes; `cls` has one lane a group."""
    groups = _vector(cls)

    def lower(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        (total,), width = args[1:], value.lanes // groups.lanes
        while width > 1:
            half = width // 2
            low = [g * width + i for g in range(groups.lanes) for i in range(half)]
            total = builder.fadd(
                _shuffle(builder, total, low), _shuffle(builder, total, [i + half for i in low])
            )
            width = half
        return total

    return groups(cls, value), lower


@intrinsic
def expand(_typing: Any, cls: Any, value: Any) -> Any:
    """A lane of `value` in each lane of its group: what `group_sum` sums."""
    vector = _vector(cls)

    def lower(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        width = vector.lanes // value.lanes
        return _shuffle(builder, args[1], [i // width for i in range(vector.lanes)])

    return vector(cls, value), lower


@intrinsic
def tile(_typing: Any, cls: Any, value: Any) -> Any:
    """`value` again and again."""
    vector = _vector(cls)

    def lower(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        return _shuffle(builder, args[1], [i % value.lanes for i in range(vector.lanes)])

    return vector(cls, value), lower


@intrinsic
def fold(_typing: Any, cls: Any, value: Any) -> Any:
    """The sum of the parts of `value` that are as long as a `cls`: what `tile` repeats."""
    part = _vector(cls)

    def lower(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        total, lanes = args[1], value.lanes
        while lanes > part.lanes:
            lanes //= 2
            low = list(range(lanes))
            total = builder.fadd(
                _shuffle(builder, total, low), _shuffle(builder, total, [i + lanes for i in low])
            )
        return total

    return part(cls, value), lower


# The exponential function, with the coefficients of Moshier's Cephes library.


@intrinsic
def _times_power_of_two(_typing: Any, value: Any, shifted: Any) -> Any:
    """`value * 2**n` for integers n that stand in the lowest bits of the mantissa of `shifted`."""

    def lower(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        bits, mantissa, bias = (32, 23, 127) if value.dtype == types.float32 else (64, 52, 1023)
        integers = ir.VectorType(ir.IntType(bits), value.lanes)
        exponent = builder.add(
            builder.bitcast(args[1], integers), ir.Constant(integers, [bias] * value.lanes)
        )
        power = builder.shl(exponent, ir.Constant(integers, [mantissa] * value.lanes))
        return builder.fmul(args[0], builder.bitcast(power, value.llvm))

    return value(value, shifted), lower


def exp(x: Any) -> Any:
    """e**x lane by lane, for x not above zero by much; a result that is not a normal number is zero."""
    raise NotImplementedError("for Numba only")


@overload(exp)
def _overload_exp(x: Any) -> Callable[..., Any]:
    return _exp_float32 if x.dtype == types.float32 else _exp_float64


def _exp_float32(x: Any) -> Any:
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


def _exp_float64(x: Any) -> Any:
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


# Helpers of the intrinsics.


def _vector(like: Any) -> VectorType:
    return like.vector if isinstance(like, VectorClassType) else like


def _is_narrower(vector: VectorType, array: Any) -> bool:
    return isinstance(array.dtype, types.Integer) and vector.dtype.bitwidth < array.dtype.bitwidth


def _alignment(array: Any) -> int:
    return int(array.dtype.bitwidth) // 8


def _mask_bytes(mask: VectorType) -> int:
    return max(mask.lanes // 8, 1)


def _shuffle(builder: Any, value: Any, lanes: list[int]) -> Any:
    index = ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), lanes)
    return builder.shuffle_vector(value, ir.Constant(value.type, ir.Undefined), index)


def _pointer(context: Any, builder: Any, sig: Any, args: Any, position: int, length: int) -> Any:
    """Address of `array[index]`; with NUMBA_BOUNDSCHECK=1, `length` elements must be there."""
    array, index = args[position : position + 2]
    struct = make_array(sig.args[position])(context, builder, array)
    if context.enable_boundscheck and length:
        size = builder.extract_value(struct.shape, 0)
        cgutils.do_boundscheck(context, builder, index, size)
        last = builder.add(index, ir.Constant(index.type, length - 1))
        cgutils.do_boundscheck(context, builder, last, size)
    return builder.gep(struct.data, [index])
