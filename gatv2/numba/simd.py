"""Portable SIMD operations for Numba, on the vectors of `gatv2.numba.vectors`.

LLVM vectorises a loop over eight features badly, and knows nothing of heads. Here a row of features
is one LLVM value, and the code is as good as one would write it by hand for each CPU.
"""

import operator
from collections.abc import Callable

from llvmlite import ir
from numba import types
from numba.core import cgutils

from gatv2.numba.arguments import (
    Bits,
    Bytes,
    Flags,
    Floats,
    Index,
    Integers,
    Mask,
    Nothing,
    Number,
    Truth,
    Vector,
    VectorClass,
)
from gatv2.numba.compile import (
    Builder,
    Context,
    Signature,
    Typing,
    Value,
    Values,
    field_of,
    intrinsic,
    lower_builtin,
    type_callable,
)
from gatv2.numba.vectors import VectorClassType, VectorType, mask_bytes

# Arithmetic: lane by lane, on two vectors of one type.


def _declare(function: Callable[..., object], result: Callable[[VectorType], VectorType]) -> None:
    @type_callable(function)
    def typing(_context: Typing) -> Callable[..., VectorType | None]:
        def typer(a: types.Type, b: types.Type) -> VectorType | None:
            return result(a) if isinstance(a, VectorType) and a == b else None

        return typer


def _arithmetic(function: Callable[..., object], name: str) -> None:
    _declare(function, lambda vector: vector)

    @lower_builtin(function, VectorType, VectorType)
    def lower(_context: Context, builder: Builder, sig: Signature, args: Values) -> Value:
        return getattr(builder, f"f{name}" if sig.return_type.is_float else name)(*args)


def _comparison(function: Callable[..., object], predicate: str) -> None:
    _declare(function, lambda vector: vector.mask)

    @lower_builtin(function, VectorType, VectorType)
    def lower(_context: Context, builder: Builder, sig: Signature, args: Values) -> Value:
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
def fma(_typing: Typing, a: Vector, b: Vector, c: Vector) -> Vector:
    """`a * b + c`, fused where the CPU can."""

    def lower(_context: Context, builder: Builder, _sig: Signature, args: Values) -> Value:
        # llvmlite can't derive the name of an intrinsic on vectors
        name = f"llvm.fmuladd.v{a.lanes}f{a.dtype.bitwidth}"
        fnty = ir.FunctionType(a.llvm, [a.llvm] * 3)
        return builder.call(cgutils.get_or_insert_function(builder.module, fnty, name), args)

    return a(a, b, c), lower


@intrinsic
def select(_typing: Typing, mask: Mask, a: Vector, b: Vector) -> Vector:
    """`a` in the lanes where the mask is true, else `b`."""

    def lower(_context: Context, builder: Builder, _sig: Signature, args: Values) -> Value:
        return builder.select(*args)

    return a(mask, a, b), lower


@intrinsic
def splat(_typing: Typing, like: VectorClass | Vector, value: Number) -> Vector:
    """A scalar in every lane; the type is given by a vector class, or by a vector."""
    vector = _vector(like)

    def lower(context: Context, builder: Builder, sig: Signature, args: Values) -> Value:
        scalar = context.cast(builder, args[1], value, vector.dtype)
        if vector.dtype == types.boolean:
            scalar = builder.trunc(scalar, ir.IntType(1))
        undefined = ir.Constant(vector.llvm, ir.Undefined)
        first = builder.insert_element(undefined, scalar, ir.Constant(ir.IntType(32), 0))
        return _shuffle(builder, first, [0] * vector.lanes)

    return vector(like, value), lower


@intrinsic
def high_product(_typing: Typing, a: Vector, b: Vector) -> Vector:
    """The high 32 bits of the products of two uint32 vectors."""

    def lower(_context: Context, builder: Builder, _sig: Signature, args: Values) -> Value:
        wide = ir.VectorType(ir.IntType(64), a.lanes)
        product = builder.mul(*(builder.zext(arg, wide) for arg in args))
        shift = ir.Constant(wide, [32] * a.lanes)
        return builder.trunc(builder.lshr(product, shift), a.llvm)

    return a(a, b), lower


