"""Tensors of PyTorch, read by compiled code: it asks each where its memory is, faster than Python could.

It asks by DLPack's table of C functions, which a class of tensors has as `__dlpack_c_exchange_api__`.
Which memory a tensor has may change at any time, as by `Tensor.set_` or `Tensor.share_memory_`, so that
no answer is kept.
"""

import ctypes

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.np.arrayobj import populate_array

from gatv2.numba.arguments import Index, Integers, Plain
from gatv2.numba.compile import Builder, Context, Signature, Typing, Value, Values, intrinsic

_MAJOR_VERSION = 1
_NAME = b"dlpack_exchange_api"
_CPU, _INT = 1, 0  # of DLPack's kinds of devices and of types

_BYTE, _SHORT, _WORD, _LONG = (ir.IntType(n_bits) for n_bits in (8, 16, 32, 64))
_POINTER, _LONGS = _BYTE.as_pointer(), _LONG.as_pointer()
# data; kind and number of the device; dimensions; kind, bits and lanes of the type; shape, strides,
# offset
_TENSOR = ir.LiteralStructType(
    [_POINTER, _WORD, _WORD, _WORD, _BYTE, _BYTE, _SHORT, _LONGS, _LONGS, _LONG]
)
_ASK = ir.FunctionType(_WORD, [_POINTER, _TENSOR.as_pointer()])


class _Table(ctypes.Structure):
    """DLPack's struct `DLPackExchangeAPI`, as far as it is needed."""

    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("older", ctypes.c_void_p),
        ("functions", ctypes.c_void_p * 3),
        ("dltensor_from_py_object_no_sync", ctypes.c_void_p),
    )


def asker(tensor_class: type) -> int:
    """The address of the C function that `ask` calls for tensors of a class; 0 if it has none."""
    capsule = getattr(tensor_class, "__dlpack_c_exchange_api__", None)
    if capsule is None:
        return 0
    pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
        ("PyCapsule_GetPointer", ctypes.pythonapi)
    )
    try:
        table = _Table.from_address(pointer(capsule, _NAME))
    except (TypeError, ValueError):  # no such capsule
        return 0
    is_known = table.major == _MAJOR_VERSION
    return (table.dltensor_from_py_object_no_sync or 0) if is_known else 0


@intrinsic
def ask(_typing: Typing, function: Index, tensor: Index) -> Plain:
    """Where the numbers of a tensor are, and how many.

    There are -1 unless it is a tensor of one dimension, of int32 without gaps, in the CPU's memory.
    `tensor` is the address of a Python object, which must be alive. Only for `python_kernel`.
    """

    def lower(context: Context, builder: Builder, sig: Signature, args: Values) -> Value:
        place = cgutils.alloca_once(builder, _TENSOR)
        address, size = (
            cgutils.alloca_once_value(builder, ir.Constant(_LONG, value)) for value in (0, -1)
        )
        asker = builder.inttoptr(args[0], _ASK.as_pointer())
        status = builder.call(asker, [builder.inttoptr(args[1], _POINTER), place])
        is_told = builder.icmp_signed("==", status, ir.Constant(_WORD, 0))
        with builder.if_else(is_told) as (told, failed):
            with told, builder.if_then(_is_row_of_int32(builder, place)):
                data = builder.ptrtoint(_field(builder, place, 0), _LONG)
                builder.store(builder.add(data, _field(builder, place, 9)), address)
                builder.store(builder.load(_field(builder, place, 7)), size)
            with failed:  # with an exception, which nobody asked for
                context.get_python_api(builder).err_clear()
        answer = [builder.load(address), builder.load(size)]
        return context.make_tuple(builder, sig.return_type, answer)

    return types.UniTuple(types.int64, 2)(function, tensor), lower


def _field(builder: Builder, place: Value, number: int) -> Value:
    index = [ir.Constant(_WORD, 0), ir.Constant(_WORD, number)]
    return builder.load(builder.gep(place, index, inbounds=True))


def _is_row_of_int32(builder: Builder, place: Value) -> Value:
    is_met = ir.Constant(ir.IntType(1), 1)
    for number, expected in ((1, _CPU), (3, 1), (4, _INT), (5, 32), (6, 1)):
        value = _field(builder, place, number)
        is_equal = builder.icmp_unsigned("==", value, ir.Constant(value.type, expected))
        is_met = builder.and_(is_met, is_equal)
    is_row = cgutils.alloca_once_value(builder, ir.Constant(ir.IntType(1), 0))
    with builder.if_then(is_met):
        size, stride = (builder.load(_field(builder, place, number)) for number in (7, 8))
        zero, one = (ir.Constant(_LONG, n) for n in (0, 1))
        is_dense = builder.or_(
            builder.icmp_signed("==", stride, one), builder.icmp_signed("<=", size, one)
        )
        # wrappers of `torch.func.functionalize`, and tensors of nothing but zeros, have no memory
        data = builder.ptrtoint(_field(builder, place, 0), _LONG)
        has_memory = builder.or_(
            builder.icmp_signed("!=", data, zero), builder.icmp_signed("==", size, zero)
        )
        builder.store(builder.and_(is_dense, has_memory), is_row)
    return builder.load(is_row)


@intrinsic
def integers_at(_typing: Typing, address: Index, size: Index, like: Integers) -> Integers:
    """The array of so many integers at an address, of the type of those of another array."""

    def lower(context: Context, builder: Builder, sig: Signature, args: Values) -> Value:
        array = context.make_array(sig.return_type)(context, builder)
        dtype = context.get_data_type(like.dtype)
        n_bytes = context.get_constant(types.intp, context.get_abi_sizeof(dtype))
        populate_array(
            array,
            data=builder.inttoptr(args[0], dtype.as_pointer()),
            shape=[args[1]],
            strides=[n_bytes],
            itemsize=n_bytes,
            meminfo=None,
            parent=None,
        )
        return array._getvalue()

    return types.Array(like.dtype, 1, "C")(address, size, like), lower