# Memory: arrays are contiguous and of one dimension, indices count their elements.


@intrinsic
def load(_typing: Typing, cls: VectorClass, array: Floats, index: Index) -> Vector:
    """The vector of class `cls` that starts at `array[index]`."""
    vector = _vector(cls)

    def lower(context: Context, builder: Builder, sig: Signature, args: Values) -> Value:
        pointer = _pointer(context, builder, sig, args, 1, vector.lanes)
        llvm = ir.VectorType(context.get_data_type(array.dtype), vector.lanes)
        value = builder.load(builder.bitcast(pointer, llvm.as_pointer()), align=_alignment(array))
        return builder.trunc(value, vector.llvm) if _is_narrower(vector, array) else value

    return vector(cls, array, types.intp), lower


@intrinsic
def element(_typing: Typing, array: Integers, index: Index) -> Index:
    """`array[index]`, of an index that is not negative: Numba's own asks whether it is."""

    def lower(context: Context, builder: Builder, sig: Signature, args: Values) -> Value:
        value = builder.load(_pointer(context, builder, sig, args, 0, 1))
        return context.cast(builder, value, array.dtype, types.int64)

    return types.int64(array, types.intp), lower


@intrinsic
def broadcast(_typing: Typing, like: VectorClass | Vector, array: Floats, index: Index) -> Vector:
    """`array[index]` in every lane; the type is given as to `splat`."""
    vector = _vector(like)

    def lower(context: Context, builder: Builder, sig: Signature, args: Values) -> Value:
        scalar = builder.load(_pointer(context, builder, sig, args, 1, 1))
        undefined = ir.Constant(vector.llvm, ir.Undefined)
        first = builder.insert_element(undefined, scalar, ir.Constant(ir.IntType(32), 0))
        return _shuffle(builder, first, [0] * vector.lanes)

    return vector(like, array, types.intp), lower


@intrinsic
def broadcast_each(
    _typing: Typing,
    cls: VectorClass,
    part: VectorClass,
    array: Floats,
    index: Index,
    stride: Index,
) -> Vector:
    """`array[index]` in every lane of a `part`, `array[index + stride]` in those of the next, and on."""
    vector, width = _vector(cls), _vector(part).lanes
    n = vector.lanes // width

    def lower(context: Context, builder: Builder, sig: Signature, args: Values) -> Value:
        *_, array, index, stride = args
        values = ir.Constant(vector.llvm, ir.Undefined)
        for k in range(n):
            at = builder.add(index, builder.mul(stride, ir.Constant(index.type, k)))
            pointer = _pointer(context, builder, sig, [*args[:2], array, at], 2, 1)
            lane = ir.Constant(ir.IntType(32), k)
            values = builder.insert_element(values, builder.load(pointer), lane)
        return _shuffle(builder, values, [i // width for i in range(vector.lanes)])

    return vector(cls, part, array, types.intp, types.intp), lower


@intrinsic
def store(_typing: Typing, array: Floats, index: Index, value: Vector) -> Nothing:
    """Store a vector from `array[index]` on."""

    def lower(context: Context, builder: Builder, sig: Signature, args: Values) -> Value:
        pointer = _pointer(context, builder, sig, args, 0, value.lanes)
        pointer = builder.bitcast(pointer, value.llvm.as_pointer())
        builder.store(args[2], pointer, align=_alignment(array))
        return context.get_dummy_value()

    return types.void(array, types.intp, value), lower


@intrinsic
def load_first(
    _typing: Typing, cls: VectorClass, array: Floats, index: Index, n: Index, rest: Vector
) -> Vector:
    """As `load`, but only the first `n` lanes are read, if there are so many; `rest` has the others."""
    vector = _vector(cls)

    def lower(context: Context, builder: Builder, sig: Signature, args: Values) -> Value:
        pointer = _pointer(context, builder, sig, args, 1, 0)
        pointer = builder.bitcast(pointer, vector.llvm.as_pointer())
        mask, align = _first_lanes(builder, vector, args[3]), _word(_alignment(array))
        types_of = [pointer.type, align.type, mask.type, vector.llvm]
        function = _masked(builder, "load", vector, ir.FunctionType(vector.llvm, types_of))
        return builder.call(function, [pointer, align, mask, args[4]])

    return vector(cls, array, types.intp, types.intp, vector), lower


@intrinsic
def store_first(_typing: Typing, array: Floats, index: Index, value: Vector, n: Index) -> Nothing:
    """As `store`, but only the first `n` lanes are written, if there are so many."""

    def lower(context: Context, builder: Builder, sig: Signature, args: Values) -> Value:
        pointer = _pointer(context, builder, sig, args, 0, 0)
        pointer = builder.bitcast(pointer, value.llvm.as_pointer())
        mask, align = _first_lanes(builder, value, args[3]), _word(_alignment(array))
        types_of = [value.llvm, pointer.type, align.type, mask.type]
        function = _masked(builder, "store", value, ir.FunctionType(ir.VoidType(), types_of))
        builder.call(function, [args[2], pointer, align, mask])
        return context.get_dummy_value()

    return types.void(array, types.intp, value, types.intp), lower


@intrinsic
def turn(
    _typing: Typing,
    cls: VectorClass,
    array: Floats,
    index: Index,
    stride: Index,
    out: Floats,
    out_index: Index,
    out_stride: Index,
) -> Nothing:
    """Transpose a square block of as many rows as `cls` has lanes; rows start `stride` apart."""
    vector, index_type = _vector(cls), types.intp
    n = vector.lanes

    def lower(context: Context, builder: Builder, sig: Signature, args: Values) -> Value:
        def row(k: int, position: int) -> Value:
            array, start, stride = args[position : position + 3]
            at = builder.add(start, builder.mul(stride, ir.Constant(start.type, k)))
            given = [*args[:position], array, at]
            pointer = _pointer(context, builder, sig, given, position, n)
            return builder.bitcast(pointer, vector.llvm.as_pointer())

        align = _alignment(array)
        rows = [builder.load(row(k, 1), align=align) for k in range(n)]
        half = 1
        while half < n:  # swap the two halves off the diagonal of each block of twice this size
            upper = [i if not i & half else n + i - half for i in range(n)]
            lower = [i + half if not i & half else n + i for i in range(n)]
            for k in range(n):
                if not k & half:
                    pair = rows[k], rows[k + half]
                    rows[k] = _shuffle_two(builder, *pair, upper)
                    rows[k + half] = _shuffle_two(builder, *pair, lower)
            half *= 2
        for k in range(n):
            builder.store(rows[k], row(k, 4), align=align)
        return context.get_dummy_value()

    indices = index_type, index_type
    return types.void(cls, array, *indices, out, *indices), lower


@intrinsic
def load_mask(_typing: Typing, cls: VectorClass, array: Flags, index: Index) -> Mask:
    """A mask as long as a `cls`, from the bool values that start at `array[index]`."""
    mask = _vector(cls).mask

    def lower(context: Context, builder: Builder, sig: Signature, args: Values) -> Value:
        pointer = _pointer(context, builder, sig, args, 1, mask.lanes)
        llvm = ir.VectorType(ir.IntType(8), mask.lanes)
        value = builder.load(builder.bitcast(pointer, llvm.as_pointer()), align=1)
        return builder.icmp_unsigned("!=", value, ir.Constant(llvm, [0] * mask.lanes))

    return mask(cls, array, types.intp), lower


@intrinsic
def load_bits(_typing: Typing, cls: VectorClass, array: Bytes, index: Index) -> Mask:
    """A mask as long as a `cls`, one bit a lane, from the bytes that start at `array[index]`."""
    mask = _vector(cls).mask

    def lower(context: Context, builder: Builder, sig: Signature, args: Values) -> Value:
        pointer = _pointer(context, builder, sig, args, 1, mask_bytes(mask))
        llvm = ir.IntType(8 * mask_bytes(mask))
        bits = builder.load(builder.bitcast(pointer, llvm.as_pointer()), align=1)
        if mask.lanes < llvm.width:
            bits = builder.trunc(bits, ir.IntType(mask.lanes))
        return builder.bitcast(bits, mask.llvm)

    return mask(cls, array, types.intp), lower


@intrinsic
def store_bits(_typing: Typing, array: Bytes, index: Index, mask: Mask) -> Nothing:
    """Store a mask, one bit a lane, in the bytes from `array[index]` on."""

    def lower(context: Context, builder: Builder, sig: Signature, args: Values) -> Value:
        pointer = _pointer(context, builder, sig, args, 0, mask_bytes(mask))
        llvm = ir.IntType(8 * mask_bytes(mask))
        bits = builder.bitcast(args[2], ir.IntType(mask.lanes))
        if mask.lanes < llvm.width:
            bits = builder.zext(bits, llvm)
        builder.store(bits, builder.bitcast(pointer, llvm.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(array, types.intp, mask), lower


@intrinsic
def bits_of(_typing: Typing, mask: Mask) -> Bits:
    """A mask of at most 64 lanes as an integer, lane 0 in the lowest bit."""

    def lower(_context: Context, builder: Builder, _sig: Signature, args: Values) -> Value:
        bits = builder.bitcast(args[0], ir.IntType(mask.lanes))
        return bits if mask.lanes == 64 else builder.zext(bits, ir.IntType(64))

    return types.uint64(mask), lower


@intrinsic
def is_any(_typing: Typing, mask: Mask) -> Truth:
    """Whether any lane of a mask is set."""
    bits = ir.IntType(mask.lanes)

    def lower(_context: Context, builder: Builder, _sig: Signature, args: Values) -> Value:
        return builder.icmp_unsigned("!=", builder.bitcast(args[0], bits), ir.Constant(bits, 0))

    return types.boolean(mask), lower


@intrinsic
def has_nan(_typing: Typing, value: Vector) -> Truth:
    """Whether any lane of a vector is NaN."""
    bits = ir.IntType(value.lanes)

    def lower(_context: Context, builder: Builder, _sig: Signature, args: Values) -> Value:
        is_nan = builder.fcmp_unordered("uno", args[0], args[0])
        return builder.icmp_unsigned("!=", builder.bitcast(is_nan, bits), ir.Constant(bits, 0))

    return types.boolean(value), lower


@intrinsic
def lowest_bit(_typing: Typing, bits: Bits) -> Index:
    """Position of the lowest bit that is set, in an integer that is not zero."""

    def lower(_context: Context, builder: Builder, _sig: Signature, args: Values) -> Value:
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), lower


@intrinsic
def count_bits(_typing: Typing, bits: Bits) -> Index:
    """Number of bits that are set."""

    def lower(_context: Context, builder: Builder, _sig: Signature, args: Values) -> Value:
        return builder.ctpop(args[0])

    return types.int64(types.uint64), lower


@intrinsic
def prefetch(_typing: Typing, cls: VectorClass, array: Floats, index: Index) -> Nothing:
    """Ask for the vector of class `cls` at `array[index]` ahead of its use."""
    vector = _vector(cls)

    def lower(context: Context, builder: Builder, sig: Signature, args: Values) -> Value:
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
def group_sum(_typing: Typing, cls: VectorClass, value: Vector) -> Vector:
    """The sum of each group of neighbouring lanes; `cls` has one lane a group."""
    groups = _vector(cls)

    def lower(_context: Context, builder: Builder, _sig: Signature, args: Values) -> Value:
        return _sum_groups(builder, args[1], groups.lanes, value.lanes)

    return groups(cls, value), lower


@intrinsic
def sum_lanes(_typing: Typing, value: Vector) -> Number:
    """The sum of all lanes."""

    def lower(_context: Context, builder: Builder, _sig: Signature, args: Values) -> Value:
        total = _sum_groups(builder, args[0], 1, value.lanes)
        return builder.extract_element(total, ir.Constant(ir.IntType(32), 0))

    return value.dtype(value), lower


@intrinsic
def expand(_typing: Typing, cls: VectorClass, value: Vector) -> Vector:
    """A lane of `value` in each lane of its group: what `group_sum` sums."""
    vector = _vector(cls)

    def lower(_context: Context, builder: Builder, _sig: Signature, args: Values) -> Value:
        width = vector.lanes // value.lanes
        return _shuffle(builder, args[1], [i // width for i in range(vector.lanes)])

    return vector(cls, value), lower


@intrinsic
def repeat(_typing: Typing, cls: VectorClass, value: Vector) -> Vector:
    """`value` again and again."""
    vector = _vector(cls)

    def lower(_context: Context, builder: Builder, _sig: Signature, args: Values) -> Value:
        return _shuffle(builder, args[1], [i % value.lanes for i in range(vector.lanes)])

    return vector(cls, value), lower


@intrinsic
def fold(_typing: Typing, cls: VectorClass, value: Vector) -> Vector:
    """The sum of the parts of `value` that are as long as a `cls`: what `repeat` repeats."""
    part = _vector(cls)

    def lower(_context: Context, builder: Builder, _sig: Signature, args: Values) -> Value:
        total, lanes = args[1], value.lanes
        while lanes > part.lanes:
            lanes //= 2
            low = list(range(lanes))
            total = builder.fadd(
                _shuffle(builder, total, low), _shuffle(builder, total, [i + lanes for i in low])
            )
        return total

    return part(cls, value), lower


# Helpers of the intrinsics.


def _vector(like: types.Type) -> VectorType:
    return like.vector if isinstance(like, VectorClassType) else like


def _is_narrower(vector: VectorType, array: types.Array) -> bool:
    return isinstance(array.dtype, types.Integer) and vector.dtype.bitwidth < array.dtype.bitwidth


def _alignment(array: types.Array) -> int:
    return int(array.dtype.bitwidth) // 8


def _word(value: int) -> Value:
    return ir.Constant(ir.IntType(32), value)


def _first_lanes(builder: Builder, vector: VectorType, n: Value) -> Value:
    """The mask of the first `n` lanes."""
    numbers = ir.VectorType(ir.IntType(32), vector.lanes)
    first = builder.insert_element(
        ir.Constant(numbers, ir.Undefined), builder.trunc(n, numbers.element), _word(0)
    )
    ends = _shuffle(builder, first, [0] * vector.lanes)
    return builder.icmp_signed("<", ir.Constant(numbers, list(range(vector.lanes))), ends)


def _masked(builder: Builder, what: str, vector: VectorType, kind: ir.FunctionType) -> Value:
    letter = "f" if vector.is_float else "i"
    name = f"llvm.masked.{what}.v{vector.lanes}{letter}{vector.dtype.bitwidth}.p0"
    return cgutils.get_or_insert_function(builder.module, kind, name)


def _sum_groups(builder: Builder, total: Value, n_groups: int, n_lanes: int) -> Value:
    width = n_lanes // n_groups
    while width > 1:
        half = width // 2
        low = [g * width + i for g in range(n_groups) for i in range(half)]
        total = builder.fadd(
            _shuffle(builder, total, low), _shuffle(builder, total, [i + half for i in low])
        )
        width = half
    return total


def _shuffle(builder: Builder, value: Value, lanes: list[int]) -> Value:
    return _shuffle_two(builder, value, ir.Constant(value.type, ir.Undefined), lanes)


def _shuffle_two(builder: Builder, one: Value, other: Value, lanes: list[int]) -> Value:
    """Lanes of two vectors by their numbers; those of `other` count on from those of `one`."""
    index = ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), lanes)
    return builder.shuffle_vector(one, other, index)


def _pointer(
    context: Context, builder: Builder, sig: Signature, args: Values, position: int, length: int
) -> Value:
    """Address of `array[index]`; with NUMBA_BOUNDSCHECK=1, `length` elements must be there."""
    array, index = args[position : position + 2]
    kind = sig.args[position]
    if context.enable_boundscheck and length:
        size = builder.extract_value(field_of(context, builder, kind, array, "shape"), 0)
        cgutils.do_boundscheck(context, builder, index, size)
        last = builder.add(index, ir.Constant(index.type, length - 1))
        cgutils.do_boundscheck(context, builder, last, size)
    return builder.gep(field_of(context, builder, kind, array, "data"), [index])
